"""Everything that knows the Kaggle folder: its tables, its pictures, and what can be wrong in them.

FOLDER/train/<image_id>.png    FOLDER/train.csv             every reader's boxes
FOLDER/test/<image_id>.png     FOLDER/train_meta.csv        sizes of the originals
                               FOLDER/test_meta.csv
                               FOLDER/sample_submission.csv
"""

import os
from pathlib import Path

from jaxdet import InputError
from tfds_vinbig import kaggle_csv, vindr
from tfds_vinbig.kaggle_csv import (
    ANNOTATION_COLUMNS,
    CLASS_IDS,
    CLASS_NAMES,
    VINBIGDATA,
    annotation_rows,
    named_classes,
    read_sizes,
)
from tfds_vinbig.originals import Meta, read_meta, read_split
from tfds_vinbig.pictures import find_pictures
from tfds_vinbig.records import (
    NO_FINDING,
    STRICT,
    Allowed,
    Annotations,
    Folder,
    Record,
    check_units,
    note_alike,
    parse_image_id,
    raise_all,
    ranked,
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


def read_annotations(path: str | Path) -> Annotations:
    """A table of readers' boxes: Kaggle's (see `kaggle_csv`), or of the VinDr-CXR release.

    Raises:
        InputError: with every problem of the file, each with its line.
    """
    return (vindr if vindr.is_table(path) else kaggle_csv).read_annotations(path)


def read_folder(
    folder: str | Path,
    train_csv: str | Path | None = None,
    train_meta: str | Path | None = None,
    test_meta: str | Path | None = None,
    own_classes: bool = False,
    allowed: Allowed = STRICT,
) -> Folder:
    """Read and check a whole Kaggle folder; every picture is looked at, see `images.check`.

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
    folder = Path(os.path.expanduser(folder))
    train_csv = Path(os.path.expanduser(train_csv or folder / "train.csv"))
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

    meta = read_meta(train_meta, folder / "train_meta.csv", problems, notes)
    files = find_pictures(folder / "train", problems)
    rank = {name: i for i, name in enumerate(meta.sizes or rows_of)}
    index = {name: rank.get(name, -1) for name in rows_of}  # without a rank it is a problem
    train, resized = read_split(
        folder / "train", files, index, rows_of, meta, train_csv, problems, notes, allowed
    )
    check_units((row for record in train for row in record.rows), train_csv, problems)

    test = []
    if not os.path.isdir(folder / "test"):
        notes.append(f"{folder / 'test'}: no such folder, so there is no test split")
        if test_meta is not None:
            read_meta(test_meta, test_meta, problems, notes)
    elif resized and test_meta is None and not os.path.exists(folder / "test_meta.csv"):
        notes.append(
            f"{folder / 'test_meta.csv'}: no such file, while the pictures are resized "
            f"({meta.path}), so there is no test split: its boxes would be in pixels of resized "
            "pictures; --test_meta=CSV with the sizes of the originals mends it"
        )
    else:
        meta = read_meta(test_meta, folder / "test_meta.csv", problems, notes)
        test = _read_test(folder, meta, problems, notes, allowed)
    problems += [
        f"image {record.image_id}: both in {train_csv} and in the test split"
        for record in test
        if record.image_id in rows_of
    ]
    raise_all(problems, folder)
    note_alike(ranked(classes)[0], train_csv, notes)
    return Folder(*ranked(classes), train, test, notes)


def _read_test(
    folder: Path, meta: Meta, problems: list[str], notes: list[str], allowed: Allowed
) -> list[Record]:
    """The images of the test split, which have no rows."""
    files = find_pictures(folder / "test", problems)
    sample = folder / "sample_submission.csv"
    if os.path.exists(sample):
        ids, listed_by = _read_ids(sample, problems), sample
    elif meta.sizes is not None:
        ids, listed_by = list(meta.sizes), meta.path
    else:
        ids, listed_by = sorted(files), folder / "test"
    index = {name: i for i, name in enumerate(ids)}
    place = folder / "test"
    return read_split(place, files, index, {}, meta, listed_by, problems, notes, allowed)[0]


def _read_ids(path: Path, problems: list[str]) -> list[str]:
    """The column image_id of a table, in its order."""
    table = read_table(path, problems, ("image_id",))
    ids = {}
    for line, fields in table.rows if table else []:
        try:
            name = parse_image_id(fields[table.at["image_id"]])
            if name in ids:
                raise InputError(f"image_id {name} is there twice")
            ids[name] = None
        except InputError as error:
            problems.append(f"{path} line {line}: {error}")
    return list(ids)
