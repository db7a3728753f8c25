"""A run's detector: images in, detections out, by one compiled function."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, UInt8
from ml_collections import ConfigDict

from jaxdet import InputError, models
from jaxdet.data.ahead import in_order
from jaxdet.data.images import normalize
from jaxdet.inference.tta import fuse_looks, looks
from jaxdet.kernels.compilation import jit
from jaxdet.ops.boxes import NO_FINDING_BOX, BoxTable
from jaxdet.ops.nms import Detections
from jaxdet.runs import checkpoint, parallel, workdir


def detector_function(
    config: ConfigDict, num_classes: int
) -> Callable[[dict[str, nnx.State], UInt8[Array, "batch h w"], int, bool], Detections]:
    """detect(weights, images, size, mirrored): what the network finds in one look at images.

    Boxes come in pixels of the images, whatever `size` they are looked at in.
    """
    image_size, choice = config.data.image_size, dict(config.inference)
    del choice["tta"]

    def detect(weights, images, size=image_size, mirrored=False):
        # Parameters do not depend on the size, but anchors lie on every location.
        graphdef, _ = models.abstract(config.model, config.loss, num_classes, size)
        model = nnx.merge(graphdef, weights["params"], weights["batch_stats"])
        if size != image_size:
            shape = (len(images), size, size)
            images = jax.image.resize(images.astype("float32"), shape, "linear")
        if mirrored:
            images = images[:, :, ::-1]
        found = model.detections(model(normalize(images)), **choice)
        boxes = found.boxes
        if mirrored:
            boxes = boxes.at[..., [0, 2]].set(size - boxes[..., [2, 0]])
        return found._replace(boxes=boxes * (image_size / size))

    return detect


class Detector:
    """A network compiled once; its weights come with each call, so that training can use it too.

    Attributes:
        config: of the run.
        looks: see `looks`.
        abstract_weights: shapes of what `detect_all` takes as weights.
    """

    def __init__(self, config: ConfigDict, num_classes: int, mesh: jax.sharding.Mesh):
        self.config, self.mesh = config, mesh
        self.looks = looks(config.inference.tta, config.data.image_size)
        graphdef, self.abstract_weights = models.abstract(
            config.model, config.loss, num_classes, config.data.image_size
        )
        self.describe = nnx.merge(graphdef, *self.abstract_weights.values()).describe
        self.detect = jit(
            detector_function(config, num_classes),
            config.train.deterministic,
            static_argnums=(2, 3),
            out_shardings=parallel.replicated(mesh),
        )

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

    def detect_batches(
        self,
        weights: dict[str, nnx.State],
        load: Callable[[int], UInt8[np.ndarray, "h w"]],
        num_images: int,
    ) -> Iterator[Detections]:
        """Detections of the first `evaluation.batch_size` images, of the next, and so on, on the
        host; of several looks, fused.

        Args:
            load: gives image i at the model's size. Threads call it, a batch ahead of the detector;
                each process asks for its own share.
        """
        batch_size, choice = self.config.evaluation.batch_size, self.config.inference
        black = np.zeros((self.config.data.image_size,) * 2, np.uint8)
        batches = parallel.local_positions(num_images, batch_size)
        mine = batches[batches >= 0].tolist()
        with contextlib.closing(in_order(load, mine, ahead=batches.shape[1])) as loaded:
            for number, positions in enumerate(batches):
                batch = np.stack([black if i < 0 else next(loaded) for i in positions])
                images = parallel.shard_batch({"images": batch}, self.mesh)["images"]
                found = [jax.device_get(self.detect(weights, images, *look)) for look in self.looks]
                last = num_images - number * batch_size  # the last batch is filled up
                found = [jax.tree.map(lambda x, last=last: x[:last], look) for look in found]
                if len(found) > 1:
                    yield fuse_looks(found, choice.tta.fusion, choice.max_detections)
                else:
                    yield found[0]

    def detect_all(
        self,
        weights: dict[str, nnx.State],
        load: Callable[[int], UInt8[np.ndarray, "h w"]],
        num_images: int,
        between: Callable[[], None] = lambda: None,
    ) -> Detections:
        """The detections of all images together, see `detect_batches`.

        Args:
            between: called after each batch, such as to stop.
        """
        parts = []
        with contextlib.closing(self.detect_batches(weights, load, num_images)) as batches:
            for part in batches:
                parts.append(part)
                between()
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)


class Loaded(NamedTuple):
    """The detector of a run with the weights of one of its checkpoints."""

    detector: Detector
    weights: dict[str, nnx.State]
    step: int


def load_detector(config: ConfigDict, folder: Path, which: str, num_classes: int) -> Loaded:
    """The detector of the run in `folder` at a checkpoint: "latest", "best" or a step.

    Raises:
        InputError: if there is no such checkpoint.
    """
    detector = Detector(config, num_classes, parallel.make_mesh())
    with checkpoint.open_manager(folder) as manager:
        best_by = config.evaluation.best_by
        scores = workdir.read_scores(folder, best_by)
        if which == "best" and not scores:
            raise InputError(
                f"--checkpoint=best: no evaluation of the run in {folder} has {best_by}, which "
                "evaluation.best_by names: name another metric, a step, or latest"
            )
        weights, step = detector.load_weights(manager, which, scores)
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
