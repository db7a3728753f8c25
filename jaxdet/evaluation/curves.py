"""The curves behind a score: precision-recall, FROC, ROC and calibration."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdet.ops.boxes import BoxTable
from jaxdet.ops.metrics import true_positives


def precision_recall(
    scores: Float[np.ndarray, "n"], is_true: Bool[np.ndarray, "n"], num_truth: int | np.integer
) -> tuple[Float[np.ndarray, "points"], Float[np.ndarray, "points"]]:
    """Recall and precision of one class at each true positive, precision made monotone.

    The area under these steps is the average precision of `metrics.average_precision`. Without true
    positives both are empty.

    Args:
        scores, is_true: of the detections of the class, in the order of the table.
        num_truth: boxes of the class, 1 at least.
    """
    hits = is_true[np.argsort(-scores, kind="stable")]
    found = np.arange(1, hits.sum() + 1)
    precision = found / (np.flatnonzero(hits) + 1)
    return found / num_truth, np.maximum.accumulate(precision[::-1])[::-1]


def precision_at(detections: BoxTable, is_true: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """For each detection the precision of its class at its score as threshold, made monotone.

    It does not depend on the scale of the scores, so that two detectors can be compared by it. Its
    sum over the true positives of a class, divided by the class's boxes, is average precision.
    """
    result = np.zeros(len(detections.scores))
    order = np.argsort(-detections.scores, kind="stable")
    for label in np.unique(detections.labels):
        mine = order[detections.labels[order] == label]
        precision = np.cumsum(is_true[mine]) / np.arange(1, len(mine) + 1)
        result[mine] = np.maximum.accumulate(precision[::-1])[::-1]
    return result


class Froc(NamedTuple):
    """False positives per image, and recall, of every operating point; fewest first."""

    false_positives: Float[np.ndarray, "points"]
    recall: Float[np.ndarray, "points"]


def froc(
    scores: Float[np.ndarray, "n"],
    is_true: Bool[np.ndarray, "n"],
    num_truth: int | np.integer,
    num_images: int | np.integer,
    weight: Float[np.ndarray, "n"] | int = 1,
) -> Froc:
    """The whole FROC curve, from which `metrics.froc` takes points; of one class, or all pooled.

    Args:
        num_images: where the false positives count.
        weight: how many false positives each stands for.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # equal scores come together
    hits = is_true[order]
    return Froc(
        np.append(0, np.cumsum((~is_true * weight)[order])[ends]) / num_images,
        np.append(0, np.cumsum(hits)[ends]) / num_truth,
    )


def any_finding(
    detections: BoxTable, truth: BoxTable, num_images: int, num_classes: int
) -> tuple[Float[np.ndarray, "images"], Bool[np.ndarray, "images"]]:
    """For each image a score for having any finding, and whether it has one.

    The score is 1 - that of "No finding" (label `num_classes`) where the image has that, else the
    score of its best box, or 0.
    """
    found = detections.labels < num_classes
    best, normal = np.zeros(num_images), np.full(num_images, -np.inf)
    np.maximum.at(best, detections.image[found], detections.scores[found])
    np.maximum.at(normal, detections.image[~found], detections.scores[~found])
    scores = np.where(normal > -np.inf, 1 - normal, best)
    abnormal = np.zeros(num_images, bool)
    abnormal[truth.image[truth.labels < num_classes]] = True
    return scores, abnormal


class Roc(NamedTuple):
    """1 - specificity and sensitivity at every score threshold, the highest first; and the area."""

    false_positive_rate: Float[np.ndarray, "points"]
    true_positive_rate: Float[np.ndarray, "points"]
    area: float


def roc(scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]) -> Roc | None:
    """Receiver operating characteristic; None if all are positive, or none.

    The area is that of `metrics.ranking_area`.
    """
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    true = np.append(0, np.cumsum(positive[order])[ends]) / positive.sum()
    false = np.append(0, np.cumsum(~positive[order])[ends]) / (~positive).sum()
    return Roc(false, true, float(np.trapezoid(true, false)))


class Calibration(NamedTuple):
    """A reliability diagram: mean score and precision of detections, in bins of the score."""

    score: Float[np.ndarray, "bins"]  # mean; NaN for an empty bin
    precision: Float[np.ndarray, "bins"]  # share of true positives; NaN for an empty bin
    interval: Float[np.ndarray, "2 bins"]  # of 95 % of that share (Wilson 1927)
    count: Int[np.ndarray, "bins"]
    error: float  # expected calibration error; NaN without detections


def calibration(
    scores: Float[np.ndarray, "n"], is_true: Bool[np.ndarray, "n"], num_bins: int = 10
) -> Calibration:
    """Calibration of detections with scores in [0, 1], in bins of equal width.

    Scores are calibrated if, of the detections with score s, the share s are true positives. The
    error is the expected calibration error: the mean over the detections of their bin's difference
    between mean score and precision (Guo et al. 2017; Küppers et al. 2020, with the score alone).
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
    """The score threshold with the highest F1 over the findings of all classes pooled; 1 without a
    true positive. A sensible threshold to look at detections with."""
    is_true, _ = true_positives(detections, truth, iou_threshold)
    found = np.flatnonzero(detections.labels < num_classes)
    found = found[np.argsort(-detections.scores[found], kind="stable")]
    scores, hits = detections.scores[found], np.cumsum(is_true[found])
    if not hits.any():
        return 1.0
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + np.sum(truth.labels < num_classes))
    f1[:-1][scores[1:] == scores[:-1]] = 0  # equal scores come together
    return float(scores[f1.argmax()])
