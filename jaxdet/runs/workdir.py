"""What a run keeps in its workdir, besides checkpoints: config.json, metrics.jsonl, whole files.

readers.csv is there where `data.fusion` infers what its readers can, see `ops.skill`; labels/ where
it asks the detector, see `training.relabel`.

All of it is written by process 0 alone, whole or not at all.
"""

import contextlib
import csv
import errno
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jaxdet import InputError
from jaxdet.ops.skill import Skills

READERS = "readers.csv"


class Run(NamedTuple):
    """What `config.json` says beyond the config: what the run is of."""

    class_names: list[str]
    class_ids: list[int]  # of the outside, "No finding" last
    dataset: str  # fingerprint of the split "train"
    training_images: str  # fingerprint of the ids that are trained on
    planned: list[str]  # the config's fields that were planned from the training boxes
    grey_levels: list[list[float]]  # of the training images, see `inversion.looks_inverted`
    began_from: str = ""  # where it was another run: its workdir and step


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file by renaming a finished one, so that no half file ever has the name.

    Raises:
        InputError: if it cannot be written there.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """As `write_atomically`; no file gets its name before all are finished."""
    if jax.process_index() != 0:
        return
    finished = {}
    try:
        for path in contents:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
        for path, content in contents.items():
            finished[path] = path.with_name(f".{path.name}.{os.getpid()}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with finished[path].open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                # Or a crash of the machine leaves the name, and nothing in it.
                os.fsync(file.fileno())
        for path, temporary in finished.items():
            temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    finally:
        for temporary in finished.values():
            with contextlib.suppress(OSError):
                temporary.unlink()


def write_config(workdir: Path, config: ConfigDict, run: Run) -> None:
    """Write `config.json`: the config's sections, and the section "run"."""
    content = {**config.to_dict(), "run": run._asdict()}
    write_atomically(workdir / "config.json", json.dumps(content, indent=2) + "\n")


def read_config(workdir: Path) -> tuple[dict[str, Any], Run]:
    """The sections of the config of the run in `workdir`, and what the run is of.

    Raises:
        InputError: if there is no such file, or it is not one that `write_config` wrote.
    """
    path = workdir / "config.json"
    try:
        content = json.loads(path.read_text())
        run = Run(**content.pop("run"))
        _check_run(run)
        return content, run
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; train first, or name a --workdir") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: not the record of a run of this version ({error!r:.100}): name another "
            "--workdir"
        ) from error


def _check_run(run: Run) -> None:
    """Raise ValueError unless the fields have the types that `Run` says."""

    def are(values, kind):
        whole = isinstance(values, list) and all(isinstance(value, kind) for value in values)
        return whole and not any(isinstance(value, bool) for value in values)

    fits = {
        "class_names": are(run.class_names, str) and run.class_names,
        "class_ids": are(run.class_ids, int) and len(run.class_ids) == len(run.class_names) + 1,
        "dataset": isinstance(run.dataset, str),
        "training_images": isinstance(run.training_images, str),
        "planned": are(run.planned, str),
        "grey_levels": are(run.grey_levels, list)
        and all(are(levels, int | float) for levels in run.grey_levels),
        "began_from": isinstance(run.began_from, str),
    }
    for name, fit in fits.items():
        if not fit:
            raise ValueError(f"run.{name} is {str(getattr(run, name))[:50]}")


def has_checkpoint(workdir: Path) -> bool:
    """Whether the run in `workdir` has a finished checkpoint to go on from."""
    return any(path.name.isdecimal() for path in (workdir / "checkpoints").glob("*"))


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; one that was not finished is none.

    Raises:
        InputError: for a line that is no object with a step.
    """
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [_parse_metrics(line, f"{path} line {i}") for i, line in enumerate(lines, 1)]


def _parse_metrics(line: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
        values["step"] + 0
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{where}: not what a run has logged: remove that line") from error
    return values


def write_skills(workdir: Path, skills: Skills | None, class_names: Sequence[str]) -> None:
    """Write `readers.csv`, where something was inferred."""
    if skills is not None:
        write_atomically(workdir / READERS, skills.to_csv(class_names))


def read_readers(workdir: Path) -> list[dict[str, str]]:
    """The rows of `readers.csv`, as they are written there; none where there is no such file."""
    path = workdir / READERS
    return list(csv.DictReader(path.open())) if path.exists() else []


def read_scores(workdir: Path, best_by: str) -> dict[int, float]:
    """The metric `best_by` of each step that was evaluated while training and has it."""
    lines = read_metrics(workdir)
    return {line["step"]: line[best_by] for line in lines if line.get(best_by) is not None}


def open_log(workdir: Path, step: int) -> Callable[[int, dict[str, Any]], None]:
    """A function log(step, values) that adds a line to `metrics.jsonl`, and to TensorBoard.

    What an earlier run logged after `step`, where this one goes on, is dropped from both.
    """
    if jax.process_index() != 0:
        return lambda step, values: None
    from tensorboardX import SummaryWriter

    for left in workdir.glob(".*"):  # by one that was killed, see `write_atomically`
        if re.fullmatch(r"\.\w+\.\w+\.\d+", left.name):
            left.unlink()
    path = workdir / "metrics.jsonl"
    kept = [line for line in read_metrics(workdir) if line["step"] <= step]
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
    events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def log(step, values):
        for name, value in values.items():
            nested = value if isinstance(value, dict) else {"": value}
            for key, number in nested.items():
                if number is not None and math.isfinite(number):
                    events.add_scalar(f"{name}/{key}".removesuffix("/"), number, step)
        events.flush()
        # Last, and on the disk before a checkpoint is: who goes on takes what is here for logged.
        values = {name: None if _not_finite(value) else value for name, value in values.items()}
        line = json.dumps({"step": step, **values}, allow_nan=False) + "\n"
        try:
            with path.open("a") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error

    return log


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
