"""Data parallelism: one mesh over all devices, the batch split along it, the state on each."""

import importlib.util
import os
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from jaxdet import InputError

# Where one of these is set JAX may find others (`jax.distributed`).
ANNOUNCED = (
    "JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri",
    "KUBERNETES_SERVICE_HOST", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES",
)  # fmt: skip


def join_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    required: bool = False,
) -> None:
    """Make one of several processes of this one, where that is asked for or the system says so.

    JAX reads what SLURM, Open MPI, Kubernetes and TPUs say of themselves. To be called before JAX
    is used. A process that dies or hangs ends the others within a minute.

    Args:
        coordinator: HOST:PORT of process 0; the three are needed only where JAX cannot tell.
        required: whether it is an error that there are no others.

    Raises:
        InputError: if one of the three is missing, or the others do not come.
    """
    given = (coordinator, num_processes, process_id)
    tpu = importlib.util.find_spec("libtpu") is not None
    # One process alone needs nobody, and JAX would show it only one device of its machine.
    alone = "1" in (os.environ.get("SLURM_NTASKS"), os.environ.get("OMPI_COMM_WORLD_SIZE"))
    announced = not alone and (tpu or any(name in os.environ for name in ANNOUNCED))
    if given == (None, None, None) and not announced:
        if required:
            raise InputError(
                "--distributed: no cluster announces itself here: give --coordinator, "
                "--num_processes and --process_id"
            )
        return
    try:
        jax.distributed.initialize(
            *given, initialization_timeout=120, heartbeat_timeout_seconds=30,
            shutdown_timeout_seconds=30,
        )  # fmt: skip
    except ValueError as error:  # JAX cannot tell
        if given != (None, None, None):
            raise InputError(
                f"--coordinator, --num_processes and --process_id go together here: {error}"
            ) from error
    except jax.errors.JaxRuntimeError as error:
        line = str(error).splitlines()[0]
        raise InputError(f"--coordinator: the other processes do not answer: {line}") from error


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


def make_agree(mesh: Mesh) -> Callable[[int], int]:
    """A function that all processes call equally often, and that tells all of them the same.

    It gives the largest number that any process told it in the call before, or, to a process that
    is alone, its own at once: nobody waits for what the devices have still to do.
    """
    if jax.process_count() == 1:
        return lambda number: number
    largest = jax.jit(jnp.max, out_shardings=replicated(mesh))
    before = 0

    def agree(number: int) -> int:
        nonlocal before
        mine = np.full(jax.local_device_count(), number, np.int32)
        agreed, before = int(before), largest(shard_batch({"number": mine}, mesh)["number"])
        return agreed

    return agree


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
