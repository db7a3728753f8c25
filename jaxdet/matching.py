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
    iou = jnp.where(mask[:, None], box_ops.iou(boxes, anchors), 0)
    best = iou.max(axis=0)
    # The first of the best, as argmax has it; a plain minimum is half again as fast on a CPU.
    index = jnp.arange(len(boxes))[:, None]
    best_box = jnp.where(iou == best, index, len(boxes)).min(axis=0)
    match = jnp.where(
        best >= foreground_iou, best_box, jnp.where(best < background_iou, BACKGROUND, IGNORED)
    )
    # The best IoU must be above 0, or a box that no anchor touches would claim all of them.
    best_of_box = iou.max(axis=1, keepdims=True)
    ties = ((iou == best_of_box) & (best_of_box > 0)).any(axis=0)
    return jnp.where(ties, best_box, match)
