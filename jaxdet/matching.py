"""Which anchor answers for which box."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
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
    iou = jnp.where(mask[:, None], box_ops.iou_matrix(boxes, anchors), 0)
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


def match_anchors_atss(
    pyramid: Sequence[Float[np.ndarray, "_ 4"]],
    boxes: Float[Array, "boxes 4"],
    mask: Bool[Array, "boxes"],
    anchors_per_location: int,
    num_candidates: int = 9,
) -> Int[Array, "anchors"]:
    """As `match_anchors`, by adaptive training sample selection (ATSS, Zhang et al. 2020).

    Candidates of a box are the anchors of the `num_candidates` locations per level whose centres
    are nearest to its own. Those are foreground whose IoU reaches the candidates' mean plus
    standard deviation and whose centre is inside the box; an anchor of several boxes takes the one
    it overlaps most. Nothing is ignored; a box that holds no centre has no anchor.
    """
    anchors = jnp.asarray(np.concatenate(pyramid))
    iou = box_ops.iou_matrix(boxes, anchors)
    box_centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2

    candidates = []
    for level in pyramid:
        locations = level[::anchors_per_location]
        offset = (locations[:, :2] + locations[:, 2:]) / 2 - box_centres[:, None]
        distance = (offset**2).sum(axis=-1)
        _, nearest = jax.lax.top_k(-distance, min(num_candidates, len(locations)))
        is_near = (nearest[:, :, None] == jnp.arange(len(locations))).any(axis=1)
        candidates.append(jnp.repeat(is_near, anchors_per_location, axis=1))
    candidates = jnp.concatenate(candidates, axis=1)

    count = candidates.sum(axis=1, keepdims=True)
    mean = (iou * candidates).sum(axis=1, keepdims=True) / count
    variance = (candidates * (iou - mean) ** 2).sum(axis=1, keepdims=True) / (count - 1)
    inside = ((centres > boxes[:, None, :2]) & (centres < boxes[:, None, 2:])).all(axis=-1)
    chosen = candidates & inside & (iou >= mean + jnp.sqrt(variance)) & mask[:, None]
    best_box = jnp.where(chosen, iou, -1).argmax(axis=0)
    return jnp.where(chosen.any(axis=0), best_box, BACKGROUND)
