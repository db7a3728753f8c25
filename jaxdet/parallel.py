"""Data parallelism: one mesh over all devices, the batch split along it, the state on each."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

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


def check_batch_size(field: str, batch_size: int) -> None:
    """Raise InputError, naming the config's field, if the devices cannot share a batch evenly."""
    if batch_size % jax.device_count():
        raise InputError(
            f"config.{field}: {batch_size} does not divide over {jax.device_count()} devices"
        )


def local_rows(batch_size: int) -> slice:
    """The rows of a global batch that this process loads."""
    rows = batch_size // jax.process_count()
    return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)


def local_positions(num_images: int, batch_size: int) -> Int[np.ndarray, "batches rows"]:
    """The images, of so many in consecutive batches, that this process loads; -1 fills up."""
    positions = np.full(-(-num_images // batch_size) * batch_size, -1)
    positions[:num_images] = np.arange(num_images)
    return positions.reshape(-1, batch_size)[:, local_rows(batch_size)]


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch to a global array, split over the devices."""
    sharding = sharded(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }
