import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.evaluation import tide
from jaxdet.evaluation.tide import BACKGROUND, BOTH, DUPLICATE, POOR_BOX, WRONG_CLASS
from jaxdet.ops.boxes import BoxTable
from tests.ops.test_metrics import overlap, rows, table


def test_each_kind_by_hand():
    """Truths of two classes, 100 pixels wide; IoU of boxes one above the other is the width's."""
    truth = table(
        [
            (0, 0, 0, 0, 100, 100, 1),  # found, and once more
            (0, 1, 0, 200, 100, 300, 1),  # its detection is too narrow
            (1, 0, 0, 0, 100, 100, 1),  # taken for class 1
            (1, 1, 0, 200, 100, 300, 1),  # only "both" is near
            (2, 0, 0, 0, 100, 100, 1),  # nothing is near
        ]
    )
    detections = table(
        [
            (0, 0, 0, 0, 90, 100, 0.9),
            (0, 0, 0, 0, 100, 100, 0.8),
            (0, 1, 0, 200, 30, 300, 0.7),
            (1, 1, 0, 0, 100, 100, 0.6),
            (1, 0, 0, 200, 30, 300, 0.5),
            (2, 1, 0, 0, 5, 100, 0.4),
            (3, 1, 0, 0, 100, 100, 0.3),
        ]
    )
    got = tide.classify(detections, truth, 0.4)
    assert got.kind.tolist() == [
        0, DUPLICATE, POOR_BOX, WRONG_CLASS, BOTH, BACKGROUND, BACKGROUND
    ]  # fmt: skip
    assert got.target.tolist() == [-1, -1, 1, 2, -1, -1, -1]
    assert got.missed.tolist() == [False, False, False, True, True]

    now, costs = tide.costs(detections, truth, 0.4, 2)
    mended = {cost.name: (cost.count, cost.mean_average_precision) for cost in costs}
    # Class 0: hit, duplicate, both, of three. Class 1: poor, wrong, background, background, of two.
    assert now == pytest.approx((1 / 3 + 0) / 2)
    assert mended == {
        "poor box": (1, pytest.approx((1 / 3 + 1 / 2) / 2)),
        # Now a hit of class 0: the third of it, after the duplicate.
        "wrong class": (1, pytest.approx((1 / 3 * (1 + 2 / 3) + 0) / 2)),
        "both": (1, pytest.approx(now)),
        "duplicate": (1, pytest.approx(now)),
        "background": (2, pytest.approx(now)),
        "missed": (2, pytest.approx((1 / 2 + 0) / 2)),
    }
    for cost in costs:
        assert cost.gain == pytest.approx(cost.mean_average_precision - now)


def test_of_several_that_would_reach_a_truth_the_best_does():
    truth = table([(0, 0, 0, 0, 100, 100, 1)])
    detections = table(
        [(0, 0, 0, 0, 30, 100, 0.5), (0, 1, 0, 0, 100, 100, 0.9), (0, 0, 0, 0, 35, 100, 0.6)]
    )
    got = tide.classify(detections, truth, 0.4)
    assert got.kind.tolist() == [POOR_BOX, WRONG_CLASS, POOR_BOX]
    assert got.target.tolist() == [-1, 0, -1] and not got.missed.any()


def test_no_finding_and_classes_without_truth_are_left_out():
    truth = table([(0, 0, 0, 0, 10, 10, 1), (1, 2, 0, 0, 1, 1, 1)])
    detections = table(
        [(0, 0, 0, 0, 10, 10, 0.5), (0, 1, 40, 0, 50, 9, 0.9), (1, 2, 0, 0, 1, 1, 0.1)]
    )
    now, costs = tide.costs(detections, truth, 0.4, 2)
    assert now == 1.0
    assert {cost.name: cost.count for cost in costs if cost.count} == {"background": 1}


def test_nothing_at_all():
    nothing = table([])
    assert np.isnan(tide.costs(nothing, nothing, 0.4, 2)[0])
    some = table([(0, 0, 0, 0, 10, 10, 1)])
    now, costs = tide.costs(nothing, some, 0.4, 2)
    assert now == 0 and (costs[-1].name, costs[-1].count, costs[-1].gain) == ("missed", 1, 1)
    assert {c.name for c in tide.costs(some, nothing, 0.4, 2)[1] if c.count} == {"background"}


@settings(max_examples=100, deadline=None)
@given(rows, rows, st.sampled_from([0.4, 0.5]))
def test_kinds_equal_the_definition(detections, truth, threshold):
    got = tide.classify(table(detections), table(truth), threshold)
    is_true, used = {}, set()
    for i in sorted(range(len(detections)), key=lambda i: -detections[i][6]):
        row = detections[i]
        same = [(overlap(row[2:6], t[2:6]), -k) for k, t in enumerate(truth) if t[:2] == row[:2]]
        iou, k = max(same, default=(0, 0))
        is_true[i] = iou > threshold and -k not in used
        if is_true[i]:
            used.add(-k)
    reachable = set()
    for i, row in enumerate(detections):
        near = [(overlap(row[2:6], t[2:6]), t[1] == row[1], k) for k, t in enumerate(truth)
                if t[0] == row[0]]  # fmt: skip
        own = max([iou for iou, same, _ in near if same], default=0)
        other = max([iou for iou, same, _ in near if not same], default=0)
        if is_true[i]:
            expected = 0
        elif 0.1 <= own <= threshold:
            expected = POOR_BOX
            reachable |= {k for iou, same, k in near if same and iou == own} - used
        elif other > threshold:
            expected = WRONG_CLASS
            reachable |= {k for iou, same, k in near if not same and iou == other} - used
        elif own > threshold:
            expected = DUPLICATE
        else:
            expected = BACKGROUND if max(own, other) <= 0.1 else BOTH
        assert got.kind[i] == expected
    missed = set(np.flatnonzero(got.missed))
    assert missed >= set(range(len(truth))) - used - reachable and not missed & used
    targets = got.target[got.target >= 0]
    assert len(set(targets)) == len(targets) and not set(targets) & (used | missed)


# (kind: count, gain in mAP) at IoU 0.5 by tidecv 1.0.1 on `as_tidecv` of each seed. It takes
# precision at 101 recalls, so that the gains are equal to half a hundredth alone.
TIDECV = {
    0: {"wrong class": (6, 3.59), "poor box": (58, 26.78), "both": (24, 1.56),
        "duplicate": (9, 0.26), "background": (40, 3.75), "missed": (25, 5.40)},
    3: {"wrong class": (6, 1.73), "poor box": (42, 22.99), "both": (14, 1.93),
        "duplicate": (14, 0.73), "background": (39, 3.49), "missed": (24, 9.75)},
}  # fmt: skip


def as_tidecv(seed: int) -> tuple[BoxTable, BoxTable]:
    """Forty images of at most one truth a class, where its matching is that of VOC."""
    rng = np.random.default_rng(seed)
    truth, detections = [], []
    for image in range(40):
        for label in range(3):
            if rng.random() < 0.7:
                x, y = rng.uniform(0, 60, 2)
                w, h = rng.uniform(15, 30, 2)
                truth.append((image, label, x, y, x + w, y + h, 1))
                for _ in range(rng.integers(0, 4)):
                    spread = rng.choice([2, 6, 14])
                    shift = rng.normal(0, spread, 4)
                    said = label if rng.random() < 0.7 else rng.integers(3)
                    box = np.array([x, y, x + w, y + h]) + shift
                    if box[2] > box[0] and box[3] > box[1]:
                        detections.append((image, said, *box, rng.random()))
        for _ in range(rng.integers(0, 3)):
            x, y = rng.uniform(0, 80, 2)
            label, score = rng.integers(3), rng.random() * 0.8
            detections.append((image, label, x, y, x + 20, y + 20, score))
    return table(detections), table(truth)


@pytest.mark.parametrize("seed", TIDECV)
def test_kinds_and_costs_equal_those_of_tidecv(seed):
    _, costs = tide.costs(*as_tidecv(seed), 0.5, 3)
    assert {cost.name: cost.count for cost in costs} == {
        name: count for name, (count, _) in TIDECV[seed].items()
    }
    for cost in costs:
        assert 100 * cost.gain == pytest.approx(TIDECV[seed][cost.name][1], abs=0.5)
