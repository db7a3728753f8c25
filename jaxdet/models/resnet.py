"""ResNet (He et al. 2016) with the stride on the 3x3 convolution, as torchvision has it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet import InputError

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

EPSILON = 1e-5  # of every normalisation that learns: torch's

he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


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
) -> nnx.Conv:
    """A convolution padded on both sides by half its kernel ("SAME" pads unevenly at stride 2)."""
    return nnx.Conv(
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
        scale = self.scale[...] * jax.lax.rsqrt(self.var[...])
        shift = self.bias[...] - self.mean[...] * scale
        return x * scale.astype(self.dtype) + shift.astype(self.dtype)


class Norm(nnx.Module):
    """BatchNorm ("batch", "frozen_batch") or GroupNorm ("group"), as torch has them.

    GroupNorm has 32 groups where they divide the channels, else 8.

    Raises:
        InputError: for another kind, or channels that 8 does not divide.
    """

    def __init__(self, kind: str, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        if kind == "batch":
            self.layer = nnx.BatchNorm(
                channels, momentum=0.9, epsilon=EPSILON, dtype=dtype, rngs=rngs
            )
        elif kind == "frozen_batch":
            self.layer = FrozenBatchNorm(channels, dtype=dtype)
        elif kind == "group":
            groups = 32 if channels % 32 == 0 else 8
            if channels % groups:
                raise InputError(
                    f"config.model.norm or head_norm: GroupNorm needs channels in eights, not "
                    f"{channels}"
                )
            self.layer = nnx.GroupNorm(
                channels, num_groups=groups, epsilon=EPSILON, dtype=dtype, rngs=rngs
            )
        else:
            raise InputError(
                f"config.model.norm: {kind!r} is not one of 'batch', 'frozen_batch', 'group'"
            )

    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        if isinstance(self.layer, nnx.BatchNorm):
            return self.layer(x, use_running_average=not train)
        return self.layer(x)


def max_pool_3x3_stride_2(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Max over nine strided slices: unlike `reduce_window`, its gradient is a plain selection."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    slices = [x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
    pooled = slices[0]
    for piece in slices[1:]:
        pooled = jnp.maximum(pooled, piece)
    return pooled


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and 34)."""

    expansion = 1

    def __init__(self, in_channels, channels, stride, *, norm, dtype, rngs):
        self.conv1 = conv(in_channels, channels, 3, stride, dtype=dtype, rngs=rngs)
        self.bn1 = Norm(norm, channels, dtype=dtype, rngs=rngs)
        self.conv2 = conv(channels, channels, 3, dtype=dtype, rngs=rngs)
        self.bn2 = Norm(norm, channels, dtype=dtype, rngs=rngs)
        self.downsample = Shortcut(in_channels, channels, stride, norm=norm, dtype=dtype, rngs=rngs)

    def __call__(self, x, train):
        y = nnx.relu(self.bn1(self.conv1(x), train))
        y = self.bn2(self.conv2(y), train)
        return nnx.relu(y + self.downsample(x, train))


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 with four times the channels at its end (ResNet-50 and 101)."""

    expansion = 4

    def __init__(self, in_channels, channels, stride, *, norm, dtype, rngs):
        out_channels = channels * self.expansion
        self.conv1 = conv(in_channels, channels, 1, dtype=dtype, rngs=rngs)
        self.bn1 = Norm(norm, channels, dtype=dtype, rngs=rngs)
        self.conv2 = conv(channels, channels, 3, stride, dtype=dtype, rngs=rngs)
        self.bn2 = Norm(norm, channels, dtype=dtype, rngs=rngs)
        self.conv3 = conv(channels, out_channels, 1, dtype=dtype, rngs=rngs)
        self.bn3 = Norm(norm, out_channels, dtype=dtype, rngs=rngs)
        self.downsample = Shortcut(
            in_channels, out_channels, stride, norm=norm, dtype=dtype, rngs=rngs
        )

    def __call__(self, x, train):
        y = nnx.relu(self.bn1(self.conv1(x), train))
        y = nnx.relu(self.bn2(self.conv2(y), train))
        y = self.bn3(self.conv3(y), train)
        return nnx.relu(y + self.downsample(x, train))


class Shortcut(nnx.Module):
    """The identity, or a 1x1 projection where the shape changes."""

    def __init__(self, in_channels, out_channels, stride, *, norm, dtype, rngs):
        self.projects = stride != 1 or in_channels != out_channels
        if self.projects:
            self.conv = conv(in_channels, out_channels, 1, stride, dtype=dtype, rngs=rngs)
            self.bn = Norm(norm, out_channels, dtype=dtype, rngs=rngs)

    def __call__(self, x, train):
        return self.bn(self.conv(x), train) if self.projects else x


class OnesConv(nnx.Module):
    """What conv1 would add for one more channel, of ones: 0 unless loaded, and never learnt.

    On a grey image, that is what the channels' means in a colour backbone's normalisation come down
    to (see `torchvision.to_grey`).
    """

    def __init__(self, channels: int, *, dtype: DTypeLike):
        self.kernel = nnx.BatchStat(jnp.zeros((7, 7, 1, channels)))
        self.dtype = dtype

    def __call__(self, height: int, width: int) -> Float[Array, "1 h w c"]:
        return jax.lax.conv_general_dilated(
            jnp.ones((1, height, width, 1), self.dtype),
            self.kernel[...].astype(self.dtype),
            window_strides=(2, 2),
            padding=((3, 3), (3, 3)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class ResNet(nnx.Module):
    """The backbone of a ResNet: an image in, the outputs of its four stages out.

    Args:
        depth: 18, 34, 50 or 101.
        width: channels of the first stage (64 in the paper); later stages double it.
        norm: "batch", "frozen_batch" or "group".
        in_channels: 1 for a radiograph.
        frozen_stages: how much does not learn, BatchNorm's averages included: 0 nothing, 1 the
            stem, 2 the first stage too, up to 5.
        dtype: of the computation; parameters are float32.

    Raises:
        InputError: for another depth or norm.
    """

    def __init__(
        self,
        depth: int,
        *,
        width: int = 64,
        norm: str = "batch",
        in_channels: int = 1,
        frozen_stages: int = 0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if depth not in BLOCKS:
            raise InputError(f"config.model.depth: {depth} is not one of {sorted(BLOCKS)}")
        if not 0 <= frozen_stages <= 5:
            raise InputError(f"config.train.frozen_stages: {frozen_stages} is not in 0..5")
        self.frozen_stages = frozen_stages
        block = BasicBlock if depth < 50 else Bottleneck
        self.conv1 = conv(in_channels, width, 7, 2, dtype=dtype, rngs=rngs)
        self.bn1 = Norm(norm, width, dtype=dtype, rngs=rngs)
        self.ones = OnesConv(width, dtype=dtype) if in_channels == 1 else None
        channels, stages = width, []
        for stage, num_blocks in enumerate(BLOCKS[depth]):
            blocks = []
            for i in range(num_blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(
                    block(channels, width * 2**stage, stride, norm=norm, dtype=dtype, rngs=rngs)
                )
                channels = width * 2**stage * block.expansion
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.out_channels = tuple(width * 2**stage * block.expansion for stage in range(4))

    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> list[jax.Array]:
        """C2 to C5: features at 1/4, 1/8, 1/16 and 1/32 of the image."""
        frozen = self.frozen_stages >= 1
        stem = self.conv1(x)
        if self.ones is not None:
            stem += self.ones(*x.shape[1:3])
        x = max_pool_3x3_stride_2(nnx.relu(self.bn1(stem, train and not frozen)))
        x = jax.lax.stop_gradient(x) if frozen else x
        features = []
        for i, stage in enumerate(self.stages, start=2):
            frozen = self.frozen_stages >= i
            for block in stage:
                x = block(x, train and not frozen)
            x = jax.lax.stop_gradient(x) if frozen else x
            features.append(x)
        return features
