"""The phantom's images: the labels are like VinBigData's, and what a box says is in the picture."""

import functools
import hashlib
import itertools

import numpy as np
import pytest
from ensemble_boxes import weighted_boxes_fusion
from PIL import Image

from tfds_vinbig.kaggle import CLASS_NAMES
from tfds_vinbig.phantom import draw_image, plan_image, readers
from tfds_vinbig.phantom.body import to_image
from tfds_vinbig.phantom.findings import (
    AORTA,
    ATELECTASIS,
    CARDIOMEGALY,
    EFFUSION,
    ILD,
    PNEUMOTHORAX,
    THICKENING,
    Finding,
    iou,
    place,
)
from tfds_vinbig.phantom.plan import NO_FINDING_LABEL
from tfds_vinbig.phantom.readers import SIGHTS

# The labels of the default folder, without its pictures


@functools.cache
def plans(seed):
    return [plan_image(seed, 0, index) for index in range(1600)]


def relative(plan, box):
    return np.array(box) / (plan.width, plan.height, plan.width, plan.height)


def reader_boxes(plan):
    """{reader: [(label, relative box)]}"""
    out = {}
    for reader, label, box in plan.readers:
        out.setdefault(reader, []).append((label, relative(plan, box)))
    return out


@functools.cache
def statistics(seed):
    """Per class: raw boxes, true boxes, shares of fused boxes by readers, IoUs of reader pairs."""
    raw, true = np.zeros(14), np.zeros(14)
    clusters, ious = np.zeros((14, 3)), [[] for _ in range(14)]
    for plan in plans(seed):
        if not plan.findings:
            continue
        for row in plan.truth:
            true[row.label] += 1
        readers = list(reader_boxes(plan).values())
        for rows in readers:
            for label, _ in rows:
                raw[label] += 1
        _, scores, labels = weighted_boxes_fusion(
            [[box.tolist() for _, box in rows] for rows in readers],
            [[1.0] * len(rows) for rows in readers],
            [[label for label, _ in rows] for rows in readers],
            iou_thr=0.5,
            skip_box_thr=1e-4,
        )
        np.add.at(clusters, (labels.astype(int), np.rint(3 * scores).astype(int) - 1), 1)
        for a, b in itertools.combinations(readers, 2):
            pairs = [
                (iou(p, q), i, j, c)
                for (i, (c, p)), (j, (d, q)) in itertools.product(enumerate(a), enumerate(b))
                if c == d
            ]
            used = set()
            for value, i, j, c in sorted(pairs, reverse=True):
                if value > 0 and not {("a", i), ("b", j)} & used:
                    used |= {("a", i), ("b", j)}
                    ious[c].append(value)
    return raw, true, clusters, ious


# Of VinBigData: raw boxes, mean IoU of reader pairs, share of fused boxes with one reader.
REAL_RAW = (7162, 279, 960, 5427, 556, 1000, 1247, 2483, 2580, 2203, 2476, 4842, 226, 4655)
REAL_IOU = (0.69, 0.51, 0.57, 0.73, 0.62, 0.59, 0.61, 0.55, 0.66, 0.53, 0.51, 0.49, 0.70, 0.52)
REAL_ONE = (0.33, 0.84, 0.76, 0.25, 0.77, 0.74, 0.77, 0.80, 0.72, 0.84, 0.72, 0.84, 0.56, 0.72)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_class_is_there_and_in_the_order_of_frequency(seed):
    raw, true, *_ = statistics(seed)
    assert raw.min() >= 40 and true.min() >= 40
    lifted = ATELECTASIS, PNEUMOTHORAX
    for a, b in itertools.product(range(14), set(range(14)) - set(lifted)):
        if REAL_RAW[a] > 1.9 * REAL_RAW[b]:  # others may change places by chance
            assert raw[a] > raw[b], (CLASS_NAMES[a], CLASS_NAMES[b])


def test_readers_agree_as_often_as_the_real_ones():
    _, _, clusters, ious = statistics(0)
    share = clusters.sum(axis=0) / clusters.sum()
    np.testing.assert_allclose(share, (0.66, 0.17, 0.17), atol=0.03)
    one = clusters[:, 0] / clusters.sum(axis=1)
    np.testing.assert_allclose(one, REAL_ONE, atol=0.12)
    means = [np.mean(values) for values in ious]
    np.testing.assert_allclose(means, REAL_IOU, atol=0.08)


def test_each_reader_has_habits():
    """Boxes, confirmed ones, and those of what both others agree on, counted one by one."""
    boxes, confirmed, agreed, also = np.zeros((4, 14, 3))
    for plan in plans(0) + plans(1):
        if not plan.findings:
            continue
        rows = reader_boxes(plan)
        assert set(rows) == {"R8", "R9", "R10"}
        rows = [rows[name] for name in ("R8", "R9", "R10")]
        for r, others in enumerate(((1, 2), (0, 2), (0, 1))):
            first, second = (rows[i] for i in others)
            for label, box in rows[r]:
                boxes[label, r] += 1
                confirmed[label, r] += any(same(label, box, row) for row in first + second)
            for label, box in first:
                if any(same(label, box, row) for row in second):
                    agreed[label, r] += 1
                    also[label, r] += any(same(label, box, row) for row in rows[r])
    for label, name in enumerate(CLASS_NAMES):
        real = np.array(SIGHTS[label].counted)
        share = boxes[label] / boxes[label].sum()
        np.testing.assert_allclose(share, real[:, 0] / real[:, 0].sum(), atol=0.06, err_msg=name)
        for part, whole, rate in ((confirmed, boxes, real[:, 1]), (also, agreed, real[:, 3])):
            found, number = part[label] / whole[label], whole[label]
            tolerance = 0.09 + 2.5 * np.sqrt(rate * (1 - rate) / number)
            assert (np.abs(found - rate) < tolerance).all(), (name, found, rate)
    # R9 draws twice the thickenings that others draw, and half as many of them are confirmed.
    assert boxes[THICKENING, 1] > 1.8 * boxes[THICKENING, [0, 2]].max()
    rates = confirmed[THICKENING] / boxes[THICKENING]
    assert rates[1] < 0.7 * rates[[0, 2]].min()


def same(label, box, row):
    return label == row[0] and iou(box, row[1]) > 0.4


@pytest.mark.parametrize("label", range(14), ids=CLASS_NAMES)
def test_skills_give_the_counts_they_come_from(label, monkeypatch):
    """Where boxes never lie apart: what each set of readers sees, summed up again."""
    monkeypatch.setitem(vars(readers), "SIGHTS", [s._replace(apart=0.0) for s in SIGHTS])
    seen, false = readers.skill.__wrapped__(label)
    assert seen.sum() == pytest.approx(1) and seen.min() >= 0 and false.min() > 0
    for r, (boxes, confirmed, agreed, drawn) in enumerate(SIGHTS[label].counted):
        sees = np.array([r in who for who in readers.SETS])
        size = np.array([len(who) for who in readers.SETS])
        others = seen[(size - sees == 2)].sum()
        shares = [seen[sees & (size > 1)].sum() / (seen[sees].sum() + false[r]),
                  seen[sees & (size == 3)].sum() / others]  # fmt: skip
        assert shares == pytest.approx([confirmed, drawn], abs=0.04), (boxes, agreed)


def test_what_was_drawn_is_that_of_the_first_drawing():
    """Where the digest is another, the drawing gets a new number: see drawn.py."""
    digest = hashlib.sha256()
    for split, index in itertools.product((0, 1), range(100)):
        plan = plan_image(0, split, index)
        digest.update(repr((plan.image_id, plan.height, plan.width, plan.truth)).encode())
    assert digest.hexdigest()[:16] == "b2e29b9e3a7aecc1"


def test_boxes_lie_where_the_class_occurs():
    found = [[] for _ in range(14)]
    for plan in plans(0):
        for _, label, box in plan.readers:
            if label != NO_FINDING_LABEL:
                found[label].append(relative(plan, box))
    boxes = [np.array(rows) for rows in found]

    def median(label):
        x1, y1, x2, y2 = boxes[label].T
        return np.median([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1)

    np.testing.assert_allclose(median(0), (0.568, 0.329, 0.117, 0.115), atol=0.012)
    np.testing.assert_allclose(median(3), (0.576, 0.606, 0.431, 0.134), atol=0.02)
    np.testing.assert_allclose(median(8)[2:], (0.036, 0.032), atol=0.01)
    _, cy, w, h = median(ILD)
    assert h > 1.3 * w and 0.4 < cy < 0.55
    x1, _, x2, y2 = boxes[EFFUSION].T
    assert np.mean(np.abs((x1 + x2) / 2 - 0.5) > 0.2) > 0.9 and np.median(y2) > 0.7
    assert median(THICKENING)[1] < 0.3  # most are at the apex


def test_obvious_findings_are_missed_less():
    calls = {True: [], False: []}
    for plan in plans(0):
        for finding, (_, label, box) in zip(plan.findings, plan.truth, strict=False):
            box = relative(plan, box)
            readers = reader_boxes(plan).values()
            seen = sum(any(c == label and iou(box, b) > 0.2 for c, b in rows) for rows in readers)
            calls[finding.severity > 0.5].append(seen)
    assert np.mean(calls[True]) > np.mean(calls[False]) + 0.5
    assert np.mean(calls[False]) > 0.9  # most of the subtle ones have a reader: they can be learnt


# The pictures


@pytest.mark.parametrize("label", range(14), ids=CLASS_NAMES)
def test_a_box_holds_what_was_drawn(label):
    """The difference between the pictures with and without a finding lies in its box."""
    shares, peaks, overlaps = [], [], []
    for k in range(9):
        plan = plan_image(5, 0, 2 * k + 1)
        rng = np.random.default_rng((label, k))
        box = place(label, plan.body, rng)
        finding = Finding(label, box, (0.1, 0.5, 0.9)[k % 3], k)
        without = draw_image(plan).astype(float)
        change = np.abs(draw_image(plan._replace(findings=[finding])) - without)
        edges = to_image(plan.body, box) * 256
        x1, y1, x2, y2 = np.clip(edges + np.array((-3, -3, 3, 3)), 0, 256).round().astype(int)
        inside = change[y1:y2, x1:x2]
        shares.append((inside**2).sum() / (change**2).sum())
        peaks.append(inside.max())
        y, x = np.nonzero(change > max(0.25 * np.percentile(inside, 99), 2.5))
        tight = (x.min(), y.min(), x.max() + 1, y.max() + 1) if len(x) else (0, 0, 0, 0)
        overlaps.append(iou(tight, edges))
    # The heart's box holds its widest part only, the knob's also what lies behind it.
    heart = label == CARDIOMEGALY
    assert np.median(shares) > (0.45 if heart else 0.95)
    assert np.median(overlaps) > (0.3 if heart else 0.45)
    assert np.median(peaks) > 20


def test_an_obvious_finding_stands_out_more():
    plan = plan_image(5, 0, 1)
    for label in set(range(14)) - {AORTA, CARDIOMEGALY}:  # these have a size
        box = place(label, plan.body, np.random.default_rng(label))
        change = []
        for severity in (0.0, 1.0):
            finding = Finding(label, box, severity, 1)
            pictures = [
                draw_image(plan._replace(findings=f)).astype(float) for f in ([finding], [])
            ]
            change.append(np.abs(pictures[0] - pictures[1]).sum())
        assert change[1] > 1.2 * change[0], CLASS_NAMES[label]


def test_a_chest_is_light_and_dark_where_it_should_be():
    """Means over normal pictures: lungs dark, heart on the picture's right, abdomen bright."""
    mean = np.mean([draw_image(plan_image(1, 0, 2 * i + 1)) for i in range(8)], axis=0)

    def at(x, y, r=6):
        x, y = round(256 * x), round(256 * y)
        return mean[y - r : y + r, x - r : x + r].mean()

    lungs = [at(0.25, 0.45), at(0.75, 0.4), at(0.3, 0.25), at(0.7, 0.25)]
    dense = [at(0.5, 0.6), at(0.6, 0.6), at(0.3, 0.88), at(0.7, 0.9)]
    assert max(lungs) < min(dense) - 40
    assert at(0.66, 0.6) > at(0.34, 0.6) + 20  # the heart's apex is on the patient's left
    assert mean.std() > 30 and (mean[:8, :8].mean() < 90)  # air beside the neck


def test_any_size_can_be_drawn():
    plan = plan_image(2, 0, 0)
    small, large = (draw_image(plan, size) for size in (64, 512))
    assert small.shape == (64, 64) and large.shape == (512, 512)
    shrunk = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX), float)
    assert np.corrcoef(shrunk.ravel(), small.ravel())[0, 1] > 0.95
