"""The dataset: what goes in comes out, twice the same, whole or not at all."""

import os
import shutil
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorflow_datasets.core import shuffle

import tfds_vinbig
from jaxdet import InputError
from jaxdet.data import images
from jaxdet.data.dataset import read_split
from tfds_vinbig import encoding, kaggle
from tfds_vinbig import records as records_room
from tfds_vinbig import tfds_vinbig_dataset_builder as builder

HEADER = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
ROWS = [
    "a,Cardiomegaly,3,R9,10,20,110.5,220",
    "b,No finding,14,R1,,,,",
    "a,Pulmonary fibrosis,13,R8,0,0,200,300",
    "a,Cardiomegaly,3,R10,10,20,110.5,220",  # the same box of another reader is another row
    "b,No finding,14,R2,,,,",
]


def picture(seed, size=256):
    return np.random.default_rng(seed).integers(0, 256, (size, size), np.uint8)


def make_folder(folder: Path) -> Path:
    """Two annotated images and one of test."""
    for seed, name in enumerate(("train/a", "train/b", "test/q")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed)).save(folder / f"{name}.png")
    (folder / "train.csv").write_text("\n".join([HEADER, *ROWS]))
    (folder / "train_meta.csv").write_text("image_id,dim0,dim1\nb,310,210\na,300,200\n")
    (folder / "test_meta.csv").write_text("image_id,dim0,dim1\nq,40,30\n")
    return folder


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "kaggle")


def records(path, split="train", **keywords):
    source = tfds.builder_from_directory(path).as_data_source(split, **keywords)
    return {record["image_id"].decode(): record for record in source}


def pixels(record):
    """x_min, y_min, x_max, y_max of the record's boxes in pixels of the original."""
    relative = np.reshape(record["objects"]["bbox"], (-1, 4))[:, [1, 0, 3, 2]]
    return relative * np.float32([record["width"], record["height"]] * 2)


def files(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def tree(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def test_records_are_what_the_folder_says(folder, tmp_path, capsys):
    path = builder.build("256", tmp_path / "data", folder)
    assert path == tmp_path / "data/tfds_vinbig/256/1.3.0"
    assert capsys.readouterr() == ("", "")  # no announcement, no bar where no one watches
    train = records(path)
    a, b = train["a"], train["b"]
    assert (a["height"], a["width"], a["index"]) == (300, 200, 1)
    assert (b["height"], b["width"], b["index"]) == (310, 210, 0)
    np.testing.assert_array_equal(a["image"][..., 0], picture(0))
    np.testing.assert_array_equal(b["image"][..., 0], picture(1))
    assert list(a["objects"]["label"]) == [3, 13, 3]
    assert list(a["objects"]["reader"]) == [b"R9", b"R8", b"R10"]
    np.testing.assert_allclose(
        pixels(a), [[10, 20, 110.5, 220], [0, 0, 200, 300], [10, 20, 110.5, 220]], atol=1e-4
    )
    assert a["normal_readers"] == []
    assert len(b["objects"]["label"]) == 0
    assert list(b["normal_readers"]) == [b"R1", b"R2"]
    (q,) = records(path, "test").values()
    assert (q["height"], q["width"], q["index"]) == (40, 30, 0)
    np.testing.assert_array_equal(q["image"][..., 0], picture(2))


def test_a_reader_who_finds_nothing_beside_others_who_do(folder, tmp_path):
    reader = "Ännchen von Tharau"
    rows = [*ROWS[:1], f"a,No finding,14,{reader},,,,", *ROWS[1:]]
    (folder / "train.csv").write_text("\n".join([HEADER, *rows]))
    path = builder.build("256", tmp_path / "data", folder)
    dataset = read_split(tfds.builder_from_directory(path), "train")
    got = dataset.annotations
    ids = dataset.ids[got.image]
    assert [*zip(got.labels[ids == "a"], got.readers[ids == "a"], strict=True)] == [
        (3, "R9"), (13, "R8"), (3, "R10"), (14, reader),
    ]  # fmt: skip
    assert [*zip(got.labels[ids == "b"], got.readers[ids == "b"], strict=True)] == [
        (14, "R1"), (14, "R2"),
    ]  # fmt: skip
    boxes, size = got.boxes[ids == "a"], np.array([200, 300, 200, 300])
    stored = np.float32([[10, 20, 110.5, 220], [0, 0, 200, 300]] / size)  # as the records have them
    np.testing.assert_array_equal(boxes[:2], np.float32(stored * size))
    assert np.isnan(boxes[3]).all()


def test_label_names_are_the_classes(folder, tmp_path):
    info = tfds.builder_from_directory(builder.build("256", tmp_path / "data", folder)).info
    assert tuple(info.features["objects"]["label"].names) == kaggle.CLASS_NAMES
    assert info.metadata == {
        "train": {"images": 2, "boxes": 3, "no_finding_rows": 2},
        "test": {"images": 1, "boxes": 0, "no_finding_rows": 0},
        "class_ids": list(range(15)),
        "source": {"manual_dir": str(folder)},
    }


def test_no_test_folder_no_test_split(folder, tmp_path, capsys):
    (folder / "test/q.png").unlink()
    (folder / "test").rmdir()
    path = builder.build("256", tmp_path / "data", folder)
    assert list(tfds.builder_from_directory(path).info.splits) == ["train"]
    assert "no test split" in capsys.readouterr().err


def test_built_twice_is_the_same_and_a_build_is_kept(folder, tmp_path, capsys):
    first = builder.build("256", tmp_path / "one", folder)
    second = builder.build("256", tmp_path / "two", folder)
    assert files(first) == files(second)
    assert len(files(first)) == 9
    before = {name: (first / name).stat().st_mtime_ns for name in files(first)}
    assert builder.build("256", tmp_path / "one", tmp_path / "not looked at") == first
    assert "already built" in capsys.readouterr().out
    assert before == {name: (first / name).stat().st_mtime_ns for name in files(first)}


def test_records_are_in_the_order_of_tfds(tmp_path):
    """As its own writer would sort them, by a hash of the key; in a file for each 32 here."""
    names = [f"an image of a rather long name {i}" for i in range(100)]
    for i, name in enumerate(names):
        (tmp_path / "train").mkdir(exist_ok=True)
        Image.fromarray(picture(i, 16)).save(tmp_path / "train" / f"{name}.png")
    rows = "\n".join(f"{name},Cardiomegaly,3,R1,0,0,9,9" for name in names)
    (tmp_path / "train.csv").write_text(f"{HEADER}\n{rows}")
    path = builder.build("small", tmp_path / "data", tmp_path, size=16)
    shuffler = shuffle.Shuffler(tmp_path, "train", disable_shuffling=False)
    for name in names:
        shuffler.add(name, name.encode())
    expected = [name.decode() for _, name in shuffler]
    assert list(records(path)) == expected != names
    split = tfds.builder_from_directory(path).info.splits["train"]
    assert split.shard_lengths == [25, 25, 25, 25]
    assert split.num_bytes == sum(os.path.getsize(file) for file in split.filepaths)
    dataset = read_split(tfds.builder_from_directory(path), "train")
    assert list(dataset.ids) == expected
    for i, name in enumerate(expected):
        np.testing.assert_array_equal(dataset.decode(i, 16), picture(names.index(name), 16))
        assert zlib.crc32(dataset.encoded(i)) == dataset.checksums[i]


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_boxes_survive_the_relative_form(data):
    """As TFDS encodes it: float32 of the share. Whole pixels come back exactly."""
    extent = data.draw(st.tuples(st.integers(1, 6000), st.integers(1, 6000)))
    height, width = extent
    y, x = (
        sorted(data.draw(st.tuples(*[st.one_of(st.integers(0, n), st.floats(0, n))] * 2)))
        for n in extent
    )
    row = records_room.Row("a", 0, "R1", x[0], y[0], x[1], y[1])
    record = records_room.Record("a", Path("a.png"), height, width, 0, [row])
    box = builder.relative(row, record)
    stored = tfds.features.BBoxFeature().encode_example(box)
    assert stored.dtype == np.float32
    back = stored[[1, 0, 3, 2]] * np.float32([width, height, width, height])
    corners = np.array(row[3:])
    np.testing.assert_allclose(back, corners, atol=1e-3)
    whole = corners == np.rint(corners)
    np.testing.assert_array_equal(np.rint(back)[whole], corners[whole])


# Pictures


@pytest.mark.parametrize("config, size", [("256", 256), ("512", 512), ("phantom", 256)])
def test_pictures_of_another_size_are_resized(folder, tmp_path, config, size):
    # A checkerboard: skipping pixels would give black or white, averaging gives gray.
    checkers = (np.indices((1024, 1024)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checkers).save(folder / "train/a.png")
    path = builder.build(config, tmp_path / "data", folder)
    a = records(path)["a"]
    assert a["image"].shape == (size, size, 1)
    assert abs(a["image"].astype(int) - 127).max() < 20
    # Boxes and sizes stay those of the original.
    assert (a["height"], a["width"]) == (300, 200)
    np.testing.assert_allclose(pixels(a)[1], [0, 0, 200, 300])


def test_a_picture_that_is_turned_when_shown_is_stored_turned(folder, tmp_path):
    """Though it is a PNG of the right size and depth: readers of records know no EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    Image.fromarray(picture(0)).save(folder / "train/a.png", exif=exif)
    built = builder.build("256", tmp_path / "data", folder)
    np.testing.assert_array_equal(records(built)["a"]["image"][..., 0], np.rot90(picture(0), -1))


# The phantom


@pytest.fixture
def phantom(monkeypatch):
    """A drawer in place of the real one, that counts."""
    drawn = []

    def draw_folder(folder, **keywords):
        drawn.append(make_folder(Path(folder)))

    module = types.ModuleType("tfds_vinbig.phantom")
    module.draw_folder = draw_folder
    monkeypatch.setitem(sys.modules, "tfds_vinbig.phantom", module)
    monkeypatch.setattr(tfds_vinbig, "phantom", module, raising=False)
    return drawn


@pytest.mark.parametrize("given_folder", [None, "new/drawn", "empty"])
def test_the_phantom_is_drawn_where_it_is_missing(tmp_path, phantom, given_folder):
    data = tmp_path / "data"
    (tmp_path / "empty").mkdir()
    manual_dir = tmp_path / given_folder if given_folder else None
    path = builder.build("phantom", data, manual_dir)
    assert len(records(path)) == 2
    assert (manual_dir or data / "phantom").joinpath("train.csv").exists()
    top = {"tfds_vinbig"} | (set() if given_folder else {"phantom"})
    assert {p.name for p in data.iterdir()} == top  # no scratch folder is left
    # A drawn folder is used as it is.
    other = builder.build("phantom", tmp_path / "other", manual_dir or data / "phantom")
    assert files(other) == files(path) and len(phantom) == 1


def test_a_dataset_of_an_older_drawing_is_said_to_be_one(tmp_path, phantom, capsys):
    path = builder.build("phantom", tmp_path)
    (tmp_path / "phantom/drawing.txt").write_text("2")  # too late for what is built
    capsys.readouterr()
    builder.build("phantom", tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and "drawing 1" in line


def test_a_phantom_that_is_not_whole_is_never_at_its_place(tmp_path, monkeypatch):
    def draw_half(plans, size, folder, workers):
        (folder / "train" / "half.png").write_bytes(b"")
        raise KeyboardInterrupt

    monkeypatch.setattr("tfds_vinbig.phantom.folder.draw_all", draw_half)
    with pytest.raises(KeyboardInterrupt):
        builder.build("phantom", tmp_path / "new" / "data")
    assert tree(tmp_path) == []


def test_tfds_finds_the_phantom_without_a_manual_dir(tmp_path, phantom):
    """As `tfds build --config=phantom` calls it."""
    built = builder.Builder(config="phantom", data_dir=tmp_path, file_format="array_record")
    built.download_and_prepare()
    assert len(records(built.data_dir)) == 2 and (tmp_path / "phantom").exists()


def test_tfds_passes_its_manual_dir(folder, tmp_path):
    """As `tfds build --manual_dir=FOLDER` calls it."""
    built = builder.Builder(config="256", data_dir=tmp_path / "data", file_format="array_record")
    built.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    expected = builder.build("256", tmp_path / "other", folder)
    assert files(Path(built.data_dir)) == files(expected)


@pytest.mark.parametrize(
    "option, lengths",
    [({"max_examples_per_split": 1}, [1]), ({"num_shards": 2}, [1, 1]), ({}, [2])],
)
def test_tfds_passes_its_options(folder, tmp_path, option, lengths):
    built = builder.Builder(config="256", data_dir=tmp_path / "data", file_format="array_record")
    shutil.rmtree(folder / "test")
    options = tfds.download.DownloadConfig(manual_dir=folder, **option)
    built.download_and_prepare(download_config=options)
    assert built.info.splits["train"].shard_lengths == lengths


# Failures


@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError, OSError, RuntimeError])
def test_a_failure_leaves_nothing_behind(folder, tmp_path, monkeypatch, error, there_before):
    data = tmp_path / "new" / "data"
    if there_before:
        builder.build("512", data, folder)
    before = tree(tmp_path)

    def fail(path, read=images.read):
        if path.stem == "b":
            raise error
        return read(path)

    monkeypatch.setattr(images, "read", fail)
    with pytest.raises(InputError if error is OSError else error):
        builder.build("256", data, folder)
    assert tree(tmp_path) == before


def test_a_png_that_only_decoding_shows_to_be_broken_is_named(folder, tmp_path):
    """Its checksums are right, so the check has nothing against it; its data is not packed."""
    whole, chunk = encoding.png(picture(0)), b"IDATnot by deflate"
    broken = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    (folder / "train/b.png").write_bytes(whole[:33] + broken + whole[-12:])
    assert images.check(folder / "train/b.png") == ((256, 256), ())
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"^\S+/train/b\.png: broken image \(.*\)$"):
        builder.build("256", tmp_path / "data", folder)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("config", ["256", "films"])
def test_many_pictures_are_stored_by_processes(folder, tmp_path, monkeypatch, config):
    few = builder.build(config, tmp_path / "few", folder, size=256)
    monkeypatch.setattr(encoding, "FEW", 2)
    many = builder.build(config, tmp_path / "many", folder, size=256)
    assert files(few).keys() == files(many).keys()
    records_of = {name: text for name, text in files(few).items() if "array_record" in name}
    assert records_of and records_of.items() <= files(many).items()


def test_a_data_dir_that_cannot_be_written_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("")
    for data in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/tfds_vinbig")):
        with pytest.raises(InputError, match=f"--data_dir={data}: cannot write"):
            builder.build("256", data, folder)


def test_a_full_disk_is_named(folder, tmp_path, monkeypatch):
    """As ArrayRecord says it, which knows no OSError (seen on a full tmpfs)."""

    def fail(path, size, notes):
        raise RuntimeError("write() failed: No space left on device; writing /x; at byte 2093056")

    monkeypatch.setattr(encoding, "encode", fail)
    with pytest.raises(InputError, match=r"cannot write there \(No space left on device\)$"):
        builder.build("256", tmp_path / "data", folder)


def test_a_data_dir_without_permission_is_named(folder, tmp_path):
    place = tmp_path / "data"
    place.mkdir(mode=0o500)
    if os.getuid() == 0:  # who may write there, and nowhere in the kernel's own folder
        place = Path("/sys/kernel")
    with pytest.raises(InputError, match="cannot write there"):
        builder.build("256", place, folder)


def test_a_directory_that_is_no_dataset_is_named(folder, tmp_path):
    (tmp_path / "tfds_vinbig/256/1.3.0").mkdir(parents=True)
    with pytest.raises(InputError, match=r"256/1\.3\.0: not a whole dataset"):
        builder.build("256", tmp_path, folder)


def test_home_is_expanded(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = builder.build("256", "~/data", "~/kaggle", train_meta="~/kaggle/train_meta.csv")
    assert path.is_relative_to(tmp_path / "data")
