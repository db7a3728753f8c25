"""Kaggle's tables: what they may look like, and what is said of one that is broken."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet import InputError
from tests.tfds_vinbig import test_kaggle
from tests.tfds_vinbig.test_kaggle import HEADER, ROWS, message, write
from tfds_vinbig import kaggle, submission

folder = test_kaggle.folder


def test_annotations_are_the_rows_of_the_file(folder):
    found = kaggle.read_annotations(folder / "train.csv")
    assert found.class_names == kaggle.CLASS_NAMES and found.class_ids == tuple(range(15))
    assert found.ids == ("a", "b") and found.image.tolist() == [0, 1, 0, 1]
    assert found.labels.tolist() == [3, 14, 0, 14]
    assert found.readers.tolist() == ["R9", "R1", "R8", "R2"]
    np.testing.assert_array_equal(found.boxes[[0, 2]], [[10, 20, 110.5, 220], [0, 0, 200, 300]])
    assert np.isnan(found.boxes[[1, 3]]).all()
    assert found.notes == [] and found.splits is None and found.image_ids is None


def test_annotation_columns_are_found_by_name(tmp_path, folder):
    table = pd.read_csv(folder / "train.csv", dtype=str, keep_default_na=False)
    columns = ["y_max", "class_id", "x_min", "image_id", "y_min", "x_max"]
    text = table[columns].to_csv(index=False)
    (tmp_path / "x.csv").write_text("\ufeff" + text.replace("\n", "\r\n"), encoding="utf-8")
    found = kaggle.read_annotations(tmp_path / "x.csv")
    assert found.labels.tolist() == [3, 14, 0]
    assert found.boxes[2].tolist() == [0, 0, 200, 300]
    table[::-1].assign(split=["test", "train", "test", "train"])[
        ["y_max", "class_id", "split", "x_min", "image_id", "y_min", "x_max"]
    ].to_csv(tmp_path / "x.csv")
    found = kaggle.read_annotations(tmp_path / "x.csv")
    assert found.ids == ("b", "a") and found.splits == ("test", "train")
    assert found.boxes[1:, 3].tolist() == [300, 220]
    assert set(found.readers) == {"R1"}


def test_an_image_is_of_one_split(tmp_path):
    rows = "a,14,,,,,train\nb,14,,,,,test\na,14,,,,,test\n"
    (tmp_path / "x.csv").write_text(f"image_id,class_id,x_min,y_min,x_max,y_max,split\n{rows}")
    text = message(kaggle.read_annotations, tmp_path / "x.csv")
    assert "line 4: image a is of the split 'test', but 'train' before" in text


def test_no_finding_may_carry_the_box_of_a_submission(tmp_path):
    (tmp_path / "x.csv").write_text(f"{HEADER}\na,No finding,14,R1,0,0,1,1\n")
    assert np.isnan(kaggle.read_annotations(tmp_path / "x.csv").boxes).all()


def test_readers_that_are_not_told_apart_count_once_where_they_saw_nothing(tmp_path):
    rows = "a,14,,,,\n" * 3 + "b,3,1,2,3,4\n"
    (tmp_path / "x.csv").write_text(f"image_id,class_id,x_min,y_min,x_max,y_max\n{rows}")
    found = kaggle.read_annotations(tmp_path / "x.csv")
    assert found.labels.tolist() == [14, 3] and found.image.tolist() == [0, 1]
    assert found.notes == []


def test_a_row_that_is_there_twice_counts_once_and_is_said(folder):
    rows = [
        *ROWS,
        ROWS[0],
        ROWS[1],
        ROWS[0].replace("R9", "R8"),
        "a,Cardiomegaly,3,R9,10,20,110,220",
    ]
    (folder / "train.csv").write_text("\n".join([HEADER, *rows]))
    found = kaggle.read_annotations(folder / "train.csv")
    assert found.labels.tolist() == [3, 14, 0, 14, 3, 3]  # another reader, and another box, stay
    assert found.readers.tolist() == ["R9", "R1", "R8", "R2", "R8", "R9"]
    (note,) = found.notes
    assert f"{folder}/train.csv: 2 rows repeat" in note
    built = kaggle.read_folder(folder)
    assert [len(record.rows) for record in built.train] == [4, 2] and built.notes == [note]


@pytest.mark.parametrize("rows", [",,,,,,,\n", "\n\n", " , ,,,,,,\n,,,\n"])
def test_rows_of_nothing_are_passed_over(folder, rows):
    for name in ("train.csv", "train_meta.csv", "sample_submission.csv"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        commas = rows if name == "train.csv" else rows.replace(",,,,,", "")
        (folder / name).write_text(commas + lines[0] + commas + "".join(lines[1:]) + "\n" + commas)
    found = kaggle.read_folder(folder)
    assert [len(record.rows) for record in found.train] == [2, 2] and found.notes == []
    assert len(found.test) == 3


@pytest.mark.parametrize("mark, name", [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_another_separator_is_named(folder, mark, name):
    path = folder / "train.csv"
    path.write_text(path.read_text().replace(",", mark))
    text = message(kaggle.read_folder, folder)
    assert f"{path} line 1" in text and f"by commas, not by {name}" in text and "\n" not in text


# Classes


OWN = [
    "a,Right lung,7,R1,1,2,3,4",
    "b,no FINDING,3,R1,,,,",
    "a,Left lung,2,R1,1,2,3,5",
    "c,Right lung,7.0,R1,1,2,3,4",
]


def test_the_file_names_its_classes(tmp_path):
    found = kaggle.read_annotations(write(tmp_path / "x.csv", *OWN))
    assert found.class_names == ("Left lung", "Right lung")
    assert found.class_ids == (2, 7, 3)  # of "No finding" last
    assert found.labels.tolist() == [1, 2, 0, 1]
    found = kaggle.read_annotations(write(tmp_path / "x.csv", *OWN[2:]))
    assert found.class_ids == (2, 7, 8)  # the next, as nobody says "No finding"


def test_classes_of_ones_own_are_asked_for_when_building(folder):
    write(folder / "train.csv", *OWN[:3])
    found = kaggle.read_folder(folder, own_classes=True)
    assert (found.class_names, found.class_ids) == (("Left lung", "Right lung"), (2, 7, 3))
    assert [row.label for record in found.train for row in record.rows] == [1, 0, 2]
    assert "'Right lung' does not go with class_id 7" in message(kaggle.read_folder, folder)
    # VinBigData's names are as good as others.
    write(folder / "train.csv", *ROWS)
    found = kaggle.read_folder(folder, own_classes=True)
    assert found.class_names == ("Aortic enlargement", "Cardiomegaly")
    assert found.class_ids == (0, 3, 14)


def test_vinbigdata_is_known_by_its_pairs(tmp_path):
    """A part of its classes keeps all the ids; one pair that is not its own makes a new set."""
    assert kaggle.read_annotations(write(tmp_path / "x.csv", ROWS[0])).class_ids == tuple(range(15))
    found = kaggle.read_annotations(
        write(tmp_path / "x.csv", ROWS[0], "a,Atelectasis,4,R1,1,2,3,4")
    )
    assert found.class_names == ("Cardiomegaly", "Atelectasis") and found.class_ids == (3, 4, 5)


@pytest.mark.parametrize(
    "row, said",
    [
        (
            "d,Right lung,8,R1,1,2,3,4",
            "line 6: class_name 'Right lung' has class_id 8, but 7 before",
        ),
        (
            "d,Heart,7,R1,1,2,3,4",
            "line 6: class_name 'Heart' does not go with class_id 7, which is",
        ),
        ("d,No finding,4,R1,,,,", "line 6: class_name 'No finding' has class_id 4, but 3 before"),
        ("d,,7,R1,1,2,3,4", "line 6: class_name '' is no name"),
        ("d,He\u2028art,9,R1,1,2,3,4", "line 6: class_name 'He\\u2028art' is no name"),
        ("d,Heart,9.5,R1,1,2,3,4", "line 6: unknown class_id '9.5'"),
        ("d,Heart,-1,R1,1,2,3,4", "line 6: unknown class_id '-1'"),
        ("d,Heart,99999999999,R1,1,2,3,4", "line 6: unknown class_id '99999999999'"),
    ],
)
def test_a_class_has_one_name_and_one_number(tmp_path, folder, row, said):
    path = write(tmp_path / "x.csv", *OWN, row)
    text = message(kaggle.read_annotations, path)
    assert said in text and "\n" not in text
    write(folder / "train.csv", *OWN, row.replace("d,", "a,"))
    assert said in message(lambda: kaggle.read_folder(folder, own_classes=True))


def test_classes_of_ones_own_need_names(folder):
    path = write(
        folder / "train.csv", "a,0,1,2,3,4", header="image_id,class_id,x_min,y_min,x_max,y_max"
    )
    text = message(lambda: kaggle.read_folder(folder, own_classes=True))
    assert text.startswith(f"{path} line 1") and text.endswith("missing or twice: class_name")
    write(path, "a,No finding,0,R1,,,,", "b,No finding,0,R1,,,,")
    text = message(lambda: kaggle.read_folder(folder, own_classes=True))
    assert text == f"{path}: names no class but No finding"


# What is wrong with a row


@pytest.mark.parametrize(
    "row, said",
    [
        ("a,Cardiomegaly,3,R9,10,20,110", "7 fields instead of 8"),
        ("a,Cardiomegaly,3,R9,10,20,110,220,5", "9 fields instead of 8"),
        ("a,Cardiomegaly,3,R9,10,20,wide,220", "not four finite numbers"),
        ("a,Cardiomegaly,3,R9,10,20,inf,220", "not four finite numbers"),
        ("a,Cardiomegaly,3,R9,nan,20,110,220", "not four finite numbers"),
        ("a,Cardiomegaly,3,R9,,,,", "x_min is empty"),
        ("a,Cardiomegaly,3,R9,10,20,110,", "y_max is empty"),
        ("a,Cardiomegaly,3,R9,110,20,10,220", "upside down"),
        ("a,Cardiomegaly,3,R9,10,220,110,20", "upside down"),
        ("a,Cardiomegaly,3,R9,10,20,1_10,220", "not four finite numbers"),
        ("a,Cardiomegaly,3,R9,10,20,1e300,220", "larger than any image"),
        ("../a,Cardiomegaly,3,R9,10,20,110,220", "image_id '../a' is not the name of a file"),
        ("c\\..\\a,Cardiomegaly,3,R9,10,20,110,220", "is not the name of a file"),
        ("..,Cardiomegaly,3,R9,10,20,110,220", "image_id '..' is not the name of a file"),
        ("a\u200bb,Cardiomegaly,3,R9,10,20,110,220", "is not the name of a file"),
        ("a,Cardiomegaly,15,R9,10,20,110,220", "class_id 15, but 3 before|unknown class_id '15'"),
        ("a,Cardiomegaly,-1,R9,10,20,110,220", "unknown class_id '-1'"),
        ("a,Cardiomegaly,3.5,R9,10,20,110,220", "unknown class_id '3.5'"),
        ("a,Cardiomegaly,heart,R9,10,20,110,220", "unknown class_id 'heart'"),
        ("a,Cardio,3,R9,10,20,110,220", "class_name 'Cardio' does not go with class_id 3"),
        ("a,Atelectasis,3,R9,10,20,110,220", "does not go with class_id 3"),
        ("a,No finding,3,R9,10,20,110,220", "does not go with class_id 3"),
        (",Cardiomegaly,3,R9,10,20,110,220", "image_id is empty"),
        ("a,No finding,14,R9,10,20,110,220", "leave it empty"),
        ("a,No finding,14,R9,0,0,1,", "y_max is empty"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(folder, row, said):
    path = folder / "train.csv"
    path.write_text("\n".join([HEADER, *ROWS, row, ""]))
    for text in (message(kaggle.read_annotations, path), message(kaggle.read_folder, folder)):
        assert "\n" not in text and f"{path} line 6: " in text
        assert any(words in text for words in said.split("|"))


BINARY = np.random.default_rng(0).bytes(3000)


@pytest.mark.parametrize("name", ["train.csv", "train_meta.csv", "sample_submission.csv"])
@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "empty"),
        (b"nonsense\n1\n", "line 1: needs the columns image_id"),
        (b"nonsense\n1,2\n3,4\n", "line 1: needs the columns image_id"),
        (b"image_id,image_id,x\n1,2,3\n", "line 1: needs the columns image_id"),
        (BINARY, "not a text file in UTF-8"),
        ("image_id,größe\n".encode("latin-1"), "not a text file in UTF-8"),
        (b"image_id,x\n1,\0\n", "not a text file in UTF-8"),
        (f"{HEADER},dim0,dim1\n".encode("utf-16"), "not a text file in UTF-8"),
        (b",,,\n\n", "empty"),
        (f"{HEADER},dim0,dim1\n".encode(), "no row under the header"),
        (None, "Is a directory"),
    ],
)
def test_a_file_that_is_no_such_table_is_named(folder, name, content, said):
    path = folder / name
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    text = message(kaggle.read_folder, folder)
    assert text.startswith(str(path)) and said in text and "\n" not in text


def test_ten_problems_are_shown_and_all_are_counted(folder):
    lines = [f"x{i},Cardiomegaly,3,R9,10,20,5,220" for i in range(12)]
    (folder / "train.csv").write_text("\n".join([HEADER, *ROWS, *lines]))
    (folder / "train" / "a.png").unlink()  # found only after the table is read
    text = message(kaggle.read_folder, folder).splitlines()
    assert text[0] == f"13 problems in {folder}, the first ten:"
    assert len(text) == 11 and all(line.startswith("  ") for line in text[1:])
    assert "line 6" in text[1] and "line 15" in text[10]


@pytest.mark.parametrize(
    "text",
    [
        "image_id,dim0,dim1\nb,310,210\na,300,200\n",
        "dim1,dim0,image_id\n210,310,b\n200,300,a\n",
        "image_id,height,width\nb,310,210\na,300,200\n",
        ",Image_ID,Width,Height\n0,b,210.0,310.0\n1,a,200.0,300.0\n\n",
        "image_id,dim0,dim1\nb,310,210\na,300,200\nb,310,210\nb,310.0,210\n",
    ],
)
def test_size_columns_are_found_by_name(tmp_path, text):
    (tmp_path / "meta.csv").write_text(text)
    sizes = kaggle.read_sizes(tmp_path / "meta.csv")
    assert list(sizes.items()) == [("b", (310, 210)), ("a", (300, 200))]


@pytest.mark.parametrize(
    "text, said",
    [
        ("image_id,rows,columns\na,300,200\n", "line 1: needs the columns"),
        ("image_id,dim0,width\na,300,200\n", "line 1: needs the columns"),
        ("image_id,dim0,dim1\na,300,0\n", "line 2: '300,0' is no size"),
        ("image_id,dim0,dim1\na,300,-2\n", "line 2: '300,-2' is no size"),
        ("image_id,dim0,dim1\na,300,2.5\n", "line 2: '300,2.5' is no size"),
        ("image_id,dim0,dim1\na,300,wide\n", "line 2: '300,wide' is no size"),
        ("image_id,dim0,dim1\na,300,inf\n", "line 2: '300,inf' is no size"),
        ("image_id,dim0,dim1\na,300,nan\n", "line 2: '300,nan' is no size"),
        ("image_id,dim0,dim1\na,1e300,200\n", "line 2: '1e300,200' is no size"),
        ("image_id,dim0,dim1\na,3,2\na,3,4\n", "line 3: image a has the size 3,4, but 3,2 before"),
        ("image_id,dim0,dim1\n/etc/x,300,200\n", "line 2: image_id '/etc/x' is not the name"),
        ("image_id;dim0;dim1\na;300;200\n", "separated by commas, not by semicolons"),
        ("image_id,dim0,dim1\n,300,200\n", "line 2: image_id is empty"),
    ],
)
def test_a_wrong_size_is_named(tmp_path, text, said):
    (tmp_path / "meta.csv").write_text(text)
    assert said in message(kaggle.read_sizes, tmp_path / "meta.csv")


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([HEADER, "image_id,dim0,dim1", "image_id,PredictionString", ""]),
    st.lists(st.lists(st.text(max_size=6) | st.floats().map(repr), max_size=9), max_size=4),
    st.sampled_from([",", ";", "\n", '"', "\0", "\r", "\ufeff"]),
)
def test_any_text_is_read_or_named(tmp_path_factory, header, rows, mark):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    text = "\n".join([header, *(",".join(fields) for fields in rows), mark])
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (kaggle.read_annotations, kaggle.read_sizes, lambda p: submission.read(p, (0, 1))):
        try:
            read(path)
        except InputError as error:
            assert str(path) in str(error)
