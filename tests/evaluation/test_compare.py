import numpy as np
import pytest

from jaxdet.evaluation import compare, scores
from jaxdet.ops import metrics
from jaxdet.ops.boxes import BoxTable
from tests.ops.test_metrics import random_tables, table

NAMES = ("a", "b", "c")


def case(seed=1):
    found, truth = random_tables(seed, jitter=12)
    ids = [f"image{i}" for i in range(20)]
    return scores.Case(ids, NAMES, table(truth), "raw", table(found))


def test_a_run_against_itself_differs_in_nothing():
    mine = case()
    result = compare.compare(mine, mine.detections, "itself", bootstrap_samples=50)
    assert result["images"] == [] and result["name"] == "itself"
    for name, value in result["difference"].items():
        if name not in ("AP", "wAFROC", "AUC"):
            assert value == 0 and result["95% interval"][name] == [0, 0]
    assert result["difference"]["wAFROC"] is None  # there is no normal image
    assert result["difference"]["AP"] == {"a": 0, "b": 0, "c": 0, "No finding": None}
    assert result["95% interval"]["AP"]["a"] == [0, 0]
    assert result["95% interval"]["AP"]["No finding"] is None


def test_differences_are_those_of_the_two_scores_and_turn_with_them():
    mine = case()
    rng = np.random.default_rng(0)
    fewer = BoxTable(*(column[rng.random(len(column)) > 0] for column in mine.detections))
    fewer = fewer._replace(scores=rng.permutation(fewer.scores))
    there = compare.compare(mine, fewer, "x", bootstrap_samples=200)
    back = compare.compare(
        mine._replace(detections=fewer), mine.detections, "y", bootstrap_samples=200
    )
    one, two = mine.summarize(), mine._replace(detections=fewer).summarize()
    for name in ("mAP@0.4", "mAP3@0.4", "mAP@0.5", "mAP@0.75"):
        assert there["difference"][name] == pytest.approx(one[name] - two[name])
        assert there["scores"][name] == pytest.approx(two[name])
        low, high = there["95% interval"][name]
        assert low < there["difference"][name] < high
        assert back["95% interval"][name] == pytest.approx([-high, -low])
    for name in NAMES:
        assert there["difference"]["AP"][name] == pytest.approx(one["AP"][name] - two["AP"][name])
    assert "mAP@0.4" in compare.format_table(there)


def test_intervals_are_paired():
    """Half of the images are easy and half impossible, for both runs, but one has a weak box less.
    Unpaired, the interval of each is wide; the difference is sure."""
    box = [0, 0, 10, 10]
    truth = table([(i, 0, *box, 1) for i in range(100)])
    found = [(i, 0, *box, 0.9) for i in range(0, 100, 2)]
    better = found + [(i, 0, *box, 0.5) for i in range(1, 20, 2)]
    mine = scores.Case([str(i) for i in range(100)], ("a",), truth, "raw", table(better))
    result = compare.compare(mine, table(found), "x", bootstrap_samples=300)
    low, high = result["95% interval"]["mAP@0.4"]
    assert 0 < low < 0.1 < high and result["difference"]["mAP@0.4"] == pytest.approx(0.1)
    low_alone, high_alone = mine.summarize(bootstrap_samples=300)["95% interval"]["mAP@0.4"]
    assert high - low < (high_alone - low_alone) * 0.75
    # The images that differ are those, by the precision of 1 that each has here.
    assert {row["image_id"] for row in result["images"]} == {str(i) for i in range(1, 20, 2)}
    assert all(row["difference"] == 1 for row in result["images"])


def test_credit_by_hand():
    """Class 0: hit, false alarm, hit. The precisions, made monotone, are 1, 2/3, 2/3."""
    truth = table([(0, 0, 0, 0, 10, 10, 1), (1, 0, 0, 0, 10, 10, 1), (2, 3, 0, 0, 1, 1, 1)])
    found = table(
        [(0, 0, 0, 0, 10, 10, 0.9), (2, 0, 0, 0, 10, 10, 0.8), (1, 0, 0, 0, 10, 10, 0.7),
         (1, 1, 0, 0, 10, 10, 0.6), (2, 3, 0, 0, 1, 1, 0.99)]
    )  # fmt: skip
    mine = scores.Case(list("xyz"), NAMES, truth, "raw", found)
    np.testing.assert_allclose(compare.credit(mine, found), [1, 2 / 3, -2 / 3])
    # Summed over the hits it is the average precision.
    ap = metrics.average_precision(found, truth, [0.4], 3)[0, 0]
    assert ap == pytest.approx((1 + 2 / 3) / 2)


def test_scale_of_the_scores_is_of_no_concern():
    mine = case()
    other = mine.detections._replace(scores=mine.detections.scores / 7)
    assert compare.compare(mine, other, "x", bootstrap_samples=10)["images"] == []


def test_the_most_different_images_are_listed_first():
    mine = case()
    other = BoxTable(*(column[::2] for column in mine.detections))
    listed = compare.compare(mine, other, "x", bootstrap_samples=0, num_listed=5)
    sizes = [abs(row["difference"]) for row in listed["images"]]
    assert len(sizes) == 5 and sizes == sorted(sizes, reverse=True)
    assert listed["95% interval"]["mAP@0.4"] is None
