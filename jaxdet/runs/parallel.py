"""Data parallelism: one mesh over all devices, the batch split along it, the state on each."""

import contextlib
import ctypes
import importlib.util
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from jaxdet import InputError
from jaxdet.kernels import compilation, memory
from jaxdet.runs import environment, signals

# Where one of these is set JAX may find others (`jax.distributed`).
ANNOUNCED = (
    "JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri",
    "KUBERNETES_SERVICE_HOST", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES",
)  # fmt: skip
WAITING_SECONDS = 120.0  # for the others to come


def start(joins: bool, *processes: str | int | bool | None) -> None:
    """Set up JAX before its first use: as a single process, or as one of several.

    Args:
        joins: whether others are looked for.
        processes: see `join_processes`.

    Raises:
        InputError: if the others, or the devices that JAX is told to use, are not there.
    """
    if joins:
        join_processes(*processes)
    memory.compute_where_asked()  # what comes next starts JAX
    environment.check_devices()
    environment.settle()
    memory.keep_freed_memory()
    compilation.keep_compiled()


def join_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    required: bool = False,
) -> None:
    """Join the other processes, if the flags or the cluster name any.

    JAX reads what SLURM, Open MPI, Kubernetes and TPUs say of themselves. To be called before JAX
    is used. A process that dies or is stopped ends the others within a minute, as JAX notices it;
    of those that hang see `Watchdog`. Only process 0 prints, but for errors. Where the others do
    not come, the process ends with exit code 2 and a line.

    Args:
        coordinator: HOST:PORT of process 0; the three are needed only where JAX cannot tell.
        required: whether it is an error that there are no others.

    Raises:
        InputError: if one of the three is missing, or the others do not answer.
    """
    given = (coordinator, num_processes, process_id)
    tpu = importlib.util.find_spec("libtpu") is not None
    started, rank, allocated = _started()
    # One process alone needs nobody, and JAX would show it only one device of its machine.
    announced = started != 1 and (tpu or any(name in os.environ for name in ANNOUNCED))
    if given == (None, None, None) and not announced:
        if required:
            raise InputError(
                "--distributed: no cluster announces others here: start all by srun or mpirun, or "
                "give --coordinator, --num_processes and --process_id"
            )
        if allocated > 1:
            print(
                f"note: SLURM has room for {allocated} tasks, and started this one alone; srun "
                "starts all",
                file=sys.stderr,
            )
        return
    if given != (None, None, None):
        started, rank = num_processes, process_id
    try:
        with _waiting_for_others(started, rank), signals.ending("waiting for the others"):
            jax.distributed.initialize(
                *given,
                initialization_timeout=round(WAITING_SECONDS) + 60,  # it would end by abort()
                heartbeat_timeout_seconds=30,
                shutdown_timeout_seconds=600,  # process 0 may have a long report to write
            )
    except ValueError as error:  # JAX cannot tell
        if given != (None, None, None):
            raise InputError(
                f"--coordinator, --num_processes and --process_id go together here: {error}"
            ) from error
    except jax.errors.JaxRuntimeError as error:
        line = str(error).splitlines()[0]
        raise InputError(f"--coordinator: the other processes do not answer: {line}") from error
    environment.check_devices()
    if jax.process_count() > 1:
        sys.excepthook = _end_of_an_error
        # JAX calls abort() where another one dies, in a thread of its own, and has no public way to
        # say that in words.
        ctypes.CDLL(None).signal(signal.SIGABRT, _AT_ABORT)
        if jax.process_index() > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  all say the same


def _started() -> tuple[int | None, int | None, int]:
    """Process count and rank by Open MPI or SLURM, and the tasks that SLURM has allocated.

    In a shell that `salloc` or `sbatch` opens, SLURM_NTASKS is what could be started; what was
    started is of the step, such as that of an interactive shell, which is one.
    """

    def number(name):
        return int(os.environ[name]) if os.environ.get(name, "").isdecimal() else None

    room = number("SLURM_NTASKS")
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        return number("OMPI_COMM_WORLD_SIZE"), number("OMPI_COMM_WORLD_RANK"), 1
    started = [n for n in (number("SLURM_STEP_NUM_TASKS"), room) if n is not None]
    return min(started, default=None), number("SLURM_PROCID"), room or 1


@contextlib.contextmanager
def _waiting_for_others(count: int | None, rank: int | None) -> Iterator[None]:
    """Says that this process waits, the first one at once; ends it if that is for too long."""
    way_out = "start all of them with the same command, see docs/scaling.md"
    if "SLURM_JOB_ID" in os.environ:
        way_out = "start all of them by srun, or with SLURM_NTASKS=1 before it this one alone"
    others = "the others" if count is None else f"{count - 1} {'other' if count == 2 else 'others'}"

    def say():
        print(f"waiting for {others}, {WAITING_SECONDS:.0f} seconds at most", file=sys.stderr)

    def give_up():
        print(
            f"run.py: {others} did not come in {WAITING_SECONDS:.0f} seconds: {way_out}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timers = [threading.Timer(WAITING_SECONDS, give_up)]
    if rank or count is None:  # who cannot be counted may not be
        timers.append(threading.Timer(10.0, say))
    else:
        say()
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


_ending = threading.Lock()


def _end(what: str) -> None:
    """Print one line and exit at once: Python's own shutdown would wait for the other processes."""
    if not _ending.acquire(blocking=False):  # another thread is at it
        time.sleep(60)
    print(
        f"run.py: process {jax.process_index()}: {what}: end all of them, and start all again with "
        "the same command",
        file=sys.stderr,
    )
    leave(1)


def leave(code: int) -> None:
    """Exit without a barrier; the other processes notice it."""
    if jax.distributed.is_initialized():  # which asks no device: there may be none
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_of_an_error(kind: type, error: BaseException, trace: object) -> None:
    """`sys.excepthook` of one of several processes."""
    lost = r"Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|Socket closed|heartbeat"
    if isinstance(error, Exception) and re.search(lost, str(error)):
        _end(f"another one has ended ({str(error).strip().splitlines()[0][:200]})")
    traceback.print_exception(kind, error, trace)
    leave(1)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _AT_ABORT(number: int) -> None:
    _end("another one has ended, or hangs")


def make_mesh() -> Mesh:
    """All devices of all processes along one axis, "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(field: str, batch_size: int, parts: int = 1) -> None:
    """Raise InputError, naming the config's field, if the devices cannot share a batch evenly, or
    each of the parts that it is worked on in."""
    if batch_size % (parts * jax.device_count()):
        times = f" in {parts} parts (config.train.accumulate)" if parts > 1 else ""
        raise InputError(
            f"config.{field}: {batch_size} does not divide over {jax.device_count()} devices{times}"
        )


def make_agree(mesh: Mesh) -> Callable[[int], int]:
    """All-reduce max, delayed by one call: a function that all processes call equally often.

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


class Watchdog:
    """Ends this process when a step takes far too long, since another process then hangs.

    JAX notices one that is dead or stopped, but not one that waits for its disk, say, while the
    others wait for it. A process that is alone is never ended.
    """

    def __init__(self, seconds: float = 45):
        self.seconds, self.longest = seconds, 0.0
        self.beats, self.last, self.timer = 0, 0.0, None

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *_) -> None:
        self.rest()

    def beat(self) -> None:
        """Call after each step: from the third on, the next may take 10 times the longest."""
        if jax.process_count() == 1:
            return
        self._cancel()
        now = time.monotonic()
        self.beats += 1
        # In the first two the others may still be at what this one has rested for.
        if self.beats > 2:
            self.longest = max(self.longest, now - self.last)
            limit = max(self.seconds, 10 * self.longest)
            said = f"no step has ended for {limit:.0f} seconds, so one of them hangs"
            self.timer = threading.Timer(limit, _end, (said,))
            self.timer.daemon = True
            self.timer.start()
        self.last = now

    def rest(self) -> None:
        """Stop watching until the next beat: for saving, evaluating, compiling."""
        self._cancel()
        self.beats = 0

    def _cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


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
    arrays = {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }
    # A CPU computes on the thread that asks (`memory.compute_where_asked`) only what is all there.
    # A GPU copies a batch once the step before is done: if that were waited for, it would be idle.
    return jax.block_until_ready(arrays) if jax.default_backend() == "cpu" else arrays
