"""What is drawn on films: boxes where they are, labels that can all be read."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxdet import InputError
from jaxdet.data import images
from jaxdet.inference import predict
from jaxdet.inference.detector import Loaded
from jaxdet.inference.predict import read_pictures
from jaxdet.ops.nms import Detections
from jaxdet.report import overlays
from jaxdet.runs.workdir import Run

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
    write(tmp_path, 1, names)
    said = capsys.readouterr().err.removeprefix(f"note: 1 pictures: {images.FLAT}: 0\n")
    assert said.startswith(
        "note: overlays have numbers where no font has the letters: class 1 is 胸腔积液, class 3 "
        "is 气胸\n"
    )


@settings(max_examples=80, deadline=None)
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


# Films of any grey level look as the training images of it do.
RUN = Run(list(NAMES), [0, 1, 2], "", "", [], [[0.0] * 65, [1e9] * 65])


class ByGrey:
    """Stands for a detector: in an image of grey level g it finds a box that scores g / 100."""

    config = SimpleNamespace(
        data=SimpleNamespace(image_size=100), evaluation=SimpleNamespace(batch_size=2)
    )

    def detect_batches(self, weights, load, num_images):
        images = [load(i) for i in range(num_images)]
        for first in range(0, num_images, 2):
            scores = np.array([image[0, 0] / 100 for image in images[first : first + 2]])
            count = len(scores)
            yield Detections(
                boxes=np.tile(np.float32([10, 10, 50, 50]), (count, 1, 1)),
                labels=np.zeros((count, 1), np.int32),
                scores=scores[:, None],
                mask=np.ones((count, 1), bool),
                normal=1 - scores,
            )


def pictures_of(folder, count):
    """So many pictures, of which number i has grey level 10 i: the last are the surest."""
    for i in range(count):
        Image.fromarray(np.full((300, 200), 10 * i, np.uint8)).save(folder / f"{i}.png")
    return read_pictures([folder / f"{i}.png" for i in range(count)], None)


def write(folder, count, class_names=NAMES, **more):
    """Predict so many pictures and write their overlays."""
    run = RUN._replace(class_names=list(class_names))
    pictures = more.pop("pictures", None) or pictures_of(folder, count)
    with overlays.predicted(Loaded(ByGrey(), {}, 0), pictures, run, folder, **more) as (found, put):
        assert not list(folder.glob("overlays/*"))  # they have their names all together
        put()
    return found


def drawn(folder):
    assert not list(folder.glob("**/.*"))  # nothing is left but what has its name
    return sorted(path.name for path in folder.glob("overlays/*"))


@pytest.mark.parametrize("labels,scores", [([2], [0.9]), ([0, 2], [0.1, 0.9]), ([], [])])
def test_a_film_without_boxes_says_so_below(labels, scores):
    film = draw(labels, [[0, 0, 1, 1]] * len(labels), scores)
    assert (film[:600, :400] == 90).all() and (film[600:] == 255).any()


@pytest.mark.parametrize("most", [0, 2, 5, 9])
def test_those_with_the_surest_findings_are_drawn(tmp_path, most, capsys):
    write(tmp_path, 5, most=most)
    assert drawn(tmp_path) == [f"{i}.png" for i in range(5)][max(5 - most, 0) :]
    assert "--overlays" not in capsys.readouterr().err


def test_of_a_large_folder_not_all_are_drawn_and_that_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(overlays, "FILMS", 3)
    write(tmp_path, 5)
    assert drawn(tmp_path) == ["2.png", "3.png", "4.png"]
    said = capsys.readouterr().err
    assert (
        "note: of 5 pictures the 3 with the surest findings are drawn; --overlays=5 draws all\n"
    ) in said


@pytest.mark.parametrize("most", [5, 4])
def test_an_overlay_is_what_draw_makes_of_the_file(tmp_path, most):
    """Whether it is drawn on what was kept of the film, or the film is read again."""
    found = write(tmp_path, 5, most=most)
    rows = found.table.image == 4
    columns = (column[rows] for column in found.table[1:])
    pixels = np.full((300, 200), 40, np.uint8)
    expected = overlays.draw(pixels, (300, 200), *columns, NAMES)
    assert Image.open(tmp_path / "overlays/4.png").tobytes() == expected.tobytes()
    assert is_color(np.asarray(expected), 0).any()


@pytest.mark.parametrize("most", [5, 1])
def test_a_film_that_was_inverted_is_drawn_as_it_was_detected(tmp_path, most, monkeypatch):
    monkeypatch.setattr(predict, "looks_inverted", lambda image, levels: image[0, 0] == 0)
    given = Loaded(ByGrey(), {}, 0), pictures_of(tmp_path, 2), RUN, tmp_path
    with overlays.predicted(*given, invert=True, most=most) as (_, put):
        put()
    assert (np.asarray(Image.open(tmp_path / "overlays/0.png"))[400, 300] == 255).all()


@pytest.mark.parametrize("most", [6, 5])
def test_as_many_are_drawn_at_a_time_as_there_are_cores(tmp_path, monkeypatch, most):
    monkeypatch.setattr(overlays.machine, "cores", lambda: 3)
    together, draw = threading.Barrier(3, timeout=20), overlays.draw
    count = iter(range(6))

    def wait(*args):
        if next(count) < 3:
            together.wait()
        return draw(*args)

    monkeypatch.setattr(overlays, "draw", wait)
    write(tmp_path, 6, most=most)
    assert len(drawn(tmp_path)) == most


@pytest.mark.parametrize("most", [5, 4])
def test_where_one_cannot_be_drawn_or_something_comes_between_there_is_none(
    tmp_path, monkeypatch, most
):
    draw, calls = overlays.draw, iter(range(9))
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(overlays, "draw", lambda *a: draw(*a) if next(calls) < 2 else interrupt())
        write(tmp_path, 5, most=most)
    assert drawn(tmp_path) == []
    given = Loaded(ByGrey(), {}, 0), pictures_of(tmp_path, 5), RUN, tmp_path
    with pytest.raises(KeyboardInterrupt), overlays.predicted(*given, most=most):
        interrupt()  # before the overlays are asked for
    assert drawn(tmp_path) == []
    (tmp_path / "overlays").write_text("no folder")
    with pytest.raises(InputError, match="cannot write .*overlays"):
        write(tmp_path, 5, most=most)


def interrupt():
    raise KeyboardInterrupt


def test_of_a_split_nothing_is_drawn(tmp_path, capsys):
    """It has no files."""
    split = pictures_of(tmp_path, 3)._replace(files=(), sizes=np.full((3, 2), 300))
    write(tmp_path, 3, pictures=split)
    assert drawn(tmp_path) == [] and capsys.readouterr().out == ""
