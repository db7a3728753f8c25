"""Data parallelism: one mesh over all devices, the batch split along it, the state on each."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdet import InputError


def make_mesh() -> Mesh:
    """All devices of all processes along one axis, "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def local_rows(batch_size: int) -> slice:
    """The rows of a global batch that this process loads.

    Raises:
        InputError: if the devices cannot share the batch evenly.
    """
    if batch_size % jax.device_count():
        raise InputError(
            f"batch size {batch_size} does not divide over {jax.device_count()} devices: "
            "change config.train.batch_size or config.evaluation.batch_size"
        )
    rows = batch_size // jax.process_count()
    return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch to a global array, split over the devices."""
    sharding = sharded(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }
