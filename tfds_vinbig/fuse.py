"""Readers' boxes fused to findings with scores, as COCO's JSON, for whoever trains elsewhere.

python -m tfds_vinbig.fuse --annotations=train.csv --meta=train_meta.csv --output=fused.json
python -m tfds_vinbig.fuse --annotations=instances.json --fusion=earl@0.4 --output=fused.json
"""

import argparse
import json
import os
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np

from jaxdet import InputError
from jaxdet.ops import fusion
from jaxdet.ops.clusters import Findings
from jaxdet.runs.workdir import write_atomically
from tfds_vinbig import coco, kaggle, vindr
from tfds_vinbig.__main__ import Parser
from tfds_vinbig.coco_json import Image
from tfds_vinbig.records import Annotations


def parse(arguments: list[str]) -> argparse.Namespace:
    """The flags.

    Raises:
        InputError: naming the flag that does not fit.
    """
    parser = Parser(
        prog="python -m tfds_vinbig.fuse",
        description="Fuse readers' boxes, and write them as COCO's JSON with a score each.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--annotations",
        required=True,
        metavar="FILE",
        help="every reader's boxes: Kaggle's or VinDr-CXR's table, or COCO's JSON",
    )
    parser.add_argument("--meta", metavar="CSV", help="sizes of the originals, beside a table")
    methods = ", ".join(map(fusion.describe, fusion.FUSIONS))
    parser.add_argument(
        "--fusion", default="skill@0.4", metavar="METHOD", help=f"{methods} (default %(default)s)"
    )
    parser.add_argument("--output", required=True, metavar="JSON", help="what is written")
    parser.add_argument("--readers", metavar="CSV", help="a table of what skill@ infers of readers")
    flags = parser.parse_args(arguments)
    fusion.parse(flags.fusion)
    return flags


def read(path: str | Path, meta: str | Path | None = None) -> tuple[Annotations, dict[str, Image]]:
    """Annotations, and an entry of "images" for each of them.

    Raises:
        InputError: for a file that is not as it should be.
    """
    path = Path(os.path.expanduser(path))
    if path.suffix == ".json":
        if meta is not None:
            raise InputError("argument --meta: goes with a table; a JSON file has sizes of its own")
        return coco.read_annotations(path), coco.read_images(path)
    annotations = kaggle.read_annotations(path)
    suffix = ".dicom" if vindr.is_table(path) else ".png"
    sizes = {} if meta is None else kaggle.read_sizes(meta)
    return annotations, {
        name: Image(number, name + suffix, sizes.get(name))
        for number, name in enumerate(annotations.ids)
    }


def fuse(annotations: Annotations, method: str) -> Findings:
    """The findings of a file; `image` counts its ids.

    Raises:
        InputError: where the method cannot be followed.
    """
    looked = {*zip(annotations.image, annotations.readers, strict=True)}
    most = np.bincount([image for image, _ in looked], minlength=1).max()
    columns = annotations.image, annotations.labels, annotations.readers, annotations.boxes
    return fusion.fuse_rows(method, *columns, len(annotations.class_names), max(int(most), 1))


def to_json(
    annotations: Annotations, findings: Findings, images: dict[str, Image], method: str
) -> str:
    """An annotation file in COCO's form ("instances"), with `score` beside each box, which is how
    surely it is a finding, and `weight` where the method says how much it is to count."""

    def entry(name: str) -> dict[str, Hashable]:
        number, file_name, size = images[name]
        height_width = {} if size is None else {"height": size[0], "width": size[1]}
        return {"id": number, "file_name": file_name, **height_width}

    entries = [entry(name) for name in annotations.ids]
    boxes = []
    for i, (image, label, box, score) in enumerate(zip(*findings.table, strict=True)):
        x1, y1, x2, y2 = map(float, box)
        weight = {} if findings.weights is None else {"weight": round(findings.weights[i], 6)}
        boxes.append(
            {
                "id": i + 1,
                "image_id": entries[image]["id"],
                "category_id": int(annotations.class_ids[label]),
                "bbox": [round(x, 2) for x in (x1, y1, x2 - x1, y2 - y1)],
                "area": round((x2 - x1) * (y2 - y1), 2),
                "iscrowd": 0,
                "score": round(float(score), 6),
                **weight,
            }
        )
    names = zip(annotations.class_ids, annotations.class_names, strict=False)
    content = {
        "info": {"description": f"Readers' boxes fused by {method}"},
        "categories": [{"id": int(number), "name": name} for number, name in names],
        "images": entries,
        "annotations": boxes,
    }
    return json.dumps(content) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Write what the flags ask for."""
    flags = parse(list(arguments))
    annotations, images = read(flags.annotations, flags.meta)
    for note in annotations.notes:
        print(f"note: {note}", file=sys.stderr)
    findings = fuse(annotations, flags.fusion)
    if flags.readers and findings.skills is None:
        raise InputError(f"argument --readers: {flags.fusion} infers nothing of readers")
    output = Path(os.path.expanduser(flags.output))
    write_atomically(output, to_json(annotations, findings, images, flags.fusion))
    if flags.readers:
        table = findings.skills.to_csv(annotations.class_names)
        write_atomically(Path(os.path.expanduser(flags.readers)), table)
    drawn = int((annotations.labels < len(annotations.class_names)).sum())
    print(f"{drawn} boxes, {len(findings.table.image)} findings by {flags.fusion}: {output}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(print(f"tfds_vinbig.fuse: {error}", file=sys.stderr) or 2)
