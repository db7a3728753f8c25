"""Test-time augmentation: several views of each image, and their detections fused."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxdet.inference.ensemble import fuse_tables
from jaxdet.ops.boxes import BoxTable
from jaxdet.ops.nms import Detections


def looks(tta: ConfigDict, image_size: int) -> list[tuple[int, bool]]:
    """(size, mirrored) of each view of test-time augmentation; size is in pixels along a side.

    The first is the image as it is.
    """
    sizes = dict.fromkeys([image_size, *(round(image_size * scale) for scale in tta.scales)])
    return [(size, mirrored) for size in sizes for mirrored in ((False, True)[: 1 + tta.flip])]


def fuse_looks(looks: Sequence[Detections], method: str, max_detections: int) -> Detections:
    """Fused detections of several views of the same images, the best `max_detections` an image.

    Args:
        looks: on the host, boxes in pixels of the same picture.
        method: "wbf@IOU" or "nms@IOU".
    """
    tables = []
    for look in looks:
        image, slot = np.nonzero(look.mask)
        columns = look.labels[image, slot], look.boxes[image, slot], look.scores[image, slot]
        tables.append(BoxTable(image, *columns))
    fused = fuse_tables(tables, method=method)
    order = np.lexsort((-fused.scores, fused.image))
    image, labels, boxes, scores = (column[order] for column in fused)
    num_images = len(looks[0].normal)
    counts = np.bincount(image, minlength=num_images)
    slot = np.arange(len(image)) - (np.cumsum(counts) - counts)[image]
    fits = slot < max_detections
    shape = (num_images, max_detections)
    result = Detections(
        boxes=np.zeros((*shape, 4), np.float32),
        labels=np.zeros(shape, np.int32),
        scores=np.zeros(shape, np.float32),
        mask=np.zeros(shape, bool),
        normal=np.mean([look.normal for look in looks], axis=0, dtype=np.float32),
    )
    at = image[fits], slot[fits]
    result.boxes[at], result.labels[at] = boxes[fits], labels[fits]
    result.scores[at], result.mask[at] = scores[fits], True
    return result
