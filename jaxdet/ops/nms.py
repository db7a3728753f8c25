"""Detections, and the greedy non-maximum suppression that thins them, with fixed shapes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdet.ops import boxes as box_ops


class Detections(NamedTuple):
    """Boxes of each image in descending order of score, padded (`mask` False).

    Boxes are in pixels of the model input; `normal` is the score for an image without any finding.
    """

    boxes: Float[Array | np.ndarray, "*batch boxes 4"]
    labels: Int[Array | np.ndarray, "*batch boxes"]
    scores: Float[Array | np.ndarray, "*batch boxes"]
    mask: Bool[Array | np.ndarray, "*batch boxes"]
    normal: Float[Array | np.ndarray, "*batch"]


def nms_mask(
    boxes: Float[Array, "n 4"], labels: Int[Array, "n"], iou_threshold: float
) -> Bool[Array, "n"]:
    """Which boxes greedy class-wise NMS keeps, the boxes being in descending order of score.

    A box falls when a kept, earlier box of its class overlaps it by more than `iou_threshold`.
    That set is the one fixed point of `keep = no kept box suppresses me`; iterating from "keep
    all" settles at least one more box a round, and reaches it exactly, usually within ten.
    """
    rank = jnp.arange(len(boxes))
    suppresses = (
        (box_ops.iou_matrix(boxes, boxes) > iou_threshold)
        & (labels[:, None] == labels)
        & (rank[:, None] < rank)
    )

    def settle(state):
        keep, _ = state
        # At each look at the result, a GPU stands still.
        for _ in range(1 if jax.default_backend() == "cpu" else 4):
            before, keep = keep, ~(suppresses & keep[:, None]).any(axis=0)
        return keep, (keep != before).any()

    keep = jnp.ones(len(boxes), bool)
    keep, _ = jax.lax.while_loop(lambda state: state[1], settle, (keep, jnp.array(True)))
    return keep
