"""Detections in a crowd region are neither hits nor false alarms, as pycocotools has it."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxdet.evaluation import scores
from jaxdet.ops import metrics
from tests.tfds_vinbig.test_coco import write
from tfds_vinbig import coco

CATEGORIES = [{"id": 3, "name": "Mass"}, {"id": 8, "name": "Effusion"}]
THRESHOLDS = (0.4, 0.5, 0.75)
COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)


def case(tmp_path, truth, found):
    annotations = coco.read_annotations(write(tmp_path / "truth.json", truth))
    ids, table = coco.read_detections(write(tmp_path / "found.json", found), annotations)
    rows = annotations.image, annotations.labels, annotations.readers, annotations.boxes
    names = annotations.class_names
    return scores.of_files(
        annotations.ids, *rows, names, ids, table, "raw", annotations.crowds
    )  # fmt: skip


def pycocotools(tmp_path):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "truth.json"))
        judge = COCOeval(truth, truth.loadRes(str(tmp_path / "found.json")), "bbox")
        judge.params.iouThrs = np.array([*THRESHOLDS, *COCO_THRESHOLDS])
        judge.params.recThrs = (np.arange(20_000) + 0.5) / 20_000
        judge.evaluate()
        judge.accumulate()
    return judge.eval["precision"][:, :, :, 0, 2].mean(axis=1)  # IoU, category by id


@pytest.mark.parametrize("seed", range(6))
def test_scores_beside_crowds_are_those_of_pycocotools(tmp_path, seed):
    """One box of a class in an image, and crowds anywhere, over it too."""
    rng = np.random.default_rng(seed)
    images = [{"id": i, "file_name": f"{i}.png", "height": 400, "width": 400} for i in range(12)]
    annotations, found = [], []

    def annotate(image, category, box, crowd):
        annotations.append(
            {"id": len(annotations) + 1, "image_id": image, "category_id": category,
             "bbox": [float(x) for x in box], "area": float(box[2] * box[3]), "iscrowd": crowd}
        )  # fmt: skip

    def detect(image, category, box):
        box = [*box[:2], *np.maximum(box[2:], 3)]
        found.append(
            {"image_id": image, "category_id": category, "bbox": [float(x) for x in box],
             "score": float(rng.random())}
        )  # fmt: skip

    for image in range(12):
        for category in (3, 8):
            box = np.append(rng.uniform(0, 250, 2), rng.uniform(30, 140, 2))
            if rng.random() < 0.8:
                annotate(image, category, box, 0)
            for _ in range(rng.integers(0, 3)):
                detect(image, category, box + rng.normal(0, 9, 4))
            for _ in range(rng.integers(0, 3)):
                region = np.append(rng.uniform(0, 250, 2), rng.uniform(60, 150, 2))
                annotate(image, category, region, 1)
                for _ in range(rng.integers(0, 4)):
                    inner = np.append(region[:2] + rng.uniform(-30, 100, 2), rng.uniform(9, 70, 2))
                    detect(image, int(rng.choice([3, 8])), inner)
    truth = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    mine = case(tmp_path, truth, found)
    expected = pycocotools(tmp_path)
    more = {"more_iou_thresholds": THRESHOLDS[1:]}
    result = mine.summarize(more)
    assert result["mAP@0.5:0.95"] == pytest.approx(expected[3:].mean(), abs=1e-3)
    ap = [result["AP"][entry["name"]] for entry in CATEGORIES]
    np.testing.assert_allclose(ap, expected[0], atol=1e-3)
    without = mine._replace(crowds=None).summarize(more)
    assert [without["AP"][entry["name"]] for entry in CATEGORIES] != ap
    for t, name in ((1, "mAP@0.5"), (2, "mAP@0.75")):
        normal = metrics.average_precision(mine.detections, mine.truth, THRESHOLDS[t : t + 1], 3)[
            0, 2
        ]
        of_all = [*expected[t], *([] if np.isnan(normal) else [normal])]
        assert result[name] == pytest.approx(np.mean(of_all), abs=1e-3)
    # What the report shows.
    judged = mine._replace(detections=mine.judged(mine.detections), crowds=None).summarize()
    assert judged["AP"] == pytest.approx(result["AP"]) and judged["FROC"] == result["FROC"]


def test_a_perfect_file_with_more_in_a_crowd_scores_1(tmp_path):
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "height": 100, "width": 100}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 30, 30], "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [50, 50, 45, 45], "iscrowd": "1"},
        ],
        "categories": CATEGORIES,
    }
    found = [
        {"image_id": 1, "category_id": 3, "bbox": box, "score": score}
        for box, score in (([5, 5, 30, 30], 0.5), ([60, 60, 20, 20], 0.9), ([60, 60, 9, 9], 0.8))
    ]
    assert case(tmp_path, truth, found).summarize()["AP"]["Mass"] == 1
    found[1]["category_id"] = 8  # a crowd is of one class
    assert case(tmp_path, truth, found).summarize()["AP"]["Mass"] == 1
    found.append({**found[0], "bbox": [40, 5, 9, 9], "score": 0.7})
    assert case(tmp_path, truth, found).summarize()["AP"]["Mass"] == 0.5
