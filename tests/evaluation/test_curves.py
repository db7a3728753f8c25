import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.evaluation import curves
from jaxdet.ops import metrics
from jaxdet.ops.boxes import BoxTable
from tests.ops.test_metrics import random_tables, rows, table


def case():
    found, truth = random_tables(3, jitter=12)
    found, truth = table(found), table(truth)
    is_true, _ = metrics.true_positives(found, truth, 0.4)
    return found, truth, is_true


def test_the_area_below_the_precision_recall_curve_is_the_average_precision():
    found, truth, is_true = case()
    for label, expected in enumerate(metrics.average_precision(found, truth, [0.4], 3)[0]):
        mine, count = found.labels == label, np.sum(truth.labels == label)
        recall, precision = curves.precision_recall(found.scores[mine], is_true[mine], count)
        assert np.diff(recall, prepend=0) @ precision == pytest.approx(expected)
        assert (np.diff(precision) <= 0).all() and recall[-1] <= 1
        worth = curves.precision_at(found, is_true)
        assert worth[mine & is_true].sum() / count == pytest.approx(expected)


def test_precision_at_a_detection_that_is_false():
    """Hit, miss, hit, miss: 1, 2/3, 2/3, 1/2; and of another class, alone: 0."""
    found = table([(0, 0, 0, 0, 1, 1, s) for s in (0.9, 0.8, 0.7, 0.6)] + [(0, 1, 0, 0, 1, 1, 0.5)])
    got = curves.precision_at(found, np.array([True, False, True, False, False]))
    np.testing.assert_allclose(got, [1, 2 / 3, 2 / 3, 1 / 2, 0])


def test_froc_passes_through_the_points_of_the_metric():
    found, truth, is_true = case()
    rates = (0.0, 1 / 8, 1.0, 4.0)
    each, _ = metrics.froc(found, truth, 20, 0.4, 3, rates)
    for label in range(3):
        mine = found.labels == label
        curve = curves.froc(found.scores[mine], is_true[mine], np.sum(truth.labels == label), 20)
        for rate, expected in zip(rates, each[label], strict=True):
            assert curve.recall[curve.false_positives <= rate].max() == expected


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30))
def test_roc_area_is_the_chance_of_the_right_order(pairs):
    scores = np.array([s for s, _ in pairs], float)
    positive = np.array([p for _, p in pairs], bool)
    high, low = scores[positive, None], scores[None, ~positive]
    got = curves.roc(scores, positive)
    if not high.size or not low.size:
        assert got is None
    else:
        assert got.area == pytest.approx(((high > low) + (high == low) / 2).mean())
        assert got.false_positive_rate[-1] == got.true_positive_rate[-1] == 1


def test_any_finding_by_no_finding_or_by_the_best_box():
    found = table([(0, 0, 0, 0, 9, 9, 0.3), (0, 1, 0, 0, 9, 9, 0.6), (1, 2, 0, 0, 1, 1, 0.9)])
    truth = table([(0, 0, 0, 0, 9, 9, 1), (1, 2, 0, 0, 1, 1, 1)])
    scores, abnormal = curves.any_finding(found, truth, 3, 2)
    np.testing.assert_allclose(scores, [0.6, 0.1, 0])
    assert abnormal.tolist() == [True, False, False]
    # Said twice, the higher one counts, in whichever order.
    twice = table([(0, 2, 0, 0, 1, 1, 0.8), (0, 2, 0, 0, 1, 1, 0.2), (0, 0, 0, 0, 9, 9, 0.9)])
    for found in (twice, BoxTable(*(column[::-1] for column in twice))):
        np.testing.assert_allclose(curves.any_finding(found, truth, 1, 2)[0], [0.2])


def test_calibration_by_hand():
    scores = np.array([0.05, 0.15, 0.95, 1.0])
    got = curves.calibration(scores, np.array([False, True, True, False]), 10)
    assert got.count.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    np.testing.assert_allclose(got.score[[0, 1, 9]], [0.05, 0.15, 0.975])
    np.testing.assert_allclose(got.precision[[0, 1, 9]], [0, 1, 0.5])
    assert np.isnan(got.precision[2:9]).all()
    assert got.error == pytest.approx((0.05 + 0.85 + 2 * 0.475) / 4)


@pytest.mark.parametrize("hits,count", [(0, 1), (3, 10), (50, 50)])
def test_calibration_interval_is_where_the_score_test_holds(hits, count):
    """Wilson's ends are the shares p from which the one found is 1.96 deviations away."""
    is_true = np.arange(count) < hits
    got = curves.calibration(np.full(count, 0.3), is_true, 10).interval[:, 3]
    for p in got:
        distance = (hits / count - p) ** 2
        assert distance == pytest.approx(1.96**2 * p * (1 - p) / count, abs=1e-12)
    assert got[0] <= hits / count <= got[1]


@settings(max_examples=50, deadline=None)
@given(rows, rows)
def test_no_score_has_a_better_f1_than_the_best(detections, truth):
    found, boxes = table(detections), table(truth)
    is_true, _ = metrics.true_positives(found, boxes, 0.4)

    def f1(score):
        shown = found.scores >= score
        return 2 * is_true[shown].sum() / max(shown.sum() + len(boxes.image), 1)

    best = curves.best_f1_score(found, boxes, 0.4, 3)
    if is_true.any():
        assert best in found.scores
        assert f1(best) == pytest.approx(max(map(f1, found.scores)))
    else:
        assert best == 1
