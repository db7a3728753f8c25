"""benchmarks/limits.py and zero_shot.py: what they measure, on cases that can be told by hand."""

import numpy as np
import pytest

from benchmarks import limits, zero_shot
from jaxdet.evaluation.scores import Case
from jaxdet.ops.boxes import BoxTable


def table(*rows):
    """Of rows (image, label, x_min, y_min, x_max, y_max, score)."""
    rows = np.array(rows, float).reshape(-1, 7)
    return BoxTable(rows[:, 0].astype(int), rows[:, 1].astype(int), rows[:, 2:6], rows[:, 6])


# Film 0 has a box of class 0, film 1 one of class 1; film 2 is normal (label 2).
TRUTH = table((0, 0, 0, 0, 4, 4, 1), (1, 1, 0, 0, 4, 4, 1), (2, 2, 0, 0, 1, 1, 1))
# In film 0 the wrong name is surer than the right one; in film 1 the box is too small by half.
FOUND = table(
    (0, 0, 0, 0, 4, 4, 0.5),
    (0, 1, 0, 0, 4, 4, 0.9),
    (1, 1, 0, 0, 4, 2, 0.8),
    (2, 0, 0, 0, 4, 4, 0.7),
)


def case_of(exhaustive=None, found=FOUND):
    return Case(["a", "b", "c"], ("A", "B"), TRUTH, "raw", found, exhaustive=exhaustive)


def test_mean_ap_is_that_of_the_evaluation():
    for exhaustive in (None, np.array([[True, False], [True, True], [False, True]])):
        case = case_of(exhaustive)
        scores = case.summarize()
        assert limits.mean_ap(case.matched()) == scores["mAP2@0.4"]
    assert limits.mean_ap(case_of().matched(), 0.4) == (1 / 2 + 1 / 2) / 2
    assert limits.mean_ap(case_of().matched(), 0.5) == (1 / 2 + 0) / 2  # an IoU is above, not at


def test_as_one_class_a_place_with_two_names_is_one_detection():
    one = limits.as_one_class(case_of())
    assert one.detections.scores.tolist() == [0.9, 0.8, 0.7] and one.class_names == ("a finding",)
    assert limits.mean_ap(one.matched()) == 1
    # A film where not all is known of every class may have more than is boxed.
    partly = limits.as_one_class(case_of(np.array([[True, False], [True, True], [False, True]])))
    assert partly.exhaustive.tolist() == [[False], [True], [False]]


def test_a_class_is_described_by_its_surest_detections():
    sizes = np.full((3, 2), 8.0)
    truth, found = (zero_shot.alone(x, [0], sizes) for x in (TRUTH, FOUND))
    case = Case(["a", "b", "c"], ("A",), truth, "raw", found)
    *aps, auc, pointing, own, size, reachable = zero_shot.describe(case)
    assert aps == pytest.approx([1 / 2] * 4)  # the surest is in film 2
    assert auc == 1 / 2  # above film 1, where there is none, and below film 2
    assert pointing == 1 and own == size == "0.50 x 0.50" and reachable == 1
    unknown = case._replace(exhaustive=np.array([[True], [True], [False]]))
    *aps, auc = zero_shot.describe(unknown)[:5]
    assert aps == [1] * 4 and auc == 1
