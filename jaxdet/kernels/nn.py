"""Layers and functions of `flax.nnx` under their own names, made fast.

Each takes flax's arguments, holds flax's parameters and gives what flax gives, with the same
gradients. Where no kernel is made for what is asked, and with JAXDET_PLAIN=1, it is flax's own.
"""

from collections.abc import Sequence
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxdet.kernels import switch
from jaxdet.kernels.channels import add_bias, batch_norm
from jaxdet.kernels.convolution import convolve


class Conv(nnx.Conv):
    """`nnx.Conv`; fast in two dimensions with a number as stride and as padding."""

    def __call__(self, x: Float[Array, "*n h w c"]) -> Float[Array, "*n h2 w2 d"]:
        if switch.target() == "plain" or x.ndim != 4 or not self.has_kernel():
            return super().__call__(x)
        return self.convolve(x, self.kernel[...], None if self.bias is None else self.bias[...])

    def has_kernel(self) -> bool:
        """Whether a fast kernel exists for this convolution; if not, flax's own runs."""
        ones = self.input_dilation, self.kernel_dilation, self.feature_group_count
        return (
            len(self.kernel_size) == 2
            and isinstance(self.strides, int)
            and isinstance(self.padding, int)
            and all(option is None or np.all(np.equal(option, 1)) for option in ones)
            and self.mask is None
            and self.precision is None
            and self.preferred_element_type is None
        )

    def convolve(
        self,
        x: Float[Array, "b h w c"],
        kernel: Float[Array | np.ndarray, "k k2 c d"],
        bias: Float[Array | np.ndarray, "d"] | None = None,
    ) -> Float[Array, "b h2 w2 d"]:
        """The convolution with a given kernel and bias."""
        x, kernel, bias = self.promote_dtype((x, kernel, bias), dtype=self.dtype)
        y = convolve(x, kernel, self.strides, self.padding)
        return y if bias is None else add_bias(y, bias)


class BatchNorm(nnx.BatchNorm):
    """`nnx.BatchNorm`; fast for statistics of channels that come last, with scale and bias."""

    def __call__(self, x: Float[Array, "*n c"], use_running_average: bool) -> Float[Array, "*n c"]:
        has_kernel = (
            self.axis == -1
            and self.axis_name is None
            and self.use_fast_variance
            and all(x is not None for x in (self.scale, self.bias, self.dtype))
        )
        if switch.target() == "plain" or use_running_average or not has_kernel:
            return super().__call__(x, use_running_average=use_running_average)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y, mean, var = batch_norm(wide, self.scale[...], self.bias[...], self.epsilon)
        for average, new in ((self.mean, mean), (self.var, var)):
            # Not `average[...] =`, which asks a tracer for its sharding: slow in large networks.
            moved = self.momentum * average[...] + (1 - self.momentum) * new
            average.set_value(moved.astype(average.dtype))
        return y.astype(self.dtype)


def conv_norm(
    conv: Conv, norm: nnx.Module, x: Float[Array, "b h w c"], train: bool
) -> Float[Array, "b h2 w2 d"]:
    """`norm(conv(x), train)`.

    `norm.fixed(train)` gives the scale and shift of each channel, or None where they depend on what
    comes in. On a GPU they become the kernel and bias of the convolution, if it has no bias itself.
    """
    fixed = norm.fixed(train) if switch.target() == "gpu" and conv.has_kernel() else None
    if fixed is None or conv.bias is not None:
        return norm(conv(x), train)
    scale, shift = fixed
    return conv.convolve(x, conv.kernel[...] * scale, shift)


def relu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`nnx.relu`, whose backward uses the output, so that the input is not saved."""
    return nnx.relu(x) if switch.target() == "plain" else _relu(x)


@jax.custom_jvp
def _relu(x):
    return jnp.maximum(x, 0)


# Not y > 0: XLA would make that a question about x again.
_relu.defjvps(lambda tangent, y, _: jnp.where(y != 0, tangent, 0))


def max_pool(
    x: Float[Array, "b h w c"],
    window_shape: tuple[int, int],
    strides: tuple[int, int],
    padding: Sequence[tuple[int, int]],
) -> Float[Array, "b h2 w2 c"]:
    """`nnx.max_pool` of explicit padding, as max over rows and then over columns of strided slices.

    Unlike that of `reduce_window`, its gradient is a plain selection; and a 3x3 window is read
    three times in each direction, not nine times. Where equal values are the largest, flax's gives
    the first of them the gradient, and this one a part to each.
    """
    if switch.target() == "plain":
        return nnx.max_pool(x, window_shape, strides, padding)
    for axis, size, stride, (low, high) in zip((1, 2), window_shape, strides, padding, strict=True):
        widths = [(low, high) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(x, widths, constant_values=-jnp.inf)
        last = padded.shape[axis] - size  # where the last window may begin
        x = reduce(
            jnp.maximum,
            [jax.lax.slice_in_dim(padded, i, i + last + 1, stride, axis) for i in range(size)],
        )
    return x
