"""Losses of a detector, for one image each."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxdet.ops import boxes as box_ops
from jaxdet.ops.box_coder import BOX_CODERS, BoxCoder
from jaxdet.ops.boxes import Targets
from jaxdet.ops.matching import IGNORED


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def sigmoid_focal(
    logits: Float[Array, "*n"], targets: Float[Array, "*n"], alpha: float = 0.25, gamma: float = 2.0
) -> Float[Array, "*n"]:
    """Focal loss of each logit (Lin et al. 2017, eq. 5), for soft targets in [0, 1] too.

    The cross-entropy is weighted by |target - probability| ** gamma (Li et al. 2020, "Generalized
    Focal Loss"), which for 0 and 1 is the paper's (1 - p_t) ** gamma, and is least where the
    probability is the target. It is taken from the logits, so that confident ones stay finite.
    The targets are constants: a gradient by them is 0.
    """
    return _sigmoid_focal_and_slope(logits, targets, alpha, gamma)[0]


def _sigmoid_focal_and_slope(x, t, alpha, gamma):
    """The loss, and its derivative by the logit. Written out, both need one exponential."""
    exponential = jnp.exp(-jnp.abs(x))
    cross_entropy = jnp.maximum(x, 0) - x * t + jnp.log1p(exponential)
    p = jnp.where(x >= 0, 1, exponential) / (1 + exponential)
    error = p - t
    weight = (alpha * t + (1 - alpha) * (1 - t)) * jnp.abs(error) ** gamma
    of_weight = gamma * p * (1 - p) / jnp.where(error == 0, jnp.inf, error)
    return weight * cross_entropy, weight * (error + of_weight * cross_entropy)


@sigmoid_focal.defjvp
def _(alpha, gamma, primals, tangents):
    loss, slope = _sigmoid_focal_and_slope(*primals, alpha, gamma)
    return loss, slope * tangents[0]


def varifocal(
    logits: Float[Array, "*n"], targets: Float[Array, "*n"], alpha: float = 0.75, gamma: float = 2.0
) -> Float[Array, "*n"]:
    """Varifocal loss of each logit (Zhang et al. 2021, "VarifocalNet", eq. 2).

    The target of what is there says how well the box fits (its IoU), and is the weight of its
    cross-entropy too; where nothing is, the weight is alpha * probability ** gamma.
    """
    probability = jax.nn.sigmoid(logits)
    weight = jnp.where(targets > 0, targets, alpha * probability**gamma)
    return weight * optax.sigmoid_binary_cross_entropy(logits, targets)


def focal_loss(
    logits: Float[Array, "*n"],
    targets: Float[Array, "*n"],
    iou: Float[Array, "*#n"],
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "*n"]:
    """`sigmoid_focal`, whatever the overlap."""
    return sigmoid_focal(logits, targets, alpha, gamma)


def varifocal_loss(
    logits: Float[Array, "*n"],
    targets: Float[Array, "*n"],
    iou: Float[Array, "*#n"],
    alpha: float = 0.75,
    gamma: float = 2.0,
) -> Float[Array, "*n"]:
    """`varifocal`, the target of what is there being its overlap."""
    return varifocal(logits, targets * iou, alpha, gamma)


def l1(
    offsets: Float[Array, "*n 4"],
    anchors: Float[Array, "*n 4"],
    boxes: Float[Array, "*n 4"],
    coder: BoxCoder = BOX_CODERS["deltas"],
) -> Float[Array, "*n"]:
    """Sum of the absolute errors of the four offsets (see `box_coder`)."""
    return jnp.abs(offsets - coder.encode(boxes, anchors)).sum(axis=-1)


def giou(
    offsets: Float[Array, "*n 4"],
    anchors: Float[Array, "*n 4"],
    boxes: Float[Array, "*n 4"],
    coder: BoxCoder = BOX_CODERS["deltas"],
) -> Float[Array, "*n"]:
    """1 - the generalised IoU of the decoded box with its target (Rezatofighi et al. 2019)."""
    return 1 - box_ops.giou(coder.decode(offsets, anchors), boxes)


# What `loss.class_loss` may say: functions of logits, their targets, and the overlap of the
# predicted box with the one that is there; and fields of `loss`.
CLASS_LOSSES = {"focal": focal_loss, "varifocal": varifocal_loss}
# What `loss.box` may say: functions of offsets, anchors, boxes and what makes one of the other.
BOX_LOSSES = {"l1": l1, "giou": giou}


class AnchorLosses(NamedTuple):
    """Losses of one image."""

    class_loss: Float[Array, ""]
    box_loss: Float[Array, ""]


def anchor_losses(
    class_logits: Float[Array, "anchors classes"],
    box_offsets: Float[Array, "anchors 4"],
    anchors: Float[Array, "anchors 4"],
    matches: Int[Array, "anchors"],
    targets: Targets,
    *,
    class_loss: Callable = focal_loss,
    box_loss: Callable = l1,
    box_coder: BoxCoder = BOX_CODERS["deltas"],
) -> AnchorLosses:
    """Class loss of all anchors and box loss of the matched ones, each / max(1, matched anchors).

    As torchvision's `RetinaNetHead.compute_loss` for one image: an image without boxes still
    teaches the background. Of a class that is not boxed exhaustively (see `Targets`), only what is
    boxed teaches. Losses weigh as the box that an anchor answers for (`Targets.weights`); it counts
    as one all the same. Computed in float32.

    Args:
        matches: the box of each anchor, see `match_anchors`.
        targets: of one image.
        class_loss: as those of `CLASS_LOSSES`.
        box_loss: as those of `BOX_LOSSES`.
    """
    class_logits, box_offsets = (x.astype(jnp.float32) for x in (class_logits, box_offsets))
    foreground = matches >= 0
    normaliser = jnp.maximum(1, foreground.sum())
    # Unmatched anchors stand in for their own box, which keeps logarithms finite.
    matched_boxes = jnp.where(foreground[:, None], targets.boxes[matches], anchors)

    matched_labels = jnp.where(foreground, targets.labels[matches], -1)
    class_targets = jax.nn.one_hot(matched_labels, class_logits.shape[-1])
    class_targets *= targets.soft_targets[matches][:, None]
    predicted = jax.lax.stop_gradient(box_coder.decode(box_offsets, anchors))
    iou = box_ops.iou(predicted, matched_boxes)[:, None]
    of_classes = class_loss(class_logits, class_targets, iou)
    counts = (matches != IGNORED)[:, None]
    if targets.exhaustive is not None:
        counts &= targets.exhaustive | (class_targets > 0)
    of_boxes = box_loss(box_offsets, anchors, matched_boxes, box_coder)
    if targets.weights is not None:
        weights = anchor_weights(matches, targets.weights)
        of_classes, of_boxes = of_classes * weights[:, None], of_boxes * weights
    of_classes = jnp.where(counts, of_classes, 0).sum()
    of_boxes = jnp.where(foreground, of_boxes, 0).sum()
    return AnchorLosses(of_classes / normaliser, of_boxes / normaliser)


def anchor_weights(
    matches: Int[Array, "anchors"], weights: Float[Array | np.ndarray, "boxes"]
) -> Float[Array, "anchors"]:
    """The weight of the box that each anchor answers for, and 1 where it answers for none."""
    return jnp.where(matches >= 0, jnp.asarray(weights)[matches], 1.0)


def image_loss(logits: Float[Array, "labels"], targets: Targets) -> Float[Array, ""]:
    """Mean binary cross-entropy of an image's labels: each class in turn, then "any finding".

    A class is in the image as surely as its surest box (see `Targets.soft_targets`). One without a
    box that may be there all the same adds nothing, and so does "any finding" for it.
    """
    present = jax.nn.one_hot(targets.labels, len(logits) - 1)
    present *= (targets.soft_targets * targets.mask)[:, None]
    present = present.max(axis=0, initial=0)
    wanted = jnp.append(present, present.max())
    of_labels = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), wanted)
    if targets.exhaustive is not None:
        known = jnp.append(targets.exhaustive, targets.exhaustive.all()) | (wanted > 0)
        of_labels = jnp.where(known, of_labels, 0)
    return of_labels.mean()
