"""The table of metrics: each is a function of matched detections, and the config names it.

A metric is a function `(matched, weights, **fields) -> {name: values}`.
- `matched` is what to score, a `Matched`.
- `weights` has a row for each sample, and in it how often each image counts: the score itself is
  asked for with a row of ones, its interval with bootstrap samples. Sums over the rows of a table
  are `weights @ np.bincount(table.image, minlength=matched.num_images)`.
- `fields` are fields of `config.evaluation`, by name.
- `name` is the key in `evaluation.json`; the values are one for each sample, or one for each sample
  and class ("No finding" may come last). NaN: not defined there. Higher is better.

Whatever is in the table is computed where `evaluation.metrics` names it, and has its 95 % interval,
its difference with `--against`, its lines on the console and in the report, its place in
`metrics.jsonl`, and may be what `evaluation.best_by` names.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdet import ConfigError, InputError
from jaxdet.doors import choose
from jaxdet.evaluation.curves import any_finding
from jaxdet.ops import metrics as ops
from jaxdet.ops.boxes import NO_FINDING_BOX, BoxTable

IOU_THRESHOLD = 0.4  # of the task
BEST_BY = f"mAP@{IOU_THRESHOLD:g}"  # unless `evaluation.best_by` says otherwise
COCO_IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
COCO_DETECTIONS = 100  # of an image and class, at most
AT_ONCE = 2**27  # detections times samples that a metric is given: 0.5 GB where it gathers them

Values = Float[np.ndarray, "samples"] | Float[np.ndarray, "samples classes"]
Weights = Int[np.ndarray, "samples images"]


class Matched(NamedTuple):
    """Detections, the ground truth, and which is matched to which.

    Labels count the classes; `num_classes` stands for "No finding", which is a box an image.
    """

    detections: BoxTable  # best score first
    truth: BoxTable
    num_images: int
    num_classes: int
    target: Int[np.ndarray, "n"]  # the truth of its image and class with the highest IoU, or -1
    overlap: Float[np.ndarray, "n"]  # that IoU
    # The share of its area in a crowd, see `share_in_crowds`; 1 where its class is not `judged`.
    excused: Float[np.ndarray, "n"]
    # Of each class, "No finding" last, the images where a detection of it that is no true positive
    # is a false one; None for all.
    judged: Bool[np.ndarray, "images classes"] | None = None

    def is_true(self, iou_threshold: float = IOU_THRESHOLD) -> Bool[np.ndarray, "n"]:
        """Which detections are true positives, by PASCAL VOC's rule."""
        return ops.first_to_reach(self.target, self.overlap, iou_threshold)

    def ignored(self, iou_threshold: float = IOU_THRESHOLD) -> Bool[np.ndarray, "n"]:
        """Which detections are no false positives either, as they are excused."""
        return (self.excused > iou_threshold) & ~self.is_true(iou_threshold)

    def select(self, chosen: Bool[np.ndarray, "n"]) -> "Matched":
        """Without the detections that are not chosen."""
        return self._replace(
            detections=BoxTable(*(column[chosen] for column in self.detections)),
            target=self.target[chosen],
            overlap=self.overlap[chosen],
            excused=self.excused[chosen],
        )

    def of_known(self, weights: Weights) -> Weights:
        """The weights of images of which it is known whether they have any finding; else 0."""
        return weights if self.judged is None else weights * self.judged[:, -1]


def match(
    detections: BoxTable,
    truth: BoxTable,
    num_images: int,
    num_classes: int,
    crowds: BoxTable | None = None,
    judged: Bool[np.ndarray, "images classes"] | None = None,
) -> Matched:
    """The detections by score, matched to the truth; with COCO's crowds, if there are any, and
    where each class is judged, see `judged_classes`."""
    detections = ops.by_score(detections)
    excused = np.zeros(len(detections.image))
    if crowds is not None:
        excused = ops.share_in_crowds(detections, crowds)
    if judged is not None:
        excused = np.where(judged[detections.image, detections.labels], excused, 1.0)
    matches = ops.match(detections, truth)
    return Matched(detections, truth, num_images, num_classes, *matches, excused, judged)


def judged_classes(
    truth: BoxTable, exhaustive: Bool[np.ndarray, "images classes"]
) -> Bool[np.ndarray, "images classes_and_normal"]:
    """Where a detection of a class, "No finding" last, that is no true positive is a false one.

    As in LVIS: where all of a class is boxed, nothing being a case of it. Whether an image is
    normal is known where it has a box, where somebody said so, or where all of every class is.
    """
    said = exhaustive.all(axis=1)
    said[truth.image] = True
    return np.column_stack([exhaustive, said])


def average_precision(
    matched: Matched, weights: Weights, more_iou_thresholds: Sequence[float] = (0.5, 0.75)
) -> dict[str, Values]:
    """PASCAL VOC 2010's average precision of each class at IoU 0.4, and the means over the classes
    that have ground truth: with "No finding" (mAP@T) and without (mAP<classes>@0.4)."""
    thresholds = (IOU_THRESHOLD, *more_iou_thresholds)
    is_true = np.stack([matched.is_true(threshold) for threshold in thresholds])
    ignored = np.stack([matched.ignored(threshold) for threshold in thresholds])
    aps = ops.weighted_average_precision(
        is_true, matched.detections, matched.truth, matched.num_classes + 1, weights, ignored
    )
    first, num_classes = aps[:, 0], matched.num_classes
    return {
        f"mAP@{IOU_THRESHOLD:g}": ops.mean_of_classes(first),
        f"mAP{num_classes}@{IOU_THRESHOLD:g}": ops.mean_of_classes(first[:, :num_classes]),
        "AP": first,
        **{
            f"mAP@{threshold:g}": ops.mean_of_classes(aps[:, t])
            for t, threshold in enumerate(more_iou_thresholds, 1)
        },
    }


def coco(matched: Matched, weights: Weights) -> dict[str, Values]:
    """COCO's mAP, averaged over the IoUs 0.5, 0.55, ... 0.95 and the classes of findings.

    As COCOeval of pycocotools has it (all areas, 100 detections an image and class), but with the
    area under the whole precision-recall curve instead of its mean at 101 recalls.
    """
    kept = ops.top_of_each_image(matched.detections, COCO_DETECTIONS)
    kept &= matched.detections.labels < matched.num_classes
    matched = matched.select(kept)
    is_true = ops.coco_true_positives(matched.detections, matched.truth, COCO_IOU_THRESHOLDS)
    ignored = (matched.excused >= np.array(COCO_IOU_THRESHOLDS)[:, None]) & ~is_true
    aps = ops.weighted_average_precision(
        is_true, matched.detections, matched.truth, matched.num_classes, weights, ignored
    )
    return {"mAP@0.5:0.95": ops.mean_of_classes(aps.mean(axis=1))}


def weighted_afroc(matched: Matched, weights: Weights) -> dict[str, Values]:
    """Area under the weighted AFROC curve of all findings (Chakraborty & Zhai 2016): lesions found,
    of an image with equal weights, against false positives of normal images. Images that may be
    normal or not are left out."""
    matched = matched.select(~matched.ignored())
    area = ops.weighted_afroc_area(
        matched.detections,
        matched.is_true(),
        matched.truth,
        matched.target,
        matched.num_classes,
        matched.of_known(weights),
    )
    return {"wAFROC": area}


def image_auc(matched: Matched, weights: Weights) -> dict[str, Values]:
    """Area under the ROC curve of "any finding": images with findings against normal ones.
    Images that may be either are left out."""
    matched = matched.select(~matched.ignored())
    scores, abnormal = any_finding(
        matched.detections, matched.truth, matched.num_images, matched.num_classes
    )
    weights = matched.of_known(weights)
    area = ops.ranking_area(
        scores[~abnormal], scores[abnormal], weights[:, ~abnormal], weights[:, abnormal]
    )
    return {"AUC": area}


METRICS = {
    "average_precision": average_precision,
    "coco": coco,
    "weighted_afroc": weighted_afroc,
    "image_auc": image_auc,
}


def check_metrics(names: Sequence[str]) -> None:
    """Raise InputError unless average precision, which every report is made of, is among them."""
    if "average_precision" not in names:
        raise InputError("leaves out 'average_precision', which the report is made of")


def chosen(evaluation: Mapping[str, Any] | None = None) -> list[Callable]:
    """The metrics that `config.evaluation` names, with their fields filled in; all if None."""
    section = {"metrics": tuple(METRICS), **(evaluation or {})}
    return [choose(METRICS, name, section) for name in section["metrics"]]


def score(
    matched: Matched, evaluation: Mapping[str, Any] | None = None, weights: Weights | None = None
) -> dict[str, Values]:
    """Every value of the chosen metrics, by name; of one sample, each image once, if no weights."""
    weights = np.ones((1, matched.num_images), np.int32) if weights is None else weights
    result = {}
    for metric in chosen(evaluation):
        result |= metric(matched, weights)
    return result


def bootstrap(
    matched: Matched, num_samples: int, evaluation: Mapping[str, Any] | None = None
) -> dict[str, Values]:
    """As `score`, of samples of the images drawn with replacement.

    Sample i has the same images in every call, so that differences of two runs are paired.
    """
    rows = max(matched.num_images, len(matched.detections.image))
    blocks = [
        score(matched, evaluation, weights)
        for weights in ops.resamples(matched.num_images, num_samples, max(1, AT_ONCE // rows))
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def check_best_by(evaluation: Mapping[str, Any], class_names: Sequence[str]) -> None:
    """Raise ConfigError unless `evaluation.best_by` is a number that a chosen metric gives."""
    one = BoxTable(
        np.array([0]), np.array([len(class_names)]), np.array([NO_FINDING_BOX]), np.array([1.0])
    )
    scores = score(match(one, one, 1, len(class_names)), evaluation)
    numbers = [name for name, values in scores.items() if values.ndim == 1]
    if evaluation["best_by"] not in numbers:
        raise ConfigError(
            "evaluation.best_by",
            f"{evaluation['best_by']!r} is none of what evaluation.metrics computes: "
            + ", ".join(numbers),
        )
