"""What makes a CPU fast: operations of a network as matrix products, and memory that stays.

Each operation gives what the plain one gives, value and gradient. Layers use them where `on_cpu()`
(`sum_of_channels` chooses by itself); a GPU's compiler needs no such help. `docs/benchmarks.md`
says what each is worth.
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
    """The sum of each channel: on a CPU a product, since a reduction takes longer."""
    rows = x.reshape(-1, x.shape[-1])
    return jnp.ones(len(rows), x.dtype) @ rows if on_cpu() else rows.sum(axis=0)


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


def plain_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], stride: int, padding: int
) -> Float[Array, "b h2 w2 d"]:
    """A convolution as XLA makes it."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], stride: int, padding: int
) -> Float[Array, "b h2 w2 d"]:
    """A convolution, whose kernel has its gradient faster.

    That gradient is a convolution of images that come last. XLA fuses the transpose that turns them
    so with what made `x`, and computes `x` again in an order that misses the cache. A product with
    the identity turns them too, and is not fused.
    """
    return plain_conv(x, kernel, stride, padding)


def _conv_backward(stride, padding, kept, g):
    x, kernel = kept
    of_x, of_kernel = jax.vjp(lambda *args: plain_conv(*args, stride, padding), x, kernel)[1](g)
    if jax.device_count() == 1:  # or devices would tell each other their images
        images_last = jnp.einsum("bhwc,bn->hwcn", x, jnp.eye(len(x), dtype=x.dtype))
        sides = zip(x.shape[1:3], kernel.shape, g.shape[1:3], strict=False)
        ends = [(padding, (out - 1) * stride + k - size - padding) for size, k, out in sides]
        of_kernel = jax.lax.conv_general_dilated(
            images_last,
            g,
            window_strides=(1, 1),
            padding=ends,
            rhs_dilation=(stride, stride),
            dimension_numbers=("HWNC", "IHWO", "HWNC"),
        )
    return of_x, of_kernel


conv.defvjp(lambda *args: (plain_conv(*args), args[:2]), _conv_backward)


@jax.custom_vjp
def conv_3x3_few(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b h w d"]:
    """A convolution padded by 1 for few channels that come out, as a box head's.

    One product gives what each location has for the nine around it, which are then summed.
    """
    return _few_forward(x, kernel)[0]


def _around(x: Float[Array, "b h w n"]) -> list[Float[Array, "b h w n"]]:
    """What is at the nine locations around each; zeros outside."""
    h, w = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]


def _few_forward(x, kernel):
    c, d = kernel.shape[2:]
    products = x.reshape(-1, c) @ kernel.reshape(9, c, d).swapaxes(0, 1).reshape(c, 9 * d)
    around = _around(products.reshape(*x.shape[:3], -1))
    return sum(part[..., d * i : d * (i + 1)] for i, part in enumerate(around)), (x, kernel)


def _few_backward(kept, g):
    x, kernel = kept
    c, d = kernel.shape[2:]
    g = jnp.concatenate(_around(g)[::-1], axis=-1).reshape(-1, 9 * d)
    of_x = g @ kernel.swapaxes(2, 3).reshape(9 * d, c)
    of_kernel = (x.reshape(-1, c).T @ g).reshape(c, 9, d).swapaxes(0, 1)
    return of_x.reshape(x.shape), of_kernel.reshape(kernel.shape)


conv_3x3_few.defvjp(_few_forward, _few_backward)
