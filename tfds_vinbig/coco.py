"""COCO's JSON: annotations in, with the pictures they are of; detections out and in.

Boxes are [x, y, width, height] there, (x_min, y_min, x_max, y_max) here, in pixels of the images as
the file has their sizes. Categories become labels in the order of their ids. The image_id of a
record is the path of its file below the folder of pictures, see `images.path_id`.
"""

import math
import os
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxdet import InputError
from jaxdet.data import images
from tfds_vinbig import coco_json
from tfds_vinbig.coco_boxes import check_mask_size, fit_as_corners
from tfds_vinbig.coco_results import read_detections, to_json
from tfds_vinbig.json_lists import load
from tfds_vinbig.pictures import check_shape, find_pictures, read_shapes
from tfds_vinbig.records import (
    NO_FINDING,
    STRICT,
    Allowed,
    Annotations,
    Folder,
    Record,
    Row,
    Size,
    Tally,
    check_units,
    class_name_of,
    cut_rows,
    drop_empty,
    flatten,
    raise_all,
    ranked,
)

__all__ = [
    "class_ids_by_name",
    "read_annotations",
    "read_detections",
    "read_image_ids",
    "read_images",
    "read_instances",
    "read_sizes",
    "to_json",
]

AS_CORNERS = (
    "; all boxes of the file fit their images as x_min, y_min, x_max, y_max: if they are that, "
    "write x, y, width, height"
)

LOST = (
    "images list what is not there, and have classes whose boxes are all left out: these are "
    "unknown there"
)


def read_annotations(path: str | Path) -> Annotations:
    """An annotation file ("instances"), with all its images; those without annotations are normal.

    Where annotations have the field `rad_id`, it names the reader. Crowds (`iscrowd`) are no boxes,
    but regions. A category "No finding" is none of the classes: its annotations say so of their
    image.

    Raises:
        InputError: with every problem of the file, each with the entry.
    """
    notes, path = [], Path(os.path.expanduser(path))
    found = coco_json.read(path, notes)
    rows = drop_empty(found.rows, path, notes)
    position = {name: i for i, name in enumerate(found.images)}
    exhaustive = np.ones((len(position), len(found.class_names)), bool)
    for name, labels in found.not_exhaustive.items():
        exhaustive[position[name], list(labels)] = False
    fields = flatten(rows.values(), found.images)
    fields["sizes"] = {position[name]: said for name, said in _sizes(found, path).items()}
    return Annotations(
        found.class_names,
        found.class_ids,
        **fields,
        notes=notes,
        image_ids=tuple(image.number for image in found.images.values()),
        crowds=tuple((position[row.image_id], row.label, row[3:]) for row in found.crowds),
        left_out=found.left_out,
        exhaustive=None if exhaustive.all() else exhaustive,
    )


def _sizes(found: coco_json.Instances, path: Path) -> dict[str, tuple[Size, str]]:
    """(height, width) of the images, and who says so: they themselves, or the first mask.

    Raises:
        InputError: where masks of an image disagree.
    """
    sizes = {name: (image.size, "its image") for name, image in found.images.items() if image.size}
    problems = []
    for name, masks in found.masks.items():
        first, size = next(iter(masks.items()))
        sizes[name] = size, first.removeprefix(f"{path}: ")
        problems += _wrong_masks(masks, *sizes[name])
    raise_all(problems, path)
    return sizes


def _wrong_masks(masks: dict[str, Size], size: Size, whose: str) -> list[str]:
    problems = []
    for place, of_mask in masks.items():
        try:
            check_mask_size(of_mask, size, whose)
        except InputError as error:
            problems.append(
                f"{place}: {error}: write height and width of its image, and mend what differs"
            )
    return problems


def read_sizes(path: str | Path) -> dict[str, tuple[int, int] | None]:
    """(height, width) of each original in pixels by image_id, None where the file does not say it;
    "images" is all that is read.

    Raises:
        InputError: with every problem of these entries.
    """
    return {name: image.size for name, image in read_images(path).items()}


def read_image_ids(path: str | Path) -> dict[str, Hashable]:
    """The id that COCO has for each image_id; "images" is all that is read, as in `read_sizes`."""
    return {name: image.number for name, image in read_images(path).items()}


def class_ids_by_name(path: str | Path, class_names: Sequence[str]) -> list[int] | None:
    """The ids that a file has for these classes and, last, for "No finding".

    None where it has no "categories". One that a build leaves out, as it has no annotation and
    looks like a heading, is a class all the same where a class has its name.

    Raises:
        InputError: for classes that it does not name.
    """
    path, problems = Path(os.path.expanduser(path)), []
    data = load(path, problems)
    raise_all(problems, path)
    if not data.get("categories"):
        return None
    categories, left_out = coco_json.read_categories(data, path, problems, [])
    raise_all(problems, path)
    ids = {name: i for part in (left_out, categories) for i, name in part.items()}
    missing = [name for name in map(class_name_of, class_names) if name not in ids]
    if missing:
        known = ", ".join(name for name in ids if name != NO_FINDING)
        raise InputError(
            f"{path}: has no category {', '.join(map(repr, missing))}, a class of the run; it has "
            f"{known}"
        )
    normal = ranked(left_out | categories)[1][-1]
    return [*(ids[class_name_of(name)] for name in class_names), normal]


def read_instances(
    path: str | Path,
    folder: str | Path,
    test_folder: str | Path | None = None,
    allowed: Allowed = STRICT,
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
    found = coco_json.read(path, notes)
    listed, rows_of = found.images, {name: {} for name in found.images}
    for place, row in found.rows.items():
        rows_of[row.image_id][place] = row

    files = _files(listed, folder, path, problems, notes)
    shapes = read_shapes(files.values(), folder, problems, notes, allowed.follow_links)
    train, tally = [], Tally()
    sizes = {name: image.size or shapes.get(files.get(name)) for name, image in listed.items()}
    hint = AS_CORNERS if _fit_as_corners(found.rows.values(), sizes) else ""
    for index, name in enumerate(listed):
        shape = shapes.get(files.get(name))
        if shape is None:
            continue
        size = sizes[name]
        if problem := check_shape(files[name], shape, size, path):
            problems.append(problem)
        kept = cut_rows(rows_of[name], *size, problems, tally, allowed.cut_boxes, hint)
        masks = found.masks.get(name, {})  # those of crowds count for nothing here
        masks = {place: masks[place] for place in masks if place in found.rows}
        problems += _wrong_masks(masks, shape, "its picture")
        partial = found.not_exhaustive.get(name, ())
        lost = {row.label for row in rows_of[name].values()} - {row.label for row in kept}
        if name in found.with_absent and lost - set(partial):
            tally.add(LOST, f"image {name}")
            partial = tuple(sorted({*partial, *lost}))
        train.append(Record(name, files[name], *size, index, kept, partial))
    notes += tally.notes(path)
    check_units((row for record in train for row in record.rows), path, problems)

    test = []
    if test_folder is not None:
        test_folder = Path(os.path.expanduser(test_folder))
        files = find_pictures(test_folder, problems)
        shapes = read_shapes(files.values(), test_folder, problems, notes, allowed.follow_links)
        test = [
            Record(name, file, *shapes[file], index, [])
            for index, (name, file) in enumerate(files.items())
            if file in shapes
        ]
        problems += [
            f"{files[name]}: image {name} is in {path} too" for name in files if name in listed
        ]
    raise_all(problems, path)
    return Folder(found.class_names, found.class_ids, train, test, notes)


def _fit_as_corners(rows: Iterable[Row], sizes: dict[str, Size | None]) -> bool:
    found = [row for row in rows if not math.isnan(row.x_min) and sizes[row.image_id]]
    boxes = np.reshape([row[3:] for row in found], (-1, 4)).astype(np.float64)
    of_image = np.reshape([sizes[row.image_id] for row in found], (-1, 2)).astype(np.float64)
    return fit_as_corners(boxes, of_image)


def _files(
    listed: dict[str, coco_json.Image],
    folder: Path,
    path: Path,
    problems: list[str],
    notes: list[str],
) -> dict[str, Path]:
    """Where the picture of each image is: at its name, whichever separators and form of Unicode
    the file and the disk have."""
    below = find_pictures(folder, [])
    there = {images.composed(str(file.relative_to(folder))): file for file in below.values()}
    found = {}
    for name, image in listed.items():
        parts = folder.joinpath(*coco_json.parts_of(image.file_name))
        for file in (folder / image.file_name, parts):
            if os.path.lexists(file):
                found[name] = file
                break
        else:
            if file := there.get(images.composed(str(parts.relative_to(folder)))):
                found[name] = file
            else:
                problems.append(f"{parts}: no such image, but {path} lists it")
    if others := set(below.values()) - set(found.values()):
        notes.append(f"{folder}: {len(others)} images are not in {path}; they are skipped")
    return found


def read_images(path: str | Path) -> dict[str, coco_json.Image]:
    """The entry of each image_id; "images" is all that is read, as in `read_sizes`."""
    path, problems = Path(os.path.expanduser(path)), []
    data = load(path, problems)
    raise_all(problems, path)
    listed = coco_json.read_images(data, path, problems)
    raise_all(problems, path)
    return listed
