"""What the model is fed: the images of a training step as the step itself makes them, and which
of its priors (anchors, say) answer for which box."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from jaxdet.data.augment import augment
from jaxdet.data.batches import training_batches
from jaxdet.data.dataset import Dataset
from jaxdet.ops.boxes import Targets
from jaxdet.ops.matching import Priors
from jaxdet.training.plan import abstract_detector


class Fed(NamedTuple):
    """Images of the first steps, and what is to be learned of them."""

    images: UInt8[np.ndarray, "n size size"]
    targets: Targets  # boxes in pixels of the image
    priors: Priors | None  # None where the detector has none
    match: Int[np.ndarray, "n priors"] | None  # the box that each answers for, or below 0

    def positives(self) -> Int[np.ndarray, "n boxes levels"]:
        """How many priors of each level answer for each box."""
        pyramid = self.priors.pyramid
        result = np.zeros((*self.targets.mask.shape, len(pyramid)), np.int64)
        level = np.repeat(np.arange(len(pyramid)), [len(priors) for priors in pyramid])
        image, prior = np.nonzero(self.match >= 0)
        np.add.at(result, (image, self.match[image, prior], level[prior]), 1)
        return result


def feed(config: ConfigDict, dataset: Dataset, targets: Targets, num_images: int) -> Fed:
    """The first so many images, those of whole steps, just as training would see them.

    Args:
        config: as planned, see `plan_detector`.
        dataset, targets: what is trained on.
    """
    config = config.copy_and_resolve_references()
    config.data.cache = False  # few of the images are needed
    model = abstract_detector(config, dataset.num_classes)
    matches = hasattr(model, "match")

    @jax.jit
    def see(step, batch):
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        batch = augment(key, batch, config.augment)
        targets = Targets.of_batch(batch)
        match = jax.vmap(model.match)(targets) if matches else None
        return jnp.round(batch["images"]).astype(jnp.uint8), targets, match

    batches = training_batches(config, dataset, targets, slice(None))
    steps = range(-(-num_images // config.train.batch_size))
    parts = [jax.device_get(see(step, batches[step])) for step in steps]
    images, targets, match = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    return Fed(images, targets, model.priors() if matches else None, match)
