"""Which anchor answers for which box."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet import boxes as box_ops

BACKGROUND = -1
IGNORED = -2


def match_anchors(
    anchors: Float[Array, "anchors 4"],
    boxes: Float[Array, "boxes 4"],
    mask: Bool[Array, "boxes"],
    foreground_iou: float = 0.5,
    background_iou: float = 0.4,
) -> Int[Array, "anchors"]:
    """Index of the box each anchor answers for, or BACKGROUND, or IGNORED (Lin et al. 2017).

    An anchor takes the box it overlaps most: foreground from `foreground_iou`, background below
    `background_iou`, ignored between. Every box also gets the anchors that tie for its best IoU,
    however low (torchvision's "low-quality matches"; such an anchor keeps the box that *it*
    overlaps most). `mask` is False for padding. Without boxes everything is background.
    """
    iou = jnp.where(mask, box_ops.iou(anchors, boxes), 0)
    best_box, best = iou.argmax(axis=1), iou.max(axis=1)
    match = jnp.where(
        best >= foreground_iou, best_box, jnp.where(best < background_iou, BACKGROUND, IGNORED)
    )
    # The best IoU must be above 0, or a box that no anchor touches would claim all of them.
    best_of_box = iou.max(axis=0)
    ties = ((iou == best_of_box) & (best_of_box > 0)).any(axis=1)
    return jnp.where(ties, best_box, match)
