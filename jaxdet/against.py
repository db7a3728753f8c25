"""Another run's detections in the images that a run is evaluated on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxdet import InputError, inference, splits
from jaxdet.config import of_run
from jaxdet.dataset import Dataset, read_split
from jaxdet.evaluate import Against, Evaluator
from jaxdet.train import check_run


def detect_of_other(
    folder: Path,
    which: str,
    config: ConfigDict,
    eval_set: Dataset,
    known: ConfigDict,
    open_data: Callable,
) -> Against:
    """What a checkpoint of the run in `folder` detects in `eval_set`, as it is configured itself.

    It may have other pictures (another size, say) of the same images.

    Args:
        which: "latest", "best" or a step.
        config: of the run that it is compared with, which names the evaluation split.
        eval_set: that run's evaluation images, in whose order the detections come.
        known: a config that has every field.
        open_data: gives the builder of the dataset of a config.

    Raises:
        InputError: if it is evaluated on other images, or has other classes.
    """
    other = of_run(folder, known)
    other.data.eval_split = config.data.eval_split
    other.evaluation.batch_size = config.evaluation.batch_size
    if other.data.name == config.data.name:
        other.data.dir = config.data.dir
    builder = open_data(other)
    dataset = read_split(builder, "train")
    train_set, images = splits.train_and_eval(other.data, builder, dataset)
    check_run(other, dataset, train_set, folder)
    if dataset.class_names != eval_set.class_names:
        raise InputError(f"--against: the run in {folder} has other classes")
    different = np.setxor1d(images.ids, eval_set.ids)
    if len(different):
        raise InputError(
            f"--against: the run in {folder} is evaluated on other images, {different[0]} is of "
            f"one of the two alone, and {len(different) - 1} more: name a run of the same split"
        )
    loaded = inference.load(other, folder, which, dataset.num_classes)
    evaluator = Evaluator(loaded.detector, images.of_ids(eval_set.ids))
    evaluator.score(loaded.weights)
    return Against(evaluator.table, str(folder))
