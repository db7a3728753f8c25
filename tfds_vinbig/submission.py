"""The Kaggle submission: `image_id,PredictionString`, detections in pixels of the originals.

A PredictionString is `class confidence x1 y1 x2 y2` for each box, the class by its id in the file.
"""

import csv
import io
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from jaxdet import InputError
from jaxdet.ops.boxes import BoxTable
from tfds_vinbig.records import LARGEST, parse_image_id, raise_all
from tfds_vinbig.tables import parse_number, read_table

# "No finding" is scored as a box, the same one in every image.
NO_FINDING_BOX = (0.0, 0.0, 1.0, 1.0)


def to_csv(ids: list[str], table: BoxTable, class_ids: tuple[int, ...]) -> str:
    """The text of a submission, a line for every id, in that order.

    `table.image` counts the ids, `class_ids` has the file's number of each label; the last label is
    "No finding". Scores have nine digits, which tell any two float32 apart: rounded, close ones
    would tie, and rank otherwise than in evaluation.json.
    """
    strings = [[] for _ in ids]
    columns = (column.tolist() for column in table)  # Python's numbers are faster one by one
    for image, label, box, score in zip(*columns, strict=True):
        normal = label == len(class_ids) - 1
        corners = "0 0 1 1" if normal else " ".join(f"{x:.2f}" for x in box)
        strings[image].append(f"{class_ids[label]} {score:.9g} {corners}")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "PredictionString"])
    writer.writerows((name, " ".join(parts)) for name, parts in zip(ids, strings, strict=True))
    return text.getvalue()


def read(path: str | Path, class_ids: tuple[int, ...]) -> tuple[list[str], BoxTable]:
    """The ids of a submission in its order, and its detections in the order they stand.

    Raises:
        InputError: with every line that has an id that came before or a PredictionString that is
            not groups of six, and for what is no such table.
    """
    problems = []
    table = read_table(path, problems, ("image_id", "predictionstring"))
    labels = {class_id: label for label, class_id in enumerate(class_ids)}
    ids, image, rows = {}, [], [np.empty((0, 6))]
    for line, fields in table.rows if table else []:
        try:
            name = parse_image_id(fields[table.at["image_id"]])
            if name in ids:
                raise InputError(f"image_id {name} is there twice")
            ids[name] = len(ids)
            found = _parse_boxes(fields[table.at["predictionstring"]].split(), labels)
        except InputError as error:
            problems.append(f"{table.path} line {line}: {error}")
        else:
            image += [ids[name]] * len(found)
            rows.append(found)
    raise_all(problems, path)
    return list(ids), to_table(image, np.concatenate(rows))


def to_table(image: list[int], rows: ArrayLike) -> BoxTable:
    """Rows of (label, score, x1, y1, x2, y2) and the position of the image of each."""
    columns = np.array(rows, np.float64).reshape(-1, 6)
    return BoxTable(
        image=np.array(image, np.int64),
        labels=columns[:, 0].astype(np.int64),
        boxes=columns[:, 2:],
        scores=columns[:, 1],
    )


def _parse_boxes(words: list[str], labels: dict[int, int]) -> Float[np.ndarray, "boxes 6"]:
    """(label, score, x1, y1, x2, y2) of each group of six words."""
    if len(words) % 6:
        raise InputError(f"PredictionString has {len(words)} words, not 6 for each box")
    rows = np.array([*map(parse_number, words)]).reshape(-1, 6)
    numbers, _, x1, y1, x2, y2 = rows.T
    known = ", ".join(map(str, labels))
    wrong = {
        "is not six finite numbers": np.isnan(rows).any(axis=1),
        f"has the unknown class {{}}; known are {known}": ~np.isin(numbers, list(labels)),
        "is larger than any image": (abs(rows[:, 2:]) > LARGEST).any(axis=1),
        "is upside down: x1 <= x2 and y1 <= y2": (x1 > x2) | (y1 > y2),
    }
    if any(map(np.any, wrong.values())):
        i = np.flatnonzero(np.any([*wrong.values()], axis=0))[0]
        why = next(why for why, boxes in wrong.items() if boxes[i]).format(words[6 * i])
        group = " ".join(words[6 * i : 6 * i + 6])
        group = group if len(group) < 100 else group[:100] + "..."
        raise InputError(f"box {i + 1} ({group}) {why}")
    rows[:, 0] = [labels[number] for number in numbers.tolist()]
    return rows
