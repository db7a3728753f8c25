"""Boxes that are not as they should be, and what readers say twice."""

import numpy as np
import pytest

from jaxdet import InputError
from tests.tfds_vinbig import test_kaggle
from tests.tfds_vinbig.test_kaggle import ROWS, change, message, write
from tfds_vinbig import kaggle, records

folder = test_kaggle.folder


@pytest.mark.parametrize(
    "old, new",
    [("0,0,200,300", "0,0,201.5,300"), ("0,0,200,300", "0,0,200,302"), ("10,20,", "-1.01,20,"),
     ("10,20,", "10,-2,"), ("0,0,200,300", "0,0,201.0012345678,300")],
)  # fmt: skip
def test_a_box_that_leaves_its_image_is_named_or_cut_where_that_is_asked_for(folder, old, new):
    change(folder / "train.csv", old, new)
    text = message(kaggle.read_folder, folder)
    assert "train.csv line " in text and "image a" in text and "200 wide and 300 high" in text
    assert "\n" not in text and "missing" not in text and "--boxes=cut" in text
    assert f"the box {new}" in text  # with all its digits
    found = kaggle.read_folder(folder, allowed=records.Allowed(cut_boxes=True))
    x_min, y_min, x_max, y_max = np.transpose([row[3:] for row in found.train[0].rows])
    assert min(*x_min, *y_min) >= 0 and max(x_max) <= 200 and max(y_max) <= 300
    (note,) = found.notes
    assert "train.csv: 1 boxes reach more than a pixel out" in note and "(image a) first" in note


@pytest.mark.parametrize("new", ["-1,0,200,300", "0,0,200.5,301", "0,0,200.0012345678,300"])
def test_up_to_a_pixel_outside_is_cut_and_counted(folder, new):
    change(folder / "train.csv", "0,0,200,300", new)
    found = kaggle.read_folder(folder)
    assert found.train[0].rows[1][3:] == (0, 0, 200, 300)
    (note,) = found.notes
    assert note.startswith(f"{folder}/train.csv: 1 boxes reach up to a pixel out of their image")
    assert "line 4 (image a) first" in note


@pytest.mark.parametrize(
    "box",
    [
        "200,0,200.0005,300",
        "200.0001,0,200.5,300",
        "9,9,9,20",
        "9,9,20,9",
        "9,9,9,9",
        "200,0,201,9",
    ],
)
def test_a_box_without_area_is_left_out_and_its_image_is_not_normal(folder, box):
    rows = [row for row in ROWS if not row.startswith("a,")]
    write(folder / "train.csv", f"a,Cardiomegaly,3,R9,{box}", *rows)
    found = kaggle.read_folder(folder)
    assert [(record.image_id, record.rows) for record in found.train if not record.rows] == [
        ("a", [])
    ]
    (note,) = found.notes
    assert note == (
        f"{folder}/train.csv: 1 boxes have no area in their image and are left out, "
        "line 2 (image a) first"
    )


def test_boxes_in_other_units_are_refused(folder):
    """All of them at once: shares of the image would be built as boxes of a pixel."""
    write(folder / "train.csv", "a,Cardiomegaly,3,R9,0.1,0.2,0.5,0.9", *ROWS[3:])
    text = message(kaggle.read_folder, folder)
    assert "all 1 boxes are below 2 pixels wide and high; they look like shares of the" in text
    write(folder / "train.csv", "a,Cardiomegaly,3,R9,90,90,91,91.5", *ROWS[3:])
    assert "are they points" in message(kaggle.read_folder, folder)
    write(folder / "train.csv", "a,Cardiomegaly,3,R9,90,90,91,92", *ROWS[3:])
    kaggle.read_folder(folder)


def test_a_reader_who_contradicts_himself_is_counted(folder):
    write(folder / "train.csv", *ROWS, "a,No finding,14,R9,,,,")
    (note,) = kaggle.read_folder(folder).notes
    assert "1 times one reader has a box and No finding on one image, R9 on image a first" in note


@pytest.mark.parametrize("name", ["", "R\n8", "R\u20288"])
def test_a_reader_has_a_name(name):
    """Two of whom nothing is known would be one."""
    with pytest.raises(InputError, match="rad_id '.*' is no name"):
        records.parse_reader(name)
