"""What lies behind a score: curves of precision, recall and false alarms, and calibration."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdet.ops.boxes import BoxTable
from jaxdet.ops.metrics import true_positives


def precision_recall(
    scores: Float[np.ndarray, "n"], is_true: Bool[np.ndarray, "n"], num_truth: int | np.integer
) -> tuple[Float[np.ndarray, "points"], Float[np.ndarray, "points"]]:
    """Recall and precision of one class after each true positive, precision made monotone.

    The area below the steps is the average precision of `metrics.average_precision`. Without a true
    positive there is no point.

    Args:
        scores, is_true: of the detections of the class, in the order of their table.
        num_truth: boxes of the class, 1 at least.
    """
    hits = is_true[np.argsort(-scores, kind="stable")]
    found = np.arange(1, hits.sum() + 1)
    precision = found / (np.flatnonzero(hits) + 1)
    return found / num_truth, np.maximum.accumulate(precision[::-1])[::-1]


def precision_at(detections: BoxTable, is_true: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """The precision, made monotone, of each detection's class down to its score.

    What a score is worth, whatever its scale: the detectors of two runs can be compared by it. The
    average precision of a class is the sum of it over the true positives, divided by the number of
    boxes.
    """
    result = np.zeros(len(detections.scores))
    order = np.argsort(-detections.scores, kind="stable")
    for label in np.unique(detections.labels):
        mine = order[detections.labels[order] == label]
        precision = np.cumsum(is_true[mine]) / np.arange(1, len(mine) + 1)
        result[mine] = np.maximum.accumulate(precision[::-1])[::-1]
    return result


class Froc(NamedTuple):
    """Recall at false positives per image, of every operating point, fewest first."""

    false_positives: Float[np.ndarray, "points"]
    recall: Float[np.ndarray, "points"]


def froc(
    scores: Float[np.ndarray, "n"],
    is_true: Bool[np.ndarray, "n"],
    num_truth: int | np.integer,
    num_images: int,
) -> Froc:
    """The whole curve of which `metrics.froc` takes points; detections of one class or of all."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # equal scores come together
    hits = is_true[order]
    return Froc(
        np.append(0, np.cumsum(~hits)[ends]) / num_images,
        np.append(0, np.cumsum(hits)[ends]) / num_truth,
    )


def any_finding(
    detections: BoxTable, truth: BoxTable, num_images: int, num_classes: int
) -> tuple[Float[np.ndarray, "images"], Bool[np.ndarray, "images"]]:
    """How surely each image has a finding at all, and whether it has one.

    The score is 1 less that of "No finding" (label `num_classes`) where the image has one, else
    that of its best box, or 0.
    """
    found = detections.labels < num_classes
    scores = np.zeros(num_images)
    np.maximum.at(scores, detections.image[found], detections.scores[found])
    scores[detections.image[~found]] = 1 - detections.scores[~found]
    abnormal = np.zeros(num_images, bool)
    abnormal[truth.image[truth.labels < num_classes]] = True
    return scores, abnormal


class Roc(NamedTuple):
    """Sensitivity and 1 - specificity at every score, the strictest first; and the area."""

    false_positive_rate: Float[np.ndarray, "points"]
    true_positive_rate: Float[np.ndarray, "points"]
    area: float


def roc(scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]) -> Roc | None:
    """Receiver operating characteristic; None where all are positive, or none.

    The area is the chance that a positive has a higher score than a negative (Hanley & McNeil
    1982); equal scores count half.
    """
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    true = np.append(0, np.cumsum(positive[order])[ends]) / positive.sum()
    false = np.append(0, np.cumsum(~positive[order])[ends]) / (~positive).sum()
    return Roc(false, true, float(np.trapezoid(true, false)))


def bootstrap_roc_area(
    scores: Float[np.ndarray, "n"],
    positive: Bool[np.ndarray, "n"],
    num_samples: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, "samples"]:
    """The area of `roc` over images drawn as `metrics.bootstrap_average_precision` draws them."""
    rank = np.unique(scores, return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    areas = np.full(num_samples, np.nan)
    for i in range(num_samples):
        drawn = rng.integers(len(scores), size=len(scores))
        true = np.bincount(rank[drawn], positive[drawn], minlength=rank.max() + 1)
        false = np.bincount(rank[drawn], ~positive[drawn], minlength=rank.max() + 1)
        if true.sum() and false.sum():
            below = np.cumsum(false) - false / 2
            areas[i] = true @ below / true.sum() / false.sum()
    return areas


class Calibration(NamedTuple):
    """Detections in bins of their score: what they promise, and what they hold."""

    score: Float[np.ndarray, "bins"]  # mean; NaN for an empty bin
    precision: Float[np.ndarray, "bins"]  # share of true positives; NaN for an empty bin
    interval: Float[np.ndarray, "2 bins"]  # of 95 % of that share (Wilson 1927)
    count: Int[np.ndarray, "bins"]
    error: float  # mean difference of the two over the detections; NaN without any


def calibration(
    scores: Float[np.ndarray, "n"], is_true: Bool[np.ndarray, "n"], num_bins: int = 10
) -> Calibration:
    """Of detections with scores in [0, 1], in bins of equal width.

    A score is calibrated if it is the share of true positives among the detections that have it.
    The error is the expected calibration error of detections (Guo et al. 2017; Küppers et al.
    2020, with the score alone).
    """
    bins = np.clip((scores * num_bins).astype(int), 0, num_bins - 1)
    count = np.bincount(bins, minlength=num_bins)
    some = np.where(count, count, np.nan)
    score = np.bincount(bins, scores, num_bins) / some
    precision = np.bincount(bins, is_true, num_bins) / some
    z = 1.96  # standard deviations
    middle = (precision + z**2 / some / 2) / (1 + z**2 / some)
    half = z * np.sqrt(precision * (1 - precision) / some + (z / some / 2) ** 2)
    half /= 1 + z**2 / some
    difference = np.nansum(count * np.abs(score - precision))
    error = float(difference / len(scores)) if len(scores) else np.nan
    return Calibration(score, precision, np.stack([middle - half, middle + half]), count, error)


def best_f1_score(
    detections: BoxTable, truth: BoxTable, iou_threshold: float, num_classes: int
) -> float:
    """The score from which on the findings of all classes together have the best F1; 1 without a
    true positive. Where a person begins to look."""
    is_true, _ = true_positives(detections, truth, iou_threshold)
    found = np.flatnonzero(detections.labels < num_classes)
    found = found[np.argsort(-detections.scores[found], kind="stable")]
    scores, hits = detections.scores[found], np.cumsum(is_true[found])
    if not hits.any():
        return 1.0
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + np.sum(truth.labels < num_classes))
    f1[:-1][scores[1:] == scores[:-1]] = 0  # equal scores come together
    return float(scores[f1.argmax()])
