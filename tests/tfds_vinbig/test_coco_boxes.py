"""Boxes of COCO's entries that are not what they look like."""

import copy

import pytest
from pycocotools import mask as masks

from jaxdet import InputError
from tests.tfds_vinbig import test_coco
from tests.tfds_vinbig.test_coco import INSTANCES, changed, message, write
from tfds_vinbig import coco, results
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


def unsized(*masks):
    """INSTANCES without the size of image 7, whose annotations have these masks; the first is a
    crowd's."""
    data = changed("images[1]", height=None, width=None)
    data["annotations"] = [
        {"image_id": 7, "category_id": 2, "segmentation": mask_of(*size), "iscrowd": int(i == 0)}
        for i, size in enumerate(masks)
    ]
    return data


def test_without_a_size_run_lengths_are_of_the_picture(tmp_path, folder):
    """What a crowd says, which comes first, does not matter where the picture can be looked at."""
    path = write(tmp_path / "x.json", unsized((80, 40), (40, 20)))
    found = coco.read_instances(path, folder)
    record = next(record for record in found.train if record.image_id == "sub__a")
    assert (record.height, record.width) == (40, 20) and record.rows[0][3:] == (1, 2, 2, 4)
    path = write(tmp_path / "x.json", unsized((40, 20), (80, 40)))
    assert message(coco.read_instances, path, folder).startswith(
        f"{path}: annotations[1]: segmentation's size [80, 40] is not that of its picture, [40, 20]"
    )


def test_without_a_size_nor_a_picture_run_lengths_agree(tmp_path):
    path = write(tmp_path / "x.json", unsized((80, 40), (80, 40)))
    read = coco.read_annotations(path)
    assert read.boxes[0].tolist() == [1, 2, 2, 4] and len(read.crowds) == 1
    path = write(tmp_path / "x.json", unsized((80, 40), (40, 20)))
    assert message(coco.read_annotations, path).startswith(
        f"{path}: annotations[1]: segmentation's size [40, 20] is not that of annotations[0], "
        "[80, 40] ([height, width])"
    )


def detections(path, *sizes):
    rows = [
        {"image_id": 7, "category_id": 2, "segmentation": mask_of(*size), "score": 0.5}
        for size in sizes
    ]
    return write(path, rows)


def test_detections_in_run_lengths_of_another_size_are_refused(tmp_path):
    path = write(tmp_path / "x.json", INSTANCES)
    truth = coco.read_annotations(path)
    _, table = coco.read_detections(detections(tmp_path / "d.json", (40, 20)), truth)
    assert table.boxes[0].tolist() == [1, 2, 2, 4]
    found = detections(tmp_path / "d.json", (40, 20), (20, 10))
    with pytest.raises(InputError) as raised:
        results.read_scored(path, found, None)
    assert str(raised.value) == (
        f"{found}: [1]: segmentation's size [20, 10] is not that of its image, [40, 20] "
        "([height, width])"
    )


@pytest.mark.parametrize("known", [True, False])
def test_an_image_without_a_size_has_that_of_the_first_run_lengths(tmp_path, known):
    data = unsized((80, 40)) if known else changed("images[1]", height=None, width=None)
    path = write(tmp_path / "x.json", data)
    one, two = (detections(tmp_path / f"{i}.json", (80 // i, 40 // i)) for i in (1, 2))
    results.read_scored(path, one, one)
    whose = "annotations[0]" if known else f"{one}: [0]"
    with pytest.raises(InputError, match="size .40, 20. is not that of") as raised:
        results.read_scored(path, one, two)
    assert f"{two}: [0]: " in str(raised.value) and f"of {whose}, [80, 40]" in str(raised.value)


def test_members_of_an_ensemble_have_run_lengths_of_one_size(tmp_path):
    one, two = (detections(tmp_path / f"{i}.json", (80 // i, 40 // i)) for i in (1, 2))
    assert len(results.read_all([one, one]).tables) == 2
    assert f"{two}: [0]: segmentation's size [40, 20] is not that of {one}: [0]" in message(
        results.read_all, [one, two]
    )


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
