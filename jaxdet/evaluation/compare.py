"""Comparing two runs: differences of their metrics with intervals, and where they differ most."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from jaxdet import InputError
from jaxdet.data import splits
from jaxdet.data.dataset import Dataset, read_split
from jaxdet.evaluation import metrics
from jaxdet.evaluation.curves import precision_at
from jaxdet.evaluation.evaluate import Evaluator
from jaxdet.evaluation.metrics import IOU_THRESHOLD
from jaxdet.evaluation.scores import Case
from jaxdet.inference.detector import load_detector
from jaxdet.ops.boxes import BoxTable
from jaxdet.ops.metrics import true_positives
from jaxdet.runs.config import of_run
from jaxdet.runs.fields import Fields
from jaxdet.runs.identity import check_run


class Against(NamedTuple):
    """The run that is compared with: its detections in the same images, and its name."""

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
    """The detections of the run in `folder`, with its own config, in the images of `eval_set`.

    Its dataset may be another build of the same images, such as one of another size.

    Args:
        folder: workdir of the other run.
        which: its checkpoint: "latest", "best" or a step.
        config: of this run, which names the evaluation split.
        eval_set: this run's evaluation images; the detections count these.
        fields: all fields of a config.
        open_data: makes the dataset builder of a config.

    Raises:
        InputError: if the other run is evaluated on other images, or has other classes.
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
    evaluation: Mapping[str, Any] | None = None,
    bootstrap_samples: int = 1000,
    num_listed: int = 20,
) -> dict[str, Any]:
    """The section "against" of `evaluation.json`: this run's metrics minus those of another run.

    The 95 % intervals are paired: each bootstrap sample scores both runs on the same images, and
    the difference is taken, so that what is hard for both cancels out. If the interval of a
    difference excludes 0, it is not explained by the choice of images.

    Args:
        other: detections of the other run in the same images.
        name: of the other run, for people.
        evaluation: fields of `config.evaluation`, as `Case.summarize` takes them.
        num_listed: how many of the images where the two differ most are listed.
    """
    pair = case.matched(), case._replace(detections=other).matched()
    mine, theirs = (
        {key: values[0] for key, values in metrics.score(matched, evaluation).items()}
        for matched in pair
    )
    if bootstrap_samples:
        drawn = [metrics.bootstrap(matched, bootstrap_samples, evaluation) for matched in pair]
        samples = {key: drawn[0][key] - drawn[1][key] for key in mine}
    else:
        samples = {key: np.full((1, *value.shape), np.nan) for key, value in mine.items()}
    result = {
        "name": name,
        "scores": {key: case.to_json(value) for key, value in theirs.items()},
        "difference": {key: case.to_json(mine[key] - theirs[key]) for key in mine},
        "95% interval": case.intervals(samples),
    }

    difference = credit(case, case.detections) - credit(case, other)
    largest = np.argsort(-np.abs(difference), kind="stable")[:num_listed]
    result["images"] = [
        {"image_id": str(case.ids[i]), "difference": float(difference[i])}
        for i in largest
        if difference[i]
    ]
    return result


def format_table(against: dict[str, Any]) -> str:
    """For the console: the difference in each metric, with its interval."""
    lines = [f"difference from {against['name']}:"]
    for name, difference in against["difference"].items():
        if isinstance(difference, dict) or difference is None:
            continue
        line = f"{name:<27} {difference:>+7.3f}"
        if against["95% interval"][name]:
            line += " (95 % interval {:+.3f} to {:+.3f})".format(*against["95% interval"][name])
        lines.append(line)
    return "\n".join(lines)


def credit(case: Case, detections: BoxTable) -> Float[np.ndarray, "images"]:
    """What the detections of each image are worth: the sum of `precision_at` over its true
    positives, minus the highest `precision_at` among its false positives.

    Precision stands for the score, so that runs with scores on different scales can be compared.
    """
    detections = case.judged(detections)
    found = detections.labels < len(case.class_names)
    detections = BoxTable(*(column[found] for column in detections))
    is_true, _ = true_positives(detections, case.truth, IOU_THRESHOLD)
    worth = precision_at(detections, is_true)
    gained, lost = np.zeros(len(case.ids)), np.zeros(len(case.ids))
    np.add.at(gained, detections.image[is_true], worth[is_true])
    np.maximum.at(lost, detections.image[~is_true], worth[~is_true])
    return gained - lost
