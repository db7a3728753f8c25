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
from tfds_vinbig.coco_json import Image
from tfds_vinbig.coco_partial import PARTLY
from tfds_vinbig.records import Annotations


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
        return coco.read_annotations(path), coco.read_images(path)
    annotations = kaggle.read_annotations(path)
    suffix = ".dicom" if vindr.is_table(path) else ".png"
    sizes = {} if meta is None else kaggle.read_sizes(meta)
    return annotations, {
        name: Image(number, name + suffix, sizes.get(name))
        for number, name in enumerate(annotations.ids)
    }


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
