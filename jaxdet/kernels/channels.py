"""Sums of channels, and what needs them for its gradient: a bias, and BatchNorm."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdet.kernels import switch


def sum_of_channels(x: Float[Array, "*n c"]) -> Float[Array, "c"]:
    """The sum of each channel: on a CPU a product, since a reduction takes longer."""
    rows = x.reshape(-1, x.shape[-1])
    return jnp.ones(len(rows), x.dtype) @ rows if switch.target() == "cpu" else rows.sum(axis=0)


@jax.custom_vjp
def add_bias(x: Float[Array, "*n c"], bias: Float[Array, "c"]) -> Float[Array, "*n c"]:
    """`x + bias`."""
    return x + bias


add_bias.defvjp(lambda x, bias: (x + bias, None), lambda _, g: (g, sum_of_channels(g)))


def batch_norm(
    x: Float[Array, "*n c"], scale: Float[Array, "c"], bias: Float[Array, "c"], epsilon: float
) -> tuple[Float[Array, "*n c"], Float[Array, "c"], Float[Array, "c"]]:
    """BatchNorm in training (Ioffe and Szegedy 2015), and the mean and variance of the batch.

    Its gradient is written out, and reads activations fewer times than the one that JAX derives.
    """
    y, mean, variance = _batch_norm(x, scale, bias, epsilon)
    return y, jax.lax.stop_gradient(mean), jax.lax.stop_gradient(variance)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _batch_norm(x, scale, bias, epsilon):
    return _batch_norm_forward(x, scale, bias, epsilon)[0]


def _batch_norm_forward(x, scale, bias, epsilon):
    count = x.size // x.shape[-1]
    mean = sum_of_channels(x) / count
    variance = jnp.maximum(sum_of_channels(x * x) / count - mean**2, 0)  # as nnx has it
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = (x - mean) * (inverse * scale) + bias
    return (y, mean, variance), (x, mean, inverse, scale)


def _batch_norm_backward(_, kept, gradients):
    """For y = scale * z + bias of z = (x - mean) * inverse; the statistics have no gradient.

    Both statistics depend on x: dx = scale * inverse * (g - mean(g) - z * mean(g * z)).
    """
    x, mean, inverse, scale = kept
    g = gradients[0]
    count = x.size // x.shape[-1]
    sum_g = sum_of_channels(g)
    sum_gz = sum_of_channels(g * (x - mean)) * inverse
    dx = scale * inverse * (g - sum_g / count - (x - mean) * (inverse * sum_gz / count))
    return dx, sum_gz, sum_g


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)
