"""The task's score: average precision by the rule of PASCAL VOC 2010."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Boxes(NamedTuple):
    """Boxes of many images as a flat table. Ground truth has score 1."""

    image: Int[np.ndarray, "n"]
    classes: Int[np.ndarray, "n"]
    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n"]


def iou(a: Float[np.ndarray, "*#n 4"], b: Float[np.ndarray, "*#n 4"]) -> Float[np.ndarray, "*n"]:
    """Intersection over union, box by box (the two broadcast); 0 where both are empty."""
    size = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0)
    intersection = size.prod(axis=-1)
    area_a, area_b = ((x[..., 2:] - x[..., :2]).prod(axis=-1) for x in (a, b))
    union = area_a + area_b - intersection
    return np.divide(intersection, union, out=np.zeros(union.shape), where=union > 0)


def match(detections: Boxes, truth: Boxes) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """For each detection, the truth of its image and class that it overlaps most, and the IoU.

    The first of equals; -1 and 0 where nothing overlaps.
    """
    num_classes = 1 + max(detections.classes.max(initial=0), truth.classes.max(initial=0))
    key = truth.image * num_classes + truth.classes
    by_key = np.argsort(key, kind="stable")
    wanted = detections.image * num_classes + detections.classes
    start = np.searchsorted(key[by_key], wanted, "left")
    count = np.searchsorted(key[by_key], wanted, "right") - start

    # A row for every pair of a detection with a truth of its image and class.
    detection = np.repeat(np.arange(len(wanted)), count)
    nth = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
    candidate = by_key[np.repeat(start, count) + nth]
    overlap = iou(detections.boxes[detection], truth.boxes[candidate])

    best, best_overlap = np.full(len(wanted), -1), np.zeros(len(wanted))
    # By rising IoU, the first of equals last: what is written last stays.
    order = np.lexsort((-nth, overlap))
    order = order[overlap[order] > 0]
    best[detection[order]] = candidate[order]
    best_overlap[detection[order]] = overlap[order]
    return best, best_overlap


def average_precision(
    detections: Boxes, truth: Boxes, iou_thresholds: Sequence[float], num_classes: int
) -> Float[np.ndarray, "thresholds classes"]:
    """Average precision of each class at each IoU; NaN for a class without ground truth.

    PASCAL VOC 2010 (Everingham et al., devkit, section 4.4): the detections of all images go by
    descending score, equal ones as they stand. One is a hit if its IoU with the truth of its image
    and class that it overlaps most is *above* the threshold and no better-scored one has hit that
    truth; else it is a false positive. The area under the precision-recall curve is taken with
    precision made monotone, at every recall.
    """
    by_score = np.argsort(-detections.scores, kind="stable")
    detections = Boxes(*(column[by_score] for column in detections))
    best, overlap = match(detections, truth)
    result = np.full((len(iou_thresholds), num_classes), np.nan)
    for t, threshold in enumerate(iou_thresholds):
        close = np.flatnonzero((best >= 0) & (overlap > threshold))
        hit = np.zeros(len(best), bool)
        hit[close[np.unique(best[close], return_index=True)[1]]] = True
        for label in range(num_classes):
            num_truth = np.sum(truth.classes == label)
            if num_truth:
                hits = hit[detections.classes == label]
                precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
                monotone = np.maximum.accumulate(precision[::-1])[::-1]
                result[t, label] = monotone[hits].sum() / num_truth
    return result
