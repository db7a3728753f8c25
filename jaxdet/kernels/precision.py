"""In which type a device computes."""

import functools
import sys

import jax

NATIVE_BFLOAT16 = 8.0  # compute capability of NVIDIA's first GPUs that have it (Ampere)


def type_here(dtype: str) -> str:
    """`dtype`, or "float32" for "bfloat16" on a GPU that computes only as if it had it.

    Such are a T4 (7.5) and a V100 (7.0): XLA converts to and fro, which is slower than float32. A
    note says so, once. Parameters and losses are float32 in either case, so a run may go on
    elsewhere.
    """
    if dtype != "bfloat16" or _has_bfloat16():
        return dtype
    return "float32"


@functools.cache
def _has_bfloat16() -> bool:
    device = jax.devices()[0]
    try:
        capability = float(getattr(device, "compute_capability", "inf"))
    except ValueError:  # not NVIDIA's, such as AMD's "gfx90a"
        return True
    if capability < NATIVE_BFLOAT16 and jax.process_index() == 0:
        print(
            f"note: {device.device_kind} has no bfloat16 (config.model.dtype): it computes in "
            "float32",
            file=sys.stderr,
        )
    return capability >= NATIVE_BFLOAT16
