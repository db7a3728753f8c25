"""The Kaggle submission: detections out in original pixels, and a submission read back.

The other door of the box form: pixels of the model input become pixels of the original image.
"""

import csv
import io
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from jaxdet import InputError, checkpoint
from jaxdet.boxes import BoxTable
from jaxdet.inference import Detections
from tfds_vinbig.kaggle import NO_FINDING

# "No finding" is scored as a box, the same one in every image.
NO_FINDING_BOX = (0.0, 0.0, 1.0, 1.0)


def to_original(
    boxes: Float[np.ndarray, "*n 4"], sizes: Int[np.ndarray, "*n 2"], image_size: int
) -> Float[np.ndarray, "*n 4"]:
    """Boxes in pixels of the model input to pixels of originals of (height, width)."""
    height, width = sizes[..., 0], sizes[..., 1]
    return boxes * (np.stack([width, height, width, height], axis=-1) / image_size)


def to_table(detections: Detections, sizes: Int[np.ndarray, "n 2"], image_size: int) -> BoxTable:
    """Detections of n images as rows in original pixels, "No finding" among them."""
    image, slot = np.nonzero(detections.mask)
    boxes = to_original(detections.boxes[image, slot].astype(np.float64), sizes[image], image_size)
    images = np.arange(len(sizes))
    return BoxTable(
        image=np.concatenate([image, images]),
        labels=np.concatenate([detections.labels[image, slot], np.full(len(sizes), NO_FINDING)]),
        boxes=np.concatenate([boxes, np.tile(NO_FINDING_BOX, (len(sizes), 1))]),
        scores=np.concatenate([detections.scores[image, slot], detections.normal]).astype(
            np.float64
        ),
    )


def write(path: Path, ids: list[str], table: BoxTable) -> None:
    """Write `image_id,PredictionString`, a line for every id, in that order.

    `table.image` counts the ids. Scores have nine digits, which tell any two float32 apart:
    rounded, close ones would tie, and rank otherwise than in evaluation.json.
    """
    strings = [[] for _ in ids]
    for image, label, box, score in zip(
        table.image, table.labels, table.boxes, table.scores, strict=True
    ):
        corners = "0 0 1 1" if label == NO_FINDING else " ".join(f"{x:.2f}" for x in box)
        strings[image].append(f"{label} {score:.9g} {corners}")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "PredictionString"])
    writer.writerows((name, " ".join(parts)) for name, parts in zip(ids, strings, strict=True))
    checkpoint.write_atomically(path, text.getvalue())


def read(path: Path) -> tuple[list[str], BoxTable]:
    """The ids of a submission in its order, and its detections in the order they stand.

    Raises:
        InputError: for a missing file or column, an id that comes twice, or a PredictionString
            that is not groups of `class confidence x1 y1 x2 y2`.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    columns = [name.strip() for name in rows[0]] if rows else []
    if not {"image_id", "PredictionString"} <= set(columns):
        raise InputError(f"{path}: the first line must name image_id and PredictionString")
    id_column, string_column = columns.index("image_id"), columns.index("PredictionString")

    ids, image, labels, scores, boxes = {}, [], [], [], []
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        where = f"{path} line {line}"
        if len(row) != len(columns):
            raise InputError(f"{where}: {len(row)} fields instead of {len(columns)}")
        name = row[id_column].strip()
        if not name or name in ids:
            raise InputError(f"{where}: image_id {name!r} is {'there twice' if name else 'empty'}")
        ids[name] = len(ids)
        words = row[string_column].split()
        if len(words) % 6:
            raise InputError(f"{where}: PredictionString has {len(words)} words, not 6 a box")
        for i in range(0, len(words), 6):
            try:
                label = int(words[i])
                score, *box = map(float, words[i + 1 : i + 6])
            except ValueError as error:
                raise InputError(
                    f"{where}: box {i // 6 + 1} has a word that is no number"
                ) from error
            if not 0 <= label <= NO_FINDING:
                raise InputError(f"{where}: box {i // 6 + 1} has the unknown class {label}")
            if not all(map(math.isfinite, (score, *box))):
                raise InputError(f"{where}: box {i // 6 + 1} has a number that is not finite")
            if box[0] > box[2] or box[1] > box[3]:
                raise InputError(f"{where}: box {i // 6 + 1} is upside down: {words[i : i + 6]}")
            image.append(ids[name])
            labels.append(label)
            scores.append(score)
            boxes.append(box)
    return list(ids), BoxTable(
        image=np.array(image, np.int64),
        labels=np.array(labels, np.int64),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        scores=np.array(scores, np.float64),
    )
