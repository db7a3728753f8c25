"""Images in, detections out: one jitted step with fixed shapes."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxdet import boxes as box_ops
from jaxdet import parallel
from jaxdet.augment import normalize
from jaxdet.compilation import jit
from jaxdet.nms import nms_mask


class Detections(NamedTuple):
    """Boxes of each image in descending order of score, padded (`mask` False).

    Boxes are in pixels of the model input; classes count from 0. `normal` is the score for an image
    without any finding.
    """

    boxes: Float[Array, "*batch boxes 4"]
    labels: Int[Array, "*batch boxes"]
    scores: Float[Array, "*batch boxes"]
    mask: Bool[Array, "*batch boxes"]
    normal: Float[Array, "*batch"]


def select_detections(
    class_logits: Float[Array, "anchors classes"],
    box_offsets: Float[Array, "anchors 4"],
    image_logits: Float[Array, "labels"] | None,
    pyramid: list[Float[np.ndarray, "_ 4"]],
    image_size: tuple[int, int],
    *,
    score_threshold: float,
    pre_nms_top_k: int,
    nms_iou: float,
    max_detections: int,
    image_power: float = 0.0,
) -> Detections:
    """Detections of one image, by the rule of torchvision's RetinaNet.

    Each level gives its `pre_nms_top_k` best pairs of anchor and class above `score_threshold`;
    those are decoded, cut to the image and thinned by class-wise NMS at `nms_iou`; the best
    `max_detections` stay. `pyramid` holds the anchors of each level in the order of the logits;
    `image_size` is (height, width).

    With `image_logits` (see `Outputs`) a score is multiplied by the probability of its class in the
    image ** `image_power`, and `normal` is the probability of no finding; without, it is 1 - the
    best score: an image is as normal as its most suspicious box is not.
    """
    num_classes = class_logits.shape[-1]
    probabilities = jax.nn.sigmoid(class_logits.astype(jnp.float32))
    if image_logits is not None:
        in_image = jax.nn.sigmoid(image_logits.astype(jnp.float32))
        probabilities *= in_image[:-1] ** image_power
    boxes, labels, scores = [], [], []
    start = 0
    for anchors in pyramid:
        end = start + len(anchors)
        pairs = probabilities[start:end].reshape(-1)
        best, pair = jax.lax.top_k(pairs, min(pre_nms_top_k, len(pairs)))
        anchor = pair // num_classes
        offsets = box_offsets[start:end][anchor].astype(jnp.float32)
        boxes.append(
            box_ops.clip(box_ops.decode(offsets, jnp.asarray(anchors)[anchor]), *image_size)
        )
        labels.append(pair % num_classes)
        scores.append(best)
        start = end
    boxes, labels, scores = (jnp.concatenate(x) for x in (boxes, labels, scores))

    scores = jnp.where(scores > score_threshold, scores, 0)
    order = jnp.argsort(-scores, stable=True)
    boxes, labels, scores = boxes[order], labels[order], scores[order]
    keep = nms_mask(boxes, labels, nms_iou) & (scores > 0)
    kept_first = jnp.argsort(~keep, stable=True)[:max_detections]
    normal = 1 - scores[0] if image_logits is None else 1 - in_image[-1]
    return Detections(*(x[kept_first] for x in (boxes, labels, scores, keep)), normal)


def make_detect(
    graphdef: nnx.GraphDef,
    pyramid: list[Float[np.ndarray, "_ 4"]],
    image_size: int,
    mesh: jax.sharding.Mesh,
    **options,
) -> Callable[..., Detections]:
    """The jitted step `detect(weights, images) -> Detections`; `options` as `select_detections`."""

    def detect(weights, images):
        model = nnx.merge(graphdef, weights["params"], weights["batch_stats"])
        outputs = model(normalize(images), train=False)
        return jax.vmap(
            lambda *of_image: select_detections(
                *of_image, pyramid, (image_size, image_size), **options
            )
        )(*outputs)

    return jit(detect, out_shardings=parallel.replicated(mesh))


def image_batches(
    images, batch_size: int, rows: slice
) -> Iterator[tuple[UInt8[np.ndarray, "batch height width"], int]]:
    """Consecutive images in batches of one size, with the number of real ones in each.

    The last batch is filled up with black. `images` has a length and gives image i by `images[i]`.
    """
    for start in range(0, len(images), batch_size):
        real = min(batch_size, len(images) - start)
        batch = np.stack([images[i] for i in range(start, start + real)])
        padding = ((0, batch_size - real), (0, 0), (0, 0))
        yield np.pad(batch, padding)[rows], real


def detect_all(
    detect: Callable, weights, images, batch_size: int, mesh: jax.sharding.Mesh
) -> Detections:
    """Detections of all images, on the host. `images[i]` is image i at the model's size."""
    parts = []
    for batch, real in image_batches(images, batch_size, parallel.local_rows(batch_size)):
        found = detect(weights, parallel.shard_batch({"images": batch}, mesh)["images"])
        parts.append(jax.tree.map(lambda x, real=real: np.asarray(x)[:real], found))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)
