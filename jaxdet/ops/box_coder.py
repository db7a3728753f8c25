"""What a box head says of a box: its offsets from an anchor, and the way back."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

# A decoded box is at most 1000/16 times its anchor (the clamp of Detectron and torchvision).
MAX_LOG_SCALE = math.log(1000 / 16)


def _centre_form(boxes):
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def encode(boxes: Float[Array, "*n 4"], anchors: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Offsets (dx, dy, dw, dh) of boxes from anchors (Girshick et al. 2014, eq. 1-4).

    Centres in units of the anchor's size, sizes as logarithms of the ratio. Both boxes must have
    positive size: pass the anchor itself where there is no box.
    """
    centre, size = _centre_form(boxes)
    anchor_centre, anchor_size = _centre_form(anchors)
    return jnp.concatenate(
        [(centre - anchor_centre) / anchor_size, jnp.log(size / anchor_size)], axis=-1
    )


def decode(offsets: Float[Array, "*n 4"], anchors: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """The inverse of `encode`, with the growth of a box limited to 62.5 times its anchor."""
    anchor_centre, anchor_size = _centre_form(anchors)
    centre = anchor_centre + offsets[..., :2] * anchor_size
    half = 0.5 * jnp.exp(jnp.minimum(offsets[..., 2:], MAX_LOG_SCALE)) * anchor_size
    return jnp.concatenate([centre - half, centre + half], axis=-1)


class BoxCoder(NamedTuple):
    """Two functions, of boxes and anchors to offsets, and of offsets and anchors to boxes."""

    encode: Callable
    decode: Callable


# What `loss.box_coder` may say.
BOX_CODERS = {"deltas": BoxCoder(encode, decode)}
