"""Datasets built of DICOM films: the same records as of PNGs of the same pixels."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames
from tensorflow_datasets.core.file_adapters import FileFormat
from tensorflow_datasets.proto import tf_example_pb2

from jaxdet import InputError
from jaxdet.data import images
from tests import dicoms
from tests.conftest import ROOT
from tests.tfds_vinbig import test_builder
from tests.tfds_vinbig.test_builder import files, pixels, records
from tfds_vinbig import encoding, kaggle
from tfds_vinbig import tfds_vinbig_dataset_builder as builder

ARRAY_RECORD = FileFormat.ARRAY_RECORD
folder = test_builder.folder  # train/a.png and b.png, test/q.png, with their tables


@pytest.fixture
def films(folder):
    """The folder with films of 300 x 220 instead of its PNGs, and no tables of sizes."""
    rng = np.random.default_rng(0)
    names = {"train/a": "a.dicom", "train/b": "b", "test/q": "q.dcm"}
    for (place, name), syntax in zip(
        names.items(), (uid.JPEG2000Lossless, uid.RLELossless, uid.JPEGLosslessSV1), strict=True
    ):
        levels = rng.integers(0, 4096, (300, 220)).astype(np.uint16)
        dicoms.save((folder / place).with_name(name), levels, syntax, BitsStored=12)
        (folder / f"{place}.png").unlink()
    for table in folder.glob("*_meta.csv"):
        table.unlink()
    return folder


def test_the_competitions_own_download(films, tmp_path):
    path = builder.build("256", tmp_path / "data", films)
    for split, names in (("train", {"a": "a.dicom", "b": "b"}), ("test", {"q": "q.dcm"})):
        found = records(path, split)
        assert set(found) == set(names)
        for name, record in found.items():
            film = images.read(films / split / names[name]).pixels
            assert (record["height"], record["width"]) == film.shape == (300, 220)
            np.testing.assert_array_equal(record["image"][..., 0], images.resize(film, 256))
    a = pixels(records(path)["a"])
    np.testing.assert_allclose(a[0], [10, 20, 110.5, 220], atol=1e-4)  # of the film's own pixels


def test_pngs_of_the_same_pixels_make_the_same_dataset(films, tmp_path):
    one = builder.build("own", tmp_path / "one", films, size=64)
    for film in [path for split in ("train", "test") for path in (films / split).iterdir()]:
        levels = images.read(film).pixels
        film.unlink()
        Image.fromarray(levels).save(film.with_name(f"{images.image_id(film)}.png"))
    two = builder.build("own", tmp_path / "two", films, size=64)
    assert files(one) == files(two)


def test_coco_with_films(films, tmp_path):
    listed = [{"id": i, "file_name": name, "height": 300, "width": 220}
              for i, name in enumerate(("a.dicom", "b"))]  # fmt: skip
    boxes = [{"image_id": 0, "category_id": 1, "bbox": [10, 20, 100, 200]}]
    (tmp_path / "x.json").write_text(
        json.dumps(
            {"images": listed, "annotations": boxes, "categories": [{"id": 1, "name": "lung"}]}
        )
    )
    path = builder.build(
        "coco", tmp_path / "data", size=64, coco=tmp_path / "x.json",
        images=films / "train", test_images=films / "test",
    )  # fmt: skip
    assert set(records(path)) == {"a", "b"} and set(records(path, "test")) == {"q"}
    np.testing.assert_allclose(pixels(records(path)["a"]), [[10, 20, 110, 220]], atol=1e-4)


def test_each_film_that_is_none_is_named_before_anything_is_written(films, tmp_path):
    dicoms.save(films / "train/a.dicom", np.zeros((300, 220), np.uint8), Modality="CT")
    whole = (films / "train/b").read_bytes()
    (films / "train/b").write_bytes(whole[:-50])
    with pytest.raises(InputError) as caught:
        builder.build("256", tmp_path / "data", films)
    assert "train/a.dicom: a DICOM of modality CT" in str(caught.value)
    assert "train/b: no whole pixel data" in str(caught.value)
    assert not list((tmp_path / "data").rglob("*record*"))


def test_one_that_cannot_be_decoded_is_named_and_leaves_nothing(films, tmp_path):
    """Its header and its end are as they should be, so that only decoding tells."""
    film = pydicom.dcmread(films / "train/a.dicom")
    (frame,) = generate_frames(film.PixelData, number_of_frames=1)
    film.PixelData = encapsulate([frame[: len(frame) // 2] + b"\xff\xd9"])
    film.save_as(films / "train/a.dicom")
    kaggle.read_folder(films)
    with pytest.raises(InputError, match=r"train/a.dicom: broken image \(Unable to decode"):
        builder.build("256", tmp_path / "data", films)
    assert not list((tmp_path / "data").rglob("*record*"))


def shards_of(paths, folder):
    """A file for each ten films."""
    empty = tf_example_pb2.Example().SerializeToString()
    portions = [paths[i : i + 10] for i in range(0, len(paths), 10)]
    return [
        encoding.Shard(folder / f"{i}.records", [empty] * len(portion), portion)
        for i, portion in enumerate(portions)
    ]


def many_films(folder):
    rng = np.random.default_rng(0)
    for i in range(encoding.FEW_DICOMS + 2):
        levels = rng.integers(0, 4096, (40, 30)).astype(np.uint16)
        dicoms.save(folder / f"{i:02}.dcm", levels, BitsStored=12)
    return sorted(folder.iterdir())


def test_many_films_are_made_in_processes(tmp_path):
    """Decoders of DICOM hold the interpreter lock. What is made, or broken, is the same."""
    paths = many_films(tmp_path)
    shards = shards_of(paths, tmp_path)
    checksums = dict(encoding.write_shards(shards, paths, 16, ARRAY_RECORD))
    made = []
    for shard in shards:
        for record in ArrayRecordReader(str(shard.path)).read_all():
            example = tf_example_pb2.Example.FromString(record)
            made += example.features.feature["image"].bytes_list.value
    assert made == [encoding.encode(path, 16) for path in paths] and len(set(made)) == len(made)
    assert [c for i in range(4) for c in checksums[i]] == [*map(zlib.crc32, made)]
    paths[20].write_text("no film")
    with pytest.raises(InputError, match="20.dcm: not a PNG, JPEG, TIFF or DICOM"):
        list(encoding.write_shards(shards, paths, 16, ARRAY_RECORD))


def test_processes_never_hear_of_an_interrupt(tmp_path):
    """A terminal sends ^C to them too; it is for the one who started them."""
    paths = many_films(tmp_path)
    written = encoding.write_shards(shards_of(paths * 50, tmp_path), paths, 16, ARRAY_RECORD)
    next(written)
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGINT)
    assert sum(len(checksums) for _, checksums in written) == 50 * len(paths) - 10


def test_a_process_that_is_killed_is_said(tmp_path):
    paths = many_films(tmp_path)
    written = encoding.write_shards(shards_of(paths * 50, tmp_path), paths, 16, ARRAY_RECORD)
    next(written)
    before = multiprocessing.active_children()
    os.kill(before[0].pid, signal.SIGKILL)
    with pytest.raises(InputError, match="a process that decoded these pictures was killed"):
        list(written)
    assert not set(before) & set(multiprocessing.active_children())


@pytest.mark.slow
def test_no_process_outlives_the_one_that_was_killed(tmp_path):
    many_films(tmp_path)
    program = (
        "import sys, time, multiprocessing\n"
        "from pathlib import Path\n"
        "from tfds_vinbig import encoding\n"
        "if __name__ == '__main__':\n"
        "    from tests.tfds_vinbig.test_dicom_folders import ARRAY_RECORD, shards_of\n"
        "    paths = sorted(Path(sys.argv[1]).glob('*.dcm'))\n"
        "    shards = shards_of(paths, Path(sys.argv[1]))\n"
        "    written = encoding.write_shards(shards, paths, 16, ARRAY_RECORD)\n"
        "    next(written)\n"
        "    print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "program.py").write_text(program)
    started = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", tmp_path],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    workers = list(map(int, started.stdout.readline().split()))
    assert workers
    started.kill()
    started.wait()
    until = time.monotonic() + 60
    while any(map(is_running, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(is_running, workers))


def is_running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_without_the_extra_one_line_says_how_to_install_it(films, tmp_path, monkeypatch):
    dicoms.without_pydicom(monkeypatch)
    with pytest.raises(InputError) as caught:
        builder.build("256", tmp_path / "data", films)
    said = str(caught.value)
    assert said.count("\n") == 0 and said.endswith("needs more packages: pip install -e '.[dicom]'")
