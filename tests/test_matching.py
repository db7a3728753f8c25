import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet import boxes as box_ops
from jaxdet.anchors import pyramid_anchors
from jaxdet.matching import BACKGROUND, IGNORED, match_anchors, match_anchors_atss


def brute_force(anchors, boxes, fg=0.5, bg=0.4):
    """The rule of the paper and of torchvision, an anchor at a time."""
    iou = np.asarray(box_ops.iou_matrix(jnp.array(anchors), jnp.array(boxes)))
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


def brute_force_atss(pyramid, boxes, per_location, k):
    """The paper's algorithm 1, a box at a time."""
    anchors = np.concatenate(pyramid)
    best_iou, result = np.zeros(len(anchors)), np.full(len(anchors), BACKGROUND)
    for g, box in enumerate(boxes):
        iou = np.asarray(box_ops.iou_matrix(jnp.array(box[None]), jnp.array(anchors)))[0]
        centre, start, candidates = (box[:2] + box[2:]) / 2, 0, []
        for level in pyramid:
            offset = (level[:, :2] + level[:, 2:]) / 2 - centre
            order = np.argsort((offset**2).sum(axis=1), kind="stable")
            candidates += (start + order[: k * per_location]).tolist()
            start += len(level)
        threshold = iou[candidates].mean() + iou[candidates].std(ddof=1)
        for a in candidates:
            x, y = (anchors[a, :2] + anchors[a, 2:]) / 2
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            if iou[a] >= threshold and inside and iou[a] > best_iou[a]:
                best_iou[a], result[a] = iou[a], g
    return result.tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(1, 3), st.sampled_from([1, 4, 9]))
def test_atss_equals_brute_force_and_ignores_padding(seed, real, padding, k):
    rng = np.random.default_rng(seed)
    pyramid = pyramid_anchors((64, 64), (3, 4, 5), (1.5, 2.5), (0.6, 1.7))
    # Corners on no grid: no two places are equally near.
    corner = rng.uniform(-4, 50, (real + padding, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 40, corner.shape)], 1).astype("f")
    mask = jnp.arange(real + padding) < real
    got = match_anchors_atss(pyramid, jnp.array(boxes), mask, 4, k)
    assert got.tolist() == brute_force_atss(pyramid, boxes[:real], 4, k)
