"""Pictures: every form of a file reads the same, and what is not one is named in a line."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import jaxdet
from jaxdet import InputError
from jaxdet.data import images

# The module silences Pillow; pytest turns its warnings on again.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

GRAY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def save(path, array=GRAY):
    Image.fromarray(array).save(path)


def message(path):
    with pytest.raises(InputError) as caught:
        images.read(path)
    return str(caught.value)


def encoded(kind, seed=0):
    picture = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64), np.uint8))
    picture.save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


def png(samples, colour_type, bits):
    """A PNG of any kind, where Pillow writes only some: samples [height, width, channels]."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width, _ = samples.shape
    dtype = ">u2" if bits == 16 else np.uint8
    lines = b"".join(b"\0" + line.astype(dtype).tobytes() for line in samples)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "array",
    [
        GRAY,
        np.stack([GRAY] * 3, -1),
        np.stack([GRAY, 0 * GRAY + 255], -1),
        np.stack([GRAY] * 4, -1),
    ],
    ids=["gray", "rgb", "gray+alpha", "rgba"],
)
def test_every_form_of_a_gray_picture_reads_the_same(tmp_path, array):
    save(tmp_path / "x.png", array)
    image = images.read(tmp_path / "x.png").pixels
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, GRAY)


@pytest.mark.parametrize("transparency", [None, 0, bytes(range(64))])
@pytest.mark.filterwarnings("error")
def test_a_palette_is_looked_up(tmp_path, transparency):
    picture = Image.frombytes("P", (8, 8), bytes(range(64)))
    picture.putpalette(np.repeat(GRAY.ravel()[::-1], 3).tobytes())
    keywords = {} if transparency is None else {"transparency": transparency}
    picture.save(tmp_path / "x.png", **keywords)
    np.testing.assert_array_equal(
        images.read(tmp_path / "x.png").pixels, GRAY.ravel()[::-1].reshape(8, 8)
    )


def test_one_bit_is_black_and_white(tmp_path):
    save(tmp_path / "x.png", GRAY > 100)
    np.testing.assert_array_equal(images.read(tmp_path / "x.png").pixels, (GRAY > 100) * 255)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("brightest", ["full", "just above the depth below"])
def test_16_bit_is_scaled_by_its_depth(tmp_path, bits, brightest):
    top = 2**bits - 1
    pixels = np.linspace(0, top if brightest == "full" else 2 ** (bits - 2), 256)
    pixels = pixels.astype(np.uint16).reshape(16, 16)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    image = images.read(tmp_path / "x.png").pixels
    np.testing.assert_array_equal(image, np.round(pixels * (255 / top)))
    assert (np.diff(image.ravel().astype(int)) >= 0).all()  # nothing wraps
    if brightest == "full":
        assert image.max() == 255


@pytest.mark.parametrize("colour_type, channels", [(2, 3), (4, 2), (6, 4)])
def test_16_bit_with_more_channels_reads_at_8_bits(tmp_path, colour_type, channels):
    samples = np.repeat(GRAY[..., None].astype(int) * 257, channels, axis=-1)
    (tmp_path / "x.png").write_bytes(png(samples, colour_type, 16))
    np.testing.assert_array_equal(images.read(tmp_path / "x.png").pixels, GRAY)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_reads_as_gray(tmp_path, mode):
    Image.fromarray(GRAY).convert(mode).save(tmp_path / "x.jpg", quality=100, subsampling=0)
    np.testing.assert_allclose(images.read(tmp_path / "x.jpg").pixels.astype(int), GRAY, atol=3)


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
@pytest.mark.parametrize("left", [0, 1, 10, 100, 0.5, -20, -5, -1])
def test_a_cut_image_is_no_image(tmp_path, kind, left):
    data = encoded(kind)
    path = tmp_path / f"x.{kind}"
    path.write_bytes(data)
    images.read(path)
    path.write_bytes(data[: int(left * len(data)) if isinstance(left, float) else left])
    text = message(path)
    assert str(path) in text and "\n" not in text


@pytest.mark.parametrize("kind", ["flipped", "text", "bmp", "missing", "folder"])
def test_what_is_no_image_is_named(tmp_path, kind):
    path, data = tmp_path / "x.png", bytearray(encoded("png"))
    data[len(data) // 2] ^= 255
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes({"flipped": data, "text": b"hello", "bmp": encoded("bmp")}[kind])
    assert str(path) in message(path)


# TIFF


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("form", ["gray", "rgb", "16 bit", "big-endian"])
def test_tiff_reads_as_png_does(tmp_path, form, compression):
    array = {
        "gray": GRAY,
        "rgb": np.stack([GRAY] * 3, -1),
        "16 bit": GRAY.astype("<u2") * 257,
        "big-endian": GRAY.astype(">u2") * 257,
    }[form]
    Image.fromarray(array).save(tmp_path / "x.tif", compression=compression)
    picture = images.read(tmp_path / "x.tif")
    np.testing.assert_array_equal(picture.pixels, GRAY)
    assert picture.notes == ()


@pytest.mark.parametrize("dtype, most", [("u1", 255), ("<u2", 65535)])
def test_white_as_zero_is_inverted(tmp_path, dtype, most):
    levels = most - GRAY.astype(dtype) * (most // 255)
    photometric = {262: 0}
    Image.fromarray(levels).save(tmp_path / "x.tif", tiffinfo=photometric)
    with Image.open(tmp_path / "x.tif") as written:
        assert written.tag_v2[262] == 0
    picture = images.read(tmp_path / "x.tif")
    # Pillow inverts 8 bits as it writes and reads; 16 bits it leaves alone both times.
    np.testing.assert_array_equal(picture.pixels, GRAY if most > 255 else levels)
    assert picture.notes == ((images.INVERTED,) if most > 255 else ())


@pytest.mark.parametrize(
    "array, said",
    [
        (np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8), "floating-point"),
        (GRAY.astype(np.int32) - 1, "grey levels from -1 to 251"),
        (GRAY.astype(np.int32) * 1000, "grey levels from 0 to 252000"),
    ],
)
def test_grey_levels_of_no_film_are_refused(tmp_path, array, said):
    save(tmp_path / "x.tif", array)
    assert said in message(tmp_path / "x.tif")


def test_several_pictures_in_a_file_are_refused(tmp_path):
    page = Image.fromarray(GRAY)
    page.save(tmp_path / "x.tif", save_all=True, append_images=[page, page])
    assert "3 pictures in one file" in message(tmp_path / "x.tif")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_8_bit_values_in_a_16_bit_file_keep_their_brightness(tmp_path, suffix):
    save(tmp_path / f"x.{suffix}", GRAY.astype(np.uint16))
    picture = images.read(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(picture.pixels, GRAY)
    assert picture.notes == (images.EIGHT_BITS,)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 65535))
def test_the_depth_is_the_smallest_that_holds_the_brightest(tmp_path_factory, brightest):
    path = tmp_path_factory.getbasetemp() / "depth.png"
    save(path, np.linspace(0, brightest, 64).round().astype(np.uint16).reshape(8, 8))
    picture = images.read(path)
    top = min(2**bits - 1 for bits in (8, 10, 12, 14, 16) if brightest < 2**bits)
    assert picture.pixels.max() == int(brightest / top * 255 + 0.5)
    assert picture.notes == ((images.EIGHT_BITS,) if top == 255 else ())


@pytest.mark.parametrize("colour_type, channels", [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colours_of_fewer_bits_are_refused_rather_than_dark(tmp_path, colour_type, channels):
    samples = np.repeat(GRAY[..., None].astype(int) * 16, channels, axis=-1)  # 12 bits
    if channels != 3:
        samples[..., -1] = 65535  # opaque
    (tmp_path / "x.png").write_bytes(png(samples, colour_type, 16))
    assert "save it as gray" in message(tmp_path / "x.png")


# Orientation

UPRIGHT = np.arange(6 * 9, dtype=np.uint8).reshape(6, 9) * 4
# What is stored under each orientation of EXIF so that the picture is upright when shown.
STORED = {
    1: UPRIGHT,
    2: np.fliplr(UPRIGHT),
    3: np.rot90(UPRIGHT, 2),
    4: np.flipud(UPRIGHT),
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: np.rot90(UPRIGHT, 2).T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("form", ["png", "16-bit png", "jpg", "tif", "16-bit tif"])
def test_the_orientation_is_applied_and_said(tmp_path, orientation, form):
    stored = STORED[orientation].astype(np.uint16 if "16" in form else np.uint8)
    stored = stored * (257 if "16" in form else 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{form[-3:]}"
    keywords = {"quality": 100} if form == "jpg" else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **keywords)
    picture = images.read(path)
    np.testing.assert_allclose(picture.pixels.astype(int), UPRIGHT, atol=3 if form == "jpg" else 0)
    assert picture.notes == (() if orientation == 1 else (images.ORIENTED,))


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"x"])
def test_damaged_exif_says_nothing_of_the_pixels(tmp_path, exif):
    Image.fromarray(GRAY).save(tmp_path / "x.jpg", exif=exif, quality=100)
    assert images.read(tmp_path / "x.jpg").pixels.shape == (8, 8)


# What a file may try


def huge(kind, side):
    """A file whose header claims side x side pixels."""
    if kind == "png":
        data = bytearray(encoded("png"))
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        return bytes(data)
    data = bytearray(encoded("jpeg"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("side", [10_001, 40_000])
def test_a_huge_header_is_refused_before_a_pixel_is_decoded(tmp_path, kind, side, monkeypatch):
    path = tmp_path / f"x.{kind}"
    path.write_bytes(huge(kind, side))
    monkeypatch.setattr(Image.Image, "load", None)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    assert "more than 100 megapixels" in message(path)


def test_a_bomb_in_the_text_of_a_png_is_refused(tmp_path):
    data = encoded("png")
    packed = b"x\0\0" + zlib.compress(b"\0" * 100_000_000)
    chunk = struct.pack(">I", len(packed)) + b"zTXt" + packed
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + packed))
    (tmp_path / "x.png").write_bytes(data[:33] + chunk + data[33:])
    text = message(tmp_path / "x.png")
    assert "broken image" in text and "\n" not in text


def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "x.png")  # to read it would wait for ever
    assert "no file" in message(tmp_path / "x.png")


def test_a_large_file_is_refused_unread(tmp_path):
    with open(tmp_path / "x.png", "wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    assert "is no radiograph" in message(tmp_path / "x.png")


def test_a_zero_byte_in_a_name_is_named():
    assert "not the name of a file" in message("x\0.png")


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["png", "jpeg", "tiff"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_damaged_file_is_read_or_named(tmp_path_factory, kind, changes):
    data = bytearray(encoded(kind))
    for share, byte in changes:
        data[int(share * (len(data) - 1))] = byte
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    path.write_bytes(data)
    try:
        assert images.read(path).pixels.dtype == np.uint8
    except InputError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_a_broken_tiff_is_one_line_and_nothing_else(tmp_path, capfd, compression):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "tiff", compression=compression)
    data = bytearray(buffer.getvalue())
    middle = len(data) // 2
    (tmp_path / "x.tif").write_bytes(data[:middle] + data[middle + 500 :])
    assert "\n" not in message(tmp_path / "x.tif")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shape", [(512, 512), (300, 200), (64, 64), (30, 50)])
def test_resizing_averages(shape):
    checkers = (np.indices(shape).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = images.resize(checkers, 64)
    assert small.dtype == np.uint8 and small.shape == (64, 64)
    if shape == (64, 64):
        np.testing.assert_array_equal(small, checkers)
    if min(shape) > 128:  # skipping would give black or white
        assert abs(small.astype(int) - 127).max() < 20


@pytest.mark.parametrize("axis", [0, 1])
def test_resizing_keeps_a_place(axis):
    pixels = np.zeros((200, 100), np.uint8)
    pixels.swapaxes(0, axis)[: pixels.shape[axis] // 2] = 200
    small = images.resize(pixels, 64).swapaxes(0, axis)
    assert (small[:31] == 200).all() and (small[33:] == 0).all()


def test_normalising_is_the_same_for_numpy_and_jax():
    batch = np.stack([GRAY, 255 - GRAY])
    ours = images.normalize(batch)
    theirs = jax.jit(images.normalize)(jnp.asarray(batch))
    assert ours.shape == theirs.shape == (2, 8, 8, 1)
    assert ours.dtype == theirs.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(images.normalize(np.array([[0, 255]], np.uint8)).ravel(), [-2, 2])
    np.testing.assert_allclose(images.normalize(batch.astype(np.float32)), ours)


def test_a_process_that_reads_pictures_imports_no_jax_and_warns_of_nothing(tmp_path):
    (tmp_path / "x.png").write_bytes(huge("png", 10_001))
    code = (
        "import sys, jaxdet.data.images as images\n"
        "try: images.read(sys.argv[1])\n"
        "except images.InputError as error: print(error)\n"
        "print('jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x.png"],
        cwd=Path(jaxdet.__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert (done.stderr, done.stdout.splitlines()[1:]) == ("", ["False"])
    assert "more than 100 megapixels" in done.stdout
