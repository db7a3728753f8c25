"""Orbax checkpoints of a run: the two newest, and the best."""

import contextlib
import logging
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxdet import InputError

# What inference needs, and what only training does.
ITEMS = ("weights", "training")


class NewestAndBest:
    """Orbax's rule of what to keep: the newest, one more should it be unreadable, and the best.

    A checkpoint is saved before it is scored, so `scores`, by step, grows while training.
    """

    def __init__(self, scores: dict[int, float]):
        self.scores = scores

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Of each checkpoint, whether it is kept."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = to_keep(steps, self.scores)
        return [step in kept for step in steps]


def to_keep(steps: list[int], scores: dict[int, float]) -> set[int]:
    """Which of the steps are kept: the two newest, and the best of those that have a score."""
    kept = set(sorted(steps)[-2:])
    if scored := [step for step in steps if step in scores]:
        kept.add(max(scored, key=scores.get))
    return kept


def exists(workdir: Path) -> bool:
    """Whether the run in `workdir` has a finished checkpoint to go on from."""
    return any(path.name.isdecimal() for path in (workdir / "checkpoints").glob("*"))


def open_manager(workdir: Path, scores: dict[int, float] | None = None) -> ocp.CheckpointManager:
    """The checkpoints of a run, in `workdir`/checkpoints: to be read, or with `scores` written too.

    Use it as a context manager: saving goes on in the background, and leaving waits for it.

    Raises:
        InputError: if there are none to read, or nothing can be written there.
    """
    # Orbax reports each step of a save, and an error from each thread that it passes through.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    directory = workdir.absolute() / "checkpoints"
    handlers = {name: ocp.StandardCheckpointHandler() for name in ITEMS}
    handlers["checksums"] = ocp.JsonCheckpointHandler()
    if scores is None:
        if not directory.is_dir():
            raise InputError(f"no checkpoints in {directory}: train first, or name a --workdir")
        options = ocp.CheckpointManagerOptions(read_only=True)
        return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir: cannot write {directory}: {error.strerror}") from error
    options = ocp.CheckpointManagerOptions(
        preservation_policy=NewestAndBest(scores),
        cleanup_tmp_directories=True,  # of a run that was killed while it saved
    )
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def save(manager: ocp.CheckpointManager, step: int, **items: Any) -> None:
    """Save pytrees by name at a step, in the background: see `check` and `wait`.

    Raises:
        InputError: if the save before it has failed.
    """
    check(manager)
    # Every device has the whole of it, so the host can write it: for the arrays of several devices
    # Orbax would cut each array into as many parts, one by one.
    items = jax.device_get(items)
    # It notices what is cut short, but not a flipped bit in the numbers.
    args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
    args["checksums"] = ocp.args.JsonSave({k: _checksums(v) for k, v in items.items()})
    with _naming(manager):
        manager.save(step, args=ocp.args.Composite(**args), force=True)


def check(manager: ocp.CheckpointManager) -> None:
    """Raise InputError if a save in the background has failed, since the disk is full, say."""
    with _naming(manager):
        if not manager.is_saving_in_progress():
            manager.wait_until_finished()  # which raises what it ended with


def wait(manager: ocp.CheckpointManager) -> None:
    """Wait for the save in the background.

    Raises:
        InputError: if it has failed.
    """
    with _naming(manager):
        manager.wait_until_finished()


@contextlib.contextmanager
def _naming(manager: ocp.CheckpointManager) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError:  # another process has ended
        raise
    except Exception as error:  # whatever Orbax or the file system runs into
        kept = max(manager.all_steps(), default=None)
        raise InputError(
            f"cannot save a checkpoint in {manager.directory}: {_first_line(error)}; "
            + ("none is kept" if kept is None else f"that of step {kept} is kept")
            + ": mend that, and give the same command"
        ) from error


def find_step(manager: ocp.CheckpointManager, which: str, scores: dict[int, float]) -> int:
    """The step that "latest", "best" (by `scores`) or a number names.

    Raises:
        InputError: if there is no such checkpoint.
    """
    steps = sorted(manager.all_steps())
    if not steps:
        raise InputError(f"no checkpoints in {manager.directory}: train first")
    scored = [step for step in steps if step in scores]
    if which == "latest":
        return steps[-1]
    if which == "best" and scored:
        return max(scored, key=scores.get)
    if which in map(str, steps):
        return int(which)
    raise InputError(
        f"--checkpoint={which}: not in {manager.directory}, which has "
        f"{', '.join(map(str, steps))}; or say {'best or ' if scored else ''}latest"
    )


def restore(manager: ocp.CheckpointManager, step: int, **abstract: Any) -> dict[str, Any]:
    """The named pytrees of a checkpoint, in the shapes and shardings of the abstract ones.

    Raises:
        InputError: if the checkpoint is of another model, or cannot be read.
    """
    where = f"checkpoint {step} in {manager.directory}"
    args = {name: ocp.args.StandardRestore(item) for name, item in abstract.items()}
    args["checksums"] = ocp.args.JsonRestore()
    try:
        saved = manager.item_metadata(step)
        theirs = {name: _shapes(saved[name].tree) for name in abstract}
    except Exception as error:  # whatever Orbax or the file system runs into
        raise Unreadable(f"{where} cannot be read: {_first_line(error)}") from error
    for name, tree in abstract.items():
        mine = _shapes(tree)
        for path in sorted(mine.keys() | theirs[name].keys()):
            if mine.get(path) != theirs[name].get(path):
                raise InputError(
                    f"{where} does not fit config.model and config.train: {path} is "
                    f"{theirs[name].get(path)} there and {mine.get(path)} here"
                )
    try:
        restored = manager.restore(step, args=ocp.args.Composite(**args))
        expected = {name: restored["checksums"][name] for name in abstract}
    except Exception as error:
        raise Unreadable(f"{where} cannot be read: {_first_line(error)}") from error
    for name in abstract:
        found = _checksums(restored[name])
        for path in found:
            if found[path] != expected[name].get(path):
                raise Unreadable(f"{where} is damaged: {path} is not as it was saved")
    return {name: restored[name] for name in abstract}


class Unreadable(InputError):
    """A checkpoint that is cut short, damaged, or not there as a whole."""


def restore_newest(manager: ocp.CheckpointManager, **abstract: Any) -> tuple[dict[str, Any], int]:
    """The newest checkpoint that can be read, and its step; those that cannot are reported.

    Raises:
        InputError: as `restore`; and if none can be read.
    """
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            return restore(manager, step, **abstract), step
        except Unreadable as error:
            print(f"note: {error}; taking the one before")
    raise InputError(f"no checkpoint in {manager.directory} can be read: name another --workdir")


def delete_leftovers(manager: ocp.CheckpointManager, newest: int, scores: dict[int, float]) -> None:
    """Delete what cannot be read, after `newest`, and what a killed run was about to delete."""
    steps = manager.all_steps()
    kept = to_keep([step for step in steps if step <= newest], scores)
    for step in set(steps) - kept:
        manager.delete(step)


def _first_line(error: Exception) -> str:
    """What an error says; of TensorStore's long ones, what the system said."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 200 else lines[0][:200] + "..."


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
        for path, leaf in leaves
    }


def _checksums(tree: Any) -> dict[str, int]:
    """Of each array, by its path: CRC-32 of its bytes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): zlib.crc32(
            np.ascontiguousarray(leaf)
        )
        for path, leaf in leaves
    }


def abstract_of(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Shapes, types and sharding of a pytree, for `restore`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
