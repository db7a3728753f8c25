"""What is drawn on films: boxes where they are, labels that can all be read."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxdet import InputError
from jaxdet.inference.predict import Pictures
from jaxdet.ops.boxes import BoxTable
from jaxdet.report import overlays

NAMES = ("Cardiomegaly", "Nodule/Mass")
GRAY = np.full((300, 200), 90, np.uint8)


def draw(labels, boxes, scores, pixels=GRAY, size=(600, 400)):
    columns = np.array(labels, int), np.array(boxes, float).reshape(-1, 4), np.array(scores, float)
    return np.asarray(overlays.draw(pixels, size, *columns, NAMES))


def is_color(film, label):
    color = overlays.COLORS[label].lstrip("#")
    return (film == [int(color[i : i + 2], 16) for i in (0, 2, 4)]).all(axis=-1)


def test_a_box_is_where_it_is_in_the_original():
    """The file is half as large as the original; the picture is as large."""
    film = draw([0, 2], [[100, 200, 300, 500], [0, 0, 1, 1]], [0.9, 0.2])
    assert film.shape[1] == 400 and 600 < film.shape[0] < 640  # with a line below
    y, x = np.nonzero(is_color(film, 0))
    assert (x.min(), x.max(), y.max()) == (100, 300, 500)
    assert 170 < y.min() < 200  # the label stands on the box
    assert (film[210:490, 110:290] == 90).all()


def test_a_picture_has_the_proportions_of_the_original_and_a_size_to_look_at():
    for size, (height, width) in (
        ((3000, 1500), (1024, 512)),
        ((100, 50), (512, 256)),
        ((700, 800), (700, 800)),
    ):
        film = draw([], [], [], size=size)
        assert height < film.shape[0] < height + 40 and film.shape[1] >= width
        assert (film[:height, :width] == 90).all()


def test_what_scores_little_is_not_drawn_and_of_much_the_best():
    low = draw([0], [[100, 200, 300, 500]], [overlays.SCORE - 0.01])
    assert not is_color(low, 0).any()
    boxes = [[10 * i, 10 * i, 10 * i + 50, 10 * i + 50] for i in range(30)]
    many = draw([0] * 29 + [1], boxes, [0.5] * 29 + [0.4])
    assert is_color(many, 0).any() and not is_color(many, 1).any()


@pytest.mark.parametrize("name", ["Tràn dịch màng phổi", "Gãy xương đòn", "Плеврит", "Épanchement"])
def test_names_in_other_letters_are_drawn_by_a_font_that_has_them(name):
    """Each letter as itself: a font without it draws one box for all of them."""
    assert overlays._shown(name, 3) == name and not overlays._legend([name])
    font = overlays._font([name], 40.0)
    drawn = {letter: bytes(font.getmask(letter)) for letter in set(name) - {" "}}
    assert len(set(drawn.values())) == len(drawn)
    assert bytes(font.getmask("\u6c14")) not in drawn.values()  # which it lacks
    box = np.array([[90.0, 200, 300, 500]])
    film = overlays.draw(GRAY, (600, 400), np.array([0]), box, np.array([0.9]), [name])
    other = overlays.draw(GRAY, (600, 400), np.array([0]), box, np.array([0.9]), ["x" * len(name)])
    assert np.asarray(film).tobytes() != np.asarray(other).tobytes()


def test_names_that_no_font_has_are_numbers_with_a_legend(tmp_path, capsys):
    names = ["Nodule", "胸腔积液", "ổ", "气胸"]
    assert [overlays._shown(name, i) for i, name in enumerate(names)] == [
        "Nodule", "class 1", "ổ", "class 3",
    ]  # fmt: skip
    box, size = np.array([[90.0, 200, 300, 500]]), (600, 400)
    film = overlays.draw(GRAY, size, np.array([1]), box, np.array([0.9]), names[:2])
    same = overlays.draw(GRAY, size, np.array([1]), box, np.array([0.9]), ["Nodule", "class 1"])
    assert film.tobytes() == same.tobytes()
    none = BoxTable(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0))
    Image.fromarray(GRAY).save(tmp_path / "film.png")
    pictures = Pictures(["film"], np.array([size]), [GRAY], [], [], [tmp_path / "film.png"])
    overlays.write(tmp_path, pictures, none, names)
    assert capsys.readouterr().err.startswith(
        "note: overlays have numbers where no font has the letters: class 1 is 胸腔积液, class 3 "
        "is 气胸\n"
    )


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_label_covers_another_or_leaves_the_film(data):
    canvas = data.draw(st.tuples(st.integers(1, 300), st.integers(1, 300)))
    count = data.draw(st.integers(0, 12))
    number = st.floats(-20, 320)
    boxes = [data.draw(st.tuples(number, number, number, number)) for _ in range(count)]
    sizes = [data.draw(st.tuples(st.integers(1, 120), st.integers(1, 30))) for _ in range(count)]
    places = overlays.place_labels(boxes, sizes, canvas)
    covered = np.zeros((300, 300), int)
    for (width, height), place in zip(sizes, places, strict=True):
        if place is not None:
            x, y = place
            assert 0 <= x <= canvas[0] - width and 0 <= y <= canvas[1] - height
            covered[y : y + height, x : x + width] += 1
    assert covered.max(initial=0) <= 1


def test_boxes_at_one_place_all_have_their_labels():
    places = overlays.place_labels([(50.0, 50.0, 90.0, 90.0)] * 12, [(60, 12)] * 12, (300, 300))
    assert None not in places and len(set(places)) == 12
    assert overlays.place_labels([(0.0, 0.0, 9.0, 9.0)] * 2, [(60, 12)] * 2, (60, 12)) == [
        (0, 0),
        None,
    ]


def test_a_file_for_each_picture(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    Image.fromarray(255 - GRAY).save(tmp_path / "b.png")
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    pictures = Pictures(["a", "b"], np.full((2, 2), [600, 400]), [], [], [], files)
    table = BoxTable(
        np.array([1]), np.array([1]), np.array([[100.0, 200, 300, 500]]), np.array([0.9])
    )
    overlays.write(tmp_path, pictures, table, NAMES, [1])
    a, b = (np.asarray(Image.open(tmp_path / f"overlays/{name}.png")) for name in "ab")
    assert not is_color(a, 1).any() and is_color(b, 1).any()
    assert a[300, 200].tolist() == b[300, 200].tolist() == [90] * 3  # b was inverted
    assert sorted(p.name for p in (tmp_path / "overlays").iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("labels,scores", [([2], [0.9]), ([0, 2], [0.1, 0.9]), ([], [])])
def test_a_film_without_boxes_says_so_below(labels, scores):
    film = draw(labels, [[0, 0, 1, 1]] * len(labels), scores)
    assert (film[:600, :400] == 90).all() and (film[600:] == 255).any()


def films(folder, count):
    """So many pictures, of which number i has a finding of score i / 10."""
    files = [folder / f"{i}.png" for i in range(count)]
    for file in files:
        Image.fromarray(GRAY).save(file)
    sizes = np.full((count, 2), [300, 200])
    image = np.r_[np.arange(count), np.arange(count)]
    labels = np.repeat([0, len(NAMES)], count)  # the lower, the surer of "No finding"
    scores = np.r_[np.arange(count), 10 - np.arange(count)] / 10
    boxes = np.tile([10.0, 10, 50, 50], (2 * count, 1))
    names = [file.stem for file in files]
    return Pictures(names, sizes, [], [], [], files), BoxTable(image, labels, boxes, scores)


def drawn(folder):
    return sorted(path.name for path in folder.glob("overlays/*"))


@pytest.mark.parametrize("most", [0, 2, 9])
def test_those_with_the_surest_findings_are_drawn(tmp_path, most, capsys):
    pictures, table = films(tmp_path, 5)
    overlays.write(tmp_path, pictures, table, NAMES, most=most)
    assert drawn(tmp_path) == [f"{i}.png" for i in range(5)][max(5 - most, 0) :]
    assert "note" not in capsys.readouterr().err


def test_of_a_large_folder_not_all_are_drawn_and_that_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(overlays, "FILMS", 3)
    pictures, table = films(tmp_path, 5)
    overlays.write(tmp_path, pictures, table, NAMES)
    assert drawn(tmp_path) == ["2.png", "3.png", "4.png"]
    said = capsys.readouterr().err
    assert (
        "note: of 5 pictures the 3 with the surest findings are drawn; --overlays=5 draws all\n"
    ) in said


def test_as_many_are_drawn_at_a_time_as_there_are_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(overlays.machine, "cores", lambda: 3)
    together, read = threading.Barrier(3, timeout=20), overlays.images.read
    monkeypatch.setattr(overlays.images, "read", lambda file: together.wait() * 0 or read(file))
    pictures, table = films(tmp_path, 6)
    overlays.write(tmp_path, pictures, table, NAMES)
    assert len(drawn(tmp_path)) == 6


def test_after_one_that_cannot_be_written_no_more_follow(tmp_path, monkeypatch):
    monkeypatch.setattr(overlays.machine, "cores", lambda: 1)
    pictures, table = films(tmp_path, 5)
    pictures.files[1].unlink()
    with pytest.raises(InputError, match="1.png"):
        overlays.write(tmp_path, pictures, table, NAMES)
    assert len(drawn(tmp_path)) < 4


def test_of_a_split_nothing_is_drawn(tmp_path, capsys):
    """It has no files."""
    pictures, table = films(tmp_path, 3)
    overlays.write(tmp_path, pictures._replace(files=[]), table, NAMES)
    assert drawn(tmp_path) == [] and capsys.readouterr().out == ""
