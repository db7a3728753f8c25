"""Losses of RetinaNet."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxdet import boxes as box_ops
from jaxdet.matching import IGNORED


def sigmoid_focal(
    logits: Float[Array, "*n"], targets: Float[Array, "*n"], alpha: float = 0.25, gamma: float = 2.0
) -> Float[Array, "*n"]:
    """Focal loss of each logit (Lin et al. 2017, eq. 5), for soft targets in [0, 1] too.

    The cross-entropy is weighted by |target - probability| ** gamma (Li et al. 2020, "Generalized
    Focal Loss"), which for 0 and 1 is the paper's (1 - p_t) ** gamma, and is least where the
    probability is the target. It is taken from the logits, so that confident ones stay finite.
    """
    probability = jax.nn.sigmoid(logits)
    cross_entropy = optax.sigmoid_binary_cross_entropy(logits, targets)
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    return alpha_t * jnp.abs(targets - probability) ** gamma * cross_entropy


class RetinaNetLoss(NamedTuple):
    """Losses of one image."""

    class_loss: Float[Array, ""]
    box_loss: Float[Array, ""]


def retinanet_loss(
    class_logits: Float[Array, "anchors classes"],
    box_offsets: Float[Array, "anchors 4"],
    anchors: Float[Array, "anchors 4"],
    matches: Int[Array, "anchors"],
    boxes: Float[Array, "boxes 4"],
    labels: Int[Array, "boxes"],
    scores: Float[Array, "boxes"],
    alpha: float = 0.25,
    gamma: float = 2.0,
    box_loss: str = "l1",
) -> RetinaNetLoss:
    """Focal loss of all anchors and box loss of the matched ones, each / max(1, matched anchors).

    The box loss is "l1", of the offsets, or "giou", of the decoded boxes.

    As torchvision's `RetinaNetHead.compute_loss` for one image: an image without boxes still
    teaches the background. `matches` comes from `match_anchors`; `scores` are the class targets of
    the boxes: 1, or less where not all readers drew one.
    """
    class_logits, box_offsets = (x.astype(jnp.float32) for x in (class_logits, box_offsets))
    foreground = matches >= 0
    normaliser = jnp.maximum(1, foreground.sum())

    matched_class = jnp.where(foreground, labels[matches], -1)
    targets = jax.nn.one_hot(matched_class, class_logits.shape[-1]) * scores[matches][:, None]
    focal = sigmoid_focal(class_logits, targets, alpha, gamma)
    class_loss = jnp.where((matches != IGNORED)[:, None], focal, 0).sum()

    # Unmatched anchors stand in for their own box, which keeps the logarithm finite.
    matched_box = jnp.where(foreground[:, None], boxes[matches], anchors)
    if box_loss == "giou":
        error = 1 - box_ops.giou(box_ops.decode(box_offsets, anchors), matched_box)
    else:
        error = jnp.abs(box_offsets - box_ops.encode(matched_box, anchors)).sum(axis=-1)
    error = jnp.where(foreground, error, 0).sum()
    return RetinaNetLoss(class_loss / normaliser, error / normaliser)


def image_loss(
    logits: Float[Array, "labels"],
    labels: Int[Array, "boxes"],
    scores: Float[Array, "boxes"],
    mask: Bool[Array, "boxes"],
) -> Float[Array, ""]:
    """Mean binary cross-entropy of an image's labels: each class in turn, then "any finding".

    A class is in the image as surely as its surest box (see `retinanet_loss` for scores).
    """
    present = jax.nn.one_hot(labels, len(logits) - 1) * (scores * mask)[:, None]
    present = present.max(axis=0, initial=0)
    targets = jnp.append(present, present.max())
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets).mean()
