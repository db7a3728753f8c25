"""What a run keeps: Orbax checkpoints, the newest and the best; and files whole or not at all."""

import logging
import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxdet import InputError

METRIC = "mAP@0.4"
# What inference needs, and what only training does.
ITEMS = ("weights", "training")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file by renaming a finished one, so that no half file ever has the name.

    Raises:
        InputError: if the place cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def exists(workdir: Path) -> bool:
    """Whether the run in `workdir` has a finished checkpoint to go on from."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def open_manager(workdir: Path, read_only: bool = False) -> ocp.CheckpointManager:
    """The checkpoints of a run, in `workdir`/checkpoints.

    Use it as a context manager: saving goes on in the background, and leaving waits for it.

    Raises:
        InputError: if there are none to read, or nothing can be written there.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports each step of a save
    directory = workdir.absolute() / "checkpoints"
    handlers = {name: ocp.StandardCheckpointHandler() for name in ITEMS}
    if read_only:
        if not directory.is_dir():
            raise InputError(f"no checkpoints in {directory}: train first, or name a --workdir")
        options = ocp.CheckpointManagerOptions(read_only=True)
        return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workdir: cannot write {directory}: {error.strerror}") from error
    keep = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(1),
            checkpoint_managers.BestN(get_metric_fn=lambda metrics: metrics[METRIC], n=1),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics[METRIC],
        preservation_policy=keep,
        cleanup_tmp_directories=True,  # of a run that was killed while it saved
    )
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def save(manager: ocp.CheckpointManager, step: int, score: float, **items: Any) -> None:
    """Save pytrees by name at a step, with the score that "best" goes by."""
    args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
    manager.save(step, args=ocp.args.Composite(**args), metrics={METRIC: score})


def find_step(manager: ocp.CheckpointManager, which: str) -> int:
    """The step that "latest", "best" or a number names.

    Raises:
        InputError: if there is no such checkpoint.
    """
    steps = sorted(manager.all_steps())
    if not steps:
        raise InputError(f"no checkpoints in {manager.directory}: train first")
    if which == "latest":
        return steps[-1]
    if which == "best":
        scores = {step: manager.metrics(step)[METRIC] for step in steps}
        return max(steps, key=scores.get)
    if which.isdigit() and int(which) in steps:
        return int(which)
    raise InputError(
        f"--checkpoint={which}: not in {manager.directory}, which has "
        f"{', '.join(map(str, steps))}; or say best or latest"
    )


def restore(manager: ocp.CheckpointManager, step: int, **abstract: Any) -> dict[str, Any]:
    """The named pytrees of a checkpoint, in the shapes and shardings of the abstract ones.

    Raises:
        InputError: if the checkpoint is of another model.
    """
    saved = manager.item_metadata(step)
    for name, tree in abstract.items():
        mine, theirs = _shapes(tree), _shapes(saved[name].tree)
        for path in sorted(mine.keys() | theirs.keys()):
            if mine.get(path) != theirs.get(path):
                raise InputError(
                    f"checkpoint {step} in {manager.directory} does not fit config.model and "
                    f"config.train: {path} is {theirs.get(path)} there and {mine.get(path)} here"
                )
    args = {name: ocp.args.StandardRestore(item) for name, item in abstract.items()}
    restored = manager.restore(step, args=ocp.args.Composite(**args))
    return {name: restored[name] for name in abstract}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
        for path, leaf in leaves
    }


def abstract_of(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Shapes, types and sharding of a pytree, for `restore`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
