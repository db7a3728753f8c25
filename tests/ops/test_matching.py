import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.kernels.compilation import jit
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.anchors import grid_sizes, pyramid_anchors
from jaxdet.ops.matching import (
    BACKGROUND,
    IGNORED,
    Priors,
    count_unmatched,
    match_anchors,
    match_anchors_atss,
    nearest_locations,
)

MOST = 6  # boxes of one shape, so that each rule is compiled once
match = jit(match_anchors)


def padded(rng, boxes):
    """Up to `MOST` boxes, with what may be anything between them, and the mask."""
    rows = np.sort(rng.permutation(MOST)[: len(boxes)])
    result = rng.uniform(0, 30, (MOST, 4)).astype("f")
    result[:, 2:] += result[:, :2]
    result[rows] = boxes
    return result, np.isin(np.arange(MOST), rows), rows


def in_padded(matches, rows):
    """Matches of the boxes as those of their rows."""
    return [m if m < 0 else rows[m] for m in matches]


def brute_force(anchors, boxes, fg=0.5, bg=0.4):
    """The rule of the paper and of torchvision, an anchor at a time."""
    iou = box_ops.iou(anchors[:, None], boxes)
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
@given(st.integers(0, 10**6), st.integers(0, MOST))
def test_equals_brute_force_and_ignores_padding(seed, real):
    rng = np.random.default_rng(seed)
    anchors, boxes = random_boxes(rng, 40), random_boxes(rng, real)
    with_padding, mask, rows = padded(rng, boxes)
    got = match(anchors, with_padding, mask)
    assert got.tolist() == in_padded(brute_force(anchors, boxes), rows)


def test_a_box_that_no_anchor_reaches_gets_its_best_ones():
    anchors = jnp.array([[0.0, 0, 10, 10], [0, 0, 20, 20], [50, 50, 60, 60]])
    boxes = jnp.array([[0.0, 0, 4, 4]])
    assert match(anchors, boxes, jnp.array([True])).tolist() == [0, BACKGROUND, BACKGROUND]


def test_boxes_that_no_anchor_answers_for_are_counted():
    matches = jnp.array([BACKGROUND, 2, IGNORED, 2, 0])
    assert count_unmatched(matches, jnp.array([True, True, True, False])) == 1
    assert count_unmatched(jnp.array([BACKGROUND, IGNORED]), jnp.array([True, True, False])) == 2


def test_a_box_beyond_all_anchors_claims_none():
    anchors = jnp.array([[0.0, 0, 10, 10], [0, 0, 20, 20]])
    boxes = jnp.array([[90.0, 90, 99, 99]])
    assert match(anchors, boxes, jnp.array([True])).tolist() == [BACKGROUND, BACKGROUND]


def test_between_the_thresholds_is_ignored():
    anchors = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 22]])
    boxes = jnp.array([[0.0, 0, 10, 10]])
    assert match(anchors, boxes, jnp.array([True])).tolist() == [0, IGNORED]


GRIDS = [(8, 8, 9), (1, 12, 9), (5, 2, 9), (2, 2, 9), (7, 9, 4), (6, 6, 1)]
nearest = {
    grid: jit(lambda x, r=grid[0], c=grid[1], n=grid[2]: nearest_locations(x, r, c, 8, n))
    for grid in GRIDS  # rows, columns, count
}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(GRIDS))
def test_the_nearest_locations_are_those_of_all(seed, grid):
    """Points at multiples of half a stride, in the grid and beyond: many are equally near."""
    rows, columns, count = grid
    stride, rng = 8, np.random.default_rng(seed)
    points = (rng.integers(-4, 2 * max(rows, columns) + 4, (5, 2)) * stride / 2).astype("f")
    got = nearest[grid](points)
    y, x = np.divmod(np.arange(rows * columns), columns)
    for point, mine in zip(points, np.asarray(got), strict=True):
        squared = (x * stride - point[0]) ** 2 + (y * stride - point[1]) ** 2
        assert mine.tolist() == np.argsort(squared, kind="stable")[:count].tolist()


SIZE, LEVELS = (60, 44), (3, 4, 5)
PYRAMID = pyramid_anchors(SIZE, LEVELS, (1.5, 2.5), (0.6, 1.7))
PRIORS = Priors(PYRAMID, LEVELS, SIZE)
match_atss = {
    k: jit(lambda boxes, mask, k=k: match_anchors_atss(PRIORS, boxes, mask, k)) for k in (1, 4, 9)
}


def brute_force_atss(boxes, k):
    """The paper's algorithm 1, a box at a time, over all anchors."""
    anchors = np.concatenate(PYRAMID)
    best_iou, result = np.zeros(len(anchors)), np.full(len(anchors), BACKGROUND)
    for g, box in enumerate(boxes):
        iou = box_ops.iou(anchors, box[None])
        centre, start, candidates = (box[:2] + box[2:]) / 2, 0, []
        for level, (rows, columns) in zip(LEVELS, grid_sizes(SIZE, LEVELS), strict=True):
            y, x = np.divmod(np.arange(rows * columns), columns)
            squared = (x * 2**level - centre[0]) ** 2 + (y * 2**level - centre[1]) ** 2
            for location in np.argsort(squared, kind="stable")[:k]:
                candidates += range(start + 4 * location, start + 4 * location + 4)
            start += 4 * rows * columns
        threshold = iou[candidates].mean() + iou[candidates].std(ddof=1)
        for a in candidates:
            x, y = (anchors[a, :2] + anchors[a, 2:]) / 2
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            if iou[a] >= threshold and inside and iou[a] > best_iou[a]:
                best_iou[a], result[a] = iou[a], g
    return result


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, MOST), st.sampled_from([1, 4, 9]), st.booleans())
def test_atss_equals_brute_force_and_ignores_padding(seed, real, k, on_grid):
    """Boxes anywhere; and such that many locations are equally near, and boxes overlap alike."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-4, 50, (real, 2))
    extent = rng.uniform(2, 40, (real, 2))
    if on_grid:
        corner, extent = np.rint(corner / 4) * 4, np.rint(extent / 8 + 0.5) * 8
    boxes = np.concatenate([corner, corner + extent], 1).astype("f")
    with_padding, mask, rows = padded(rng, boxes)
    got = match_atss[k](with_padding, mask)
    assert got.tolist() == in_padded(brute_force_atss(boxes, k), rows)


def test_atss_gives_an_anchor_of_two_equal_boxes_to_the_first():
    boxes = jnp.array([[0.0, 0, 0, 0], [10, 10, 30, 26], [10, 10, 30, 26]])
    got = jit(lambda *x: match_anchors_atss(PRIORS, *x))(boxes, jnp.ones(3, bool))
    assert set(got.tolist()) == {BACKGROUND, 1}
