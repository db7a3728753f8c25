import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from map_boxes import mean_average_precision_for_boxes
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxdet.ops.boxes import BoxTable
from jaxdet.ops.metrics import (
    average_precision,
    froc,
    match,
    mean_of_classes,
    percentile_interval,
    resamples,
)


def table(rows):
    """Boxes from (image, class, x1, y1, x2, y2, score)."""
    a = np.array(rows, float).reshape(-1, 7)
    return BoxTable(a[:, 0].astype(int), a[:, 1].astype(int), a[:, 2:6], a[:, 6])


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / (area(a) + area(b) - w * h)


def judge(detections, truth, threshold, label):
    """The devkit's rule, a detection at a time: (score, hit) of each, best score first."""
    found = [row for row in detections if row[1] == label]
    found.sort(key=lambda row: -row[6])  # stable
    used, result = set(), []
    for row in found:
        best, best_overlap = None, 0.0
        for i, other in enumerate(truth):
            if other[:2] == row[:2] and overlap(row[2:6], other[2:6]) > best_overlap:
                best, best_overlap = i, overlap(row[2:6], other[2:6])
        hit = best_overlap > threshold and best not in used
        if hit:
            used.add(best)
        result.append((row[6], hit))
    return result


def reference(detections, truth, threshold, label):
    """The area under the curve by its definition."""
    num_truth = sum(row[1] == label for row in truth)
    if not num_truth:
        return np.nan
    curve, hits = [(0.0, 0.0)], 0
    for n, (_, hit) in enumerate(judge(detections, truth, threshold, label), start=1):
        hits += hit
        curve.append((hits / num_truth, hits / n))
    recalls = sorted({recall for recall, _ in curve})
    return sum(
        (b - a) * max(precision for recall, precision in curve if recall >= b)
        for a, b in itertools.pairwise(recalls)
    )


def reference_recall(detections, truth, labels, num_images, allowed):
    """The best of all score thresholds."""
    num_truth = sum(row[1] in labels for row in truth)
    if not num_truth:
        return np.nan
    judged = [row for label in labels for row in judge(detections, truth, 0.4, label)]
    best = 0.0
    for lowest in {score for score, _ in judged}:
        kept = [hit for score, hit in judged if score >= lowest]
        if kept.count(False) / num_images <= allowed:
            best = max(best, kept.count(True) / num_truth)
    return best


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


@settings(max_examples=250, deadline=None)
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


def test_match_names_no_truth_where_nothing_overlaps():
    truth = table([(0, 0, 0, 0, 10, 10, 1), (0, 0, 2, 0, 12, 10, 1)])
    found = table([(0, 0, 2, 0, 12, 10, 1), (0, 0, 50, 50, 60, 60, 1), (1, 0, 0, 0, 10, 10, 1)])
    best, overlap = match(found, truth)
    assert best.tolist() == [1, -1, -1] and overlap.tolist() == [1, 0, 0]


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


def random_tables(seed, jitter):
    """Truth on a grid of cells, so that no two overlap; and up to three detections of each."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for image, label, cell in itertools.product(range(20), range(3), range(5)):
        box = np.array([cell * 100 + 20, 20, cell * 100 + 80, 80.0])
        truth.append((image, label, *box, 1))
        for _ in range(rng.integers(0, 4)):
            found.append((image, label, *(box + rng.normal(0, jitter, 4)), 0))
    order = rng.permutation(len(found))
    # Distinct, and exact in map-boxes' float32.
    return [(*row[:6], (i + 1) / 1024) for row, i in zip(found, order, strict=True)], truth


@pytest.mark.parametrize("threshold", [0.4, 0.6])
def test_equals_map_boxes(threshold):
    """Given its detections by score, and on every image something to find. Continuous boxes: it
    counts an IoU of exactly the threshold."""
    found, truth = random_tables(0, jitter=12)
    shifted = [(*r[:2], r[2] + 30, r[3], r[4] + 30, r[5], 1) for r in truth[::2]]
    truth += shifted  # so that some overlap each other
    annotations = [(f"{r[0]:02}", str(r[1]), r[2], r[4], r[3], r[5]) for r in truth]
    by_score = sorted(found, key=lambda row: -row[6])
    predictions = [(f"{r[0]:02}", str(r[1]), r[6], r[2], r[4], r[3], r[5]) for r in by_score]
    _, expected = mean_average_precision_for_boxes(
        np.array(annotations, object), np.array(predictions, object), threshold, verbose=False
    )
    got = average_precision(table(found), table(truth), [threshold], 3)[0]
    np.testing.assert_allclose(got, [expected[str(c)][0] for c in range(3)], atol=1e-12)
    assert (got > 0.01).all() and (got < 0.9).all()


def pycocotools_precision(found, truth, num_images, iou_thresholds, recalls, max_detections):
    """COCOeval's precision, of shape (thresholds, recalls, classes)."""

    def entry(i, row):
        width, height = row[4] - row[2], row[5] - row[3]
        return {
            "id": i, "image_id": row[0], "category_id": row[1], "iscrowd": 0,
            "bbox": [row[2], row[3], width, height], "area": width * height, "score": row[6],
        }  # fmt: skip

    truth_coco = COCO()
    truth_coco.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(num_images)],
        "categories": [{"id": c} for c in range(3)],
        "annotations": [entry(i, row) for i, row in enumerate(truth, start=1)],
    }
    truth_coco.createIndex()
    detections = truth_coco.loadRes([entry(i, row) for i, row in enumerate(found, start=1)])
    evaluation = COCOeval(truth_coco, detections, "bbox")
    evaluation.params.iouThrs = np.array(iou_thresholds)
    evaluation.params.recThrs = recalls
    evaluation.params.maxDets = [max_detections]
    evaluation.params.areaRng = [[0, 1e10]]
    evaluation.params.areaRngLbl = ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., 0, 0]


@pytest.mark.parametrize("threshold", [0.4, 0.6])
def test_equals_pycocotools_where_the_rules_meet(threshold):
    """No truth overlaps another, so there is no second choice to fall back on; precision is read at
    each reachable recall instead of at 101; no IoU is exactly the threshold; no image has more
    detections than it takes."""
    found, truth = random_tables(1, jitter=12)
    between = (np.arange(100) + 0.5) / 100  # 100 truths a class: between the steps
    expected = pycocotools_precision(found, truth, 20, [threshold], between, 1000)[0].mean(axis=0)
    got = average_precision(table(found), table(truth), [threshold], 3)[0]
    np.testing.assert_allclose(got, expected, atol=1e-12)
    assert (got > 0.01).all() and (got < 0.9).all()


@settings(max_examples=100, deadline=None)
@given(rows, rows, st.integers(4, 6))
def test_froc_equals_the_best_of_all_score_thresholds(detections, truth, num_images):
    rates = (0.0, 1 / 4, 1 / 2, 1.0, 8.0)
    each, pooled = froc(table(detections), table(truth), num_images, 0.4, 2, rates)
    for f, rate in enumerate(rates):
        expected = [
            reference_recall(detections, truth, labels, num_images, rate)
            for labels in ([0], [1], [0, 1])
        ]
        np.testing.assert_allclose([*each[:, f], pooled[f]], expected)


def test_froc_by_hand():
    """Of two truths the first is found before the one false positive, the second after it."""
    truth = table([(0, 0, 0, 0, 10, 10, 1), (1, 0, 0, 0, 10, 10, 1)])
    found = table([(0, 0, 0, 0, 10, 9, 0.9), (5, 0, 0, 0, 9, 9, 0.8), (1, 0, 0, 0, 9, 10, 0.7)])
    each, pooled = froc(found, truth, 8, 0.4, 14)
    assert each.shape == (14, 7)
    assert each[0].tolist() == pooled.tolist() == [1, 1, 1, 1, 1, 1, 1]
    # In fewer images the same false positive weighs more.
    assert froc(found, truth, 7, 0.4, 14)[1].tolist() == [0.5, 1, 1, 1, 1, 1, 1]


def test_froc_takes_equal_scores_together():
    truth = table([(0, 0, 0, 0, 10, 10, 1)])
    found = table([(0, 0, 0, 0, 10, 10, 0.5), (1, 0, 0, 0, 10, 10, 0.5)])
    assert froc(found, truth, 2, 0.4, 14, false_positives=[0.25, 0.5])[1].tolist() == [0, 1]


def test_froc_leaves_no_finding_out():
    truth = table([(0, 0, 0, 0, 10, 10, 1), (1, 14, 0, 0, 1, 1, 1)])
    found = table([(0, 14, 0, 0, 1, 1, 0.9), (0, 0, 0, 0, 10, 10, 0.5)])
    assert froc(found, truth, 2, 0.4, 14, false_positives=[0.0])[1].tolist() == [1]


@settings(max_examples=80, deadline=None)
@given(rows, rows, st.integers(0, 5))
def test_bootstrap_equals_scoring_the_copies(detections, truth, seed):
    """Each sample made for real: image j of it is a copy of the j-th drawn. Scores are distinct, as
    copies come in another order among equals."""
    num_images, num_samples = 4, 5
    detections = [(*row[:6], (i * 37 + 1) % 101 / 101) for i, row in enumerate(detections)]

    def copies(rows, drawn):
        return table([(j, *r[1:]) for j, image in enumerate(drawn) for r in rows if r[0] == image])

    rng = np.random.default_rng(seed)
    expected = []
    for _ in range(num_samples):
        drawn = rng.integers(num_images, size=num_images)
        copied = copies(detections, drawn), copies(truth, drawn)
        expected.append(average_precision(*copied, [0.4], 3)[0])
    (weights,) = resamples(num_images, num_samples, seed=seed)
    got = average_precision(table(detections), table(truth), [0.75, 0.4], 3, weights)
    np.testing.assert_allclose(got[:, 1], expected, atol=1e-12)


def test_resamples_are_the_same_in_blocks_of_any_size():
    whole = np.concatenate(list(resamples(7, 10)))
    blocks = list(resamples(7, 10, samples_at_once=4))
    assert [len(block) for block in blocks] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    assert (whole.sum(axis=1) == 7).all() and len(np.unique(whole, axis=0)) > 5
    assert list(resamples(7, 0)) == []


def test_bootstrap_interval_holds_the_score_and_narrows_with_confidence():
    found, truth = map(table, random_tables(2, jitter=12))
    score = average_precision(found, truth, [0.4], 3)[0].mean()

    def interval(confidence, seed=0):
        (weights,) = resamples(20, 200, seed=seed)
        samples = average_precision(found, truth, [0.4], 15, weights)[:, 0]
        return percentile_interval(mean_of_classes(samples), confidence)

    wide, narrow = interval(0.95), interval(0.5)
    assert wide[0] < narrow[0] < score < narrow[1] < wide[1]
    assert wide == interval(0.95) != interval(0.95, seed=1)


def test_a_sample_without_truth_is_left_out():
    samples = np.array([[0.2, np.nan], [np.nan, np.nan], [0.4, 0.8]])
    np.testing.assert_allclose(mean_of_classes(samples), [0.2, np.nan, 0.6])
    np.testing.assert_allclose(percentile_interval(mean_of_classes(samples), 0.5), [0.3, 0.5])
    assert np.isnan(percentile_interval(np.full(3, np.nan))).all()


@settings(max_examples=80, deadline=None)
@given(rows, rows)
def test_match_with_the_other_classes(detections, truth):
    """As matching each detection to the truths of its image alone that have another label."""
    best, overlap = match(table(detections), table(truth), other_class=True)
    for i, row in enumerate(detections):
        others = [
            (k, (0, 0, *other[2:]))
            for k, other in enumerate(truth)
            if other[0] == row[0] and other[1] != row[1]
        ]
        alone, iou = match(table([(0, 0, *row[2:])]), table([other for _, other in others]))
        assert overlap[i] == iou[0]
        assert best[i] == (others[alone[0]][0] if alone[0] >= 0 else -1)
