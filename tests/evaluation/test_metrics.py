"""The table of metrics, and what an entry gets by being in it."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import retina
from jaxdet import ConfigError
from jaxdet.evaluation import compare, metrics, scores
from jaxdet.ops import metrics as ops
from jaxdet.report.evaluation import evaluation_page
from jaxdet.report.page import interval, number
from jaxdet.runs import config as configs
from tests.ops.test_metrics import (
    overlap,
    pycocotools_precision,
    random_tables,
    rows,
    table,
)
from tests.report.test_report import read

NAMES = ("a", "b", "c")
NORMAL = (0, 0, 1, 1)


def case(seed=1):
    """Twenty images with findings and five normal ones, two of them with false positives."""
    found, truth = random_tables(seed, jitter=12)
    found += [(20, 0, 5, 5, 50, 50, 0.31), (22, 1, 5, 5, 50, 50, 0.05)]
    found += [(i, 3, *NORMAL, (i * 7 % 25) / 25) for i in range(25)]
    truth += [(i, 3, *NORMAL, 1) for i in range(20, 25)]
    ids = [f"image{i}" for i in range(25)]
    return scores.Case(ids, NAMES, table(truth), "raw", table(found))


# COCO's mAP.


@pytest.mark.parametrize("limit", [2, 100])
def test_coco_equals_pycocotools_in_fine_steps(monkeypatch, limit):
    """Truth that overlaps, so that a second choice is taken; more detections than are counted;
    false positives on normal images; a class without ground truth. "No finding" is left out."""
    monkeypatch.setattr(metrics, "COCO_DETECTIONS", limit)
    found, truth = random_tables(3, jitter=3)
    truth += [(*row[:2], *(x + 6 for x in row[2:6]), 1) for row in truth[::2]]
    truth = [row for row in truth if row[1] != 2]
    found += [(i, i % 3, 5.0, 5.0, 50.0, 50.0, (i + 0.5) / 40) for i in range(20, 30)]
    steps = (np.arange(20_000) + 0.5) / 20_000
    thresholds = np.linspace(0.5, 0.95, 10)
    precision = pycocotools_precision(found, truth, 30, thresholds, steps, limit)
    expected = precision[precision > -1].mean()
    normal = [(i, 3, *NORMAL, 1) for i in range(20, 30)]
    matched = metrics.match(table(found + normal), table(truth + normal), 30, 3)
    got = metrics.score(matched)["mAP@0.5:0.95"]
    assert got[0] == pytest.approx(expected, abs=1e-4) and 0.1 < got[0] < 0.9


@settings(max_examples=80, deadline=None)
@given(rows, rows)
def test_coco_matches_as_the_rule_in_loops(found, truth):
    """Each detection takes the free truth that it overlaps most, the last of equals."""
    found.sort(key=lambda row: -row[6])
    thresholds = (0.5, 0.75, 1.0)
    expected = np.zeros((3, len(found)), bool)
    for t, threshold in enumerate(thresholds):
        taken = set()
        for i, row in enumerate(found):
            free = [
                (overlap(row[2:6], other[2:6]), k)
                for k, other in enumerate(truth)
                if other[:2] == row[:2] and k not in taken
            ]
            if free and max(free)[0] >= threshold:
                taken.add(max(free)[1])
                expected[t, i] = True
    np.testing.assert_array_equal(
        ops.coco_true_positives(table(found), table(truth), thresholds), expected
    )


def test_of_equal_ious_coco_takes_the_last():
    """The first detection takes the second truth, and the second one is left without."""
    truth = [(0, 0, 0, 0, 10, 10, 1), (0, 0, 2, 0, 12, 10, 1)]
    found = [(0, 0, 1, 0, 11, 10, 0.9), (0, 0, 2, 0, 12, 10, 0.8)]
    assert ops.coco_true_positives(table(found), table(truth), [0.75]).tolist() == [[True, False]]
    precision = pycocotools_precision(found, truth, 1, [0.75], np.array([0.25, 0.75]), 100)
    assert precision[0, :, 0] == pytest.approx([1, 0])


@given(rows, st.integers(1, 3))
def test_top_of_each_image(found, limit):
    found.sort(key=lambda row: -row[6])
    expected = [
        sum(other[:2] == row[:2] for other in found[:i]) < limit for i, row in enumerate(found)
    ]
    assert ops.top_of_each_image(table(found), limit).tolist() == expected


# Weighted AFROC, and the ROC of images.


def wafroc_by_thresholds(found, truth, num_images, num_classes):
    """The curve point by point, and the area by trapezoids; None without two kinds of image."""
    lesions = [row for row in truth if row[1] < num_classes]
    abnormal = {row[0] for row in lesions}
    num_normal = num_images - len(abnormal)
    if not abnormal or not num_normal:
        return None
    rated, marks = {}, []
    for row in sorted(found, key=lambda row: -row[6]):  # stable
        if row[1] >= num_classes:
            continue
        if row[0] not in abnormal:
            marks.append(row)
        near = [(overlap(row[2:6], x[2:6]), -k) for k, x in enumerate(lesions) if x[:2] == row[:2]]
        if near and max(near)[0] > 0.4:
            rated.setdefault(-max(near)[1], row[6])  # the best-scored
    points = [(0.0, 0.0)]
    for threshold in sorted({row[6] for row in found}, reverse=True):
        x = len({row[0] for row in marks if row[6] >= threshold}) / num_normal
        shares = []
        for image in abnormal:
            own = [k for k, row in enumerate(lesions) if row[0] == image]
            shares.append(sum(rated.get(k, -1) >= threshold for k in own) / len(own))
        points.append((x, sum(shares) / len(abnormal)))
    points.append((1.0, 1.0))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))


@settings(max_examples=80, deadline=None)
@given(rows, rows, st.integers(4, 6))
def test_weighted_afroc_equals_its_curve_by_trapezoids(found, truth, num_images):
    """With ties, lesions that are missed and images without a mark; class 2 is "No finding"."""
    expected = wafroc_by_thresholds(found, truth, num_images, 2)
    matched = metrics.match(table(found), table(truth), num_images, 2)
    (got,) = metrics.weighted_afroc(matched, np.ones((1, num_images), int))["wAFROC"]
    assert np.isnan(got) if expected is None else got == pytest.approx(expected)


def test_weighted_afroc_by_hand():
    """Lesions of an image share its weight; false positives of abnormal images do not count."""
    truth = [(0, 0, 0, 0, 10, 10, 1), (0, 0, 50, 50, 60, 60, 1), (1, 0, 0, 0, 10, 10, 1)]
    found = [(0, 0, 0, 0, 10, 10, 0.9), (1, 0, 0, 0, 10, 10, 0.3), (1, 0, 70, 70, 90, 90, 0.99)]
    found += [(2, 0, 0, 0, 10, 10, 0.5)]

    def area(rows):
        matched = metrics.match(table(rows), table(truth), 4, 1)
        return metrics.weighted_afroc(matched, np.ones((1, 4), int))["wAFROC"][0]

    # Two normal images, rated 0.5 and unmarked. Above both with weight 1/2 of image 0; its missed
    # lesion ties with the unmarked one; image 1 is between the two. Over two abnormal images.
    assert area(found) == pytest.approx((0.5 * 1 + 0.5 * 0.25 + 1 * 0.5) / 2)
    assert area([*found, (3, 0, 0, 0, 5, 5, 0.99)]) == pytest.approx((0.5 * 0.5 + 1 * 0) / 2)


@given(
    st.lists(st.sampled_from([-np.inf, 0.0, 0.5, 0.5, 1.0]), max_size=8),
    st.lists(st.sampled_from([-np.inf, 0.0, 0.5, 0.7, 1.0]), max_size=8),
    st.integers(0, 99),
)
def test_ranking_area_is_the_share_of_pairs(negative, positive, seed):
    rng = np.random.default_rng(seed)
    weights = [rng.integers(0, 3, (2, len(x))) for x in (negative, positive)]
    got = ops.ranking_area(np.array(negative, float), np.array(positive, float), *weights)
    for value, of_negative, of_positive in zip(got, *weights, strict=True):
        pairs = list(itertools.product(zip(negative, of_negative), zip(positive, of_positive)))  # noqa: B905
        total = sum(v * w for (_, v), (_, w) in pairs)
        area = sum(v * w * ((q > p) + (q == p) / 2) for (p, v), (q, w) in pairs)
        assert np.isnan(value) if not total else value == pytest.approx(area / total)


# What holds for every entry.


@pytest.mark.parametrize("name", metrics.METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_a_metric_of_weights_is_that_of_copied_images(name, seed):
    """Scores are distinct, as copies come in another order among equals."""
    mine = case(seed)
    (weights,) = ops.resamples(25, 3, seed=seed)
    evaluation = {"metrics": (name,)}
    got = metrics.score(mine.matched(), evaluation, weights)
    for sample, drawn in enumerate(weights):
        copies = np.repeat(np.arange(25), drawn)
        tables = []
        for whole in (mine.detections, mine.truth):
            parts = [
                whole._replace(image=np.full(len(whole.image), new))._asdict().values()
                for new in range(25)
            ]
            kept = [[c[whole.image == old] for c in part] for part, old in zip(parts, copies)]  # noqa: B905
            tables.append(type(whole)(*map(np.concatenate, zip(*kept, strict=True))))
        expected = metrics.score(metrics.match(*tables, 25, 3), evaluation)
        for key, values in expected.items():
            np.testing.assert_allclose(got[key][sample], values[0], atol=1e-12, err_msg=key)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_metric_of_nothing_is_not_defined(name):
    nothing = metrics.match(table([]), table([]), 3, 2)
    for values in metrics.score(nothing, {"metrics": (name,)}).values():
        assert np.isnan(values).all() and len(values) == 1


def test_blocks_of_samples_are_those_of_one(monkeypatch):
    matched = case().matched()
    whole = metrics.bootstrap(matched, 7)
    monkeypatch.setattr(metrics, "AT_ONCE", 3 * len(matched.detections.image))
    for name, values in metrics.bootstrap(matched, 7).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-12)  # summed in another order


# A metric that somebody adds.


def recall(matched, weights, toy_iou=0.4):
    """Of all findings together, and of each class."""

    def count(image):
        return weights @ np.bincount(image, minlength=matched.num_images)

    truth, target = matched.truth, matched.target[matched.is_true(toy_iou)]
    with np.errstate(invalid="ignore"):
        of_classes = [
            count(truth.image[target[truth.labels[target] == label]])
            / count(truth.image[truth.labels == label])
            for label in range(matched.num_classes)
        ]
        found = truth.labels[target] < matched.num_classes
        whole = truth.labels < matched.num_classes
        together = count(truth.image[target[found]]) / count(truth.image[whole])
    return {"recall": together, "class recall": np.stack(of_classes, axis=1)}


@pytest.fixture
def toy(monkeypatch):
    """What its author does, and no more."""
    monkeypatch.setitem(metrics.METRICS, "toy_recall", recall)


def test_a_new_metric_has_its_value_interval_and_field(toy):
    mine = case()
    result = mine.summarize(bootstrap_samples=50)
    is_true, _ = ops.true_positives(mine.detections, mine.truth, 0.4)
    of_findings = mine.detections.labels < 3
    assert result["recall"] == pytest.approx((is_true & of_findings).sum() / 300)
    assert list(result["class recall"]) == list(NAMES)
    low, high = result["95% interval"]["recall"]
    assert low < result["recall"] < high
    assert result["95% interval"]["class recall"]["a"][0] < result["class recall"]["a"]
    assert mine.summarize({"toy_iou": 0.9})["recall"] < result["recall"] / 2
    assert "recall" not in mine.summarize({"metrics": ("average_precision", "coco")})
    line = next(
        x for x in scores.format_table(result, mine.truth).splitlines() if x.startswith("recall ")
    )
    assert f"{result['recall']:.3f} (95 % interval {low:.3f} to {high:.3f})" in line


def test_a_new_metric_is_compared_in_pairs(toy):
    mine = case()
    fewer = type(mine.truth)(*(column[::2] for column in mine.detections))
    result = compare.compare(mine, fewer, "x", bootstrap_samples=100)
    one, two = (x.summarize() for x in (mine, mine._replace(detections=fewer)))
    assert result["difference"]["recall"] == pytest.approx(one["recall"] - two["recall"])
    low, high = result["95% interval"]["recall"]
    assert 0 < low < result["difference"]["recall"] < high
    assert result["difference"]["class recall"]["b"] > 0
    assert f"{low:+.3f} to {high:+.3f}" in compare.format_table(result)


def test_a_new_metric_is_in_the_report(toy):
    mine = case()
    result = mine.summarize(bootstrap_samples=20)
    fewer = type(mine.truth)(*(column[::2] for column in mine.detections))
    result["against"] = compare.compare(mine, fewer, "x", bootstrap_samples=20)
    history = [{"step": step, "recall": step / 10} for step in (1, 2, 3)]
    config = {"evaluation": {"best_by": "recall"}}
    html = evaluation_page(mine, result, title="x", history=history, config=config)
    assert f"<span>recall</span><b>{number(result['recall'])}</b>" in html
    assert f"<span>{interval(result['95% interval']['recall'])}&nbsp;</span>" in html
    cells = read(html).cells
    row = cells[cells.index("recall") :]
    assert row[3] == number(result["against"]["difference"]["recall"], signed=True)
    assert "class recall a" in cells  # of the comparison
    row = cells[cells.index("class recall") :]  # the heading of its column
    for name in NAMES:
        start = row.index(name)
        assert number(result["class recall"][name]) in row[start + 1 : start + 12]
    assert "training" in read(html).sections  # the curve of what best_by names


def test_a_new_metric_may_be_what_the_best_is_best_by(toy):
    config = retina.get_config()
    assert config.evaluation.metrics[-1] == "toy_recall"
    config.evaluation.best_by = "recall"
    configs.check(config, retina.get_fields())
    metrics.check_best_by(config.evaluation.to_dict(), NAMES)
    for name, chosen in (("class recall", "toy_recall"), ("recall", "coco"), ("", "coco")):
        config.evaluation.best_by = name
        config.evaluation.metrics = ("average_precision", chosen)
        with pytest.raises(ConfigError, match=r"evaluation\.best_by: .* computes: mAP@0\.4, mAP3@"):
            metrics.check_best_by(config.evaluation.to_dict(), NAMES)


@pytest.mark.parametrize(
    "chosen,problem",
    [
        (("coco",), "leaves out 'average_precision'"),
        (("average_precision", "cocoa"), "'cocoa' is not one of 'average_precision', 'coco'"),
    ],
)
def test_metrics_that_cannot_be_are_named(chosen, problem):
    config = retina.get_config()
    config.evaluation.metrics = chosen
    with pytest.raises(ConfigError, match=rf"config\.evaluation\.metrics: {problem}"):
        configs.check(config, retina.get_fields())
