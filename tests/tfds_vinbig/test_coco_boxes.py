"""Boxes of COCO's entries that are not what they look like."""

import copy

import pytest
from pycocotools import mask as masks

from jaxdet import InputError
from tests.tfds_vinbig import test_coco
from tests.tfds_vinbig.test_coco import INSTANCES, changed, message, write
from tfds_vinbig import coco
from tfds_vinbig.records import Allowed

folder = test_coco.folder  # the pictures of INSTANCES, and x.json beside


def test_a_crowd_that_cannot_be_read_is_said(tmp_path):
    data = copy.deepcopy(INSTANCES)
    for fields in (
        {"bbox": [1, 2, "x", 4]},
        {"segmentation": {"size": [40, 20], "counts": "PPP"}},
        {},
        {"bbox": [1, 2, 3, 4], "category_id": 99},
        {"bbox": [1, 2, 3, 4]},
    ):
        data["annotations"].append({"image_id": 7, "category_id": 2, "iscrowd": 1, **fields})
    read = coco.read_annotations(write(tmp_path / "x.json", data))
    assert [crowd[2] for crowd in read.crowds] == [(1, 2, 4, 6)]
    said = [note for note in read.notes if "count for nothing" in note]
    assert said == [
        f"{tmp_path}/x.json: 4 crowds say neither a class nor a region that can be read, and count "
        "for nothing, annotations[3] first"
    ]


def mask_of(height, width):
    """Rows 2 and 3 of column 1 of that image."""
    return {"size": [height, width], "counts": [height + 2, 2, height * width - height - 4]}


@pytest.mark.parametrize("packed", [True, False])
def test_run_lengths_of_another_size_than_the_image_are_refused(tmp_path, packed):
    def data(height, width):
        mask = mask_of(height, width)
        if packed:
            mask = masks.frPyObjects(mask, height, width)
            mask["counts"] = mask["counts"].decode()
        return changed("annotations[0]", bbox=None, segmentation=mask)

    read = coco.read_annotations(write(tmp_path / "x.json", data(40, 20)))
    assert read.boxes[0].tolist() == [1, 2, 2, 4]
    path = write(tmp_path / "x.json", data(20, 10))
    assert "size [20, 10] is not that of its image, [40, 20]" in message(
        coco.read_annotations, path
    )


def test_run_lengths_of_more_than_32_bits_are_refused(tmp_path):
    side = 1_000_000
    mask = {"size": [side, side], "counts": [side * side - 5, 5]}
    path = write(tmp_path / "x.json", changed("annotations[0]", bbox=None, segmentation=mask))
    assert "size [1000000, 1000000] is not" in message(coco.read_annotations, path)


def test_run_lengths_say_the_size_of_an_image_that_does_not(tmp_path, folder):
    """Its picture is of half that size."""
    data = changed("annotations[0]", bbox=None, segmentation=mask_of(80, 40))
    for field in ("height", "width"):
        del data["images"][1][field]
    found = coco.read_instances(write(tmp_path / "x.json", data), folder)
    record = next(record for record in found.train if record.image_id == "sub__a")
    assert (record.height, record.width) == (80, 40)
    data["annotations"][2].update(bbox=None, segmentation=mask_of(40, 20))
    said = message(coco.read_instances, write(tmp_path / "x.json", data), folder)
    assert "annotations[2]: segmentation's size [40, 20] is not that of its image, [80, 40]" in said


CORNERS = [(12, [20, 10, 80, 50]), (12, [50, 30, 90, 60]), (7, [5, 20, 20, 40])]


def boxes(pairs):
    data = copy.deepcopy(INSTANCES)
    data["annotations"] = [
        {"image_id": image, "category_id": 2, "bbox": box} for image, box in pairs
    ]
    return data


def test_corners_for_a_width_and_a_height_are_named(tmp_path, folder):
    path = write(tmp_path / "x.json", boxes(CORNERS))
    with pytest.raises(InputError, match="3 problems") as caught:
        coco.read_instances(path, folder)
    said = str(caught.value)
    assert said.count("if they are that, write x, y, width, height") == 3
    assert "--boxes=cut" not in said
    # One that is none as corners: then they are not that.
    path = write(tmp_path / "x.json", boxes([*CORNERS, (30, [50, 30, 10, 10])]))
    with pytest.raises(InputError, match="3 problems") as caught:
        coco.read_instances(path, folder)
    said = str(caught.value)
    assert said.count("--boxes=cut cuts such boxes") == 3 and "write x, y" not in said


@pytest.mark.parametrize("cut_boxes", [True, False])
def test_shares_among_pixels_are_named(tmp_path, folder, cut_boxes):
    pixels = [(12, [20, 10, 30, 20]), (7, [0, 0, 1, 1]), (30, [0.5, 0.5, 2, 30])]
    path = write(tmp_path / "x.json", boxes(pixels))
    assert len(coco.read_instances(path, folder).train) == 3
    path = write(tmp_path / "x.json", boxes([*pixels, (7, [0.25, 0.5, 0.5, 0.25])]))
    said = message(coco.read_instances, path, folder, None, Allowed(cut_boxes=cut_boxes))
    assert "1 of 4 boxes are within the first pixel of their image" in said
    assert "that of image sub__a from 0.25,0.5 to 0.75,0.75 first" in said
