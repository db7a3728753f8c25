"""How jaxdet compiles: `jax.jit`, on a CPU without a fusion that slows XLA's convolutions."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import jax

# XLA fuses what surrounds a convolution into it, and loses its fast kernels: gradients of 3x3
# convolutions run several times as fast without. An option of one function, not a flag in
# XLA_FLAGS, since a version of XLA that does not know a flag ends the process.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


CACHE_BYTES = 1 << 30  # of compiled programs that are kept; those of one run take a few MB


def keep_compiled() -> None:
    """Keep what is compiled in the user's cache folder, unless JAX is told of another place.

    Compiling takes longer than a short run. What was not used for longest makes room.
    """
    if not jax.config.jax_compilation_cache_dir:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(caches) / "jaxdet"))
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)


@functools.cache
def compiler_options() -> dict[str, str] | None:
    """What to compile with on the default backend; None where XLA does not know the option."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=CPU_OPTIONS).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # INVALID_ARGUMENT: No such compile option
        return None
    return CPU_OPTIONS


def jit(function: Callable, **kwargs) -> Callable:
    """`jax.jit` with `compiler_options()`; `kwargs` are its other arguments."""
    return jax.jit(function, compiler_options=compiler_options(), **kwargs)


def jit_to_run_once(function: Callable, **kwargs) -> Callable:
    """`jax.jit` for what compiles longer than it runs: on a CPU, the compiler tries less hard."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options, **kwargs)
