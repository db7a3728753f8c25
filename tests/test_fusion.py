import numpy as np
import pytest
from ensemble_boxes import weighted_boxes_fusion
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet import InputError
from jaxdet.fusion import fuse, parse


def run(method, rows):
    """Fuse rows of (image, class, reader, x1, y1, x2, y2)."""
    a = np.array(rows, float).reshape(-1, 7)
    image, classes, readers = a[:, :3].astype(int).T
    return fuse(method, image, classes, readers, a[:, 3:])


def by_ensemble_boxes(rows, iou_threshold):
    """One image: a list a reader in order of appearance, every score 1; in units of 1/128,
    as a power of two changes no IoU by rounding."""
    lists = {}
    for _, label, reader, *box in rows:
        lists.setdefault(reader, []).append((np.array(box) / 128, 1.0, label))
    while len(lists) < 3:
        lists[f"nobody {len(lists)}"] = []
    boxes, scores, labels = (
        [[row[i] for row in rows] for rows in lists.values()] for i in range(3)
    )
    boxes, scores, labels = weighted_boxes_fusion(boxes, scores, labels, iou_thr=iou_threshold)
    return sorted(zip(labels, scores, (boxes * 128).tolist(), strict=True))


row = st.tuples(
    st.integers(0, 1), st.integers(1, 3), st.integers(0, 30), st.integers(0, 30),
    st.integers(3, 40), st.integers(3, 40),
).map(lambda r: (0, r[0], r[1], r[2], r[3], r[2] + r[4], r[3] + r[5]))  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(row, max_size=15), st.sampled_from([0.11, 0.41, 0.56]))
def test_wbf_equals_ensemble_boxes(rows, iou_threshold):
    fused = run(f"wbf@{iou_threshold}", rows)
    got = sorted(zip(fused.classes, fused.scores, fused.boxes.tolist(), strict=True))
    expected = by_ensemble_boxes(rows, iou_threshold) if rows else []
    assert len(got) == len(expected)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine[0] == theirs[0]
        np.testing.assert_allclose(mine[1], theirs[1], atol=1e-5)
        np.testing.assert_allclose(mine[2], theirs[2], atol=1e-3)


@settings(max_examples=100, deadline=None)
@given(st.lists(row, max_size=10), st.lists(row, max_size=10), st.sampled_from(["wbf", "nms"]))
def test_images_do_not_touch(one, two, method):
    """Fused together or alone, shuffled into each other or not."""
    second = [(1, *r[1:]) for r in two]
    mixed = [r for pair in zip(one, second, strict=False) for r in pair]
    mixed += one[len(second) :] + second[len(one) :]
    together = run(f"{method}@0.4", mixed)
    for i, rows in enumerate((one, two)):
        alone = run(f"{method}@0.4", rows)
        np.testing.assert_allclose(together.boxes[together.image == i], alone.boxes)
        np.testing.assert_array_equal(together.classes[together.image == i], alone.classes)


def test_three_readers_agree():
    rows = [(0, 3, r, 10 + r, 10, 50 + r, 30) for r in range(3)]
    fused = run("wbf@0.4", rows)
    np.testing.assert_allclose(fused.boxes, [[11, 10, 51, 30]])
    assert fused.scores.tolist() == [1.0]


def test_one_reader_alone():
    fused = run("wbf@0.4", [(0, 8, 2, 10, 10, 20, 20)])
    np.testing.assert_allclose(fused.boxes, [[10, 10, 20, 20]])
    np.testing.assert_allclose(fused.scores, [1 / 3])


def test_three_readers_saw_nothing():
    for method in ("none", "nms@0.4", "wbf@0.4"):
        fused = run(method, [])
        assert fused.boxes.shape == (0, 4) and not len(fused.image)


def test_classes_stay_apart():
    rows = [(0, 3, 0, 10, 10, 50, 30), (0, 4, 1, 10, 10, 50, 30)]
    assert run("wbf@0.4", rows).classes.tolist() == [3, 4]


def test_none_keeps_every_box():
    rows = [(0, 3, r, 10, 10, 50, 30) for r in range(3)]
    np.testing.assert_allclose(run("none", rows).boxes, [[10, 10, 50, 30]] * 3)


def test_nms_keeps_the_last_readers_box():
    rows = [(0, 3, 0, 0, 0, 10, 10), (0, 3, 1, 0, 0, 10, 9), (0, 3, 2, 50, 50, 60, 60)]
    kept = run("nms@0.4", rows)
    assert sorted(kept.boxes.tolist()) == [[0, 0, 10, 9], [50, 50, 60, 60]]


@pytest.mark.parametrize("method", ["wbf", "wbf@x", "wbf@1", "nms@-1", "soft@0.4", ""])
def test_an_unknown_method_is_named(method):
    with pytest.raises(InputError, match=f"fusion '{method}'"):
        parse(method)
