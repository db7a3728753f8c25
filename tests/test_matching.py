import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet import boxes as box_ops
from jaxdet.matching import BACKGROUND, IGNORED, match_anchors


def brute_force(anchors, boxes, fg=0.5, bg=0.4):
    """The rule of the paper and of torchvision, an anchor at a time."""
    iou = np.asarray(box_ops.iou(jnp.array(anchors), jnp.array(boxes)))
    result = []
    for row in iou:
        best = row.max(initial=0)
        tie = any(row[g] == iou[:, g].max() > 0 for g in range(len(boxes)))
        if tie or best >= fg:
            result.append(int(row.argmax()))
        else:
            result.append(BACKGROUND if best < bg else IGNORED)
    return result


def random_boxes(rng, n):
    corner = rng.integers(0, 20, (n, 2))
    return np.concatenate([corner, corner + rng.integers(1, 12, (n, 2))], 1).astype("f")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(0, 3))
def test_equals_brute_force_and_ignores_padding(seed, real, padding):
    rng = np.random.default_rng(seed)
    anchors, boxes = random_boxes(rng, 40), random_boxes(rng, real + padding)
    mask = np.arange(real + padding) < real
    if real + padding == 0:
        boxes, mask = np.zeros((1, 4), "f"), np.zeros(1, bool)
    got = match_anchors(jnp.array(anchors), jnp.array(boxes), jnp.array(mask))
    assert got.tolist() == brute_force(anchors, boxes[:real])


def test_a_box_that_no_anchor_reaches_gets_its_best_ones():
    anchors = jnp.array([[0.0, 0, 10, 10], [0, 0, 20, 20], [50, 50, 60, 60]])
    boxes = jnp.array([[0.0, 0, 4, 4]])
    assert match_anchors(anchors, boxes, jnp.array([True])).tolist() == [0, BACKGROUND, BACKGROUND]


def test_a_box_beyond_all_anchors_claims_none():
    anchors = jnp.array([[0.0, 0, 10, 10], [0, 0, 20, 20]])
    boxes = jnp.array([[90.0, 90, 99, 99]])
    assert match_anchors(anchors, boxes, jnp.array([True])).tolist() == [BACKGROUND, BACKGROUND]


def test_between_the_thresholds_is_ignored():
    anchors = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 22]])
    boxes = jnp.array([[0.0, 0, 10, 10]])
    assert match_anchors(anchors, boxes, jnp.array([True])).tolist() == [0, IGNORED]
