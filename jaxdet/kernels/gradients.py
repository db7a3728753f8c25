"""Gradients clipped as one vector."""

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from jaxdet.kernels import switch


def clip_by_global_norm(
    gradients: PyTree[Float[Array, "..."]], max_norm: float
) -> tuple[PyTree[Float[Array, "..."]], Float[Array, ""]]:
    """The gradients, scaled so that their global norm is at most `max_norm`, and that norm before.

    As one vector: on a GPU, its norm takes one kernel instead of two for each parameter, and the
    optimizer finds gradients in the parameters' layout instead of the convolutions'.
    """
    if switch.target() == "plain":
        norm = optax.tree.norm(gradients)
        return jax.tree.map(lambda g: g * jnp.minimum(1, max_norm / norm), gradients), norm
    flat, unflatten = ravel_pytree(gradients)
    flat = jax.lax.optimization_barrier(flat)
    norm = jnp.linalg.norm(flat)
    return unflatten(flat * jnp.minimum(1, max_norm / norm)), norm
