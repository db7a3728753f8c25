"""RetinaNet (Lin et al. 2017, "Focal Loss for Dense Object Detection")."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxdet.models.fpn import FPN
from jaxdet.models.heads import MOST_DEPTH, PRIOR_BIAS, Head, detections_of_scores, join
from jaxdet.models.layers import names_of_layer
from jaxdet.ops import anchors
from jaxdet.ops.box_coder import BoxCoder
from jaxdet.ops.boxes import Targets
from jaxdet.ops.losses import anchor_losses, image_loss
from jaxdet.ops.matching import Priors, count_unmatched
from jaxdet.ops.nms import Detections


class Outputs(NamedTuple):
    """Of all anchors, level after level; and of the image."""

    class_logits: Float[Array, "batch anchors classes"]
    box_offsets: Float[Array, "batch anchors 4"]  # see `box_coder.encode`
    image_logits: Float[Array, "batch labels"] | None  # each class, then "any finding"


def detections_of_image(
    outputs: Outputs, priors: Priors, box_coder: BoxCoder, **inference
) -> Detections:
    """The detections of one image: a class is as probable as its logit says."""
    scores = jax.nn.sigmoid(outputs.class_logits.astype(jnp.float32))
    rest = outputs.box_offsets, outputs.image_logits, priors, box_coder
    return detections_of_scores(scores, *rest, **inference)


def names_in_files() -> dict[str, tuple[str, ...]]:
    """What torchvision calls each array of the heads, now and before.

    In older files the layers of a head are not yet blocks of convolution and normalisation, and the
    ReLUs are counted too.
    """
    names = {}
    for ours, theirs, final in (
        ("class_head", "head.classification_head", "cls_logits"),
        ("box_head", "head.regression_head", "bbox_reg"),
    ):
        for i in range(MOST_DEPTH):
            block = f"{theirs}.conv.{i}"
            names |= names_of_layer(f"{ours}/tower/{i}", f"{block}.0", f"{theirs}.conv.{2 * i}")
            names |= names_of_layer(f"{ours}/norms/{i}/layer", f"{block}.1")
        names |= names_of_layer(f"{ours}/final", f"{theirs}.{final}")
    return names


class RetinaNet(nnx.Module):
    """A one-stage detector: a backbone, a feature pyramid, two heads shared by its levels, and what
    belongs to them: the anchors, the losses, and the choice of detections.

    Args:
        backbone: see `jaxdet.models`.
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
        matcher: says which anchor answers for which box, as those of `matching.MATCHERS`.
        box_coder: what the box head says of a box, see `box_coder`.
        class_loss, box_loss: as those of `losses.CLASS_LOSSES` and `losses.BOX_LOSSES`.
        box_weight, image_weight: of the box loss and the image head's, beside the class loss.

    Raises:
        ConfigError: for a value that it cannot follow.
    """

    # What `plan` chooses where it is None, with values that do until then.
    planned: ClassVar = {"levels": (3, 4, 5), "anchor_scales": (1.0,), "aspect_ratios": (1.0,)}
    names: ClassVar = names_in_files()
    # torchvision loads its COCO weights into frozen BatchNorm without an epsilon.
    frozen_epsilon: ClassVar = 0.0

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
        matcher: Callable,
        box_coder: BoxCoder,
        class_loss: Callable,
        box_loss: Callable,
        box_weight: float,
        image_weight: float,
        dtype: DTypeLike,
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
        tower = (fpn_channels, head_channels, head_depth)
        head = {"norm": head_norm, "bias": head_norm == "none", "dtype": dtype, "rngs": rngs}
        self.class_head = Head(*tower, num_anchors * num_classes, PRIOR_BIAS, **head)
        self.box_head = Head(*tower, num_anchors * 4, **head)
        pooled = backbone.out_channels[-1]
        self.image_head = (
            nnx.Linear(pooled, num_classes + 1, dtype=dtype, rngs=rngs) if image_head else None
        )
        self.num_classes = num_classes
        self.levels, self.image_size = tuple(levels), (image_size, image_size)
        self.anchor_scales, self.aspect_ratios = tuple(anchor_scales), tuple(aspect_ratios)
        self.matcher, self.box_coder = matcher, box_coder
        self.class_loss, self.box_loss = class_loss, box_loss
        self.box_weight, self.image_weight = box_weight, image_weight

    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool = False
    ) -> Outputs:
        """What the network says of normalised images (`images.normalize`).

        `train` is for BatchNorm: batch statistics and their running average, or the average alone.
        """
        features = self.backbone(images, train)
        pyramid = self.fpn(features)
        return Outputs(
            join([self.class_head(x, train) for x in pyramid], self.num_classes),
            join([self.box_head(x, train) for x in pyramid], 4),
            self.image_head(features[-1].mean(axis=(1, 2))) if self.image_head else None,
        )

    @classmethod
    def plan(
        cls,
        model: Any,
        boxes: Float[np.ndarray, "n 4"],
        labels: Int[np.ndarray, "n"],
        image_size: int,
    ) -> dict[str, Any]:
        """Levels, scales and ratios of the anchors, where `model` has None, see `anchors.plan`.

        Args:
            model: `config.model`.
            boxes: to train on, in pixels of the input; at least one.
        """
        given = {"levels": model["levels"], "scales": model["anchor_scales"],
                 "aspect_ratios": model["aspect_ratios"]}  # fmt: skip
        numbers = model["num_scales"], model["num_ratios"]
        plan = anchors.plan(boxes, labels, image_size, *numbers, **given)
        return dict(zip(cls.planned, plan, strict=True))

    def describe(self) -> str:
        """What it is, for people."""
        levels = ", ".join(f"P{level}" for level in self.levels)
        return (
            f"RetinaNet, levels {levels}, anchors of {self.anchor_scales} strides, height / width "
            f"{self.aspect_ratios}"
        )

    def priors(self) -> Priors:
        """The anchors of each level, in pixels, in the order of the outputs."""
        sizes = self.anchor_scales, self.aspect_ratios
        pyramid = anchors.pyramid_anchors(self.image_size, self.levels, *sizes)
        return Priors(pyramid, self.levels, self.image_size)

    def reach(self, boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n"]:
        """IoU of each box with the anchor that overlaps it most."""
        sizes = self.levels, self.anchor_scales, self.aspect_ratios
        return anchors.best_iou(boxes, self.image_size, *sizes)

    def match(self, targets: Targets) -> Int[Array, "anchors"]:
        """The box of an image that each anchor answers for, or a value below 0, see `matching`."""
        return self.matcher(self.priors(), targets.boxes, targets.mask)

    def losses(
        self, outputs: Outputs, targets: Targets
    ) -> dict[str, Float[Array, ""] | Int[Array, ""]]:
        """Means over the images: "loss", which is to be made small, and what it is the sum of.

        The parts are "class_loss", "box_loss" and, with that head, "image_loss", before their
        weights. "boxes_without_anchor" counts the boxes of all images that teach nothing, since no
        anchor answers for them.
        """
        all_anchors = jnp.asarray(np.concatenate(self.priors().pyramid))

        def of_image(outputs, targets):
            matches = self.match(targets)
            parts = anchor_losses(
                outputs.class_logits, outputs.box_offsets, all_anchors, matches, targets,
                class_loss=self.class_loss, box_loss=self.box_loss, box_coder=self.box_coder,
            )._asdict()  # fmt: skip
            if outputs.image_logits is not None:
                parts["image_loss"] = image_loss(outputs.image_logits, targets)
            return parts, count_unmatched(matches, targets.mask)

        parts, unmatched = jax.vmap(of_image)(outputs, targets)
        parts = {name: value.mean() for name, value in parts.items()}
        total = parts["class_loss"] + self.box_weight * parts["box_loss"]
        total += self.image_weight * parts.get("image_loss", 0.0)
        return {"loss": total, **parts, "boxes_without_anchor": unmatched.sum()}

    def detections(self, outputs: Outputs, **inference) -> Detections:
        """The detections of each image, see `detections_of_image`."""
        priors = self.priors()
        select = functools.partial(
            detections_of_image, priors=priors, box_coder=self.box_coder, **inference
        )
        return jax.vmap(select)(outputs)
