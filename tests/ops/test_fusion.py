import numpy as np
import pytest
from ensemble_boxes import nms, weighted_boxes_fusion
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet import InputError
from jaxdet.ops.fusion import fuse, fuse_rows, parse

METHODS = ("none", "nms@0.4", "wbf@0.4", "votes@0.4", "agree@0.4:2", "earl@0.4")
SCALE = 128  # of the package's units, 0 to 1: a power of two changes no IoU


def run(method, rows, scores=None):
    """Fuse rows of (image, class, reader, x1, y1, x2, y2)."""
    a = np.array(rows, float).reshape(-1, 7)
    image, labels, readers = a[:, :3].astype(int).T
    scores = scores if scores is None else np.array(scores, float)
    return fuse(method, image, labels, readers, a[:, 3:], scores=scores)


def as_lists(rows, scores):
    """One image as the package takes it: boxes, scores and labels, a list a reader in order of
    appearance."""
    lists = {}
    for (_, label, reader, *box), score in zip(rows, scores, strict=True):
        lists.setdefault(reader, []).append((np.array(box) / SCALE, score, label))
    while len(lists) < 3:
        lists[f"nobody {len(lists)}"] = []
    return ([[row[i] for row in rows] for rows in lists.values()] for i in range(3))


def by_ensemble_boxes(method, rows, scores):
    """(labels, scores, boxes) of the package."""
    name, options = parse(method)
    threshold = options["iou_threshold"]
    boxes, scores, labels = as_lists(rows, scores)
    if name == "wbf":
        boxes, scores, labels = weighted_boxes_fusion(boxes, scores, labels, iou_thr=threshold)
    elif name == "votes":
        boxes, scores, labels = weighted_boxes_fusion(
            boxes, scores, labels, iou_thr=threshold, conf_type="box_and_model_avg"
        )
    else:
        flat = [np.concatenate([x for x in lists if x])[None] for lists in (boxes, scores, labels)]
        boxes, scores, labels = nms(*flat, iou_thr=threshold)
    return labels, scores, np.asarray(boxes) * SCALE


def assert_equal(fused, expected):
    """As many rows, and each with one like it on the other side."""
    labels, scores, boxes = expected
    assert len(fused.image) == len(labels)
    ours = np.c_[fused.labels, fused.scores, fused.boxes / SCALE]
    theirs = np.c_[labels, scores, boxes / SCALE]
    distance = abs(ours[:, None] - theirs).max(axis=-1)
    if len(labels):
        assert distance.min(axis=0).max() < 1e-5 and distance.min(axis=1).max() < 1e-5


row = st.tuples(
    st.integers(0, 1), st.integers(1, 3), st.integers(0, 30), st.integers(0, 30),
    st.integers(3, 40), st.integers(3, 40),
).map(lambda r: (0, r[0], r[1], r[2], r[3], r[2] + r[4], r[3] + r[5]))  # fmt: skip


# The package's fused boxes are float32: thresholds that IoUs of small integers do not reach, and
# the same examples every time.
@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(row, min_size=1, max_size=15), st.sampled_from([0.1037, 0.4037, 0.5537]))
def test_equal_scores_come_in_the_order_of_ensemble_boxes(rows, iou_threshold):
    method = f"wbf@{iou_threshold}"
    assert_equal(run(method, rows), by_ensemble_boxes(method, rows, [1.0] * len(rows)))


@pytest.mark.parametrize("method", ["nms@0.4", "wbf@0.4", "votes@0.4"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(row, st.integers(1, 1000)), min_size=1, unique_by=lambda r: r[1]))
def test_equals_ensemble_boxes(method, scored):
    rows, scores = zip(*scored, strict=True)
    if method.startswith("votes"):  # told apart, and yet all 1
        scores = [1 - 1e-9 * score for score in scores]
    else:
        scores = [score / 1000 for score in scores]
    method = method.replace("0.4", "0.4037")
    assert_equal(run(method, rows, scores), by_ensemble_boxes(method, rows, scores))


@settings(max_examples=50, deadline=None)
@given(st.lists(row, max_size=10), st.lists(row, max_size=10), st.sampled_from(METHODS))
def test_images_do_not_touch(one, two, method):
    """Fused together or alone, shuffled into each other or not."""
    second = [(1, *r[1:]) for r in two]
    mixed = [r for pair in zip(one, second, strict=False) for r in pair]
    mixed += one[len(second) :] + second[len(one) :]
    together = run(method, mixed)
    for i, rows in enumerate((one, two)):
        alone = run(method, rows)
        np.testing.assert_allclose(together.boxes[together.image == i], alone.boxes)
        np.testing.assert_allclose(together.scores[together.image == i], alone.scores)
        np.testing.assert_array_equal(together.labels[together.image == i], alone.labels)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(row, st.integers(0, 3)), max_size=25), st.permutations(range(4)))
def test_images_renumbered_change_nothing(rows, numbers):
    """Ties and all, for every method."""
    rows = [(image, *r[1:]) for r, image in rows]
    renumbered = [(numbers[r[0]], *r[1:]) for r in rows]
    for method in METHODS:
        before, after = run(method, rows), run(method, renumbered)
        assert len(before.image) == len(after.image)
        for old, new in enumerate(numbers):
            for a, b in zip(before[1:], after[1:], strict=True):
                np.testing.assert_array_equal(a[before.image == old], b[after.image == new])


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
    for method in METHODS:
        fused = run(method, [])
        assert fused.boxes.shape == (0, 4)
        assert fused.image.shape == fused.labels.shape == fused.scores.shape == (0,)


def test_classes_stay_apart():
    rows = [(0, 3, 0, 10, 10, 50, 30), (0, 4, 1, 10, 10, 50, 30)]
    for method in METHODS:
        # One reader each: too few to agree.
        assert run(method, rows).labels.tolist() == ([] if method == "agree@0.4:2" else [3, 4])


def test_sorted_by_image_class_and_score_and_arguments_as_before():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 50, (200, 2))
    arguments = {
        "image": rng.integers(0, 4, 200), "labels": rng.integers(0, 3, 200),
        "readers": rng.integers(0, 3, 200), "boxes": np.c_[corner, corner + 30],
        "scores": rng.uniform(0.1, 1, 200),
    }  # fmt: skip
    kept = fuse("none", **arguments)
    assert sorted(kept.boxes.tolist()) == sorted(arguments["boxes"].tolist())  # to the last bit
    before = {name: column.copy() for name, column in arguments.items()}
    for method in METHODS:
        fused = fuse(method, **arguments)
        order = np.lexsort((-fused.scores, fused.labels, fused.image))
        assert order.tolist() == list(range(len(order)))
        for name, column in arguments.items():
            np.testing.assert_array_equal(column, before[name])


def test_votes_count_a_reader_once():
    """Reader 0 drew the finding twice; boxes are counted by wbf, readers by votes."""
    rows = [(0, 3, r, 10, 10, 50, 30) for r in (0, 0, 2)]
    assert run("wbf@0.4", rows).scores.tolist() == [1.0]
    np.testing.assert_allclose(run("votes@0.4", rows).scores, [2 / 3])
    np.testing.assert_allclose(run("votes@0.4", rows, [0.9, 0.2, 0.4]).scores, [2 / 3])


@settings(max_examples=80, deadline=None)
@given(st.lists(row, max_size=15), st.integers(1, 3))
def test_agree_keeps_the_boxes_of_wbf_that_so_many_readers_drew(rows, least):
    """The share of readers is what votes says of the same boxes."""
    wbf, votes = run("wbf@0.4", rows), run("votes@0.4", rows)
    agree = run(f"agree@0.4:{least}", rows)
    enough = votes.boxes[votes.scores > (least - 0.5) / 3]
    assert sorted(agree.boxes.tolist()) == sorted(enough.tolist())
    assert {(*b, s) for b, s in zip(agree.boxes.tolist(), agree.scores, strict=True)} <= {
        (*b, s) for b, s in zip(wbf.boxes.tolist(), wbf.scores, strict=True)
    }


def test_agree_counts_a_reader_once():
    rows = [(0, 3, r, 10, 10, 50, 30) for r in (0, 0, 2)]
    assert len(run("agree@0.4:2", rows).image) == 1
    assert len(run("agree@0.4:3", rows).image) == 0


def test_more_readers_than_any_image_has_cannot_agree():
    """One saw nothing, and is one of them all the same."""
    image, labels, names = np.zeros(3, int), np.array([3, 3, 14]), np.array(["R8", "R9", "R10"])
    rows = image, labels, names, np.array([[0, 0, 9, 9], [0, 0, 9, 9], [np.nan] * 4]), 14
    assert len(fuse_rows("agree@0.4:3", *rows).table.image) == 0
    with pytest.raises(
        InputError, match="4 readers cannot agree, no image was read by more than 3"
    ):
        fuse_rows("agree@0.4:4", *rows)


def test_more_readers_than_expected_are_no_more_than_all():
    rows = [(0, 3, r, 10, 10, 50, 30) for r in range(5)]
    assert run("wbf@0.4", rows).scores.tolist() == run("votes@0.4", rows).scores.tolist() == [1.0]


@pytest.mark.parametrize("method", ["nms", "votes", "wbf"])
def test_an_iou_of_exactly_the_threshold_stays_apart(method):
    rows = [(0, 3, 0, 0, 0, 10, 10), (0, 3, 1, 0, 0, 10, 20)]
    assert len(run(f"{method}@0.5", rows).image) == 2
    assert len(run(f"{method}@0.4999", rows).image) == 1


def test_scores_weigh_the_mean():
    rows = [(0, 3, 0, 0, 0, 10, 10), (0, 3, 1, 0, 0, 10, 14)]
    fused = run("wbf@0.4", rows, [0.9, 0.3])
    np.testing.assert_allclose(fused.boxes, [[0, 0, 10, 11]])
    np.testing.assert_allclose(fused.scores, [(0.9 + 0.3) / 2 * 2 / 3])


@settings(max_examples=50, deadline=None)
@given(st.lists(row, max_size=10))
def test_nms_a_second_time_changes_nothing(rows):
    once = run("nms@0.4", rows)
    readers = np.zeros(len(once.image), int)
    twice = fuse("nms@0.4", once.image, once.labels, readers, once.boxes)
    assert sorted(twice.boxes.tolist()) == sorted(once.boxes.tolist())


@pytest.mark.parametrize("method", [m for m in METHODS if m != "agree@0.4:2"])
def test_boxes_that_do_not_overlap_stay_as_they_are(method):
    rows = [(0, 3, r, 20 * r, 10, 20 * r + 15, 30) for r in range(3)]
    np.testing.assert_allclose(sorted(run(method, rows).boxes.tolist()), [r[3:] for r in rows])


def test_boxes_without_area_stay():
    rows = [(0, 3, r, 10, 10, 10, 30) for r in range(3)]
    for method in ("none", "nms@0.4", "wbf@0.4", "votes@0.4", "agree@0.4:1"):
        np.testing.assert_array_equal(run(method, rows).boxes, [[10, 10, 10, 30]] * 3)


@pytest.mark.parametrize("score", [0.0, -1.0, np.nan])
def test_a_score_that_is_not_above_0_is_refused(score):
    with pytest.raises(ValueError, match="score"):
        run("wbf@0.4", [(0, 3, 0, 0, 0, 10, 10)], [score])


def test_none_keeps_every_box():
    rows = [(0, 3, r, 10, 10, 50, 30) for r in range(3)]
    np.testing.assert_allclose(run("none", rows).boxes, [[10, 10, 50, 30]] * 3)


def test_nms_keeps_the_last_readers_box():
    rows = [(0, 3, 0, 0, 0, 10, 10), (0, 3, 1, 0, 0, 10, 9), (0, 3, 2, 50, 50, 60, 60)]
    kept = run("nms@0.4", rows)
    assert sorted(kept.boxes.tolist()) == [[0, 0, 10, 9], [50, 50, 60, 60]]


@pytest.mark.parametrize(
    "method",
    ["wbf", "wbf@x", "wbf@1", "nms@-1", "soft-nms@0.4", "none@0.4", "wbf@nan", "", "wbf@0.4:2",
     "agree@0.4", "agree@0.4:0", "agree@0.4:x", "agree@0.4:", "wbf@0.4 ", "agree@0.4:1_0"],
)  # fmt: skip
def test_an_unknown_method_is_named(method):
    with pytest.raises(InputError, match=f"fusion '{method}': not raw.*nms@IOU.*agree@IOU:READERS"):
        parse(method)
    with pytest.raises(InputError):
        run(method, [])
