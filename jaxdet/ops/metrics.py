"""Scores: average precision by the rule of PASCAL VOC 2010, how sure it is, and FROC."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdet.ops.boxes import BoxTable, area, iou

FALSE_POSITIVES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)  # per image: the rates of the LUNA16 challenge


def match(
    detections: BoxTable, truth: BoxTable, other_class: bool = False
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """For each detection, the truth of its image and class that it overlaps most, and the IoU.

    The first of equals; -1 and 0 where nothing overlaps. With `other_class`, the truths of its
    image that are *not* of its class.
    """
    num_classes = 1 + max(detections.labels.max(initial=0), truth.labels.max(initial=0))
    key, wanted = truth.image, detections.image
    if not other_class:
        key = truth.image * num_classes + truth.labels
        wanted = detections.image * num_classes + detections.labels
    by_key = np.argsort(key, kind="stable")
    start = np.searchsorted(key[by_key], wanted, "left")
    count = np.searchsorted(key[by_key], wanted, "right") - start

    # A row for every pair of a detection with a truth that it may overlap.
    detection = np.repeat(np.arange(len(wanted)), count)
    nth = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
    candidate = by_key[np.repeat(start, count) + nth]
    if other_class:
        other = detections.labels[detection] != truth.labels[candidate]
        detection, candidate, nth = detection[other], candidate[other], nth[other]
    overlap = iou(detections.boxes[detection], truth.boxes[candidate])

    best, best_overlap = np.full(len(wanted), -1), np.zeros(len(wanted))
    # By rising IoU, the first of equals last: what is written last stays.
    order = np.lexsort((-nth, overlap))
    order = order[overlap[order] > 0]
    best[detection[order]] = candidate[order]
    best_overlap[detection[order]] = overlap[order]
    return best, best_overlap


def _by_score(detections: BoxTable) -> BoxTable:
    """By descending score over the whole set, equal ones as they stand."""
    order = np.argsort(-detections.scores, kind="stable")
    return BoxTable(*(column[order] for column in detections))


def _true_positives(best, overlap, iou_threshold) -> Bool[np.ndarray, "n"]:
    """Which of the detections, best score first, is the first to reach its best truth."""
    close = np.flatnonzero((best >= 0) & (overlap > iou_threshold))
    result = np.zeros(len(best), bool)
    result[close[np.unique(best[close], return_index=True)[1]]] = True
    return result


def true_positives(
    detections: BoxTable, truth: BoxTable, iou_threshold: float
) -> tuple[Bool[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Which detections are true positives (see `average_precision`), and the truth of the same
    image and class that each overlaps most, or -1. Both in the order of the table."""
    order = np.argsort(-detections.scores, kind="stable")
    best, overlap = match(_by_score(detections), truth)
    is_true, target = np.zeros(len(best), bool), np.zeros(len(best), np.int64)
    is_true[order], target[order] = _true_positives(best, overlap, iou_threshold), best
    return is_true, target


def without_those_in_crowds(
    detections: BoxTable, truth: BoxTable, crowds: BoxTable, iou_threshold: float
) -> BoxTable:
    """The detections that are judged: COCO's crowds are regions where others are not.

    Left out is what is no true positive, and has more than `iou_threshold` of its own area in a
    crowd of its image and class (pycocotools, `iscrowd`).
    """
    is_true, _ = true_positives(detections, truth, iou_threshold)
    whole, inside = area(detections.boxes), np.zeros(len(is_true), bool)
    for image, label, box in zip(crowds.image, crowds.labels, crowds.boxes, strict=True):
        mine = np.flatnonzero((detections.image == image) & (detections.labels == label))
        boxes = detections.boxes[mine]
        common = np.concatenate(
            [np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])], axis=1
        )
        inside[mine] |= area(common) > iou_threshold * whole[mine]
    kept = is_true | ~inside
    return BoxTable(*(column[kept] for column in detections))


def area_under_curve(
    true_positive: Bool[np.ndarray, "n"],
    weight: Int[np.ndarray, "n"],
    num_truth: int | np.integer,
) -> float:
    """Area under the monotone precision-recall curve of detections, best score first; each counts
    `weight` times. NaN without ground truth.

    Precision is highest right after a true positive, so no other point is needed.
    """
    found, seen = np.cumsum(weight[true_positive]), np.cumsum(weight)[true_positive]
    precision = found / np.maximum(seen, 1)  # 0 as long as nothing counts
    monotone = np.maximum.accumulate(precision[::-1])[::-1]
    return float(weight[true_positive] @ monotone / num_truth) if num_truth else np.nan


def average_precision(
    detections: BoxTable, truth: BoxTable, iou_thresholds: Sequence[float], num_classes: int
) -> Float[np.ndarray, "thresholds classes"]:
    """Average precision of each class at each IoU; NaN for a class without ground truth.

    PASCAL VOC 2010 (Everingham et al., devkit, section 4.4): the detections of all images go by
    descending score, equal ones as they stand. One is a true positive if its IoU with the truth
    of its image and class that it overlaps most is *above* the threshold and no better-scored one
    has taken that truth; else it is a false positive. The area under the precision-recall curve is
    taken with precision made monotone, at every recall.
    """
    detections = _by_score(detections)
    best, overlap = match(detections, truth)
    once = np.ones(len(best), np.int64)
    result = np.full((len(iou_thresholds), num_classes), np.nan)
    for t, threshold in enumerate(iou_thresholds):
        is_true = _true_positives(best, overlap, threshold)
        for label in range(num_classes):
            mine = detections.labels == label
            result[t, label] = area_under_curve(
                is_true[mine], once[mine], np.sum(truth.labels == label)
            )
    return result


def froc(
    detections: BoxTable,
    truth: BoxTable,
    num_images: int,
    iou_threshold: float,
    num_classes: int,
    false_positives: Sequence[float] = FALSE_POSITIVES,
) -> tuple[Float[np.ndarray, "classes rates"], Float[np.ndarray, "rates"]]:
    """Free-response ROC: recall (sensitivity) at so many false positives per image.

    Of each class (NaN without ground truth), and of all `num_classes` pooled: their boxes and false
    positives counted together. Classes from `num_classes` on ("No finding") are left out. True
    positives are those of `average_precision`. An operating point is a score, with all detections
    that reach it: given is the best recall of the points with at most that many false positives,
    without interpolation (Bunch et al. 1978).

    Args:
        num_images: all images read, those without ground truth or detections too.
    """
    detections = _by_score(detections)
    is_true = _true_positives(*match(detections, truth), iou_threshold)

    def recall(mine, num_truth):
        found, scores = is_true[mine], detections.scores[mine]
        ends = np.flatnonzero(np.diff(scores, append=-np.inf))  # equal scores come together
        num_found = np.cumsum(found)[ends]
        points = np.searchsorted(
            np.cumsum(~found)[ends], np.array(false_positives) * num_images, side="right"
        )
        return np.append(0, num_found)[points] / num_truth if num_truth else np.nan

    counts = np.bincount(truth.labels, minlength=num_classes)[:num_classes]
    each = np.full((num_classes, len(false_positives)), np.nan)
    for label in range(num_classes):
        each[label] = recall(detections.labels == label, counts[label])
    pooled = np.full(len(false_positives), np.nan)
    pooled[:] = recall(detections.labels < num_classes, counts.sum())
    return each, pooled


def bootstrap_average_precision(
    detections: BoxTable,
    truth: BoxTable,
    num_images: int,
    iou_threshold: float,
    num_classes: int,
    *,
    num_samples: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, "samples classes"]:
    """Average precision of each class over images drawn with replacement (Efron 1979).

    An image drawn twice counts as two images, so its rows count twice; the matching, which never
    leaves an image, is done once. A class without ground truth in a sample is NaN there. Equal
    seeds draw equal images, so that two sets of detections can be compared sample by sample.

    Args:
        num_images: images are numbered from 0 below this; those without a row are drawn too.
    """
    detections = _by_score(detections)
    is_true = _true_positives(*match(detections, truth), iou_threshold)
    of_class = [
        (is_true[mine], detections.image[mine], truth.image[truth.labels == label])
        for label in range(num_classes)
        for mine in [detections.labels == label]
    ]
    rng = np.random.default_rng(seed)
    result = np.full((num_samples, num_classes), np.nan)
    for i in range(num_samples):
        drawn = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
        for label, (found, image, true) in enumerate(of_class):
            result[i, label] = area_under_curve(found, drawn[image], drawn[true].sum())
    return result


def mean_of_classes(
    samples: Float[np.ndarray, "samples classes"],
) -> Float[np.ndarray, "samples"]:
    """Of each sample, over the classes that have ground truth in it; NaN where none has."""
    present = ~np.isnan(samples)
    count = present.sum(axis=1)
    return np.where(count, np.where(present, samples, 0).sum(axis=1) / np.maximum(count, 1), np.nan)


def percentile_interval(
    samples: Float[np.ndarray, "samples"], confidence: float = 0.95
) -> tuple[float, float]:
    """The share `confidence` of the samples lies within; NaN samples are left out, and
    (NaN, NaN) is returned if all are."""
    if np.isnan(samples).all():
        return np.nan, np.nan
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(samples, (tail, 1 - tail))
    return float(low), float(high)
