"""The task's score: PASCAL VOC 2010 mean average precision."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Boxes(NamedTuple):
    """Boxes of many images as a flat table; ground truth has score 1."""

    image: Int[np.ndarray, "n"]
    classes: Int[np.ndarray, "n"]
    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n"]


def _iou(a, b):
    size = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
    intersection = size.prod(axis=1)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b))
    union = area_a + area_b - intersection
    return np.divide(intersection, union, out=np.zeros(len(a)), where=union > 0)


def match(detections: Boxes, truth: Boxes):
    """For each detection the truth of its image and class that it overlaps most (-1: none), its IoU."""
    num_classes = max(detections.classes.max(initial=0), truth.classes.max(initial=0)) + 1
    key = truth.image * num_classes + truth.classes
    order = np.argsort(key, kind="stable")
    wanted = detections.image * num_classes + detections.classes
    start = np.searchsorted(key[order], wanted, "left")
    count = np.searchsorted(key[order], wanted, "right") - start
    # A row for every pair of a detection and a truth that it may hit.
    detection = np.repeat(np.arange(len(wanted)), count)
    within = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
    candidate = order[np.repeat(start, count) + within]
    iou = _iou(detections.boxes[detection], truth.boxes[candidate])
    best = np.full(len(wanted), -1)
    best_iou = np.zeros(len(wanted))
    # Ascending IoU, the first of ties last: the last to be written stays.
    rank = np.lexsort((-within, iou))
    best[detection[rank]] = candidate[rank]
    best_iou[detection[rank]] = iou[rank]
    return best, best_iou


def average_precision(
    detections: Boxes, truth: Boxes, iou_thresholds: Sequence[float], num_classes: int
) -> Float[np.ndarray, "thresholds classes"]:
    """AP of each class; NaN where there is no truth."""
    order = np.argsort(-detections.scores, kind="stable")
    detections = Boxes(*(x[order] for x in detections))
    best, iou = match(detections, truth)
    result = np.full((len(iou_thresholds), num_classes), np.nan)
    for t, threshold in enumerate(iou_thresholds):
        overlaps = np.flatnonzero((best >= 0) & (iou > threshold))
        hit = np.zeros(len(best), bool)
        hit[overlaps[np.unique(best[overlaps], return_index=True)[1]]] = True
        for label in range(num_classes):
            total = np.sum(truth.classes == label)
            if total:
                hits = hit[detections.classes == label]
                found = np.cumsum(hits)
                precision = found / np.arange(1, len(hits) + 1)
                envelope = np.maximum.accumulate(precision[::-1])[::-1]
                result[t, label] = envelope[hits].sum() / total
    return result
