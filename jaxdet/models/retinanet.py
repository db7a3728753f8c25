"""RetinaNet (Lin et al. 2017, "Focal Loss for Dense Object Detection")."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxdet.models.fpn import FPN
from jaxdet.models.layers import Norm, conv, relu
from jaxdet.ops import box_coder
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.anchors import pyramid_anchors
from jaxdet.ops.losses import image_loss, retinanet_loss
from jaxdet.ops.matching import count_unmatched, match_anchors, match_anchors_atss
from jaxdet.ops.nms import Detections, nms_mask

# The probability that an untrained anchor gives to each class (paper, section 4.1). It belongs on
# the class head alone.
PRIOR = 0.01

small_normal = nnx.initializers.normal(0.01)


class Outputs(NamedTuple):
    """Of all anchors, level after level; and of the image."""

    class_logits: Float[Array, "batch anchors classes"]
    box_offsets: Float[Array, "batch anchors 4"]  # see `box_coder.encode`
    image_logits: Float[Array, "batch labels"] | None  # each class, then "any finding"


class Head(nnx.Module):
    """A tower of 3x3 convolutions shared by all levels; a row of `outputs` values an anchor."""

    def __init__(
        self, channels, hidden, depth, num_anchors, outputs, final_bias, *, norm, dtype, rngs
    ):
        def layer(channels_in, channels_out, bias_init=nnx.initializers.zeros, bias=True):
            return conv(
                channels_in, channels_out, 3,
                bias=bias, kernel_init=small_normal, bias_init=bias_init, dtype=dtype, rngs=rngs,
            )  # fmt: skip

        sizes = [channels] + [hidden] * depth
        normed = norm != "none"
        self.tower = nnx.List([layer(a, b, bias=not normed) for a, b in itertools.pairwise(sizes)])
        self.norms = nnx.List(
            [Norm(norm, hidden, dtype=dtype, rngs=rngs) for _ in range(depth if normed else 0)]
        )
        self.final = layer(sizes[-1], num_anchors * outputs, nnx.initializers.constant(final_bias))
        self.outputs = outputs

    def __call__(self, x, train):
        for i, layer in enumerate(self.tower):
            x = layer(x)
            x = relu(self.norms[i](x, train) if self.norms else x)
        return self.final(x).reshape(x.shape[0], -1)


def top_k(
    x: Float[Array, "n"], k: int, group: int = 16
) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
    """`jax.lax.top_k`, of equal values the first ones too, without sorting them all.

    The k largest values are in the k groups that have the largest maxima.
    """
    if len(x) <= 2 * group * k:
        return tuple(jax.lax.top_k(x, k))
    groups = jnp.pad(x, (0, -len(x) % group), constant_values=-jnp.inf).reshape(-1, group)
    _, likely = top_k(groups.max(axis=1), k, group)
    likely = jnp.sort(likely)  # in order again, for equal values
    best, index = jax.lax.top_k(groups[likely].reshape(-1), k)
    return best, likely[index // group] * group + index % group


def select_detections(
    class_logits: Float[Array, "anchors classes"],
    box_offsets: Float[Array, "anchors 4"],
    image_logits: Float[Array, "labels"] | None,
    pyramid: list[Float[np.ndarray, "_ 4"]],
    image_size: tuple[int, int],
    *,
    score_threshold: float,
    pre_nms_top_k: int,
    nms_iou: float,
    max_detections: int,
) -> Detections:
    """Detections of one image, by the rule of torchvision's RetinaNet.

    Each level gives its `pre_nms_top_k` best pairs of anchor and class above `score_threshold`;
    those are decoded, cut to the image and thinned by class-wise NMS at `nms_iou`; the best
    `max_detections` stay. `pyramid` holds the anchors of each level in the order of the logits;
    `image_size` is (height, width).

    `normal` is the probability of no finding by `image_logits` (see `Outputs`); without those, it
    is 1 - the best score: an image is as normal as its most suspicious box is not.
    """
    num_classes = class_logits.shape[-1]
    probabilities = jax.nn.sigmoid(class_logits.astype(jnp.float32))
    boxes, labels, scores = [], [], []
    start = 0
    for anchors in pyramid:
        end = start + len(anchors)
        pairs = probabilities[start:end].reshape(-1)
        best, pair = top_k(pairs, min(pre_nms_top_k, len(pairs)))
        anchor = pair // num_classes
        offsets = box_offsets[start:end][anchor].astype(jnp.float32)
        boxes.append(
            box_ops.clip(box_coder.decode(offsets, jnp.asarray(anchors)[anchor]), *image_size)
        )
        labels.append(pair % num_classes)
        scores.append(best)
        start = end
    boxes, labels, scores = (jnp.concatenate(x) for x in (boxes, labels, scores))

    scores = jnp.where(scores > score_threshold, scores, 0)
    order = jnp.argsort(-scores, stable=True)
    boxes, labels, scores = boxes[order], labels[order], scores[order]
    keep = nms_mask(boxes, labels, nms_iou) & (scores > 0)
    kept_first = jnp.argsort(~keep, stable=True)[:max_detections]
    if image_logits is None:
        normal = 1 - scores[0]
    else:
        normal = 1 - jax.nn.sigmoid(image_logits[-1].astype(jnp.float32))
    return Detections(*(x[kept_first] for x in (boxes, labels, scores, keep)), normal)


class RetinaNet(nnx.Module):
    """A one-stage detector: a backbone, a feature pyramid, two heads shared by its levels, and what
    belongs to them: the anchors, the losses, and the choice of detections.

    Args:
        backbone: a module with `out_channels`, the channels of C2 to C5, that makes of normalised
            images those four: `backbone(images, train) -> [C2, C3, C4, C5]`, C at level l 1/2**l of
            the image, rounded up. What comes first in it is called `stem`, the rest `stages/0` to
            `stages/3` (for the learning rate, and what is frozen); `names` is for `init_from`.
        num_classes: number of findings; there is no background class.
        image_size: of the square images, in pixels.
        levels: pyramid levels, such as (3, 4, 5, 6, 7).
        anchor_scales, aspect_ratios: of each location's anchors, see `anchors.pyramid_anchors`.
        p6_from: see `FPN`.
        fpn_channels: channels of the pyramid.
        head_channels, head_depth: of each head's tower.
        head_norm: "group" for normalised towers (torchvision's v2), or "none".
        image_head: also say which findings are somewhere in the image, from the mean of C5.
        dtype: of the computation; parameters are float32, and so are losses and detections.
        loss: the fields of `config.loss`, see `configs/retina.py`.

    Raises:
        ValueError: for a value that it cannot follow.
    """

    def __init__(
        self,
        backbone: nnx.Module,
        *,
        num_classes: int,
        image_size: int,
        levels: Sequence[int],
        anchor_scales: Sequence[float | int],
        aspect_ratios: Sequence[float | int],
        p6_from: str,
        fpn_channels: int,
        head_channels: int,
        head_depth: int,
        head_norm: str,
        image_head: bool,
        dtype: DTypeLike,
        loss: Mapping[str, Any],
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone
        self.fpn = FPN(
            backbone.out_channels,
            fpn_channels,
            tuple(levels),
            p6_from=p6_from,
            dtype=dtype,
            rngs=rngs,
        )
        num_anchors = len(anchor_scales) * len(aspect_ratios)
        tower = (fpn_channels, head_channels, head_depth, num_anchors)
        head = {"norm": head_norm, "dtype": dtype, "rngs": rngs}
        self.class_head = Head(*tower, num_classes, -math.log((1 - PRIOR) / PRIOR), **head)
        self.box_head = Head(*tower, 4, 0.0, **head)
        pooled = backbone.out_channels[-1]
        self.image_head = (
            nnx.Linear(pooled, num_classes + 1, dtype=dtype, rngs=rngs) if image_head else None
        )
        self.levels, self.image_size = tuple(levels), (image_size, image_size)
        self.anchor_scales, self.aspect_ratios = tuple(anchor_scales), tuple(aspect_ratios)
        self.loss = tuple(loss.items())  # hashable, as a module's structure must be

    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Outputs:
        """What the network says of normalised images (`images.normalize`).

        `train` is for BatchNorm: batch statistics and their running average, or the average alone.
        """
        features = self.backbone(images, train)
        pyramid = self.fpn(features)
        class_logits = [self.class_head(x, train) for x in pyramid]
        box_offsets = [self.box_head(x, train) for x in pyramid]

        def join(levels, size):  # long rows are joined faster than short ones
            return jnp.concatenate(levels, axis=1).reshape(images.shape[0], -1, size)

        return Outputs(
            join(class_logits, self.class_head.outputs),
            join(box_offsets, self.box_head.outputs),
            self.image_head(features[-1].mean(axis=(1, 2))) if self.image_head else None,
        )

    def anchors(self) -> list[Float[np.ndarray, "_ 4"]]:
        """Those of each level, in pixels, in the order of the outputs."""
        return pyramid_anchors(self.image_size, self.levels, self.anchor_scales, self.aspect_ratios)

    def match(
        self, boxes: Float[Array, "boxes 4"], mask: Bool[Array, "boxes"]
    ) -> Int[Array, "anchors"]:
        """The box of an image that each anchor answers for, or a value below 0, see `matching`."""
        loss, pyramid = dict(self.loss), self.anchors()
        if loss["matching"] == "iou":
            limits = loss["foreground_iou"], loss["background_iou"]
            return match_anchors(jnp.asarray(np.concatenate(pyramid)), boxes, mask, *limits)
        count = loss["atss_candidates"]
        return match_anchors_atss(pyramid, self.levels, self.image_size, boxes, mask, count)

    def losses(
        self,
        outputs: Outputs,
        boxes: Float[Array, "batch boxes 4"],
        labels: Int[Array, "batch boxes"],
        scores: Float[Array, "batch boxes"],
        mask: Bool[Array, "batch boxes"],
    ) -> dict[str, Float[Array, ""] | Int[Array, ""]]:
        """Means over the images: "loss", which is to be made small, and what it is the sum of.

        The parts are "class_loss", "box_loss" and, with that head, "image_loss", before the weights
        of `config.loss`. "boxes_without_anchor" counts the boxes of all images that teach nothing,
        since no anchor answers for them.

        Args:
            boxes: of the images, in pixels, padded.
            scores: class targets of the boxes: 1, or less where not all readers drew one.
            mask: False for padding.
        """
        loss = dict(self.loss)
        all_anchors = jnp.asarray(np.concatenate(self.anchors()))

        def of_image(outputs, boxes, labels, scores, mask):
            matches = self.match(boxes, mask)
            parts = retinanet_loss(
                outputs.class_logits, outputs.box_offsets, all_anchors, matches,
                boxes, labels, scores, class_loss=loss["class_loss"], alpha=loss["alpha"],
                gamma=loss["gamma"], box_loss=loss["box"],
            )._asdict()  # fmt: skip
            if outputs.image_logits is not None:
                parts["image_loss"] = image_loss(outputs.image_logits, labels, scores, mask)
            return parts, count_unmatched(matches, mask)

        parts, unmatched = jax.vmap(of_image)(outputs, boxes, labels, scores, mask)
        parts = {name: value.mean() for name, value in parts.items()}
        total = parts["class_loss"] + loss["box_weight"] * parts["box_loss"]
        total += loss["image_weight"] * parts.get("image_loss", 0.0)
        return {"loss": total, **parts, "boxes_without_anchor": unmatched.sum()}

    def detections(
        self,
        outputs: Outputs,
        *,
        score_threshold: float,
        pre_nms_top_k: int,
        nms_iou: float,
        max_detections: int,
    ) -> Detections:
        """The detections of each image, see `select_detections` for the rule and its numbers."""

        def of_image(outputs):
            return select_detections(
                *outputs,
                self.anchors(),
                self.image_size,
                score_threshold=score_threshold,
                pre_nms_top_k=pre_nms_top_k,
                nms_iou=nms_iou,
                max_detections=max_detections,
            )

        return jax.vmap(of_image)(outputs)
