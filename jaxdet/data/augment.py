"""Augmentation on the device: what `augment.apply` names, one after the other, in its order.

An augmentation is a function `(key, batch, **fields) -> batch`; the fields are those of
`config.augment` that its signature names. A batch is a dictionary with

- images: float32 (batch, height, width), 0 (black) to 1 (white);
- boxes: float32 (batch, boxes, 4), pixels of the image; labels, soft_targets and mask beside them
  (False for padding), see `Targets`; weights, if not all are 1; bool exhaustive (batch, classes)
  where not all is boxed;
- whatever else there is, which is handed on.

Whoever adds, drops or reorders boxes does the same to what stands beside them. Shapes stay.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdet import InputError
from jaxdet.doors import choose
from jaxdet.ops.boxes import area

# Beyond a pasted box, over this share of its half width and height, the film fades in again.
PASTE_EDGE = 0.2


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


def warp(
    batch: Mapping[str, Array],
    matrices: Float[Array, "batch 2 2"],
    offsets: Float[Array, "batch 2"],
    min_visible: float,
) -> dict[str, Array]:
    """Each image under a map of its own, with its boxes, cut to the image.

    A box with `min_visible` of its area or less left inside is dropped (masked).
    """
    size = image_size(batch)

    def one(image, boxes, mask, matrix, offset):
        warped = warp_boxes(boxes, matrix, offset)
        inside = jnp.clip(warped, 0, jnp.concatenate([size, size]))
        mask = mask & (area(inside) > min_visible * area(warped))
        return {"images": warp_image(image, matrix, offset), "boxes": inside, "mask": mask}

    columns = (batch[name] for name in ("images", "boxes", "mask"))
    return {**batch, **jax.vmap(one)(*columns, matrices, offsets)}


def image_size(batch: Mapping[str, Array]) -> Float[Array, "2"]:
    """(width, height) of the images in pixels."""
    height, width = batch["images"].shape[1:]
    return jnp.array([width, height], jnp.float32)


def keys_of_images(key: Key[Array, ""], batch: Mapping[str, Array]) -> Key[Array, "batch"]:
    return jax.random.split(key, len(batch["images"]))


def symmetric(key: Key[Array, ""], largest: Any, shape: tuple[int, ...] = ()) -> Array:
    """Uniform from -largest to largest."""
    return jax.random.uniform(key, shape, minval=-largest, maxval=largest)


def affine(
    key: Key[Array, ""],
    batch: Mapping[str, Array],
    *,
    flip: float,
    scale: float,
    shift: float,
    rotate: float,
    min_visible: float,
) -> dict[str, Array]:
    """Mirrored, scaled and turned about its centre, and moved.

    Args:
        flip: probability of mirroring left and right.
        scale: images grow or shrink by a factor in [1 / (1 + scale), 1 + scale].
        shift: largest move along each axis, as a share of the image.
        rotate: largest turn, in degrees.
        min_visible: see `warp`.
    """
    size = image_size(batch)

    def draw(key):
        keys = jax.random.split(key, 7)
        angle = jnp.deg2rad(symmetric(keys[0], rotate))
        zoom = jnp.exp(symmetric(keys[1], jnp.log1p(scale)))
        mirror = jnp.where(jax.random.bernoulli(keys[2], flip), -1.0, 1.0)
        cos, sin = zoom * jnp.cos(angle), zoom * jnp.sin(angle)
        matrix = jnp.array([[cos, -sin], [sin, cos]]) * jnp.array([mirror, 1.0])
        # About the centre of the image, then moved.
        return matrix, size / 2 - matrix @ (size / 2) + size * symmetric(keys[3], shift, (2,))

    return warp(batch, *jax.vmap(draw)(keys_of_images(key, batch)), min_visible)


def grey_levels(
    key: Key[Array, ""],
    batch: Mapping[str, Array],
    *,
    brightness: float,
    contrast: float,
    gamma: float,
) -> dict[str, Array]:
    """Other grey levels.

    Args:
        brightness: largest change, as a share of the grey range.
        contrast, gamma: change by a factor in [1 / (1 + c), 1 + c].
    """

    def one(key, image):
        keys = jax.random.split(key, 7)  # the first four are those of `affine`
        image = image ** jnp.exp(symmetric(keys[4], jnp.log1p(gamma)))
        image = (image - 0.5) * jnp.exp(symmetric(keys[5], jnp.log1p(contrast))) + 0.5
        return jnp.clip(image + symmetric(keys[6], brightness), 0, 1)

    return {**batch, "images": jax.vmap(one)(keys_of_images(key, batch), batch["images"])}


def crop_and_zoom(
    key: Key[Array, ""],
    batch: Mapping[str, Array],
    *,
    zoom_probability: float,
    zoom_in: float,
    zoom_out: float,
    min_visible: float,
) -> dict[str, Array]:
    """A part of the image made as large as the whole, or the image smaller, on black.

    Which part, or where on the black, is as random as the factor.

    Args:
        zoom_probability: that it happens to an image.
        zoom_in, zoom_out: the factor is in [1 / (1 + zoom_out), 1 + zoom_in].
        min_visible: see `warp`.
    """
    size = image_size(batch)

    def draw(key):
        keys = jax.random.split(key, 3)
        logarithm = jax.random.uniform(
            keys[0], minval=-jnp.log1p(zoom_out), maxval=jnp.log1p(zoom_in)
        )
        zoom = jnp.where(jax.random.bernoulli(keys[1], zoom_probability), jnp.exp(logarithm), 1.0)
        return zoom * jnp.eye(2), (1 - zoom) * size * jax.random.uniform(keys[2], (2,))

    return warp(batch, *jax.vmap(draw)(keys_of_images(key, batch)), min_visible)


def covered(boxes: Float[Array, "n 4"], by: Float[Array, "4"]) -> Float[Array, "n"]:
    """The share of each box that lies within another one."""
    corners = [jnp.maximum(boxes[:, :2], by[:2]), jnp.minimum(boxes[:, 2:], by[2:])]
    return area(jnp.concatenate(corners, axis=1)) / jnp.maximum(area(boxes), 1e-6)


def paste_findings(
    key: Key[Array, ""],
    batch: Mapping[str, Array],
    *,
    paste_probability: float,
    paste_shift: float,
    paste_overlap: float,
) -> dict[str, Array]:
    """A finding of another film of the batch comes into this one, with label and soft target.

    Copy-paste (Ghiasi et al. 2021) for boxes: what is in the box comes to the same place or one
    near it, with soft edges, as bright as what surrounds it there. All findings of the other films
    are equally likely. Normal films receive too, and count as abnormal from then on. Nothing is
    pasted where all the places for boxes are taken, where it would hide a finding, or where another
    finding would come along without its box. Where not everything is boxed, a film receives from
    those alone that are exhaustive for every class that it is exhaustive for: what may come along
    unseen is then unknown in the film too, and a pasted class that is, is known in its box alone.

    Args:
        paste_probability: that a film is to receive a finding.
        paste_shift: largest move along each axis, as a share of the image.
        paste_overlap: largest share of any other finding's box that may be pasted over, or along.
    """
    images, boxes, labels = batch["images"], batch["boxes"], batch["labels"]
    soft_targets, mask = batch["soft_targets"], batch["mask"]
    exhaustive = batch.get("exhaustive")
    num_images, num_boxes = mask.shape
    size = image_size(batch)

    def one(key, here):
        keys = jax.random.split(key, 3)
        of_others = mask & (jnp.arange(num_images) != here)[:, None]
        if exhaustive is not None:
            of_others &= (exhaustive | ~exhaustive[here]).all(axis=1)[:, None]
        logits = jnp.where(of_others, 0.0, -jnp.inf)
        chosen = jax.random.categorical(keys[0], logits.ravel())
        there, slot = chosen // num_boxes, chosen % num_boxes
        box = boxes[there, slot]

        # By whole pixels, so that nothing is sampled anew; the box stays in the image.
        shift = jnp.round(size * symmetric(keys[1], paste_shift, (2,)))
        shift = jnp.clip(shift, -jnp.floor(box[:2]), jnp.floor(size - box[2:]))
        target = box + jnp.concatenate([shift, shift])
        half = (target[2:] - target[:2]) / 2
        edge = jnp.maximum(PASTE_EDGE * half, 1.0)
        touched = target + jnp.concatenate([-edge, edge])

        hides = mask[here] & (covered(boxes[here], touched) > paste_overlap)
        along = covered(boxes[there], touched - jnp.concatenate([shift, shift])) > paste_overlap
        along &= mask[there] & (jnp.arange(num_boxes) != slot)
        free = jnp.argmin(mask[here])
        pastes = jax.random.bernoulli(keys[2], paste_probability) & of_others.any()
        pastes &= ~mask[here, free] & ~hides.any() & ~along.any()

        # 1 in the box, 0 beyond its edge.
        weights, sources = [], []
        for axis in (0, 1):
            length = images.shape[2 - axis]
            distance = jnp.abs(jnp.arange(length) + 0.5 - (target[axis] + half[axis]))
            weights.append(jnp.clip((half[axis] + edge[axis] - distance) / edge[axis], 0, 1))
            source = jnp.arange(length) - shift[axis].astype(jnp.int32)
            sources.append(jnp.clip(source, 0, length - 1))
        weight = weights[1][:, None] * weights[0]
        film, other = images[here], images[there, sources[1][:, None], sources[0]]
        ring = weight * (1 - weight)
        other += (ring * (film - other)).sum() / jnp.maximum(ring.sum(), 1e-6)
        film += pastes * weight * (jnp.clip(other, 0, 1) - film)

        def received(column, value):
            return column[here].at[free].set(jnp.where(pastes, value, column[here, free]))

        weights = {}
        if "weights" in batch:
            column = batch["weights"]
            weights["weights"] = received(column, column[there, slot])
        return {
            **weights,
            "images": film,
            "boxes": received(boxes, target),
            "labels": received(labels, labels[there, slot]),
            "soft_targets": received(soft_targets, soft_targets[there, slot]),
            "mask": received(mask, True),
        }

    films = jnp.arange(num_images)
    return {**batch, **jax.vmap(one)(keys_of_images(key, batch), films)}


def mix_with_normal(
    key: Key[Array, ""], batch: Mapping[str, Array], *, mix_probability: float, mix_share: float
) -> dict[str, Array]:
    """A normal film of the batch shines through another film.

    Mixup (Zhang et al. 2018; for detection Zhang et al. 2019) with normal films alone, so that no
    label changes: the same finding is seen in other chests. A film without a box of which a class
    is unknown is not normal. Nothing happens where no other film of the batch is.

    Args:
        mix_probability: that it happens to a film.
        mix_share: the normal film's share is anything from 0 to this.
    """
    images, normal = batch["images"], ~batch["mask"].any(axis=1)
    if "exhaustive" in batch:
        normal &= batch["exhaustive"].all(axis=1)

    def one(key, here):
        keys = jax.random.split(key, 3)
        others = normal & (jnp.arange(len(images)) != here)
        there = jax.random.categorical(keys[0], jnp.where(others, 0.0, -jnp.inf))
        mixes = jax.random.bernoulli(keys[1], mix_probability) & others.any()
        share = mixes * mix_share * jax.random.uniform(keys[2])
        return images[here] + share * (images[there] - images[here])

    mixed = jax.vmap(one)(keys_of_images(key, batch), jnp.arange(len(images)))
    return {**batch, "images": mixed}


# What `augment.apply` may name.
AUGMENTATIONS = {
    "affine": affine,
    "grey_levels": grey_levels,
    "crop_and_zoom": crop_and_zoom,
    "paste_findings": paste_findings,
    "mix_with_normal": mix_with_normal,
}


def check_each_once(names: tuple[str, ...]) -> None:
    """Raise InputError if `augment.apply` has a name twice: both would draw the same numbers."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{twice[0]!r} is there twice")


def augment(key: Key[Array, ""], batch: Mapping[str, Array], fields: Any) -> dict[str, Array]:
    """A random variant of each image of a batch, with its boxes.

    Args:
        key: of the step.
        batch: as this module's docstring has it, but for images of grey levels 0..255, which they
            have afterwards too, as float32.
        fields: `config.augment`.
    """
    batch = {**batch, "images": batch["images"].astype(jnp.float32) / 255}
    for name in fields["apply"]:
        batch = choose(AUGMENTATIONS, name, fields)(key_of(key, name), batch)
    return {**batch, "images": batch["images"] * 255}


def key_of(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of one augmentation, the same wherever in the list it stands."""
    # They were one function once, and draw from one key: older runs go on as they began.
    if name in ("affine", "grey_levels"):
        return key
    # No small number, as `split(key, n)[i]` is `fold_in(key, i)`.
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
