"""Detections in COCO's results form: out, in, and what is said of a broken file."""

import copy
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxdet.ops.boxes import BoxTable
from tests.tfds_vinbig.test_coco import INSTANCES, message, write
from tfds_vinbig import coco, submission
from tfds_vinbig.kaggle import read_annotations as read_kaggle

DETECTIONS = BoxTable(
    image=np.array([1, 1, 2, 0, 1, 2]),
    labels=np.array([2, 0, 0, 3, 3, 3]),
    boxes=np.array([[1, 2, 4, 6.5], [0, 0, 5, 5], [0, 1, 9, 8], *[[0, 0, 1, 1]] * 3]),
    scores=np.array([0.5, 0.75, 0.25, 1.0, 0.25, 0.75]),
)


def test_detections_are_written_in_cocos_form_and_read_back(tmp_path):
    annotations = coco.read_annotations(write(tmp_path / "x.json", INSTANCES))
    image_ids = dict(zip(annotations.ids, annotations.image_ids, strict=True))
    text = coco.to_json(list(annotations.ids), DETECTIONS, annotations.class_ids, image_ids)
    assert json.loads(text) == [
        {"image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4.5], "score": 0.5},
        {"image_id": 7, "category_id": 2, "bbox": [0, 0, 5, 5], "score": 0.75},
        {"image_id": 12, "category_id": 2, "bbox": [0, 1, 9, 7], "score": 0.25},
    ]  # "No finding" is no box to COCO; it comes back as 1 - the best score
    ids, back = coco.read_detections(write(tmp_path / "d.json", text), annotations)
    assert ids == ["c", "sub__a", "b"]
    for mine, theirs in zip(DETECTIONS, back, strict=True):
        np.testing.assert_allclose(theirs, mine)


def test_without_cocos_ids_images_go_by_name(tmp_path):
    text = coco.to_json(
        ["x", "y"], DETECTIONS._replace(image=np.array([1, 1, 0, 0, 1, 0])), (2, 5, 9, 10), {"x": 3}
    )
    assert [row["image_id"] for row in json.loads(text)] == ["y", "y", 3]
    assert json.loads(coco.to_json([], BoxTable(*(x[:0] for x in DETECTIONS)), (1, 2))) == []


@pytest.mark.parametrize(
    "image_id", [7, 7.0, "7", "a", "a.jpg", "sub/a.jpg", "sub\\a.jpg", "sub__a", "a.png"]
)
def test_an_image_is_found_by_id_name_or_file(tmp_path, image_id):
    annotations = coco.read_annotations(write(tmp_path / "x.json", INSTANCES))
    row = {"image_id": image_id, "category_id": 2, "bbox": [1, 2, 0, 4], "score": 2}
    ids, table = coco.read_detections(write(tmp_path / "d.json", [row]), annotations)
    assert table.image.tolist() == [1, 0, 1, 2] and table.labels.tolist() == [0, 3, 3, 3]
    assert table.scores.tolist() == [2, 1, -1, 1] and ids[1] == "sub__a"


def test_no_finding_may_be_a_detection(tmp_path):
    annotations = coco.read_annotations(write(tmp_path / "x.json", INSTANCES))
    row = {"image_id": 30, "category_id": 10, "score": 0.125}
    _, table = coco.read_detections(write(tmp_path / "d.json", [row]), annotations)
    assert table.image.tolist() == [0, 1, 2] and table.scores.tolist() == [0.125, 1, 1]
    assert table.boxes.tolist() == [list(submission.NO_FINDING_BOX)] * 3


def test_detections_of_images_that_a_csv_annotates(tmp_path):
    (tmp_path / "t.csv").write_text(
        "image_id,class_id,x_min,y_min,x_max,y_max\nab,3,1,2,3,4\n12,14,,,,\n"
    )
    annotations = read_kaggle(tmp_path / "t.csv")
    rows = [{"image_id": i, "category_id": 3, "bbox": [1, 2, 2, 2], "score": 1} for i in ("ab", 12)]
    _, table = coco.read_detections(write(tmp_path / "d.json", rows), annotations)
    assert table.image.tolist() == [0, 1, 0, 1] and table.labels.tolist() == [3, 3, 14, 14]


ROW = {"image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    "data, said",
    [
        ([{**ROW, "image_id": 8}], "[0]: image_id 8 is not among the annotated images"),
        ([ROW, {**ROW, "image_id": "z.png"}], "[1]: image_id 'z.png' is not among"),
        ([{**ROW, "image_id": ["a"]}], "[0]: image_id ['a'] is not among"),
        ([{**ROW, "image_id": True}], "[0]: image_id True is not among"),
        ([{**ROW, "category_id": 3}], "[0]: category_id 3 is unknown; known are 2, 5, 9, 10"),
        ([{**ROW, "category_id": "09"}], "[0]: category_id '09' is unknown"),
        ([{**ROW, "score": None}], "[0]: score None is not a finite number"),
        ([{**ROW, "score": float("nan")}], "[0]: score nan is not a finite number"),
        ([{**ROW, "score": float("-inf")}], "[0]: score -inf is not a finite number"),
        ([{**ROW, "score": "0.5"}], "[0]: score '0.5' is not a finite number"),
        ([{**ROW, "bbox": [1, 2, 3]}], "[0]: bbox [1, 2, 3] is not four finite numbers"),
        (
            [{**ROW, "bbox": [1, 2, -3, 4]}],
            "[0]: bbox [1, 2, -3, 4] needs a width and a height of 0",
        ),
        ([{**ROW, "bbox": [1, 2, 3, 1e200]}], "is larger than any image"),
        ([{"image_id": 7, "category_id": 9, "score": 1}], "[0]: bbox None is not four"),
        ([3], "[0]: 3 is not an object in braces"),
        ({"annotations": [ROW]}, "not a list of detections"),
        ("null", "not a list of detections"),
        ("image_id,PredictionString\na,\n", "not a JSON file"),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_a_fault_of_a_detection_is_one_line(tmp_path, data, said):
    annotations = coco.read_annotations(write(tmp_path / "x.json", INSTANCES))
    path = write(tmp_path / "d.json", data)
    text = message(coco.read_detections, path, annotations)
    assert text.startswith(str(path)) and said in text


def test_pycocotools_reads_what_is_written(tmp_path, capsys):
    """The annotations as ours are, and perfect detections with AP 1."""
    data = copy.deepcopy(INSTANCES)
    for i, entry in enumerate(data["annotations"]):
        width, height = entry["bbox"][2:]
        entry.update(
            id=i + 1, category_id=int(entry["category_id"]), area=width * height, iscrowd=0
        )
    annotations = coco.read_annotations(write(tmp_path / "x.json", data))
    found = annotations.labels < 3
    table = BoxTable(
        annotations.image[found],
        annotations.labels[found],
        annotations.boxes[found],
        np.linspace(0.5, 0.9, found.sum()),
    )
    image_ids = dict(zip(annotations.ids, annotations.image_ids, strict=True))
    text = coco.to_json(list(annotations.ids), table, annotations.class_ids, image_ids)
    truth = COCO(str(tmp_path / "x.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(write(tmp_path / "d.json", text))), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
