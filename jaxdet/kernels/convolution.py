"""Convolutions, each by the fastest way on the device that is compiled for."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdet.kernels import switch, winograd


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k2 c d"], stride: int, padding: int
) -> Float[Array, "b h2 w2 d"]:
    """The convolution of one stride and one padding for both directions."""
    *size, c, d = kernel.shape
    device = switch.target()
    if device == "plain":
        return plain_conv(x, kernel, stride, padding)
    if (*size, stride, padding) == (7, 7, 2, 3) and c <= 4:
        return conv_7x7_stride_2(x, kernel)
    if device == "gpu":
        # In eights, or cuDNN copies everything to another number of channels and back.
        kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, 0), (0, -d % 8)))
        return plain_conv(x, kernel, stride, padding)[..., :d]
    if (*size, padding) == (1, 1, 0):
        return conv_1x1(x, kernel, stride)
    if (*size, stride, padding) == (3, 3, 1, 1):
        if winograd.pays(x, kernel):
            return winograd.conv_3x3(x, kernel)
        if 9 * d <= c:
            return conv_3x3_few(x, kernel)
    return conv(x, kernel, stride, padding)


def conv_1x1(
    x: Float[Array, "b h w c"], kernel: Float[Array, "1 1 c d"], stride: int
) -> Float[Array, "b h2 w2 d"]:
    """A 1x1 convolution as a matrix product."""
    x = x[:, ::stride, ::stride]
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:3], -1)


def plain_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k2 c d"], stride: int, padding: int
) -> Float[Array, "b h2 w2 d"]:
    """XLA's own convolution."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def conv_7x7_stride_2(
    x: Float[Array, "b h w c"], kernel: Float[Array, "7 7 c d"]
) -> Float[Array, "b h2 w2 d"]:
    """The convolution, padded by 3, after space-to-depth by 2: a GPU wants more channels."""
    b, h, w, c = x.shape
    # The kernel as 8x8, from 4 pixels before to 3 after; the image as far, to whole blocks.
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    x = jnp.pad(x, ((0, 0), (4, 2 + h % 2), (4, 2 + w % 2), (0, 0)))
    x = x.reshape(b, x.shape[1] // 2, 2, x.shape[2] // 2, 2 * c).swapaxes(2, 3)
    kernel = kernel.reshape(4, 2, 4, 2 * c, -1).swapaxes(1, 2)
    return plain_conv(x.reshape(*x.shape[:3], 4 * c), kernel.reshape(4, 4, 4 * c, -1), 1, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k2 c d"], stride: int, padding: int
) -> Float[Array, "b h2 w2 d"]:
    """A convolution whose gradient by the kernel is faster.

    The kernel's gradient convolves with the batch as feature dimension. XLA fuses the transpose
    that this needs with what made `x`, and computes `x` again in an order that misses the cache. A
    product with the identity transposes too, and is not fused.
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
    """A convolution padded by 1 with few output channels, as a box head's.

    One product gives what each location has for the nine around it, which are then summed.
    """
    return _few_forward(x, kernel)[0]


def _around(x: Float[Array, "b h w n"]) -> list[Float[Array, "b h w n"]]:
    """The nine shifts of an image by one location; zeros outside."""
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
