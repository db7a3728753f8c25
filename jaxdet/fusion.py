"""Readers' boxes to one list."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxdet import InputError


class Fused(NamedTuple):
    """Fused boxes as a flat table, ordered by image."""

    image: Int[np.ndarray, "m"]
    boxes: Float[np.ndarray, "m 4"]
    classes: Int[np.ndarray, "m"]
    scores: Float[np.ndarray, "m"]


def parse(text: str) -> tuple[str, float]:
    method, _, threshold = text.partition("@")
    if text in ("none", "raw"):
        return "none", 0.0
    try:
        value = float(threshold)
    except ValueError:
        value = -1.0
    if method not in ("nms", "wbf") or not 0 <= value < 1:
        raise InputError(f"fusion {text!r}: not one of raw, none, nms@IOU, wbf@IOU (0 <= IOU < 1)")
    return method, value


def _iou(a, b):
    size = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0)
    intersection = size.prod(axis=-1)
    area_a, area_b = ((x[..., 2:] - x[..., :2]).prod(axis=-1) for x in (a, b))
    return intersection / np.maximum(area_a + area_b - intersection, 1e-12)


def fuse_as(text, image, boxes, classes, reader, num_readers=3) -> Fused:
    method, threshold = parse(text)
    order = np.lexsort((classes, image))
    image, boxes, classes = image[order], boxes[order].astype(np.float64), classes[order]
    if method == "none" or not len(image):
        return Fused(image, boxes, classes, np.ones(len(image)))
    new = np.r_[True, (image[1:] != image[:-1]) | (classes[1:] != classes[:-1])]
    start = np.flatnonzero(new)
    size = np.diff(np.r_[start, len(image)])
    by_size = np.argsort(-size, kind="stable")
    start, size = start[by_size], size[by_size]
    total = np.zeros((len(start), size[0], 4))
    count = np.zeros((len(start), size[0]))
    for k in range(size[0]):
        active = np.searchsorted(-size, -k)  # groups with more than k boxes
        box = boxes[start[:active] + k]
        clusters = total[:active, : k + 1] / np.maximum(count[:active, : k + 1, None], 1)
        iou = np.where(count[:active, : k + 1] > 0, _iou(clusters, box[:, None]), -1)
        best = iou.argmax(axis=1)
        joins = iou[np.arange(active), best] > threshold
        slot = np.where(joins, best, (count[:active] > 0).sum(axis=1))
        group = np.arange(active)
        if method == "nms":
            group, slot, box = group[~joins], slot[~joins], box[~joins]
        total[group, slot] += box
        count[group, slot] += 1
    group, slot = np.nonzero(count)
    n = count[group, slot]
    scores = np.ones(len(n)) if method == "nms" else np.minimum(n, num_readers) / num_readers
    fused = Fused(
        image[start[group]], total[group, slot] / n[:, None], classes[start[group]], scores
    )
    order = np.lexsort((-fused.scores, fused.classes, fused.image))
    return Fused(*(x[order] for x in fused))
