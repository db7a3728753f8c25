"""Pictures of anyone's: which files are meant, and what comes of them."""

import json
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_file

from jaxdet import InputError
from jaxdet.data import dicom, images, machine
from jaxdet.data.ahead import in_order
from jaxdet.inference import predict
from jaxdet.inference.detector import Loaded
from jaxdet.ops.nms import Detections
from tests import dicoms
from tests.conftest import command


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.jpg", "notes.txt", ".c.png"):
        Image.new("L", (40, 20), 90).save(tmp_path / name, "png" if "png" in name else "jpeg")
    return tmp_path


def test_a_file_a_folder_or_a_glob(folder):
    names = lambda path: [p.name for p in predict.find_files(str(path))]  # noqa: E731
    assert names(folder) == ["a.jpg", "b.png"]
    assert names(folder / "b.png") == ["b.png"]
    assert names(folder / "*.jpg") == ["a.jpg"]
    with pytest.raises(InputError, match="--images=.*/none: no picture there"):
        predict.find_files(str(folder / "none"))


def test_sizes_are_the_files_own_or_those_that_are_known(folder):
    files = predict.find_files(str(folder))
    own = predict.read_pictures(files, None)
    assert own.ids == ["a", "b"] and own.problems == []
    pixels, size, _ = own.read(1, images.read)
    assert size == pixels.shape == (20, 40) and (pixels == 90).all()
    known = predict.read_pictures(files, {"a": (200, 400)})
    assert known.ids == ["a"] and known.read(0, images.read)[1] == (200, 400)
    assert len(known.problems) == 1 and "no line for image_id b" in known.problems[0]


def test_a_file_that_cannot_be_read_is_a_problem_and_the_rest_go_on(folder):
    (folder / "a.jpg").write_bytes(b"no picture")
    got = predict.read_pictures(predict.find_files(str(folder)), None)
    assert got.ids == ["b"] and "a.jpg" in got.problems[0]


def test_the_pictures_of_a_split_come_in_the_order_of_its_index(dataset):
    order = np.random.default_rng(0).permutation(len(dataset))
    got = predict.split_pictures(dataset.take(order), 64)
    assert got.ids == sorted(dataset.ids.tolist())  # as train_meta.csv has them
    i = int(np.flatnonzero(dataset.ids == got.ids[5])[0])
    np.testing.assert_array_equal(got.read(5, None)[0], dataset.decode(i, 64))
    assert got.read(5, None)[1] == tuple(dataset.sizes[i])


class Counting:
    """Stands for a detector: finds in each image a box of its mean grey level.

    `most` is how many images were read and not yet given to it, at most.
    """

    def __init__(self, batch_size):
        self.config = SimpleNamespace(
            data=SimpleNamespace(image_size=8), evaluation=SimpleNamespace(batch_size=batch_size)
        )
        self.read, self.most, self.given = 0, 0, 0

    def detect_batches(self, weights, load, num_images):
        def counted(i):
            self.read += 1
            self.most = max(self.most, self.read - self.given)
            return load(i)

        size = self.config.evaluation.batch_size
        images = in_order(counted, range(num_images), ahead=size)
        for first in range(0, num_images, size):
            count = min(size, num_images - first)
            grey = np.array([next(images).mean() for _ in range(count)])
            self.given += count
            yield Detections(
                boxes=np.tile(np.float32([1, 2, 3, 4]), (count, 1, 1)),
                labels=np.zeros((count, 1), np.int32),
                scores=grey[:, None] / 255,
                mask=np.ones((count, 1), bool),
                normal=1 - grey / 255,
            )


def films(count, broken=()):
    """Pictures of which number i has grey level i; those in `broken` cannot be read."""

    def read(i, decode):
        if i in broken:
            raise InputError(f"{i}.png: broken")
        return np.full((16, 8), i, np.uint8), (32, 16), ("odd",) * (i % 2)

    names = list(map(str, range(count)))
    return predict.Pictures(names, read, files=[Path(f"{name}.png") for name in names])


@pytest.mark.parametrize("count", [1, 5, 7, 40])
def test_no_more_films_are_in_memory_than_two_batches(count, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    detector = Counting(5)
    found = predict.predict(Loaded(detector, {}, 0), films(count), 1)
    assert detector.most <= 2 * 5 + 2
    assert found.ids == list(map(str, range(count))) and detector.read == count
    mine = found.table.labels == 0
    np.testing.assert_allclose(found.table.scores[mine] * 255, np.arange(count))
    # A box of the model's 8 x 8 pixels in the original's 32 x 16.
    assert (found.table.boxes[mine] == [2, 8, 6, 16]).all()
    assert found.notes == ([f"{count // 2} pictures: odd"] if count > 1 else [])


def test_a_film_that_turns_out_to_be_broken_is_left_out_and_named(monkeypatch):
    drawn = []
    found = predict.predict(
        Loaded(Counting(3), {}, 0), films(8, broken=(2, 7)), 1,
        shrink=lambda pixels, size: pixels, draw=lambda i, film, rows: drawn.append((i, rows)),
    )  # fmt: skip
    assert found.problems == ["2.png: broken", "7.png: broken"]
    assert found.ids == list("013456") == [path.stem for path in found.files]
    mine = found.table.labels == 0
    np.testing.assert_allclose(found.table.scores[mine] * 255, [0, 1, 3, 4, 5, 6])
    assert found.table.image[mine].tolist() == list(range(6)) and len(found.sizes) == 6
    assert [i for i, _ in drawn] == [0, 1, 3, 4, 5, 6]  # as soon as they are detected
    assert [float(rows.scores[0] * 255) for _, rows in drawn] == pytest.approx([0, 1, 3, 4, 5, 6])
    assert all((rows.boxes[0] == [2, 8, 6, 16]).all() for _, rows in drawn)


def test_a_split_with_a_broken_picture_is_damaged():
    pictures = films(8, broken=(5,))._replace(files=(), sizes=np.full((8, 2), 16))
    with pytest.raises(InputError, match=r"5\.png"):
        predict.predict(Loaded(Counting(3), {}, 0), pictures, 1)


def test_dicoms_of_a_folder_by_whatever_name(folder):
    (folder / "deep").mkdir()
    for name in ("c.dcm", "1.2.840.5", "series", "deep/d.dicom", "DICOMDIR", ".e.dcm"):
        dicoms.save(folder / name, np.zeros((20, 40), np.uint8))
    names = lambda path: [p.name for p in predict.find_files(str(path))]  # noqa: E731
    assert names(folder) == ["1.2.840.5", "a.jpg", "b.png", "c.dcm", "series"]
    assert names(folder / "**" / "*.d*") == ["c.dcm", "d.dicom"]
    got = predict.read_pictures(predict.find_files(str(folder)), None)
    assert got.ids == ["1.2.840.5", "a", "b", "c", "series"] and got.problems == []
    assert [got.read(i, images.read)[1] for i in range(5)] == [(20, 40)] * 5
    dicoms.save(folder / "b.dcm", np.zeros((20, 40), np.uint8))
    with pytest.raises(InputError, match="2 files are named b"):
        predict.find_files(str(folder))


def test_ids_of_a_glob_are_paths_below_what_it_names(tmp_path, monkeypatch):
    """As a build has them: the same names in the folders of several patients are several images."""
    for place in ("p1/view", "p2/view", "p2/deep/view"):
        (tmp_path / "films" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 20), 90).save(tmp_path / f"films/{place}.png")

    def ids(pattern, known=None):
        files = predict.find_files(pattern)
        return predict.read_pictures(files, known, predict.folder_of(pattern))

    films = tmp_path / "films"
    assert ids(f"{films}/*/*.png").ids == ["p1__view", "p2__view"]
    assert ids(f"{films}/**/*.png").ids == ["p1__view", "p2__deep__view", "p2__view"]
    assert ids(f"{films}/p*/view.png").ids == ["p1__view", "p2__view"]
    assert ids(f"{films}/p2/**/*.png").ids == ["deep__view", "view"]
    assert ids(f"{films}/p1").ids == ids(f"{films}/p1/view.png").ids == ["view"]
    monkeypatch.chdir(tmp_path)
    assert ids("films/*/*.png").ids == ids("./films/*/*.png").ids == ["p1__view", "p2__view"]
    with pytest.raises(InputError, match=r"looked into by a glob, '\*\*/\*'$"):
        predict.find_files(str(films))
    # A table calls them what it calls them, whatever folder --images begins at.
    known = {"films__p1__view": (200, 400), "p2__view": None}
    got = ids(f"{films}/*/*.png", known)
    assert got.ids == ["films__p1__view", "p2__view"]
    assert [got.read(i, images.read)[1] for i in range(2)] == [
        (200, 400),
        (20, 40),
    ] and not got.problems
    got = ids(f"{films}/*/*.png", {"view": (200, 400)})
    assert (
        got.ids == ["view"]
        and "one line for it and another file, image_id view" in (got.problems[0])
    )


def test_names_are_composed(tmp_path):
    decomposed = unicodedata.normalize("NFD", "phổi")
    Image.new("L", (40, 20), 90).save(tmp_path / f"{decomposed}.png")
    composed = unicodedata.normalize("NFC", "phổi")
    files = predict.find_files(str(tmp_path))
    assert predict.read_pictures(files, {composed: (2, 3)}).ids == [composed]


def test_what_is_seen_in_the_pixels_is_noted_by_name(folder):
    pictures = predict.read_pictures(predict.find_files(str(folder)), None)
    found = predict.predict(Loaded(Counting(3), {}, 0), pictures, 1)
    assert found.notes == [f"2 pictures: {images.FLAT}: a, b"]


def test_without_the_extra_the_first_dicom_ends_it(folder, monkeypatch):
    for name in ("c.dcm", "d.dcm"):
        dicoms.save(folder / name, np.zeros((20, 40), np.uint8))
    dicoms.without_pydicom(monkeypatch)
    with pytest.raises(dicom.NotInstalled, match=r"c.dcm: .*pip install -e '.\[dicom\]'"):
        predict.read_pictures(predict.find_files(str(folder)), None)


def test_films_of_all_kinds_predicted_and_drawn(trained, kaggle_folder, tmp_path):
    """A PNG and DICOMs of the same pixels have the same boxes; what is no film is named."""
    workdir, _ = trained
    folder = tmp_path / "films"
    levels = np.asarray(Image.open(kaggle_folder / "test/test01.png"))
    folder.mkdir()
    Image.fromarray(levels).save(folder / "png.png")
    dicoms.save(folder / "raw.dcm", levels)
    dicoms.save(folder / "j2k", levels, uid.JPEG2000Lossless)
    dicoms.save(folder / "white", 255 - levels, PhotometricInterpretation="MONOCHROME1")
    dicoms.save(folder / "ct.dcm", levels, Modality="CT")
    (folder / "text.dcm").write_text("no film")
    Image.fromarray(levels).save(folder / "cut.jpg")  # by its header all is well
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-500])
    done = command(
        f"--workdir={workdir}", "--mode=predict", f"--images={folder}", f"--output={tmp_path}/out"
    )
    assert done.code == 2
    lines = done.stderr.splitlines()
    assert "note: 1 pictures: stored with white as zero, inverted" in lines
    assert [line for line in lines if "ct.dcm: a DICOM of modality CT" in line]
    assert [line for line in lines if "text.dcm: not a PNG, JPEG, TIFF or DICOM" in line]
    assert [line for line in lines if "cut.jpg: broken image" in line]
    assert lines[-1] == "run.py: 3 of 7 pictures could not be read"
    found = pd.read_csv(tmp_path / "out/submission.csv").set_index("image_id").PredictionString
    assert found.index.tolist() == ["j2k", "png", "raw", "white"] and found.nunique() == 1
    results = json.loads((tmp_path / "out/detections.json").read_text())
    assert {row["image_id"] for row in results} == set(found.index)
    drawn = [Image.open(tmp_path / f"out/overlays/{name}.png") for name in found.index]
    assert len({film.tobytes() for film in drawn}) == 1 and drawn[0].width == 512
    assert len(list((tmp_path / "out/overlays").iterdir())) == 4


def test_many_dicoms_are_decoded_by_processes(tmp_path, monkeypatch):
    """As they would be by threads; one that is none is named."""
    monkeypatch.setattr(machine, "cores", lambda: 2)
    levels = np.random.default_rng(0).integers(0, 240, (80, 64), np.uint8)
    for i in range(predict.FEW_DICOMS):
        dicoms.save(tmp_path / f"{i}.dcm", levels + np.uint8(i), uid.JPEG2000Lossless)
    pictures = predict.read_pictures(predict.find_files(str(tmp_path)), None)
    (tmp_path / "text.dcm").write_text("no film")

    with monkeypatch.context() as patch:  # what is decoded here is not decoded there
        patch.setattr(dicom, "read", None)
        by_processes = predict.predict(Loaded(Counting(3), {}, 0), pictures, 1)
        with (
            predict._decoder(pictures.files) as decode,
            pytest.raises(InputError, match=r"text.dcm: not a PNG, JPEG, TIFF or DICOM"),
        ):
            decode(tmp_path / "text.dcm")
    monkeypatch.setattr(predict, "FEW_DICOMS", 99)
    by_threads = predict.predict(Loaded(Counting(3), {}, 0), pictures, 1)
    assert by_processes.problems == by_threads.problems == []
    jax.tree.map(np.testing.assert_array_equal, by_processes.table, by_threads.table)


def test_the_chest_films_of_pydicom_are_one_picture_four_times(trained, tmp_path):
    for kind in ("UNCR", "J2KR", "UNCI", "J2KI"):
        (tmp_path / f"{kind}.dcm").symlink_to(get_testdata_file(f"RG1_{kind}.dcm"))
    done = command(
        f"--workdir={trained[0]}", "--mode=predict", f"--images={tmp_path}/*.dcm",
        f"--output={tmp_path}/out",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    found = pd.read_csv(tmp_path / "out/submission.csv").set_index("image_id").PredictionString
    assert found["UNCR"] == found["J2KR"] and found["UNCI"] == found["J2KI"]
    exact, lossy = (np.asarray(Image.open(tmp_path / f"out/overlays/{k}.png").convert("L"))
                    for k in ("UNCR", "UNCI"))  # fmt: skip
    assert exact.shape[1] == 964  # 1955 x 1841 at 1024
    assert abs(exact[:1000].astype(int) - lossy[:1000]).mean() < 2
