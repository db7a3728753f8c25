"""Submissions and COCO results read without annotations, of whatever images they name."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdet import InputError
from jaxdet.ops.boxes import BoxTable
from tfds_vinbig import coco, kaggle, submission
from tfds_vinbig.coco_json import BY_NUMBER, Ids, composed_id
from tfds_vinbig.json_lists import load_detections, parse_id, parse_whole
from tfds_vinbig.records import (
    SMALLEST,
    Annotations,
    class_name_of,
    flatten,
    parse_image_id,
    raise_all,
)
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
    as_json = annotations.suffix.lower() == ".json"
    truth = (coco if as_json else kaggle).read_annotations(annotations)

    def read(path):
        if path.suffix.lower() == ".json":
            return Detected(*coco.read_detections(path, truth))
        return Detected(*submission.read(path, truth.class_ids))

    found, other = read(submission_path), read(against) if against else None
    for path, detected in ((submission_path, found), (against, other)):
        if detected:
            _check_units(path, detected.table, annotations, truth)
    if other and set(other.ids) != set(found.ids):
        raise InputError(f"--against: {against} is of other images than {submission_path}")
    some = truth.of_splits_with(found.ids)
    if not set(found.ids) & set(some.ids):
        raise InputError(f"{submission_path} and {annotations} have no image in common")
    return some, *found, other


def _check_units(path: Path, table: BoxTable, annotated: Path, truth: Annotations) -> None:
    """Refuse detections in shares of the image for annotations in pixels, or the other way round.

    Raises:
        InputError: naming the file in shares.
    """
    normal = len(truth.class_names)
    sides = []
    for labels, boxes in ((table.labels, table.boxes), (truth.labels, truth.boxes)):
        found = boxes[labels != normal]
        sides.append(abs(found).max() if len(found) else math.nan)
    names = (path, annotated) if sides[0] < sides[1] else (annotated, path)
    if min(sides) < SMALLEST and max(sides) > 4 * SMALLEST:
        raise InputError(
            f"{names[0]}: all boxes are within {SMALLEST} pixels of the corner of their image, "
            f"those of {names[1]} are not: they look like shares of the image (from 0 to 1): "
            "multiply them by its width and height"
        )


def _check_scores(paths: Sequence[Path], tables: Sequence[BoxTable], nothing: int | None) -> None:
    """Refuse scores of several scales, such as percent beside shares.

    Args:
        nothing: the label whose scores are not the file's.

    Raises:
        InputError: naming two files that differ.
    """
    scores = [table.scores[table.labels != nothing] for table in tables]
    best = {path: found.max() for path, found in zip(paths, scores, strict=True) if len(found)}
    low, high = (pick(best, key=best.get, default=None) for pick in (min, max))
    if best and best[low] <= 1 and best[high] > 1.01:
        raise InputError(
            f"{high}: scores up to {best[high]:.4g}, but those of {low} are {best[low]:.4g} at "
            "most: are they percent? Write all of them from 0 to 1"
        )


def to_text(
    suffix: str,
    ids: Sequence[str],
    table: BoxTable,
    class_ids: Sequence[int],
    image_ids: Mapping[str, int | str],
    class_names: Sequence[str | None],
) -> str:
    """Detections as a submission (".csv") or as COCO's results (".json"), there with the names of
    the classes where all have one."""
    if suffix.lower() == ".csv":
        return submission.to_csv(ids, table, class_ids)
    names = None if None in class_names[:-1] else class_names
    return coco.to_json(ids, table, class_ids, image_ids, names)


class Several(NamedTuple):
    """What several files say of the same images.

    Attributes:
        ids: of the images, in the order of the first file.
        tables: of each file; `image` counts `ids`.
        class_ids: what the labels of the tables are called in the files, and `NONE`.
        class_names: of each label, None where no file says it; a submission says none.
        image_ids: what COCO calls each image; empty for submissions.
        notes: sentences for whoever asked for it.
    """

    ids: list[str]
    tables: list[BoxTable]
    class_ids: tuple[int, ...]
    class_names: list[str | None]
    image_ids: dict[str, int | str]
    notes: list[str]


def read_all(paths: Sequence[Path], known: Sequence[int] | None = None) -> Several:
    """Submissions, or COCO results, of the same images.

    A class of COCO results goes by its `category_name` where they have one, and has the first id
    that it is called by; else by its id.

    Args:
        paths: all .csv, or all .json.
        known: the class ids that there are, if that is known.

    Raises:
        InputError: for a file that is no such table or list, submissions of different images, a
            class that is not `known`, or one id of two names.
    """
    as_json = paths[0].suffix.lower() == ".json"
    named = [(_named_in_json if as_json else _named_in_csv)(path) for path in paths]
    for path, (_, classes) in zip(paths, named, strict=True):
        nameless = {number for number, name in classes if name is None}
        strange = sorted(nameless - set(known)) if known else []
        if strange:
            raise InputError(f"{path}: has the class {strange[0]}, which the run does not have")
    names_of = _names_of_classes(paths, [classes for _, classes in named])
    class_ids, notes = tuple(sorted(names_of)), []
    called = _called(paths, [names for names, _ in named])
    image_ids = {str(composed_id(name)): name for name in called.values()}
    ids = tuple(image_ids)
    of_files = []
    for path, (names, _) in zip(paths, named, strict=True):
        said = [called[composed_id(name)] for name in names]
        of_files.append({str(composed_id(name)) for name in said})
        other = [n for n, first in zip(names, said, strict=True) if type(n) is not type(first)]
        if other:
            notes.append(
                f"{path}: {len(other)} image_ids, {other[0]!r} first, are numbers where another "
                "file has text, or the other way round: one image, called as the first file has it"
            )
    first = of_files[0]
    for path, names in zip(paths[1:], of_files[1:], strict=True):
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
            class_names=tuple(names_of[number] for number in class_ids),
            class_ids=(*class_ids, NONE),
            image_ids=tuple(image_ids.values()),
            notes=[],
            **flatten([], ids),
        )
        tables = [coco.read_detections(path, everything)[1] for path in paths]
        _check_scores(paths, tables, len(everything.class_names))
        notes += [note for note in everything.notes if BY_NUMBER not in note]  # said above
        called = [*everything.class_names, None]
        return Several(list(ids), tables, everything.class_ids, called, image_ids, notes)
    place, tables = {name: i for i, name in enumerate(ids)}, []
    for path in paths:
        own, table = submission.read(path, class_ids)
        at = np.array([place[name] for name in own], np.int64)
        tables.append(table._replace(image=at[table.image]))
    _check_scores(paths, tables, None)
    called = [None] * (len(class_ids) + 1)
    return Several(list(ids), tables, (*class_ids, NONE), called, {}, notes)


def _called(
    paths: Sequence[Path], names: Sequence[Sequence[int | str]]
) -> dict[int | str, int | str]:
    """What the first file that has an image calls it, by every id (composed) that files have.

    Ids are compared as written, and a number in one file is the text of that number in another
    (see `Ids`) where no file has both as two images: 1 and "01".

    Raises:
        InputError: for a number that may be several texts.
    """
    composed = [{composed_id(name): name for name in of_file} for of_file in names]
    as_written, of = {}, {}
    for path, of_file in zip(paths, composed, strict=True):
        for key, name in of_file.items():
            as_written.setdefault(key, name)
            of.setdefault(key, path)
    texts = Ids({key: key for key in as_written if isinstance(key, str)})
    rank = {key: i for i, key in enumerate(as_written)}
    first = {}  # of two ids of one image that which comes first
    for key in as_written:
        try:
            text = None if isinstance(key, str) else texts.find(key)[0]
        except InputError as error:
            raise InputError(f"{of[key]}: {error}") from error
        is_two = text != str(key) and any({key, text} <= of_file.keys() for of_file in composed)
        if text is not None and not is_two:
            earlier, later = sorted((key, text), key=rank.get)
            first[later] = earlier
    return {key: as_written[first.get(key, key)] for key in as_written}


def _names_of_classes(
    paths: Sequence[Path], classes: Sequence[set[tuple[int, str | None]]]
) -> dict[int, str | None]:
    """The name of each class by the id that it has in the result; None where no file names it."""
    number_of, name_of, first = {}, {}, {}
    for path, pairs in zip(paths, classes, strict=True):
        for number, name in sorted(pairs, key=lambda pair: (pair[0], pair[1] or "")):
            if name is None:
                name_of.setdefault(number, None)
            elif name not in number_of:
                if name_of.get(number) is not None:
                    raise InputError(
                        f"{path}: category_id {number} is {name!r} here, and {name_of[number]!r} "
                        f"in {first[number]}: write all with the ids of one annotation file, as "
                        "--mode=predict does with --meta"
                    )
                number_of[name], name_of[number], first[number] = number, name, path
    return name_of


def _named_in_csv(path: Path) -> tuple[list[str], set[tuple[int, None]]]:
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
    return ids, {(int(number), None) for number in numbers if number.is_integer() and number >= 0}


def _named_in_json(path: Path) -> tuple[list[int | str], set[tuple[int, str | None]]]:
    """The images and classes of COCO results; the rest `coco.read_detections` says."""
    problems = []
    entries = load_detections(path, problems)
    raise_all(problems, path)
    ids = dict.fromkeys(parse_id(entry.get("image_id")) for _, entry in entries)
    classes = set()
    for _, entry in entries:
        number, name = parse_whole(entry.get("category_id")), entry.get("category_name")
        if number is not None:
            classes.add((number, class_name_of(name.strip()) if isinstance(name, str) else None))
    return [name for name in ids if name is not None], classes
