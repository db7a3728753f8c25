"""Several opinions of the same images made one: of looks at them, of detectors, of submissions."""

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxdet import InputError
from jaxdet.ops import fusion
from jaxdet.ops.boxes import BoxTable
from jaxdet.runs.workdir import Run, read_config


def fuse_tables(
    tables: Sequence[BoxTable],
    weights: Sequence[float | int] | None = None,
    method: str = "wbf@0.5",
    known: Sequence[Collection[int]] | None = None,
) -> BoxTable:
    """Tables of the same images as one, by weighted boxes fusion (Solovyev et al. 2021).

    A box counts with its score times the weight of its table. A fused one has the mean score, by
    weight, of those that joined it, times the weight of their tables among that of all which know
    the class: what one of three alone has found keeps a third of its score, however often it says
    it. This is `weighted_boxes_fusion` of ensemble-boxes with the `conf_type` "box_and_model_avg".
    A box that is the same in every table, as that of "No finding", comes out with the mean of its
    scores by weight. No score comes out higher than all that went in.

    Args:
        weights: of each table, above 0; 1 if left out.
        method: "wbf@IOU", or another of `fusion.fuse` that takes scores.
        known: of each table the labels that it could have; all of them if left out.

    Returns:
        The fused boxes by image, label and descending score; rows of score 0 or below are dropped.
    """
    weights = np.ones(len(tables)) if weights is None else np.asarray(weights, np.float64)
    weights = weights / weights.max()  # changes nothing, but no sum overflows
    source = np.repeat(np.arange(len(tables)), [len(table.image) for table in tables])
    rows = BoxTable(*map(np.concatenate, zip(*tables, strict=True)))
    shares = np.ones(len(source))
    for label in np.unique(rows.labels):
        knows = np.array([known is None or label in known[i] for i in range(len(tables))])
        mine = rows.labels == label
        shares[mine] = weights[source[mine]] / weights[knows].sum()
    kept = rows.scores * shares > 0
    image, labels, boxes = rows.image[kept], rows.labels[kept], rows.boxes[kept]
    return fusion.fuse(
        method, image, labels, source[kept], boxes, len(tables), rows.scores[kept], shares[kept]
    )


def find_files(named: Sequence[Path], output: Path) -> list[Path]:
    """The files to fuse into `output`: of a workdir, what it has predicted in that form.

    Raises:
        InputError: if there are none, or they have another form.
    """
    suffix = output.suffix.lower()
    if suffix not in (".csv", ".json"):
        raise InputError(f"--output: {output} ends neither in .csv (submission) nor .json (COCO)")
    own = "submission.csv" if suffix == ".csv" else "detections.json"
    files = [place / own if place.is_dir() else place for place in named]
    if not files or any(file.suffix.lower() != suffix for file in files):
        raise InputError(f"--submissions: needs workdirs, or {suffix} files as --output is")
    return files


def parse_weights(words: Sequence[str] | None, count: int) -> list[float]:
    """A weight for each of `count` submissions; 1 where none are given.

    Raises:
        InputError: for another count, or what is no number above 0.
    """
    try:
        weights = [1.0] * count if words is None else [float(word) for word in words]
    except ValueError:
        weights = []
    if len(weights) != count or not all(0 < weight < math.inf for weight in weights):
        raise InputError(f"--weights: needs {count} numbers above 0, one for each submission")
    return weights


def runs_beside(files: Sequence[Path]) -> tuple[list[Run | None], dict[int, str]]:
    """The run that each submission lies beside, and what they call each class, by its number.

    Raises:
        InputError: if one number has another name in another run.
    """
    runs, names, of = [], {}, {}
    for file in files:
        beside = (file.parent / "config.json").exists()
        run = read_config(file.parent)[1] if beside else None
        runs.append(run)
        called = zip(run.class_ids, [*run.class_names, "No finding"], strict=True) if run else ()
        for number, name in called:
            if names.setdefault(number, name) != name:
                raise InputError(
                    f"--submissions: the runs of {file} and {of[number]} have other classes: "
                    f"{number} is {name!r} and {names[number]!r}"
                )
            of.setdefault(number, file)
    return runs, names


def known_labels(
    files: Sequence[Path],
    runs: Sequence[Run | None],
    names: Mapping[int, str],
    tables: Sequence[BoxTable],
    class_ids: Sequence[int],
    class_names: Sequence[str | None],
) -> list[set[int]]:
    """The labels that each table could have: those of its run's classes, else those that it has.

    Prints a line for each class that some know, but not all, to standard error.

    Args:
        files, runs, names: see `runs_beside`.
        class_ids, class_names: of each label; a class with a name goes by that.
    """
    known = []
    for run, table in zip(runs, tables, strict=True):
        known.append(set(np.unique(table.labels).tolist()))
        for label, (number, name) in enumerate(zip(class_ids, class_names, strict=True)):
            if run and (number in run.class_ids if name is None else name in run.class_names):
                known[-1].add(label)
    for label, number in enumerate(class_ids):
        knowing = [str(file) for file, labels in zip(files, known, strict=True) if label in labels]
        if 0 < len(knowing) < len(files):
            called = class_names[label] or names.get(number)
            name = f"{number} ({called})" if called else number
            print(
                f"note: class {name} is known to {len(knowing)} of {len(files)} submissions alone, "
                f"which count for it: {', '.join(knowing)}",
                file=sys.stderr,
            )
    return known
