"""Scores: detections, from a checkpoint or from a file, against what the readers drew."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from jaxdet import (
    InputError,
    checkpoint,
    data,
    fusion,
    inference,
    metrics,
    parallel,
    report,
    submission,
)
from jaxdet.boxes import BoxTable
from jaxdet.config import TRAINING_IMAGES, with_anchors_of_run
from jaxdet.models import detector
from tfds_vinbig import kaggle
from tfds_vinbig.kaggle import CLASS_NAMES, NO_FINDING

ALL_NAMES = (*CLASS_NAMES, "No finding")


def ground_truth(
    method: str,
    image: Int[np.ndarray, "rows"],
    labels: Int[np.ndarray, "rows"],
    reader: np.ndarray,
    boxes: Float[np.ndarray, "rows 4"],
) -> BoxTable:
    """The readers' rows as ground truth, made by `method` (see `fusion.fuse`): "raw", "wbf@T", ...

    "No finding" counts once an image, with the box (0, 0, 1, 1).
    """
    found = labels != NO_FINDING
    fused = fusion.fuse(method, image[found], labels[found], reader[found], boxes[found])
    normal = np.unique(image[~found])
    return BoxTable(
        image=np.concatenate([fused.image, normal]),
        labels=np.concatenate([fused.labels, np.full(len(normal), NO_FINDING)]),
        boxes=np.concatenate([fused.boxes, np.tile(submission.NO_FINDING_BOX, (len(normal), 1))]),
        scores=np.ones(len(fused.image) + len(normal)),
    )


def truth_of(dataset: data.Dataset, method: str) -> BoxTable:
    """The ground truth of a split in original pixels, see `ground_truth`."""
    rows = dataset.annotations
    boxes = submission.to_original(rows.boxes, dataset.sizes[rows.image], dataset.image_size)
    return ground_truth(method, rows.image, rows.labels, rows.reader, boxes)


def summarize(
    detections: BoxTable,
    truth: BoxTable,
    iou_thresholds: tuple[float, ...],
    num_images: int,
    method: str,
    bootstrap_samples: int = 0,
) -> dict:
    """The contents of evaluation.json.

    The table per class, mAP14, FROC and the intervals (of 95 %, from so many samples of the images)
    are at the first of `iou_thresholds`; a class without ground truth is None, and left out of the
    means.
    """

    def mean(values):
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else None

    def numbers(values):
        return None if np.isnan(values).any() else [float(x) for x in values]

    aps = metrics.average_precision(detections, truth, iou_thresholds, num_classes=len(ALL_NAMES))
    first, name = aps[0], f"@{iou_thresholds[0]:g}"
    froc, froc_of_all = metrics.froc(detections, truth, num_images, iou_thresholds[0], NO_FINDING)
    scores = {
        f"mAP{name}": mean(first),
        f"mAP14{name}": mean(first[:NO_FINDING]),
        "AP": {
            label: None if np.isnan(ap) else float(ap)
            for label, ap in zip(ALL_NAMES, first, strict=True)
        },
        **{f"mAP@{t:g}": mean(ap) for t, ap in zip(iou_thresholds[1:], aps[1:], strict=True)},
        "num_images": num_images,
        "ground_truth": method,
        "FROC": {
            "false_positives_per_image": metrics.FALSE_POSITIVES,
            "recall": numbers(froc_of_all),
            "recall_by_class": {
                label: numbers(values) for label, values in zip(CLASS_NAMES, froc, strict=True)
            },
        },
    }
    if bootstrap_samples:
        scores["95% interval"] = {
            f"{metric}{name}": numbers(
                metrics.bootstrap_confidence_interval(
                    detections,
                    truth,
                    num_images,
                    iou_thresholds[0],
                    num_classes,
                    num_samples=bootstrap_samples,
                )
            )
            for metric, num_classes in (("mAP", len(ALL_NAMES)), ("mAP14", NO_FINDING))
        }
    return scores


def format_table(scores: dict, truth: BoxTable) -> str:
    """A table for the console: each class with its ground truth and AP, the means, and FROC."""
    counts = np.bincount(truth.labels, minlength=len(ALL_NAMES))
    lines = [f"{'class':<20} {'truth':>6} {'AP@0.4':>7}"]
    for name, count in zip(ALL_NAMES, counts, strict=True):
        ap = scores["AP"][name]
        lines.append(f"{name:<20} {count:>6} {'-' if ap is None else f'{ap:.3f}':>7}")
    intervals = scores.get("95% interval", {})
    for name, value in scores.items():
        if name.startswith("mAP"):
            line = f"{name:<27} {'-' if value is None else f'{value:.3f}':>7}"
            if intervals.get(name):
                line += " ({:.3f} to {:.3f} in 95 % of samples of the images)".format(
                    *intervals[name]
                )
            lines.append(line)
    froc = scores["FROC"]
    if froc["recall"]:
        points = zip(froc["recall"], froc["false_positives_per_image"], strict=True)
        lines.append(
            "sensitivity at false positives an image: "
            + ", ".join(f"{y:.2f} at {x:g}" for y, x in points)
        )
    lines.append(f"{scores['num_images']} images, ground truth {scores['ground_truth']}")
    return "\n".join(lines)


class Evaluator:
    """A split decoded once and scored as often as wanted.

    Attributes:
        truth: the ground truth in original pixels.
        detections: of the last call of `score`.
        table: the same in original pixels, "No finding" among them.
    """

    def __init__(self, config: ConfigDict, dataset: data.Dataset, mesh):
        self.config, self.dataset, self.mesh = config, dataset, mesh
        self.truth = truth_of(dataset, config.evaluation.ground_truth)
        self.images = data.decode_all(dataset, "evaluate")
        self.detect = inference.make_detect(
            detector.graphdef(config),
            detector.pyramid(config),
            dataset.image_size,
            mesh,
            **config.inference,
        )
        self.detections = self.table = None

    def score(self, weights: dict, bootstrap_samples: int = 0) -> dict:
        """Detect and score; see `summarize`."""
        self.detections = inference.detect_all(
            self.detect, weights, self.images, self.config.evaluation.batch_size, self.mesh
        )
        self.table = submission.to_table(
            self.detections, self.dataset.sizes, self.dataset.image_size
        )
        return summarize(
            self.table,
            self.truth,
            (0.4, *self.config.evaluation.more_iou_thresholds),
            len(self.dataset),
            self.config.evaluation.ground_truth,
            bootstrap_samples,
        )

    def picture(self, num_images: int = 8) -> bytes:
        """A PNG of the first images with findings: the readers' fused boxes and the detections."""
        found = self.dataset.annotations.labels != NO_FINDING
        chosen = np.unique(self.dataset.annotations.image[found])[:num_images]
        chosen = chosen if len(chosen) else np.arange(min(num_images, len(self.dataset)))
        data_config = self.config.data
        part = self.dataset.take(chosen)
        targets = data.make_targets(part, data_config.fusion, data_config.max_boxes)
        detections = inference.Detections(*(x[chosen] for x in self.detections))
        buffer = io.BytesIO()
        report.compare(self.images[chosen], targets, detections).save(buffer, "png")
        return buffer.getvalue()


def load_weights(config: ConfigDict, workdir: Path, which: str, mesh) -> tuple[dict, int]:
    """The weights of a checkpoint ("latest", "best" or a step), and its step."""
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        step = checkpoint.find_step(manager, which)
        abstract = checkpoint.abstract_of(
            detector.abstract_weights(config), parallel.replicated(mesh)
        )
        return checkpoint.restore(manager, step, weights=abstract)["weights"], step


def evaluate(config: ConfigDict, workdir: Path, which: str = "latest") -> Evaluator:
    """Score a checkpoint on the evaluation split, and return what scored it.

    Prints a table; writes `evaluation.json`, and `detections.png` with some of the images.

    Raises:
        InputError: also where the images that `config.data.split` leaves are not those that this
            run has not seen.
    """
    leaves_rest = config.data.eval_split == "rest"
    config = with_anchors_of_run(config, workdir, same=TRAINING_IMAGES if leaves_rest else ())
    mesh = parallel.make_mesh()
    weights, step = load_weights(config, workdir, which, mesh)
    _, eval_set = data.train_and_eval(config)
    evaluator = Evaluator(config, eval_set, mesh)
    scores = evaluator.score(weights, config.evaluation.bootstrap_samples)
    print(f"checkpoint {step} in {workdir}")
    print(format_table(scores, evaluator.truth))
    checkpoint.write_atomically(workdir / "evaluation.json", json.dumps(scores, indent=2) + "\n")
    checkpoint.write_atomically(workdir / "detections.png", evaluator.picture())
    return evaluator


def score_files(
    annotations: Path, submission_file: Path, method: str = "raw", bootstrap_samples: int = 0
) -> dict:
    """Score a submission against Kaggle annotations. No model, and no image.

    Every image of either file counts: one that the submission leaves out is missed, and detections
    on one without annotations are false positives. Of annotations with a column `split` (the
    phantom's truth.csv) those splits count that the submission has images of.

    Raises:
        InputError: for a file that is not as it should be, or two files without a common image.
    """
    rows = kaggle.read_annotations(annotations)
    ids, detections = submission.read(submission_file)
    common = rows.image_id.isin(ids)
    if not common.any():
        raise InputError(f"{submission_file} and {annotations} have no image_id in common")
    if "split" in rows:
        rows = rows[rows.split.isin(rows.split[common].unique())]
    image, names = pd.factorize(rows.image_id)
    missing, unknown = len(set(names) - set(ids)), len(set(ids) - set(names))
    if missing:
        print(f"{missing} annotated images are not in the submission: all missed", file=sys.stderr)
    if unknown:
        print(
            f"{unknown} images are not annotated: their boxes are false positives", file=sys.stderr
        )
    number = {name: i for i, name in enumerate(dict.fromkeys([*names, *ids]))}
    detections = detections._replace(
        image=np.array([number[name] for name in ids], np.int64)[detections.image]
    )
    truth = ground_truth(
        method,
        image,
        rows.class_id.to_numpy(),
        rows.rad_id.to_numpy(),
        rows[["x_min", "y_min", "x_max", "y_max"]].to_numpy(),
    )
    return summarize(detections, truth, (0.4, 0.5, 0.75), len(number), method, bootstrap_samples)
