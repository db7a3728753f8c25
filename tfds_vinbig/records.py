"""What every form of a dataset is read into, and the checks that all forms share.

Boxes are (x_min, y_min, x_max, y_max) in pixels of the original image, sizes are (height, width).
Labels count the classes of the dataset, 0 to K - 1; K, after the last, is "No finding".
"""

import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdet import InputError
from jaxdet.data import images

NO_FINDING = "No finding"
LONGEST_NAME = 100  # of a reader
LARGEST = 1_000_000  # pixels of a side; what is larger is a mistake, and may overflow
# A corner may be outside by arithmetic (x + width, or a rounded scale): less than anyone can draw.
TOLERANCE = 1e-3
PIXEL = 1 + TOLERANCE  # by so much one may be outside in files that count corners from 1
SMALLEST = 2  # pixels; where all boxes are smaller, they are in other units

# What is done with boxes, see `cut_rows`.
CUT = "boxes reach up to a pixel out of their image and are cut"
CUT_FAR = "boxes reach more than a pixel out of their image and are cut, as --boxes=cut asks"
NO_AREA = "boxes have no area in their image and are left out"


Size = tuple[int, int]  # (height, width)


class Allowed(NamedTuple):
    """What whoever builds allows: links out of a folder, and boxes that leave their image."""

    follow_links: bool = False
    cut_boxes: bool = False


STRICT = Allowed()


class Tally:
    """Sentences about places of a file, each with how often it is true and where first."""

    def __init__(self):
        self._found = {}

    def add(self, sentence: str, place: str) -> None:
        count, first = self._found.get(sentence, (0, place))
        self._found[sentence] = count + 1, first

    def notes(self, where: str | Path) -> list[str]:
        """A line for each sentence; places are shown without the file `where`."""
        return [
            f"{where}: {count} {sentence}, {first.removeprefix(str(where)).lstrip(': ')} first"
            for sentence, (count, first) in self._found.items()
        ]


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
    """One image: where its picture is, the original's size in pixels, and every reader's rows.

    Of the classes `not_exhaustive`, by their labels, there may be more than is boxed.
    """

    image_id: str
    path: Path
    height: int
    width: int
    index: int
    rows: list[Row]
    not_exhaustive: tuple[int, ...] = ()


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
    the file says so, and `image_ids` the number (or name) that COCO has for each. `crowds` are the
    regions in which detections are not judged: (image, label, box) of each. Detections of the
    classes `left_out`, by their ids, are passed over. `exhaustive` says whether all of a class is
    boxed in an image; None where all of every class is. `sizes` has (height, width) of the images
    for which that is known, by position, each with who says so; what reads detections adds to it.
    """

    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    ids: tuple[str, ...]
    image: Int[np.ndarray, "rows"]
    labels: Int[np.ndarray, "rows"]
    readers: np.ndarray  # of names
    boxes: Float[np.ndarray, "rows 4"]
    notes: list[str]
    sizes: dict[int, tuple[Size, str]]
    splits: tuple[str, ...] | None = None
    image_ids: tuple[Hashable, ...] | None = None
    crowds: tuple[tuple[int, int, tuple[float, ...]], ...] = ()
    left_out: frozenset[int] = frozenset()
    exhaustive: Bool[np.ndarray, "images classes"] | None = None

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
            sizes={int(new[i]): said for i, said in self.sizes.items() if new[i] >= 0},
            image=new[self.image][rows],
            labels=self.labels[rows],
            readers=self.readers[rows],
            boxes=self.boxes[rows],
        )


def class_name_of(name: str) -> str:
    """The name of a class as it is used: in Unicode's composed form, in which names are compared;
    "No finding" is written in any case."""
    name = images.composed(name)
    return NO_FINDING if name.lower() == NO_FINDING.lower() else name


def note_alike(names: Sequence[str], where: str | Path, notes: list[str]) -> None:
    """Say which classes differ in case alone: often one is a slip."""
    folded = [name.casefold() for name in names]
    alike = [name for name, same in zip(names, folded, strict=True) if folded.count(same) > 1]
    if alike:
        notes.append(
            f"{where}: {', '.join(alike)}: differ in case alone, and are taken for other classes"
        )


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
        "sizes": {},
    }


class BadPicture(str):
    """What is wrong with a picture, which `name` is the file of."""

    def __new__(cls, problem: str, name: str) -> "BadPicture":
        self = super().__new__(cls, problem)
        self.name = name
        return self

    def __getnewargs__(self) -> tuple[str, str]:  # processes send them
        return str(self), self.name


def raise_all(problems: list[str], where: str | Path) -> None:
    """One problem is raised as it is, of more a count, the first ten, and the names of all other
    pictures that cannot be read: to find them takes long."""
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        lines = [f"{len(problems)} problems in {where}, the first ten:"]
        lines += [f"  {problem}" for problem in problems[:10]]
        if more := [problem.name for problem in problems[10:] if isinstance(problem, BadPicture)]:
            lines.append(f"  and with these pictures: {', '.join(more)}")
        raise InputError("\n".join(lines))


def check_id(image_id: str) -> None:
    """Image ids are the names of files, and must not lead out of their folder.

    Raises:
        InputError: without the place, which the caller knows.
    """
    if not image_id:
        raise InputError("image_id is empty")
    if set("/\\") & set(image_id) or image_id.startswith(".") or not image_id.isprintable():
        raise InputError(f"image_id {image_id!r} is not the name of a file")


def parse_image_id(text: str) -> str:
    """The image id of a table's field: the name of a file, or a path, see `images.path_id`.

    Raises:
        InputError: without the place, which the caller knows.
    """
    parts = re.split(r"[/\\]", text)
    try:
        for part in parts:
            check_id(part)
    except InputError as error:
        if len(parts) == 1:
            raise
        raise InputError(f"image_id {text!r} is not the name of a file") from error
    return images.path_id(text) if len(parts) > 1 else images.composed(text)


def parse_reader(name: str) -> str:
    """The name of a reader, composed. A table of all rows has as much room for each as the longest
    one needs.

    Raises:
        InputError: without the place, which the caller knows.
    """
    if not (name and name.isprintable()):
        raise InputError(f"rad_id {name!r} is no name")
    if len(name) > LONGEST_NAME:
        raise InputError(f"rad_id {name[:20]!r}... is longer than {LONGEST_NAME} characters")
    return images.composed(name)


def check_box(box: Iterable[float], given: str) -> None:
    """Corners must be in order and no larger than any image; `given` is how the file has them.

    One without area is for `cut_rows` or `drop_empty`.

    Raises:
        InputError: without the place, which the caller knows.
    """
    if max(map(abs, box)) > LARGEST:
        raise InputError(f"the box {given} is larger than any image")
    x_min, y_min, x_max, y_max = box
    if x_min > x_max or y_min > y_max:
        raise InputError(f"the box {given} is upside down: x_min < x_max and y_min < y_max")


def has_area(box: Iterable[float]) -> bool:
    """Whether a box has any in float32, as boxes are kept."""
    x_min, y_min, x_max, y_max = map(np.float32, box)
    return bool(x_min < x_max and y_min < y_max)


def drop_empty(rows: dict[str, Row], where: str | Path, notes: list[str]) -> dict[str, Row]:
    """The rows, by place, without boxes that have no area."""
    tally, kept = Tally(), {}
    for place, row in rows.items():
        if math.isnan(row.x_min) or has_area(row[3:]):
            kept[place] = row
        else:
            tally.add(NO_AREA, place)
    notes += tally.notes(where)
    return kept


def note_contradictions(
    rows: Iterable[Row], normal: int, where: str | Path, notes: list[str]
) -> None:
    """Say how many readers have a box and "No finding" (label `normal`) on one image."""
    found, nothing = {}, {}
    for row in rows:
        (nothing if row.label == normal else found)[row.image_id, row.rad_id] = None
    both = [key for key in nothing if key in found]
    if both:
        image_id, reader = both[0]
        notes.append(
            f"{where}: {len(both)} times one reader has a box and {NO_FINDING} on one image, "
            f"{reader} on image {image_id} first; both are kept"
        )


def check_units(rows: Iterable[Row], where: str | Path, problems: list[str]) -> None:
    """Boxes that are all smaller than `SMALLEST` pixels are in other units, and so are some that
    are within the first pixel of their image, with a fraction."""
    rows = [row for row in rows if not math.isnan(row.x_min)]
    boxes = np.array([row[3:] for row in rows]).reshape(-1, 4)
    if not rows:
        return
    if np.ptp(boxes.reshape(-1, 2, 2), axis=1).max() >= SMALLEST:
        shares = (boxes <= 1).all(axis=1) & (boxes % 1 != 0).any(axis=1)
        if shares.any():
            first = rows[np.argmax(shares)]
            problems.append(
                f"{where}: {shares.sum()} of {len(rows)} boxes are within the first pixel of their "
                f"image, that of image {first.image_id} from {first.x_min:.3g},{first.y_min:.3g} "
                f"to {first.x_max:.3g},{first.y_max:.3g} first: they look like shares of the image "
                "among pixels: multiply them by its width and height, or remove them"
            )
        return
    likely = (
        "they look like shares of the image (from 0 to 1): multiply them by its width and height"
        if np.max(boxes) <= SMALLEST
        else "are they points, or in another unit?"
    )
    problems.append(
        f"{where}: all {len(boxes)} boxes are below {SMALLEST} pixels wide and high; {likely}"
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


def cut_rows(
    rows: Mapping[str, Row],
    height: int,
    width: int,
    problems: list[str],
    tally: Tally,
    cut_boxes: bool = False,
    hint: str = "",
) -> list[Row]:
    """The rows of an image of this size, by place, with boxes that leave it by a pixel cut.

    What has no area, or none in the image, is left out. Both are counted in `tally`, but for what
    is outside by arithmetic. One that leaves it by more is a problem, to which `hint` is added,
    unless `cut_boxes`.
    """
    kept = []
    for place, row in rows.items():
        x_min, x_max = (min(max(x, 0), width) for x in (row.x_min, row.x_max))
        y_min, y_max = (min(max(y, 0), height) for y in (row.y_min, row.y_max))
        box = (x_min, y_min, x_max, y_max)
        beyond = max((abs(a - b) for a, b in zip(box, row[3:], strict=True)), default=0)
        if math.isnan(row.x_min):
            kept.append(row)
        elif beyond > PIXEL and not cut_boxes:
            given = ",".join(f"{corner!r}".removesuffix(".0") for corner in row[3:])
            problems.append(
                f"{place}: image {row.image_id}, the box {given} leaves its image, {width} wide "
                f"and {height} high{hint or '; --boxes=cut cuts such boxes'}"
            )
        elif not has_area(box):
            tally.add(NO_AREA, f"{place} (image {row.image_id})")
        else:
            if beyond > TOLERANCE:
                tally.add(CUT_FAR if beyond > PIXEL else CUT, f"{place} (image {row.image_id})")
            kept.append(row._replace(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max))
    return kept
