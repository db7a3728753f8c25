"""A built dataset: its images, what the readers said of them, and the names of its classes."""

import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, Int, UInt8
from tensorflow_datasets.proto import tf_example_pb2

from jaxdet import InputError
from jaxdet.data import images, machine


@dataclass(frozen=True)
class Annotations:
    """Every reader's rows as a flat table; `image` counts the images of a `Dataset`.

    The label of a reader who found nothing is the number of classes; the box is then NaN. Boxes are
    in pixels of the original image.
    """

    image: Int[np.ndarray, "rows"]
    labels: Int[np.ndarray, "rows"]
    readers: np.ndarray  # names
    boxes: Float[np.ndarray, "rows 4"]

    def of_images(self, chosen: Int[np.ndarray, "n"]) -> "Annotations":
        """The rows of the chosen images, which are counted anew in that order."""
        new = np.full(max(self.image.max(initial=-1), chosen.max(initial=-1)) + 1, -1)
        new[chosen] = np.arange(len(chosen))
        image = new[self.image]
        rows = np.flatnonzero(image >= 0)
        rows = rows[np.argsort(image[rows], kind="stable")]
        return Annotations(image[rows], self.labels[rows], self.readers[rows], self.boxes[rows])


@dataclass(frozen=True)
class Dataset:
    """Images of one split, still encoded, with what the readers said.

    Attributes:
        class_names: of the labels 0, 1, ...; "No finding" is the label after the last.
        class_ids: what the files of the outside call each class, and "No finding" last.
        ids: image_id of each image.
        index: row of each image in the table that it came from.
        sizes: (height, width) of the original in pixels.
        checksums: of each encoded image.
        source: the encoded images of the split, read anew when one is asked for.
        rows: position of each image in `source`.
        exhaustive: whether all that there is of a class in an image is boxed: nothing, where it has
            no box. Where that is not so, there may be more. None where it is so everywhere.
    """

    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    ids: np.ndarray
    index: Int[np.ndarray, "n"]
    sizes: Int[np.ndarray, "n 2"]
    annotations: Annotations
    checksums: Int[np.ndarray, "n"]
    source: Sequence[bytes]
    rows: Int[np.ndarray, "n"]
    exhaustive: Bool[np.ndarray, "n classes"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        """Classes of findings, which is also the label of "No finding"."""
        return len(self.class_names)

    @property
    def num_unknown(self) -> int:
        """Pairs of image and class where there may be more than is boxed."""
        return 0 if self.exhaustive is None else int((~self.exhaustive).sum())

    def take(self, chosen: Int[np.ndarray, "m"]) -> "Dataset":
        """The chosen images, in that order."""
        return replace(
            self,
            ids=self.ids[chosen],
            index=self.index[chosen],
            sizes=self.sizes[chosen],
            annotations=self.annotations.of_images(chosen),
            checksums=self.checksums[chosen],
            rows=self.rows[chosen],
            exhaustive=None if self.exhaustive is None else self.exhaustive[chosen],
        )

    def of_ids(self, ids: Sequence[str] | np.ndarray) -> "Dataset":
        """The images of those ids, in that order."""
        position = {name: i for i, name in enumerate(self.ids)}
        return self.take(np.array([position[name] for name in ids], np.int64))

    def decode(self, i: int, image_size: int) -> UInt8[np.ndarray, "image_size image_size"]:
        """Image i at the model's size."""
        return images.decode(self.encoded(i), image_size)

    def encoded(self, i: int) -> bytes:
        """Image i as it is stored, a PNG."""
        return self.source[int(self.rows[i])]

    def fingerprint(self) -> str:
        """The same for the same images, sizes, classes and annotations in whatever order."""
        rows = self.annotations
        digest = hashlib.sha256(repr((self.class_names, self.class_ids)).encode())
        starts = np.searchsorted(rows.image, np.arange(len(self) + 1))
        for i in np.argsort(self.ids):
            mine = slice(starts[i], starts[i + 1])
            digest.update(f"{self.ids[i]} {self.sizes[i]} {self.checksums[i]}".encode())
            digest.update(" ".join(rows.readers[mine]).encode())
            digest.update(rows.labels[mine].tobytes() + rows.boxes[mine].tobytes())
            if self.exhaustive is not None:
                digest.update(self.exhaustive[i].tobytes())
        return digest.hexdigest()[:16]


def fingerprint_of_ids(ids: np.ndarray) -> str:
    """The same for the same image ids in whatever order."""
    return hashlib.sha256("\n".join(sorted(map(str, ids))).encode()).hexdigest()[:16]


def open_dataset(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """A dataset that is built already.

    Args:
        data_dir: see `machine.datasets_folder`.

    Raises:
        InputError: if it is not.
    """
    data_dir = machine.datasets_folder(data_dir)
    folder = machine.with_home(data_dir, "config.data.dir") / name
    versions = sorted(folder.glob("*/dataset_info.json"))
    if not versions:
        source = "" if folder.name == "phantom" else " --manual_dir=KAGGLE_FOLDER"
        raise InputError(
            f"config.data.name: no dataset in {folder}: build it with python -m tfds_vinbig "
            f"--config={folder.name}{source} --data_dir={data_dir}, or name another config.data.dir"
        )
    try:
        return tfds.builder_from_directory(versions[-1].parent)
    except Exception as error:  # whatever TFDS runs into
        raise _damaged(versions[-1].parent, error) from error


def _damaged(folder: object, error: Exception) -> InputError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return InputError(
        f"config.data.dir: the dataset in {folder} is damaged ({reason}): remove it, and build it "
        "again"
    )


class _Pictures(Sequence):
    """The encoded images of a split, one read at a time; TFDS's own parser would decode them."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, checksums: np.ndarray):
        self.folder, self.checksums = builder.data_dir, checksums
        self.records = builder.as_data_source(split).data_source

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> bytes:
        i = range(len(self))[i]  # an IndexError says that there are no more, not that it is damaged
        try:
            example = tf_example_pb2.Example.FromString(self.records[i])
            data = example.features.feature["image"].bytes_list.value[0]
            if zlib.crc32(data) != self.checksums[i]:
                raise ValueError(f"picture {i} is not the one that its table is of")
            return data
        except Exception as error:  # whatever ArrayRecord or protobuf run into
            raise _damaged(self.folder, error) from error


def read_split(builder: tfds.core.DatasetBuilder, split: str) -> Dataset:
    """What is said of all images of a split ("train", "test"); the images are read when needed.

    Raises:
        InputError: if the dataset is damaged, as far as its files' sizes and its table tell.
    """
    folder = Path(builder.data_dir)
    table = folder / f"{split}.npz"
    if not table.exists():
        raise InputError(
            f"config.data.dir: the dataset in {folder} has no {table.name}, as before version "
            "1.2.0: remove it, and build it again"
        )
    class_names = tuple(builder.info.features["objects"]["label"].names)
    class_ids = (builder.info.metadata or {}).get("class_ids", range(len(class_names) + 1))
    try:
        stored = builder.info.splits[split]
        if sum(map(os.path.getsize, stored.filepaths)) != stored.num_bytes:
            raise ValueError(f"the files of {split!r} are not as large as they were")
        with np.load(table, allow_pickle=False) as file:
            columns = dict(file)
        if len(columns["ids"]) != stored.num_examples:
            raise ValueError(f"{table.name} is of another dataset")
        relative = columns["relative_boxes"].astype(np.float64)[:, [1, 0, 3, 2]]
        scale = columns["sizes"][columns["image"]][:, [1, 0, 1, 0]]
        exhaustive = columns.get("exhaustive")  # not there before version 1.3.0
        return Dataset(
            class_names=class_names,
            class_ids=tuple(map(int, class_ids)),
            ids=columns["ids"],
            index=columns["index"],
            sizes=columns["sizes"],
            annotations=Annotations(
                image=columns["image"],
                labels=columns["labels"],
                readers=columns["readers"],
                boxes=(relative * scale).astype(np.float32),
            ),
            checksums=columns["checksums"],
            source=_Pictures(builder, split, columns["checksums"]),
            rows=np.arange(stored.num_examples),
            exhaustive=None if exhaustive is None or exhaustive.all() else exhaustive,
        )
    except Exception as error:  # whatever NumPy, TFDS or ArrayRecord run into
        raise _damaged(folder, error) from error
