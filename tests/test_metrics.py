import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.metrics import Boxes, average_precision


def table(rows):
    """Boxes from (image, class, x1, y1, x2, y2, score)."""
    a = np.array(rows, float).reshape(-1, 7)
    return Boxes(a[:, 0].astype(int), a[:, 1].astype(int), a[:, 2:6], a[:, 6])


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / (area(a) + area(b) - w * h)


def reference(detections, truth, threshold, label):
    """The devkit's rule, a detection at a time, and the area by its definition."""
    truth = [row for row in truth if row[1] == label]
    if not truth:
        return np.nan
    found = [row for row in detections if row[1] == label]
    found.sort(key=lambda row: -row[6])  # stable
    used, curve, hits = set(), [(0.0, 0.0)], 0
    for n, row in enumerate(found, start=1):
        best, best_overlap = None, 0.0
        for i, other in enumerate(truth):
            if other[0] == row[0] and overlap(row[2:6], other[2:6]) > best_overlap:
                best, best_overlap = i, overlap(row[2:6], other[2:6])
        if best_overlap > threshold and best not in used:
            used.add(best)
            hits += 1
        curve.append((hits / len(truth), hits / n))
    recalls = sorted({recall for recall, _ in curve})
    return sum(
        (b - a) * max(precision for recall, precision in curve if recall >= b)
        for a, b in itertools.pairwise(recalls)
    )


# Few places, sizes and scores: ties, duplicates and IoUs exactly at a threshold come by themselves.
rows = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 2),
        st.integers(0, 4),
        st.integers(0, 2),
        st.integers(0, 5),
        st.sampled_from([0, 1, 2, 4, 5]),
        st.sampled_from([0.1, 0.5, 0.5, 0.9]),
    ).map(lambda r: (r[0], r[1], r[2], r[3], r[2] + r[4], r[3] + r[5], r[6])),
    max_size=14,
)


@settings(max_examples=1500, deadline=None)
@given(rows, rows)
def test_equals_the_rule_in_loops(detections, truth):
    thresholds = (0.0, 0.4, 0.5, 0.75)
    got = average_precision(table(detections), table(truth), thresholds, 4)
    expected = [[reference(detections, truth, t, c) for c in range(4)] for t in thresholds]
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_by_hand():
    """Hit, false, hit of two: precision 1 to recall 1/2, then 2/3."""
    truth = table([(0, 0, 0, 0, 10, 10, 1), (1, 0, 0, 0, 10, 10, 1)])
    found = table([(0, 0, 0, 0, 10, 9, 0.9), (0, 0, 50, 50, 60, 60, 0.8), (1, 0, 0, 0, 9, 10, 0.7)])
    assert average_precision(found, truth, [0.4], 1)[0, 0] == pytest.approx(0.5 + 0.5 * 2 / 3)


@pytest.mark.parametrize("width,hit", [(4, 0.0), (4.001, 1.0)])
def test_an_iou_of_exactly_the_threshold_is_no_hit(width, hit):
    truth = table([(0, 0, 0, 0, 10, 10, 1)])
    found = table([(0, 0, 0, 0, width, 10, 0.9)])
    assert average_precision(found, truth, [0.4], 1)[0, 0] == hit


def test_no_second_choice():
    """The better overlap being taken, VOC counts a false positive where COCO takes the next."""
    truth = table([(0, 0, 0, 0, 10, 10, 1), (0, 0, 2, 0, 12, 10, 1)])
    found = table([(0, 0, 0, 0, 10, 10, 0.9), (0, 0, 0, 0, 10, 10, 0.8)])
    assert average_precision(found, truth, [0.4], 1)[0, 0] == pytest.approx(0.5)


def test_detections_on_normal_images_count_against():
    truth = table([(0, 0, 0, 0, 10, 10, 1)])
    found = table([(7, 0, 0, 0, 10, 10, 0.9), (0, 0, 0, 0, 10, 10, 0.8)])
    assert average_precision(found, truth, [0.4], 1)[0, 0] == pytest.approx(0.5)


def test_nothing_found_is_0_and_nothing_to_find_is_nan():
    truth = table([(0, 0, 0, 0, 10, 10, 1)])
    np.testing.assert_array_equal(average_precision(table([]), truth, [0.4], 2), [[0.0, np.nan]])
