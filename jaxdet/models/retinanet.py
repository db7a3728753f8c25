"""RetinaNet (Lin et al. 2017, "Focal Loss for Dense Object Detection")."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet.models.fpn import FPN
from jaxdet.models.resnet import Norm, ResNet, conv

# The probability that an untrained anchor gives to each class (paper, section 4.1). It belongs on
# the class head alone.
PRIOR = 0.01

small_normal = nnx.initializers.normal(0.01)


class Head(nnx.Module):
    """A tower of 3x3 convolutions shared by all levels, then `outputs` values per anchor."""

    def __init__(
        self, channels, hidden, depth, num_anchors, outputs, final_bias, *, norm, dtype, rngs
    ):
        def layer(channels_in, channels_out, bias_init=nnx.initializers.zeros, bias=True):
            return conv(
                channels_in, channels_out, 3,
                bias=bias, kernel_init=small_normal, bias_init=bias_init, dtype=dtype, rngs=rngs,
            )  # fmt: skip

        sizes = [channels] + [hidden] * depth
        normed = norm is not None
        self.tower = nnx.List([layer(a, b, bias=not normed) for a, b in itertools.pairwise(sizes)])
        self.norms = nnx.List(
            [Norm(norm, hidden, dtype=dtype, rngs=rngs) for _ in range(depth if normed else 0)]
        )
        self.final = layer(sizes[-1], num_anchors * outputs, nnx.initializers.constant(final_bias))
        self.outputs = outputs

    def __call__(self, x, train):
        for i, layer in enumerate(self.tower):
            x = layer(x)
            x = nnx.relu(self.norms[i](x, train) if self.norms else x)
        return self.final(x).reshape(x.shape[0], -1, self.outputs)


class Outputs(NamedTuple):
    """Of all anchors, level after level; and of the image."""

    class_logits: Float[Array, "batch anchors classes"]
    box_offsets: Float[Array, "batch anchors 4"]  # see `boxes.encode`
    image_logits: Float[Array, "batch labels"] | None  # each class, then "any finding"


class RetinaNet(nnx.Module):
    """A one-stage detector: ResNet, feature pyramid, and two heads shared by its levels.

    Args:
        num_classes: number of findings; there is no background class.
        num_anchors: anchors per location.
        depth, width, norm, in_channels, frozen_stages: of the ResNet backbone, see `ResNet`.
        levels: pyramid levels, such as (3, 4, 5, 6, 7).
        p6_from: see `FPN`.
        fpn_channels: channels of the pyramid.
        head_channels, head_depth: of each head's tower.
        head_norm: "group" for normalised towers (torchvision's v2), None for plain ones.
        image_head: also say which findings are somewhere in the image, from the mean of C5.
        dtype: of the computation; parameters are float32.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_anchors: int,
        depth: int = 50,
        width: int = 64,
        norm: str = "batch",
        in_channels: int = 1,
        frozen_stages: int = 0,
        levels: Sequence[int] = (3, 4, 5, 6, 7),
        p6_from: str = "p5",
        fpn_channels: int = 256,
        head_channels: int = 256,
        head_depth: int = 4,
        head_norm: str | None = None,
        image_head: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.backbone = ResNet(
            depth,
            width=width,
            norm=norm,
            in_channels=in_channels,
            frozen_stages=frozen_stages,
            dtype=dtype,
            rngs=rngs,
        )
        self.fpn = FPN(
            self.backbone.out_channels,
            fpn_channels,
            levels,
            p6_from=p6_from,
            dtype=dtype,
            rngs=rngs,
        )
        tower = (fpn_channels, head_channels, head_depth, num_anchors)
        head = {"norm": head_norm, "dtype": dtype, "rngs": rngs}
        self.class_head = Head(*tower, num_classes, -math.log((1 - PRIOR) / PRIOR), **head)
        self.box_head = Head(*tower, 4, 0.0, **head)
        pooled = self.backbone.out_channels[-1]
        self.image_head = (
            nnx.Linear(pooled, num_classes + 1, dtype=dtype, rngs=rngs) if image_head else None
        )

    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Outputs:
        """What the network says of normalised images (`augment.normalize`).

        `train` is for BatchNorm: batch statistics and their running average, or the average alone.
        """
        features = self.backbone(images, train)
        pyramid = self.fpn(features)
        class_logits = [self.class_head(x, train) for x in pyramid]
        box_offsets = [self.box_head(x, train) for x in pyramid]
        return Outputs(
            jnp.concatenate(class_logits, axis=1),
            jnp.concatenate(box_offsets, axis=1),
            self.image_head(features[-1].mean(axis=(1, 2))) if self.image_head else None,
        )
