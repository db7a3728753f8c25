import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxdet.kernels.compilation import jit
from jaxdet.ops import boxes

# As many each time, so that each function is compiled once.
whole = arrays(np.int64, (6, 4), elements=st.integers(0, 12))
iou_matrix, giou = jit(boxes.iou_matrix), jit(boxes.giou)


def proper(corners):
    """Any four whole numbers as a box, perhaps of no area."""
    return np.concatenate(
        [
            np.minimum(corners[:, :2], corners[:, 2:]),
            np.maximum(corners[:, :2], corners[:, 2:]),
        ],
        axis=1,
    ).astype(np.float32)


def pixels(box):
    """The set of unit squares in a box with whole corners."""
    x1, y1, x2, y2 = box.astype(int)
    return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}


@settings(deadline=None)
@given(whole, whole)
def test_iou_counts_pixels(a, b):
    a, b = proper(a), proper(b)
    got = np.asarray(iou_matrix(a, b))
    for i, first in enumerate(map(pixels, a)):
        for j, second in enumerate(map(pixels, b)):
            union = len(first | second)
            assert np.isclose(got[i, j], len(first & second) / union if union else 0)


def test_clip():
    box = jnp.array([[-5.0, -5.0, 300.0, 300.0]])
    np.testing.assert_array_equal(boxes.clip(box, 100, 200), [[0, 0, 200, 100]])


@settings(deadline=None)
@given(whole, st.integers(0, 10**6))
def test_giou_counts_pixels(a, seed):
    a = proper(a)
    b = proper(np.random.default_rng(seed).integers(0, 12, a.shape))
    for got, one, two in zip(np.asarray(giou(a, b)), a, b, strict=True):
        first, second = pixels(one), pixels(two)
        union = len(first | second)
        hull = np.prod(np.maximum(one, two)[2:] - np.minimum(one, two)[:2])
        overlap = len(first & second) / union if union else 0
        assert np.isclose(got, overlap - (hull - union) / hull if hull else 0, atol=1e-5)
