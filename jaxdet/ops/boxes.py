"""Boxes as (x1, y1, x2, y2) in pixels: their overlap, and a table of many."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

NO_FINDING = "No finding"  # the class after the last
# It is scored as a box, the same one in every image.
NO_FINDING_BOX = (0.0, 0.0, 1.0, 1.0)


class BoxTable(NamedTuple):
    """Boxes of many images, a row each. Ground truth has score 1."""

    image: Int[np.ndarray, "n"]  # position of the image among those that the table is about
    labels: Int[np.ndarray, "n"]
    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n"]


class Targets(NamedTuple):
    """What is to be learned of images: their boxes, padded to as many as one has at most."""

    boxes: Float[Array | np.ndarray, "*images boxes 4"]  # in pixels of the model input
    labels: Int[Array | np.ndarray, "*images boxes"]
    soft_targets: Float[Array | np.ndarray, "*images boxes"]  # 1; less where readers disagree
    mask: Bool[Array | np.ndarray, "*images boxes"]  # False for padding
    # Whether all of a class is boxed: where it is not, what is not boxed is not background. None
    # where everything is.
    exhaustive: Bool[Array | np.ndarray, "*images classes"] | None = None
    # Of each box's class and box loss, see `fusion.earl`. None where all are 1.
    weights: Float[Array | np.ndarray, "*images boxes"] | None = None

    @classmethod
    def of_batch(cls, batch: Mapping[str, Any]) -> "Targets":
        """Those of a batch, which has them by name."""
        return cls(**{name: batch[name] for name in cls._fields if name in batch})

    def columns(self) -> dict[str, Array | np.ndarray]:
        """What there is, by name."""
        return {name: column for name, column in self._asdict().items() if column is not None}


def concatenate(tables: Sequence[BoxTable], num_images: Sequence[int]) -> BoxTable:
    """Tables of so many images each as one, whose images are counted on."""
    starts = np.cumsum([0, *num_images[:-1]])
    moved = [t._replace(image=t.image + start) for t, start in zip(tables, starts, strict=True)]
    return BoxTable(*map(np.concatenate, zip(*moved, strict=True)))


def area(boxes: Float[Array | np.ndarray, "*n 4"]) -> Float[Array | np.ndarray, "*n"]:
    """Area in square pixels; an upside-down box has area 0."""
    size = (boxes[..., 2:] - boxes[..., :2]).clip(0)
    return size[..., 0] * size[..., 1]


def iou(
    a: Float[Array | np.ndarray, "*#n 4"], b: Float[Array | np.ndarray, "*#n 4"]
) -> Float[Array | np.ndarray, "*n"]:
    """Intersection over union of pairs of boxes (the two broadcast); 0 where both are empty.

    NumPy in, NumPy out, in its own precision; the same for JAX.
    """
    xp = a.__array_namespace__()
    corners = [xp.maximum(a[..., :2], b[..., :2]), xp.minimum(a[..., 2:], b[..., 2:])]
    intersection = area(xp.concatenate(corners, axis=-1))
    union = area(a) + area(b) - intersection
    return xp.where(union > 0, intersection / xp.where(union > 0, union, 1), 0)


def iou_matrix(a: Float[Array, "*b n 4"], b: Float[Array, "*b m 4"]) -> Float[Array, "*b n m"]:
    """Intersection over union of each of `a` with each of `b`."""
    return iou(a[..., :, None, :], b[..., None, :, :])


def giou(a: Float[Array, "*n 4"], b: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Generalised IoU of box pairs, from -1 to 1 (Rezatofighi et al. 2019): IoU, less the share of
    the box around both that neither covers, so that boxes apart have a gradient too."""
    top_left, bottom_right = (
        jnp.maximum(a[..., :2], b[..., :2]),
        jnp.minimum(a[..., 2:], b[..., 2:]),
    )
    intersection = area(jnp.concatenate([top_left, bottom_right], axis=-1))
    union = area(a) + area(b) - intersection
    outer = jnp.concatenate(
        [jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], axis=-1
    )
    hull = area(outer)
    epsilon = 1e-7  # torchvision's: empty boxes stay finite
    return intersection / (union + epsilon) - (hull - union) / (hull + epsilon)


def clip(boxes: Float[Array, "*n 4"], height: int, width: int) -> Float[Array, "*n 4"]:
    """Boxes cut to the image [0, width] x [0, height]."""
    return jnp.clip(boxes, 0, jnp.array([width, height, width, height], boxes.dtype))
