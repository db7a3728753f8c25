"""Records to batches: fuse the readers' boxes, pad, decode; a batch is a function of the step."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxdet import InputError
from jaxdet.data.dataset import Dataset
from jaxdet.data.machine import cores, free_memory, in_words
from jaxdet.ops import fusion
from jaxdet.ops.boxes import BoxTable, Targets
from jaxdet.ops.clusters import Findings


def fuse_readers(dataset: Dataset, method: str, detections: BoxTable | None = None) -> Findings:
    """What the readers of a dataset found, by a method of `fusion.FUSIONS`.

    Args:
        detections: see `fusion.find`; boxes in pixels of the originals.
    """
    rows = dataset.annotations
    columns = rows.image, rows.labels, rows.readers, rows.boxes
    return fusion.fuse_rows(method, *columns, dataset.num_classes, detections)


def make_targets(dataset: Dataset, method: str, image_size: int) -> Targets:
    """Fused, scaled and padded boxes of all images; `method` as in `fusion.FUSIONS`."""
    return pad(dataset, fuse_readers(dataset, method), image_size)


def pad(dataset: Dataset, findings: Findings, image_size: int) -> Targets:
    """The findings of a dataset, scaled to the model's input and padded."""
    fused = findings.table
    counts = np.bincount(fused.image, minlength=len(dataset))
    most = max(counts.max(initial=0), 1)
    slot = np.arange(len(fused.image)) - (np.cumsum(counts) - counts)[fused.image]
    boxes = np.zeros((len(dataset), most, 4), np.float32)
    labels = np.zeros((len(dataset), most), np.int32)
    width_height = dataset.sizes[fused.image][:, [1, 0, 1, 0]]
    boxes[fused.image, slot] = fused.boxes * (image_size / width_height)
    labels[fused.image, slot] = fused.labels

    def padded(column):
        result = np.ones((len(dataset), most), np.float32)
        if column is not None:
            result[fused.image, slot] = column
        return result

    mask = np.arange(most) < counts[:, None]
    weights = None if findings.weights is None else padded(findings.weights)
    soft_targets = padded(findings.soft_targets)
    return Targets(boxes, labels, soft_targets, mask, dataset.exhaustive, weights)


class Images(Sequence):
    """The images of a dataset at the model's size, images[i] of `dataset.decode(i, image_size)`.

    They are kept in memory where `keep` says so and they fit, else decoded whenever they are asked
    for; which of the two, and the bytes that were counted, is printed. Other images that are asked
    for more often are kept first: `beside` is how many bytes these are.
    """

    def __init__(
        self, dataset: Dataset, image_size: int, name: str, keep: bool = True, beside: int = 0
    ):
        self.dataset, self.image_size, self.kept = dataset, image_size, None
        needed, free = len(dataset) * image_size**2, free_memory()
        room = 0.8 * free
        if beside < room:  # else they are not kept
            room -= beside
        if keep and needed < room:
            self.kept = decode_all(dataset, image_size, name)
        said = "kept in memory" if self.kept is not None else "decoded when they are needed"
        there = f"{in_words(needed)}, {in_words(free)} are free"
        print(f"{name}: {len(dataset)} images are {there}: {said}")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> UInt8[np.ndarray, "image_size image_size"]:
        return self.dataset.decode(i, self.image_size) if self.kept is None else self.kept[i]


def decode_all(
    dataset: Dataset, image_size: int, name: str
) -> UInt8[np.ndarray, "n image_size image_size"]:
    """All images in memory: 1 GB for 15,000 at 256 pixels, 16 GB at 1024.

    Raises:
        InputError: if there is not so much.
    """
    needed, free = len(dataset) * image_size**2, free_memory()
    if needed > free:
        raise InputError(
            f"{name}: {len(dataset)} images of {image_size} pixels need {in_words(needed)} of "
            f"memory, {in_words(free)} are free: end other programs, or choose a smaller "
            "config.data.image_size"
        )
    images = np.empty((len(dataset), image_size, image_size), np.uint8)

    bar = tqdm(total=len(dataset), desc=f"decode {name}", unit="image", disable=None)

    def decode(rows):
        for i in rows:
            images[i] = dataset.decode(i, image_size)
        return len(rows)

    every = range(len(dataset))
    # Pillow decodes outside the interpreter lock, but threads wait for their turns with it: many
    # pictures at a time, and no more threads than cores.
    with bar, ThreadPoolExecutor(cores()) as pool:
        for count in pool.map(decode, (every[i : i + 64] for i in every[::64])):
            bar.update(count)
    return images


def training_images(config: ConfigDict, dataset: Dataset) -> Images:
    """The images that are trained on; `data.cache` keeps them in memory where they fit."""
    return Images(dataset, config.data.image_size, "train", keep=config.data.cache)


def training_batches(
    config: ConfigDict,
    dataset: Dataset,
    targets: Targets,
    rows: slice,
    images: Images | None = None,
) -> grain.MapDataset:
    """An endless sequence: `batches[step]` is the batch of that step, the same on every call.

    Every image comes once per epoch, in an order of its own each epoch. With `data.normal_share`,
    that share of the images drawn has no finding (each kind in epochs of its own), if the data has
    both kinds; None leaves the share as it is in the data. With `data.balance_classes`, the images
    with findings come from each class in turn: an image of several is in the epochs of each. `rows`
    are those of the global batch that this process loads, and `images` those of the dataset, which
    are decoded here if left out.

    Raises:
        InputError: if the share is all of a kind that the data lacks.
    """
    images = training_images(config, dataset) if images is None else images
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
            "images": np.stack([images[int(i)] for i in chosen]),
            **{name: column[chosen] for name, column in targets.columns().items()},
            "image": chosen,  # its position in the dataset
        }

    return stream.batch(config.train.batch_size).map(load)


def read_ahead(
    batches: grain.MapDataset, first: int, num_workers: int
) -> Iterator[dict[str, np.ndarray]]:
    """batches[first], batches[first + 1], ... loaded ahead by `num_workers` threads."""
    options = grain.ReadOptions(num_threads=num_workers, prefetch_buffer_size=2 * num_workers)
    return iter(batches[first:].to_iter_dataset(options))
