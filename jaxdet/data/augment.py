"""Augmentation on the device: one affine warp for image and boxes, then the film's grey levels."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt8


def warp_boxes(
    boxes: Float[Array, "n 4"], matrix: Float[Array, "2 2"], offset: Float[Array, "2"]
) -> Float[Array, "n 4"]:
    """Boxes under p -> matrix @ p + offset, p = (x, y).

    The new box encloses the turned ellipse that fills the old one, not the turned corners: findings
    are round, and round the corners of a box turned by 5 degrees a wide heart would be a quarter
    higher.
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    centre = centre @ matrix.T + offset
    half = jnp.sqrt(half**2 @ (matrix**2).T)
    return jnp.concatenate([centre - half, centre + half], axis=1)


def warp_image(
    image: Float[Array, "h w"], matrix: Float[Array, "2 2"], offset: Float[Array, "2"]
) -> Float[Array, "h w"]:
    """The image under the same map, bilinear; what comes from outside is black.

    Coordinates are continuous: pixel (row i, column j) has its centre at (j + 0.5, i + 0.5).
    """
    height, width = image.shape
    x, y = jnp.meshgrid(jnp.arange(width) + 0.5, jnp.arange(height) + 0.5)
    # By hand, as `jnp.linalg.inv` is a call of a solver on a GPU.
    (a, b), (c, d) = matrix
    inverse = jnp.array([[d, -b], [-c, a]]) / (a * d - b * c)
    source = (jnp.stack([x, y], axis=-1) - offset) @ inverse.T - 0.5
    return jax.scipy.ndimage.map_coordinates(
        image, [source[..., 1], source[..., 0]], order=1, mode="constant", cval=0.0
    )


def augment(key: Key[Array, ""], batch: Mapping[str, Array], fields: Any) -> dict[str, Array]:
    """A random variant of each image of a batch, with its boxes; `fields` is `config.augment`."""
    images, boxes, mask = warp(key, batch["images"], batch["boxes"], batch["mask"], **fields)
    return {**batch, "images": images, "boxes": boxes, "mask": mask}


def warp(
    key: Key[Array, ""],
    images: UInt8[Array, "batch h w"],
    boxes: Float[Array, "batch boxes 4"],
    mask: Bool[Array, "batch boxes"],
    *,
    flip: float,
    scale: float,
    shift: float,
    rotate: float,
    min_visible: float,
    brightness: float,
    contrast: float,
    gamma: float,
) -> tuple[Float[Array, "batch h w"], Float[Array, "batch boxes 4"], Bool[Array, "batch boxes"]]:
    """A random variant of each image (grey levels 0..255) with its boxes, in pixels.

    Args:
        flip: probability of mirroring left and right.
        scale: images grow or shrink by a factor in [1 / (1 + scale), 1 + scale].
        shift: largest move along each axis, as a share of the image.
        rotate: largest turn, in degrees.
        min_visible: a box with less than this share of its area left inside is dropped (masked).
        brightness: largest change, as a share of the grey range.
        contrast, gamma: change by a factor in [1 / (1 + c), 1 + c].
    """
    height, width = images.shape[1:]
    size = jnp.array([width, height], jnp.float32)

    def one(key, image, boxes, mask):
        keys = jax.random.split(key, 7)

        def symmetric(key, largest, shape=()):
            return jax.random.uniform(key, shape, minval=-largest, maxval=largest)

        angle = jnp.deg2rad(symmetric(keys[0], rotate))
        zoom = jnp.exp(symmetric(keys[1], jnp.log1p(scale)))
        mirror = jnp.where(jax.random.bernoulli(keys[2], flip), -1.0, 1.0)
        cos, sin = zoom * jnp.cos(angle), zoom * jnp.sin(angle)
        matrix = jnp.array([[cos, -sin], [sin, cos]]) * jnp.array([mirror, 1.0])
        # About the centre of the image, then moved.
        offset = size / 2 - matrix @ (size / 2) + size * symmetric(keys[3], shift, (2,))

        image = warp_image(image.astype(jnp.float32) / 255, matrix, offset)
        image = image ** jnp.exp(symmetric(keys[4], jnp.log1p(gamma)))
        image = (image - 0.5) * jnp.exp(symmetric(keys[5], jnp.log1p(contrast))) + 0.5
        image = jnp.clip(image + symmetric(keys[6], brightness), 0, 1) * 255

        warped = warp_boxes(boxes, matrix, offset)
        inside = jnp.clip(warped, 0, jnp.concatenate([size, size]))
        visible = jnp.prod(inside[:, 2:] - inside[:, :2], axis=1)
        whole = jnp.prod(warped[:, 2:] - warped[:, :2], axis=1)
        return image, inside, mask & (visible > min_visible * whole)

    return jax.vmap(one)(jax.random.split(key, len(images)), images, boxes, mask)
