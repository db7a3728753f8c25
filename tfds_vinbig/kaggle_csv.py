"""Kaggle's tables: train.csv with every reader's rows, and the sizes of the originals.

Boxes are (x_min, y_min, x_max, y_max) in pixels of the original image, sizes are (height, width).
"""

import math
from pathlib import Path

from jaxdet import InputError
from tfds_vinbig.records import (
    LARGEST,
    NO_FINDING,
    Annotations,
    Row,
    check_box,
    class_name_of,
    drop_empty,
    drop_repeated,
    flatten,
    note_alike,
    note_contradictions,
    parse_image_id,
    parse_reader,
    raise_all,
    ranked,
)
from tfds_vinbig.tables import Table, parse_number, read_table

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
CLASS_IDS = tuple(range(len(CLASS_NAMES) + 1))  # the last is that of "No finding"

VINBIGDATA = dict(zip(CLASS_IDS, (*CLASS_NAMES, NO_FINDING), strict=True))
BOX_COLUMNS = ("x_min", "y_min", "x_max", "y_max")
ANNOTATION_COLUMNS = ("image_id", "class_id", *BOX_COLUMNS)
# Copies of the meta tables come with either pair of names, in either order.
META_COLUMNS = (("image_id", "height", "width"), ("image_id", "dim0", "dim1"))


def read_annotations(path: str | Path) -> Annotations:
    """The rows of train.csv in file order, and the images in the order they come up.

    Columns are found by name. The classes are VinBigData's if all pairs of class_id and class_name
    are, or there is no class_name; else those that the file names. Without `rad_id` all rows are of
    one reader, "R1". With a column `split`, each image has one.

    Raises:
        InputError: with every problem of the file, each with its line.
    """
    problems, notes = [], []
    table = read_table(path, problems, ANNOTATION_COLUMNS)
    raise_all(problems, path)
    classes = VINBIGDATA if _is_vinbigdata(table) else named_classes(table, problems)
    rows = annotation_rows(table, classes, problems, notes)
    raise_all(problems, path)
    splits = {}
    if "split" in table.at:
        for line, fields in table.rows:
            image_id = parse_image_id(fields[table.at["image_id"]])
            split = fields[table.at["split"]]
            if splits.setdefault(image_id, split) != split:
                problems.append(
                    f"{table.path} line {line}: image {image_id} is of the split {split!r}, but "
                    f"{splits[image_id]!r} before"
                )
    raise_all(problems, path)
    ids = tuple(dict.fromkeys(row.image_id for row in rows.values()))
    rows = drop_empty(rows, table.path, notes)
    class_names, class_ids = ranked(classes)
    note_alike(class_names, table.path, notes)
    return Annotations(
        class_names,
        class_ids,
        **flatten(rows.values(), ids),
        notes=notes,
        splits=tuple(splits[name] for name in ids) if splits else None,
    )


def read_sizes(path: str | Path) -> dict[str, tuple[int, int]]:
    """(height, width) of each original in pixels, in the order of a meta table.

    The table has `image_id` and either `height,width` or `dim0,dim1`, where dim0 is the height;
    columns are found by name. An image may come several times, with one size.

    Raises:
        InputError: with every problem of the file, each with its line.
    """
    problems = []
    table = read_table(path, problems, *META_COLUMNS)
    sizes = size_rows(table, problems) if table else {}
    raise_all(problems, path)
    return sizes


# Classes: {class_id: name} as the file has them, "No finding" among them where it is in the file


def _class_id(word: str) -> int | None:
    number = parse_number(word)
    return int(number) if number.is_integer() and 0 <= number < 2**31 else None


def _is_vinbigdata(table: Table) -> bool:
    """Whether all classes that the table names are VinBigData's by name and number."""
    if "class_name" not in table.at:
        return True
    class_at, name_at = table.at["class_id"], table.at["class_name"]
    pairs = {
        (_class_id(fields[class_at]), class_name_of(fields[name_at])) for _, fields in table.rows
    }
    return all(VINBIGDATA.get(class_id) == name for class_id, name in pairs if class_id is not None)


def named_classes(table: Table, problems: list[str]) -> dict[int, str]:
    """The classes by the first row that names each; a second id of a name is a problem."""
    classes, ids = {}, {}
    for line, fields in table.rows:
        class_id = _class_id(fields[table.at["class_id"]])
        name = class_name_of(fields[table.at["class_name"]])
        if class_id is None or class_id in classes or not (name and name.isprintable()):
            continue  # known, or a problem of its row
        if name in ids:
            problems.append(
                f"{table.path} line {line}: class_name {name!r} has class_id {class_id}, but "
                f"{ids[name]} before"
            )
        classes[class_id] = name
        ids.setdefault(name, class_id)
    if set(ids) == {NO_FINDING}:
        problems.append(f"{table.path}: names no class but {NO_FINDING}")
    return classes


# Rows


def annotation_rows(
    table: Table, classes: dict[int, str], problems: list[str], notes: list[str]
) -> dict[str, Row]:
    """The rows that are as they should be, by place, each once."""
    image_at, class_at, *corners_at = (table.at[name] for name in ANNOTATION_COLUMNS)
    name_at, reader_at = table.at.get("class_name"), table.at.get("rad_id")
    names, _ = ranked(classes)
    labels = {i: (*names, NO_FINDING).index(name) for i, name in classes.items()}
    rows, normal = {}, set()
    for line, fields in table.rows:
        try:
            image_id = parse_image_id(fields[image_at])
            reader = "R1" if reader_at is None else fields[reader_at]
            reader = parse_reader(reader)
            name = None if name_at is None else fields[name_at]
            class_id = _parse_class(fields[class_at], name, classes)
            box = parse_box(classes[class_id], [fields[i] for i in corners_at])
        except InputError as error:
            problems.append(f"{table.path} line {line}: {error}")
            continue
        if reader_at is None and math.isnan(box[0]):
            # Readers that are not told apart say it in as many rows, and each is right.
            if image_id in normal:
                continue
            normal.add(image_id)
        rows[f"{table.path} line {line}"] = Row(image_id, labels[class_id], reader, *box)
    rows = drop_repeated(rows, len(names), table.path, notes)
    note_contradictions(rows.values(), len(names), table.path, notes)
    return rows


def _parse_class(word: str, name: str | None, classes: dict[int, str]) -> int:
    class_id = _class_id(word)
    if class_id is not None and name is not None and not (name and name.isprintable()):
        raise InputError(f"class_name {name!r} is no name")
    if class_id not in classes:
        known = f"known are {min(classes)} to {max(classes)}" if classes else "ids are from 0 on"
        raise InputError(f"unknown class_id {word[:40]!r}, {known}")
    expected = classes[class_id]
    if name is not None and class_name_of(name) != expected:
        raise InputError(
            f"class_name {name!r} does not go with class_id {class_id}, which is {expected!r}"
        )
    return class_id


def parse_box(name: str, words: list[str]) -> list[float]:
    """The box of a row of the class `name`; NaN for "No finding".

    Raises:
        InputError: without the place, which the caller knows.
    """
    if name == NO_FINDING and all(word.lower() in ("", "nan") for word in words):
        return [math.nan] * 4
    if not all(words):
        column = BOX_COLUMNS[words.index("")]
        raise InputError(f"{column} is empty in a row of {name}")
    box = [parse_number(word) for word in words]
    if any(map(math.isnan, box)):
        raise InputError(f"the box {','.join(words)!r} is not four finite numbers")
    if name == NO_FINDING:
        if box != [0, 0, 1, 1]:  # how the box of this class is written in a submission
            raise InputError(f"{NO_FINDING} with the box {','.join(words)}; leave it empty")
        return [math.nan] * 4
    check_box(box, ",".join(words))
    return box


def size_rows(table: Table, problems: list[str]) -> dict[str, tuple[int, int]]:
    names = next(names for names in META_COLUMNS if set(names) <= set(table.at))
    image_at, height_at, width_at = (table.at[name] for name in names)
    sizes = {}
    for line, fields in table.rows:
        words = fields[height_at], fields[width_at]
        size = tuple(map(parse_number, words))
        try:
            image_id = parse_image_id(fields[image_at])
            if not all(side.is_integer() and 0 < side <= LARGEST for side in size):
                raise InputError(f"{','.join(words)!r} is no size in pixels")
            size = tuple(map(int, size))
            if sizes.setdefault(image_id, size) != size:
                before = ",".join(map(str, sizes[image_id]))
                raise InputError(
                    f"image {image_id} has the size {','.join(words)}, but {before} before"
                )
        except InputError as error:
            problems.append(f"{table.path} line {line}: {error}")
    return sizes
