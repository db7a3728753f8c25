"""How jaxdet compiles: `jax.jit`, on a CPU without a fusion that slows XLA's convolutions."""

import functools
from collections.abc import Callable

import jax

from jaxdet import InputError

# XLA fuses what surrounds a convolution into it, and loses its fast kernels: gradients of 3x3
# convolutions run several times as fast without. An option of one function, not a flag in
# XLA_FLAGS, since a version of XLA that does not know a flag ends the process.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}
# No sums in the order in which a GPU's threads happen to end, and no kernel chosen by how fast it
# was today. See docs/reliability.md.
GPU_DETERMINISTIC = {"xla_gpu_deterministic_ops": True}


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


def _known(options: dict[str, str | bool]) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # INVALID_ARGUMENT: No such compile option
        return False
    return True


def jit(function: Callable, deterministic: bool = False, **kwargs) -> Callable:
    """`jax.jit` with `compiler_options()`; `kwargs` are its other arguments."""
    return jax.jit(function, compiler_options=compiler_options(deterministic), **kwargs)
