import json

import ensemble_boxes
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet import InputError
from jaxdet.inference import ensemble, tta
from jaxdet.ops.boxes import BoxTable
from jaxdet.ops.nms import Detections
from jaxdet.runs.workdir import Run
from tests.conftest import command

SIZE = 1000  # pixels of the images


def draw(seed, num_images=4, most=30):
    """Boxes around a few places, as detectors of one image agree on some and not on others."""
    rng = np.random.default_rng(seed)
    rows = []
    for image in range(num_images):
        for _ in range(rng.integers(5, most)):
            centre = 200 * rng.integers(1, 5, 2) + rng.normal(0, 12, 2)
            half = rng.uniform(50, 90, 2)
            rows.append((image, rng.integers(3), *(centre - half), *(centre + half)))
    rows = np.array(rows)
    scores = rng.uniform(0.05, 1, len(rows))
    return BoxTable(rows[:, 0].astype(int), rows[:, 1].astype(int), rows[:, 2:], scores)


def by_package(tables, weights, iou, image):
    """(label, score, box) of each box that ensemble-boxes makes of an image, best first."""
    mine = [t.image == image for t in tables]
    boxes, scores, labels = ensemble_boxes.weighted_boxes_fusion(
        [(t.boxes[m] / SIZE).tolist() for t, m in zip(tables, mine, strict=True)],
        [t.scores[m].tolist() for t, m in zip(tables, mine, strict=True)],
        [t.labels[m].tolist() for t, m in zip(tables, mine, strict=True)],
        weights=weights,
        iou_thr=iou,
        conf_type="box_and_model_avg",
    )
    return labels.astype(int), scores, boxes * SIZE


@pytest.mark.parametrize("weights", [[1, 1, 1], [2, 1, 0.5], [7]])
@pytest.mark.parametrize("iou", [0.4, 0.6])
def test_weighted_boxes_fusion_is_that_of_the_package(weights, iou):
    tables = [draw(seed) for seed in range(len(weights))]
    fused = ensemble.fuse_tables(tables, weights, f"wbf@{iou}")
    assert len(fused.image) < sum(len(t.image) for t in tables)
    for image in range(4):
        mine = np.flatnonzero(fused.image == image)
        mine = mine[np.argsort(-fused.scores[mine], kind="stable")]
        labels, scores, boxes = by_package(tables, weights, iou, image)
        np.testing.assert_allclose(fused.scores[mine], scores, rtol=1e-5)
        np.testing.assert_array_equal(fused.labels[mine], labels)
        np.testing.assert_allclose(fused.boxes[mine], boxes, atol=1e-2)


def test_only_the_ratio_of_weights_counts():
    tables = [draw(seed) for seed in range(2)]
    for one, other in zip(
        ensemble.fuse_tables(tables, [1e308, 5e307]),
        ensemble.fuse_tables(tables, [2, 1]),
        strict=True,
    ):
        np.testing.assert_allclose(one, other)


def test_what_is_the_same_in_all_has_the_mean_score_by_weight():
    """So "No finding", whose box is always the same, needs no rule of its own."""
    one = BoxTable(np.zeros(1, int), np.full(1, 14), np.array([[0.0, 0, 1, 1]]), np.array([0.9]))
    other = one._replace(scores=np.array([0.3]))
    fused = ensemble.fuse_tables([one, other], [3, 1])
    assert fused.labels.tolist() == [14] and fused.boxes.tolist() == [[0, 0, 1, 1]]
    assert fused.scores == pytest.approx([0.75])


def box(score, label=0, at=10.0):
    boxes = np.array([[at, 10, at + 40, 50]])
    return BoxTable(np.zeros(1, int), np.full(1, label), boxes, np.array([score]))


def joined(*tables):
    return BoxTable(*map(np.concatenate, zip(*tables, strict=True)))


def test_files_count_and_not_boxes():
    twice = joined(box(1.0), box(1.0), box(0.6, at=14.0))
    assert ensemble.fuse_tables([twice]).scores == pytest.approx([2.6 / 3])
    assert ensemble.fuse_tables([joined(box(0.8), box(0.8)), box(0.5, label=1)]).scores == (
        pytest.approx([0.4, 0.25])
    )


def test_a_table_counts_for_the_classes_that_it_knows():
    tables = [joined(box(0.8), box(0.6, label=1)), box(0.4), box(0.4)]
    known = [{0, 1}, {0, 2}, {0, 1}]
    fused = ensemble.fuse_tables(tables, [2, 1, 1], known=known)
    assert fused.scores == pytest.approx([0.6, 0.6 * 2 / 3])
    alone = ensemble.fuse_tables(tables, known=[{0, 1}, {0}, {0}])
    assert alone.scores[1] == pytest.approx(0.6)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 1000),
    weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=4),
    top=st.sampled_from([0.3, 1.0]),
)
def test_no_score_is_above_all_that_went_in(seed, weights, top):
    tables = [draw(seed + i, num_images=1) for i in range(len(weights))]
    tables = [table._replace(scores=np.full(len(table.scores), top)) for table in tables]
    assert ensemble.fuse_tables(tables, weights).scores.max() <= top


def write_run(folder, class_ids):
    run = Run(["Rib", "Lung"], class_ids, "x", "y", [], [])
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"run": run._asdict()}))
    return folder / "submission.csv"


def test_what_files_know(tmp_path, capsys):
    files = [write_run(tmp_path / "a", [3, 5, 9]), tmp_path / "b.csv"]
    runs, names = ensemble.runs_beside(files)
    assert runs[1] is None and names == {3: "Rib", 5: "Lung", 9: "No finding"}
    class_ids, tables = (3, 5, 7, 9, -1), [box(0.5), box(0.5, label=2)]
    known = ensemble.known_labels(files, runs, names, tables, class_ids, [None] * 5)
    assert known == [{0, 1, 3}, {2}]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == (
        f"note: class 3 (Rib) is known to 1 of 2 submissions alone, which count for it: {files[0]}"
    )
    assert [line.split()[2] for line in said] == ["3", "5", "7", "9"]
    called = ["Lung", None, "Rib", None, None]  # in files that name their classes
    known = ensemble.known_labels(files, runs, names, tables, class_ids, called)
    assert known == [{0, 1, 2, 3}, {2}] and "(Lung)" in capsys.readouterr().err
    files.append(write_run(tmp_path / "c", [9, 8, 7]))
    with pytest.raises(InputError, match="c/.* and .*a/.* have other classes: 9 is 'Rib' and 'No"):
        ensemble.runs_beside(files)


def as_detections(table, slots=40):
    boxes, labels = np.zeros((4, slots, 4), np.float32), np.zeros((4, slots), np.int32)
    scores, mask = np.zeros((4, slots), np.float32), np.zeros((4, slots), bool)
    for image in range(4):
        rows = np.flatnonzero(table.image == image)
        rows = rows[np.argsort(-table.scores[rows])]
        at = image, slice(len(rows))
        boxes[at], labels[at], scores[at] = (
            table.boxes[rows],
            table.labels[rows],
            table.scores[rows],
        )
        mask[at] = True
    return Detections(boxes, labels, scores, mask, np.linspace(0, 0.3, 4, dtype=np.float32))


def test_looks_are_fused_image_by_image_and_the_best_stay():
    tables = [draw(0), draw(1)]
    looks = [as_detections(t, slots) for t, slots in zip(tables, (40, 50), strict=True)]
    looks[1] = looks[1]._replace(normal=looks[1].normal + 0.5)
    got = tta.fuse_looks(looks, "wbf@0.5", 12)
    assert got.boxes.shape == (4, 12, 4) and got.mask.all()
    np.testing.assert_allclose(got.normal, looks[0].normal + 0.25, rtol=1e-6)
    for image in range(4):
        labels, scores, boxes = by_package(tables, [1, 1], 0.5, image)
        np.testing.assert_allclose(got.scores[image], scores[:12], rtol=1e-5)
        np.testing.assert_array_equal(got.labels[image], labels[:12])
        np.testing.assert_allclose(got.boxes[image], boxes[:12], atol=1e-2)
    # More room than boxes: the rest is padding.
    got = tta.fuse_looks(looks, "nms@0.5", 100)
    assert not got.mask.all() and not got.boxes[~got.mask].any()


def test_looks_without_any_box_are_none():
    nothing = draw(0)
    nothing = as_detections(BoxTable(*(column[:0] for column in nothing)))
    got = tta.fuse_looks([nothing, nothing], "wbf@0.5", 5)
    assert got.boxes.shape == (4, 5, 4) and not got.mask.any()


def submission(path, scores, ids=("a", "b"), label=3):
    lines = [f"{name},{label} {s} 10 10 50 50 14 {1 - s} 0 0 1 1" for name, s in
             zip(ids, scores, strict=True)]  # fmt: skip
    path.write_text("\n".join(["image_id,PredictionString", *lines]) + "\n")
    return path


def boxes_of(path):
    table = pd.read_csv(path).set_index("image_id").PredictionString
    return {name: np.array(s.split(), float).reshape(-1, 6) for name, s in table.items()}


def test_submissions_by_weight(tmp_path):
    one = submission(tmp_path / "1.csv", (0.8, 0.4))
    two = submission(tmp_path / "2.csv", (0.1, 0.2), ids=("b", "a"))  # in another order
    done = command(
        "--mode=ensemble", f"--submissions={one},{two}", "--weights=3,1",
        f"--output={tmp_path}/all.csv",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert "2 submissions fused: 4 boxes in 2 images" in done.stdout
    got = boxes_of(tmp_path / "all.csv")
    assert list(got) == ["a", "b"]
    np.testing.assert_allclose(got["a"], [[3, 0.65, 10, 10, 50, 50], [14, 0.35, 0, 0, 1, 1]])
    np.testing.assert_allclose(got["b"][:, 1], [0.325, 0.675])


def test_coco_results(tmp_path):
    """Images by number; one where a file has found nothing is in the other alone."""
    row = {"image_id": 7, "category_id": 2, "bbox": [1, 2, 30, 40], "score": 0.5}
    (tmp_path / "1.json").write_text(json.dumps([row, {**row, "image_id": 9}]))
    (tmp_path / "2.json").write_text(json.dumps([{**row, "score": 0.9}]))
    done = command(
        "--mode=ensemble", f"--submissions={tmp_path}/1.json,{tmp_path}/2.json",
        f"--output={tmp_path}/all.json",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    got = json.loads((tmp_path / "all.json").read_text())
    assert got == [{**row, "score": 0.7}, {**row, "image_id": 9, "score": 0.25}]


@pytest.mark.slow
def test_workdirs_stand_for_what_they_have_predicted(trained, tmp_path):
    workdir, _ = trained
    for output in ("all.csv", "all.json"):
        done = command(
            "--mode=ensemble", f"--submissions={workdir},{workdir}", f"--output={tmp_path}/{output}"
        )
        assert done.code == 0, done.stderr
    same, fused = boxes_of(workdir / "submission.csv"), boxes_of(tmp_path / "all.csv")
    assert list(same) == list(fused)
    for name, boxes in same.items():
        normal = fused[name][fused[name][:, 0] == 14]
        np.testing.assert_allclose(normal, boxes[boxes[:, 0] == 14], rtol=1e-6)


def test_mistakes(trained, tmp_path):
    one, two = (
        submission(tmp_path / "1.csv", (0.8, 0.4)),
        submission(tmp_path / "2.csv", (0.1, 0.2)),
    )
    other = submission(tmp_path / "other.csv", (0.1, 0.2), ids=("a", "c"))
    strange = submission(tmp_path / "strange.csv", (0.1, 0.2), label=99)
    broken = tmp_path / "broken.csv"
    broken.write_text("image_id,PredictionString\nb,\na,3 0.5 1 2\n")
    both, output = f"--submissions={one},{two}", f"--output={tmp_path}/all.csv"
    for arguments, named in (
        ([both], "--output: needs a path"),
        ([output], "--submissions: needs"),
        ([both, "--output=all.txt"], "--output: all.txt ends neither"),
        ([both, f"--output={tmp_path}/all.json"], "--submissions: needs workdirs, or .json"),
        ([both, output, "--weights=1"], "--weights: needs 2 numbers above 0"),
        ([both, output, "--weights=1,0"], "--weights: needs 2 numbers above 0"),
        ([both, output, "--weights=1,x"], "--weights: needs 2 numbers above 0"),
        ([both, output, "--iou=2"], "--iou"),
        ([f"--submissions={one},{other}", output], "b is in one of the two alone, and 1 more"),
        ([f"--submissions={one},{broken}", output], "broken.csv line 3"),
        ([f"--submissions={trained[0]},{strange}", output], "has the class 99"),
        ([f"--submissions={one},{tmp_path}/none.csv", output], "none.csv"),
        ([both, output, "--workdir=w"], "--workdir: --mode=ensemble does not use it"),
    ):
        done = command("--mode=ensemble", *arguments)
        assert done.code == 2 and named in done.stderr, (arguments, done.stderr)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert not (tmp_path / "all.csv").exists()


def test_runs_of_other_classes_are_not_mixed(trained, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    record = json.loads((trained[0] / "config.json").read_text())
    record["run"]["class_names"][0] = "Something else"
    (other / "config.json").write_text(json.dumps(record))
    (other / "submission.csv").write_bytes((trained[0] / "submission.csv").read_bytes())
    done = command(
        "--mode=ensemble", f"--submissions={trained[0]},{other}", f"--output={tmp_path}/all.csv"
    )
    assert done.code == 2 and "have other classes" in done.stderr
