"""What makes a CPU fast: operations of a network as matrix products, and memory that stays.

Each operation gives what the plain one gives, value and gradient. Layers use them where `on_cpu()`;
a GPU's compiler needs no such help. `docs/benchmarks.md` says what each is worth.
"""

import contextlib
import ctypes
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def on_cpu() -> bool:
    """Whether what is traced now is for a CPU."""
    return jax.default_backend() == "cpu"


def keep_freed_memory() -> None:
    """Let glibc keep what a step on a CPU frees, as the next step needs as much.

    Pages given back are cleared by the system before they come again: a sixth of a step. Call it
    before anything runs. With a GPU, or elsewhere than on Linux with glibc, nothing changes.
    """
    # On the thread that asks: glibc keeps large blocks for a program's first thread alone. Nothing
    # waits for it, since batches are made ahead on others. Of use only before JAX starts.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if not on_cpu():
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    with contextlib.suppress(OSError, AttributeError):  # another system's C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_max, 0)  # no mapping of its own for a large block
        mallopt(trim_threshold, -1)  # nothing goes back to the system


def sum_of_channels(x: Float[Array, "*n c"]) -> Float[Array, "c"]:
    """The sum of each channel, which as a reduction takes longer."""
    rows = x.reshape(-1, x.shape[-1])
    return jnp.ones(len(rows), x.dtype) @ rows


@jax.custom_vjp
def add_bias(x: Float[Array, "*n c"], bias: Float[Array, "c"]) -> Float[Array, "*n c"]:
    """`x + bias`."""
    return x + bias


add_bias.defvjp(lambda x, bias: (x + bias, None), lambda _, g: (g, sum_of_channels(g)))


def conv_1x1(
    x: Float[Array, "b h w c"], kernel: Float[Array, "1 1 c d"], stride: int
) -> Float[Array, "b h2 w2 d"]:
    """A convolution that looks at one location at a time: a product of matrices."""
    x = x[:, ::stride, ::stride]
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:3], -1)


def batch_norm(
    x: Float[Array, "*n c"], scale: Float[Array, "c"], bias: Float[Array, "c"], epsilon: float
) -> tuple[Float[Array, "*n c"], Float[Array, "c"], Float[Array, "c"]]:
    """BatchNorm in training (Ioffe and Szegedy 2015), and the mean and variance of the batch."""
    y, mean, variance = _batch_norm(x, scale, bias, epsilon)
    return y, jax.lax.stop_gradient(mean), jax.lax.stop_gradient(variance)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _batch_norm(x, scale, bias, epsilon):
    return _batch_norm_forward(x, scale, bias, epsilon)[0]


def _batch_norm_forward(x, scale, bias, epsilon):
    count = x.size // x.shape[-1]
    mean = sum_of_channels(x) / count
    variance = jnp.maximum(sum_of_channels(x * x) / count - mean**2, 0)  # as `nnx.BatchNorm` has it
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = (x - mean) * (inverse * scale) + bias
    return (y, mean, variance), (x, mean, inverse, scale)


def _batch_norm_backward(_, kept, gradients):
    """For y = scale * z + bias of z = (x - mean) * inverse; nobody asks for that of the statistics.

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
