"""Pictures of anyone's, and the test split, predicted by a run's detector."""

import contextlib
import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, UInt8
from tqdm import tqdm

from jaxdet import InputError
from jaxdet.data import dicom, images, machine
from jaxdet.data.ahead import in_order
from jaxdet.data.dataset import Dataset
from jaxdet.data.inversion import looks_inverted
from jaxdet.inference.detector import Loaded, to_table
from jaxdet.ops.boxes import BoxTable

# Grey levels of any size, (height, width) of the original in pixels, and notes.
Seen = tuple[UInt8[np.ndarray, "h w"], tuple[int, int], tuple[str, ...]]
Decode = Callable[[Path], images.Picture]
FEW_DICOMS = 8  # for which processes are not worth their start


class Killed(InputError):
    """A process that decoded was killed: that is not of the film."""


class Pictures(NamedTuple):
    """Pictures to predict, each of which is read when its turn comes.

    Attributes:
        ids: of each.
        read: function (i, decode) that gives picture i; threads call it. `decode` reads a file, and
            raises InputError where that cannot be.
        problems: sentences about files that are none of these, as they cannot be read.
        files: where the pictures are, and none for those of a split.
        sizes: (height, width) of the originals in pixels, where they are known before.
    """

    ids: list[str]
    read: Callable[[int, Decode], Seen]
    problems: Sequence[str] = ()
    files: Sequence[Path] = ()
    sizes: Int[np.ndarray, "n 2"] | None = None


class Film(NamedTuple):
    """What is known of a picture once it has been read.

    Attributes:
        size: (height, width) of the original in pixels.
        notes: on how it was read.
        suspect: whether it looks inverted beside the training images.
        shown: what is drawn on, until that is done.
        problem: why it could not be read, if so.
    """

    size: tuple[int, int] = (1, 1)
    notes: tuple[str, ...] = ()
    suspect: bool = False
    shown: UInt8[np.ndarray, "h w"] | None = None
    problem: str = ""


class Found(NamedTuple):
    """What a detector found in the pictures that could be read; `image` of the table counts them.

    Attributes:
        table: detections in pixels of the originals, "No finding" among them.
        suspects: those that look inverted beside the training images.
        problems: sentences about the pictures that could not be read.
        notes: lines about the others.
    """

    ids: list[str]
    files: list[Path]
    sizes: Int[np.ndarray, "n 2"]
    table: BoxTable
    suspects: list[int]
    problems: list[str]
    notes: list[str]


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
    folder: Path | None = None,
) -> Pictures:
    """Files as pictures; one that is none by its header is left out, and a problem.

    Args:
        known_sizes: original (height, width) by id, else (or where None) they are the files' own.
        folder: ids are paths below it; without it, and in `known_sizes`, they are names.

    Raises:
        dicom.NotInstalled: at the first DICOM, where no other could be read either.
    """

    def check(file):
        try:
            images.check_header(file)
        except dicom.NotInstalled:
            raise
        except InputError as error:
            return str(error)
        return ""

    ids, sizes, problems, kept, taken = [], [], [], [], set()
    checked = tqdm(in_order(check, files), "check", len(files), unit="image", disable=None)
    for file, problem in zip(files, checked, strict=True):
        name, size = images.image_id(file, folder), None
        if not problem and known_sizes is not None:
            there = known_id(file, known_sizes)
            if there is None:
                problem = f"{file}: --meta has no line for image_id {name}"
            elif there in taken:
                problem = f"{file}: --meta has one line for it and another file, image_id {there}"
            else:
                name, size = there, known_sizes[there]
                taken.add(there)
        if problem:
            problems.append(problem)
            continue
        ids.append(name)
        kept.append(file)
        sizes.append(size)

    def read(i, decode):
        picture = decode(kept[i])
        return picture.pixels, sizes[i] or picture.pixels.shape, picture.notes

    return Pictures(ids, read, problems, kept)


def split_pictures(dataset: Dataset, image_size: int) -> Pictures:
    """The images of a test split, in the order of its index."""
    dataset = dataset.take(np.argsort(dataset.index))

    def read(i, _):
        return dataset.decode(i, image_size), tuple(dataset.sizes[i].tolist()), ()

    return Pictures(list(map(str, dataset.ids)), read, sizes=dataset.sizes)


@contextlib.contextmanager
def _decoder(files: Sequence[Path]) -> Iterator[Decode]:
    """`images.read`, for threads: in other processes where many files are DICOM.

    Pillow decodes outside the interpreter lock; DICOM's decoders hold it, and the detector would
    wait.
    """
    if sum(map(images.is_dicom, files)) < FEW_DICOMS:
        yield images.read
        return
    with machine.processes() as pool:

        def decode(path):
            try:
                return pool.submit(images.read, path).result()
            except BrokenProcessPool as error:
                raise Killed(
                    f"{path}: a process that decoded it was killed: is there enough memory?"
                ) from error

        yield decode


def predict(
    loaded: Loaded,
    pictures: Pictures,
    num_classes: int,
    grey_levels: list[list[float]] | None = None,
    invert: bool = False,
    shrink: Callable[[UInt8[np.ndarray, "h w"], tuple[int, int]], Any] | None = None,
    draw: Callable[[int, Film, BoxTable], None] = lambda *_: None,
) -> Found:
    """Detections in all pictures, which are read while the detector works on those before them.

    At no time are more than two batches, and one film a core, in memory. A file that cannot be read
    is left out, and a problem; its place in the batch is black.

    Args:
        grey_levels: of the training images, see `looks_inverted`.
        invert: whether pictures that look inverted beside those are inverted.
        shrink: function (pixels, size) of each picture that makes `Film.shown`; None for nothing.
        draw: called with i, what is shown of picture i, and its detections, as soon as there are.

    Raises:
        InputError: if a picture of a split cannot be read: it is damaged.
    """
    detector, count = loaded.detector, len(pictures.ids)
    config = detector.config
    size, batch_size = config.data.image_size, config.evaluation.batch_size
    films: dict[int, Film] = {}

    def load(i):
        try:
            pixels, original, notes = pictures.read(i, decode)
        except (dicom.NotInstalled, Killed):
            raise
        except InputError as error:
            if not pictures.files:
                raise
            films[i] = Film(problem=str(error))
            return np.zeros((size, size), np.uint8)
        image = images.resize(pixels, size)
        suspect = grey_levels is not None and looks_inverted(image, grey_levels)
        if suspect and invert:
            image, pixels = 255 - image, 255 - pixels
        films[i] = Film(original, notes, suspect, shrink and shrink(pixels, original))
        return image

    parts, bar = [], tqdm(total=count, desc="predict", unit="image", disable=None)
    batches = detector.detect_batches(loaded.weights, load, count)
    with bar, _decoder(pictures.files) as decode, contextlib.closing(batches):
        for part in batches:
            first = len(parts) * batch_size
            for i in range(first, first + len(part.normal)):
                film = films.get(i)  # those of other processes are not read here
                if film is not None and film.shown is not None:
                    mine = jax.tree.map(lambda x, row=i - first: x[row : row + 1], part)
                    draw(i, film, to_table(mine, np.array([film.size]), size, num_classes))
                    films[i] = film._replace(shown=None)
            parts.append(part)
            bar.update(len(part.normal))
        # Sizes and problems of all files are asked for in each process of a run.
        for i in sorted(set(range(count)) - films.keys()) if pictures.files else ():
            load(i)

    films = {i: films.get(i, Film()) for i in range(count)}
    problems = [film.problem for film in films.values() if film.problem]
    good = np.array([i for i, film in films.items() if not film.problem], np.int64)
    sizes = np.array([films[i].size for i in good]).reshape(-1, 2)
    sizes = sizes if pictures.sizes is None else pictures.sizes
    detections = jax.tree.map(lambda *x: np.concatenate(x)[good], *parts)
    ids = [pictures.ids[i] for i in good]
    notes = [(pictures.ids[i], note) for i in good for note in films[i].notes]
    return Found(
        ids=ids,
        files=[pictures.files[i] for i in good] if pictures.files else [],
        sizes=sizes,
        table=to_table(detections, sizes, size, num_classes),
        suspects=[row for row, i in enumerate(good) if films[i].suspect],
        problems=problems,
        notes=images.summarize(notes),
    )


def say(found: Found, invert: bool) -> None:
    """Print the notes, and which pictures look inverted, and what was or can be done about it."""
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    if found.suspects:
        names = ", ".join(found.ids[i] for i in found.suspects[:5])
        more = f" and {len(found.suspects) - 5} more" if len(found.suspects) > 5 else ""
        done = "inverted, as --invert asks" if invert else "give --invert if they are"
        print(
            f"warning: {names}{more} look inverted beside the training images: {done}",
            file=sys.stderr,
        )
