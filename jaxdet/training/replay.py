"""Keep the batch of a step that was skipped, and run that step again: run.py --replay=FILE."""

import io
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxdet import InputError
from jaxdet.data.batches import training_batches
from jaxdet.data.dataset import Dataset
from jaxdet.models.weights.init_from import read_npz
from jaxdet.ops.boxes import Targets
from jaxdet.runs import checkpoint, parallel, workdir
from jaxdet.training.train_step import TrainState, compile_training


def failure(
    config: ConfigDict, train_set: Dataset, targets: Targets, folder: Path, step: int, values: dict
) -> InputError:
    """Write the batch of `step` to `folder`/skipped_batch.npz; return the error to raise.

    Args:
        values: the metrics of the step.
    """
    config = config.copy_and_resolve_references()
    config.data.cache = False  # a few images are wanted
    batch = training_batches(config, train_set, targets, slice(None))[step - 1]
    ids = train_set.ids[batch.pop("image")].astype(str)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, step=step, ids=ids, **batch)
    file = folder / "skipped_batch.npz"
    workdir.write_atomically(file, buffer.getvalue())
    return InputError(
        f"step {step}, as {values['skipped_in_a_row']} in a row, had a loss ({values['loss']}) or "
        f"gradient norm ({values['gradient_norm']}) that is not finite, and was skipped: a lower "
        "config.train.learning_rate in another --workdir may help, or look at its images "
        f"({', '.join(ids)}) with --workdir={folder} --replay={file}"
    )


def read(file: Path) -> dict[str, np.ndarray]:
    """The batch that `failure` wrote.

    Raises:
        InputError: if it is not such a file.
    """
    names = {"step", "ids", "images", *Targets._fields}
    try:
        arrays = read_npz(file)
        # Without those that say nothing, see `Targets`.
        optional = Targets._field_defaults
        batch = {name: arrays[name] for name in names if name in arrays or name not in optional}
    except FileNotFoundError as error:
        raise InputError(f"--replay: {file}: no such file") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"--replay: {file}: not a batch that a run has kept") from error
    return batch


def replay(config: ConfigDict, folder: Path, file: Path) -> None:
    """Print the losses of the step of a kept batch, and those of each of its images alone."""
    batch = read(file)
    step, ids = int(batch.pop("step")), batch.pop("ids")
    mesh, num_classes = parallel.make_mesh(), len(workdir.read_config(folder)[1].class_names)
    init, step_fn = compile_training(config, num_classes, mesh)
    abstract = checkpoint.abstract_of(jax.eval_shape(init), parallel.replicated(mesh))
    with checkpoint.open_manager(folder) as manager:
        if step not in manager.all_steps():
            raise InputError(f"--replay: {folder} no longer has the checkpoint of step {step}")
        items = checkpoint.restore(manager, step, **abstract.to_items())
    state = TrainState.from_items(items)
    # Skipped, it has changed nothing else.
    state = state._replace(step=state.step - 1)

    def values(rows):
        mine = rows[parallel.local_rows(len(rows))]
        shares = parallel.shard_batch({name: x[mine] for name, x in batch.items()}, mesh)
        _, metrics = step_fn(jax.tree.map(jnp.copy, state), shares)  # the step takes its memory
        metrics = jax.device_get(metrics)
        names = [name for name in metrics if name.endswith("loss")] + ["gradient_norm"]
        return ", ".join(f"{name} {metrics[name]:.6g}" for name in names)

    print(f"step {step}: {values(np.arange(len(ids)))}")
    print("a batch of one image alone:")
    for row, image_id in enumerate(ids):
        boxes = batch["boxes"][row][batch["mask"][row]]
        print(f"  {image_id}: {len(boxes)} boxes, {values(np.full(len(ids), row))}")
