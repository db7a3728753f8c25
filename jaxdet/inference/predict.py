"""Pictures of anyone's, and the test split, predicted by a run's detector."""

import glob
import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from tqdm import tqdm

from jaxdet import InputError
from jaxdet.data import dicom, images
from jaxdet.data.batches import decode_all
from jaxdet.data.dataset import Dataset
from jaxdet.data.inversion import looks_inverted
from jaxdet.inference.detector import Loaded, to_table
from jaxdet.ops.boxes import BoxTable
from jaxdet.runs import parallel


class Pictures(NamedTuple):
    """Images at the model's size with the sizes of their originals.

    `problems` are sentences about the files that could not be read, `notes` about the others;
    `files` are where the images came from, and none for those of a split.
    """

    ids: list[str]
    sizes: Int[np.ndarray, "n 2"]  # (height, width) in pixels
    images: list[UInt8[np.ndarray, "image_size image_size"]] | UInt8[np.ndarray, "n h w"]
    problems: list[str]
    notes: list[str]
    files: list[Path]


def find_files(path: str) -> list[Path]:
    """The pictures that a file, a folder or a glob names.

    Raises:
        InputError: if there is none, or two have the same id (see `folder_of`).
    """
    place, folder = Path(os.path.expanduser(path)), folder_of(path)
    if place.is_dir():
        candidates = place.iterdir()
    elif place.exists():
        return [place]
    else:
        candidates = map(Path, glob.glob(str(place), recursive=True))
    files = sorted(filter(images.is_picture, candidates))
    if not files:
        below = "; folders below it are looked into by a glob, '**/*'" if place.is_dir() else ""
        raise InputError(f"--images={path}: no picture there ({', '.join(images.SUFFIXES)}){below}")
    if odd := [file.name for file in files if not file.name.isprintable()]:
        raise InputError(f"--images={path}: the name {odd[0]!a} is no line of text: rename it")
    ids = [images.image_id(file, folder) for file in files]
    (image_id, times), *_ = Counter(ids).most_common(1)
    if times > 1:
        same = [
            str(f.relative_to(folder)) for f, i in zip(files, ids, strict=True) if i == image_id
        ]
        raise InputError(
            f"--images={path}: {times} files are named {image_id}: {', '.join(same[:3])}"
        )
    return files


def folder_of(path: str) -> Path:
    """The folder of which `--images` names pictures: ids are their paths below it.

    Of a glob it is what comes before the first wildcard.
    """
    place = Path(os.path.expanduser(path))
    if place.is_dir():
        return place
    while glob.has_magic(str(place)) and not place.exists():
        place = place.parent
        if not glob.has_magic(str(place)):
            return place
    return place.parent


def known_id(file: Path, known: Mapping[str, object]) -> str | None:
    """What a table calls a file: by the longest end of its path that the table has."""
    parts = Path(os.path.abspath(file)).parts[1:]
    ends = (images.path_id("/".join(parts[i:])) for i in range(len(parts)))
    return next((end for end in ends if end in known), None)


def read_pictures(
    files: list[Path],
    known_sizes: Mapping[str, tuple[int, int] | None] | None,
    image_size: int,
    folder: Path | None = None,
) -> Pictures:
    """Read files; one that cannot be read is left out, and a problem.

    Args:
        known_sizes: original (height, width) by id, else (or where None) they are the files' own.
        folder: ids are paths below it; without it, and in `known_sizes`, they are names.

    Raises:
        dicom.NotInstalled: at the first DICOM, where no other could be read either.
    """
    ids, sizes, pixels, problems, notes, kept, taken = [], [], [], [], [], [], set()
    for file in tqdm(files, "read", unit="image", disable=None):
        try:
            picture = images.read(file)
        except dicom.NotInstalled:
            raise
        except InputError as error:
            problems.append(str(error))
            continue
        name, own = images.image_id(file, folder), picture.pixels.shape
        if known_sizes is not None:
            there = known_id(file, known_sizes)
            if there is None or there in taken:
                problems.append(
                    f"{file}: --meta has no line for image_id {name}"
                    if there is None
                    else f"{file}: --meta has one line for it and another file, image_id {there}"
                )
                continue
            name, own = there, known_sizes[there] or own
            taken.add(there)
        ids.append(name)
        kept.append(file)
        sizes.append(own)
        pixels.append(images.resize(picture.pixels, image_size))
        notes += [(name, note) for note in picture.notes]
    sizes = np.array(sizes, np.int64).reshape(-1, 2)
    return Pictures(ids, sizes, pixels, problems, images.summarize(notes), kept)


def split_pictures(dataset: Dataset, image_size: int, batch_size: int) -> Pictures:
    """The images of a test split, in the order of its index; of each process its share."""
    dataset = dataset.take(np.argsort(dataset.index))
    mine = parallel.local_positions(len(dataset), batch_size).ravel()
    mine = mine[mine >= 0]
    pixels = [None] * len(dataset)
    for i, image in zip(mine, decode_all(dataset.take(mine), image_size, "test"), strict=True):
        pixels[i] = image
    return Pictures(list(map(str, dataset.ids)), dataset.sizes, pixels, [], [], [])


def mend_inverted(pictures: Pictures, grey_levels: list[list[float]], invert: bool) -> list[int]:
    """Warn of pictures that look inverted beside the training images; invert them if asked to.

    Returns:
        Those that were inverted.
    """
    suspects = [
        i
        for i, image in enumerate(pictures.images)
        if image is not None and looks_inverted(image, grey_levels)
    ]
    if suspects:
        names = ", ".join(pictures.ids[i] for i in suspects[:5])
        more = f" and {len(suspects) - 5} more" if len(suspects) > 5 else ""
        done = "inverted, as --invert asks" if invert else "give --invert if they are"
        print(
            f"warning: {names}{more} look inverted beside the training images: {done}",
            file=sys.stderr,
        )
    if not invert:
        return []
    for i in suspects:
        pictures.images[i] = 255 - pictures.images[i]
    return suspects


def predict(loaded: Loaded, pictures: Pictures, num_classes: int) -> BoxTable:
    """Detections in pixels of the originals, "No finding" among them."""
    detections = loaded.detector.detect_all(
        loaded.weights, pictures.images.__getitem__, len(pictures.ids)
    )
    image_size = loaded.detector.config.data.image_size
    return to_table(detections, pictures.sizes, image_size, num_classes)
