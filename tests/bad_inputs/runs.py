"""Configs, and what a run or a build has left, damaged."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from configs import retina
from jaxdet.data import splits
from jaxdet.data.dataset import open_dataset, read_split
from jaxdet.ops import fusion
from jaxdet.runs import config as configs
from jaxdet.runs import workdir

Read = Callable[[Path], object]


def override(field: str, value: object) -> Read:
    """A config with a field set."""

    def read(folder):
        config = retina.get_config()
        *sections, name = field.split(".")
        place = config
        for section in sections:
            place = place[section]
        with config.unlocked(), config.ignore_type():
            place[name] = value
        configs.check(config, retina.get_fields())

    return read


def ground_truth(text: str) -> Read:
    return lambda folder: fusion.parse(text)


def patients(text: str) -> Read:
    """Of two images, a and b."""

    def read(folder):
        (folder / "p.csv").write_text(text)
        splits.read_groups(f"{folder}/p.csv:patient", np.array(["a", "b"]))

    return read


def config_json(content: str | dict) -> Read:
    def read(folder):
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "config.json").write_text(text)
        workdir.read_config(folder)

    return read


def record(**fields: object) -> Read:
    good = {"class_names": ["Rib"], "class_ids": [0, 1], "dataset": "x", "training_images": "y"}
    return config_json({"run": {**good, "planned": [], "grey_levels": [], **fields}})


def metrics_jsonl(text: str) -> Read:
    def read(folder):
        (folder / "metrics.jsonl").write_text(text)
        workdir.read_scores(folder, "mAP@0.4")

    return read


def dataset(change: Callable[[Path], object], name: str) -> Read:
    """The built dataset $DATASET with a file of it changed."""

    def read(folder):
        place = folder / "tfds_vinbig/256"
        shutil.copytree(os.environ["DATASET"], place)
        (path,) = place.glob(f"*/*{name}*")
        change(path)
        read_split(open_dataset("tfds_vinbig/256", str(folder)), "train")

    return read


def empty(path: Path) -> None:
    os.truncate(path, 0)


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


CASES = {
    "Configs": {
        "learning rate NaN": override("train.learning_rate", float("nan")),
        "learning rate infinite": override("train.learning_rate", float("inf")),
        "steps of 30 digits": override("train.steps", 10**30),
        "pictures of a million pixels a side": override("data.image_size", 10**6),
        "a batch of a billion": override("train.batch_size", 10**9),
        "a million threads": override("data.num_workers", 10**6),
        "a negative weight decay": override("train.weight_decay", -1.0),
        "a word for a number": override("train.steps", "many"),
        "a truth value for a number": override("train.steps", True),
        "an empty tuple": override("model.anchor_scales", ()),
        "a tuple of words": override("model.anchor_scales", ("a",)),
        "an infinite anchor": override("model.anchor_scales", (float("inf"),)),
        "level 40": override("model.levels", (3, 40)),
        "a field that there is not": override("train.learnig_rate", 1.0),
        "a fusion at NaN": ground_truth("wbf@nan"),
        "a fusion at no number": ground_truth("wbf@0.4@0.5"),
        "bdc as the truth": override("evaluation.ground_truth", "bdc@0.4"),
        "patients: an image is missing": patients("image_id,patient\na,1\n"),
        "patients: an image of two": patients("image_id,patient\na,1\na,2\nb,1\n"),
        "patients: no such column": patients("image_id,person\na,1\nb,2\n"),
        "patients: a quote that is never closed": patients('image_id,patient\n"a,1\nb,2\n'),
    },
    "A run's own files, damaged": {
        "an empty config.json": config_json(""),
        "a config.json 200,000 deep": config_json("[" * 200_000),
        "a config.json of a list": config_json("[1, 2]"),
        "no class names": record(class_names=None),
        "a class id too few": record(class_ids=[0]),
        "a class id that is a word": record(class_ids=[0, "x"]),
        "a line of metrics.jsonl that is no JSON": metrics_jsonl('{"step": 1}\nnothing\n'),
        "a line of metrics.jsonl without a step": metrics_jsonl('{"loss": 1}\n'),
    },
    "Datasets, damaged": {
        "no dataset": lambda folder: open_dataset("tfds_vinbig/256", str(folder)),
        "a dataset_info.json that is empty": dataset(empty, "dataset_info.json"),
        "a features.json that is cut": dataset(half, "features.json"),
        "records that are cut": dataset(half, "train.array_record"),
        "records that are empty": dataset(empty, "train.array_record"),
        "records that are missing": dataset(Path.unlink, "train.array_record"),
        "a table of annotations that is cut": dataset(half, "train.npz"),
        "a table of annotations that is missing": dataset(Path.unlink, "train.npz"),
    },
}
