"""The Kaggle folder: what it may look like, and what is said of one that is broken."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxdet import InputError
from jaxdet.data import images
from tfds_vinbig import kaggle, pictures

HEADER = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
ROWS = [
    "a,Cardiomegaly,3,R9,10,20,110.5,220",
    "b,No finding,14,R1,,,,",
    "a,Aortic enlargement,0,R8,0,0,200,300",
    "b,No finding,14,R2,,,,",
]
# The picture of 8 x 8 that every folder here is made of.
GRAY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def save(path, array=GRAY):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two annotated images, originals of height 300 and width 200, and three of test."""
    folder = tmp_path / "kaggle"
    for name in ("train/a", "train/b", "test/p", "test/q", "test/r"):
        save(folder / f"{name}.png")
    (folder / "train.csv").write_text("\n".join([HEADER, *ROWS]))
    (folder / "train_meta.csv").write_text("image_id,dim0,dim1\nb,310,210\na,300,200\n")
    (folder / "test_meta.csv").write_text("image_id,dim0,dim1\nq,40,30\np,50,60\nr,70,80\n")
    (folder / "sample_submission.csv").write_text(
        "image_id,PredictionString\nr,14 1 0 0 1 1\np,14 1 0 0 1 1\nq,14 1 0 0 1 1\n"
    )
    return folder


def write(path, *rows, header=HEADER):
    path.write_text("\n".join([header, *rows]))
    return path


def message(function, *arguments, **keywords):
    with pytest.raises(InputError) as caught:
        function(*arguments, **keywords)
    return str(caught.value)


def test_a_folder_as_kaggle_has_it(folder):
    found = kaggle.read_folder(folder)
    assert found.notes == []
    a, b = found.train
    assert (a.image_id, a.height, a.width, a.index) == ("a", 300, 200, 1)
    assert (b.image_id, b.height, b.width, b.index) == ("b", 310, 210, 0)
    assert a.path == folder / "train" / "a.png"
    assert [row.rad_id for row in a.rows] == ["R9", "R8"]
    assert a.rows[0][3:] == (10, 20, 110.5, 220)
    assert [row.rad_id for row in b.rows] == ["R1", "R2"]
    # In the order of sample_submission.csv, sizes by name from test_meta.csv.
    assert [(r.image_id, r.index, r.height, r.width) for r in found.test] == [
        ("r", 0, 70, 80), ("p", 1, 50, 60), ("q", 2, 40, 30),
    ]  # fmt: skip
    assert all(record.rows == [] for record in found.test)


def test_the_order_of_test_without_a_sample_submission(folder):
    (folder / "sample_submission.csv").unlink()
    assert [record.image_id for record in kaggle.read_folder(folder).test] == ["q", "p", "r"]
    (folder / "test_meta.csv").unlink()
    (folder / "train_meta.csv").unlink()  # neither are resized, then
    write(folder / "train.csv", "a,No finding,14,R1,,,,", "b,No finding,14,R1,,,,")
    found = kaggle.read_folder(folder)
    assert [(r.image_id, r.index, r.height, r.width) for r in found.test] == [
        ("p", 0, 8, 8), ("q", 1, 8, 8), ("r", 2, 8, 8),
    ]  # fmt: skip
    assert "train_meta.csv" in found.notes[0] and "test_meta.csv" in found.notes[1]


def test_resized_pictures_without_the_sizes_of_test_have_no_test_split(folder):
    """Its boxes would be in pixels of the resized pictures."""
    (folder / "test_meta.csv").unlink()
    (folder / "test" / "p.png").write_bytes(b"nobody looks at it")
    found = kaggle.read_folder(folder)
    assert found.test == [] and len(found.train) == 2
    (note,) = found.notes
    assert note.startswith(f"{folder}/test_meta.csv: no such file")
    assert "no test split" in note and "--test_meta=CSV" in note
    # As large as the originals, they have their sizes with them.
    save(folder / "test" / "p.png")
    write(folder / "train_meta.csv", "a,8,8", "b,8,8", header="image_id,dim0,dim1")
    write(folder / "train.csv", "a,No finding,14,R1,,,,", "b,No finding,14,R1,,,,")
    assert len(kaggle.read_folder(folder).test) == 3


def test_the_smallest_folder(tmp_path):
    """No test, no meta: pictures are as large as the originals, in the order of train.csv."""
    for name in ("b.JPG", "c.jpeg", "a.png"):
        save(tmp_path / "train" / name)
    (tmp_path / "train.csv").write_text(
        "image_id,class_id,x_min,y_min,x_max,y_max\nb,3,0,0,8,8\na,14,,,,\nc,14,,,,\n"
    )
    found = kaggle.read_folder(tmp_path)
    assert [(r.image_id, r.index, r.height, r.width) for r in found.train] == [
        ("b", 0, 8, 8), ("a", 1, 8, 8), ("c", 2, 8, 8),
    ]  # fmt: skip
    assert found.test == []
    assert [note.split(":")[0] for note in found.notes] == [
        f"{tmp_path}/train_meta.csv", f"{tmp_path}/test",
    ]  # fmt: skip


def test_tables_elsewhere(folder, tmp_path):
    for name in ("train.csv", "train_meta.csv", "test_meta.csv"):
        (folder / name).rename(tmp_path / name)
    found = kaggle.read_folder(
        folder, tmp_path / "train.csv", tmp_path / "train_meta.csv", tmp_path / "test_meta.csv"
    )
    assert found.notes == []
    assert [record.height for record in found.train + found.test] == [300, 310, 70, 50, 40]


def test_pictures_that_nobody_lists_are_skipped(folder):
    for name in ("train/x", "train/y", "test/z", "train/._a"):
        save(folder / f"{name}.png")
    (folder / "train" / "notes.txt").write_text("not a picture")
    found = kaggle.read_folder(folder)
    assert [record.image_id for record in found.train] == ["a", "b"]
    assert len(found.test) == 3
    assert "train: 2 images are not in" in found.notes[0]
    assert "test: 1 images are not in" in found.notes[1]


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def directory(path):
    path.unlink()
    path.mkdir()


def link(path, target):
    if not target.exists():
        save(target)
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize("beyond", [1e-7, 1e-4, -1e-7])
def test_a_corner_that_is_outside_by_arithmetic_is_cut(folder, beyond):
    box = f"{min(beyond, 0)!r},{min(beyond, 0)!r},{200 + beyond!r},{300 + beyond!r}"
    change(folder / "train.csv", "0,0,200,300", box)
    a, _ = kaggle.read_folder(folder).train
    assert a.rows[1][3:] == (0, 0, min(200 + beyond, 200), min(300 + beyond, 300))


@pytest.mark.parametrize(
    "shape, size, fits",
    [
        ((64, 48), (640, 480), True),
        ((64, 48), (480, 640), False),  # exchanged
        ((64, 48), (643, 484), True),  # by rounding
        ((64, 48), (680, 480), False),
        ((64, 64), (680, 480), True),  # squashed
        ((64, 48), (640, 640), False),
        ((48, 64), (480, 640), True),
        ((300, 200), (300, 200), True),
        ((300, 200), (200, 300), False),
        ((2, 3), (2000, 2500), True),
    ],
)
def test_a_picture_that_is_not_square_has_the_proportions_of_its_size(folder, shape, size, fits):
    save(folder / "train/a.png", np.zeros(shape, np.uint8))
    write(folder / "train.csv", "a,Cardiomegaly,3,R9,1,2,3,4", *ROWS[1::2])
    change(folder / "train_meta.csv", "a,300,200", f"a,{size[0]},{size[1]}")
    if fits:
        a, _ = kaggle.read_folder(folder).train
        assert (a.height, a.width) == size
    else:
        text = message(kaggle.read_folder, folder)
        assert text.startswith(f"{folder}/train/a.png: the picture is {shape[1]} wide")
        assert ("exchanged" in text) == (size in [(480, 640), (200, 300)]) and "\n" not in text


@settings(max_examples=100)
@given(
    size=st.tuples(st.integers(300, 4000), st.integers(300, 4000)),
    long_side=st.integers(32, 4000),
    rounding=st.sampled_from([round, math.floor, math.ceil]),
)
def test_every_resizing_that_keeps_the_proportions_fits(size, long_side, rounding):
    shape = tuple(max(rounding(side * long_side / max(size)), 1) for side in size)
    assert pictures.check_shape("x.png", shape, size, "meta.csv") is None


def test_what_was_done_to_the_pictures_is_said_once(folder):
    save(folder / "train/a.png", GRAY.astype(np.uint16))
    save(folder / "train/b.png", GRAY.astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GRAY).save(folder / "test/p.png", exif=exif)
    assert kaggle.read_folder(folder).notes == [
        f"{folder}/train: 2 pictures: {images.EIGHT_BITS}",
        f"{folder}/test: 1 pictures: {images.ORIENTED}",
    ]


def test_boxes_that_leave_the_pictures_hint_at_the_missing_sizes(folder):
    (folder / "train_meta.csv").unlink()
    text = message(kaggle.read_folder, folder)
    assert text.startswith("2 problems") and text.count("train_meta.csv with the sizes") == 2


@pytest.mark.parametrize(
    "break_it, said",
    [
        (lambda f: (f / "train/a.png").unlink(), "train/a.png: no such image"),
        (lambda f: (f / "test/q.png").unlink(), "test/q.png: no such image"),
        (lambda f: save(f / "train/a.jpg"), "train/a.png: a second picture"),
        (
            lambda f: (f / "train/a.png").write_bytes((f / "train/a.png").read_bytes()[:60]),
            "train/a.png: broken",
        ),
        (lambda f: (f / "test/q.png").write_bytes(b"text"), "test/q.png: not a PNG"),
        (lambda f: directory(f / "test/q.png"), "test/q.png: cannot read this image"),
        (lambda f: link(f / "train/a.png", f.parent / "other.png"), "leads out of"),
        (lambda f: link(f / "train/a.png", f / "test/q.png"), "leads out of"),
        (lambda f: link(f / "train/a.png", f / "train/a.png"), "train/a.png: cannot read"),
        (lambda f: change(f / "train_meta.csv", "a,300,200", "c,300,200"), "no line for image a"),
        (lambda f: change(f / "test_meta.csv", "q,40,30", "c,40,30"), "no line for image q"),
        (lambda f: change(f / "train_meta.csv", "a,300,200", "a,300"), "line 3: 2 fields"),
        (lambda f: change(f / "test_meta.csv", "q,40,30", "q,40,0"), "line 2: '40,0'"),
        (lambda f: change(f / "sample_submission.csv", "p,", "r,"), "line 3: image_id r is there"),
        (lambda f: change(f / "sample_submission.csv", "p,", "../p,"), "not the name of a file"),
        (
            lambda f: change(f / "train_meta.csv", ",", ";"),
            "separated by commas, not by semicolons",
        ),
        (lambda f: (f / "train").rename(f / "images"), "train: cannot read this folder"),
        (
            lambda f: [p.unlink() for p in (f / "test").iterdir()],
            "test: no PNG, JPEG, TIFF or DICOM",
        ),
    ],
)
def test_one_fault_is_one_line(folder, break_it, said):
    break_it(folder)
    text = message(kaggle.read_folder, folder)
    assert "\n" not in text and str(folder) in text and said in text


def test_an_image_of_both_train_and_test_is_named(folder):
    save(folder / "test" / "a.png")
    change(folder / "sample_submission.csv", "q,", "a,")
    change(folder / "test_meta.csv", "q,", "a,")
    assert "image a: both in" in message(kaggle.read_folder, folder)


def test_a_path_that_is_not_there_is_named(folder, tmp_path):
    gone = tmp_path / "gone"
    assert message(kaggle.read_folder, gone) == f"{gone}: no such folder"
    assert message(kaggle.read_folder, folder / "train.csv").endswith("train.csv: no such folder")
    assert message(kaggle.read_folder, folder, gone) == f"{gone}: no such file"
    for table in ("train_meta", "test_meta"):
        assert str(gone) in message(kaggle.read_folder, folder, **{table: gone})
    (folder / "train.csv").unlink()
    assert message(kaggle.read_folder, folder) == f"{folder}/train.csv: no such file"
