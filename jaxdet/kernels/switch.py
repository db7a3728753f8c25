"""The one switch of all kernels: which device they are made for, or none."""

import os

import jax


def target() -> str:
    """What the operations that are traced now are made for: "cpu", "gpu" (or TPU), or "plain".

    "plain", for which the environment variable JAXDET_PLAIN asks, is what flax and XLA do by
    themselves: slower, and what the others are compared with.
    """
    if os.environ.get("JAXDET_PLAIN", "") not in ("", "0"):
        return "plain"
    return "cpu" if jax.default_backend() == "cpu" else "gpu"
