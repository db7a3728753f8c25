"""What every form of a dataset is read into, and the checks that all forms share.

Boxes are (x_min, y_min, x_max, y_max) in pixels of the original image, sizes are (height, width).
Labels count the classes of the dataset, 0 to K - 1; K, after the last, is "No finding".
"""

import math
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from jaxdet import InputError
from jaxdet.data import images

NO_FINDING = "No finding"
LONGEST_NAME = 100  # of a reader
LARGEST = 1_000_000  # pixels of a side; what is larger is a mistake, and may overflow
# A corner may be outside by arithmetic (x + width, or a rounded scale): less than anyone can draw.
TOLERANCE = 1e-3


class Row(NamedTuple):
    """What one reader says of one image; the box of "No finding" is NaN."""

    image_id: str
    label: int
    rad_id: str
    x_min: float
    y_min: float
    x_max: float
    y_max: float


class Record(NamedTuple):
    """One image: where its picture is, the original's size in pixels, and every reader's rows."""

    image_id: str
    path: Path
    height: int
    width: int
    index: int
    rows: list[Row]


class Folder(NamedTuple):
    """Checked pictures with their annotations; `notes` are sentences for whoever asked for it.

    `class_ids` are the numbers by which files name the classes: one for each of `class_names` and,
    last, that of "No finding".
    """

    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    train: list[Record]
    test: list[Record]
    notes: list[str]


class Annotations(NamedTuple):
    """The rows of an annotation file as flat arrays; `class_names`, `class_ids`, `notes` as above.

    `image` counts `ids`, which has every image of the file, `splits` the split of each image where
    the file says so, and `image_ids` the number (or name) that COCO has for each.
    """

    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    ids: tuple[str, ...]
    image: Int[np.ndarray, "rows"]
    labels: Int[np.ndarray, "rows"]
    readers: np.ndarray  # of names
    boxes: Float[np.ndarray, "rows 4"]
    notes: list[str]
    splits: tuple[str, ...] | None = None
    image_ids: tuple[Hashable, ...] | None = None

    def of_splits_with(self, ids: Iterable[str]) -> "Annotations":
        """The images of those splits that have an image of `ids`; all where there are no splits."""
        if self.splits is None:
            return self
        ids = set(ids)
        found = {split for name, split in zip(self.ids, self.splits, strict=True) if name in ids}
        chosen = np.flatnonzero([split in found for split in self.splits])
        new = np.full(len(self.ids), -1)
        new[chosen] = np.arange(len(chosen))
        rows = new[self.image] >= 0
        return self._replace(
            ids=tuple(self.ids[i] for i in chosen),
            splits=tuple(self.splits[i] for i in chosen),
            image=new[self.image][rows],
            labels=self.labels[rows],
            readers=self.readers[rows],
            boxes=self.boxes[rows],
        )


def class_name_of(name: str) -> str:
    """The name of a class as it is used; "No finding" is written in any case."""
    return NO_FINDING if name.lower() == NO_FINDING.lower() else name


def ranked(classes: dict[int, str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """`class_names` and `class_ids` as `Folder` has them, from {class_id: name}.

    In the order of the ids, "No finding" last; where the file does not name it, its id is the next.
    """
    ids = sorted(i for i, name in classes.items() if name != NO_FINDING)
    normal = [i for i, name in classes.items() if name == NO_FINDING]
    last = normal[0] if normal else max(ids, default=-1) + 1
    return tuple(classes[i] for i in ids), (*ids, last)


def flatten(rows: Iterable[Row], ids: Iterable[str]) -> dict:
    """The fields of `Annotations` that rows make up."""
    rows, ids = list(rows), tuple(ids)
    number = {name: i for i, name in enumerate(ids)}
    return {
        "ids": ids,
        "image": np.array([number[row.image_id] for row in rows], np.int64),
        "labels": np.array([row.label for row in rows], np.int64),
        "readers": np.array([row.rad_id for row in rows], np.str_),
        "boxes": np.array([row[3:] for row in rows], np.float64).reshape(-1, 4),
    }


def raise_all(problems: list[str], where: str | Path) -> None:
    """One problem is raised as it is, of more a count and the first ten."""
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        head = f"{len(problems)} problems in {where}, the first ten:"
        raise InputError("\n".join([head, *(f"  {problem}" for problem in problems[:10])]))


def check_id(image_id: str) -> None:
    """Image ids are the names of files, and must not lead out of their folder.

    Raises:
        InputError: without the place, which the caller knows.
    """
    if not image_id:
        raise InputError("image_id is empty")
    if set("/\\") & set(image_id) or image_id.startswith(".") or not image_id.isprintable():
        raise InputError(f"image_id {image_id!r} is not the name of a file")


def check_reader(name: str) -> None:
    """A table of all rows has as much room for each name as the longest one needs.

    Raises:
        InputError: without the place, which the caller knows.
    """
    if len(name) > LONGEST_NAME:
        raise InputError(f"rad_id {name[:20]!r}... is longer than {LONGEST_NAME} characters")


def check_box(box: Iterable[float], given: str) -> None:
    """Corners must be in order and no larger than any image; `given` is how the file has them.

    Raises:
        InputError: without the place, which the caller knows.
    """
    if max(map(abs, box)) > LARGEST:
        raise InputError(f"the box {given} is larger than any image")
    x_min, y_min, x_max, y_max = map(np.float32, box)  # as they are kept
    if x_min >= x_max or y_min >= y_max:
        raise InputError(
            f"the box {given} is upside down or empty: x_min < x_max and y_min < y_max"
        )


def drop_repeated(
    rows: dict[str, Row], normal: int, where: str | Path, notes: list[str]
) -> dict[str, Row]:
    """The rows, by place, without those that say again what an earlier one says.

    Twice the same box of one reader is one finding, written twice: as ground truth, a perfect
    detection would miss half of it. `normal` is the label of "No finding".
    """
    first = {}
    for place, row in rows.items():
        said = row[:3] if row.label == normal else row  # NaN differs from itself
        first.setdefault(said, place)
    if repeated := len(rows) - len(first):
        notes.append(
            f"{where}: {repeated} rows repeat an earlier one (same image, class, reader and box); "
            "each counts once"
        )
    return {place: rows[place] for place in first.values()}


def find_pictures(folder: Path, problems: list[str]) -> dict[str, Path]:
    """The picture of each image id in a folder, see `images.is_picture`."""
    try:
        paths = sorted(filter(images.is_picture, folder.iterdir()))
    except OSError as error:
        problems.append(f"{folder}: cannot read this folder ({error.strerror})")
        return {}
    found = {}
    for path in paths:
        name = images.image_id(path)
        if name in found:
            problems.append(f"{path}: a second picture of this id, see {found[name].name}")
        found[name] = path
    if not found:
        problems.append(f"{folder}: no PNG, JPEG, TIFF or DICOM in it")
    return found


def read_shapes(
    paths: Iterable[Path], folder: Path, problems: list[str], notes: list[str]
) -> dict[Path, tuple[int, int]]:
    """(height, width) in pixels of each picture in `folder`; all are read once, see `images.check`.

    One that cannot be read, or is a link that leads out of the folder, is a problem and left out.

    Raises:
        images.NotInstalled: for the first DICOM, where no other could be read either.
    """
    paths, inside = list(paths), os.path.join(os.path.realpath(folder), "")

    def read(path: Path) -> tuple[tuple[int, int], tuple[str, ...]] | InputError:
        if not os.path.realpath(path).startswith(inside):
            return InputError(f"{path}: a link that leads out of {folder}; put the file itself")
        try:
            return images.check(path)
        except images.NotInstalled:
            raise
        except InputError as error:
            return error

    shapes, said = {}, Counter()
    quick = set(filter(images.is_gray_png, paths))
    pool = ThreadPoolExecutor()
    try:
        # Pillow decodes outside the interpreter lock. What needs no decoding is done here: threads
        # would take twice as long for it, waiting for each other's lock.
        slow = pool.map(read, [path for path in paths if path not in quick])
        results = (read(path) if path in quick else next(slow) for path in paths)
        # Where no one watches, no bar: an error is to be the one line on standard error.
        results = tqdm(results, "check", len(paths), unit="image", leave=False, disable=None)
        for path, result in zip(paths, results, strict=True):
            if isinstance(result, InputError):
                problems.append(str(result))
            else:
                shapes[path] = result[0]
                said.update(result[1])
    finally:
        pool.shutdown(cancel_futures=True)  # after ^C, not thousands of images later
    notes += [f"{folder}: {count} pictures: {note}" for note, count in said.items()]
    return shapes


def check_shape(
    path: Path, shape: tuple[int, int], size: tuple[int, int], listed_by: str | Path
) -> str | None:
    """What is wrong with a picture of this shape for an original of this size, if anything.

    Resizing either squashes to a square or keeps the proportions, up to a pixel of rounding.
    """

    def scaled(shape):
        (height, width), (full_height, full_width) = shape, size
        lowest = max((height - 1) / full_height, (width - 1) / full_width)
        return lowest <= min((height + 1) / full_height, (width + 1) / full_width)

    height, width = shape
    if height == width or scaled(shape):
        return None
    problem = (
        f"{path}: the picture is {width} wide and {height} high, but the original {size[1]} wide "
        f"and {size[0]} high by {listed_by}"
    )
    return problem + ("; are width and height exchanged?" if scaled(shape[::-1]) else "")


def cut_rows(
    rows: Mapping[str, Row], height: int, width: int, problems: list[str], hint: str = ""
) -> list[Row]:
    """The rows of an image of this size, by place, with boxes that leave it by arithmetic cut.

    One that leaves it by more is a problem, to which `hint` is added.
    """
    kept = []
    for place, row in rows.items():
        x_min, y_min = max(row.x_min, 0), max(row.y_min, 0)
        x_max, y_max = min(row.x_max, width), min(row.y_max, height)
        box = (x_min, y_min, x_max, y_max)
        beyond = max((abs(a - b) for a, b in zip(box, row[3:], strict=True)), default=0)
        if math.isnan(row.x_min):
            kept.append(row)
        elif beyond > TOLERANCE or x_min >= x_max or y_min >= y_max:
            given = ",".join(f"{corner!r}".removesuffix(".0") for corner in row[3:])
            problems.append(
                f"{place}: image {row.image_id}, the box {given} leaves its image, {width} wide "
                f"and {height} high{hint}"
            )
        else:
            kept.append(row._replace(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max))
    return kept
