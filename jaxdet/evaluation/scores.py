"""Ground truth and scores: detections against what the readers drew."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdet.evaluation import metrics
from jaxdet.ops import fusion
from jaxdet.ops import metrics as ops
from jaxdet.ops.boxes import NO_FINDING, NO_FINDING_BOX, BoxTable


def ground_truth(
    method: str,
    image: Int[np.ndarray, "rows"],
    labels: Int[np.ndarray, "rows"],
    readers: np.ndarray,
    boxes: Float[np.ndarray, "rows 4"],
    num_classes: int,
) -> BoxTable:
    """The readers' rows as ground truth, made by `method`, one of `fusion.FUSIONS`.

    "No finding" (label `num_classes`) counts once per image, with `NO_FINDING_BOX`.

    Raises:
        InputError: for a method that asks the detector.
    """
    fusion.parse_readers(method)
    fused = fusion.fuse_rows(method, image, labels, readers, boxes, num_classes).table
    normal = np.unique(image[labels == num_classes])
    return BoxTable(
        image=np.concatenate([fused.image, normal]),
        labels=np.concatenate([fused.labels, np.full(len(normal), num_classes)]),
        boxes=np.concatenate([fused.boxes, np.tile(NO_FINDING_BOX, (len(normal), 1))]),
        scores=np.ones(len(fused.image) + len(normal)),
    )


class Case(NamedTuple):
    """Detections and ground truth to be scored; `image` of both tables counts `ids`."""

    ids: Sequence[str]
    class_names: Sequence[str]
    truth: BoxTable
    method: str  # how the truth was made from the readers' boxes
    detections: BoxTable
    crowds: BoxTable | None = None  # regions where false positives do not count (COCO)
    # Whether all of a class is boxed, see `Dataset`: where it is not, false positives do not count.
    exhaustive: Bool[np.ndarray, "images classes"] | None = None

    def judged(self, detections: BoxTable) -> BoxTable:
        """Some detections of these images without those that do not count at IoU 0.4: they are in a
        crowd, or may be of what is not boxed."""
        if self.crowds is None and self.exhaustive is None:
            return detections
        matched = self._replace(detections=detections).matched()
        return matched.select(~matched.ignored()).detections

    def matched(self) -> metrics.Matched:
        """The detections matched to the truth."""
        sizes = len(self.ids), len(self.class_names)
        judged = self.judged_classes()
        return metrics.match(self.detections, self.truth, *sizes, self.crowds, judged)

    def judged_classes(self) -> Bool[np.ndarray, "images classes"] | None:
        """See `metrics.judged_classes`; None where all are."""
        if self.exhaustive is None:
            return None
        return metrics.judged_classes(self.truth, self.exhaustive)

    def images_judged(self) -> Int[np.ndarray, "classes"]:
        """In how many images the false positives of each class count."""
        if self.exhaustive is None:
            return np.full(len(self.class_names), len(self.ids))
        return self.exhaustive.sum(axis=0)

    def summarize(
        self, evaluation: Mapping[str, Any] | None = None, bootstrap_samples: int = 0
    ) -> dict[str, Any]:
        """The content of `evaluation.json`: every metric under its name, and FROC.

        A class without ground truth is None, and left out of means.

        Args:
            evaluation: fields of `config.evaluation`: which metrics, and what those take; all, with
                their defaults, if left out.
            bootstrap_samples: for 95 % intervals over the images; 0 for none.
        """
        matched = self.matched()
        values = {name: x[0] for name, x in metrics.score(matched, evaluation).items()}
        scores = {name: self.to_json(value) for name, value in values.items()}
        scores |= {
            "metrics": list(values),
            "num_images": len(self.ids),
            "ground_truth": self.method,
            "FROC": self._froc(),
        }
        if self.exhaustive is not None:
            counts = map(int, self.images_judged())
            scores["images_judged"] = dict(zip(self.class_names, counts, strict=True))
        if bootstrap_samples:
            samples = metrics.bootstrap(matched, bootstrap_samples, evaluation)
            scores["95% interval"] = self.intervals(samples)
        return scores

    def to_json(self, value: np.ndarray | np.floating) -> float | dict[str, float | None] | None:
        """A metric's number, or its number for each class by name; None for NaN."""
        if value.ndim:
            names = (*self.class_names, NO_FINDING)
            return {name: self.to_json(x) for name, x in zip(names, value, strict=False)}
        return None if np.isnan(value) else float(value)

    def intervals(self, samples: Mapping[str, metrics.Values]) -> dict[str, Any]:
        """The 95 % interval [low, high] of each metric, for each class where it has classes.

        Args:
            samples: as `metrics.bootstrap` gives them. An interval is None if all are NaN.
        """
        names = (*self.class_names, NO_FINDING)

        def interval(values):
            return numbers(ops.percentile_interval(values))

        return {
            name: interval(values)
            if values.ndim == 1
            else {n: interval(x) for n, x in zip(names, values.T, strict=False)}
            for name, values in samples.items()
        }

    def _froc(self) -> dict[str, Any]:
        each, pooled = ops.froc(
            self.judged(self.detections),
            self.truth,
            len(self.ids),
            metrics.IOU_THRESHOLD,
            len(self.class_names),
            images_judged=self.images_judged(),
        )
        return {
            "false_positives_per_image": ops.FALSE_POSITIVES,
            "recall": numbers(pooled),
            "recall_by_class": {
                name: numbers(values) for name, values in zip(self.class_names, each, strict=True)
            },
        }


def numbers(values) -> list[float] | None:
    """A list for JSON, or None if a value is NaN, which JSON does not have."""
    return None if np.isnan(values).any() else [float(x) for x in values]


def renumber(table: BoxTable, ids: Sequence[str], new_ids: Sequence[str]) -> BoxTable:
    """A table whose `image` counts `ids`, made to count `new_ids`."""
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
    exhaustive: Bool[np.ndarray, "images classes"] | None = None,
) -> Case:
    """The case of a file of detections and a file of readers' rows.

    Images of either file count: an annotated image without detections is missed, and detections on
    an image without annotations are false positives. Standard error says how many there are.

    Args:
        ids: of the annotated images, which `image` counts.
        detected_ids: of the images of `detections`, which its `image` counts.
        method: of making ground truth, see `ground_truth`.
        crowds: image, label and box of regions where false positives do not count.
        exhaustive: of the annotated images, see `Case`.
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
    if exhaustive is not None:
        others = np.ones((len(all_ids) - len(ids), len(class_names)), bool)
        exhaustive = np.concatenate([exhaustive, others])
    return Case(all_ids, class_names, truth, method, detections, regions, exhaustive)


def number_names(scores: Mapping[str, Any]) -> list[str]:
    """The metrics of `Case.summarize` that are one number, not one for each class."""
    return [name for name in scores["metrics"] if not isinstance(scores[name], dict)]


def format_table(scores: dict, truth: BoxTable) -> str:
    """A table for the console: of each class its boxes and AP, then the metrics and FROC."""
    counts = np.bincount(truth.labels, minlength=len(scores["AP"]))
    width = max(20, *map(len, scores["AP"]))
    lines = [f"{'class':<{width}} {'truth':>6} {'AP@0.4':>7}"]
    for (name, ap), count in zip(scores["AP"].items(), counts, strict=True):
        lines.append(f"{name:<{width}} {count:>6} {'-' if ap is None else f'{ap:.3f}':>7}")
    intervals = scores.get("95% interval", {})
    for name in number_names(scores):
        value = scores[name]
        line = f"{name:<{width + 7}} {'-' if value is None else f'{value:.3f}':>7}"
        if intervals.get(name):
            line += " (95 % interval {:.3f} to {:.3f})".format(*intervals[name])
        lines.append(line)
    froc = scores["FROC"]
    if froc["recall"]:
        points = zip(froc["recall"], froc["false_positives_per_image"], strict=True)
        lines.append(
            "recall at false positives per image: "
            + ", ".join(f"{y:.2f} at {x:g}" for y, x in points)
        )
    lines.append(f"{scores['num_images']} images, ground truth {scores['ground_truth']}")
    if judged := scores.get("images_judged"):
        pairs = sum(scores["num_images"] - count for count in judged.values())
        lines.append(f"{pairs} pairs of image and class may have more than is boxed: not judged")
    return "\n".join(lines)
