"""Records to batches: decode once, fuse the readers' boxes, pad; a batch is a function of the step.

One of the two doors of the box form: TFDS's relative (ymin, xmin, ymax, xmax) comes in, pixels of
the model input (x1, y1, x2, y2) go on.
"""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import grain
import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from tqdm import tqdm

from jaxdet import InputError, fusion
from tfds_vinbig.kaggle import NO_FINDING
from tfds_vinbig.tfds_vinbig_dataset_builder import build


@dataclass(frozen=True)
class Annotations:
    """Every reader's rows as a flat table; `image` counts the images of a `Dataset`.

    `classes` is 14 where the reader found nothing; the box is then NaN. Boxes are in pixels of the
    model input.
    """

    image: Int[np.ndarray, "rows"]
    labels: Int[np.ndarray, "rows"]
    reader: np.ndarray  # names
    boxes: Float[np.ndarray, "rows 4"]

    def of_images(self, chosen: Int[np.ndarray, "n"]) -> "Annotations":
        """The rows of the chosen images, which are counted anew in that order."""
        new = np.full(max(self.image.max(initial=-1), chosen.max(initial=-1)) + 1, -1)
        new[chosen] = np.arange(len(chosen))
        image = new[self.image]
        rows = np.flatnonzero(image >= 0)
        rows = rows[np.argsort(image[rows], kind="stable")]
        return Annotations(image[rows], self.labels[rows], self.reader[rows], self.boxes[rows])


@dataclass(frozen=True)
class Dataset:
    """Images of one split with what the readers said, still encoded.

    Attributes:
        ids: image_id of each image.
        index: row of each image in train_meta.csv (train) or sample_submission.csv (test).
        sizes: (height, width) of the original in pixels.
        source: the records, read anew when an image is decoded.
        rows: position of each image in `source`.
        image_size: of the model input, in pixels.
    """

    ids: np.ndarray
    index: Int[np.ndarray, "n"]
    sizes: Int[np.ndarray, "n 2"]
    annotations: Annotations
    source: object
    rows: Int[np.ndarray, "n"]
    image_size: int

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, chosen: Int[np.ndarray, "m"]) -> "Dataset":
        """The chosen images, in that order."""
        return replace(
            self,
            ids=self.ids[chosen],
            index=self.index[chosen],
            sizes=self.sizes[chosen],
            annotations=self.annotations.of_images(chosen),
            rows=self.rows[chosen],
        )

    def decode(self, i: int) -> UInt8[np.ndarray, "height width"]:
        """Image i at the model's size; shrinking averages, so that small findings do not alias."""
        with Image.open(io.BytesIO(self.source[int(self.rows[i])]["image"])) as picture:
            if picture.size != (self.image_size, self.image_size):
                picture = picture.resize((self.image_size,) * 2, Image.Resampling.BILINEAR)
            return np.asarray(picture)


def open_dataset(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """A built dataset. The phantom is drawn and built where it is missing.

    Raises:
        InputError: if another dataset is not built.
    """
    folder = Path(data_dir).expanduser() / name
    if name == "tfds_vinbig/phantom" and not folder.exists():
        print(f"drawing the phantom for {folder}")
        build("phantom", data_dir)
    versions = sorted(folder.glob("*/dataset_info.json"))
    if not versions:
        raise InputError(
            f"no dataset in {folder}: build it with python -m tfds_vinbig "
            f"--config={folder.name} --manual_dir=KAGGLE_FOLDER --data_dir={data_dir}"
        )
    return tfds.builder_from_directory(versions[-1].parent)


def read_split(name: str, split: str, image_size: int, data_dir: str) -> Dataset:
    """All records of a TFDS split ("train", "test", "train[:10%]"), without decoding the images.

    Raises:
        InputError: if the dataset is not built, or has no such split.
    """
    builder = open_dataset(name, data_dir)
    try:
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except (ValueError, KeyError, AssertionError) as error:
        raise InputError(
            f"split {split!r}: not a split of {name}, which has {', '.join(builder.info.splits)}"
        ) from error

    ids, index, sizes, image, labels, reader, boxes = [], [], [], [], [], [], []
    for i, record in enumerate(source):
        ids.append(record["image_id"].decode())
        index.append(record["index"])
        sizes.append((record["height"], record["width"]))
        objects = record["objects"]
        found, normal = len(objects["label"]), record["normal_readers"]
        image += [i] * (found + len(normal))
        labels += [*objects["label"], *[NO_FINDING] * len(normal)]
        reader += [name.decode() for name in (*objects["reader"], *normal)]
        boxes += [*objects["bbox"], *[[np.nan] * 4] * len(normal)]
    relative = np.array(boxes, np.float32).reshape(-1, 4)
    return Dataset(
        ids=np.array(ids),
        index=np.array(index, np.int64),
        sizes=np.array(sizes, np.int64).reshape(-1, 2),
        annotations=Annotations(
            image=np.array(image, np.int64),
            labels=np.array(labels, np.int64),
            reader=np.array(reader),
            boxes=relative[:, [1, 0, 3, 2]] * image_size,
        ),
        source=source,
        rows=np.arange(len(ids)),
        image_size=image_size,
    )


def train_and_eval(config) -> tuple[Dataset, Dataset]:
    """The training and evaluation images that `config.data` asks for, out of the split "train".

    `data.split` is "folds" (fold `data.fold` of `data.num_folds` is held out), "seed111" (the 80/20
    split by numpy's RandomState(111) over the order of train_meta.csv), or a TFDS slice to train
    on. `data.eval_split` is "rest", or a TFDS slice of its own.

    Raises:
        InputError: for a split that does not exist or leaves a side empty.
    """
    data = config.data
    dataset = read_split(data.name, "train", data.image_size, data.dir)
    everything = np.arange(len(dataset))

    def sliced(split):
        chosen = read_split(data.name, split, data.image_size, data.dir).ids
        return np.flatnonzero(np.isin(dataset.ids, chosen))

    if data.split == "folds":
        if not 0 <= data.fold < data.num_folds:
            raise InputError(f"config.data.fold: {data.fold} is not in 0..{data.num_folds - 1}")
        groups = read_groups(data.groups, dataset.ids) if data.groups else dataset.ids
        held_out = stratified_folds(dataset, groups, data.num_folds) == data.fold
        train = everything[~held_out]
    elif data.split == "seed111":
        order = np.argsort(dataset.index)[np.random.RandomState(111).permutation(len(dataset))]
        train = order[: int(0.8 * len(dataset))]
    else:
        train = sliced(data.split)
    if data.eval_split == "rest":
        evaluation = np.setdiff1d(everything, train)
    else:
        evaluation = sliced(data.eval_split)
    for side, chosen in (("train", train), ("evaluate", evaluation)):
        if not len(chosen):
            raise InputError(f"config.data.split: {data.split!r} leaves no image to {side} on")
    return dataset.take(train), dataset.take(evaluation)


def read_groups(groups: str, ids: np.ndarray) -> np.ndarray:
    """The group (patient) of each image, from "FILE.csv:COLUMN" with a column image_id.

    Raises:
        InputError: for a missing file, column or image.
    """
    file, _, column = groups.rpartition(":")
    try:
        table = pd.read_csv(Path(file).expanduser(), dtype=str).set_index("image_id")[column]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"config.data.groups: {groups!r} is not FILE.csv:COLUMN, by image_id ({error})"
        ) from error
    missing = np.setdiff1d(ids, table.index)
    if len(missing):
        raise InputError(f"config.data.groups: {file} lacks {len(missing)} images, {missing[0]}")
    return table.loc[ids].to_numpy()


def stratified_folds(
    dataset: Dataset, groups: np.ndarray, num_folds: int, seed: int = 0
) -> Int[np.ndarray, "n"]:
    """Fold of each image: every class, and "No finding", spread over the folds; groups kept whole.

    Iterative stratification (Sechidis et al. 2011): the class with the fewest images left goes
    first, each of its groups to the fold that lacks it most. The folds do not depend on the order
    of the records.
    """
    by_id = np.argsort(dataset.ids)
    names, group = np.unique(groups[by_id], return_inverse=True)
    present = np.zeros((len(dataset), NO_FINDING + 1), bool)
    present[dataset.annotations.image, dataset.annotations.labels] = True
    counts = np.zeros((len(names), NO_FINDING + 1))
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
    result = np.empty(len(dataset), np.int64)
    result[by_id] = fold[group]
    return result


@dataclass(frozen=True)
class Targets:
    """Fused boxes of each image in model-input pixels, padded to `max_boxes`.

    `scores` are what the class loss aims at: 1, or by "votes@T" the share of readers.
    """

    boxes: Float[np.ndarray, "n boxes 4"]
    labels: Int[np.ndarray, "n boxes"]
    scores: Float[np.ndarray, "n boxes"]
    mask: Bool[np.ndarray, "n boxes"]


def make_targets(dataset: Dataset, method: str, max_boxes: int) -> Targets:
    """Fuse the readers' boxes (`method` as in `fusion.fuse`) and pad them.

    Raises:
        InputError: if an image has more than `max_boxes` boxes: none is silently cut.
    """
    rows = dataset.annotations
    found = rows.labels != NO_FINDING
    num_readers = max(pd.Series(rows.reader).groupby(rows.image).nunique(), default=1)
    fused = fusion.fuse(
        method,
        rows.image[found],
        rows.labels[found],
        rows.reader[found],
        rows.boxes[found],
        num_readers,
    )
    counts = np.bincount(fused.image, minlength=len(dataset))
    if counts.max(initial=0) > max_boxes:
        raise InputError(
            f"config.data.max_boxes: {max_boxes} are too few for the {counts.max()} boxes of image "
            f"{dataset.ids[counts.argmax()]}"
        )
    slot = np.arange(len(fused.image)) - (np.cumsum(counts) - counts)[fused.image]
    boxes = np.zeros((len(dataset), max_boxes, 4), np.float32)
    labels = np.zeros((len(dataset), max_boxes), np.int32)
    scores = np.ones((len(dataset), max_boxes), np.float32)
    boxes[fused.image, slot], labels[fused.image, slot] = fused.boxes, fused.labels
    if fusion.parse(method)[0] == "votes":
        scores[fused.image, slot] = fused.scores
    return Targets(boxes, labels, scores, np.arange(max_boxes) < counts[:, None])


def decode_all(dataset: Dataset, name: str) -> UInt8[np.ndarray, "n height width"]:
    """All images in memory: 1 GB for 15,000 at 256 pixels, 16 GB at 1024."""
    images = np.empty((len(dataset), dataset.image_size, dataset.image_size), np.uint8)

    def decode(i):
        images[i] = dataset.decode(i)

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
        done = pool.map(decode, range(len(dataset)))
        list(tqdm(done, f"decode {name}", len(dataset), unit="image", disable=None))
    return images


def training_batches(config, dataset: Dataset, targets: Targets, rows: slice) -> grain.MapDataset:
    """An endless sequence: `batches[step]` is the batch of that step, the same on every call.

    Every image comes once an epoch, in an order of its own each epoch. With `data.normal_share`,
    that share of the images drawn has no finding (each kind in epochs of its own), if the data has
    both kinds; None leaves the share as it is in the data. With `data.balance_classes`, the images
    with findings come from each class in turn: an image of several is in the epochs of each. `rows`
    are those of the global batch that this process loads. `data.cache` keeps the decoded images in
    memory.

    Raises:
        InputError: if the share is all of a kind that the data lacks.
    """
    images = decode_all(dataset, "train") if config.data.cache else None
    normal_share, balance_classes = config.data.normal_share, config.data.balance_classes
    normal = ~targets.mask.any(axis=1)
    kinds, weights = [np.arange(len(dataset))], [1.0]
    if normal_share is not None or balance_classes:
        share = normal.mean() if normal_share is None else normal_share
        found = [np.flatnonzero(~normal)]
        if balance_classes:
            present = np.unique(targets.labels[targets.mask])
            found = [
                np.flatnonzero((targets.mask & (targets.labels == label)).any(axis=1))
                for label in present
            ]
        kinds = [np.flatnonzero(normal), *found]
        weights = [share, *[(1 - share) / len(found)] * len(found)]
    some = [i for i, kind in enumerate(kinds) if weights[i] > 0 and len(kind)]
    if not some:
        raise InputError(f"config.data.normal_share: {normal_share} leaves no image to train on")
    streams = [
        grain.MapDataset.source(kinds[i]).seed(config.seed + i).shuffle().repeat() for i in some
    ]
    stream = grain.MapDataset.mix(streams, [weights[i] for i in some])

    def load(chosen):
        chosen = np.asarray(chosen)[rows]
        return {
            "images": images[chosen]
            if config.data.cache
            else np.stack([dataset.decode(int(i)) for i in chosen]),
            "boxes": targets.boxes[chosen],
            "labels": targets.labels[chosen],
            "scores": targets.scores[chosen],
            "mask": targets.mask[chosen],
        }

    return stream.batch(config.train.batch_size).map(load)


def read_ahead(
    batches: grain.MapDataset, first: int, num_workers: int
) -> Iterator[dict[str, np.ndarray]]:
    """batches[first], batches[first + 1], ... loaded ahead by `num_workers` threads."""
    options = grain.ReadOptions(num_threads=num_workers, prefetch_buffer_size=2 * num_workers)
    return iter(batches[first:].to_iter_dataset(options))
