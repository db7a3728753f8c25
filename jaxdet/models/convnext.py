"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s"), as torchvision and timm have it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet import ConfigError
from jaxdet.models.layers import OnesConv, names_of_layer, run_block

# By the number of blocks: Tiny; and Small, which is Base at width 128.
BLOCKS = {18: (3, 3, 9, 3), 36: (3, 3, 27, 3)}
EPSILON = 1e-6  # of its normalisation
LAYER_SCALE = 1e-6  # what a block adds at first, times its input

truncated_normal = nnx.initializers.truncated_normal(0.02)


def pad_to_multiple(x: Float[Array, "b h w c"], of: int) -> Float[Array, "b h2 w2 c"]:
    """Zeros below and to the right, so that patches of that size cover everything."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % of), (0, -x.shape[2] % of), (0, 0)))


def patch_conv(in_channels, channels, size, *, dtype, rngs):
    """A convolution of patches that do not overlap."""
    return nnx.Conv(
        in_channels, channels, (size, size), strides=size, padding="VALID",
        kernel_init=truncated_normal, dtype=dtype, rngs=rngs,
    )  # fmt: skip


class Stem(nnx.Module):
    """Patches of 4x4 pixels."""

    def __init__(self, in_channels, channels, *, dtype, rngs):
        self.conv = patch_conv(in_channels, channels, 4, dtype=dtype, rngs=rngs)
        self.ones = OnesConv(channels, 4, 4, 0, dtype=dtype) if in_channels == 1 else None
        self.norm = nnx.LayerNorm(channels, epsilon=EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        x = pad_to_multiple(x, 4)
        y = self.conv(x)
        if self.ones is not None:
            y += self.ones(*x.shape[1:3])
        return self.norm(y)


class Downsample(nnx.Module):
    """Patches of 2x2 locations."""

    def __init__(self, in_channels, channels, *, dtype, rngs):
        self.norm = nnx.LayerNorm(in_channels, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.conv = patch_conv(in_channels, channels, 2, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.conv(pad_to_multiple(self.norm(x), 2))


class Block(nnx.Module):
    """Each channel over 7x7 locations, then each location over its channels, beside a shortcut.

    With probability `drop_path` an image takes the shortcut alone, and the rest is scaled up by as
    much as is then missing on average: stochastic depth (Huang et al. 2016).
    """

    def __init__(self, channels, drop_path, *, dtype, rngs):
        options = {"kernel_init": truncated_normal, "dtype": dtype, "rngs": rngs}
        self.depthwise = nnx.Conv(
            channels, channels, (7, 7), padding=3, feature_group_count=channels, **options
        )
        self.norm = nnx.LayerNorm(channels, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.expand = nnx.Linear(channels, 4 * channels, **options)
        self.reduce = nnx.Linear(4 * channels, channels, **options)
        self.layer_scale = nnx.Param(jnp.full(channels, LAYER_SCALE))
        self.drop_path = nnx.Dropout(
            drop_path, broadcast_dims=(1, 2, 3), rngs=rngs if drop_path else None
        )

    def __call__(self, x, train):
        y = self.expand(self.norm(self.depthwise(x)))
        y = self.reduce(nnx.gelu(y, approximate=False))
        y = self.layer_scale[...].astype(y.dtype) * y
        return x + self.drop_path(y, deterministic=not train)


class Stage(nnx.Module):
    """Half the size of what comes in, but for the first, and blocks."""

    def __init__(self, in_channels, channels, drop_paths, *, remat, dtype, rngs):
        options = {"dtype": dtype, "rngs": rngs}
        changes = in_channels != channels
        self.downsample = Downsample(in_channels, channels, **options) if changes else None
        self.blocks = nnx.List([Block(channels, rate, **options) for rate in drop_paths])
        self.remat = remat

    def __call__(self, x, train):
        x = x if self.downsample is None else self.downsample(x)
        for block in self.blocks:
            x = run_block(block, x, train, remat=self.remat)
        return x


def names_in_files() -> dict[str, tuple[str, ...]]:
    """What torchvision, and what timm, call each array of a ConvNeXt."""
    names = names_of_layer("stem/conv", "features.0.0", "stem.0")
    names |= names_of_layer("stem/norm", "features.0.1", "stem.1")
    for stage in range(4):
        for i, part in enumerate(("norm", "conv")):
            theirs = f"features.{2 * stage}.{i}", f"stages.{stage}.downsample.{i}"
            names |= names_of_layer(f"stages/{stage}/downsample/{part}", *theirs)
        for block in range(max(map(max, BLOCKS.values()))):
            ours = f"stages/{stage}/blocks/{block}"
            vision, timm = f"features.{2 * stage + 1}.{block}", f"stages.{stage}.blocks.{block}"
            names |= names_of_layer(f"{ours}/depthwise", f"{vision}.block.0", f"{timm}.conv_dw")
            names |= names_of_layer(f"{ours}/norm", f"{vision}.block.2", f"{timm}.norm")
            names |= names_of_layer(f"{ours}/expand", f"{vision}.block.3", f"{timm}.mlp.fc1")
            names |= names_of_layer(f"{ours}/reduce", f"{vision}.block.5", f"{timm}.mlp.fc2")
            names[f"{ours}/layer_scale"] = f"{vision}.layer_scale", f"{timm}.gamma"
    return names


class ConvNeXt(nnx.Module):
    """A backbone (see `jaxdet.models`).

    Its patches begin where the anchors' locations are: location k of level l looks around
    (k + 1/2) * 2**l, half a stride beyond them, which the box head learns.

    Args:
        depth: the number of blocks: 18 (Tiny) or 36 (Small).
        width: channels of the first stage (96 in the paper); later stages double it.
        frozen_stages: how much does not learn: 0 nothing, 1 the stem, 2 the first stage too, up
            to 5.
        drop_path: how often an image skips the last block in training; the others less often, in
            a straight line down to never for the first (0.1 for Tiny in the paper, 0.4 for Small).
        remat: keep no activations inside a block for its gradient: less memory, more time.
        in_channels: 1 for a radiograph.
        dtype: of the computation; parameters are float32.

    Raises:
        ConfigError: for a value it cannot follow.
    """

    depths = tuple(BLOCKS)
    names, epsilon = names_in_files(), EPSILON

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        frozen_stages: int,
        drop_path: float = 0.0,
        remat: bool = False,
        in_channels: int = 1,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if depth not in BLOCKS:
            known = ", ".join(map(str, BLOCKS))
            raise ConfigError("model.backbone.depth", f"{depth} is not one of {known} for convnext")
        self.frozen_stages = frozen_stages
        self.out_channels = tuple(width * 2**stage for stage in range(4))
        self.stem = Stem(in_channels, width, dtype=dtype, rngs=rngs)
        options = {"remat": remat, "dtype": dtype, "rngs": rngs}
        channels, block, stages = width, 0, []
        for out_channels, num_blocks in zip(self.out_channels, BLOCKS[depth], strict=True):
            rates = [drop_path * i / (depth - 1) for i in range(block, block + num_blocks)]
            stages.append(Stage(channels, out_channels, rates, **options))
            channels, block = out_channels, block + num_blocks
        self.stages = nnx.List(stages)

    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> list[jax.Array]:
        """C2 to C5: features at 1/4, 1/8, 1/16 and 1/32 of the image, rounded up."""
        features = []
        x = self.stem(x)
        x = jax.lax.stop_gradient(x) if self.frozen_stages >= 1 else x
        for i, stage in enumerate(self.stages, start=2):
            x = stage(x, train and self.frozen_stages < i)
            x = jax.lax.stop_gradient(x) if self.frozen_stages >= i else x
            features.append(x)
        return features
