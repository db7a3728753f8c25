"""ResNet (He et al. 2016) with the stride on the 3x3 convolution, as torchvision has it."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet import ConfigError
from jaxdet.models.layers import (
    EPSILON,
    Norm,
    OnesConv,
    conv,
    conv_norm,
    max_pool,
    names_of_layer,
    relu,
    run_block,
)

BLOCKS = {
    10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
}  # fmt: skip


class Stem(nnx.Module):
    """A 7x7 convolution and a max-pool, each of stride 2."""

    def __init__(self, in_channels, channels, *, norm, dtype, rngs):
        self.conv = conv(in_channels, channels, 7, 2, dtype=dtype, rngs=rngs)
        self.ones = OnesConv(channels, 7, 2, 3, dtype=dtype) if in_channels == 1 else None
        self.norm = Norm(norm, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x, train):
        kernel = self.conv.kernel[...]
        if self.ones is not None:  # one convolution of two channels
            x = jnp.concatenate([x, jnp.ones_like(x)], axis=-1)
            kernel = jnp.concatenate([kernel, self.ones.kernel[...]], axis=2)
        y = relu(self.norm(self.conv.convolve(x, kernel), train))
        return max_pool(y, (3, 3), (2, 2), ((1, 1), (1, 1)))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and 34)."""

    expansion = 1

    def __init__(self, in_channels, channels, stride, *, norm, dtype, rngs):
        self.conv1 = conv(in_channels, channels, 3, stride, dtype=dtype, rngs=rngs)
        self.norm1 = Norm(norm, channels, dtype=dtype, rngs=rngs)
        self.conv2 = conv(channels, channels, 3, dtype=dtype, rngs=rngs)
        self.norm2 = Norm(norm, channels, dtype=dtype, rngs=rngs)
        self.shortcut = Shortcut(in_channels, channels, stride, norm=norm, dtype=dtype, rngs=rngs)

    def __call__(self, x, train):
        y = relu(conv_norm(self.conv1, self.norm1, x, train))
        y = conv_norm(self.conv2, self.norm2, y, train)
        return relu(y + self.shortcut(x, train))


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 with four times the channels at its end (ResNet-50 and 101)."""

    expansion = 4

    def __init__(self, in_channels, channels, stride, *, norm, dtype, rngs):
        out_channels = channels * self.expansion
        self.conv1 = conv(in_channels, channels, 1, dtype=dtype, rngs=rngs)
        self.norm1 = Norm(norm, channels, dtype=dtype, rngs=rngs)
        self.conv2 = conv(channels, channels, 3, stride, dtype=dtype, rngs=rngs)
        self.norm2 = Norm(norm, channels, dtype=dtype, rngs=rngs)
        self.conv3 = conv(channels, out_channels, 1, dtype=dtype, rngs=rngs)
        self.norm3 = Norm(norm, out_channels, dtype=dtype, rngs=rngs)
        self.shortcut = Shortcut(
            in_channels, out_channels, stride, norm=norm, dtype=dtype, rngs=rngs
        )

    def __call__(self, x, train):
        y = relu(conv_norm(self.conv1, self.norm1, x, train))
        y = relu(conv_norm(self.conv2, self.norm2, y, train))
        y = conv_norm(self.conv3, self.norm3, y, train)
        return relu(y + self.shortcut(x, train))


class Shortcut(nnx.Module):
    """The identity, or a 1x1 projection where the shape changes."""

    def __init__(self, in_channels, out_channels, stride, *, norm, dtype, rngs):
        self.projects = stride != 1 or in_channels != out_channels
        if self.projects:
            self.conv = conv(in_channels, out_channels, 1, stride, dtype=dtype, rngs=rngs)
            self.norm = Norm(norm, out_channels, dtype=dtype, rngs=rngs)

    def __call__(self, x, train):
        return conv_norm(self.conv, self.norm, x, train) if self.projects else x


def names_in_files() -> dict[str, tuple[str, ...]]:
    """What torchvision, and timm too, call each array of a ResNet."""
    names = names_of_layer("stem/conv", "conv1") | names_of_layer("stem/norm/layer", "bn1")
    for stage, block in itertools.product(range(4), range(max(map(max, BLOCKS.values())))):
        ours, theirs = f"stages/{stage}/{block}", f"layer{stage + 1}.{block}"
        for i in (1, 2, 3):
            names |= names_of_layer(f"{ours}/conv{i}", f"{theirs}.conv{i}")
            names |= names_of_layer(f"{ours}/norm{i}/layer", f"{theirs}.bn{i}")
        names |= names_of_layer(f"{ours}/shortcut/conv", f"{theirs}.downsample.0")
        names |= names_of_layer(f"{ours}/shortcut/norm/layer", f"{theirs}.downsample.1")
    return names


class ResNet(nnx.Module):
    """A backbone (see `jaxdet.models`): an image in, its four stages' outputs out.

    Args:
        depth: 10, 18, 34, 50 or 101.
        width: channels of the first stage (64 in the paper); later stages double it.
        norm: "batch", "frozen_batch" or "group".
        frozen_stages: how much does not learn, BatchNorm's averages included: 0 nothing, 1 the
            stem, 2 the first stage too, up to 5.
        remat: keep no activations inside a block for its gradient: less memory, more time.
        in_channels: 1 for a radiograph.
        dtype: of the computation; parameters are float32.

    Raises:
        ConfigError: for a value it cannot follow.
    """

    depths = tuple(BLOCKS)
    norms = ("batch", "frozen_batch", "group")
    names, epsilon = names_in_files(), EPSILON

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        norm: str,
        frozen_stages: int,
        remat: bool = False,
        in_channels: int = 1,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if depth not in BLOCKS:
            known = ", ".join(map(str, BLOCKS))
            raise ConfigError("model.backbone.depth", f"{depth} is not one of {known}")
        if norm not in self.norms:
            known = ", ".join(self.norms)
            raise ConfigError("model.backbone.norm", f"{norm!r} is not one of {known}")
        block = BasicBlock if depth < 50 else Bottleneck
        options = {"norm": norm, "dtype": dtype, "rngs": rngs}
        self.frozen_stages, self.remat = frozen_stages, remat
        self.stem = Stem(in_channels, width, **options)
        channels, stages = width, []
        for stage, num_blocks in enumerate(BLOCKS[depth]):
            blocks = []
            for i in range(num_blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(block(channels, width * 2**stage, stride, **options))
                channels = width * 2**stage * block.expansion
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.out_channels = tuple(width * 2**stage * block.expansion for stage in range(4))

    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> list[jax.Array]:
        """C2 to C5: features at 1/4, 1/8, 1/16 and 1/32 of the image, rounded up.

        Location k of level l looks at the image around k * 2**l, where the anchors are.
        """
        frozen = self.frozen_stages >= 1
        x = self.stem(x, train and not frozen)
        x = jax.lax.stop_gradient(x) if frozen else x
        features = []
        for i, stage in enumerate(self.stages, start=2):
            frozen = self.frozen_stages >= i
            for block in stage:
                x = run_block(block, x, train and not frozen, remat=self.remat)
            x = jax.lax.stop_gradient(x) if frozen else x
            features.append(x)
        return features
