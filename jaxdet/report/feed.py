"""What the model is fed: the images of a training step as the step itself makes them, and which
anchors answer for which box."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from jaxdet import models
from jaxdet.data.augment import augment
from jaxdet.data.batches import Targets, training_batches
from jaxdet.data.dataset import Dataset


class Fed(NamedTuple):
    """Images of the first steps, and what is to be learned of them."""

    images: UInt8[np.ndarray, "n size size"]
    boxes: Float[np.ndarray, "n boxes 4"]  # in pixels of the image
    labels: Int[np.ndarray, "n boxes"]
    mask: Bool[np.ndarray, "n boxes"]
    match: Int[np.ndarray, "n anchors"]  # the box that each anchor answers for, or below 0
    anchors: list[Float[np.ndarray, "_ 4"]]  # of each level

    def positives(self) -> Int[np.ndarray, "n boxes levels"]:
        """How many anchors of each level answer for each box."""
        result = np.zeros((*self.mask.shape, len(self.anchors)), np.int64)
        level = np.repeat(np.arange(len(self.anchors)), [len(a) for a in self.anchors])
        image, anchor = np.nonzero(self.match >= 0)
        np.add.at(result, (image, self.match[image, anchor], level[anchor]), 1)
        return result


def feed(config: ConfigDict, dataset: Dataset, targets: Targets, num_images: int) -> Fed:
    """The first so many images, those of whole steps, just as training would see them.

    Args:
        config: with anchors, planned or given.
        dataset, targets: what is trained on.
    """
    config = config.copy_and_resolve_references()
    config.data.cache = False  # few of the images are needed
    # Its structure alone: which anchors answer is no question of weights.
    sections = config.model, config.loss, dataset.num_classes, config.data.image_size
    model = nnx.eval_shape(lambda: models.create(*sections, nnx.Rngs(0)))

    @jax.jit
    def see(step, batch):
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        images, boxes, mask = augment(
            key, batch["images"], batch["boxes"], batch["mask"], **config.augment
        )
        return jnp.round(images).astype(jnp.uint8), boxes, mask, jax.vmap(model.match)(boxes, mask)

    batches = training_batches(config, dataset, targets, slice(None))
    parts = []
    for step in range(-(-num_images // config.train.batch_size)):
        batch = batches[step]
        images, boxes, mask, matched = jax.device_get(see(step, batch))
        parts.append((images, boxes, batch["labels"], mask, matched))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Fed(*columns, model.anchors())
