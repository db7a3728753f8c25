"""Two runs side by side: how sure the difference of their scores is, and where it lies."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from jaxdet import InputError
from jaxdet.data import splits
from jaxdet.data.dataset import Dataset, read_split
from jaxdet.evaluation.curves import precision_at
from jaxdet.evaluation.evaluate import Evaluator
from jaxdet.evaluation.scores import IOU_THRESHOLD, Case, intervals
from jaxdet.inference.detector import load_detector
from jaxdet.ops import metrics
from jaxdet.ops.boxes import NO_FINDING, BoxTable
from jaxdet.runs.config import of_run
from jaxdet.runs.fields import Fields
from jaxdet.runs.identity import check_run


class Against(NamedTuple):
    """Another run's detections in the same images, and its name."""

    table: BoxTable
    name: str


def detect_of_other(
    folder: Path,
    which: str,
    config: ConfigDict,
    eval_set: Dataset,
    fields: Fields,
    open_data: Callable,
) -> Against:
    """What a checkpoint of the run in `folder` detects in `eval_set`, as it is configured itself.

    It may have other pictures (another size, say) of the same images.

    Args:
        which: "latest", "best" or a step.
        config: of the run that it is compared with, which names the evaluation split.
        eval_set: that run's evaluation images, in whose order the detections come.
        fields: all there are.
        open_data: gives the builder of the dataset of a config.

    Raises:
        InputError: if it is evaluated on other images, or has other classes.
    """
    other = of_run(folder, fields)
    other.data.eval_split = config.data.eval_split
    other.evaluation.batch_size = config.evaluation.batch_size
    if other.data.name == config.data.name:
        other.data.dir = config.data.dir
    builder = open_data(other)
    dataset = read_split(builder, "train")
    train_set, images = splits.train_and_eval(other.data, builder, dataset)
    check_run(other, fields, dataset, train_set, folder)
    if dataset.class_names != eval_set.class_names:
        raise InputError(f"--against: the run in {folder} has other classes")
    different = np.setxor1d(images.ids, eval_set.ids)
    if len(different):
        raise InputError(
            f"--against: the run in {folder} is evaluated on other images, {different[0]} is of "
            f"one of the two alone, and {len(different) - 1} more: name a run of the same split"
        )
    loaded = load_detector(other, folder, which, dataset.num_classes)
    evaluator = Evaluator(loaded.detector, images.of_ids(eval_set.ids))
    evaluator.score(loaded.weights)
    return Against(evaluator.table, str(folder))


def compare(
    case: Case,
    other: BoxTable,
    name: str,
    more_iou_thresholds: Sequence[float] = (0.5, 0.75),
    bootstrap_samples: int = 1000,
    num_listed: int = 20,
) -> dict:
    """The section "against" of `evaluation.json`: this run's scores less those of another one.

    The intervals are of 95 %, paired: in each sample both runs are scored on the same images, drawn
    with replacement, and the difference taken, so that what is hard for both cancels out. A
    difference whose interval leaves 0 out is more than luck with the images.

    Args:
        other: detections of the other run in the same images.
        name: of the other run, for people.
        num_listed: so many images where the two differ most are named.
    """
    num_classes, num_images = len(case.class_names), len(case.ids)
    names = (*case.class_names, NO_FINDING)
    thresholds = (IOU_THRESHOLD, *more_iou_thresholds)
    result = {"name": name, "scores": {}, "difference": {}, "95% interval": {}}

    aps = [
        metrics.average_precision(table, case.truth, thresholds, num_classes + 1)
        for table in (case.detections, other)
    ]
    for t, threshold in enumerate(thresholds):
        at = f"@{threshold:g}"
        samples = [
            metrics.bootstrap_average_precision(
                table, case.truth, num_images, threshold, num_classes + 1,
                num_samples=bootstrap_samples,
            )
            for table in (case.detections, other)
        ]  # fmt: skip
        of_each, of_other, sure = aps[0][t] - aps[1][t], aps[1][t], samples[0] - samples[1]
        more = intervals(sure, case.class_names, at)
        means = {f"mAP{at}": slice(None)}
        if t == 0:  # as `scores.summarize` has it
            means[f"mAP{num_classes}{at}"] = slice(num_classes)
            result["scores"]["AP"] = _by_name(names, of_other)
            result["difference"]["AP"] = _by_name(names, of_each)
            result["95% interval"]["AP"] = more["AP"]
        for key, labels in means.items():
            result["scores"][key] = _mean(of_other[labels])
            result["difference"][key] = _mean(of_each[labels])
            result["95% interval"][key] = more[key]

    difference = credit(case, case.detections) - credit(case, other)
    largest = np.argsort(-np.abs(difference), kind="stable")[:num_listed]
    result["images"] = [
        {"image_id": str(case.ids[i]), "difference": float(difference[i])}
        for i in largest
        if difference[i]
    ]
    return result


def format_table(against: dict) -> str:
    """For the console: the means, their differences, and how sure those are."""
    lines = [f"beside {against['name']}:"]
    for name, difference in against["difference"].items():
        if name == "AP" or difference is None:
            continue
        line = f"{name:<27} {difference:>+7.3f}"
        if against["95% interval"][name]:
            line += " ({:+.3f} to {:+.3f} in 95 % of samples of the images)".format(
                *against["95% interval"][name]
            )
        lines.append(line)
    return "\n".join(lines)


def credit(case: Case, detections: BoxTable) -> Float[np.ndarray, "images"]:
    """What detections are worth in each image: for each finding that is found the precision down to
    its detection's score, less that of the image's worst false alarm.

    The first, summed over all images and divided by the boxes of each class, is average precision.
    By precision rather than by score, so that runs whose scores are on other scales compare.
    """
    found = detections.labels < len(case.class_names)
    detections = BoxTable(*(column[found] for column in detections))
    is_true, _ = metrics.true_positives(detections, case.truth, IOU_THRESHOLD)
    worth = precision_at(detections, is_true)
    gained, lost = np.zeros(len(case.ids)), np.zeros(len(case.ids))
    np.add.at(gained, detections.image[is_true], worth[is_true])
    np.maximum.at(lost, detections.image[~is_true], worth[~is_true])
    return gained - lost


def _mean(values) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def _by_name(names, values) -> dict:
    return {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(names, values, strict=True)
    }
