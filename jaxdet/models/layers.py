"""Layers that the networks share."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet import ConfigError
from jaxdet.kernels import cpu, winograd

EPSILON = 1e-5  # of normalisation that learns, unless a backbone has another: torch's

# What torch calls the arrays of a layer.
IN_TORCH = {
    "kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean",
    "var": "running_var",
}  # fmt: skip

he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def names_of_layer(ours: str, *theirs: str) -> dict[str, tuple[str, ...]]:
    """What files may call each array of a layer: ours by path, theirs by the layer's names."""
    return {
        f"{ours}/{leaf}": tuple(f"{name}.{torchs}" for name in theirs)
        for leaf, torchs in IN_TORCH.items()
    }


@jax.custom_jvp
def relu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`jax.nn.relu`, whose gradient asks what came out: what went in need not be kept."""
    return jnp.maximum(x, 0)


# Not y > 0: XLA would make that a question about x again.
relu.defjvps(lambda tangent, y, _: jnp.where(y != 0, tangent, 0))


class Conv(nnx.Conv):
    """`nnx.Conv` of one stride for both directions."""

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        kernel, bias = (
            None if p is None else jnp.asarray(p[...]) for p in (self.kernel, self.bias)
        )
        return self.convolve(x, kernel, bias)

    def convolve(
        self,
        x: Float[Array, "b h w c"],
        kernel: Float[Array, "k k c d"],
        bias: Float[Array, "d"] | None,
    ) -> Float[Array, "b h2 w2 d"]:
        """With another kernel and bias than its own."""
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        *size, c, d = kernel.shape
        padded_3x3 = (*size, self.strides, self.padding) == (3, 3, 1, 1)
        if not cpu.on_cpu():
            # In eights, or cuDNN copies everything to another number of channels and back.
            kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, 0), (0, -d % 8)))
            x = cpu.plain_conv(x, kernel, self.strides, self.padding)[..., :d]
        elif size == [1, 1]:
            x = cpu.conv_1x1(x, kernel, self.strides)
        elif padded_3x3 and winograd.pays(x, kernel):
            x = winograd.conv_3x3(x, kernel)
        elif padded_3x3 and 9 * d <= c:
            x = cpu.conv_3x3_few(x, kernel)
        else:
            x = cpu.conv(x, kernel, self.strides, self.padding)
        return x if bias is None else cpu.add_bias(x, bias.astype(self.dtype))


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
    mean = cpu.sum_of_channels(x) / count
    variance = jnp.maximum(cpu.sum_of_channels(x * x) / count - mean**2, 0)  # as nnx has it
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
    sum_g = cpu.sum_of_channels(g)
    sum_gz = cpu.sum_of_channels(g * (x - mean)) * inverse
    dx = scale * inverse * (g - sum_g / count - (x - mean) * (inverse * sum_gz / count))
    return dx, sum_gz, sum_g


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


class BatchNorm(nnx.BatchNorm):
    """`nnx.BatchNorm` of channels that come last, whose gradient reads activations fewer times."""

    def __call__(
        self, x: Float[Array, "b h w c"], use_running_average: bool
    ) -> Float[Array, "b h w c"]:
        if use_running_average:
            return super().__call__(x, use_running_average=True)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y, mean, var = batch_norm(wide, self.scale[...], self.bias[...], self.epsilon)
        for average, new in ((self.mean, mean), (self.var, var)):
            average[...] = self.momentum * average[...] + (1 - self.momentum) * new
        return y.astype(self.dtype)


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    *,
    bias: bool = False,
    kernel_init: Callable = he_normal,
    bias_init: Callable = nnx.initializers.zeros,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> Conv:
    """A convolution padded on both sides by half its kernel ("SAME" pads unevenly at stride 2)."""
    return Conv(
        in_channels,
        out_channels,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=bias,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dtype=dtype,
        rngs=rngs,
    )


def run_block(
    block: nnx.Module, x: Float[Array, "b h w c"], *flags: bool, remat: bool
) -> Float[Array, "b h2 w2 d"]:
    """`block(x, *flags)`; with `remat` it is computed again for its gradient, not kept in memory.

    Rematerialisation, also called activation checkpointing (Chen et al. 2016): of a block, only
    what comes in is kept.
    """

    def run(block, x):
        return block(x, *flags)

    return (nnx.remat(run) if remat else run)(block, x)


class OnesConv(nnx.Module):
    """What a backbone's first convolution would add for one more channel, of ones.

    It is 0 unless loaded, and never learns. On a grey image, the channels' means in a colour
    backbone's normalisation come down to it (see `torchvision.to_grey`).
    """

    def __init__(self, channels: int, kernel: int, stride: int, padding: int, *, dtype: DTypeLike):
        # No parameter, so that no optimiser sees it.
        self.kernel = nnx.BatchStat(jnp.zeros((kernel, kernel, 1, channels)))
        self.stride, self.padding, self.dtype = stride, padding, dtype

    def __call__(self, height: int, width: int) -> Float[Array, "1 h w c"]:
        """For an image of that many pixels."""
        ones = jnp.ones((1, height, width, 1), self.dtype)
        kernel = jnp.asarray(self.kernel[...], self.dtype)
        return cpu.plain_conv(ones, kernel, self.stride, self.padding)


class FrozenBatchNorm(nnx.Module):
    """A fixed scale and shift of each channel: BatchNorm whose four vectors never learn.

    Without an epsilon, which matters where a channel hardly varies: torchvision's COCO weights have
    none, and where a file does, `init_from` adds it to the variance.
    """

    def __init__(self, channels: int, *, dtype: DTypeLike):
        # No parameters, so that no optimiser sees them.
        self.scale, self.bias, self.mean, self.var = (
            nnx.BatchStat(jnp.full(channels, value)) for value in (1.0, 0.0, 0.0, 1.0)
        )
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        scale, shift = scale_and_shift(self, 0.0)
        return x * scale.astype(self.dtype) + shift.astype(self.dtype)


class Norm(nnx.Module):
    """BatchNorm ("batch", "frozen_batch") or GroupNorm ("group"), as torch has them.

    GroupNorm has 32 groups where they divide the channels, else 8.

    Raises:
        ConfigError: for channels that 8 does not divide.
    """

    def __init__(
        self,
        kind: str,
        channels: int,
        *,
        epsilon: float = EPSILON,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if kind == "batch":
            self.layer = BatchNorm(channels, momentum=0.9, epsilon=epsilon, dtype=dtype, rngs=rngs)
        elif kind == "frozen_batch":
            self.layer = FrozenBatchNorm(channels, dtype=dtype)
        elif kind == "group":
            groups = 32 if channels % 32 == 0 else 8
            if channels % groups:
                raise ConfigError(
                    "model.backbone.width or model.head_channels",
                    f"GroupNorm needs channels in eights, not {channels}",
                )
            self.layer = nnx.GroupNorm(
                channels, num_groups=groups, epsilon=epsilon, dtype=dtype, rngs=rngs
            )
        else:
            raise ValueError(f"norm: {kind!r} is not one of batch, frozen_batch, group")

    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        if isinstance(self.layer, nnx.BatchNorm):
            return self.layer(x, use_running_average=not train)
        return self.layer(x)

    def fixed(self, train: bool) -> tuple[Float[Array, "c"], Float[Array, "c"]] | None:
        """The scale and shift of each channel, if they do not depend on what comes in."""
        layer = self.layer
        if isinstance(layer, FrozenBatchNorm):
            return scale_and_shift(layer, 0.0)
        if isinstance(layer, nnx.BatchNorm) and not train:
            return scale_and_shift(layer, layer.epsilon)
        return None


def scale_and_shift(
    layer: nnx.BatchNorm | FrozenBatchNorm, epsilon: float
) -> tuple[Float[Array, "c"], Float[Array, "c"]]:
    """What normalisation by the averages of BatchNorm multiplies with and adds."""
    scale = layer.scale[...] * jax.lax.rsqrt(layer.var[...] + epsilon)
    return scale, layer.bias[...] - layer.mean[...] * scale


def conv_norm(
    conv: Conv, norm: Norm, x: Float[Array, "b h w c"], train: bool
) -> Float[Array, "b h2 w2 d"]:
    """`norm(conv(x), train)`; on a GPU, a fixed scale and shift become the convolution's own."""
    fixed = None if cpu.on_cpu() else norm.fixed(train)
    if fixed is None:
        return norm(conv(x), train)
    scale, shift = fixed
    return conv.convolve(x, conv.kernel[...] * scale, shift)
