import numpy as np
import pytest

from jaxdet import InputError, submission
from jaxdet.inference import Detections

DETECTIONS = Detections(
    boxes=np.array([[[8, 16, 24, 48], [0, 0, 64, 64]], [[0, 0, 0, 0]] * 2], np.float32),
    labels=np.array([[3, 8], [0, 0]]),
    scores=np.array([[0.75, 0.5], [0, 0]], np.float32),
    mask=np.array([[True, True], [False, False]]),
    normal=np.array([0.25, 1.0], np.float32),
)
SIZES = np.array([[1000, 2000], [500, 640]])  # (height, width)


def test_boxes_come_out_in_original_pixels_and_class_14_ranks_images():
    table = submission.to_table(DETECTIONS, SIZES, 64)
    assert table.labels.tolist() == [3, 8, 14, 14]
    assert table.image.tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(table.boxes[0], [250, 250, 750, 750])
    np.testing.assert_allclose(table.boxes[2:], [[0, 0, 1, 1]] * 2)
    np.testing.assert_allclose(table.scores, [0.75, 0.5, 0.25, 1.0])


def test_written_as_kaggle_wants_it_and_read_back(tmp_path):
    path = tmp_path / "submission.csv"
    table = submission.to_table(DETECTIONS, SIZES, 64)
    submission.write(path, ["b", "a"], table)
    lines = path.read_text().splitlines()
    assert lines[0] == "image_id,PredictionString"
    assert lines[1].startswith("b,3 0.75 250.00 250.00 750.00 750.00 8 0.5 ")
    assert lines[2] == "a,14 1 0 0 1 1"
    ids, back = submission.read(path)
    assert ids == ["b", "a"]
    order = np.lexsort((table.labels, table.image))
    for mine, theirs in zip(table, back, strict=True):
        np.testing.assert_allclose(mine[order], theirs)
    assert [p.name for p in tmp_path.iterdir()] == ["submission.csv"]


def test_the_closest_scores_keep_their_order(tmp_path):
    low = np.float32(0.3)
    scores = np.array([[low, np.nextafter(low, np.float32(1))], [0, 0]], np.float32)
    table = submission.to_table(DETECTIONS._replace(scores=scores), SIZES, 64)
    submission.write(tmp_path / "s.csv", ["a", "b"], table)
    _, back = submission.read(tmp_path / "s.csv")
    np.testing.assert_array_equal(back.scores[:2].astype(np.float32), scores[0])


def test_an_empty_string_is_no_detection(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("PredictionString,image_id\n,a\n14 1 0 0 1 1,b\n")
    ids, table = submission.read(path)
    assert ids == ["a", "b"] and table.image.tolist() == [1]


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "first line"),
        ("image_id,Boxes\na,14 1 0 0 1 1\n", "first line"),
        ("image_id,PredictionString\na,14 1 0 0 1\n", "line 2: .* 5 words"),
        ("image_id,PredictionString\na,14 one 0 0 1 1\n", "line 2: box 1 .* no number"),
        ("image_id,PredictionString\na,14 nan 0 0 1 1\n", "line 2: box 1 .* not finite"),
        ("image_id,PredictionString\na,15 1 0 0 1 1\n", "line 2: .* class 15"),
        ("image_id,PredictionString\na,3 1 9 0 1 1\n", "line 2: box 1 is upside down"),
        ("image_id,PredictionString\na,\na,\n", "line 3: .* twice"),
        ("image_id,PredictionString\na,,\n", "line 2: 3 fields"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, message):
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        submission.read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.csv"):
        submission.read(tmp_path / "nowhere.csv")
