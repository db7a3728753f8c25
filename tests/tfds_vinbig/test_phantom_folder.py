"""The phantom's folder: whole and the same for a seed, its tables in order, however it was made."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from jaxdet import InputError
from jaxdet.data import machine
from tfds_vinbig import drawn, kaggle
from tfds_vinbig.kaggle import CLASS_NAMES
from tfds_vinbig.phantom import draw_folder, plan_image
from tfds_vinbig.phantom import folder as room
from tfds_vinbig.phantom.plan import NO_FINDING_LABEL, READERS, SIZES

NUM_TRAIN, NUM_TEST, SIZE = 24, 8, 64
BOX = ["x_min", "y_min", "x_max", "y_max"]
TABLES = ("train.csv", "truth.csv", "train_meta.csv", "test_meta.csv", "sample_submission.csv")


def draw(folder, seed=3, **keywords):
    keywords = {"num_train": NUM_TRAIN, "num_test": NUM_TEST, "size": SIZE, **keywords}
    draw_folder(folder, seed=seed, **keywords)
    return folder


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("phantom") / "new" / "folder", workers=1)


@pytest.fixture(scope="module")
def tables(folder):
    return {name: pd.read_csv(folder / name) for name in TABLES}


# The folder


def test_the_same_for_any_number_of_workers(folder, tmp_path):
    assert files(draw(tmp_path / "two", workers=2)) == files(folder)


def test_another_seed_is_another_folder(folder, tmp_path):
    other = draw(tmp_path / "other", seed=4, workers=1)
    assert not set(files(other)) & {name for name in files(folder) if name.endswith(".png")}
    pictures = [{p.read_bytes() for p in f.rglob("*.png")} for f in (folder, other)]
    assert len(pictures[0] | pictures[1]) == 2 * (NUM_TRAIN + NUM_TEST)  # no two pictures alike


def test_more_images_leave_the_first_ones_as_they_are(folder, tmp_path):
    more = files(draw(tmp_path / "more", num_train=NUM_TRAIN + 2, workers=1))
    pictures = {name: data for name, data in files(folder).items() if name.endswith(".png")}
    assert pictures.items() <= more.items()


def test_every_image_is_in_every_table(folder, tables):
    ids = {s: {p.stem for p in (folder / s).glob("*.png")} for s in ("train", "test")}
    assert {split: len(names) for split, names in ids.items()} == {"train": 24, "test": 8}
    assert all(len(name) == 32 and set(name) <= set("0123456789abcdef") for name in ids["train"])
    truth = tables["truth.csv"]
    assert set(tables["train.csv"].image_id) == ids["train"]
    assert set(truth.image_id[truth.split == "train"]) == ids["train"]
    assert set(truth.image_id[truth.split == "test"]) == ids["test"]
    for split in ("train", "test"):
        assert sorted(tables[f"{split}_meta.csv"].image_id) == sorted(ids[split])
    assert sorted(tables["sample_submission.csv"].image_id) == sorted(ids["test"])


def test_the_folder_says_by_which_drawing(folder, tmp_path, capsys):
    assert drawn.drawing_of(folder) == drawn.DRAWING
    assert drawn.drawn_phantom(folder) == folder and capsys.readouterr().err == ""
    (tmp_path / "train.csv").touch()  # of the first drawing, which left no number
    assert drawn.drawn_phantom(tmp_path) == tmp_path
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line and "drawing 1" in line and "remove" in line


def test_columns_and_pictures(folder, tables):
    columns = ["image_id", "class_name", "class_id", "rad_id", *BOX]
    assert list(tables["train.csv"]) == columns
    assert list(tables["truth.csv"]) == ["image_id", "split", *columns[1:]]
    assert list(tables["train_meta.csv"]) == ["image_id", "dim0", "dim1"]
    assert list(tables["sample_submission.csv"]) == ["image_id", "PredictionString"]
    assert set(tables["sample_submission.csv"].PredictionString) == {"14 1 0 0 1 1"}
    assert set(tables["truth.csv"].rad_id) == {"truth"}
    for table in (tables["train.csv"], tables["truth.csv"]):
        assert table.class_name.tolist() == [
            (*CLASS_NAMES, "No finding")[i] for i in table.class_id
        ]
    sizes = set(zip(tables["train_meta.csv"].dim0, tables["train_meta.csv"].dim1, strict=True))
    assert sizes <= set(SIZES) and len(sizes) > 3
    for path in folder.rglob("*.png"):
        with Image.open(path) as picture:
            assert (picture.mode, picture.size) == ("L", (SIZE, SIZE))


def test_the_house_can_read_it(folder):
    found = kaggle.read_folder(folder)
    assert (len(found.train), len(found.test), found.notes) == (NUM_TRAIN, NUM_TEST, [])


def test_boxes_lie_inside_and_normal_rows_have_none(tables):
    meta = pd.concat([tables["train_meta.csv"], tables["test_meta.csv"]])
    for table in (tables["train.csv"], tables["truth.csv"]):
        table = table.merge(meta, on="image_id")
        normal = table.class_id == NO_FINDING_LABEL
        assert table.loc[normal, BOX].isna().all(axis=None)
        table = table[~normal]
        assert len(table) > 50
        assert (table.x_min > 0).all() and (table.x_max < table.dim1).all()
        assert (table.y_min > 0).all() and (table.y_max < table.dim0).all()
        assert (table.x_min < table.x_max).all() and (table.y_min < table.y_max).all()


def test_three_readers_an_image_and_none_is_mixed(tables):
    train = tables["train.csv"]
    by_image = train.groupby("image_id")
    assert (by_image.rad_id.nunique() == 3).all()
    normal = by_image.class_id.agg(lambda ids: (ids == NO_FINDING_LABEL).mean())
    assert set(normal) == {0.0, 1.0}
    assert normal.sum() == NUM_TRAIN / 2
    assert (by_image.size()[normal == 1] == 3).all()
    truth = tables["truth.csv"]
    is_normal = truth.groupby("image_id").class_id.max() == NO_FINDING_LABEL
    assert (is_normal[normal.index] == (normal == 1)).all()
    assert is_normal.sum() == (NUM_TRAIN + NUM_TEST) / 2
    assert (truth[truth.class_id == NO_FINDING_LABEL].groupby("image_id").size() == 1).all()


def test_neither_order_nor_reader_tells_who_is_ill(tables):
    ids = tables["train_meta.csv"].image_id
    normal = set(tables["train.csv"].image_id[tables["train.csv"].class_id == NO_FINDING_LABEL])
    pattern = [name in normal for name in ids]
    assert pattern[::2].count(True) not in (0, NUM_TRAIN // 2)
    assert tables["train.csv"].image_id.duplicated().values[:20].sum() < 15  # rows are mixed
    readers = {True: set(), False: set()}
    for index in range(200):
        plan = plan_image(0, 0, index)
        readers[plan.findings == []] |= {row.reader for row in plan.readers}
    assert readers[True] == readers[False] == set(READERS)


# Made at once, interrupted, killed


def before_picture(number, do, monkeypatch):
    """Call `do` once in the drawing of a folder, before its picture of that number, from 0."""
    write, count = room.write_image, itertools.count()

    def write_image(plan, size, folder):
        if next(count) == number:
            monkeypatch.setattr(room, "write_image", write)
            do()
        write(plan, size, folder)

    monkeypatch.setattr(room, "write_image", write_image)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_failure_leaves_nothing(tmp_path, monkeypatch, error):
    def fail():
        assert len(list(tmp_path.rglob("*.png"))) == 3
        raise error

    before_picture(3, fail, monkeypatch)
    with pytest.raises(error):
        draw(tmp_path / "new/phantom", workers=1)
    assert list(tmp_path.iterdir()) == []


def test_the_first_to_finish_wins(folder, tmp_path, monkeypatch):
    """Another call begins later and ends earlier."""
    new = tmp_path / "phantom"
    before_picture(3, lambda: draw(new, workers=1) and (new / "first").touch(), monkeypatch)
    draw(new, workers=1)
    assert files(new) == files(folder) | {"first": b""}
    assert os.listdir(tmp_path) == ["phantom"]


def test_what_others_put_there_meanwhile_stays(tmp_path, monkeypatch):
    new = tmp_path / "phantom"
    before_picture(3, lambda: new.mkdir() or (new / "mine").touch(), monkeypatch)
    with pytest.raises(InputError, match=str(new)):
        draw(new, workers=1)
    assert os.listdir(new) == ["mine"] and os.listdir(tmp_path) == ["phantom"]


@pytest.fixture
def drawing(tmp_path):
    """A process that draws tmp_path/phantom with two workers, of which both have begun."""
    code = (
        # Also where the tests run in the background, which would ignore it.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tfds_vinbig.phantom import draw_folder\n"
        f"draw_folder({str(tmp_path / 'phantom')!r}, workers=2)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob(".phantom.scratch-*/new/train/*.png"))) < 20:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_interrupted(drawing, tmp_path):
    os.killpg(drawing.pid, signal.SIGINT)  # to every process, as a terminal does
    _, errors = drawing.communicate(timeout=60)
    assert drawing.returncode != 0 and b"KeyboardInterrupt" in errors
    assert list(tmp_path.iterdir()) == []


def test_as_many_processes_as_it_may_use_cores(folder, tmp_path, monkeypatch):
    """Which may be fewer than the machine has."""
    before_picture(1, lambda: None, monkeypatch)  # which another process could not be sent
    monkeypatch.setattr(machine, "cores", lambda: 1)
    assert files(draw(tmp_path / "phantom")) == files(folder)


def end_at_once(plan, size, folder):
    os._exit(9)


def test_a_process_that_is_killed_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "write_image", end_at_once)
    with pytest.raises(InputError, match="a process that drew it was killed"):
        draw(tmp_path / "phantom", workers=2)
    assert list(tmp_path.iterdir()) == []


def test_killed(drawing, folder, tmp_path):
    drawing.kill()
    drawing.communicate(timeout=10)  # ends when the workers do, who write to the same pipe
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".phantom.scratch-")
    draw(tmp_path / "phantom", workers=1)
    assert os.listdir(tmp_path) == ["phantom"]
    assert files(tmp_path / "phantom") == files(folder)


def test_what_is_there_stays(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(InputError, match=str(tmp_path)):
        draw(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
