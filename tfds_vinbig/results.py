"""Submissions and COCO results read without annotations, of whatever images they name."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdet import InputError
from jaxdet.ops.boxes import BoxTable
from tfds_vinbig import coco, kaggle, submission
from tfds_vinbig.json_lists import load_detections, parse_id, parse_whole
from tfds_vinbig.records import Annotations, flatten, parse_image_id, raise_all
from tfds_vinbig.tables import parse_number, read_table

# "No finding" is a class of submissions like any other. COCO's results have none: it is this label
# that `coco.read_detections` adds and `coco.to_json` drops.
NONE = -1


class Detected(NamedTuple):
    """What a file says of images; `image` of the table counts the ids."""

    ids: list[str]
    table: BoxTable


def read_scored(
    annotations: Path, submission_path: Path, against: Path | None
) -> tuple[Annotations, list[str], BoxTable, Detected | None]:
    """Annotations, a submission or COCO results of their images, and others of the same images.

    The annotations are those of the splits that the submission is of.

    Raises:
        InputError: for a file that is not as it should be, or of other images.
    """
    as_json = annotations.suffix == ".json"
    truth = (coco if as_json else kaggle).read_annotations(annotations)

    def read(path):
        if path.suffix == ".json":
            return Detected(*coco.read_detections(path, truth))
        return Detected(*submission.read(path, truth.class_ids))

    found, other = read(submission_path), read(against) if against else None
    if other and set(other.ids) != set(found.ids):
        raise InputError(f"--against: {against} is of other images than {submission_path}")
    some = truth.of_splits_with(found.ids)
    if not set(found.ids) & set(some.ids):
        raise InputError(f"{submission_path} and {annotations} have no image in common")
    return some, *found, other


def to_text(
    suffix: str,
    ids: Sequence[str],
    table: BoxTable,
    class_ids: Sequence[int],
    image_ids: Mapping[str, int | str],
) -> str:
    """Detections as a submission (".csv") or as COCO's results (".json")."""
    if suffix == ".csv":
        return submission.to_csv(ids, table, class_ids)
    return coco.to_json(ids, table, class_ids, image_ids)


def read_all(
    paths: Sequence[Path], known: Sequence[int] | None = None
) -> tuple[list[str], list[BoxTable], tuple[int, ...], dict[str, int | str]]:
    """Submissions, or COCO results, of the same images.

    Args:
        paths: all .csv, or all .json.
        known: the class ids that there are, if that is known.

    Returns:
        ids: of the images, in the order of the first submission.
        tables: of each file; `image` counts `ids`.
        class_ids: what the labels of the tables are called in the files, and `NONE`.
        image_ids: what COCO calls each image; empty for submissions.

    Raises:
        InputError: for a file that is no such table or list, submissions of different images, or a
            class that is not `known`.
    """
    as_json = paths[0].suffix == ".json"
    named = [(_named_in_json if as_json else _named_in_csv)(path) for path in paths]
    for path, (_, classes) in zip(paths, named, strict=True):
        strange = sorted(classes - set(known)) if known else []
        if strange:
            raise InputError(f"{path}: has the class {strange[0]}, which the run does not have")
    class_ids = tuple(sorted(set().union(*(classes for _, classes in named))))
    image_ids = {str(name): name for names, _ in named for name in names}
    ids = tuple(image_ids)
    first = set(map(str, named[0][0]))
    for path, (names, _) in zip(paths[1:], named[1:], strict=True):
        names = set(map(str, names))
        alone = sorted(first ^ names)
        if alone and not as_json:  # COCO does not name an image where nothing is found
            raise InputError(
                f"{path} is of other images than {paths[0]}: {alone[0]} is in one of the two "
                f"alone, and {len(alone) - 1} more"
            )
        if first and names and not first & names:
            raise InputError(f"{path} and {paths[0]} have no image in common")
    if as_json:
        everything = Annotations(
            class_names=tuple(map(str, class_ids)),
            class_ids=(*class_ids, NONE),
            image_ids=tuple(image_ids.values()),
            notes=[],
            **flatten([], ids),
        )
        tables = [coco.read_detections(path, everything, by_name=False)[1] for path in paths]
        return list(ids), tables, everything.class_ids, image_ids
    place, tables = {name: i for i, name in enumerate(ids)}, []
    for path in paths:
        own, table = submission.read(path, class_ids)
        at = np.array([place[name] for name in own], np.int64)
        tables.append(table._replace(image=at[table.image]))
    return list(ids), tables, (*class_ids, NONE), {}


def _named_in_csv(path: Path) -> tuple[list[str], set[int]]:
    """The images and classes of a submission; what is wrong with it `submission.read` says."""
    problems = []
    table = read_table(path, problems, ("image_id", "predictionstring"))
    raise_all(problems, path)
    strings = [fields[table.at["predictionstring"]].split() for _, fields in table.rows]
    numbers = {parse_number(word) for words in strings for word in words[::6]}
    ids = []
    for _, fields in table.rows:
        with contextlib.suppress(InputError):
            ids.append(parse_image_id(fields[table.at["image_id"]]))
    return ids, {int(number) for number in numbers if number.is_integer() and number >= 0}


def _named_in_json(path: Path) -> tuple[list[int | str], set[int]]:
    """The images and classes of COCO results; the rest `coco.read_detections` says."""
    problems = []
    entries = load_detections(path, problems)
    raise_all(problems, path)
    ids = dict.fromkeys(parse_id(entry.get("image_id")) for _, entry in entries)
    classes = {parse_whole(entry.get("category_id")) for _, entry in entries}
    return [name for name in ids if name is not None], classes - {None}
