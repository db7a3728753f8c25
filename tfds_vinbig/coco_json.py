"""The lists of a COCO annotation file: images, categories, and annotations as rows."""

import math
import re
from collections.abc import Hashable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from jaxdet import InputError
from jaxdet.data import images
from tfds_vinbig import coco_partial
from tfds_vinbig.coco_boxes import (
    Box,
    box_of,
    check_mask_size,
    is_crowd,
    is_of_mask,
    mask_size,
)
from tfds_vinbig.json_lists import list_of, load, parse_id, parse_whole, show
from tfds_vinbig.records import (
    LARGEST,
    NO_FINDING,
    Row,
    Size,
    Tally,
    check_id,
    class_name_of,
    drop_repeated,
    note_alike,
    note_contradictions,
    parse_reader,
    raise_all,
    ranked,
)

READER = "coco"  # who drew the boxes that name no reader, and saw nothing in the images without

# Of what is said of entries.
BY_NUMBER = "image_ids are the images' but for being text or a number, and are taken for them"
FROM_MASKS = "annotations have no bbox: theirs is the box of their segmentation"
LOST_CROWDS = "crowds say neither a class nor a region that can be read, and count for nothing"


class Image(NamedTuple):
    """An entry of "images": its id, its file, and the size of the original in pixels, if it is
    there."""

    number: Hashable
    file_name: str
    size: tuple[int, int] | None


class Ids:
    """Something of each image by its id: as written, else by its number ("1" for 1, 1 for "01").

    Two texts are one id only where they are the same but for their form in Unicode: "1" and "01"
    are two.
    """

    def __init__(self, values: Mapping[Hashable, Any]):
        self._values = {composed_id(key): value for key, value in values.items()}
        self._by_number = {}
        for key in self._values:
            self._by_number.setdefault(_number(key), []).append(key)

    def find(self, key: Hashable) -> tuple[Any, bool]:
        """What there is, or None, and whether it was found by number alone.

        Raises:
            InputError: without the place, for a number that several ids have.
        """
        key = composed_id(key)
        if key in self._values:
            return self._values[key], False
        number = _number(key)
        alike = [
            other
            for other in (() if number is None else self._by_number.get(number, ()))
            if type(other) is not type(key)
        ]
        if len(alike) > 1:
            shown = " or ".join(map(show, alike))
            raise InputError(f"image_id {show(key)} may be {shown}: write it as the image has it")
        return (self._values[alike[0]], True) if alike else (None, False)


def composed_id(key: Hashable) -> Hashable:
    """An id in the form in which ids are compared."""
    return images.composed(key) if isinstance(key, str) else key


def _number(key: Hashable) -> int | None:
    if isinstance(key, str):
        return int(key) if re.fullmatch("[0-9]{1,18}", key, re.ASCII) else None
    return key


class Instances(NamedTuple):
    """A whole file.

    Attributes:
        images: by image_id.
        class_names, class_ids: as `Folder` has them.
        rows: by place.
        crowds: regions, as rows.
        left_out: ids of categories.
        not_exhaustive: of an image the classes, by their labels, of which there may be more than is
            boxed.
        with_absent: images that list what is not there, see `coco_partial.with_absent`.
        masks: (height, width) that run lengths have, by place, of the images without a size.
    """

    images: dict[str, Image]
    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    rows: dict[str, Row]
    crowds: list[Row]
    left_out: frozenset[int]
    not_exhaustive: dict[str, tuple[int, ...]]
    with_absent: frozenset[str]
    masks: dict[str, dict[str, Size]]


def read(path: Path, notes: list[str]) -> Instances:
    """All lists of a file.

    Raises:
        InputError: with every problem of the file, each with the entry.
    """
    problems = []
    data = load(path, problems)
    raise_all(problems, path)
    listed = read_images(data, path, problems)
    categories, left_out = read_categories(data, path, problems, notes)
    raise_all(problems, path)  # annotations refer to these
    left_out = frozenset(left_out)
    everything = data, path, listed, categories, left_out
    rows, crowds, partial, with_absent, masks = _read_rows(*everything, problems, notes)
    raise_all(problems, path)
    if partial:
        notes.append(
            f"{path}: {sum(map(len, partial.values()))} pairs of image and class may have more "
            f"than is boxed, in {len(partial)} images"
        )
    classes = ranked(categories)
    note_alike(classes[0], path, notes)
    return Instances(listed, *classes, rows, crowds, left_out, partial, with_absent, masks)


def read_categories(
    data: Any, path: Path, problems: list[str], notes: list[str]
) -> tuple[dict[int, str], dict[int, str]]:
    """The names of the categories by their ids, and of those that are left out: headings of the
    others, and second ids of a name, where they have no annotation."""
    annotations = data.get("annotations") if isinstance(data, dict) else None
    used = {
        parse_whole(entry.get("category_id"))
        for entry in (annotations if isinstance(annotations, list) else ())
        if isinstance(entry, dict)
    }
    entries = list_of(data, path, "categories", problems)
    headings = _headings([entry for _, entry in entries])
    categories, by_name, left_out = {}, {}, {}

    def order(item):
        """Of two of one name the one that has annotations is meant, else that which is no heading:
        Roboflow's first has id 0, and is below "none"."""
        number, name = _number_and_name(item[1])
        return number not in used, headings.get((number, name), 0), number == 0

    for place, entry in sorted(entries, key=order):
        number, name = _number_and_name(entry)
        if number is None:
            problems.append(f"{place}: id {show(entry.get('id'))} is not a whole number from 0 on")
        elif not (name and name.isprintable()):
            problems.append(f"{place}: name {show(entry.get('name'))} is no name")
        elif number in categories:
            problems.append(f"{place}: id {number} is there twice")
        elif (
            name != NO_FINDING
            and number not in used
            and (name in by_name or (used and (number, name) in headings))
        ):
            left_out[number] = name
        elif name in by_name:
            problems.append(f"{place}: name {name!r} is there twice, with id {by_name[name]} too")
        else:
            categories[number], by_name[name] = name, number
    if left_out:
        shown = ", ".join(f"{number} ({name})" for number, name in left_out.items())
        notes.append(
            f"{path}: category {shown} has no annotation, and is a heading or the "
            "name of another: left out"
        )
    if not set(categories.values()) - {NO_FINDING} and not problems:
        problems.append(f"{path}: categories names no class")
    return dict(sorted(categories.items())), left_out


def _text(value: Any) -> str:
    return class_name_of(value.strip()) if isinstance(value, str) else ""


def _number_and_name(entry: dict) -> tuple[int | None, str]:
    return parse_whole(entry.get("id")), _text(entry.get("name"))


def _headings(entries: list[dict]) -> dict[tuple[int | None, str], int]:
    """(id, name) of categories that look like the name of the others, as Roboflow writes one: its
    own supercategory (1), as a class may be too; or, more surely (2), called "none", or below
    "none" and with id 0, or the supercategory of others."""
    above = {_text(entry.get("supercategory")) for entry in entries}
    found = {}
    for entry in entries:
        number, name = _number_and_name(entry)
        parent = _text(entry.get("supercategory"))
        of_none = parent.lower() == "none" and (number == 0 or name in above)
        if name.lower() == "none" or (name and of_none):
            found[number, name] = 2
        elif name and name == parent:
            found[number, name] = 1
    return found


def read_images(data: Any, path: Path, problems: list[str]) -> dict[str, Image]:
    """The images by image_id, in the order of the file."""
    listed, numbers = {}, set()
    entries = list_of(data, path, "images", problems)
    for place, entry in entries:
        try:
            number, file_name = parse_id(entry.get("id")), entry.get("file_name")
            if number is None:
                raise InputError(f"id {show(entry.get('id'))} is not a whole number, nor a name")
            if composed_id(number) in numbers:
                raise InputError(f"id {show(number)} is there twice")
            numbers.add(composed_id(number))
            image_id = image_id_of(file_name)
            if image_id in listed:
                first = listed[image_id].file_name
                raise InputError(
                    f"file_name {show(file_name)} is there twice, see {show(first)} (both would be "
                    f"image {image_id})"
                )
            listed[image_id] = Image(number, file_name, _size(entry))
        except InputError as error:
            problems.append(f"{place}: {error}")
    if not entries and not problems:
        problems.append(f"{path}: images has no image")
    return listed


def _size(entry: dict) -> tuple[int, int] | None:
    """(height, width), or None where neither is there."""
    given = entry.get("height"), entry.get("width")
    if given == (None, None):
        return None
    size = tuple(map(parse_whole, given))
    if not all(side and side <= LARGEST for side in size):
        raise InputError(
            f"height {show(given[0])} and width {show(given[1])} are no size in pixels"
        )
    return size


def parts_of(file_name: str) -> list[str]:
    """The parts of a path, with whichever separator; a part "." says nothing."""
    first, *rest = re.split(r"[/\\]", file_name)
    return [first, *(part for part in rest if part not in ("", "."))]


def image_id_of(file_name: Any) -> str:
    """The image_id of a file, see `images.path_id`; a path must stay below its folder.

    Raises:
        InputError: without the place, which the caller knows.
    """
    if not isinstance(file_name, str) or not file_name:
        raise InputError(f"file_name {show(file_name)} is not the name of a file")
    try:
        if PureWindowsPath(file_name).drive:
            raise InputError("it begins with the letter of a disk")
        parts = parts_of(file_name)
        parts = parts[1:] if parts[0] == "." else parts
        for part in (*parts, images.path_id("/".join(parts)) if any(parts) else ""):
            check_id(part)
    except InputError as error:
        raise InputError(
            f"file_name {show(file_name)} is not the name of a file below --images"
        ) from error
    return images.path_id(file_name)


def _read_rows(
    data: Any,
    path: Path,
    listed: dict[str, Image],
    categories: dict[int, str],
    left_out: frozenset[int],
    problems: list[str],
    notes: list[str],
) -> tuple[dict[str, Row], list[Row], dict[str, tuple[int, ...]], frozenset[str], dict[str, dict]]:
    """The annotations by place, with a row of "No finding" for each image that has none and no
    class that may be there; and of `Instances` crowds, not_exhaustive, with_absent and masks."""
    ids = Ids({image.number: name for name, image in listed.items()})
    names, class_ids = ranked(categories)
    labels = {i: label for label, i in enumerate(class_ids) if i in categories}
    normal, nowhere = len(names), [math.nan] * 4
    rows, crowds, annotated, tally, regions = {}, 0, set(), Tally(), []
    crowded, masks = set(), {}
    for place, entry in list_of(data, path, "annotations", problems):
        try:
            image_id, by_number = ids.find(parse_id(entry.get("image_id")))
            if image_id is None:
                raise InputError(f"image_id {show(entry.get('image_id'))} is in no image")
            if by_number:
                tally.add(BY_NUMBER, place)
            annotated.add(image_id)
            label = labels.get(parse_whole(entry.get("category_id")))
            if is_crowd(entry):
                crowds += 1
                crowded.add((image_id, label))
                region = _region(entry, image_id, label, place, listed, masks)
                if region is None:
                    tally.add(LOST_CROWDS, place)
                else:
                    regions.append(region)
                continue
            if label is None:
                raise InputError(f"category_id {show(entry.get('category_id'))} is in no category")
            box = nowhere if label == normal else _box(entry, image_id, place, listed, masks)
            if label != normal and is_of_mask(entry):
                tally.add(FROM_MASKS, place)
            rows[place] = Row(image_id, label, _reader(entry), *box)
        except InputError as error:
            problems.append(f"{place}: {error}")
    if crowds:
        only = len(annotated - {row.image_id for row in rows.values()})
        notes.append(
            f"{path}: {crowds} crowds (iscrowd) are left out; {only} images have nothing else, and "
            "count neither as normal nor as having a finding"
        )
    if not annotated:
        notes.append(f"{path}: has no annotation, so that all {len(listed)} images are normal")
    notes += tally.notes(path)
    classes = {i: label for i, label in labels.items() if label != normal}
    passed_over = left_out | (labels.keys() - classes.keys())
    entries = [*zip(listed, list_of(data, path, "images", problems), strict=True)]
    partial = coco_partial.read(entries, classes, passed_over, rows, crowded, problems)
    rows = drop_repeated(rows, normal, path, notes)
    note_contradictions(rows.values(), normal, path, notes)
    for name in listed:
        if name not in annotated and name not in partial:
            rows[f"{path}: image {name}"] = Row(name, normal, READER, *nowhere)
    return rows, regions, partial, coco_partial.with_absent(entries), masks


def _box(
    entry: dict, image_id: str, place: str, listed: dict[str, Image], masks: dict[str, dict]
) -> Box:
    """The box of an annotation. Run lengths of an image without a size are for those to compare who
    know it, see `Instances.masks`."""
    box, size = box_of(entry), mask_size(entry)
    if size is not None and listed[image_id].size is None:
        masks.setdefault(image_id, {})[place] = size
    elif size is not None:
        check_mask_size(size, listed[image_id].size, "its image")
    return box


def _region(entry: dict, image_id: str, label: int | None, *of_box) -> Row | None:
    """Where a crowd is; None where it does not say. The last arguments are `_box`'s."""
    if label is None or (not entry.get("bbox") and not entry.get("segmentation")):
        return None
    try:
        return Row(image_id, label, READER, *_box(entry, image_id, *of_box))
    except InputError:
        return None


def _reader(entry: dict) -> str:
    reader = READER if entry.get("rad_id") is None else parse_id(entry["rad_id"])
    if reader is None:
        raise InputError(f"rad_id {show(entry['rad_id'])} is no name")
    return parse_reader(str(reader))
