"""COCO's JSON as other programs write it: read with a note, or refused with the reason."""

import copy
import json
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as masks

from jaxdet import InputError
from tests.tfds_vinbig import test_coco
from tests.tfds_vinbig.test_coco import INSTANCES, changed, message, write
from tfds_vinbig import coco
from tfds_vinbig.records import Allowed

folder = test_coco.folder  # the pictures of INSTANCES, and x.json beside


def annotations(tmp_path, data):
    return coco.read_annotations(write(tmp_path / "x.json", data))


# Boxes


@pytest.mark.parametrize("box", [[0, 0, 90.5, 60], [-1, 0, 90, 60], [0, 0, 90.002, 61]])
def test_up_to_a_pixel_outside_is_cut_and_counted(tmp_path, folder, box):
    write(tmp_path / "x.json", changed("annotations[1]", bbox=box))
    found = coco.read_instances(tmp_path / "x.json", folder)
    x_min, y_min, x_max, y_max = found.train[2].rows[0][3:]
    assert x_min == y_min == 0 and y_max == 60 and x_max == min(90, box[0] + box[2])
    (note,) = found.notes
    assert note == (
        f"{tmp_path}/x.json: 1 boxes reach up to a pixel out of their image and are cut, "
        "annotations[1] (image b) first"
    )


def test_more_is_cut_where_that_is_asked_for(tmp_path, folder):
    data = changed("annotations[1]", bbox=[-20, 0, 200, 60])
    data["annotations"].append({"image_id": 12, "category_id": 2, "bbox": [95, 10, 20, 20]})
    write(tmp_path / "x.json", data)
    with pytest.raises(InputError, match="2 problems") as caught:
        coco.read_instances(tmp_path / "x.json", folder)
    assert str(caught.value).count("--boxes=cut") == 2
    found = coco.read_instances(tmp_path / "x.json", folder, allowed=Allowed(cut_boxes=True))
    assert [row[3:] for row in found.train[2].rows] == [(0, 0, 90, 60)]
    cut, left_out = found.notes
    assert "1 boxes reach more than a pixel out" in cut and "annotations[1] (image b)" in cut
    assert "1 boxes have no area in their image" in left_out and "annotations[3]" in left_out


@pytest.mark.parametrize("box", [[1, 2, 3, 0], [1, 2, 0, 0], [1, 2, 1e-20, 4]])
def test_a_box_without_area_is_left_out(tmp_path, folder, box):
    """COCO's train2017 has two; their images are not normal."""
    path = write(tmp_path / "x.json", changed("annotations[1]", bbox=box))
    found = coco.read_instances(path, folder)
    assert [len(record.rows) for record in found.train] == [1, 2, 0]
    read = coco.read_annotations(path)
    assert 2 not in read.image and len(read.ids) == 3
    for notes in (found.notes, read.notes):
        assert "1 boxes have no area" in notes[0] and "annotations[1]" in notes[0]


def test_boxes_that_are_shares_of_the_image_are_refused(tmp_path, folder):
    data = copy.deepcopy(INSTANCES)
    for entry in data["annotations"]:
        entry["bbox"] = [0.1, 0.2, 0.5, 0.7]
    write(tmp_path / "x.json", data)
    said = message(coco.read_instances, tmp_path / "x.json", folder)
    assert "all 3 boxes are below 2 pixels" in said and "shares of the image (from 0 to 1)" in said


def test_the_box_of_polygons(tmp_path):
    polygons = [[1, 2, 4, 2, 4, 6.5], [2, 3, 3, 3, 3, 4]]
    data = changed("annotations[0]", bbox=None, segmentation=polygons)
    found = annotations(tmp_path, data)
    np.testing.assert_array_equal(found.boxes, annotations(tmp_path, INSTANCES).boxes)
    assert "1 annotations have no bbox" in found.notes[0] and "annotations[0]" in found.notes[0]
    data = changed("annotations[0]", segmentation=[[0, 0, 9, 0, 9, 9]])  # its bbox stays
    np.testing.assert_array_equal(annotations(tmp_path, data).boxes[0], [1, 2, 4, 6.5])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_box_of_run_lengths(tmp_path_factory, data):
    """Both as COCO packs them and as numbers: the box around the pixels of the mask."""
    height, width = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 20)))
    bits = data.draw(st.binary(min_size=height * width, max_size=height * width))
    mask = (np.frombuffer(bits, np.uint8).reshape(height, width) > 230).astype(np.uint8)
    mask[data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = 1
    packed = masks.encode(np.asfortranarray(mask))
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    runs = np.diff([0, *edges, len(flat)]).tolist()
    ys, xs = np.nonzero(mask)
    for counts in (packed["counts"].decode(), runs):
        segmentation = {"size": [height, width], "counts": counts}
        entry = changed("annotations[0]", bbox=None, segmentation=segmentation)
        entry["images"][1].update(height=height, width=width)
        found = annotations(tmp_path_factory.getbasetemp(), entry)
        assert found.boxes[0].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize(
    "mask, said",
    [
        ([[1, 2, 3]], "neither polygons nor run lengths"),
        ("xyz", "neither polygons nor run lengths"),
        ([[1, 2, 3, "4"]], "is not of points of an image"),
        ([[1, 2, 3, 1e200]], "is not of points of an image"),
        ({"size": [3], "counts": [1]}, "size [3] is not [height, width]"),
        ({"size": [3, 0], "counts": [1]}, "is not [height, width]"),
        ({"size": [3, 4], "counts": [1, 2]}, "counts do not add up to 3 x 4"),
        ({"size": [3, 4], "counts": [-1, 13]}, "counts do not add up to 3 x 4"),
        ({"size": [3, 4], "counts": None}, "are no run lengths"),
        ({"size": [3, 4], "counts": "a b"}, "are no run lengths"),
        ({"size": [3, 4], "counts": "PPP"}, "are cut short"),
        ({"size": [3, 4], "counts": "0Te0"}, "are of more than 3 x 4"),
    ],
)
def test_a_mask_that_is_none_is_named(tmp_path, mask, said):
    data = changed("annotations[0]", bbox=None, segmentation=mask)
    assert said in message(annotations, tmp_path, data)


def test_without_pycocotools_one_line_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    runs = {"size": [3, 4], "counts": [1, 11]}
    data = changed("annotations[0]", bbox=None, segmentation=runs)
    said = message(annotations, tmp_path, data)
    assert said.endswith("needs pycocotools to be read: pip install -e '.[coco]'")


@pytest.mark.parametrize(
    "value, crowd",
    [("0", False), (0, False), (False, False), (None, False), ("", False), ("false", False),
     ("1", True), (1, True), (True, True), (1.0, True), ("True", True)],
)  # fmt: skip
def test_iscrowd_however_it_is_written(tmp_path, value, crowd):
    data = copy.deepcopy(INSTANCES)
    data["annotations"][0]["iscrowd"] = value
    found = annotations(tmp_path, data)
    assert len(found.labels) == 4 - crowd and len(found.crowds) == crowd
    if crowd:
        assert found.crowds[0] == (1, 2, (1, 2, 4, 6.5))


# Categories


@pytest.mark.parametrize(
    "root",
    [
        {"id": 0, "name": "films", "supercategory": "none"},
        {"id": 0, "name": "Rib", "supercategory": "none"},  # the name of a class
        {"id": 77, "name": "lung", "supercategory": "none"},  # which the others are below
        {"id": 77, "name": "films", "supercategory": "films"},
        {"id": 77, "name": "none"},
        {"id": 77, "name": "Heart"},
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_the_heading_of_the_categories_is_no_class(tmp_path, root, first):
    data = copy.deepcopy(INSTANCES)
    data["categories"].insert(0 if first else 3, root)
    found = annotations(tmp_path, data)
    assert found.class_names == ("Heart", "Rib", "Nodule") and found.class_ids == (2, 5, 9, 10)
    (note,) = found.notes
    assert f"category {root['id']} ({root['name']}) has no annotation" in note
    # What a model says of it is passed over.
    rows = [{"image_id": 7, "category_id": root["id"], "bbox": [1, 2, 3, 4], "score": 0.5}]
    _, table = coco.read_detections(write(tmp_path / "d.json", rows), found)
    assert (table.labels == 3).all() and "not counted" in found.notes[-1]


def test_a_class_without_annotations_is_one(tmp_path):
    data = copy.deepcopy(INSTANCES)
    data["categories"].append({"id": 3, "name": "Edema", "supercategory": "lung"})
    data["categories"].append({"id": 4, "name": "Mass", "supercategory": "none"})
    assert annotations(tmp_path, data).class_names == ("Heart", "Edema", "Mass", "Rib", "Nodule")


def test_two_ids_of_one_name_with_annotations_are_refused(tmp_path):
    data = copy.deepcopy(INSTANCES)
    data["categories"].append({"id": 0, "name": "Rib", "supercategory": "Rib"})
    data["annotations"].append({"image_id": 7, "category_id": 0, "bbox": [1, 2, 3, 4]})
    assert "name 'Rib' is there twice, with id 5 too" in message(annotations, tmp_path, data)


# Images


def test_pictures_of_patients_are_called_by_their_paths(tmp_path, folder):
    """The same name in two folders, as CheXpert and MIMIC-CXR have it."""
    (folder / "p2").mkdir()
    (folder / "sub/a.jpg").rename(folder / "sub/view1.jpg")
    (folder / "b.png").rename(folder / "p2/view1.png")
    data = changed("images[1]", file_name="sub/view1.jpg")
    data["images"][2]["file_name"] = "./p2//view1.png"
    found = coco.read_instances(write(tmp_path / "x.json", data), folder)
    assert [record.image_id for record in found.train] == ["c", "sub__view1", "p2__view1"]
    assert found.notes == []
    # One that is named without its folder is not guessed where there are two.
    read = coco.read_annotations(tmp_path / "x.json")
    row = {"image_id": "view1", "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1}
    said = message(coco.read_detections, write(tmp_path / "d.json", [row]), read)
    assert "'view1' is not among the annotated images" in said


def test_paths_that_would_be_one_id_are_named(tmp_path):
    data = changed("images[1]", file_name="sub/c.png")
    data["images"][2]["file_name"] = "sub__c.png"
    said = message(annotations, tmp_path, data)
    assert "'sub__c.png' is there twice, see 'sub/c.png' (both would be image sub__c)" in said


def test_backslashes_are_separators_where_no_file_has_them(tmp_path, folder):
    path = write(tmp_path / "x.json", changed("images[1]", file_name="sub\\a.jpg"))
    found = coco.read_instances(path, folder)
    assert found.train[1].path == folder / "sub/a.jpg" and found.train[1].image_id == "sub__a"
    Image.new("L", (20, 40), 7).save(folder / "sub\\a.jpg")
    found = coco.read_instances(path, folder)
    assert found.train[1].path == folder / "sub\\a.jpg" and found.train[1].image_id == "sub__a"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_compared_in_one_form_of_unicode(tmp_path, folder, form):
    (folder / "b.png").rename(folder / unicodedata.normalize(form, "phổi.png"))
    for written in ("NFC", "NFD"):
        name = unicodedata.normalize(written, "phổi.png")
        path = write(tmp_path / "x.json", changed("images[2]", file_name=name))
        found = coco.read_instances(path, folder)
        assert found.train[2].image_id == unicodedata.normalize("NFC", "phổi")
        row = {"category_id": 2, "bbox": [1, 2, 3, 4], "score": 1}
        row["image_id"] = unicodedata.normalize(form, "phổi")
        _, table = coco.read_detections(
            write(tmp_path / "d.json", [row]), coco.read_annotations(path)
        )
        assert table.image[0] == 2


def test_sizes_come_from_the_pictures_where_the_file_has_none(tmp_path, folder):
    path = write(tmp_path / "x.json", changed("images[1]", height=None, width=None))
    found = coco.read_instances(path, folder)
    assert [(r.height, r.width) for r in found.train] == [(60, 90), (40, 20), (60, 90)]
    assert coco.read_sizes(path)["sub__a"] is None
    write(path, changed("images[1]", height=None))
    assert "height None and width 20 are no size" in message(coco.read_instances, path, folder)


def test_ids_that_are_text_here_and_numbers_there(tmp_path):
    expected = annotations(tmp_path, INSTANCES)
    as_text = copy.deepcopy(INSTANCES)
    for entry in as_text["annotations"]:
        entry["image_id"] = str(entry["image_id"])
    other_way = copy.deepcopy(INSTANCES)
    for entry in other_way["images"]:
        entry["id"] = f"{entry['id']:04}"
    for data in (as_text, other_way):
        found = annotations(tmp_path, data)
        np.testing.assert_array_equal(found.image, expected.image)
        (note,) = found.notes
        assert "3 image_ids are the images' but for being text or a number" in note
    # Where both are there, as written.
    data = changed("images[0]", id="7")
    found = annotations(tmp_path, data)
    assert found.image.tolist() == [1, 2, 1, 0] and found.notes == []
    data["images"][1]["id"] = "07"  # and where two are alike, neither
    with pytest.raises(InputError, match=r"annotations\[0\]: image_id 7 may be '7' or '07'"):
        annotations(tmp_path, data)


def test_links_are_followed_where_that_is_asked_for(tmp_path, folder):
    (folder / "b.png").rename(tmp_path / "elsewhere.png")
    (folder / "b.png").symlink_to(tmp_path / "elsewhere.png")
    (folder / "sub").rename(tmp_path / "disk")
    (folder / "sub").symlink_to(tmp_path / "disk")
    with pytest.raises(InputError, match="2 problems") as caught:
        coco.read_instances(tmp_path / "x.json", folder)
    assert str(caught.value).count("allow links by --follow_links") == 2
    found = coco.read_instances(tmp_path / "x.json", folder, allowed=Allowed(follow_links=True))
    assert len(found.train) == 3


def test_a_reader_who_contradicts_himself_is_counted(tmp_path):
    data = copy.deepcopy(INSTANCES)
    data["categories"].append({"id": 0, "name": "No finding"})
    for reader in ("R8", "R9"):
        data["annotations"].append({"image_id": 12, "category_id": 0, "rad_id": reader})
    (note,) = annotations(tmp_path, data).notes
    assert "1 times one reader has a box and No finding on one image, R8 on image b first" in note


# Results of others


def results(tmp_path, rows):
    return write(tmp_path / "d.json", rows)


def test_ids_that_are_the_numbers_of_files_are_named(tmp_path):
    """As YOLO writes them: 1, 2, 3 are images too, but other ones."""
    data = copy.deepcopy(INSTANCES)
    names = {30: "film_0002.png", 7: "film_0003.png", 12: "film_0001.png"}
    for i, entry in enumerate(data["images"]):
        entry["file_name"] = names[entry["id"]]
        entry["id"] = i + 1
    old = {30: 1, 7: 2, 12: 3}
    number = {1: 2, 2: 3, 3: 1}  # in the name of the file of each id
    for entry in data["annotations"]:
        entry["image_id"] = old[entry["image_id"]]
    read = annotations(tmp_path, data)
    rows = [
        {"image_id": entry["image_id"], "category_id": 2, "bbox": entry["bbox"], "score": 0.9}
        for entry in data["annotations"]
    ]
    coco.read_detections(results(tmp_path, rows), read)  # by id they are right
    for text in (False, True):
        for row, entry in zip(rows, data["annotations"], strict=True):
            row["image_id"] = number[entry["image_id"]]
            row["image_id"] = str(row["image_id"]) if text else row["image_id"]
        said = message(coco.read_detections, results(tmp_path, rows), read)
        assert "are the numbers in the file_names of the annotations, not their ids" in said
        assert "3 of 3 boxes overlap" in said and "0 in the images with these ids" in said
    # Ids that no image has.
    data["images"][0]["file_name"], data["images"][1]["file_name"] = "139.png", "285.png"
    read = annotations(tmp_path, data)
    rows = [{"image_id": 139, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.9}]
    assert "image_id 139 and the others are the numbers in the file_names" in message(
        coco.read_detections, results(tmp_path, rows), read
    )


def test_classes_go_by_their_names_where_results_have_them(tmp_path):
    """Such as those of a run that was trained on a file with other ids."""
    read = annotations(tmp_path, INSTANCES)
    row = {"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.9}
    _, table = coco.read_detections(results(tmp_path, [row]), read)
    assert table.labels[0] == 0 and read.notes == []
    row["category_name"] = "Nodule"
    _, table = coco.read_detections(results(tmp_path, [row]), read)
    assert table.labels[0] == 2 and "is not that of their category_name" in read.notes[0]
    row["category_name"] = "Mass"
    said = message(coco.read_detections, results(tmp_path, [row]), read)
    assert said.endswith("[0]: category_name 'Mass' is no category of the annotations")


def test_the_ids_of_a_file_for_the_classes_of_a_run(tmp_path):
    path = write(tmp_path / "x.json", INSTANCES)
    assert coco.class_ids_by_name(path, ["Rib", "Nodule", "Heart"]) == [5, 9, 2, 10]
    assert coco.class_ids_by_name(path, ["Rib"]) == [5, 10]
    said = message(coco.class_ids_by_name, path, ["Rib", "Mass"])
    assert "has no category 'Mass', a class of the run; it has Heart, Rib, Nodule" in said
    write(path, {"images": INSTANCES["images"]})
    assert coco.class_ids_by_name(path, ["Rib"]) is None


def test_the_names_of_classes_are_written_for_whom_they_are_asked(tmp_path):
    from tests.tfds_vinbig.test_coco_detections import DETECTIONS

    text = coco.to_json(["x", "y", "z"], DETECTIONS, (2, 5, 9, 10), None, ("Heart", "Rib", "Mass"))
    names = [(row["category_id"], row["category_name"]) for row in json.loads(text)]
    assert names == [(9, "Mass"), (2, "Heart"), (2, "Heart")]
