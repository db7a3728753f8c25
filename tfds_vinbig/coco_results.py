"""Detections in COCO's results form, out and in."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from jaxdet import InputError
from jaxdet.data import images
from jaxdet.ops.boxes import BoxTable, iou
from tfds_vinbig.coco_boxes import box_of, check_mask_size, fit_as_corners, mask_size
from tfds_vinbig.coco_json import BY_NUMBER, Ids
from tfds_vinbig.json_lists import load_detections, parse_id, parse_number, parse_whole, show
from tfds_vinbig.records import PIXEL, Annotations, Tally, class_name_of, raise_all
from tfds_vinbig.submission import NO_FINDING_BOX, to_table

ENOUGH = 2000  # detections, to tell which images they are of
LEFT_OUT = "detections are of a category that is left out, and not counted"
BY_NAME = "detections have a category_id that is not that of their category_name, which counts"


def to_json(
    ids: list[str],
    table: BoxTable,
    class_ids: tuple[int, ...],
    image_ids: dict[str, Hashable] | None = None,
    class_names: Sequence[str] | None = None,
) -> str:
    """Detections in COCO's results form, a line each; `table.image` counts the ids.

    `class_ids` has the category of each label; rows of the last, "No finding", are left out, since
    COCO knows no such box. `image_ids` are COCO's (see `coco.read_image_ids`); an image without one
    goes by its own id. With `class_names` each row says its class by name too (`category_name`),
    as ids mean something in one annotation file alone.
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
        if class_names is not None:
            row["category_name"] = class_names[label]
        lines.append(json.dumps(row))
    return "[" + ",\n".join(lines) + "]\n"


def read_detections(path: str | Path, annotations: Annotations) -> tuple[list[str], BoxTable]:
    """Detections in COCO's results form on the images of `annotations`: their ids, and the table.

    Where `annotations` has splits, on the images of those that the file has a detection in. An
    image is named by its id in the annotation file, or by its file with or without a suffix; a
    class by its `category_name` where there is one, else by its id. Every image gets a row of
    "No finding" with the score 1 - its best score, unless the file has one of that category.

    Raises:
        InputError: with every problem of the file, each with the entry; and where its ids are the
            numbers in the names of other files.
    """
    path, problems, tally = Path(os.path.expanduser(path)), [], Tally()
    images_of = _Images(annotations)
    labels = {class_id: label for label, class_id in enumerate(annotations.class_ids)}
    named = {name: label for label, name in enumerate(annotations.class_names)}
    normal, at, rows, strange = len(annotations.class_names), [], [], 0
    entries = load_detections(path, problems)
    for place, entry in entries:
        try:
            position, by_number = images_of.find(entry.get("image_id"))
            strange += position is None
            if position is None:
                raise InputError(
                    f"image_id {show(entry.get('image_id'))} is not among the annotated images"
                )
            number, name = parse_whole(entry.get("category_id")), entry.get("category_name")
            label = labels.get(number)
            if isinstance(name, str):
                same = named.get(class_name_of(name.strip()))
                if same is None and label != normal and number not in annotations.left_out:
                    raise InputError(
                        f"category_name {show(name)} is no category of the annotations"
                    )
                if same is not None and same != label:
                    tally.add(BY_NAME, place)
                    label = same
            if label is None and number in annotations.left_out:
                tally.add(LEFT_OUT, place)
                continue
            if label is None:
                raise InputError(
                    f"category_id {show(entry.get('category_id'))} is unknown; known are "
                    f"{', '.join(map(str, labels))}"
                )
            score = parse_number(entry.get("score"))
            if math.isnan(score):
                raise InputError(f"score {show(entry.get('score'))} is not a finite number")
            box = NO_FINDING_BOX if label == normal else box_of(entry)
            if label != normal and (size := mask_size(entry)):
                check_mask_size(size, *annotations.sizes.setdefault(position, (size, place)))
        except InputError as error:
            problems.append(f"{place}: {error}")
            continue
        if by_number:
            tally.add(BY_NUMBER, place)
        at.append(position)
        rows.append((label, score, *box))
    table = to_table(at, rows)
    written = [entry for _, entry in entries]
    if hint := (
        _as_corners(table, annotations, normal)
        or _numbers_of_files(written, table, annotations, strange)
    ):
        raise InputError(f"{path}: {hint}")
    raise_all(problems, path)
    annotations.notes.extend(tally.notes(path))

    names = [annotations.ids[position] for position in at]
    known = annotations.of_splits_with(names or annotations.ids).ids
    place_of = {name: i for i, name in enumerate(known)}
    image = [place_of[name] for name in names]
    best = [0.0] * len(known)
    for position, (label, score, *_) in zip(image, rows, strict=True):
        best[position] = max(best[position], score) if label != normal else best[position]
    said = {position for position, row in zip(image, rows, strict=True) if row[0] == normal}
    for position in range(len(known)):
        if position not in said:
            image.append(position)
            rows.append((normal, 1 - best[position], *NO_FINDING_BOX))
    return list(known), to_table(image, rows)


class _Images:
    """The position of an image by COCO's id, by image_id, or by its file."""

    def __init__(self, annotations: Annotations):
        numbers = annotations.image_ids
        # In a Kaggle file 12 is a name.
        self._ids = Ids({name: i for i, name in enumerate(numbers or annotations.ids)})
        self._known = {name: i for i, name in enumerate(annotations.ids)}
        self._as_text = numbers is None
        # As YOLO names them: the file without its folders, where that says which is meant.
        last = [name.rpartition("__")[2] for name in annotations.ids]
        count = Counter(last)
        self._by_last = {name: i for i, name in enumerate(last) if count[name] == 1}

    def find(self, image_id: Any) -> tuple[int | None, bool]:
        """The position, or None, and whether it is by number where the file has text, or so."""
        key = parse_id(image_id)
        position, by_number = self._ids.find(key)
        if position is not None and not by_number:
            return position, False
        if isinstance(key, str):
            name = images.composed(key)
            path = PurePosixPath(name)
            stem = path.stem if path.suffix.lower() in images.SUFFIXES else name
            names = (name, images.path_id(name) if path.name else name, stem)
            for table in (self._known, self._by_last):
                for named in names:
                    if named in table:
                        return table[named], False
        return position, by_number and not self._as_text


def _as_corners(table: BoxTable, annotations: Annotations, normal: int) -> str | None:
    """What to say where boxes leave their images, and all would fit as corners."""
    known = [i for i, label in enumerate(table.labels) if label != normal]
    known = [i for i in known if table.image[i] in annotations.sizes]
    if not known:
        return None
    sizes = np.array([annotations.sizes[int(table.image[i])][0] for i in known], np.float64)
    boxes = table.boxes[known]
    if (boxes[:, 2:] <= sizes[:, ::-1] + PIXEL).all() or not fit_as_corners(boxes, sizes):
        return None
    return (
        "boxes leave their images, and all of the file fit as x_min, y_min, x_max, y_max: if they "
        "are that, write x, y, width, height"
    )


def _numbers_of_files(
    entries: list[dict], table: BoxTable, annotations: Annotations, strange: int
) -> str | None:
    """What to say where a file names images by the numbers in the names of their files, as YOLO
    writes results, and its boxes are on those images and not on the ones that have these ids.

    `table` has the detections whose image is known; so many are of a `strange` one.
    """
    if annotations.image_ids is None or not entries:
        return None
    ends = [re.findall("[0-9]+", name)[-1:] for name in annotations.ids]
    numbers = [int(end[0]) if end else None for end in ends]
    count = Counter(numbers)
    by_file = {n: i for i, n in enumerate(numbers) if n is not None and count[n] == 1}
    said = [parse_id(entry.get("image_id")) for entry in entries]
    keys = [int(key) if isinstance(key, str) and key.isdecimal() else key for key in said]
    if not all(key in by_file for key in keys):
        return None
    if not strange and [by_file[key] for key in keys] == table.image.tolist():
        return None  # they are the ids too
    files, boxes = [], []
    for key, entry in zip(keys[:ENOUGH], entries, strict=False):
        try:
            boxes.append(box_of(entry))
        except InputError:
            continue
        files.append(by_file[key])
    here = _hits(table.image[:ENOUGH], table.boxes, annotations)
    there = _hits(np.array(files, np.int64), np.reshape(boxes, (-1, 4)), annotations)
    # A few may fit by chance. Where no id is an image's, none needs to.
    fit = there > 4 * here and (there > 3 or 2 * there > len(boxes))
    if not fit and strange < len(entries):
        return None
    return (
        f"image_id {show(said[0])} and the others are the numbers in the file_names of the "
        f"annotations, not their ids: {there} of {len(boxes)} boxes overlap an annotation in the "
        f"images of those files by half, {here} in the images with these ids; write the ids"
    )


def _hits(image: np.ndarray, boxes: np.ndarray, annotations: Annotations) -> int:
    """How many boxes overlap an annotation of their image by an IoU of 0.5, whatever its class."""
    found = annotations.labels < len(annotations.class_names)
    by_image = {}
    for position, box in zip(annotations.image[found], annotations.boxes[found], strict=True):
        by_image.setdefault(int(position), []).append(box)
    return sum(
        bool((iou(box[None], np.array(by_image[int(i)])) > 0.5).any())
        for i, box in zip(image, boxes, strict=False)
        if int(i) in by_image
    )
