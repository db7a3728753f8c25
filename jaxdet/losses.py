"""Losses of RetinaNet."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdet import boxes as box_ops
from jaxdet.matching import IGNORED


def sigmoid_focal(
    logits: Float[Array, "*n"], targets: Float[Array, "*n"], alpha: float = 0.25, gamma: float = 2.0
) -> Float[Array, "*n"]:
    """Focal loss of each logit (Lin et al. 2017, eq. 5). Targets in [0, 1].

    The cross-entropy is taken from the logits, so that confident ones stay finite.
    """
    probability = jax.nn.sigmoid(logits)
    cross_entropy = jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    p_t = probability * targets + (1 - probability) * (1 - targets)
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    return alpha_t * (1 - p_t) ** gamma * cross_entropy


class RetinaNetLoss(NamedTuple):
    """Losses of one image."""

    classes: Float[Array, ""]
    boxes: Float[Array, ""]


def retinanet_loss(
    class_logits: Float[Array, "anchors classes"],
    box_offsets: Float[Array, "anchors 4"],
    anchors: Float[Array, "anchors 4"],
    matches: Int[Array, "anchors"],
    boxes: Float[Array, "boxes 4"],
    classes: Int[Array, "boxes"],
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> RetinaNetLoss:
    """Focal loss over all anchors and L1 over the matched ones, each / max(1, matched anchors).

    As torchvision's `RetinaNetHead.compute_loss` for one image: an image without boxes still
    teaches the background. `matches` comes from `match_anchors`.
    """
    class_logits, box_offsets = (x.astype(jnp.float32) for x in (class_logits, box_offsets))
    foreground = matches >= 0
    normaliser = jnp.maximum(1, foreground.sum())

    matched_class = jnp.where(foreground, classes[matches], -1)
    targets = jax.nn.one_hot(matched_class, class_logits.shape[-1])
    focal = sigmoid_focal(class_logits, targets, alpha, gamma)
    class_loss = jnp.where((matches != IGNORED)[:, None], focal, 0).sum()

    # Unmatched anchors stand in for their own box, which keeps the logarithm finite.
    matched_box = jnp.where(foreground[:, None], boxes[matches], anchors)
    error = jnp.abs(box_offsets - box_ops.encode(matched_box, anchors))
    box_loss = jnp.where(foreground[:, None], error, 0).sum()
    return RetinaNetLoss(class_loss / normaliser, box_loss / normaliser)
