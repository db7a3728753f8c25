"""Selecting detections: top-k, greedy non-maximum suppression, fixed shapes."""

from collections.abc import Callable, Sequence
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


def top_k(
    x: Float[Array, "n"], k: int, group: int = 16
) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
    """`jax.lax.top_k`, with the same order of ties, without sorting all values.

    The k largest values are in the k groups that have the largest maxima.
    """
    if len(x) <= 2 * group * k:
        return tuple(jax.lax.top_k(x, k))
    groups = jnp.pad(x, (0, -len(x) % group), constant_values=-jnp.inf).reshape(-1, group)
    _, likely = top_k(groups.max(axis=1), k, group)
    likely = jnp.sort(likely)  # in order again, for equal values
    best, index = jax.lax.top_k(groups[likely].reshape(-1), k)
    return best, likely[index // group] * group + index % group


def select_detections(
    scores: Sequence[Float[Array, "_ classes"]],
    decode: Callable[[int, Int[Array, "k"]], Float[Array, "k 4"]],
    image_size: tuple[int, int],
    normal: Float[Array, ""] | None,
    *,
    score_threshold: float,
    pre_nms_top_k: int,
    nms_iou: float,
    max_detections: int,
) -> Detections:
    """Detections of one image, by the rule of torchvision's one-stage detectors.

    Each level gives its `pre_nms_top_k` best pairs of location and class above `score_threshold`;
    their boxes are cut to the image and thinned by class-wise NMS at `nms_iou`; the best
    `max_detections` stay.

    Args:
        scores: of each level, 0 to 1.
        decode: gives the boxes of some locations of a level.
        image_size: (height, width) in pixels.
        normal: how surely the image has no finding. None: 1 - the best score, as an image is as
            normal as its most suspicious box is not.
    """
    num_classes = scores[0].shape[-1]
    found = []
    for level, of_level in enumerate(scores):
        pairs = of_level.reshape(-1)
        best, pair = top_k(pairs, min(pre_nms_top_k, len(pairs)))
        boxes = box_ops.clip(decode(level, pair // num_classes), *image_size)
        found.append((boxes, pair % num_classes, best))
    boxes, labels, best = (jnp.concatenate(x) for x in zip(*found, strict=True))

    best = jnp.where(best > score_threshold, best, 0)
    order = jnp.argsort(-best, stable=True)
    boxes, labels, best = boxes[order], labels[order], best[order]
    keep = nms_mask(boxes, labels, nms_iou) & (best > 0)
    kept_first = jnp.argsort(~keep, stable=True)[:max_detections]
    normal = 1 - best[0] if normal is None else normal
    return Detections(*(x[kept_first] for x in (boxes, labels, best, keep)), normal)
