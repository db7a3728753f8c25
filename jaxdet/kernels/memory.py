"""Memory that stays with the process from step to step on a CPU."""

import contextlib
import ctypes

import jax


def compute_where_asked() -> None:
    """Let a CPU compute on the thread that asks. To be called before JAX is used.

    glibc keeps large blocks for a program's first thread alone. Nothing waits for it, since
    batches are made ahead on others.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep_freed_memory() -> None:
    """Let glibc keep what a step on a CPU frees, as the next step needs as much.

    Pages given back are cleared by the system before they come again: a sixth of a step. Call it
    before anything runs, after `compute_where_asked`. With a GPU, or elsewhere than on Linux with
    glibc, nothing changes.
    """
    if jax.default_backend() != "cpu":
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    with contextlib.suppress(OSError, AttributeError):  # another system's C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_max, 0)  # no mapping of its own for a large block
        mallopt(trim_threshold, -1)  # nothing goes back to the system
