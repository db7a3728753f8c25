import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import boxes as box_ops
from jaxdet import inference
from jaxdet.anchors import pyramid_anchors

SIZE = (32, 48)
PYRAMID = pyramid_anchors(SIZE, (3, 4), (1.0, 2.0), (0.5, 1.0))
OPTIONS = {"score_threshold": 0.3, "pre_nms_top_k": 40, "nms_iou": 0.4, "max_detections": 12}


def reference(logits, offsets, score_threshold, pre_nms_top_k, nms_iou, max_detections):
    """The same rule in loops: top-k a level, decode, clip, greedy NMS a class, best first."""
    candidates, start = [], 0
    for anchors in PYRAMID:
        pairs = []
        for a in range(start, start + len(anchors)):
            for c in range(logits.shape[1]):
                score = 1 / (1 + np.exp(-logits[a, c]))
                if score > score_threshold:
                    box = box_ops.decode(jnp.array(offsets[a]), jnp.array(anchors[a - start]))
                    pairs.append((score, c, np.asarray(box_ops.clip(box, 32, 48))))
        candidates += sorted(pairs, key=lambda p: -p[0])[:pre_nms_top_k]
        start += len(anchors)
    kept = []
    for score, c, box in sorted(candidates, key=lambda p: -p[0]):
        overlaps = [
            float(box_ops.iou_matrix(jnp.array([box]), jnp.array([other]))[0, 0])
            for _, label, other in kept
            if label == c
        ]
        if max(overlaps, default=0) <= nms_iou:
            kept.append((score, c, box))
    return kept[:max_detections]


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_rule_in_loops(seed):
    rng = np.random.default_rng(seed)
    n = sum(map(len, PYRAMID))
    logits = rng.normal(-2, 2, (n, 3)).astype("f")
    offsets = rng.normal(0, 0.4, (n, 4)).astype("f")
    got = inference.select_detections(
        jnp.array(logits), jnp.array(offsets), None, PYRAMID, SIZE, **OPTIONS
    )
    expected = reference(logits, offsets, **OPTIONS)
    assert got.mask.sum() == len(expected) > 5
    assert got.normal == 1 - got.scores[0]
    for i, (score, label, box) in enumerate(expected):
        assert got.mask[i] and got.labels[i] == label
        np.testing.assert_allclose(got.scores[i], score, rtol=1e-5)
        np.testing.assert_allclose(got.boxes[i], box, atol=1e-3)


def test_nothing_above_the_threshold_is_nothing():
    n = sum(map(len, PYRAMID))
    got = inference.select_detections(
        jnp.full((n, 3), -9.0), jnp.zeros((n, 4)), None, PYRAMID, (32, 48), **OPTIONS
    )
    assert not got.mask.any() and got.boxes.shape == (12, 4)


def test_the_image_head_scores_no_finding_and_may_rescale():
    rng = np.random.default_rng(0)
    n = sum(map(len, PYRAMID))
    logits, offsets = rng.normal(-2, 2, (n, 3)), rng.normal(0, 0.4, (n, 4)).astype("f")
    image = np.array([-1.0, 0.5, 3, 0.25])
    in_image = 1 / (1 + np.exp(-image))
    scores = 1 / (1 + np.exp(-logits)) * in_image[:3] ** 0.7
    rescaled = np.log(scores / (1 - scores)).astype("f")
    expected = inference.select_detections(
        jnp.array(rescaled), jnp.array(offsets), None, PYRAMID, SIZE, **OPTIONS
    )
    got = inference.select_detections(
        jnp.array(logits.astype("f")), jnp.array(offsets), jnp.array(image.astype("f")),
        PYRAMID, SIZE, **OPTIONS, image_power=0.7,
    )  # fmt: skip
    for mine, theirs in zip(got[:4], expected[:4], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got.normal, 1 - in_image[3], rtol=1e-6)


def test_image_batches_fill_up_the_last():
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    got = list(inference.image_batches(images, 2, slice(None)))
    assert [real for _, real in got] == [2, 2, 1]
    assert [batch[:, 0, 0].tolist() for batch, _ in got] == [[1, 2], [3, 4], [5, 0]]
