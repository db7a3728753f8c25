"""COCO's JSON: what it may look like, and what is said of one that is broken."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxdet import InputError
from tfds_vinbig import coco

# Three classes in no order and with gaps; images in no order, one in a folder, one without boxes.
INSTANCES = {
    "info": {"year": 2025},
    "images": [
        {"id": 30, "file_name": "c.png", "height": 60, "width": 90},
        {"id": 7, "file_name": "sub/a.jpg", "height": 40, "width": 20},
        {"id": 12, "file_name": "b.png", "height": 60.0, "width": 90},
    ],
    "categories": [
        {"id": 9, "name": "Nodule", "supercategory": "lung"},
        {"id": 2, "name": "Heart"},
        {"id": 5, "name": " Rib "},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4.5], "iscrowd": 0},
        {"id": 2, "image_id": 12, "category_id": 2, "bbox": [0, 0, 90, 60], "rad_id": "R8"},
        {"id": 3, "image_id": 7, "category_id": 5.0, "bbox": [5, 5, 5, 5], "rad_id": 4},
    ],
}


def write(path, data):
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def changed(where, **fields):
    """INSTANCES with some fields of an entry changed: "images[1]"; None takes a field away."""
    data = copy.deepcopy(INSTANCES)
    name, number = where.rstrip("]").split("[")
    entry = data[name][int(number)]
    entry.update(fields)
    for field in [field for field, value in fields.items() if value is None]:
        del entry[field]
    return data


@pytest.fixture
def folder(tmp_path):
    """The pictures of INSTANCES below tmp_path/pictures, and the file beside."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for entry in INSTANCES["images"]:
        shape = int(entry["height"]), entry["width"]
        Image.fromarray(np.full(shape, 99, np.uint8)).save(folder / entry["file_name"])
    write(tmp_path / "x.json", INSTANCES)
    return folder


def message(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Annotations


def test_annotations_are_those_of_the_file(tmp_path):
    found = coco.read_annotations(write(tmp_path / "x.json", INSTANCES))
    assert found.class_names == ("Heart", "Rib", "Nodule")
    assert found.class_ids == (2, 5, 9, 10)  # "No finding" is the next
    assert found.ids == ("c", "sub__a", "b") and found.image_ids == (30, 7, 12)
    assert found.image.tolist() == [1, 2, 1, 0]
    assert found.labels.tolist() == [2, 0, 1, 3]  # an image without annotations is normal
    assert found.readers.tolist() == ["coco", "R8", "4", "coco"]
    np.testing.assert_array_equal(found.boxes[:3], [[1, 2, 4, 6.5], [0, 0, 90, 60], [5, 5, 10, 10]])
    assert np.isnan(found.boxes[3]).all()
    assert found.notes == [] and found.splits is None


def test_sizes_and_ids_need_only_the_images(tmp_path):
    path = write(tmp_path / "x.json", {"images": INSTANCES["images"]})
    assert coco.read_sizes(path) == {"c": (60, 90), "sub__a": (40, 20), "b": (60, 90)}
    assert coco.read_image_ids(path) == {"c": 30, "sub__a": 7, "b": 12}


def test_crowds_are_left_out_and_counted(tmp_path):
    data = changed("annotations[1]", iscrowd=1)
    data["annotations"].append({"image_id": 7, "category_id": 2, "iscrowd": 1, "bbox": "any"})
    found = coco.read_annotations(write(tmp_path / "x.json", data))
    note, lost = found.notes
    assert "1 crowds say neither a class nor a region" in lost
    assert "2 crowds" in note and "1 images have nothing else" in note
    # Image b has a crowd of findings: it is not normal.
    assert sorted(zip(found.image.tolist(), found.labels.tolist(), strict=True)) == [
        (0, 3), (1, 1), (1, 2),
    ]  # fmt: skip


def test_no_finding_may_be_a_category(tmp_path):
    data = copy.deepcopy(INSTANCES)
    data["categories"].append({"id": 0, "name": "no finding"})
    data["annotations"].append(
        {"image_id": 30, "category_id": 0, "bbox": [0, 0, 1, 1], "rad_id": "R1"}
    )
    found = coco.read_annotations(write(tmp_path / "x.json", data))
    assert found.class_names == ("Heart", "Rib", "Nodule") and found.class_ids == (2, 5, 9, 0)
    assert found.labels[-1] == 3 and found.readers[-1] == "R1" and len(found.labels) == 4


def test_an_annotation_that_is_there_twice_counts_once_and_is_said(tmp_path):
    data = copy.deepcopy(INSTANCES)
    data["annotations"].append({**data["annotations"][0], "id": 99})
    found = coco.read_annotations(write(tmp_path / "x.json", data))
    assert len(found.labels) == 4
    assert "1 rows repeat an earlier one" in found.notes[0]


NO_IMAGE = "is not the name of a file below --images"
BAD = [
    (changed("images[1]", height=None), "images[1]: height None and width 20 are no size"),
    (changed("images[1]", width=-20), "images[1]: height 40 and width -20 are no size"),
    (changed("images[1]", width=20.5), "images[1]: height 40 and width 20.5 are no size"),
    (changed("images[1]", width="20px"), "images[1]: height 40 and width '20px' are no size"),
    (changed("images[1]", width=1e300), "images[1]: height 40 and width 1e+300 are no size"),
    (changed("images[1]", width=True), "images[1]: height 40 and width True are no size"),
    (changed("images[1]", width=10**400), "are no size"),
    (changed("images[1]", id=12, file_name="d.png"), "images[2]: id 12 is there twice"),
    (changed("images[1]", id=None), "images[1]: id None is not a whole number, nor a name"),
    (changed("images[1]", id=[7]), "images[1]: id [7] is not a whole number, nor a name"),
    (changed("images[1]", file_name="b.png"), "images[2]: file_name 'b.png' is there twice"),
    (changed("images[1]", file_name="b.jpg"), "images[2]: file_name 'b.png' is there twice"),
    (changed("images[1]", file_name=None), f"images[1]: file_name None {NO_IMAGE[:25]}"),
    (changed("images[1]", file_name=""), f"images[1]: file_name '' {NO_IMAGE[:25]}"),
    (changed("images[1]", file_name="../a.png"), f"images[1]: file_name '../a.png' {NO_IMAGE}"),
    (changed("images[1]", file_name="s/../../a.png"), NO_IMAGE),
    (changed("images[1]", file_name="/etc/a.png"), f"file_name '/etc/a.png' {NO_IMAGE}"),
    (changed("images[1]", file_name="C:\\a.png"), NO_IMAGE),
    (changed("images[1]", file_name="s\\..\\..\\a.png"), NO_IMAGE),
    (changed("images[1]", file_name="\\a.png"), NO_IMAGE),
    (changed("annotations[0]", iscrowd="yes"), "iscrowd 'yes' is neither 0 nor 1"),
    (changed("images[1]", file_name="a\n.png"), NO_IMAGE),
    (changed("images[1]", file_name="a\0.png"), NO_IMAGE),
    (changed("images[1]", file_name="\ud800.png"), NO_IMAGE),
    (changed("images[1]", file_name=".png"), NO_IMAGE),
    (changed("categories[1]", id=9), "categories[1]: id 9 is there twice"),
    (changed("categories[1]", id="02"), "categories[1]: id '02' is not a whole number from 0 on"),
    (changed("categories[1]", id=-2), "categories[1]: id -2 is not a whole number from 0 on"),
    (changed("categories[1]", name="Rib"), "categories[2]: name 'Rib' is there twice"),
    (changed("categories[1]", name=None), "categories[1]: name None is no name"),
    (changed("categories[1]", name="He\nart"), "categories[1]: name 'He\\nart' is no name"),
    (changed("annotations[0]", image_id=8), "annotations[0]: image_id 8 is in no image"),
    (changed("annotations[0]", image_id="a"), "annotations[0]: image_id 'a' is in no image"),
    (changed("annotations[0]", image_id={}), "annotations[0]: image_id {} is in no image"),
    (changed("annotations[0]", category_id=3), "annotations[0]: category_id 3 is in no category"),
    (changed("annotations[0]", category_id=10), "annotations[0]: category_id 10 is in no category"),
    (changed("annotations[0]", category_id=None), "annotations[0]: category_id None is in no"),
    (changed("annotations[0]", bbox=[1, 2, 3, -4]), "bbox [1, 2, 3, -4] needs a width and"),
    (changed("annotations[0]", bbox=[1, 2, 3]), "bbox [1, 2, 3] is not four finite numbers"),
    (changed("annotations[0]", bbox=[1, 2, 3, float("nan")]), "is not four finite numbers"),
    (changed("annotations[0]", bbox=[1, 2, 3, float("inf")]), "is not four finite numbers"),
    (changed("annotations[0]", bbox=[1, 2, 3, "4"]), "is not four finite numbers"),
    (changed("annotations[0]", bbox=[1, 2, 3, 10**400]), "is not four finite numbers"),
    (changed("annotations[0]", bbox=[1, 2, 3, 1e300]), "is larger than any image"),
    (changed("annotations[0]", bbox=None), "bbox None is not four finite numbers"),
    (changed("annotations[0]", rad_id=[]), "annotations[0]: rad_id [] is no name"),
    (changed("annotations[0]", rad_id="R" * 101), "'... is longer than 100 characters"),
    (changed("annotations[0]", rad_id="\ud800"), "annotations[0]: rad_id '\\ud800' is no name"),
    ({**INSTANCES, "annotations": None}, 'needs a list "annotations"'),
    ({**INSTANCES, "annotations": [3]}, "annotations[0]: 3 is not an object in braces"),
    ({**INSTANCES, "categories": [], "annotations": []}, "categories names no class"),
    ({**INSTANCES, "images": [], "annotations": []}, "images has no image"),
    ("", "not a JSON file"),
    ('{"images": [', "not a JSON file"),
    ('{"images": [' + "9" * 5000, "not a JSON file"),
    ("[" * 200_000, "nested too deeply"),
    ('{"a":' * 200_000, "nested too deeply"),
]  # fmt: skip


@pytest.mark.parametrize("data, said", BAD, ids=[str(i) for i in range(len(BAD))])
def test_a_fault_is_one_line(tmp_path, folder, data, said):
    path = write(tmp_path / "x.json", data)
    for text in (message(coco.read_annotations, path), message(coco.read_instances, path, folder)):
        assert text.startswith(str(path)) and said in text and len(text) < 500


@pytest.mark.parametrize("data", ["[]", "null", "3", '"x"', "{}"])
@pytest.mark.parametrize("read", [coco.read_annotations, coco.read_sizes])
def test_json_that_is_something_else_is_named(tmp_path, data, read):
    with pytest.raises(InputError, match=r'x\.json: needs a list "images"'):
        read(write(tmp_path / "x.json", data))


@pytest.mark.parametrize(
    "content, said",
    [
        (b"\xff\xfe{", "UTF-8"),
        (None, "Is a directory"),
        (json.dumps(INSTANCES).encode("utf-16"), "UTF-8"),
    ],
)
def test_a_file_that_is_no_text_is_named(tmp_path, content, said):
    path = tmp_path / "x.json"
    path.mkdir() if content is None else path.write_bytes(content)
    for read in (coco.read_annotations, coco.read_image_ids):
        assert said in message(read, path)
    assert "No such file" in message(coco.read_annotations, tmp_path / "gone.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_value_in_any_place_is_read_or_named(tmp_path_factory, data):
    mutated = copy.deepcopy(INSTANCES)
    name = data.draw(st.sampled_from(["images", "categories", "annotations"]))
    if data.draw(st.booleans()):
        entry = data.draw(st.sampled_from(mutated[name]))
        entry[data.draw(st.sampled_from([*entry, "rad_id", "iscrowd"]))] = data.draw(json_values)
    else:
        mutated[name] = data.draw(json_values)
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(mutated))
    try:
        found = coco.read_annotations(path)
    except InputError as error:
        assert str(path) in str(error)
    else:
        assert len(found.ids) == 3 and len(found.labels) == len(found.boxes)
        assert (found.labels <= len(found.class_names)).all()


# Pictures


def test_the_pictures_of_the_file(tmp_path, folder):
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(folder / "other.png")
    found = coco.read_instances(tmp_path / "x.json", folder)
    assert found.class_names == ("Heart", "Rib", "Nodule") and found.class_ids == (2, 5, 9, 10)
    assert [(r.image_id, r.index, r.height, r.width) for r in found.train] == [
        ("c", 0, 60, 90), ("sub__a", 1, 40, 20), ("b", 2, 60, 90),
    ]  # fmt: skip
    assert found.train[1].path == folder / "sub/a.jpg"
    assert [[row.label for row in record.rows] for record in found.train] == [[3], [2, 1], [0]]
    assert found.train[1].rows[0][3:] == (1, 2, 4, 6.5) and found.test == []
    assert found.notes == [f"{folder}: 1 images are not in {tmp_path}/x.json; they are skipped"]


def test_pictures_for_a_test_split(tmp_path, folder):
    (tmp_path / "test").mkdir()
    for name, shape in (("q.png", (5, 6)), ("p.tif", (7, 8))):
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / "test" / name)
    found = coco.read_instances(tmp_path / "x.json", folder, tmp_path / "test")
    assert [(r.image_id, r.index, r.height, r.width, r.rows) for r in found.test] == [
        ("p", 0, 7, 8, []), ("q", 1, 5, 6, []),
    ]  # fmt: skip
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "test/b.png")
    text = message(coco.read_instances, tmp_path / "x.json", folder, tmp_path / "test")
    assert "test/b.png: image b is in" in text


def replace_by_link(path, target):
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize(
    "break_it, said",
    [
        (lambda f: (f / "b.png").unlink(), "pictures/b.png: no such image, but"),
        (lambda f: (f / "b.png").write_text("x"), "pictures/b.png: not a PNG"),
        (lambda f: Image.new("L", (60, 90)).save(f / "b.png"), "are width and height exchanged"),
        (lambda f: replace_by_link(f / "b.png", "/etc/passwd"), "a link that leads out of"),
        (lambda f: replace_by_link(f / "b.png", f / "gone"), "pictures/b.png: cannot read"),
        (lambda f: write(f.parent / "x.json", changed("annotations[1]", bbox=[0, 0, 91.25, 60])),
         "annotations[1]: image b, the box 0,0,91.25,60 leaves its image, 90 wide and 60 high"),
        (lambda f: write(f.parent / "x.json", changed("annotations[1]", bbox=[-2, 0, 90, 60])),
         "the box -2,0,88,60 leaves its image"),
    ],
)  # fmt: skip
def test_a_fault_of_a_picture_is_one_line(tmp_path, folder, break_it, said):
    break_it(folder)
    assert said in message(coco.read_instances, tmp_path / "x.json", folder)


def test_a_folder_of_links_out_of_the_pictures_is_not_followed(tmp_path, folder):
    (folder / "sub").rename(tmp_path / "elsewhere")
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    assert "leads out of" in message(coco.read_instances, tmp_path / "x.json", folder)
    # The folder itself may be a link: that is where the user says the pictures are.
    (folder / "sub").unlink()
    (tmp_path / "elsewhere").rename(folder / "sub")
    (tmp_path / "linked").symlink_to(folder)
    assert len(coco.read_instances(tmp_path / "x.json", tmp_path / "linked").train) == 3


def test_a_corner_outside_by_arithmetic_is_cut(tmp_path, folder):
    write(tmp_path / "x.json", changed("annotations[1]", bbox=[-1e-9, 0.1, 90.0000001, 59.9]))
    record = coco.read_instances(tmp_path / "x.json", folder).train[2]
    assert record.rows[0][3:] == (0, 0.1, 90, 60)


def test_a_folder_that_is_not_there_is_named(tmp_path, folder):
    gone = tmp_path / "gone"
    assert message(coco.read_instances, tmp_path / "x.json", gone) == f"{gone}: no such folder"
    text = message(coco.read_instances, tmp_path / "x.json", folder, gone)
    assert text == f"{gone}: no such folder"
