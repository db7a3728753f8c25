"""Readers' boxes, fused, as an annotation file in COCO's form, for whoever trains elsewhere."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxdet import InputError
from jaxdet.ops.boxes import BoxTable
from tfds_vinbig import coco, kaggle, vindr
from tfds_vinbig.coco_boxes import fit_as_corners
from tfds_vinbig.coco_json import Image
from tfds_vinbig.coco_partial import PARTLY
from tfds_vinbig.records import PIXEL, Annotations, Row, check_units, raise_all


def skills_file(output: Path, given: Iterable[Path | None]) -> Path:
    """Where what is inferred of the readers is written: beside the output.

    Args:
        given: the files that are read.

    Raises:
        InputError: for another suffix than .json, and where a file that is read would be lost.
    """
    if output.suffix.lower() != ".json":
        raise InputError(f"--output: {output} does not end in .json")
    table = output.with_suffix(".readers.csv")
    read = {os.path.realpath(file) for file in given if file}
    for place in (output, table):
        if os.path.realpath(place) in read:
            raise InputError(f"--output: {place} is read, and would be lost: name another file")
    return table


def read(path: str | Path, meta: str | Path | None = None) -> tuple[Annotations, dict[str, Image]]:
    """A table's or a JSON file's annotations, and an entry of "images" for each of their images.

    Args:
        meta: the sizes of the originals, for a table. Its images get the suffix ".png", or
            ".dicom" if it is VinDr-CXR's.

    Raises:
        InputError: for a file that is not as it should be.
    """
    path = Path(os.path.expanduser(path))
    if path.suffix.lower() == ".json":
        if meta is not None:
            raise InputError(f"--meta: not with {path.name}, which has sizes of its own")
        annotations, images = coco.read_annotations(path), coco.read_images(path)
    else:
        annotations = _by_id(kaggle.read_annotations(path))
        suffix = ".dicom" if vindr.is_table(path) else ".png"
        sizes = {} if meta is None else kaggle.read_sizes(meta)
        missing = [name for name in annotations.ids if name not in sizes]
        if meta is not None and missing:
            raise InputError(
                f"{meta}: has no size of {len(missing)} images of {path}, {missing[0]} first: add "
                "them, or leave out --meta"
            )
        images = {
            name: Image(number, name + suffix, sizes.get(name))
            for number, name in enumerate(annotations.ids)
        }
    _check_boxes(annotations, images, path)
    return annotations, images


def _by_id(annotations: Annotations) -> Annotations:
    """The images of a table in the order of their ids, whatever that of the rows."""
    ids = sorted(annotations.ids)
    number = {name: i for i, name in enumerate(ids)}
    new = np.array([number[name] for name in annotations.ids], np.int64)
    return annotations._replace(ids=tuple(ids), image=new[annotations.image], splits=None)


def _check_boxes(annotations: Annotations, images: dict[str, Image], path: Path) -> None:
    """Refuse boxes in other units, and those that leave their image, where its size is known."""
    found, problems = annotations.labels < len(annotations.class_names), []
    boxes, names = annotations.boxes[found], [annotations.ids[i] for i in annotations.image[found]]
    rows = [Row(name, 0, "", *box) for name, box in zip(names, boxes, strict=True)]
    check_units(rows, path, problems)
    raise_all(problems, path)
    sizes = np.reshape([images[name].size or (np.nan, np.nan) for name in names], (-1, 2))
    beyond = np.maximum(-boxes[:, :2], boxes[:, 2:] - sizes[:, ::-1]).max(axis=1)
    outside = np.flatnonzero(beyond > PIXEL)
    if len(outside):
        first, (height, width) = rows[outside[0]], sizes[outside[0]]
        known = np.isfinite(sizes).all(axis=1)  # of JSON, images may be without
        corners = path.suffix.lower() == ".json" and fit_as_corners(boxes[known], sizes[known])
        hint = coco.AS_CORNERS if corners else ": mend them, or its size"
        raise InputError(
            f"{path}: {len(outside)} of {len(rows)} boxes leave their image, that of image "
            f"{first.image_id} from {first.x_min:g},{first.y_min:g} to "
            f"{first.x_max:g},{first.y_max:g} first, which is {width:g} wide and {height:g} "
            f"high{hint}"
        )


def to_json(
    annotations: Annotations,
    images: dict[str, Image],
    table: BoxTable,
    weights: Float[np.ndarray, "n"] | None,
    method: str,
) -> str:
    """Findings in COCO's form ("instances"), each with a `score` and, if there are, a `weight`.

    What the annotations leave open stays so: crowds, and classes of which not all is boxed.

    Args:
        annotations: what was fused, whose ids `table.image` counts.
        images: see `read`.
        weights: how much each finding is to count.
        method: by which it was fused, for people.
    """

    def entry(name: str) -> dict[str, Any]:
        number, file_name, size = images[name]
        height_width = {} if size is None else {"height": size[0], "width": size[1]}
        return {"id": number, "file_name": file_name, **height_width}

    entries = [entry(name) for name in annotations.ids]
    if annotations.exhaustive is not None:
        for image, label in np.argwhere(~annotations.exhaustive):
            partly = entries[image].setdefault(PARTLY, [])
            partly.append(int(annotations.class_ids[label]))
    boxes = []

    def add(image: int, label: int, box: Iterable[float], **others) -> None:
        x1, y1, x2, y2 = map(float, box)
        boxes.append(
            {
                "id": len(boxes) + 1,
                "image_id": entries[image]["id"],
                "category_id": int(annotations.class_ids[label]),
                "bbox": [round(x, 2) for x in (x1, y1, x2 - x1, y2 - y1)],
                "area": round((x2 - x1) * (y2 - y1), 2),
                **others,
            }
        )

    for i, (image, label, box, score) in enumerate(zip(*table, strict=True)):
        weight = {} if weights is None else {"weight": round(float(weights[i]), 6)}
        add(image, label, box, iscrowd=0, score=round(float(score), 6), **weight)
    for image, label, box in annotations.crowds:
        if label < len(annotations.class_names):
            add(image, label, box, iscrowd=1)
    names = zip(annotations.class_ids, annotations.class_names, strict=False)
    content = {
        "info": {"description": f"Readers' boxes fused by {method}"},
        "categories": [{"id": int(number), "name": name} for number, name in names],
        "images": entries,
        "annotations": boxes,
    }
    return json.dumps(content) + "\n"
