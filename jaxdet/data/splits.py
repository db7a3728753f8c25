"""Which images train and which evaluate."""

import os

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from jaxdet import InputError
from jaxdet.data import images
from jaxdet.data.dataset import Dataset, read_split


def train_and_eval(
    data: ConfigDict, builder: tfds.core.DatasetBuilder, dataset: Dataset
) -> tuple[Dataset, Dataset]:
    """The images to train on and to evaluate on.

    `data.split` is "folds" (fold `data.fold` of `data.num_folds` is held out), "seed111" (the 80/20
    split by numpy's RandomState(111) over the order of train_meta.csv), or a TFDS slice to train
    on. `data.eval_split` is "rest", a TFDS slice of its own, or another split with annotations.

    Args:
        data: `config.data`.
        dataset: the split "train" of `builder`.

    Raises:
        InputError: for a split that does not exist or leaves a side empty.
    """
    everything = np.arange(len(dataset))
    if data.split == "folds":
        train = everything[fold_of_images(data, dataset) != data.fold]
    elif data.split == "seed111":
        order = np.argsort(dataset.index)[np.random.RandomState(111).permutation(len(dataset))]
        train = order[: int(0.8 * len(dataset))]
    else:
        split, train = slice_rows("split", data.split, builder)
        if split != "train":
            raise InputError(
                f"config.data.split: {data.split!r} is not of the split 'train', which alone is "
                "trained on"
            )
    if not len(train):
        raise InputError(f"config.data.split: {data.split!r} leaves no image to train on")

    if data.eval_split == "rest":
        held_out = dataset.take(np.setdiff1d(everything, train))
        if not len(held_out):
            raise InputError(f"config.data.split: {data.split!r} leaves no image to evaluate on")
    else:
        split, rows = slice_rows("eval_split", data.eval_split, builder)
        whole = dataset if split == "train" else read_split(builder, split)
        held_out = whole.take(rows)
        if not len(held_out):
            raise InputError(f"config.data.eval_split: {data.eval_split!r} has no image")
        if not len(held_out.annotations.image):
            raise InputError(
                f"config.data.eval_split: {data.eval_split!r} has no annotations to evaluate by"
            )
    return dataset.take(train), held_out


def describe_eval_split(data: ConfigDict) -> str:
    """A description of the evaluation split, for people."""
    if data.eval_split != "rest":
        return data.eval_split
    if data.split == "folds":
        return f"fold {data.fold} of {data.num_folds}"
    return f"rest of {data.split}"


def slice_rows(
    field: str, spec: str, builder: tfds.core.DatasetBuilder
) -> tuple[str, Int[np.ndarray, "n"]]:
    """The split and the positions that a TFDS slice such as "train[:80%]" selects.

    Raises:
        InputError: naming `field` of `config.data`, for what is no slice of one split.
    """
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    try:
        parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(builder.info.splits)
        (split,) = {part.splitname for part in parts}
    except (ValueError, KeyError, AssertionError) as error:
        known = "folds, seed111" if field == "split" else "rest"
        raise InputError(
            f"config.data.{field}: {spec!r} is not one of {known}, nor a slice of "
            f"{' or '.join(sizes)}, such as 'train[:80%]'"
        ) from error
    rows = [
        np.arange(part.from_ or 0, sizes[split] if part.to is None else part.to) for part in parts
    ]
    return split, np.concatenate(rows)


def fold_of_images(data: ConfigDict, dataset: Dataset) -> Int[np.ndarray, "n"]:
    """The fold of each image.

    Raises:
        InputError: for a fold that there is not, or more folds than images or groups.
    """
    if not 0 <= data.fold < data.num_folds:
        raise InputError(f"config.data.fold: {data.fold} is not in 0..{data.num_folds - 1}")
    groups = read_groups(data.groups, dataset.ids) if data.groups else dataset.ids
    num_groups = len(np.unique(groups))
    if not 2 <= data.num_folds <= num_groups:
        what = f"groups of {data.groups}" if data.groups else "images"
        raise InputError(
            f"config.data.num_folds: {data.num_folds} is not from 2 to the {num_groups} {what}"
        )
    rows = dataset.annotations
    present = np.zeros((len(dataset), dataset.num_classes + 1), bool)
    present[rows.image, rows.labels] = True
    return stratified_folds(dataset.ids, present, groups, data.num_folds)


def read_groups(groups: str, ids: np.ndarray) -> np.ndarray:
    """The group (patient) of each image, from "FILE.csv:COLUMN" with a column image_id.

    An image may have several lines, if they agree.

    Raises:
        InputError: for a missing file, column or image, or an image whose group is empty or two.
    """
    file, _, column = groups.rpartition(":")
    where = f"config.data.groups: {file}"
    try:
        # A patient may be called "NA".
        table = pd.read_csv(
            os.path.expanduser(file), dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
        table.columns = map(images.composed, table.columns)
        column = images.composed(column)
        table = table[["image_id", column]]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"config.data.groups: {groups!r} is not FILE.csv:COLUMN, by image_id ({error})"
        ) from error
    table = table.apply(lambda cells: cells.str.strip().map(images.composed, na_action="ignore"))
    known = set(ids.tolist())
    table["image_id"] = [  # a path stands for its id
        name if name in known or not name.strip("/\\.") else images.path_id(name)
        for name in table.image_id
    ]
    table = table[table.image_id.isin(ids)].drop_duplicates()
    empty = table.image_id[table[column] == ""]
    if len(empty):
        raise InputError(f"{where}: {column} of image {empty.iloc[0]} is empty")
    twice = table.image_id[table.image_id.duplicated()]
    if len(twice):
        found = table[column][table.image_id == twice.iloc[0]]
        raise InputError(
            f"{where}: {column} of image {twice.iloc[0]} is both {found.iloc[0]} and "
            f"{found.iloc[1]}"
        )
    missing = np.setdiff1d(ids, table.image_id)
    if len(missing):
        raise InputError(f"{where}: lacks {len(missing)} images of the dataset, {missing[0]} first")
    return table.set_index("image_id")[column].loc[ids].to_numpy(str)


def stratified_folds(
    ids: np.ndarray,
    present: Bool[np.ndarray, "n classes"],
    groups: np.ndarray,
    num_folds: int,
    seed: int = 0,
) -> Int[np.ndarray, "n"]:
    """Fold of each image: every class spread over the folds, groups kept whole, no fold empty.

    Iterative stratification (Sechidis et al. 2011): the class with the fewest images left goes
    first, each of its groups to the fold that lacks it most. The folds do not depend on the order
    of the images.

    Args:
        present: which classes ("No finding" is one) each image has.
        groups: of each image; at least `num_folds` different ones.
    """
    by_id = np.argsort(ids)
    names, group = np.unique(groups[by_id], return_inverse=True)
    counts = np.zeros((len(names), present.shape[1]))
    np.add.at(counts, group, present[by_id])
    images = np.bincount(group).astype(float)

    lacking = np.tile(counts.sum(axis=0) / num_folds, (num_folds, 1))
    room = np.full(num_folds, images.sum() / num_folds)
    fold = np.full(len(names), -1)
    order = np.random.default_rng(seed).permutation(len(names))
    while (fold < 0).any():
        left = counts[fold < 0].sum(axis=0)
        rarest = np.where(left > 0, left, np.inf).argmin()
        for unit in order:
            if fold[unit] < 0 and (counts[unit, rarest] > 0 or not left.any()):
                # Largest lack of this class first, then of images in all.
                chosen = np.lexsort((-room, -lacking[:, rarest]))[0]
                fold[unit] = chosen
                lacking[chosen] -= counts[unit]
                room[chosen] -= images[unit]
    result = np.empty(len(ids), np.int64)
    result[by_id] = fold[group]
    return result
