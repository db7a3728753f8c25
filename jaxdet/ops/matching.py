"""Matching of anchors to ground-truth boxes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdet.ops import boxes as box_ops
from jaxdet.ops.anchors import grid_sizes

BACKGROUND = -1
IGNORED = -2


class Priors(NamedTuple):
    """Reference boxes of a pyramid, to match ground truth to: anchors, or the cells of points."""

    pyramid: list[Float[np.ndarray, "_ 4"]]  # of each level, see `anchors.pyramid_anchors`
    levels: tuple[int, ...]
    image_size: tuple[int, int]  # (height, width) in pixels


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


def count_unmatched(matches: Int[Array, "anchors"], mask: Bool[Array, "boxes"]) -> Int[Array, ""]:
    """The number of boxes without an anchor; `matches` as `match_anchors` gives them."""
    nobody = len(mask)
    index = jnp.where(matches >= 0, matches, nobody)
    matched = jnp.zeros(nobody + 1, bool).at[index].set(True)[:nobody]
    return (mask & ~matched).sum()


def nearest_locations(
    points: Float[Array, "points 2"], rows: int, columns: int, stride: int, count: int
) -> Int[Array, "points count"]:
    """Flat indices of the `count` locations of a grid that are nearest to each point (x, y).

    Location (row, column) is at (column, row) * stride; of two that are equally near, the first
    counts as nearer. A grid of fewer locations gives them all.

    A location that is the r-th nearest by row and the c-th nearest by column has at least r * c - 1
    nearer ones, so a few pairs of row and column are all that can be among the nearest: 23 for 9.
    """
    count = min(count, rows * columns)

    def by_nearness(places, coordinate):  # squared distances of the nearest, and which they are
        squared = (jnp.arange(places) * stride - coordinate[:, None]) ** 2
        nearest, index = jax.lax.top_k(-squared, min(count, places))
        return -nearest, index

    distance_y, row = by_nearness(rows, points[:, 1])
    distance_x, column = by_nearness(columns, points[:, 0])
    r, c = np.array(
        [
            (r, c)
            for r in range(row.shape[1])
            for c in range(column.shape[1])
            if (r + 1) * (c + 1) <= count
        ]
    ).T
    distance, index = distance_x[:, c] + distance_y[:, r], row[:, r] * columns + column[:, c]
    return jax.lax.sort((distance, index), num_keys=2)[1][:, :count]


def match_anchors_atss(
    priors: Priors,
    boxes: Float[Array, "boxes 4"],
    mask: Bool[Array, "boxes"],
    atss_candidates: int = 9,
) -> Int[Array, "anchors"]:
    """As `match_anchors`, by adaptive training sample selection (ATSS, Zhang et al. 2020).

    Candidates of a box are the anchors of the `atss_candidates` locations per level whose centres
    are nearest to its own. Those are foreground whose IoU reaches the candidates' mean plus
    standard deviation and whose centre is inside the box; an anchor of several boxes takes the one
    it overlaps most. Nothing is ignored; a box that holds no centre has no anchor.

    Only the candidates are looked at, never a table of all boxes and all anchors.

    Args:
        mask: False for padding.
    """
    pyramid, levels, image_size = priors
    anchors = jnp.asarray(np.concatenate(pyramid))
    box_centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    candidates, start = [], 0
    grids = grid_sizes(image_size, levels)
    for of_level, level, (rows, columns) in zip(pyramid, levels, grids, strict=True):
        per_location = len(of_level) // (rows * columns)
        nearest = nearest_locations(box_centres, rows, columns, 2**level, atss_candidates)
        index = start + nearest[:, :, None] * per_location + jnp.arange(per_location)
        candidates.append(index.reshape(len(boxes), -1))
        start += len(of_level)
    candidates = jnp.concatenate(candidates, axis=1)

    near = anchors[candidates]
    centres = (near[..., :2] + near[..., 2:]) / 2
    iou = box_ops.iou(boxes[:, None], near)
    threshold = iou.mean(axis=1, keepdims=True) + iou.std(axis=1, keepdims=True, ddof=1)
    inside = ((centres > boxes[:, None, :2]) & (centres < boxes[:, None, 2:])).all(axis=-1)
    chosen = inside & (iou >= threshold) & mask[:, None]

    best = jnp.full(len(anchors), -1.0).at[candidates].max(jnp.where(chosen, iou, -1))
    claims = chosen & (iou == best[candidates])  # of equal ones, the first box
    nobody = len(boxes)
    index = jnp.where(claims, jnp.arange(len(boxes))[:, None], nobody)
    best_box = jnp.full(len(anchors), nobody).at[candidates].min(index)
    return jnp.where(best_box == nobody, BACKGROUND, best_box)


def match_anchors_iou(
    priors: Priors,
    boxes: Float[Array, "boxes 4"],
    mask: Bool[Array, "boxes"],
    foreground_iou: float,
    background_iou: float,
) -> Int[Array, "anchors"]:
    """`match_anchors` with the anchors of a pyramid."""
    anchors = jnp.asarray(np.concatenate(priors.pyramid))
    return match_anchors(anchors, boxes, mask, foreground_iou, background_iou)


# What `loss.matching` may say: functions of priors, boxes, mask, and fields of `loss`, for one
# image.
MATCHERS = {"atss": match_anchors_atss, "iou": match_anchors_iou}
