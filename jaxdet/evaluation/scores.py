"""Truth and scores: what was detected against what the readers drew."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxdet.ops import fusion, metrics
from jaxdet.ops.boxes import NO_FINDING, NO_FINDING_BOX, BoxTable

IOU_THRESHOLD = 0.4  # of the task


def ground_truth(
    method: str,
    image: Int[np.ndarray, "rows"],
    labels: Int[np.ndarray, "rows"],
    readers: np.ndarray,
    boxes: Float[np.ndarray, "rows 4"],
    num_classes: int,
) -> BoxTable:
    """The readers' rows as ground truth, made by `method` (see `fusion.fuse`): "raw", "wbf@T", ...

    "No finding" (label `num_classes`) counts once per image, with `NO_FINDING_BOX`.
    """
    found = labels != num_classes
    fused = fusion.fuse(method, image[found], labels[found], readers[found], boxes[found])
    normal = np.unique(image[~found])
    return BoxTable(
        image=np.concatenate([fused.image, normal]),
        labels=np.concatenate([fused.labels, np.full(len(normal), num_classes)]),
        boxes=np.concatenate([fused.boxes, np.tile(NO_FINDING_BOX, (len(normal), 1))]),
        scores=np.ones(len(fused.image) + len(normal)),
    )


def numbers(values) -> list[float] | None:
    """For JSON, which has no NaN."""
    return None if np.isnan(values).any() else [float(x) for x in values]


def intervals(
    samples: Float[np.ndarray, "samples labels"], class_names: Sequence[str], at: str
) -> dict:
    """Of 95 %, from the average precision of each class and "No finding" in each sample.

    Args:
        at: how the names of the means end, such as "@0.4".
    """

    def interval(values):
        return numbers(metrics.percentile_interval(values))

    findings = samples[:, :-1]
    return {
        f"mAP{at}": interval(metrics.mean_of_classes(samples)),
        f"mAP{len(class_names)}{at}": interval(metrics.mean_of_classes(findings)),
        "AP": {
            name: interval(values)
            for name, values in zip((*class_names, NO_FINDING), samples.T, strict=True)
        },
    }


def summarize(
    detections: BoxTable,
    truth: BoxTable,
    num_images: int,
    class_names: Sequence[str],
    method: str,
    more_iou_thresholds: Sequence[float] = (0.5, 0.75),
    bootstrap_samples: int = 0,
    crowds: BoxTable | None = None,
) -> dict:
    """The scores of `evaluation.json`.

    Those per class, mAP of the findings alone, FROC and the intervals (of 95 %, from so many
    samples of the images) are at IoU 0.4; a class without ground truth is None, and left out of
    the means.

    Args:
        method: how the ground truth was made.
        crowds: regions where detections are not judged, see `metrics.without_those_in_crowds`.
    """
    num_classes = len(class_names)
    thresholds = (IOU_THRESHOLD, *more_iou_thresholds)
    judged = [_judged(detections, truth, crowds, threshold) for threshold in thresholds]
    detections = judged[0]

    def mean(values):
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else None

    aps = [
        metrics.average_precision(table, truth, (threshold,), num_classes + 1)[0]
        for table, threshold in zip(judged, thresholds, strict=True)
    ]
    first, at = aps[0], f"@{IOU_THRESHOLD:g}"
    froc, froc_of_all = metrics.froc(detections, truth, num_images, IOU_THRESHOLD, num_classes)
    scores = {
        f"mAP{at}": mean(first),
        f"mAP{num_classes}{at}": mean(first[:num_classes]),
        "AP": {
            name: None if np.isnan(ap) else float(ap)
            for name, ap in zip((*class_names, NO_FINDING), first, strict=True)
        },
        **{f"mAP@{t:g}": mean(ap) for t, ap in zip(more_iou_thresholds, aps[1:], strict=True)},
        "num_images": num_images,
        "ground_truth": method,
        "FROC": {
            "false_positives_per_image": metrics.FALSE_POSITIVES,
            "recall": numbers(froc_of_all),
            "recall_by_class": {
                name: numbers(values) for name, values in zip(class_names, froc, strict=True)
            },
        },
    }
    if bootstrap_samples:
        samples = metrics.bootstrap_average_precision(
            detections,
            truth,
            num_images,
            IOU_THRESHOLD,
            num_classes + 1,
            num_samples=bootstrap_samples,
        )
        scores["95% interval"] = intervals(samples, class_names, at)
    return scores


def _judged(
    detections: BoxTable, truth: BoxTable, crowds: BoxTable | None, iou_threshold: float
) -> BoxTable:
    if crowds is None:
        return detections
    return metrics.without_those_in_crowds(detections, truth, crowds, iou_threshold)


class Case(NamedTuple):
    """What is scored; `image` of both tables counts the ids."""

    ids: Sequence[str]
    class_names: Sequence[str]
    truth: BoxTable
    method: str  # how the truth was made
    detections: BoxTable
    crowds: BoxTable | None = None  # see `summarize`

    def judged(self, detections: BoxTable) -> BoxTable:
        """Those of some detections that are judged at the IoU of the task."""
        return _judged(detections, self.truth, self.crowds, IOU_THRESHOLD)

    def summarize(
        self, more_iou_thresholds: Sequence[float] = (0.5, 0.75), bootstrap_samples: int = 0
    ) -> dict:
        """See `summarize`."""
        tables = self.detections, self.truth, len(self.ids)
        how = self.method, more_iou_thresholds, bootstrap_samples, self.crowds
        return summarize(*tables, self.class_names, *how)


def renumber(table: BoxTable, ids: Sequence[str], new_ids: Sequence[str]) -> BoxTable:
    """A table whose `image` counts `ids`, with the positions that those have in `new_ids`."""
    number = {name: i for i, name in enumerate(new_ids)}
    new = np.array([number[name] for name in ids], np.int64)
    return table._replace(image=new[table.image])


def of_files(
    ids: Sequence[str],
    image: Int[np.ndarray, "rows"],
    labels: Int[np.ndarray, "rows"],
    readers: np.ndarray,
    boxes: Float[np.ndarray, "rows 4"],
    class_names: Sequence[str],
    detected_ids: Sequence[str],
    detections: BoxTable,
    method: str,
    crowds: Sequence[tuple[int, int, tuple[float, ...]]] = (),
) -> Case:
    """Detections, whose `image` counts `detected_ids`, and readers' rows as what is scored.

    Every image of either side counts: one without detections is missed, and detections on one
    without annotations are false positives; how many there are is said on standard error.

    Args:
        ids: of the annotated images, which `image` counts.
        crowds: (image, label, box) of each region where detections are not judged.
    """
    missing, unknown = len(set(ids) - set(detected_ids)), len(set(detected_ids) - set(ids))
    if missing:
        print(f"{missing} annotated images are not in the submission: all missed", file=sys.stderr)
    if unknown:
        print(
            f"{unknown} images are not annotated: their boxes are false positives", file=sys.stderr
        )
    all_ids = list(dict.fromkeys([*ids, *detected_ids]))
    truth = ground_truth(method, image, labels, readers, boxes, len(class_names))
    detections = renumber(detections, detected_ids, all_ids)
    regions = None
    if crowds:
        columns = [np.array(column) for column in zip(*crowds, strict=True)]
        regions = BoxTable(*columns, np.ones(len(crowds)))
    return Case(all_ids, class_names, truth, method, detections, regions)


def format_table(scores: dict, truth: BoxTable) -> str:
    """A table for the console: each class with its ground truth and AP, the means, and FROC."""
    counts = np.bincount(truth.labels, minlength=len(scores["AP"]))
    width = max(20, *map(len, scores["AP"]))
    lines = [f"{'class':<{width}} {'truth':>6} {'AP@0.4':>7}"]
    for (name, ap), count in zip(scores["AP"].items(), counts, strict=True):
        lines.append(f"{name:<{width}} {count:>6} {'-' if ap is None else f'{ap:.3f}':>7}")
    intervals = scores.get("95% interval", {})
    for name, value in scores.items():
        if name.startswith("mAP"):
            line = f"{name:<{width + 7}} {'-' if value is None else f'{value:.3f}':>7}"
            if intervals.get(name):
                line += " ({:.3f} to {:.3f} in 95 % of samples of the images)".format(
                    *intervals[name]
                )
            lines.append(line)
    froc = scores["FROC"]
    if froc["recall"]:
        points = zip(froc["recall"], froc["false_positives_per_image"], strict=True)
        lines.append(
            "recall at false positives per image: "
            + ", ".join(f"{y:.2f} at {x:g}" for y, x in points)
        )
    lines.append(f"{scores['num_images']} images, ground truth {scores['ground_truth']}")
    return "\n".join(lines)
