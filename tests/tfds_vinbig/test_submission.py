"""The competition's file: written as Kaggle wants it, read as people write it."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet import InputError
from jaxdet.ops.boxes import BoxTable
from tfds_vinbig import submission
from tfds_vinbig.kaggle import CLASS_IDS

TABLE = BoxTable(
    image=np.array([0, 0, 0, 1]),
    labels=np.array([3, 8, 14, 14]),
    boxes=np.array([[250, 250, 750, 750], [0, 0, 1999.996, 1000], [0, 0, 1, 1], [0, 0, 1, 1]]),
    scores=np.array([0.75, 0.5, 0.25, 1.0]),
)
HEADER = "image_id,PredictionString\n"


def test_written_as_kaggle_wants_it_and_read_back(tmp_path):
    text = submission.to_csv(["b", "a"], TABLE, CLASS_IDS)
    assert text.splitlines() == [
        "image_id,PredictionString",
        "b,3 0.75 250.00 250.00 750.00 750.00 8 0.5 0.00 0.00 2000.00 1000.00 14 0.25 0 0 1 1",
        "a,14 1 0 0 1 1",
    ]
    (tmp_path / "s.csv").write_text(text)
    ids, back = submission.read(tmp_path / "s.csv", CLASS_IDS)
    assert ids == ["b", "a"]
    for mine, theirs in zip(TABLE, back, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=0.005)


def test_classes_go_by_the_ids_of_the_file(tmp_path):
    """Labels 0, 1 and, for no finding, 2 are the classes 2, 7 and 5 of a file."""
    table = TABLE._replace(labels=np.array([1, 0, 2, 2]))
    text = submission.to_csv(["b", "a"], table, (2, 7, 5))
    assert text.splitlines()[1].startswith("b,7 0.75 ") and "a,5 1 0 0 1 1" in text
    assert " 2 0.5 " in text and " 5 0.25 0 0 1 1" in text
    (tmp_path / "s.csv").write_text(text)
    _, back = submission.read(tmp_path / "s.csv", (2, 7, 5))
    assert back.labels.tolist() == [1, 0, 2, 2]


def test_the_closest_scores_keep_their_order(tmp_path):
    low = np.float32(0.3)
    scores = np.array([low, np.nextafter(low, np.float32(1)), 0, 0], np.float32)
    text = submission.to_csv(["a", "b"], TABLE._replace(scores=scores), CLASS_IDS)
    (tmp_path / "s.csv").write_text(text)
    _, back = submission.read(tmp_path / "s.csv", CLASS_IDS)
    np.testing.assert_array_equal(back.scores.astype(np.float32), scores)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 14),
            st.lists(st.floats(0, 4000), min_size=4, max_size=4),
            st.floats(0, 1, width=32),
        ),
        max_size=12,
    )
)
def test_what_is_written_is_read(tmp_path_factory, rows):
    rows.sort(key=lambda row: row[0])
    corners = [[*np.minimum(b[:2], b[2:]), *np.maximum(b[:2], b[2:])] for _, _, b, _ in rows]
    table = BoxTable(
        image=np.array([row[0] for row in rows], np.int64),
        labels=np.array([row[1] for row in rows], np.int64),
        boxes=np.array(corners, np.float64).reshape(-1, 4),
        scores=np.array([row[3] for row in rows], np.float64),
    )
    table.boxes[table.labels == 14] = submission.NO_FINDING_BOX
    path = tmp_path_factory.getbasetemp() / "any.csv"
    ids = ["a", "b, c", 'd"e', "f;g"]
    path.write_text(submission.to_csv(ids, table, CLASS_IDS))
    read_ids, back = submission.read(path, CLASS_IDS)
    assert read_ids == ids
    for mine, theirs in zip(table, back, strict=True):
        np.testing.assert_allclose(theirs, mine, atol=0.0051, rtol=1e-8)


def test_an_empty_string_is_no_detection(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("PredictionString,image_id\n,a\n14 1 0 0 1 1,b\n")
    ids, table = submission.read(path, CLASS_IDS)
    assert ids == ["a", "b"] and table.image.tolist() == [1]


@pytest.mark.parametrize(
    "text",
    [
        "IMAGE_ID,PREDICTIONSTRING\na,3 0.5 1 2 3 4\nb,\n",
        "\ufeffImage_Id , predictionString\r\na,3.0 .5 1 2 3 4\r\n\r\nb,\r\n",
        '\n\nx,PredictionString,image_id\n,"  3.0   0.5 1.0 2 3 4e0 ",a\n\n,,\n,,b\n,,,\n',
    ],
)
def test_read_as_people_write_it(tmp_path, text):
    (tmp_path / "s.csv").write_text(text, encoding="utf-8")
    ids, table = submission.read(tmp_path / "s.csv", CLASS_IDS)
    assert ids == ["a", "b"]
    assert [x.tolist() for x in table] == [[0], [3], [[1, 2, 3, 4]], [0.5]]


def test_a_row_may_be_longer_than_the_csv_module_takes(tmp_path):
    boxes = " ".join(["3 0.123456789 1000.25 1000.25 2000.25 2000.25"] * 5000)
    assert len(boxes) > csv.field_size_limit()
    (tmp_path / "s.csv").write_text(f"{HEADER}a,{boxes}\n")
    before = csv.field_size_limit()
    _, table = submission.read(tmp_path / "s.csv", CLASS_IDS)
    assert len(table.image) == 5000 and csv.field_size_limit() == before


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "the file is empty"),
        ("\n,,\n", "the file is empty"),
        ("image_id,PredictionString\n", "no row under the header"),
        ("image_id,Boxes\na,14 1 0 0 1 1\n", "line 1: needs the columns image_id,predictionstring"),
        ("image_id;PredictionString\na;\n", "separated by commas, not by semicolons"),
        (f"{HEADER}a,14 1 0 0 1\n", "line 2: PredictionString has 5 words, not 6 for each box"),
        (f"{HEADER}a,14 one 0 0 1 1\n", "line 2: box 1 (14 one 0 0 1 1) is not six finite numbers"),
        (f"{HEADER}a,14 nan 0 0 1 1\n", "line 2: box 1 (14 nan 0 0 1 1) is not six finite"),
        (f"{HEADER}a,3 1 0 0 1 inf\n", "line 2: box 1 (3 1 0 0 1 inf) is not six finite"),
        (f"{HEADER}a,3 1 0 0 1 1e300\n", "line 2: box 1 (3 1 0 0 1 1e300) is larger than any"),
        (f"{HEADER}a,3 1 0 0 1 1_0\n", "line 2: box 1 (3 1 0 0 1 1_0) is not six finite"),
        (f"{HEADER}a,15 1 0 0 1 1\n", "line 2: box 1 (15 1 0 0 1 1) has the unknown class 15"),
        (f"{HEADER}a,3.5 1 0 0 1 1\n", "has the unknown class 3.5; known are 0, 1, 2"),
        (f"{HEADER}a,-1 1 0 0 1 1\n", "has the unknown class -1"),
        (f"{HEADER}a,heart 1 0 0 1 1\n", "box 1 (heart 1 0 0 1 1) is not six finite numbers"),
        (f"{HEADER}a,3 1 0 0 1 1 3 1 9 0 1 1\n", "line 2: box 2 (3 1 9 0 1 1) is upside down"),
        (f"{HEADER}a,\na,\n", "line 3: image_id a is there twice"),
        (f"{HEADER}a,,\n", "line 2: 3 fields instead of 2"),
        (f"{HEADER},14 1 0 0 1 1\n", "line 2: image_id is empty"),
        (f"{HEADER}../a,\n", "line 2: image_id '../a' is not the name of a file"),
        (f"{HEADER}a,14 1 0\0 0 1 1\n", "not a text file in UTF-8"),
        (f'{HEADER}"a,14 1 0 0 1 1\nb,\n', "line 2: 1 fields instead of 2"),
        (f"{HEADER}a,{'9' * 400} 1 0 0 1 1\n", "999...) is not six finite numbers"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, said):
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        submission.read(path, CLASS_IDS)
    assert str(path) in str(caught.value) and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_bad_line_is_named(tmp_path):
    (tmp_path / "s.csv").write_text(f"{HEADER}a,1\nb,\nc,2\n")
    with pytest.raises(InputError, match="2 problems") as caught:
        submission.read(tmp_path / "s.csv", CLASS_IDS)
    assert "line 2" in str(caught.value) and "line 4" in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.csv", ""])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(InputError, match="cannot read this file"):
        submission.read(tmp_path / name, CLASS_IDS)
