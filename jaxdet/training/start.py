"""What a run begins with, if not with random numbers: others' weights, or a run of one's own."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx

from jaxdet import InputError
from jaxdet.evaluation.metrics import BEST_BY
from jaxdet.models.weights.init_from import SUFFIXES, init_from
from jaxdet.models.weights.own_run import from_run
from jaxdet.runs import checkpoint, parallel, workdir


class Start(NamedTuple):
    """Weights to begin with.

    Attributes:
        fill: function (params, batch_stats) -> (params, batch_stats, report); it raises InputError
            where they do not fit.
        began_from: of one's own run, which and at which step; else "".
    """

    fill: Callable[[Any, Any], tuple[Any, Any, str]]
    began_from: str = ""


def open_start(
    text: str, class_names: Sequence[str], backbone: type[nnx.Module], mesh: jax.sharding.Mesh
) -> Start:
    """What `model.init_from` names: a file, or the checkpoint of a run.

    Args:
        class_names: of the run that begins.
        backbone: of its detector, see `init_from`.

    Raises:
        InputError: if there is no such run or checkpoint, or it cannot be read.
    """
    named = find_run(text)
    if named is None:
        file = Path(os.path.expanduser(text))
        return Start(functools.partial(init_from, file, backbone=backbone))
    folder, which = named
    try:
        sections, run = workdir.read_config(folder)
        best_by = sections["evaluation"].get("best_by", BEST_BY)
        with checkpoint.open_manager(folder) as manager:
            step = checkpoint.find_step(manager, which, workdir.read_scores(folder, best_by))
            shapes = checkpoint.shapes(manager, step, "weights")["weights"]
            abstract = checkpoint.abstract_of(shapes, parallel.replicated(mesh))
            weights = checkpoint.restore(manager, step, weights=abstract)["weights"]
    except InputError as error:
        raise InputError(f"config.model.init_from: {error}") from error
    where = f"{folder.absolute()} at step {step}"
    given = where, jax.device_get(weights), tuple(run.class_names), tuple(class_names)
    return Start(functools.partial(from_run, *given, backbone=backbone), where)


def find_run(text: str) -> tuple[Path, str] | None:
    """The workdir and the checkpoint of WORKDIR, WORKDIR@best or WORKDIR@STEP; None for a file."""
    path = Path(os.path.expanduser(text))
    if path.suffix in SUFFIXES:
        return None
    if path.is_dir():
        return path, "latest"
    folder, at, which = os.path.expanduser(text).rpartition("@")
    return (Path(folder), which) if at and Path(folder).is_dir() else None
