"""What kind of error costs how much: mAP if each kind were mended (TIDE, Bolya et al. 2020)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxdet.ops.boxes import BoxTable
from jaxdet.ops.metrics import area_under_curve, match, true_positives

# What a false positive is, after 0, which is a true one. In the order in which they are tried.
POOR_BOX, WRONG_CLASS, DUPLICATE, BACKGROUND, BOTH = range(1, 6)


class Errors(NamedTuple):
    """What went wrong with each detection and each box of the truth."""

    kind: Int[np.ndarray, "detections"]  # 0, POOR_BOX, WRONG_CLASS, DUPLICATE, BACKGROUND, BOTH
    target: Int[np.ndarray, "detections"]  # the truth that it would reach if mended, or -1
    missed: Bool[np.ndarray, "truth"]  # no detection that reaches it, mended or not


def classify(
    detections: BoxTable, truth: BoxTable, iou_threshold: float, background_iou: float = 0.1
) -> Errors:
    """The kind of error of every detection and truth, by section 2.2 of the paper.

    A detection that is not a true positive (see `metrics.average_precision`) is, by the first that
    applies,
    - a poor box: its class is right, its IoU from `background_iou` to `iou_threshold`;
    - of the wrong class: its IoU with a truth of another class is above `iou_threshold`;
    - a duplicate: its truth was taken by a detection with a higher score;
    - background: its IoU with every truth is `background_iou` or less;
    - both: the wrong class, and a poor box.

    Of the poor boxes and wrong classes whose truth nothing has found, the one with the best score
    would find it if mended: that is its `target`. Truth that nothing has found, and nothing would,
    is missed.
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
    """One kind of error."""

    name: str
    count: int
    mean_average_precision: float  # if it were mended
    gain: float  # that less the mAP as it is


def costs(
    detections: BoxTable,
    truth: BoxTable,
    iou_threshold: float,
    num_classes: int,
    background_iou: float = 0.1,
) -> tuple[float, list[Cost]]:
    """mAP of the findings as it is, and what it would be if each kind of error alone were mended.

    As in the paper: a wrong class or a poor box becomes a true positive if it has a `target`,
    and goes away if not; what is both wrong, duplicates and background go away; missed truth
    is not counted. The gains do not add up to 1 - mAP. Labels from `num_classes` on ("No finding")
    are left out, and so are classes without truth.
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
            once = np.ones(len(mine), np.int64)
            aps.append(area_under_curve(is_true[mine], once, counts[label]))
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
        mended = mine & reaches
        labels = np.where(mended, label_of_target, detections.labels)
        value = mean(labels, is_true | mended, ~mine | mended, counts)
        result.append(Cost(name, int(mine.sum()), value, value - now))
    without = counts - np.bincount(truth.labels[errors.missed], minlength=num_classes)
    value = mean(detections.labels, is_true, everything, without)
    result.append(Cost("missed", int(errors.missed.sum()), value, value - now))
    return now, result
