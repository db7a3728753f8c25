"""Everything that knows the Kaggle folder: its tables, its pictures, and what can be wrong in them.

    FOLDER/train/<image_id>.png    FOLDER/train.csv             every reader's boxes
    FOLDER/test/<image_id>.png     FOLDER/train_meta.csv        sizes of the originals
                                   FOLDER/test_meta.csv
                                   FOLDER/sample_submission.csv

Boxes are (x_min, y_min, x_max, y_max) in pixels of the original image, sizes are (height, width).
"""

import csv
import io
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from jaxdet import InputError

CLASS_NAMES = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Nodule/Mass",
    "Other lesion",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
)
NO_FINDING = 14  # the class id of a reader who found nothing
SUFFIXES = (".png", ".jpg", ".jpeg")

_ALL_NAMES = (*CLASS_NAMES, "No finding")
_BOX_COLUMNS = ("x_min", "y_min", "x_max", "y_max")
_ANNOTATION_COLUMNS = ("image_id", "class_id", *_BOX_COLUMNS)
# Copies of the meta tables come with either pair of names, in either order.
_META_COLUMNS = (("image_id", "height", "width"), ("image_id", "dim0", "dim1"))


class Row(NamedTuple):
    """One row of train.csv: what one reader says of one image. The box of class 14 is NaN."""

    image_id: str
    class_id: int
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
    """A checked Kaggle folder; `notes` are sentences for whoever asked for it."""

    train: list[Record]
    test: list[Record]
    notes: list[str]


def read_annotations(path: str | Path) -> pd.DataFrame:
    """The rows of train.csv in file order.

    Columns are found by name. `class_name` may be absent; without `rad_id` all rows are of one
    reader, "R1".

    Returns:
        Columns image_id, class_id (0-14), rad_id, x_min, y_min, x_max, y_max (pixels of the
        original; NaN for class 14), and split where the file has it.

    Raises:
        InputError: with every problem of the file, each with its line.
    """
    problems = []
    table = _read_table(path, problems, _ANNOTATION_COLUMNS)
    rows = _annotation_rows(table, problems) if table else {}
    _raise_all(problems, path)
    frame = pd.DataFrame(rows.values(), columns=Row._fields)
    if "split" in table.at:
        frame["split"] = [fields[table.at["split"]] for _, fields in table.rows]
    return frame


def read_sizes(path: str | Path) -> dict[str, tuple[int, int]]:
    """(height, width) of each original in pixels, in the order of a meta table.

    The table has `image_id` and either `height,width` or `dim0,dim1`, where dim0 is the height;
    columns are found by name.

    Raises:
        InputError: with every problem of the file, each with its line.
    """
    problems = []
    table = _read_table(path, problems, *_META_COLUMNS)
    sizes = _size_rows(table, problems) if table else {}
    _raise_all(problems, path)
    return sizes


def read_image(path: str | Path) -> UInt8[np.ndarray, "height width"]:
    """A PNG or JPEG as 8-bit gray; colour becomes luminance, transparency is dropped.

    16-bit gray is scaled by its depth, the smallest of 10, 12, 14 and 16 bits that holds the
    brightest pixel: films are stored at these, and dividing by 256 would darken all but the last.

    Raises:
        InputError: naming a file that is missing, truncated or no such image.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read this image ({error.strerror})") from error
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            # Pillow is content without a PNG's end, which comes after the last pixel.
            if picture.format == "PNG" and b"IEND\xaeB`\x82" not in data:
                raise OSError("image file is truncated")
            if picture.mode.startswith("I"):
                pixels = np.asarray(picture, np.int64)
                bits = next(b for b in (10, 12, 14, 16) if pixels.max() < 2**b)
                top = 2**bits - 1
                return ((pixels * 255 + top // 2) // top).astype(np.uint8)
            if picture.mode == "P":  # straight to gray, Pillow warns of a transparent palette
                picture = picture.convert("RGBA")
            return np.asarray(picture.convert("L"))
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{path}: not a PNG or JPEG image") from error
    except Exception as error:  # Pillow raises whatever a broken file runs into
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: broken image ({reason})") from error


def read_folder(
    folder: str | Path,
    train_csv: str | Path | None = None,
    train_meta: str | Path | None = None,
    test_meta: str | Path | None = None,
) -> Folder:
    """Read and check a whole Kaggle folder; every picture is decoded once.

    The tables are those of the folder, unless named. Without a meta table a picture has the
    original's size. `Record.index` counts the images of train_meta.csv for train (else of
    train.csv), and of sample_submission.csv for test (else of test_meta.csv, else the sorted
    files). Pictures that no table knows are skipped, with a note.

    Raises:
        InputError: with every problem of the folder: the message is one line for one problem, and
            for more a count and the first ten.
    """
    folder = Path(folder).expanduser()
    train_csv = Path(train_csv or folder / "train.csv").expanduser()
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder")
    if not os.path.exists(train_csv):
        raise InputError(f"{train_csv}: no such file")
    problems, notes = [], []

    table = _read_table(train_csv, problems, _ANNOTATION_COLUMNS)
    rows_of = {}  # image id: its rows, by line
    for line, row in (_annotation_rows(table, problems) if table else {}).items():
        rows_of.setdefault(row.image_id, {})[line] = row
    train_meta = _read_meta(train_meta, folder / "train_meta.csv", problems, notes)
    train_files = _find_pictures(folder / "train", problems)
    train_files = _match(rows_of, train_files, folder / "train", train_csv, problems, notes)

    test_ids, test_files, has_test = [], {}, (folder / "test").is_dir()
    if has_test or test_meta is not None:
        test_meta = _read_meta(test_meta, folder / "test_meta.csv", problems, notes)
    if has_test:
        test_files = _find_pictures(folder / "test", problems)
        sample = folder / "sample_submission.csv"
        if sample.exists():
            test_ids, listed_by = _read_ids(sample, problems), sample
        elif test_meta.sizes is not None:
            test_ids, listed_by = list(test_meta.sizes), test_meta.path
        else:
            test_ids, listed_by = sorted(test_files), folder / "test"
        test_files = _match(test_ids, test_files, folder / "test", listed_by, problems, notes)
    else:
        notes.append(f"{folder / 'test'}: no such folder, so there is no test split")
    problems += [
        f"image {name}: both in {train_csv} and in the test split"
        for name in test_ids
        if name in rows_of
    ]

    shapes = _decode_all([*train_files.values(), *test_files.values()], problems)
    train_order = {name: i for i, name in enumerate(train_meta.sizes or rows_of)}
    train, test = [], []
    for name, path in train_files.items():
        size = _original_size(name, shapes[path], train_meta, problems)
        if size is None:
            continue
        for line, row in rows_of[name].items():
            if problem := _outside(row, *size):
                if train_meta.sizes is None:
                    problem += f"; {train_meta.path} with the sizes of the originals is missing"
                problems.append(f"{train_csv} line {line}: image {name}, {problem}")
        train.append(Record(name, path, *size, train_order[name], list(rows_of[name].values())))
    for index, name in enumerate(test_ids):
        if name in test_files:
            size = _original_size(name, shapes[test_files[name]], test_meta, problems)
            if size is not None:
                test.append(Record(name, test_files[name], *size, index, []))
    _raise_all(problems, folder)
    return Folder(train, test, notes)


class _Table(NamedTuple):
    """A CSV file: where each column is, and (line number, fields) of each row of full length."""

    path: Path
    at: dict[str, int]
    rows: list[tuple[int, list[str]]]


def _read_table(path: str | Path, problems: list[str], *needed: tuple[str, ...]) -> _Table | None:
    """A table with all the columns of one of `needed`, in any order, upper or lower case.

    The csv module reads it: pandas would silently fill up a row that is too short.
    """
    path = Path(path).expanduser()
    rows, wrong = [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            columns = [name.strip().lower() for name in next(reader, [])]
            for fields in reader:
                if len(fields) == len(columns):
                    rows.append((reader.line_num, [field.strip() for field in fields]))
                elif fields:
                    wrong.append(
                        f"{path} line {reader.line_num}: {len(fields)} fields instead of "
                        f"{len(columns)}"
                    )
    except OSError as error:
        problems.append(f"{path}: cannot read this file ({error.strerror})")
        return None
    except UnicodeDecodeError:
        problems.append(f"{path}: not a text file in UTF-8")
        return None
    except csv.Error as error:
        problems.append(f"{path}: not a CSV file ({error})")
        return None
    if not columns:
        problems.append(f"{path}: the file is empty")
    elif not any(all(columns.count(name) == 1 for name in names) for names in needed):
        wanted = " or ".join(",".join(names) for names in needed)
        missing = [name for name in needed[-1] if columns.count(name) != 1]
        problems.append(
            f"{path} line 1: needs the columns {wanted}; missing or twice: {','.join(missing)}"
        )
    elif not rows and not wrong:
        problems.append(f"{path}: no row under the header")
    else:
        problems += wrong
        return _Table(path, {name: i for i, name in enumerate(columns)}, rows)
    return None


def _annotation_rows(table: _Table, problems: list[str]) -> dict[int, Row]:
    """The rows that are as they should be, by line."""
    image_at, class_at, *corners_at = (table.at[name] for name in _ANNOTATION_COLUMNS)
    name_at, reader_at = table.at.get("class_name"), table.at.get("rad_id")
    rows, normal = {}, set()
    for line, fields in table.rows:
        try:
            image_id = fields[image_at]
            if not image_id:
                raise InputError("image_id is empty")
            reader = "R1" if reader_at is None else fields[reader_at]
            class_id = _parse_class(fields[class_at], None if name_at is None else fields[name_at])
            box = _parse_box(class_id, [fields[i] for i in corners_at])
            if class_id == NO_FINDING:
                if (image_id, reader) in normal:
                    raise InputError(f"No finding of reader {reader} for image {image_id}, again")
                normal.add((image_id, reader))
        except InputError as error:
            problems.append(f"{table.path} line {line}: {error}")
        else:
            rows[line] = Row(image_id, class_id, reader, *box)
    return rows


def _parse_class(text: str, name: str | None) -> int:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if number not in range(NO_FINDING + 1):
        raise InputError(f"unknown class_id {text!r}, known are 0 to {NO_FINDING}")
    class_id = int(number)
    if name is not None and name != _ALL_NAMES[class_id]:
        known = "does not go with" if name in _ALL_NAMES else "is unknown; the name of"
        raise InputError(f"class_name {name!r} {known} class_id {class_id}, {_ALL_NAMES[class_id]}")
    return class_id


def _parse_box(class_id: int, words: list[str]) -> list[float]:
    if class_id == NO_FINDING and not any(words):
        return [math.nan] * 4
    if not all(words):
        column = _BOX_COLUMNS[words.index("")]
        raise InputError(f"{column} is empty in a row of {_ALL_NAMES[class_id]}")
    try:
        box = [float(word) for word in words]
    except ValueError:
        box = [math.nan]
    if not all(map(math.isfinite, box)):
        raise InputError(f"the box {','.join(words)!r} is not four finite numbers")
    if class_id == NO_FINDING:
        if box != [0, 0, 1, 1]:  # how the box of this class is written in a submission
            raise InputError(f"No finding with the box {','.join(words)}; leave it empty")
        return [math.nan] * 4
    if box[0] >= box[2] or box[1] >= box[3]:
        raise InputError(
            f"the box {','.join(words)} is upside down or empty: x_min < x_max and y_min < y_max"
        )
    return box


def _size_rows(table: _Table, problems: list[str]) -> dict[str, tuple[int, int]]:
    names = next(names for names in _META_COLUMNS if set(names) <= set(table.at))
    image_at, height_at, width_at = (table.at[name] for name in names)
    sizes = {}
    for line, fields in table.rows:
        image_id, words = fields[image_at], (fields[height_at], fields[width_at])
        try:
            height, width = map(float, words)
        except ValueError:
            height = width = math.nan
        if not (height.is_integer() and width.is_integer() and min(height, width) > 0):
            problems.append(f"{table.path} line {line}: {','.join(words)!r} is no size in pixels")
        elif not image_id or image_id in sizes:
            what = f"{image_id} is there twice" if image_id else "is empty"
            problems.append(f"{table.path} line {line}: image_id {what}")
        else:
            sizes[image_id] = (int(height), int(width))
    return sizes


class _Meta(NamedTuple):
    """The sizes of the originals by image id, or None without such a table."""

    path: Path
    sizes: dict[str, tuple[int, int]] | None
    whole: bool  # every line of it could be read


def _read_meta(
    named: str | Path | None, default: Path, problems: list[str], notes: list[str]
) -> _Meta:
    """The table that is named, else the default one; only that may be missing."""
    if named is None and not default.exists():
        notes.append(f"{default}: no such file, so the originals are as large as the pictures")
        return _Meta(default, None, True)
    before = len(problems)
    path = Path(named or default)
    table = _read_table(path, problems, *_META_COLUMNS)
    sizes = _size_rows(table, problems) if table else {}
    return _Meta(path, sizes, len(problems) == before)


def _original_size(
    name: str, shape: tuple[int, int] | None, meta: _Meta, problems: list[str]
) -> tuple[int, int] | None:
    """(height, width) of the original; None where there is none, which is reported."""
    if meta.sizes is None:
        return shape
    if name not in meta.sizes and meta.whole:  # else it may be on the line that is reported
        problems.append(f"{meta.path}: no line for image {name}")
    return meta.sizes.get(name)


def _read_ids(path: Path, problems: list[str]) -> list[str]:
    """The column image_id of a table, in its order."""
    table = _read_table(path, problems, ("image_id",))
    ids = {}
    for line, fields in table.rows if table else []:
        name = fields[table.at["image_id"]]
        if not name or name in ids:
            what = f"{name} is there twice" if name else "is empty"
            problems.append(f"{path} line {line}: image_id {what}")
        ids[name] = None
    return list(ids)


def _find_pictures(folder: Path, problems: list[str]) -> dict[str, Path]:
    """The picture of each image id in a folder. Hidden files are none (macOS leaves ._ID.png)."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        problems.append(f"{folder}: cannot read this folder ({error.strerror})")
        return {}
    found = {}
    for path in paths:
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            if path.stem in found:
                problems.append(f"{path}: a second picture of this id, see {found[path.stem].name}")
            found[path.stem] = path
    if not found:
        problems.append(f"{folder}: no PNG or JPEG in it")
    return found


def _match(
    ids: Iterable[str],
    files: dict[str, Path],
    folder: Path,
    listed_by: Path,
    problems: list[str],
    notes: list[str],
) -> dict[str, Path]:
    """The pictures of the listed images, in that order. Each must be there; others are skipped."""
    matched = {name: files[name] for name in ids if name in files}
    if files:  # else one problem says so for all
        problems += [
            f"{folder / name}.png: no such image (nor .jpg), but {listed_by} lists it"
            for name in ids
            if name not in files
        ]
    if matched and len(matched) < len(files):
        skipped = len(files) - len(matched)
        notes.append(f"{folder}: {skipped} images are not in {listed_by}; they are skipped")
    return matched


def _decode_all(paths: list[Path], problems: list[str]) -> dict[Path, tuple[int, int] | None]:
    """(height, width) of each picture in pixels; None for one that cannot be decoded."""

    def shape(path: Path) -> tuple[int, int] | InputError:
        try:
            return read_image(path).shape
        except InputError as error:
            return error

    shapes = {}
    pool = ThreadPoolExecutor()  # Pillow decodes outside the interpreter lock
    try:
        # Where no one watches, no bar: an error is to be the one line on standard error.
        results = pool.map(shape, paths)
        results = tqdm(results, "check", len(paths), unit="image", leave=False, disable=None)
        for path, result in zip(paths, results, strict=True):
            if isinstance(result, InputError):
                problems.append(str(result))
                result = None
            shapes[path] = result
    finally:
        pool.shutdown(cancel_futures=True)  # after ^C, not thousands of images later
    return shapes


def _outside(row: Row, height: int, width: int) -> str | None:
    """What is wrong with a box that leaves its image of (height, width) pixels."""
    if row.x_min < 0 or row.y_min < 0 or row.x_max > width or row.y_max > height:
        box = ",".join(f"{corner:g}" for corner in row[3:])
        return f"the box {box} leaves its image, {width} wide and {height} high"
    return None


def _raise_all(problems: list[str], where: str | Path) -> None:
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        head = f"{len(problems)} problems in {where}, the first ten:"
        raise InputError("\n".join([head, *(f"  {problem}" for problem in problems[:10])]))
