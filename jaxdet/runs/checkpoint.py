"""Orbax checkpoints of a run: the two newest, and the best."""

import contextlib
import logging
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxdet import InputError
from jaxdet.runs import checkpoint_files

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


def open_manager(workdir: Path, scores: dict[int, float] | None = None) -> ocp.CheckpointManager:
    """The checkpoints of a run, in `workdir`/checkpoints: to be read, or with `scores` written too.

    Use it as a context manager: saving goes on in the background, and leaving waits for it.

    Raises:
        InputError: if there are none to read, or nothing can be written there.
    """
    # Orbax reports each step of a save, and an error from each thread and task that it passes
    # through.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not isinstance(sys.excepthook, _WithoutLateThreads):
        sys.excepthook = _WithoutLateThreads(sys.excepthook)
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
        # Called when all is written, and before the folder gets its name.
        async_options=ocp.AsyncOptions(
            post_finalization_callback=lambda: checkpoint_files.write_list(directory)
        ),
    )
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


class _WithoutLateThreads:
    """A `sys.excepthook` that passes over what TensorStore's threads say after an array could not
    be read: each finds the event loop closed that it was to report to, and shows its trace."""

    def __init__(self, hook: Callable[[type, BaseException, object], None]):
        self.hook = hook

    def __call__(self, kind: type, error: BaseException, trace: object) -> None:
        if not (kind is RuntimeError and str(error) == "Event loop is closed"):
            self.hook(kind, error, trace)


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

    It is read in the structure that it was saved in; see `_names` for which array is which.

    Raises:
        InputError: if the checkpoint is of another model, or cannot be read.
    """
    where = f"checkpoint {step} in {manager.directory}"
    if damage := checkpoint_files.check(Path(manager.directory) / str(step), abstract):
        raise Unreadable(f"{where} cannot be read: {damage}")
    there, wanted = shapes(manager, step, *abstract), {}
    for item, tree in abstract.items():
        mine, theirs = _by_name(tree), _by_name(there[item])
        for name in sorted(mine.keys() | theirs.keys()):
            saved, ours = (_kind(arrays.get(name)) for arrays in (theirs, mine))
            if saved != ours:
                raise InputError(
                    f"{where} does not fit config.model and config.train: {name} is {saved} there "
                    f"and {ours} here{_of_64_bits()}"
                )
        wanted[item] = _with_arrays(there[item], mine)
    args = {item: ocp.args.StandardRestore(tree) for item, tree in wanted.items()}
    args["checksums"] = ocp.args.JsonRestore()
    try:
        restored = manager.restore(step, args=ocp.args.Composite(**args))
        expected = {item: restored["checksums"][item] for item in abstract}
    except Exception as error:  # whatever Orbax or the file system runs into
        raise Unreadable(f"{where} cannot be read: {_why_unread(error)}") from error
    for item in abstract:
        found = _checksums(restored[item])
        for path in found:
            if found[path] != expected[item].get(path):
                raise Unreadable(f"{where} is damaged: {path} is not as it was saved")
    return {item: _with_arrays(abstract[item], _by_name(restored[item])) for item in abstract}


def shapes(manager: ocp.CheckpointManager, step: int, *items: str) -> dict[str, Any]:
    """The items of a checkpoint as they were saved, with shapes and types in place of arrays.

    Raises:
        InputError: if they cannot be read.
    """
    where, folder = f"checkpoint {step} in {manager.directory}", manager.directory / str(step)
    trees = {}
    for item in items:  # the manager would look at all of them
        if not (folder / item / "_METADATA").is_file():
            raise Unreadable(
                f"{where} cannot be read: its folder {item} is gone, or has no _METADATA"
            )
        try:
            trees[item] = ocp.StandardCheckpointHandler().metadata(folder / item).tree
        except Exception as error:  # whatever Orbax or the file system runs into
            raise Unreadable(f"{where} cannot be read: {_why_unread(error)}") from error
    return trees


class Unreadable(InputError):
    """A checkpoint that is cut short, damaged, or not there as a whole."""


def restore_newest(manager: ocp.CheckpointManager, **abstract: Any) -> tuple[dict[str, Any], int]:
    """The newest checkpoint that can be read, and its step; those that cannot are reported.

    Raises:
        InputError: as `restore`; and if none can be read.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        try:
            return restore(manager, step, **abstract), step
        except Unreadable as error:
            if jax.process_index() == 0:
                next_one = "" if step == steps[-1] else "; taking the one before"
                print(f"note: {error}{next_one}", file=sys.stderr)
    raise InputError(f"no checkpoint in {manager.directory} can be read: name another --workdir")


def delete_leftovers(manager: ocp.CheckpointManager, newest: int, scores: dict[int, float]) -> None:
    """Delete what cannot be read, after `newest`, and what a killed run was about to delete."""
    steps = manager.all_steps()
    kept = to_keep([step for step in steps if step <= newest], scores)
    for step in set(steps) - kept:
        manager.delete(step)


# What TensorStore means, whose errors are of several hundred characters.
_OF_TENSORSTORE = {
    "NOT_FOUND:": "an array, or a part of one, is gone",
    "OUT_OF_RANGE:": "a file is cut short",
    "DATA_LOSS:": "a file is damaged",
    "FAILED_PRECONDITION:": "a file is damaged",
    "INVALID_ARGUMENT:": "a file is damaged",
    "Encountered error while reading array": "an array is gone or damaged",
}


def _why_unread(error: Exception) -> str:
    """Why something could not be read, in words."""
    signs = [] if "os_error_code" in str(error) else _OF_TENSORSTORE
    meant = [_OF_TENSORSTORE[sign] for sign in signs if sign in str(error)]
    return meant[0] if meant else _first_line(error)


def _first_line(error: Exception) -> str:
    """What an error says; of TensorStore's long ones, what the system said."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 200 else lines[0][:200] + "..."


def _paths(tree: Any) -> list[str]:
    """Of each array, such as "opt_state.0.mu.backbone.stem.conv.kernel.value"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]


def _names(tree: Any) -> list[str]:
    """Of each array, a name that does not depend on how an optimiser's parts are put together.

    It is the path without the positions in chains and the wrappers that an optimiser's state begins
    with. Equal names, such as "opt_state.count" of Adam and of its schedule, are numbered in their
    order.
    """
    names, seen = [], Counter()
    for path in _paths(tree):
        name = re.sub(r"^opt_state\.((\d+|inner_states?)\.)*", "opt_state.", path)
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def _by_name(tree: Any) -> dict[str, Any]:
    return dict(zip(_names(tree), jax.tree.leaves(tree), strict=True))


def _with_arrays(tree: Any, arrays: dict[str, Any]) -> Any:
    """A tree with the arrays of those names in place of its own."""
    return jax.tree.unflatten(jax.tree.structure(tree), [arrays[name] for name in _names(tree)])


def _kind(array: Any) -> str | None:
    """Type and shape."""
    return None if array is None else f"{array.dtype} {tuple(array.shape)}"


def _of_64_bits() -> str:
    return "; JAX_ENABLE_X64 is set here: unset it" if jax.config.jax_enable_x64 else ""


def _checksums(tree: Any) -> dict[str, int]:
    """Of each array, by its path: CRC-32 of its bytes."""
    return {
        path: zlib.crc32(np.ascontiguousarray(array))
        for path, array in zip(_paths(tree), jax.tree.leaves(tree), strict=True)
    }


def abstract_of(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Shapes, types and sharding of a pytree, for `restore`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
