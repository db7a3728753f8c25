"""What a run keeps in its workdir, besides checkpoints: config.json, metrics.jsonl, whole files.

All of it is written by process 0 alone, whole or not at all.
"""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jaxdet import InputError

METRIC = "mAP@0.4"  # what the best checkpoint is best in


class Run(NamedTuple):
    """What `config.json` says beyond the config: what the run is of."""

    class_names: list[str]
    class_ids: list[int]  # of the outside, "No finding" last
    dataset: str  # fingerprint of the split "train"
    training_images: str  # fingerprint of the ids that are trained on
    planned: list[str]  # the config's fields that were planned from the training boxes
    grey_levels: list[list[float]]  # of the training images, see `images.looks_inverted`


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file by renaming a finished one, so that no half file ever has the name.

    Raises:
        InputError: if it cannot be written there.
    """
    if jax.process_index() != 0:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    finally:
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
        return content, Run(**content.pop("run"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; train first, or name a --workdir") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not the record of a run of this version ({error!r}): name another --workdir"
        ) from error


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; one that was not finished is none."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_scores(workdir: Path) -> dict[int, float]:
    """The score of each step that was evaluated while training."""
    return {
        line["step"]: line[METRIC] for line in read_metrics(workdir) if line.get(METRIC) is not None
    }


def open_log(workdir: Path, step: int) -> Callable[[int, dict[str, Any]], None]:
    """A function log(step, values) that adds a line to `metrics.jsonl`, and to TensorBoard.

    What an earlier run logged after `step`, where this one goes on, is dropped from both.
    """
    if jax.process_index() != 0:
        return lambda step, values: None
    from tensorboardX import SummaryWriter

    path = workdir / "metrics.jsonl"
    kept = [line for line in read_metrics(workdir) if line["step"] <= step]
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
    events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def log(step, values):
        with path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            nested = value if isinstance(value, dict) else {"": value}
            for key, number in nested.items():
                if number is not None:
                    events.add_scalar(f"{name}/{key}".removesuffix("/"), number, step)
        events.flush()

    return log
