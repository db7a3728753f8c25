"""How jaxdet compiles: `jax.jit`, on a CPU without a fusion that slows XLA's convolutions."""

import functools
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import jax

from jaxdet import InputError

# XLA fuses what surrounds a convolution into it, and loses its fast kernels: gradients of 3x3
# convolutions run several times as fast without. An option of one function, not a flag in
# XLA_FLAGS, since a version of XLA that does not know a flag ends the process.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}
# No sums in the order in which a GPU's threads happen to end, and no kernel chosen by how fast it
# was today. See docs/reliability.md.
GPU_DETERMINISTIC = {"xla_gpu_deterministic_ops": True}
CACHE_BYTES = 1 << 30  # of compiled programs that are kept; those of one run take a few MB


def keep_compiled() -> None:
    """Keep what is compiled in the user's cache folder, unless JAX is told of another place.

    Compiling takes longer than a short run. What was not used for longest makes room.
    """
    if not jax.config.jax_compilation_cache_dir:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if caches.startswith("~"):  # of a user without a home
            return
        # Machines that share a home may have unlike processors.
        cpus = Path("/proc/cpuinfo")
        kind = re.search(r"flags.*", cpus.read_text() if cpus.exists() else "")
        name = f"jaxdet-{zlib.crc32(kind[0].encode() if kind else b''):08x}"
        jax.config.update("jax_compilation_cache_dir", str(Path(caches) / name))
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)


@functools.cache
def compiler_options(deterministic: bool = False) -> dict[str, str | bool] | None:
    """What to compile with on the default backend; None where that is nothing.

    Args:
        deterministic: whether the same program gives the same bits each time, which a CPU does
            anyway.

    Raises:
        InputError: if XLA does not know how to be deterministic. What is only faster is left out.
    """
    backend = jax.default_backend()
    if backend == "gpu" and deterministic:
        if not _known(GPU_DETERMINISTIC):
            raise InputError(
                "config.train.deterministic: this version of XLA does not know "
                f"{', '.join(GPU_DETERMINISTIC)}"
            )
        return GPU_DETERMINISTIC
    return CPU_OPTIONS if backend == "cpu" and _known(CPU_OPTIONS) else None


def _known(options: dict[str, str | bool | int]) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # INVALID_ARGUMENT: No such compile option
        return False
    return True


def jit(function: Callable, deterministic: bool = False, **kwargs) -> Callable:
    """`jax.jit` with `compiler_options()`; `kwargs` are its other arguments."""
    return jax.jit(function, compiler_options=compiler_options(deterministic), **kwargs)


def jit_to_run_once(function: Callable, **kwargs) -> Callable:
    """`jax.jit` for what compiles longer than it runs: on a CPU, the compiler tries less hard."""
    options = {"xla_backend_optimization_level": 0}
    used = options if jax.default_backend() == "cpu" and _known(options) else None
    return jax.jit(function, compiler_options=used, **kwargs)
