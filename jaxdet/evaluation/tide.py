"""Kinds of error, and what mAP would be if each were fixed (TIDE, Bolya et al. 2020)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxdet.ops.boxes import BoxTable
from jaxdet.ops.metrics import area_under_curve, match, true_positives

# Kinds of false positive, in the order in which they are tested for; 0 is a true positive.
POOR_BOX, WRONG_CLASS, DUPLICATE, BACKGROUND, BOTH = range(1, 6)


class Errors(NamedTuple):
    """The error of each detection and each box of the truth."""

    kind: Int[np.ndarray, "detections"]  # 0, POOR_BOX, WRONG_CLASS, DUPLICATE, BACKGROUND, BOTH
    target: Int[np.ndarray, "detections"]  # the truth that it would match if fixed, or -1
    missed: Bool[np.ndarray, "truth"]  # no detection matches it, fixed or not


def classify(
    detections: BoxTable, truth: BoxTable, iou_threshold: float, background_iou: float = 0.1
) -> Errors:
    """The kind of error of every detection and every truth, by section 2.2 of the paper.

    A detection that is not a true positive (see `metrics.average_precision`) is the first of these
    that applies:
    - poor box: right class, IoU from `background_iou` to `iou_threshold`;
    - wrong class: IoU with a truth of another class above `iou_threshold`;
    - duplicate: a detection with a higher score has taken its truth;
    - background: IoU with every truth `background_iou` or less;
    - both: wrong class and poor box.

    A poor box or wrong class points to one truth. If no detection has found that truth, the
    best-scored of those that point to it would if fixed: the truth is its `target`. Truth that is
    neither found nor a target is missed.
    """
    is_true, own = true_positives(detections, truth, iou_threshold)
    _, own_iou = match(detections, truth)
    other, other_iou = match(detections, truth, other_class=True)
    poor_box = (own_iou >= background_iou) & (own_iou <= iou_threshold)
    kind = np.select(
        [
            is_true,
            poor_box,
            other_iou > iou_threshold,
            own_iou > iou_threshold,
            np.maximum(own_iou, other_iou) <= background_iou,
        ],
        [0, POOR_BOX, WRONG_CLASS, DUPLICATE, BACKGROUND],
        BOTH,
    )

    found = np.zeros(len(truth.image) + 1, bool)  # the last is for -1, which aims at nothing
    found[own[is_true]] = True
    aim = np.where(kind == POOR_BOX, own, np.where(kind == WRONG_CLASS, other, -1))
    aim[found[aim]] = -1
    target = np.full(len(kind), -1)
    by_score = np.argsort(-detections.scores, kind="stable")
    aiming = by_score[aim[by_score] >= 0]
    reached, first = np.unique(aim[aiming], return_index=True)
    target[aiming[first]] = reached
    missed = ~found[:-1]
    missed[reached] = False
    return Errors(kind, target, missed)


class Cost(NamedTuple):
    """One kind of error, and what it costs."""

    name: str
    count: int
    mean_average_precision: float  # if it were fixed
    gain: float  # that minus the mAP as it is


def costs(
    detections: BoxTable,
    truth: BoxTable,
    iou_threshold: float,
    num_classes: int,
    background_iou: float = 0.1,
) -> tuple[float, list[Cost]]:
    """mAP of the findings, and what it would be if one kind of error were fixed, for each kind.

    As in the paper: a wrong class or a poor box becomes a true positive if it has a `target`, and
    is removed if not; detections of the kinds both, duplicate and background are removed; missed
    truth is not counted. The gains do not add up to 1 - mAP. Labels from `num_classes` on
    ("No finding") are left out, and so are classes without truth.
    """
    detections, truth = (
        BoxTable(*(column[table.labels < num_classes] for column in table))
        for table in (detections, truth)
    )
    errors = classify(detections, truth, iou_threshold, background_iou)
    order = np.argsort(-detections.scores, kind="stable")
    counts = np.bincount(truth.labels, minlength=num_classes)
    present = np.flatnonzero(counts)

    def mean(labels, is_true, stays, counts):
        aps = []
        for label in present:
            mine = order[(labels[order] == label) & stays[order]]
            once, number = np.ones((len(mine), 1), np.int64), counts[label, None]
            aps.append(area_under_curve(is_true[None, mine], once, number)[0, 0])
        # A class of which all was missed has nothing left to find.
        return float(np.nan_to_num(aps, nan=1.0).mean()) if aps else np.nan

    everything = np.ones(len(order), bool)
    is_true = errors.kind == 0
    now = mean(detections.labels, is_true, everything, counts)
    reaches = errors.target >= 0
    label_of_target = np.where(
        reaches, np.append(truth.labels, 0)[errors.target], detections.labels
    )

    result = []
    for name, kind in (
        ("wrong class", WRONG_CLASS),
        ("poor box", POOR_BOX),
        ("both", BOTH),
        ("duplicate", DUPLICATE),
        ("background", BACKGROUND),
    ):
        mine = errors.kind == kind
        fixed = mine & reaches
        labels = np.where(fixed, label_of_target, detections.labels)
        value = mean(labels, is_true | fixed, ~mine | fixed, counts)
        result.append(Cost(name, int(mine.sum()), value, value - now))
    without = counts - np.bincount(truth.labels[errors.missed], minlength=num_classes)
    value = mean(detections.labels, is_true, everything, without)
    result.append(Cost("missed", int(errors.missed.sum()), value, value - now))
    return now, result
