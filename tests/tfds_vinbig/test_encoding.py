"""Files of records: pictures as PNGs that take little room, and are read as they went in."""

import io
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from tensorflow_datasets.core import file_adapters
from tensorflow_datasets.core.file_adapters import FileFormat
from tensorflow_datasets.proto import tf_example_pb2

from jaxdet import InputError
from jaxdet.data import images
from tests.tfds_vinbig.test_builder import picture
from tfds_vinbig import encoding


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_pillow_reads_the_png_that_is_stored(pixels):
    data = encoding.png(pixels)
    with Image.open(io.BytesIO(data)) as stored:
        assert (stored.format, stored.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(stored), pixels)
    with Image.open(io.BytesIO(data)) as stored:
        stored.verify()  # its checksums


@pytest.fixture
def shard(tmp_path):
    """Forty smooth and noisy pictures, to be written as records."""
    smooth = np.add.outer(np.arange(256), np.arange(256)) // 2
    paths = [tmp_path / f"{seed}.png" for seed in range(40)]
    for seed, path in enumerate(paths):
        noise = np.random.default_rng(seed).normal(0, 2, (256, 256))
        Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8)).save(path)
    record = tf_example_pb2.Example()
    record.features.feature["image"].bytes_list.value.append(b"")
    return encoding.Shard(tmp_path / "records", [record.SerializeToString()] * 40, paths)


def test_what_is_stored_takes_little_room(shard):
    # The PNG itself is not compressed, which is quick to read; the file of records is.
    compressed = sum(path.stat().st_size for path in shard.pictures)
    written = encoding.write_shards([shard], shard.pictures, 256, FileFormat.ARRAY_RECORD)
    checksums = [zlib.crc32(encoding.encode(path, 256)) for path in shard.pictures]
    assert list(written) == [(0, checksums)]
    assert shard.path.stat().st_size < 1.2 * compressed < 0.8 * 40 * 256 * 256


def test_another_file_format_is_left_to_tfds(shard, monkeypatch):
    """`tfds build --file_format=` may ask: ArrayRecord under another's name is unreadable."""
    written = []
    monkeypatch.setattr(
        file_adapters.TfRecordFileAdapter, "write_examples",
        lambda path, examples: written.extend(examples),
    )  # fmt: skip
    done = list(encoding.write_shards([shard], shard.pictures, 256, FileFormat.TFRECORD))
    stored = [
        tf_example_pb2.Example.FromString(data).features.feature["image"].bytes_list.value[0]
        for _, data in written
    ]
    assert stored == [encoding.encode(path, 256) for path in shard.pictures]
    assert done == [(0, [zlib.crc32(picture) for picture in stored])]
    assert not shard.path.exists()


def test_after_a_failure_threads_end_with_the_picture_at_hand(shard, monkeypatch):
    first, *others = shard.pictures
    begun = []

    def read(path):
        begun.append(path)
        if path == first:
            raise RuntimeError("broken")
        time.sleep(0.1)
        return images.Picture(np.zeros((8, 8), np.uint8), ())

    monkeypatch.setattr(images, "read", read)
    half = shard.records[:20]
    shards = [
        encoding.Shard(shard.path, half, shard.pictures[:20]),
        encoding.Shard(shard.path.with_suffix(".2"), half, shard.pictures[20:]),
    ]
    with pytest.raises(RuntimeError, match="broken"):
        list(encoding.write_shards(shards, shard.pictures, 256, FileFormat.ARRAY_RECORD))
    assert len(begun) < 10 and set(begun) <= {first, *others[19:]}


def test_all_that_cannot_be_decoded_are_named_at_once(shard):
    """After the first nothing more is written."""
    for path in shard.pictures[3::2]:
        path.write_text("no picture")
    shards = [
        encoding.Shard(shard.path.with_suffix(f".{i}"), shard.records[i::4], shard.pictures[i::4])
        for i in range(4)
    ]
    with pytest.raises(InputError, match="^19 problems in .*, the first ten:") as caught:
        list(encoding.write_shards(shards, shard.pictures, 256, FileFormat.ARRAY_RECORD))
    assert all(path.name in str(caught.value) for path in shard.pictures[3::2])


def test_what_is_seen_in_the_pixels_is_said(shard):
    Image.fromarray(np.full((9, 9), 7, np.uint8)).save(shard.pictures[5])
    notes = []
    list(encoding.write_shards([shard], shard.pictures, 256, FileFormat.ARRAY_RECORD, notes))
    assert notes == [(shard.pictures[5], images.FLAT)]


@pytest.mark.parametrize("kind", ["rgb", "16 bit", "jpeg", "2 bit", "palette"])
def test_other_pictures_are_stored_as_8_bit_gray(tmp_path, kind):
    path, gray = tmp_path / "x.png", picture(0)
    if kind == "rgb":
        Image.fromarray(np.stack([gray] * 3, -1)).save(path)
    elif kind == "16 bit":
        Image.fromarray(gray.astype(np.uint16) * 257).save(path)
    elif kind == "jpeg":
        Image.fromarray(gray).save(path, "jpeg")
    else:
        Image.fromarray(gray).convert("P").save(path, bits=2 if kind == "2 bit" else 8)
    with Image.open(io.BytesIO(data := encoding.encode(path, 256))) as stored:
        assert (stored.format, stored.mode, stored.size) == ("PNG", "L", (256, 256))
    assert data[24:26] == b"\x08\x00"  # 8 bits, gray
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(data))), images.read(path).pixels
    )


@pytest.mark.parametrize("side", [64, 512])  # Pillow writes the larger one in several chunks
def test_a_stored_record_is_decoded_at_the_models_size(side):
    pixels = np.random.default_rng(1).integers(0, 256, (side, side), np.uint8)
    Image.fromarray(pixels).save(stored := io.BytesIO(), "png")
    np.testing.assert_array_equal(images.decode(stored.getvalue(), side), pixels)
    np.testing.assert_array_equal(images.decode(stored.getvalue(), 32), images.resize(pixels, 32))


@pytest.mark.parametrize("mode", ["RGB", "1", "I;16", "jpeg", "nothing"])
def test_a_stored_record_that_is_something_else_is_refused(mode):
    other = io.BytesIO()
    if mode != "nothing":
        kind = "L" if mode == "jpeg" else mode
        Image.new(kind, (64, 64)).save(other, "jpeg" if mode == "jpeg" else "png")
    with pytest.raises(InputError, match="no PNGs of 8-bit gray"):
        images.decode(other.getvalue(), 64)
