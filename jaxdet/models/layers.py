"""Layers that the networks share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet import ConfigError

# Also for the networks, which take all their layers from here.
from jaxdet.kernels.nn import BatchNorm, Conv, conv_norm, max_pool, relu  # noqa: F401

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
        return jax.lax.conv_general_dilated(
            jnp.ones((1, height, width, 1), self.dtype),
            jnp.asarray(self.kernel[...], self.dtype),
            (self.stride, self.stride),
            [(self.padding, self.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


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
