"""Results whose boxes or scores are in other units than those they are laid beside."""

import numpy as np
import pytest

from jaxdet.inference import ensemble
from tests.tfds_vinbig.test_coco import INSTANCES, message, write
from tfds_vinbig import coco, coco_fused, results

SIZE = {7: (40, 20), 12: (60, 90), 30: (60, 90)}  # (height, width)
# (image_id, corners)
BOXES = [(12, [20, 10, 80, 50]), (12, [50, 30, 90, 60]), (7, [5, 20, 20, 40])]


def rows(boxes, scores=(0.5, 0.25, 0.75)):
    return [
        {"image_id": image, "category_id": 2, "bbox": box, "score": score}
        for (image, box), score in zip(boxes, scores, strict=False)
    ]


def shares(boxes):
    found = []
    for image, (x1, y1, x2, y2) in boxes:
        height, width = SIZE[image]
        found.append((image, [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]))
    return found


def as_coco(boxes):
    return [(image, [x1, y1, x2 - x1, y2 - y1]) for image, (x1, y1, x2, y2) in boxes]


def test_results_written_as_corners_are_named(tmp_path):
    truth, found = write(tmp_path / "x.json", INSTANCES), tmp_path / "d.json"
    results.read_scored(truth, write(found, rows(as_coco(BOXES))), None)
    said = message(results.read_scored, truth, write(found, rows(BOXES)), None)
    assert said.startswith(f"{found}: boxes leave their images, and all of the file fit as x_min")
    # One that is none as corners; and boxes that are within their images, whatever they are.
    odd = [*BOXES[:2], (30, [50, 30, 50, 30])]
    results.read_scored(truth, write(found, rows(odd)), None)
    results.read_scored(truth, write(found, rows([(12, [1, 2, 30, 40])] * 3)), None)


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_shares_beside_pixels_are_named(tmp_path, suffix):
    data = {**INSTANCES, "annotations": rows(as_coco(BOXES))}
    of_shares = {**INSTANCES, "annotations": rows(shares(BOXES))}
    truth, unit = write(tmp_path / "x.json", data), write(tmp_path / "unit.json", of_shares)
    if suffix == "json":
        pixels = write(tmp_path / "p.json", rows(as_coco(BOXES)))
        found = write(tmp_path / "s.json", rows(shares(BOXES)))
    else:
        head = "image_id,PredictionString\n"
        pixels = write(tmp_path / "p.csv", f"{head}b,2 0.5 20 10 80 50 10 0.5 0 0 1 1\n")
        found = write(tmp_path / "s.csv", f"{head}b,2 0.5 0.2 0.1 0.8 0.5 10 0.5 0 0 1 1\n")
    results.read_scored(truth, pixels, pixels)
    results.read_scored(unit, found, None)  # both in shares
    for one, other, named in ((truth, found, found), (unit, pixels, unit)):
        said = message(results.read_scored, one, other, None)
        assert said.startswith(f"{named}: all boxes are within 2 pixels of the corner")
    said = message(results.read_scored, truth, pixels, found)
    assert said.startswith(f"{found}: all boxes")


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_percent_beside_shares_are_not_fused(tmp_path, suffix):
    paths = []
    for name, scale in (("a", 1), ("none", 1), ("b", 100)):
        scores = scale * np.array([0.5, 0.25, 0.75])
        strings = " ".join(f"2 {score} 1 2 3 4" for score in scores)
        text = f"image_id,PredictionString\n7,{strings if name != 'none' else ''}\n"
        found = [] if name == "none" else rows(as_coco(BOXES[2:] * 3), scores.tolist())
        paths.append(write(tmp_path / f"{name}.{suffix}", found if suffix == "json" else text))
    results.read_all(paths[:2])
    results.read_all([paths[2], paths[2]])
    said = message(results.read_all, paths)
    assert said.startswith(f"{paths[2]}: scores up to 75, but those of {paths[0]} are 0.75 at most")


def test_a_file_without_annotations_and_classes_that_differ_in_case_are_said(tmp_path):
    path = write(tmp_path / "x.json", {**INSTANCES, "annotations": []})
    assert coco.read_annotations(path).notes == [
        f"{path}: has no annotation, so that all 3 images are normal"
    ]
    classes = [*INSTANCES["categories"], {"id": 6, "name": "heart"}]
    path = write(tmp_path / "x.json", {**INSTANCES, "categories": classes})
    assert coco.read_annotations(path).notes == [
        f"{path}: Heart, heart: differ in case alone, and are taken for other classes"
    ]


def test_suffixes_may_be_in_upper_case(tmp_path):
    """As old programs and Windows write them: X.JSON is no table."""
    truth = write(tmp_path / "X.JSON", INSTANCES)
    found = write(tmp_path / "D.Json", rows(as_coco(BOXES)))
    usual = write(tmp_path / "d.json", rows(as_coco(BOXES)))
    for mine, theirs in zip(
        results.read_scored(truth, found, None)[2],
        results.read_scored(write(tmp_path / "x.json", INSTANCES), usual, None)[2],
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert len(results.read_all([found, usual]).tables) == 2
    assert list(coco_fused.read(truth)[1]) == ["c", "sub__a", "b"]
    output = tmp_path / "O.JSON"
    assert ensemble.find_files([found, usual], output) == [found, usual]
