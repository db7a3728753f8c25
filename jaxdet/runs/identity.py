"""What a run is of, and whether a dataset and a config are those of a run."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxdet import InputError
from jaxdet.data.batches import decode_all
from jaxdet.data.dataset import Dataset, fingerprint_of_ids
from jaxdet.data.inversion import grey_levels
from jaxdet.runs import config as configs
from jaxdet.runs import workdir
from jaxdet.runs.fields import Fields


def new_run(
    config: ConfigDict, dataset: Dataset, train_set: Dataset, planned: list[str]
) -> workdir.Run:
    """What a run that begins now is of."""
    some = np.unique(np.linspace(0, len(train_set) - 1, min(len(train_set), 500)).astype(int))
    pictures = decode_all(train_set.take(some), config.data.image_size, "grey levels")
    return workdir.Run(
        class_names=list(dataset.class_names),
        class_ids=list(dataset.class_ids),
        dataset=dataset.fingerprint(),
        training_images=fingerprint_of_ids(train_set.ids),
        planned=planned,
        grey_levels=grey_levels(pictures),
    )


def check_run(
    config: ConfigDict, fields: Fields, dataset: Dataset, train_set: Dataset, folder: Path
) -> tuple[ConfigDict, workdir.Run]:
    """The config as the run in `folder` has it, and what that run is of.

    Raises:
        InputError: if the run has another config, or is of other images.
    """
    config = configs.as_run(config, fields, folder)
    _, run = workdir.read_config(folder)
    for what, theirs, ours in (
        ("class names", run.class_names, list(dataset.class_names)),
        ("training images", run.training_images, fingerprint_of_ids(train_set.ids)),
        ("images or annotations", run.dataset, dataset.fingerprint()),
    ):
        if theirs != ours:
            raise InputError(
                f"config.data: the run in {folder} has other {what} than {config.data.name} in "
                f"{config.data.dir} has now: give --config.data.dir of that dataset, or another "
                "--workdir"
            )
    return config, run
