"""The readers' boxes of an image fused into one list, for all images at once."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxdet import InputError
from jaxdet.metrics import iou


class Fused(NamedTuple):
    """Fused boxes as a flat table, by image, class and descending score."""

    image: Int[np.ndarray, "m"]
    classes: Int[np.ndarray, "m"]
    boxes: Float[np.ndarray, "m 4"]
    scores: Float[np.ndarray, "m"]


def parse(method: str) -> tuple[str, float]:
    """("wbf", 0.4) of "wbf@0.4"; "raw" is another word for "none".

    Raises:
        InputError: for an unknown method, or an IoU that is not in [0, 1).
    """
    if method in ("none", "raw"):
        return "none", 0.0
    name, _, threshold = method.partition("@")
    try:
        iou_threshold = float(threshold)
    except ValueError:
        iou_threshold = -1.0
    if name not in ("nms", "wbf") or not 0 <= iou_threshold < 1:
        raise InputError(f"fusion {method!r}: not raw, none, nms@IOU or wbf@IOU with 0 <= IOU < 1")
    return name, iou_threshold


def fuse(
    method: str,
    image: Int[np.ndarray, "n"],
    classes: Int[np.ndarray, "n"],
    readers: np.ndarray,
    boxes: Float[np.ndarray, "n 4"],
    num_readers: int = 3,
) -> Fused:
    """Fuse boxes of one image and class that overlap.

    "none" keeps every box. "nms@T" drops a box that overlaps an earlier kept one by an IoU above T.
    "wbf@T" is weighted boxes fusion (Solovyev et al. 2021) of boxes of equal weight: a box joins
    the cluster whose mean it overlaps most, if by an IoU above T, or opens one; what comes out are
    the means, scored by the share of readers, min(boxes, readers) / readers.

    The boxes of an image being equal in score, their order decides: the reader who comes last in
    the table goes first, and with each reader the last row. It is that of the package
    ensemble-boxes, given a list a reader in the order of the table.

    Args:
        method: see `parse`.
        image, classes, readers, boxes: a row for each box; readers are names or numbers, boxes in
            any unit.
        num_readers: readers of an image.
    """
    method, iou_threshold = parse(method)
    rows = np.arange(len(image))
    if method != "none":
        # First row of each reader in each image.
        names = np.unique(readers, return_inverse=True)[1]
        pair = image * (names.max(initial=0) + 1) + names
        _, first, inverse = np.unique(pair, return_index=True, return_inverse=True)
        rows = np.lexsort((-rows, -first[inverse], classes, image))
    else:
        rows = np.lexsort((classes, image))
    image, classes, boxes = image[rows], classes[rows], boxes[rows].astype(np.float64)
    if method == "none" or not len(image):
        return Fused(image, classes, boxes, np.ones(len(image)))

    # Groups of one image and class, the largest first; step k takes the k-th box of every group.
    starts = np.flatnonzero(np.r_[True, (np.diff(image) != 0) | (np.diff(classes) != 0)])
    sizes = np.diff(np.r_[starts, len(image)])
    largest_first = np.argsort(-sizes, kind="stable")
    starts, sizes = starts[largest_first], sizes[largest_first]
    total = np.zeros((len(starts), sizes[0], 4))  # sum of the boxes of each cluster
    count = np.zeros((len(starts), sizes[0]), np.int64)
    for k in range(sizes[0]):
        group = np.arange(np.searchsorted(-sizes, -k))  # those with more than k boxes
        box = boxes[starts[group] + k]
        clusters = total[group, : k + 1] / np.maximum(count[group, : k + 1, None], 1)
        overlap = np.where(count[group, : k + 1] > 0, iou(clusters, box[:, None]), -1)
        best = overlap.argmax(axis=1)
        joins = overlap[group, best] > iou_threshold
        slot = np.where(joins, best, (count[group] > 0).sum(axis=1))
        if method == "nms":  # the cluster is its first box
            group, slot, box = group[~joins], slot[~joins], box[~joins]
        total[group, slot] += box
        count[group, slot] += 1

    group, slot = np.nonzero(count)
    members = count[group, slot]
    fused = Fused(
        image=image[starts[group]],
        classes=classes[starts[group]],
        boxes=total[group, slot] / members[:, None],
        scores=np.minimum(members, num_readers) / num_readers
        if method == "wbf"
        else np.ones(len(group)),
    )
    order = np.lexsort((-fused.scores, fused.classes, fused.image))
    return Fused(*(column[order] for column in fused))
