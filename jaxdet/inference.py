"""A run's detector: images in, detections out, by one compiled function."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from jaxdet import checkpoint, models, parallel, workdir
from jaxdet.boxes import BoxTable
from jaxdet.compilation import jit
from jaxdet.images import normalize
from jaxdet.nms import Detections
from jaxdet.scores import NO_FINDING_BOX


class Detector:
    """A network compiled once; its weights come with each call, so that training can use it too.

    Attributes:
        config: of the run.
        abstract_weights: shapes of what `detect_all` takes as weights.
    """

    def __init__(self, config: ConfigDict, num_classes: int, mesh: jax.sharding.Mesh):
        self.config, self.mesh = config, mesh
        graphdef, self.abstract_weights = models.abstract(
            config.model, config.loss, num_classes, config.data.image_size
        )

        def detect(weights, images):
            model = nnx.merge(graphdef, weights["params"], weights["batch_stats"])
            return model.detections(model(normalize(images)), **config.inference)

        replicated = parallel.replicated(mesh)
        self.detect = jit(detect, config.train.deterministic, out_shardings=replicated)

    def load_weights(
        self, manager, which: str, scores: dict[int, float]
    ) -> tuple[dict[str, nnx.State], int]:
        """The weights of a checkpoint ("latest", "best" or a step), and its step."""
        abstract = checkpoint.abstract_of(self.abstract_weights, parallel.replicated(self.mesh))
        if which == "latest":
            items, step = checkpoint.restore_newest(manager, weights=abstract)
        else:
            step = checkpoint.find_step(manager, which, scores)
            items = checkpoint.restore(manager, step, weights=abstract)
        return items["weights"], step

    def detect_all(
        self,
        weights: dict[str, nnx.State],
        load: Callable[[int], UInt8[np.ndarray, "h w"]],
        num_images: int,
        between: Callable[[], None] = lambda: None,
    ) -> Detections:
        """Detections of all images, on the host.

        Args:
            load: gives image i at the model's size; each process asks for its own share.
            between: called after each batch, such as to stop.
        """
        batch_size = self.config.evaluation.batch_size
        black = np.zeros((self.config.data.image_size,) * 2, np.uint8)
        parts = []
        for positions in parallel.local_positions(num_images, batch_size):
            batch = np.stack([black if i < 0 else load(int(i)) for i in positions])
            images = parallel.shard_batch({"images": batch}, self.mesh)["images"]
            parts.append(jax.device_get(self.detect(weights, images)))
            between()
        return jax.tree.map(lambda *x: np.concatenate(x)[:num_images], *parts)


class Loaded(NamedTuple):
    """The detector of a run with the weights of one of its checkpoints."""

    detector: Detector
    weights: dict[str, nnx.State]
    step: int


def load(config: ConfigDict, folder: Path, which: str, num_classes: int) -> Loaded:
    """The detector of the run in `folder` at a checkpoint: "latest", "best" or a step."""
    detector = Detector(config, num_classes, parallel.make_mesh())
    with checkpoint.open_manager(folder) as manager:
        weights, step = detector.load_weights(manager, which, workdir.read_scores(folder))
    return Loaded(detector, weights, step)


def to_table(
    detections: Detections,
    sizes: Int[np.ndarray, "n 2"],
    image_size: int,
    num_classes: int,
) -> BoxTable:
    """Detections of n images as rows in original pixels, "No finding" (`num_classes`) among them.

    Args:
        sizes: (height, width) of each original in pixels.
        image_size: of the model input, in whose pixels the detections are.
    """
    image, slot = np.nonzero(detections.mask)
    width_height = sizes[image][:, [1, 0, 1, 0]]
    boxes = detections.boxes[image, slot].astype(np.float64) * (width_height / image_size)
    normal = np.arange(len(sizes))
    return BoxTable(
        image=np.concatenate([image, normal]),
        labels=np.concatenate([detections.labels[image, slot], np.full(len(sizes), num_classes)]),
        boxes=np.concatenate([boxes, np.tile(NO_FINDING_BOX, (len(sizes), 1))]),
        scores=np.concatenate([detections.scores[image, slot], detections.normal]).astype(
            np.float64
        ),
    )
