"""FCOS (Tian et al. 2019, "FCOS: Fully Convolutional One-Stage Object Detection").

With what its authors and torchvision's `fcos_resnet50_fpn` added later (Tian et al. 2020, "FCOS: A
Simple and Strong Anchor-Free Object Detector"): centre sampling, centre-ness beside the boxes,
GIoU, and distances in strides.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxdet.models.fpn import FPN
from jaxdet.models.heads import (
    MOST_DEPTH,
    PRIOR_BIAS,
    Head,
    detections_of_scores,
    head_conv,
    join,
)
from jaxdet.models.layers import EPSILON, names_of_layer, relu
from jaxdet.ops import anchors
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.box_coder import BoxCoder
from jaxdet.ops.boxes import Targets
from jaxdet.ops.losses import anchor_losses, anchor_weights, image_loss
from jaxdet.ops.matching import BACKGROUND, Priors, count_unmatched
from jaxdet.ops.nms import Detections


class Outputs(NamedTuple):
    """Of all locations, level after level; and of the image."""

    class_logits: Float[Array, "batch locations classes"]
    distances: Float[Array, "batch locations 4"]  # see `to_distances`
    centerness_logits: Float[Array, "batch locations"]
    image_logits: Float[Array, "batch labels"] | None  # each class, then "any finding"


def _centre_and_size(cells):
    centre = (cells[..., :2] + cells[..., 2:]) / 2
    size = cells[..., 2:] - cells[..., :2]
    return jnp.concatenate([centre, centre], -1), jnp.concatenate([size, size], -1)


SIGNS = np.array([-1, -1, 1, 1], np.float32)  # left and top lie before the location


def to_distances(boxes: Float[Array, "*n 4"], cells: Float[Array, "*#n 4"]) -> Float[Array, "*n 4"]:
    """How far the left, top, right and bottom of boxes are from the middle of cells, in cells.

    Args:
        cells: squares of a stride around the locations, see `FCOS.priors`.
    """
    centre, size = _centre_and_size(cells)
    return SIGNS * (boxes - centre) / size


def to_boxes(distances: Float[Array, "*n 4"], cells: Float[Array, "*#n 4"]) -> Float[Array, "*n 4"]:
    """The inverse of `to_distances`."""
    centre, size = _centre_and_size(cells)
    return centre + SIGNS * distances * size


DISTANCES = BoxCoder(to_distances, to_boxes)


def match_locations(
    priors: Priors,
    boxes: Float[Array, "boxes 4"],
    mask: Bool[Array, "boxes"],
    center_radius: float,
) -> Int[Array, "locations"]:
    """Index of the box that each location answers for, or BACKGROUND, as torchvision has it.

    A location answers for a box that it lies in, less than `center_radius` strides from the box's
    middle by x and by y, if the farthest side is more than 4 and less than 8 strides away: the
    first level has no lower bound, and the last no upper one. Of several, the smallest box counts.

    Args:
        mask: False for padding.
    """
    cells = jnp.asarray(np.concatenate(priors.pyramid))
    centre, size = (x[:, :2] for x in _centre_and_size(cells))
    level = np.repeat(np.arange(len(priors.pyramid)), [len(x) for x in priors.pyramid])
    lower = jnp.where(level == 0, 0, 4 * size[:, 0])
    upper = jnp.where(level == level[-1], jnp.inf, 8 * size[:, 0])

    middle = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    near = (jnp.abs(centre - middle) < center_radius * size).all(axis=-1)
    sides = jnp.concatenate([centre - boxes[:, None, :2], boxes[:, None, 2:] - centre], axis=-1)
    farthest = sides.max(axis=-1)
    chosen = near & (sides.min(axis=-1) > 0) & (lower < farthest) & (farthest < upper)
    chosen &= mask[:, None]
    area = jnp.where(chosen, box_ops.area(boxes)[:, None], jnp.inf)
    return jnp.where(chosen.any(axis=0), area.argmin(axis=0), BACKGROUND)


def centerness(distances: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """1 in the middle of a box, 0 at its border (equation 3 of the paper)."""
    left, top, right, bottom = jnp.moveaxis(distances, -1, 0)
    by_x = jnp.minimum(left, right) / jnp.maximum(left, right)
    by_y = jnp.minimum(top, bottom) / jnp.maximum(top, bottom)
    return jnp.sqrt(by_x * by_y)


class BoxHead(Head):
    """A head of four distances, and beside them the logit of the centre-ness.

    Distances begin near 1 stride, as the paper's exp(0). From torchvision's 0, a side whose output
    the first steps push below 0 for all places has no gradient any more, and stays 0.
    """

    def __init__(self, channels: int, hidden: int, depth: int, **options):
        super().__init__(channels, hidden, depth, 4, final_bias=1.0, **options)
        common = {name: options[name] for name in ("dtype", "rngs")}
        self.centerness = head_conv(hidden if depth else channels, 1, **common)

    def __call__(
        self, x: Float[Array, "b h w c"], train: bool
    ) -> tuple[Float[Array, "b h w 4"], Float[Array, "b h w 1"]]:
        x = self.features(x, train)
        return relu(self.final(x)), self.centerness(x)


def names_in_files() -> dict[str, tuple[str, ...]]:
    """What torchvision calls each array of the heads.

    A tower is one list there, of convolution, normalisation and ReLU in turn.
    """
    names = {}
    for ours, theirs, final in (
        ("class_head", "head.classification_head", "cls_logits"),
        ("box_head", "head.regression_head", "bbox_reg"),
    ):
        for i in range(MOST_DEPTH):
            names |= names_of_layer(f"{ours}/tower/{i}", f"{theirs}.conv.{3 * i}")
            names |= names_of_layer(f"{ours}/norms/{i}/layer", f"{theirs}.conv.{3 * i + 1}")
        names |= names_of_layer(f"{ours}/final", f"{theirs}.{final}")
    return names | names_of_layer("box_head/centerness", "head.regression_head.bbox_ctrness")


class FCOS(nnx.Module):
    """A one-stage detector without anchors: each location of the pyramid says how far the sides of
    its box are, and how near it is to the middle.

    Args:
        backbone: see `jaxdet.models`.
        num_classes: number of findings; there is no background class.
        image_size: of the square images, in pixels.
        levels: pyramid levels, such as (3, 4, 5, 6, 7).
        p6_from: see `FPN`.
        fpn_channels: channels of the pyramid.
        head_channels, head_depth: of each head's tower.
        head_norm: "group" for normalised towers, as the authors and torchvision have them; "none".
        image_head: also say which findings are somewhere in the image, from the mean of C5.
        dtype: of the computation; parameters are float32, and so are losses and detections.
        center_radius: see `match_locations`.
        class_loss, box_loss: as those of `losses.CLASS_LOSSES` and `losses.BOX_LOSSES`.
        box_weight, image_weight: of the box loss and the image head's, beside the class loss and
            the centre-ness loss.

    Raises:
        ConfigError: for a value that it cannot follow.
    """

    planned: ClassVar = {"levels": (3, 4, 5)}
    names: ClassVar = names_in_files()
    frozen_epsilon: ClassVar = EPSILON  # of frozen BatchNorm in torchvision's COCO weights

    def __init__(
        self,
        backbone: nnx.Module,
        *,
        num_classes: int,
        image_size: int,
        levels: Sequence[int],
        p6_from: str,
        fpn_channels: int,
        head_channels: int,
        head_depth: int,
        head_norm: str,
        image_head: bool,
        center_radius: float,
        class_loss: Callable,
        box_loss: Callable,
        box_weight: float,
        image_weight: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        common = {"dtype": dtype, "rngs": rngs}
        self.backbone = backbone
        self.fpn = FPN(
            backbone.out_channels, fpn_channels, tuple(levels), p6_from=p6_from, **common
        )
        tower = (fpn_channels, head_channels, head_depth)
        head = {"norm": head_norm, "bias": True, **common}
        self.class_head = Head(*tower, num_classes, PRIOR_BIAS, **head)
        self.box_head = BoxHead(*tower, **head)
        pooled = backbone.out_channels[-1]
        self.image_head = nnx.Linear(pooled, num_classes + 1, **common) if image_head else None
        self.num_classes = num_classes
        self.levels, self.image_size = tuple(levels), (image_size, image_size)
        self.center_radius = center_radius
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
        class_logits = [self.class_head(x, train) for x in pyramid]
        distances, center = zip(*[self.box_head(x, train) for x in pyramid], strict=True)
        return Outputs(
            join(class_logits, self.num_classes),
            join(list(distances), 4),
            join(list(center), 1)[..., 0],
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
        """The levels, where `model` (`config.model`) has None: P3 to P7 as in the paper, or P2 to
        P6 where more than 1 % of the boxes (in pixels of the input) are narrower than the stride of
        P3, since a box without a location in it teaches nothing.
        """
        narrow = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) < 2**3
        levels = (2, 3, 4, 5, 6) if narrow.mean() > 0.01 else (3, 4, 5, 6, 7)
        return {"levels": model["levels"] or levels}

    def describe(self) -> str:
        """What it is, for people."""
        levels = ", ".join(f"P{level}" for level in self.levels)
        return f"FCOS, levels {levels}, centre sampling within {self.center_radius:g} strides"

    def priors(self) -> Priors:
        """A square of one stride around each location, in the order of the outputs."""
        pyramid = anchors.pyramid_anchors(self.image_size, self.levels, (1.0,), (1.0,))
        return Priors(pyramid, self.levels, self.image_size)

    def match(self, targets: Targets) -> Int[Array, "locations"]:
        """The box of an image that each location answers for, see `match_locations`."""
        return match_locations(self.priors(), targets.boxes, targets.mask, self.center_radius)

    def losses(
        self, outputs: Outputs, targets: Targets
    ) -> dict[str, Float[Array, ""] | Int[Array, ""]]:
        """Of the batch: "loss", which is to be made small, and what it is the sum of.

        The parts are "class_loss", "box_loss", "centerness_loss" and, with that head, "image_loss",
        before their weights. "boxes_without_location" counts the boxes of all images that teach
        nothing, since no location answers for them.

        As in torchvision, the first three are sums divided by the locations of the whole batch that
        answer for a box (by 1 where none does), not image by image: each such location counts as
        much as any other of its batch. So the mean of the losses of two halves of a batch (gradient
        accumulation) is not that of the whole, unless both have as many.
        """
        cells = jnp.asarray(np.concatenate(self.priors().pyramid))

        def of_image(outputs, targets):
            matches = self.match(targets)
            foreground = matches >= 0
            parts = anchor_losses(
                outputs.class_logits, outputs.distances, cells, matches, targets,
                class_loss=self.class_loss, box_loss=self.box_loss, box_coder=DISTANCES,
            )._asdict()  # fmt: skip
            boxes = jnp.where(foreground[:, None], targets.boxes[matches], cells)
            of_center = optax.sigmoid_binary_cross_entropy(
                outputs.centerness_logits.astype(jnp.float32),
                centerness(DISTANCES.encode(boxes, cells)),
            )
            # As the other two, for now: a mean over the image's locations that answer for a box.
            count = jnp.maximum(1, foreground.sum())
            if targets.weights is not None:
                of_center *= anchor_weights(matches, targets.weights)
            parts["centerness_loss"] = jnp.where(foreground, of_center, 0).sum() / count
            if outputs.image_logits is not None:
                parts["image_loss"] = image_loss(outputs.image_logits, targets)
            return parts, foreground.sum(), count_unmatched(matches, targets.mask)

        parts, positives, unmatched = jax.vmap(of_image)(outputs, targets)
        share = jnp.maximum(1, positives) / jnp.maximum(1, positives.sum())
        parts = {
            name: value.mean() if name == "image_loss" else (share * value).sum()
            for name, value in parts.items()
        }
        total = parts["class_loss"] + parts["centerness_loss"]
        total += self.box_weight * parts["box_loss"]
        total += self.image_weight * parts.get("image_loss", 0.0)
        return {"loss": total, **parts, "boxes_without_location": unmatched.sum()}

    def detections(self, outputs: Outputs, **inference) -> Detections:
        """The detections of each image, see `detections_of_scores`.

        A box's score is the square root of the class's probability times its centre-ness, so that
        of boxes of one finding the ones seen from its middle survive.
        """
        priors = self.priors()

        def of_image(outputs):
            logits = outputs.class_logits, outputs.centerness_logits[:, None]
            of_class, of_center = (jax.nn.sigmoid(x.astype(jnp.float32)) for x in logits)
            rest = outputs.distances, outputs.image_logits, priors, DISTANCES
            return detections_of_scores(jnp.sqrt(of_class * of_center), *rest, **inference)

        return jax.vmap(of_image)(outputs)
