import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.kernels.compilation import jit
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.nms import nms_mask

THRESHOLDS = (0.0, 0.3, 0.5, 0.9)
nms = {t: jit(lambda boxes, labels, t=t: nms_mask(boxes, labels, t)) for t in THRESHOLDS}


def greedy(boxes, labels, threshold):
    iou = box_ops.iou(boxes[:, None], boxes)
    kept = []
    for i in range(len(boxes)):
        if not any(labels[j] == labels[i] and iou[j, i] > threshold for j in kept):
            kept.append(i)
    return kept


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(THRESHOLDS), st.integers(1, 3))
def test_equals_greedy(seed, threshold, num_classes):
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 30, (32, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 15, (32, 2))], 1).astype("f")
    labels = rng.integers(0, num_classes, 32)
    got = nms[threshold](boxes, labels)
    assert np.flatnonzero(got).tolist() == greedy(boxes, labels, threshold)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_chain_settles(monkeypatch, on_cpu):
    """Each box suppresses only the next: every second one stays."""
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu" if on_cpu else "gpu")
    x = np.arange(32) * 4.0
    boxes = np.stack([x, 0 * x, x + 10, 0 * x + 10], axis=1).astype("f")
    keep = jit(lambda *args: nms_mask(*args, 0.3))(boxes, np.zeros(32, int))
    assert keep.tolist() == [i % 2 == 0 for i in range(32)]
