"""The phantom: the folder is whole and repeats, the labels are like VinBigData's, and what a box
says is in the picture."""

import functools
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ensemble_boxes import weighted_boxes_fusion
from PIL import Image

from jaxdet import InputError
from tfds_vinbig import kaggle, phantom
from tfds_vinbig.kaggle import CLASS_NAMES, NO_FINDING

NUM_TRAIN, NUM_TEST, SIZE = 24, 8, 64
BOX = ["x_min", "y_min", "x_max", "y_max"]
TABLES = ("train.csv", "truth.csv", "train_meta.csv", "test_meta.csv", "sample_submission.csv")


def draw(folder, seed=3, **keywords):
    keywords = {"num_train": NUM_TRAIN, "num_test": NUM_TEST, "size": SIZE, **keywords}
    phantom.draw_folder(folder, seed=seed, **keywords)
    return folder


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("phantom") / "new" / "folder", workers=1)


@pytest.fixture(scope="module")
def tables(folder):
    return {name: pd.read_csv(folder / name) for name in TABLES}


# The folder


def test_the_same_for_any_number_of_workers(folder, tmp_path):
    assert files(draw(tmp_path / "two", workers=2)) == files(folder)


def test_another_seed_is_another_folder(folder, tmp_path):
    other = draw(tmp_path / "other", seed=4, workers=1)
    assert not set(files(other)) & {name for name in files(folder) if name.endswith(".png")}
    pictures = [{p.read_bytes() for p in f.rglob("*.png")} for f in (folder, other)]
    assert len(pictures[0] | pictures[1]) == 2 * (NUM_TRAIN + NUM_TEST)  # no two pictures alike


def test_more_images_leave_the_first_ones_as_they_are(folder, tmp_path):
    more = files(draw(tmp_path / "more", num_train=NUM_TRAIN + 2, workers=1))
    pictures = {name: data for name, data in files(folder).items() if name.endswith(".png")}
    assert pictures.items() <= more.items()


def test_every_image_is_in_every_table(folder, tables):
    ids = {s: {p.stem for p in (folder / s).glob("*.png")} for s in ("train", "test")}
    assert {split: len(names) for split, names in ids.items()} == {"train": 24, "test": 8}
    assert all(len(name) == 32 and set(name) <= set("0123456789abcdef") for name in ids["train"])
    truth = tables["truth.csv"]
    assert set(tables["train.csv"].image_id) == ids["train"]
    assert set(truth.image_id[truth.split == "train"]) == ids["train"]
    assert set(truth.image_id[truth.split == "test"]) == ids["test"]
    for split in ("train", "test"):
        assert sorted(tables[f"{split}_meta.csv"].image_id) == sorted(ids[split])
    assert sorted(tables["sample_submission.csv"].image_id) == sorted(ids["test"])


def test_columns_and_pictures(folder, tables):
    columns = ["image_id", "class_name", "class_id", "rad_id", *BOX]
    assert list(tables["train.csv"]) == columns
    assert list(tables["truth.csv"]) == ["image_id", "split", *columns[1:]]
    assert list(tables["train_meta.csv"]) == ["image_id", "dim0", "dim1"]
    assert list(tables["sample_submission.csv"]) == ["image_id", "PredictionString"]
    assert set(tables["sample_submission.csv"].PredictionString) == {"14 1 0 0 1 1"}
    assert set(tables["truth.csv"].rad_id) == {"truth"}
    for table in (tables["train.csv"], tables["truth.csv"]):
        assert table.class_name.tolist() == [
            (*CLASS_NAMES, "No finding")[i] for i in table.class_id
        ]
    sizes = set(zip(tables["train_meta.csv"].dim0, tables["train_meta.csv"].dim1, strict=True))
    assert sizes <= set(phantom.SIZES) and len(sizes) > 3
    for path in folder.rglob("*.png"):
        with Image.open(path) as picture:
            assert (picture.mode, picture.size) == ("L", (SIZE, SIZE))


def test_the_house_can_read_it(folder):
    found = kaggle.read_folder(folder)
    assert (len(found.train), len(found.test), found.notes) == (NUM_TRAIN, NUM_TEST, [])


def test_boxes_lie_inside_and_normal_rows_have_none(tables):
    meta = pd.concat([tables["train_meta.csv"], tables["test_meta.csv"]])
    for table in (tables["train.csv"], tables["truth.csv"]):
        table = table.merge(meta, on="image_id")
        normal = table.class_id == NO_FINDING
        assert table.loc[normal, BOX].isna().all(axis=None)
        table = table[~normal]
        assert len(table) > 50
        assert (table.x_min > 0).all() and (table.x_max < table.dim1).all()
        assert (table.y_min > 0).all() and (table.y_max < table.dim0).all()
        assert (table.x_min < table.x_max).all() and (table.y_min < table.y_max).all()


def test_three_readers_an_image_and_none_is_mixed(tables):
    train = tables["train.csv"]
    by_image = train.groupby("image_id")
    assert (by_image.rad_id.nunique() == 3).all()
    normal = by_image.class_id.agg(lambda ids: (ids == NO_FINDING).mean())
    assert set(normal) == {0.0, 1.0}
    assert normal.sum() == NUM_TRAIN / 2
    assert (by_image.size()[normal == 1] == 3).all()
    truth = tables["truth.csv"]
    is_normal = truth.groupby("image_id").class_id.max() == NO_FINDING
    assert (is_normal[normal.index] == (normal == 1)).all()
    assert is_normal.sum() == (NUM_TRAIN + NUM_TEST) / 2
    assert (truth[truth.class_id == NO_FINDING].groupby("image_id").size() == 1).all()


def test_neither_order_nor_reader_tells_who_is_ill(tables):
    ids = tables["train_meta.csv"].image_id
    normal = set(tables["train.csv"].image_id[tables["train.csv"].class_id == NO_FINDING])
    pattern = [name in normal for name in ids]
    assert pattern[::2].count(True) not in (0, NUM_TRAIN // 2)
    assert tables["train.csv"].image_id.duplicated().values[:20].sum() < 15  # rows are mixed
    readers = {True: set(), False: set()}
    for plan in plans(0)[:200]:
        readers[plan.findings == []] |= {row[0] for row in plan.readers}
    assert readers[True] == readers[False] == set(phantom.READERS)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_failure_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(plan, size, folder):
        if len(list(folder.rglob("*.png"))) == 3:
            raise error
        write(plan, size, folder)

    write = phantom.write_image
    monkeypatch.setattr(phantom, "write_image", fail)
    with pytest.raises(error):
        draw(tmp_path / "phantom", workers=1)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_pool_leaves_nothing(tmp_path):
    """Ctrl-C while worker processes draw."""
    code = (
        # Also where the tests run in the background, which would ignore it.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from tfds_vinbig import phantom; phantom.draw_folder({str(tmp_path / 'p')!r}, workers=2)"
    )
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".p-*/train/*.png")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, 2)  # to every process, as a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and b"KeyboardInterrupt" in errors
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(InputError, match=str(tmp_path)):
        draw(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


# The labels of the default folder, without its pictures


@functools.cache
def plans(seed):
    return [phantom.plan_image(seed, 0, index) for index in range(1600)]


def relative(plan, box):
    return np.array(box) / (plan.width, plan.height, plan.width, plan.height)


def reader_boxes(plan):
    """{reader: [(class id, relative box)]}"""
    out = {}
    for reader, class_id, box in plan.readers:
        out.setdefault(reader, []).append((class_id, relative(plan, box)))
    return out


@functools.cache
def statistics(seed):
    """Per class: raw boxes, true boxes, shares of fused boxes by readers, IoUs of reader pairs."""
    raw, true = np.zeros(14), np.zeros(14)
    clusters, ious = np.zeros((14, 3)), [[] for _ in range(14)]
    for plan in plans(seed):
        if not plan.findings:
            continue
        for class_id, _ in plan.truth:
            true[class_id] += 1
        readers = list(reader_boxes(plan).values())
        for rows in readers:
            for class_id, _ in rows:
                raw[class_id] += 1
        _, scores, labels = weighted_boxes_fusion(
            [[box.tolist() for _, box in rows] for rows in readers],
            [[1.0] * len(rows) for rows in readers],
            [[class_id for class_id, _ in rows] for rows in readers],
            iou_thr=0.5,
            skip_box_thr=1e-4,
        )
        np.add.at(clusters, (labels.astype(int), np.rint(3 * scores).astype(int) - 1), 1)
        for a, b in itertools.combinations(readers, 2):
            pairs = [
                (phantom.iou(p, q), i, j, c)
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
    for a, b in itertools.permutations(range(14), 2):
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


def test_boxes_lie_where_the_class_occurs():
    found = [[] for _ in range(14)]
    for plan in plans(0):
        for _, class_id, box in plan.readers:
            if class_id != NO_FINDING:
                found[class_id].append(relative(plan, box))
    boxes = [np.array(rows) for rows in found]

    def median(class_id):
        x1, y1, x2, y2 = boxes[class_id].T
        return np.median([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1)

    np.testing.assert_allclose(median(0), (0.568, 0.329, 0.117, 0.115), atol=0.012)
    np.testing.assert_allclose(median(3), (0.576, 0.606, 0.431, 0.134), atol=0.02)
    np.testing.assert_allclose(median(8)[2:], (0.036, 0.032), atol=0.01)
    _, cy, w, h = median(phantom.ILD)
    assert h > 1.3 * w and 0.4 < cy < 0.55
    x1, _, x2, y2 = boxes[phantom.EFFUSION].T
    assert np.mean(np.abs((x1 + x2) / 2 - 0.5) > 0.2) > 0.9 and np.median(y2) > 0.7
    assert median(phantom.THICKENING)[1] < 0.3  # most are at the apex


def test_obvious_findings_are_missed_less():
    calls = {True: [], False: []}
    for plan in plans(0):
        for finding, (class_id, box) in zip(plan.findings, plan.truth, strict=False):
            box = relative(plan, box)
            readers = reader_boxes(plan).values()
            seen = sum(
                any(c == class_id and phantom.iou(box, b) > 0.2 for c, b in rows)
                for rows in readers
            )
            calls[finding.severity > 0.5].append(seen)
    assert np.mean(calls[True]) > np.mean(calls[False]) + 0.5
    assert np.mean(calls[False]) > 0.9  # most of the subtle ones have a reader: they can be learnt


# The pictures


@pytest.mark.parametrize("class_id", range(14), ids=CLASS_NAMES)
def test_a_box_holds_what_was_drawn(class_id):
    """The difference between the pictures with and without a finding lies in its box."""
    shares, peaks, overlaps = [], [], []
    for k in range(9):
        plan = phantom.plan_image(5, 0, 2 * k + 1)
        rng = np.random.default_rng((class_id, k))
        box = phantom.place(class_id, plan.body, rng)
        finding = phantom.Finding(class_id, box, (0.1, 0.5, 0.9)[k % 3], k)
        without = phantom.draw_image(plan).astype(float)
        change = np.abs(phantom.draw_image(plan._replace(findings=[finding])) - without)
        edges = phantom.to_image(plan.body, box) * 256
        x1, y1, x2, y2 = np.clip(edges + np.array((-3, -3, 3, 3)), 0, 256).round().astype(int)
        inside = change[y1:y2, x1:x2]
        shares.append((inside**2).sum() / (change**2).sum())
        peaks.append(inside.max())
        y, x = np.nonzero(change > max(0.25 * np.percentile(inside, 99), 2.5))
        tight = (x.min(), y.min(), x.max() + 1, y.max() + 1) if len(x) else (0, 0, 0, 0)
        overlaps.append(phantom.iou(tight, edges))
    # The heart's box holds its widest part only, the knob's also what lies behind it.
    heart = class_id == phantom.CARDIOMEGALY
    assert np.median(shares) > (0.45 if heart else 0.95)
    assert np.median(overlaps) > (0.3 if heart else 0.45)
    assert np.median(peaks) > 20


def test_an_obvious_finding_stands_out_more():
    plan = phantom.plan_image(5, 0, 1)
    for class_id in set(range(14)) - {phantom.AORTA, phantom.CARDIOMEGALY}:  # these have a size
        box = phantom.place(class_id, plan.body, np.random.default_rng(class_id))
        change = []
        for severity in (0.0, 1.0):
            finding = phantom.Finding(class_id, box, severity, 1)
            pictures = [
                phantom.draw_image(plan._replace(findings=f)).astype(float) for f in ([finding], [])
            ]
            change.append(np.abs(pictures[0] - pictures[1]).sum())
        assert change[1] > 1.2 * change[0], CLASS_NAMES[class_id]


def test_a_chest_is_light_and_dark_where_it_should_be():
    """Means over normal pictures: lungs dark, heart on the picture's right, abdomen bright."""
    mean = np.mean(
        [phantom.draw_image(phantom.plan_image(1, 0, 2 * i + 1)) for i in range(8)], axis=0
    )

    def at(x, y, r=6):
        x, y = round(256 * x), round(256 * y)
        return mean[y - r : y + r, x - r : x + r].mean()

    lungs = [at(0.25, 0.45), at(0.75, 0.4), at(0.3, 0.25), at(0.7, 0.25)]
    dense = [at(0.5, 0.6), at(0.6, 0.6), at(0.3, 0.88), at(0.7, 0.9)]
    assert max(lungs) < min(dense) - 40
    assert at(0.66, 0.6) > at(0.34, 0.6) + 20  # the heart's apex is on the patient's left
    assert mean.std() > 30 and (mean[:8, :8].mean() < 90)  # air beside the neck


def test_any_size_can_be_drawn():
    plan = phantom.plan_image(2, 0, 0)
    small, large = (phantom.draw_image(plan, size) for size in (64, 512))
    assert small.shape == (64, 64) and large.shape == (512, 512)
    shrunk = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX), float)
    assert np.corrcoef(shrunk.ravel(), small.ravel())[0, 1] > 0.95
