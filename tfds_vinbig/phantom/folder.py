"""The phantom's Kaggle folder: pictures and tables, written whole or not at all."""

import functools
import math
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from jaxdet import InputError
from jaxdet.data import machine
from tfds_vinbig import drawn, scratch
from tfds_vinbig.kaggle import CLASS_NAMES
from tfds_vinbig.phantom.picture import draw_image
from tfds_vinbig.phantom.plan import NO_FINDING_LABEL, SPLITS, Annotation, Plan, plan_image

COLUMNS = ["image_id", "class_name", "class_id", "rad_id", "x_min", "y_min", "x_max", "y_max"]


def draw_folder(
    folder: str | Path,
    seed: int = 0,
    num_train: int = 1600,
    num_test: int = 400,
    size: int = 256,
    workers: int | None = None,
) -> None:
    """Draw a Kaggle folder with `size` x `size` pictures, the same for the same seed.

    Half of the images are normal. Beside the competition's files there is `truth.csv`: what was
    drawn, in train.csv's columns and with the split, for both splits; and `drawing.txt`: by which
    drawing, a number that goes up when the same seed gives other pictures or labels.

    The folder appears whole or not at all, however this ends; what a killed call leaves is one
    hidden folder beside it, which the next call removes. Of several calls at once the first to
    finish wins.

    Args:
        folder: must not exist yet, or be empty; its parents are made.
        size: pixels of a side.
        workers: processes, by default one for each core; 1 draws in this one.

    Raises:
        InputError: if there is something in the folder, or a process is killed.
        OSError: if it cannot be written.
    """
    folder = Path(folder)
    taken = f"{folder}: there is something: name a new folder for the phantom"
    scratch.remove_abandoned(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(taken)
    plans = [
        plan_image(seed, split, index)
        for split, count in enumerate((num_train, num_test))
        for index in range(count)
    ]
    plans.sort(key=lambda plan: (plan.key[1], plan.image_id))  # normal ones in no pattern
    with scratch.beside(folder) as new:
        for split in SPLITS:
            (new / split).mkdir()
        draw_all(plans, size, new, workers or machine.cores())
        for name, table in tables(plans, seed).items():
            table.to_csv(new / name, index=False)
        (new / drawn.FILE).write_text(f"{drawn.DRAWING}\n")
        if not scratch.put(new, folder) and not (folder / "truth.csv").exists():
            raise InputError(taken)


def draw_all(plans: list[Plan], size: int, folder: Path, workers: int) -> None:
    """Write every picture below `folder`, with a bar on standard error."""
    draw = functools.partial(write_image, size=size, folder=folder)
    bar = functools.partial(
        tqdm, total=len(plans), desc="draw the phantom", unit="image", disable=None
    )
    chunk = 8
    workers = min(workers, math.ceil(len(plans) / chunk))
    if workers <= 1:
        for _ in bar(map(draw, plans)):
            pass
        return
    with machine.processes(workers) as pool:
        try:
            for _ in bar(pool.map(draw, plans, chunksize=chunk)):
                pass
        except BrokenProcessPool as error:
            raise InputError(
                "the phantom: a process that drew it was killed: is there enough memory?"
            ) from error


def write_image(plan: Plan, size: int, folder: Path) -> None:
    """Draw one picture and write it as PNG."""
    path = folder / SPLITS[plan.key[1]] / f"{plan.image_id}.png"
    Image.fromarray(draw_image(plan, size)).save(path, compress_level=1)


def tables(plans: list[Plan], seed: int) -> dict[str, pd.DataFrame]:
    """The CSV files by name. The readers' rows are shuffled, as Kaggle's are."""
    rows, truth = [], []
    for plan in plans:
        split = SPLITS[plan.key[1]]
        truth += [(plan.image_id, split, *row(annotation)) for annotation in plan.truth]
        if split == "train":
            rows += [(plan.image_id, *row(annotation)) for annotation in plan.readers]
    order = np.random.default_rng((seed, len(SPLITS))).permutation(len(rows))
    integers = dict.fromkeys(COLUMNS[4:], "Int64")  # which have a missing value, unlike int
    out = {
        "train.csv": pd.DataFrame([rows[i] for i in order], columns=COLUMNS),
        "truth.csv": pd.DataFrame(truth, columns=[COLUMNS[0], "split", *COLUMNS[1:]]),
    }
    out = {name: table.astype(integers) for name, table in out.items()}
    for split in (0, 1):
        sizes = [(p.image_id, p.height, p.width) for p in plans if p.key[1] == split]
        meta = pd.DataFrame(sizes, columns=["image_id", "dim0", "dim1"])
        out[f"{SPLITS[split]}_meta.csv"] = meta
    sample = meta[["image_id"]].assign(PredictionString=f"{NO_FINDING_LABEL} 1 0 0 1 1")
    return out | {"sample_submission.csv": sample}


def row(annotation: Annotation) -> tuple:
    """The columns from class_name on."""
    names = (*CLASS_NAMES, "No finding")
    label = annotation.label
    return (names[label], label, annotation.reader, *(annotation.box or (None,) * 4))
