"""Everything that knows the Kaggle folder: its tables, its pictures, and what can be wrong in them.

FOLDER/train/<image_id>.png    FOLDER/train.csv             every reader's boxes
FOLDER/test/<image_id>.png     FOLDER/train_meta.csv        sizes of the originals
                               FOLDER/test_meta.csv
                               FOLDER/sample_submission.csv
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from jaxdet import InputError
from tfds_vinbig.kaggle_csv import (
    ANNOTATION_COLUMNS,
    CLASS_IDS,
    CLASS_NAMES,
    META_COLUMNS,
    VINBIGDATA,
    annotation_rows,
    named_classes,
    read_annotations,
    read_sizes,
    size_rows,
)
from tfds_vinbig.records import (
    NO_FINDING,
    Folder,
    Record,
    check_id,
    check_shape,
    cut_rows,
    find_pictures,
    raise_all,
    ranked,
    read_shapes,
)
from tfds_vinbig.tables import read_table

__all__ = [
    "CLASS_IDS",
    "CLASS_NAMES",
    "NO_FINDING",
    "read_annotations",
    "read_folder",
    "read_sizes",
]


def read_folder(
    folder: str | Path,
    train_csv: str | Path | None = None,
    train_meta: str | Path | None = None,
    test_meta: str | Path | None = None,
    own_classes: bool = False,
) -> Folder:
    """Read and check a whole Kaggle folder; every picture is decoded once.

    The tables are those of the folder, unless named. Without a meta table a picture has the
    original's size; but if the pictures of train are resized, those of test are too, and without
    their sizes there is no test split. `Record.index` counts the images of train_meta.csv for train
    (else of train.csv), and of sample_submission.csv for test (else of test_meta.csv, else the
    sorted files). Pictures that no table knows are skipped, with a note. The classes are
    VinBigData's, or with `own_classes` those that train.csv names, in the order of their ids.

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

    classes, rows = VINBIGDATA, {}
    columns = (*ANNOTATION_COLUMNS, *(("class_name",) if own_classes else ()))
    if table := read_table(train_csv, problems, columns):
        classes = named_classes(table, problems) if own_classes else VINBIGDATA
        rows = annotation_rows(table, classes, problems, notes)
    rows_of = {}  # image id: its rows, by place
    for place, row in rows.items():
        rows_of.setdefault(row.image_id, {})[place] = row

    meta = _read_meta(train_meta, folder / "train_meta.csv", problems, notes)
    files = find_pictures(folder / "train", problems)
    files = _match(rows_of, files, folder / "train", train_csv, problems, notes)
    shapes = read_shapes(files.values(), folder / "train", problems, notes)
    order = {name: i for i, name in enumerate(meta.sizes or rows_of)}
    hint = (
        ""
        if meta.sizes is not None
        else f"; {meta.path} with the sizes of the originals is missing"
    )
    train, resized = [], False
    for name, path in files.items():
        if path in shapes and (size := _original_size(name, path, shapes[path], meta, problems)):
            resized = resized or size != shapes[path]
            kept = cut_rows(rows_of[name], *size, problems, hint)
            train.append(Record(name, path, *size, order[name], kept))

    test = []
    if not os.path.isdir(folder / "test"):
        notes.append(f"{folder / 'test'}: no such folder, so there is no test split")
        if test_meta is not None:
            _read_meta(test_meta, test_meta, problems, notes)
    elif resized and test_meta is None and not os.path.exists(folder / "test_meta.csv"):
        notes.append(
            f"{folder / 'test_meta.csv'}: no such file, while the pictures are resized "
            f"({meta.path}), so there is no test split: its boxes would be in pixels of resized "
            "pictures; --test_meta=CSV with the sizes of the originals mends it"
        )
    else:
        meta = _read_meta(test_meta, folder / "test_meta.csv", problems, notes)
        test = _read_test(folder, meta, problems, notes)
    problems += [
        f"image {record.image_id}: both in {train_csv} and in the test split"
        for record in test
        if record.image_id in rows_of
    ]
    raise_all(problems, folder)
    return Folder(*ranked(classes), train, test, notes)


def _read_test(folder: Path, meta: "_Meta", problems: list[str], notes: list[str]) -> list[Record]:
    """The images of the test split, which have no rows."""
    files = find_pictures(folder / "test", problems)
    sample = folder / "sample_submission.csv"
    if os.path.exists(sample):
        ids, listed_by = _read_ids(sample, problems), sample
    elif meta.sizes is not None:
        ids, listed_by = list(meta.sizes), meta.path
    else:
        ids, listed_by = sorted(files), folder / "test"
    files = _match(ids, files, folder / "test", listed_by, problems, notes)
    shapes = read_shapes(files.values(), folder / "test", problems, notes)
    records = []
    for index, name in enumerate(ids):
        path = files.get(name)
        if path in shapes and (size := _original_size(name, path, shapes[path], meta, problems)):
            records.append(Record(name, path, *size, index, []))
    return records


class _Meta(NamedTuple):
    """The sizes of the originals by image id, or None without such a table."""

    path: Path
    sizes: dict[str, tuple[int, int]] | None
    whole: bool  # every line of it could be read


def _read_meta(
    named: str | Path | None, default: Path, problems: list[str], notes: list[str]
) -> _Meta:
    """The table that is named, else the default one; only that may be missing."""
    if named is None and not os.path.exists(default):
        notes.append(f"{default}: no such file, so the originals are as large as the pictures")
        return _Meta(default, None, True)
    before = len(problems)
    path = Path(named or default)
    table = read_table(path, problems, *META_COLUMNS)
    sizes = size_rows(table, problems) if table else {}
    return _Meta(path, sizes, len(problems) == before)


def _original_size(
    name: str, path: Path, shape: tuple[int, int], meta: _Meta, problems: list[str]
) -> tuple[int, int] | None:
    """(height, width) of the original; None where there is none that fits, which is reported."""
    if meta.sizes is None:
        return shape
    if name not in meta.sizes:
        if meta.whole:  # else it may be on the line that is reported
            problems.append(f"{meta.path}: no line for image {name}")
        return None
    if problem := check_shape(path, shape, meta.sizes[name], meta.path):
        problems.append(problem)
        return None
    return meta.sizes[name]


def _read_ids(path: Path, problems: list[str]) -> list[str]:
    """The column image_id of a table, in its order."""
    table = read_table(path, problems, ("image_id",))
    ids = {}
    for line, fields in table.rows if table else []:
        name = fields[table.at["image_id"]]
        try:
            check_id(name)
            if name in ids:
                raise InputError(f"image_id {name} is there twice")
            ids[name] = None
        except InputError as error:
            problems.append(f"{path} line {line}: {error}")
    return list(ids)


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
            f"{folder / name}.png: no such image (nor .jpg, .tif), but {listed_by} lists it"
            for name in ids
            if name not in files
        ]
    if matched and len(matched) < len(files):
        skipped = len(files) - len(matched)
        notes.append(f"{folder}: {skipped} images are not in {listed_by}; they are skipped")
    return matched
