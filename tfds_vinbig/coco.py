"""COCO's JSON: annotations in, with the pictures they are of; detections out and in.

Boxes are [x, y, width, height] there, (x_min, y_min, x_max, y_max) here, in pixels of the images as
the file has their sizes. Categories become labels in the order of their ids. The image_id of a
record is the name of the file without its suffix.
"""

import json
import math
import os
from collections.abc import Hashable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from jaxdet import InputError
from jaxdet.data import images
from jaxdet.ops.boxes import BoxTable
from tfds_vinbig.json_lists import (
    list_of,
    load,
    load_detections,
    parse_id,
    parse_number,
    parse_whole,
    show,
)
from tfds_vinbig.records import (
    LARGEST,
    NO_FINDING,
    Annotations,
    Folder,
    Record,
    Row,
    check_id,
    check_reader,
    check_shape,
    class_name_of,
    cut_rows,
    drop_repeated,
    find_pictures,
    flatten,
    raise_all,
    ranked,
    read_shapes,
)
from tfds_vinbig.submission import NO_FINDING_BOX, to_table

READER = "coco"  # who drew the boxes that name no reader, and saw nothing in the images without


class _Image(NamedTuple):
    """An entry of "images": its number, its file, and the size of the original in pixels."""

    number: Hashable
    file_name: str
    height: int
    width: int


def read_annotations(path: str | Path) -> Annotations:
    """An annotation file ("instances"), with all its images; those without annotations are normal.

    Where annotations have the field `rad_id`, it names the reader. Crowds (`iscrowd`) are left out.
    A category "No finding" is none of the classes: its annotations say so of their image.

    Raises:
        InputError: with every problem of the file, each with the entry.
    """
    notes = []
    listed, names, class_ids, rows = _read(Path(os.path.expanduser(path)), notes)
    return Annotations(
        names,
        class_ids,
        **flatten(rows.values(), listed),
        notes=notes,
        image_ids=tuple(image.number for image in listed.values()),
    )


def read_sizes(path: str | Path) -> dict[str, tuple[int, int]]:
    """(height, width) of each original in pixels by image_id; "images" is all that is read.

    Raises:
        InputError: with every problem of these entries.
    """
    return {name: (image.height, image.width) for name, image in _only_images(path).items()}


def read_image_ids(path: str | Path) -> dict[str, Hashable]:
    """The id that COCO has for each image_id; "images" is all that is read, as in `read_sizes`."""
    return {name: image.number for name, image in _only_images(path).items()}


def read_instances(
    path: str | Path, folder: str | Path, test_folder: str | Path | None = None
) -> Folder:
    """An annotation file as in `read_annotations` with the pictures of its images, each looked at.

    A `file_name` is a path below `folder`, and may not leave it. The pictures of `test_folder`, in
    the order of their names, are the test split: they have no annotations, and are as large as the
    originals.

    Raises:
        InputError: with every problem: the message is one line for one, and for more a count and
            the first ten.
    """
    path, folder = Path(os.path.expanduser(path)), Path(os.path.expanduser(folder))
    for place in (folder, test_folder):
        if place is not None and not os.path.isdir(os.path.expanduser(place)):
            raise InputError(f"{place}: no such folder")
    problems, notes = [], []
    listed, names, class_ids, rows = _read(path, notes)
    rows_of = {name: {} for name in listed}
    for place, row in rows.items():
        rows_of[row.image_id][place] = row

    files = {name: folder / image.file_name for name, image in listed.items()}
    for name, file in list(files.items()):
        if not os.path.lexists(file):
            problems.append(f"{file}: no such image, but {path} lists it")
            del files[name]
    if others := set(find_pictures(folder, []).values()) - set(files.values()):
        notes.append(f"{folder}: {len(others)} images are not in {path}; they are skipped")
    shapes = read_shapes(files.values(), folder, problems, notes)
    train = []
    for index, (name, image) in enumerate(listed.items()):
        size = image.height, image.width
        shape = shapes.get(files.get(name))
        if shape is None:
            continue
        if problem := check_shape(files[name], shape, size, path):
            problems.append(problem)
        kept = cut_rows(rows_of[name], *size, problems)
        train.append(Record(name, files[name], *size, index, kept))

    test = []
    if test_folder is not None:
        test_folder = Path(os.path.expanduser(test_folder))
        files = find_pictures(test_folder, problems)
        shapes = read_shapes(files.values(), test_folder, problems, notes)
        test = [
            Record(name, file, *shapes[file], index, [])
            for index, (name, file) in enumerate(files.items())
            if file in shapes
        ]
        problems += [
            f"{files[name]}: image {name} is in {path} too" for name in files if name in listed
        ]
    raise_all(problems, path)
    return Folder(names, class_ids, train, test, notes)


def to_json(
    ids: list[str],
    table: BoxTable,
    class_ids: tuple[int, ...],
    image_ids: dict[str, Hashable] | None = None,
) -> str:
    """Detections in COCO's results form, a line each; `table.image` counts the ids.

    `class_ids` has the category of each label; rows of the last, "No finding", are left out, since
    COCO knows no such box. `image_ids` are COCO's (see `read_image_ids`); an image without one goes
    by its own id.
    """
    lines = []
    for image, label, box, score in zip(
        table.image, table.labels, table.boxes, table.scores, strict=True
    ):
        if label == len(class_ids) - 1:
            continue
        x_min, y_min, x_max, y_max = map(float, box)
        row = {
            "image_id": (image_ids or {}).get(ids[image], ids[image]),
            "category_id": int(class_ids[label]),
            "bbox": [round(x, 2) for x in (x_min, y_min, x_max - x_min, y_max - y_min)],
            "score": float(f"{score:.9g}"),  # tells any two float32 apart
        }
        lines.append(json.dumps(row))
    return "[" + ",\n".join(lines) + "]\n"


def read_detections(path: str | Path, annotations: Annotations) -> tuple[list[str], BoxTable]:
    """Detections in COCO's results form on the images of `annotations`: their ids, and the table.

    Where `annotations` has splits, on the images of those that the file has a detection in. An
    image is named by its id in the annotation file, or by its file with or without a suffix. Every
    image gets a row of "No finding" with the score 1 - its best score, unless the file has one of
    that category.

    Raises:
        InputError: with every problem of the file, each with the entry.
    """
    path, problems = Path(os.path.expanduser(path)), []
    known = {name: i for i, name in enumerate(annotations.ids)}
    numbers = {name: i for i, name in enumerate(annotations.image_ids or ())}
    labels = {class_id: label for label, class_id in enumerate(annotations.class_ids)}
    normal, names, rows = len(annotations.class_names), [], []
    for place, entry in load_detections(path, problems):
        try:
            position = _find(entry.get("image_id"), numbers, known)
            label = labels.get(parse_whole(entry.get("category_id")))
            if label is None:
                raise InputError(
                    f"category_id {show(entry.get('category_id'))} is unknown; known are "
                    f"{', '.join(map(str, labels))}"
                )
            score = parse_number(entry.get("score"))
            if math.isnan(score):
                raise InputError(f"score {show(entry.get('score'))} is not a finite number")
            box = NO_FINDING_BOX if label == normal else _corners(entry.get("bbox"), area=False)
        except InputError as error:
            problems.append(f"{place}: {error}")
            continue
        names.append(annotations.ids[position])
        rows.append((label, score, *box))
    raise_all(problems, path)

    known = {name: i for i, name in enumerate(annotations.of_splits_with(names or known).ids)}
    image = [known[name] for name in names]
    best = [0.0] * len(known)
    for position, (label, score, *_) in zip(image, rows, strict=True):
        best[position] = max(best[position], score) if label != normal else best[position]
    said = {position for position, row in zip(image, rows, strict=True) if row[0] == normal}
    for position in range(len(known)):
        if position not in said:
            image.append(position)
            rows.append((normal, 1 - best[position], *NO_FINDING_BOX))
    return list(known), to_table(image, rows)


def _only_images(path: str | Path) -> dict[str, _Image]:
    path, problems = Path(os.path.expanduser(path)), []
    data = load(path, problems)
    raise_all(problems, path)
    listed = _read_images(data, path, problems)
    raise_all(problems, path)
    return listed


def _read(path: Path, notes: list[str]) -> tuple:
    """Images by image_id, class_names, class_ids, and rows by place."""
    problems = []
    data = load(path, problems)
    raise_all(problems, path)
    listed = _read_images(data, path, problems)
    categories = _read_categories(data, path, problems)
    raise_all(problems, path)  # annotations refer to these
    names, class_ids = ranked(categories)
    rows = _read_rows(data, path, listed, categories, problems, notes)
    raise_all(problems, path)
    return listed, names, class_ids, rows


def _read_categories(data: Any, path: Path, problems: list[str]) -> dict[int, str]:
    """The names of the categories by their ids."""
    categories = {}
    for place, entry in list_of(data, path, "categories", problems):
        number, name = parse_whole(entry.get("id")), entry.get("name")
        name = class_name_of(name.strip()) if isinstance(name, str) else ""
        if number is None:
            problems.append(f"{place}: id {show(entry.get('id'))} is not a whole number from 0 on")
        elif not (name and name.isprintable()):
            problems.append(f"{place}: name {show(entry.get('name'))} is no name")
        elif number in categories:
            problems.append(f"{place}: id {number} is there twice")
        elif name in categories.values():
            problems.append(f"{place}: name {name!r} is there twice")
        else:
            categories[number] = name
    if not set(categories.values()) - {NO_FINDING} and not problems:
        problems.append(f"{path}: categories names no class")
    return categories


def _read_rows(
    data: Any,
    path: Path,
    listed: dict[str, _Image],
    categories: dict[int, str],
    problems: list[str],
    notes: list[str],
) -> dict[str, Row]:
    """The annotations by place, and a row of "No finding" for each image without one."""
    ids = {image.number: name for name, image in listed.items()}
    names, class_ids = ranked(categories)
    labels = {i: label for label, i in enumerate(class_ids) if i in categories}
    normal, nowhere = len(names), [math.nan] * 4
    rows, crowds, annotated = {}, 0, set()
    for place, entry in list_of(data, path, "annotations", problems):
        try:
            image_id = ids.get(parse_id(entry.get("image_id")))
            if image_id is None:
                raise InputError(f"image_id {show(entry.get('image_id'))} is in no image")
            annotated.add(image_id)
            if entry.get("iscrowd"):
                crowds += 1
                continue
            label = labels.get(parse_whole(entry.get("category_id")))
            if label is None:
                raise InputError(f"category_id {show(entry.get('category_id'))} is in no category")
            box = nowhere if label == normal else _corners(entry.get("bbox"), area=True)
            rows[place] = Row(image_id, label, _reader(entry), *box)
        except InputError as error:
            problems.append(f"{place}: {error}")
    if crowds:
        only = len(annotated - {row.image_id for row in rows.values()})
        notes.append(
            f"{path}: {crowds} crowds (iscrowd) are left out; {only} images have nothing else, and "
            "count neither as normal nor as having a finding"
        )
    rows = drop_repeated(rows, normal, path, notes)
    for name in listed:
        if name not in annotated:
            rows[f"{path}: image {name}"] = Row(name, normal, READER, *nowhere)
    return rows


def _read_images(data: Any, path: Path, problems: list[str]) -> dict[str, _Image]:
    """The images by image_id, in the order of the file."""
    listed, numbers = {}, set()
    entries = list_of(data, path, "images", problems)
    for place, entry in entries:
        try:
            number, file_name = parse_id(entry.get("id")), entry.get("file_name")
            if number is None:
                raise InputError(f"id {show(entry.get('id'))} is not a whole number, nor a name")
            if number in numbers:
                raise InputError(f"id {show(number)} is there twice")
            numbers.add(number)
            image_id = _image_id(file_name)
            if image_id in listed:
                first = listed[image_id].file_name
                raise InputError(f"file_name {show(file_name)} is there twice, see {show(first)}")
            size = parse_whole(entry.get("height")), parse_whole(entry.get("width"))
            if not all(side and side <= LARGEST for side in size):
                raise InputError(
                    f"height {show(entry.get('height'))} and width {show(entry.get('width'))} are "
                    "no size in pixels"
                )
            listed[image_id] = _Image(number, file_name, *size)
        except InputError as error:
            problems.append(f"{place}: {error}")
    if not entries and not problems:
        problems.append(f"{path}: images has no image")
    return listed


def _image_id(file_name: Any) -> str:
    """The file's name without its suffix; a path must stay below its folder."""
    if not isinstance(file_name, str) or not file_name:
        raise InputError(f"file_name {show(file_name)} is not the name of a file")
    path = PurePosixPath(file_name)
    try:
        if path.is_absolute():
            raise InputError("it begins with a slash")
        for part in (*path.parts, images.image_id(path.name)):
            check_id(part)
    except InputError as error:
        raise InputError(
            f"file_name {show(file_name)} is not the name of a file below --images"
        ) from error
    return images.image_id(path.name)


def _reader(entry: dict) -> str:
    reader = READER if entry.get("rad_id") is None else parse_id(entry["rad_id"])
    if reader is None:
        raise InputError(f"rad_id {show(entry['rad_id'])} is no name")
    check_reader(str(reader))
    return str(reader)


def _find(image_id: Any, numbers: dict[Hashable, int], known: dict[str, int]) -> int:
    """The position of an image by COCO's id, by image_id, or by its file."""
    key = parse_id(image_id)
    if not numbers and isinstance(key, int):  # a Kaggle file, in which 12 is a name
        key = str(key)
    position = numbers.get(key)
    if position is None and isinstance(key, str):
        path = PurePosixPath(key)
        stem = path.stem if path.suffix.lower() in images.SUFFIXES else key
        position = known.get(key, known.get(stem))
    if position is None:
        raise InputError(f"image_id {show(image_id)} is not among the annotated images")
    return position


def _corners(bbox: Any, area: bool) -> tuple[float, float, float, float]:
    """[x, y, width, height] as corners; `area` asks for some."""
    box = [parse_number(value) for value in bbox] if isinstance(bbox, list) else []
    if len(box) != 4 or any(map(math.isnan, box)):
        raise InputError(f"bbox {show(bbox)} is not four finite numbers")
    x, y, width, height = box
    corners = x, y, x + width, y + height
    if max(map(abs, corners)) > LARGEST:
        raise InputError(f"bbox {show(bbox)} is larger than any image")
    if min(width, height) < 0 or (area and not (x < corners[2] and y < corners[3])):
        least = "above 0" if area else "of 0 or more"
        raise InputError(f"bbox {show(bbox)} needs a width and a height {least}")
    return corners
