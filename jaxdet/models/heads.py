"""What one-stage detectors share: heads on a pyramid, and detections of what the heads say."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet.models.layers import Norm, conv, relu
from jaxdet.ops.box_coder import BoxCoder
from jaxdet.ops.matching import Priors
from jaxdet.ops.nms import Detections, select_detections

# The probability that an untrained detector gives to each class at each place (Lin et al. 2017,
# section 4.1), as the bias of the class head. It belongs there alone.
PRIOR = 0.01
PRIOR_BIAS = -math.log((1 - PRIOR) / PRIOR)

MOST_DEPTH = 16  # more than any head in a file is deep


def head_conv(
    in_channels: int, out_channels: int, bias_value: float = 0.0, bias: bool = True, **common
) -> nnx.Module:
    """A 3x3 convolution that starts with small numbers."""
    return conv(
        in_channels, out_channels, 3, bias=bias,
        kernel_init=nnx.initializers.normal(0.01),
        bias_init=nnx.initializers.constant(bias_value), **common,
    )  # fmt: skip


class Head(nnx.Module):
    """A tower of 3x3 convolutions shared by all levels, and a last one.

    Args:
        channels: of the pyramid.
        hidden, depth: channels and number of the tower's convolutions.
        outputs: values at each location.
        final_bias: that the last convolution starts with.
        norm: after each convolution of the tower: see `Norm`, or "none".
        bias: whether the tower's convolutions have a bias.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        depth: int,
        outputs: int,
        final_bias: float = 0.0,
        *,
        norm: str,
        bias: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        common = {"dtype": dtype, "rngs": rngs}
        sizes = [channels] + [hidden] * depth
        self.tower = nnx.List(
            [head_conv(a, b, bias=bias, **common) for a, b in itertools.pairwise(sizes)]
        )
        count = 0 if norm == "none" else depth
        self.norms = nnx.List([Norm(norm, hidden, **common) for _ in range(count)])
        self.final = head_conv(sizes[-1], outputs, final_bias, **common)

    def features(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w d"]:
        """What the tower makes of a level."""
        for i, layer in enumerate(self.tower):
            x = layer(x)
            x = relu(self.norms[i](x, train) if self.norms else x)
        return x

    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w outputs"]:
        return self.final(self.features(x, train))


def join(levels: list[Float[Array, "b _ _ _"]], size: int) -> Float[Array, "b places {size}"]:
    """What a head says of each level as one table of all places, with `size` values each."""
    rows = [x.reshape(x.shape[0], -1) for x in levels]  # long rows are joined faster than short
    return jnp.concatenate(rows, axis=1).reshape(rows[0].shape[0], -1, size)


def detections_of_scores(
    scores: Float[Array, "places classes"],
    box_offsets: Float[Array, "places 4"],
    image_logits: Float[Array, "labels"] | None,
    priors: Priors,
    box_coder: BoxCoder,
    **inference,
) -> Detections:
    """The detections of one image; see `nms.select_detections` for the rule and its numbers.

    Args:
        scores: 0 to 1, of all levels.
        image_logits: of each class, then "any finding", which says how normal the image is. None:
            the scores say so.
    """
    starts = np.cumsum([len(level) for level in priors.pyramid])[:-1]
    offsets = jnp.split(box_offsets, starts)

    def decode(level, chosen):
        some = offsets[level][chosen].astype(jnp.float32)
        return box_coder.decode(some, jnp.asarray(priors.pyramid[level])[chosen])

    normal = None
    if image_logits is not None:
        normal = 1 - jax.nn.sigmoid(image_logits[-1].astype(jnp.float32))
    levels = jnp.split(scores, starts)
    return select_detections(levels, decode, priors.image_size, normal, **inference)
