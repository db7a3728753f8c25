"""DICOM films: the same picture by whatever way it is stored, and one line for what is none."""

import re
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from jaxdet import InputError
from jaxdet.data import dicom, images
from tests import dicoms

RNG = np.random.default_rng(0)
TWELVE = RNG.integers(0, 4096, (64, 48)).astype(np.uint16)
TWELVE[0, :2] = 0, 4095
EIGHT = RNG.integers(20, 200, (64, 48)).astype(np.uint8)  # not the whole range
LOSSLESS = [*dicoms.UNCOMPRESSED, uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLosslessSV1]


def read(tmp_path, levels, syntax=uid.ExplicitVRLittleEndian, **tags):
    return images.read(dicoms.save(tmp_path / "film.dcm", levels, syntax, **tags))


def message(path) -> str:
    """What is said of a file that is refused."""
    with pytest.raises(InputError) as caught:
        images.read(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and "\n" not in said
    return said.removeprefix(f"{path}: ")


@pytest.mark.parametrize("levels", [EIGHT, TWELVE], ids=["8 bits", "12 bits"])
@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.name)
def test_the_model_is_fed_the_same_as_by_a_png_of_the_same_pixels(tmp_path, levels, syntax):
    Image.fromarray(levels).save(tmp_path / "film.png")
    bits = {"BitsStored": 12} if levels is TWELVE else {}
    path = dicoms.save(tmp_path / "film", levels, syntax, **bits)
    png, film = images.read(tmp_path / "film.png"), images.read(path)
    np.testing.assert_array_equal(film.pixels, png.pixels)
    assert film.notes == () and images.check(path) == ((64, 48), ())
    fed = [images.normalize(images.resize(picture.pixels, 32)[None]) for picture in (png, film)]
    assert fed[0].tobytes() == fed[1].tobytes()


def test_white_as_zero_is_inverted(tmp_path):
    for levels, top, bits in ((EIGHT, 255, 8), (TWELVE, 4095, 12)):
        usual = read(tmp_path, levels, BitsStored=bits)
        negative = (top - levels.astype(int)).astype(levels.dtype)
        got = read(tmp_path, negative, BitsStored=bits, PhotometricInterpretation="MONOCHROME1")
        np.testing.assert_array_equal(got.pixels, usual.pixels)
        assert got.notes == (images.INVERTED,)


def test_signed_values(tmp_path):
    usual = read(tmp_path, TWELVE, BitsStored=12).pixels
    for syntax in LOSSLESS:
        signed = (TWELVE.astype(int) - 2048).astype(np.int16)
        got = read(tmp_path, signed, syntax, BitsStored=12).pixels
        np.testing.assert_array_equal(got, usual, err_msg=syntax.name)


def test_more_than_8_bits_are_stretched_to_what_is_there(tmp_path):
    """As VinBigData's PNGs are made: the darkest is black and the brightest white."""
    levels = RNG.integers(700, 3000, (40, 30)).astype(np.uint16)
    got = read(tmp_path, levels, BitsStored=14).pixels
    low, high = levels.min(), levels.max()
    np.testing.assert_array_equal(got, np.floor((levels - low) * 255.0 / (high - low) + 0.5))
    flat = read(tmp_path, np.full((40, 30), 500, np.uint16))
    assert not flat.pixels.any()


def lut(entries, first, bits):
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = [int(x) for x in entries]
    item["LUTData"].VR = "US"
    return [item]


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 1500, "WindowWidth": 900},
        {"WindowCenter": [2000, 9], "WindowWidth": [1500, 9]},  # the first of several
        {"WindowCenter": 2000, "WindowWidth": 800, "VOILUTFunction": "SIGMOID"},
        {"RescaleSlope": "0.5", "RescaleIntercept": "-300", "WindowCenter": 9, "WindowWidth": 700},
        {"RescaleSlope": "-1", "RescaleIntercept": "4095"},
        {"ModalityLUTSequence": lut(np.arange(4096)[::-1] // 2, 0, 16)},
        {"VOILUTSequence": lut(np.sqrt(np.arange(4096)) * 60, 0, 12)},
        {"VOILUTSequence": lut(np.arange(1000), 1200, 16), "WindowCenter": 1, "WindowWidth": 2},
    ],
)
def test_what_is_seen_is_what_the_standard_says(tmp_path, tags):
    """pydicom's functions on all pixels; here they are asked for each value once."""
    header = dicoms.dataset(TWELVE, BitsStored=12, **tags)
    seen = apply_voi_lut(apply_modality_lut(header.pixel_array, header), header).astype(float)
    seen = (seen - seen.min()) / (seen.max() - seen.min())
    got = read(tmp_path, TWELVE, BitsStored=12, **tags).pixels
    assert abs(got - 255 * seen).max() <= 0.5 + 1e-6 and got.min() == 0 and got.max() == 255


def test_a_lut_of_8_bits_for_values_of_12(tmp_path):
    """In the type of its entries, pydicom would take value 300 for 44."""
    got = read(tmp_path, TWELVE, BitsStored=12, VOILUTSequence=lut(np.arange(4096) // 16, 0, 8))
    np.testing.assert_allclose(got.pixels, TWELVE // 16, atol=1)


def test_jpeg_baseline(tmp_path):
    smooth = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)
    got = read(tmp_path, smooth, uid.JPEGBaseline8Bit).pixels
    assert abs(got.astype(int) - smooth).max() <= 3


def test_jpeg_lossless_of_a_real_file(tmp_path):
    """pydicom-data has a picture so, and after a loss by JPEG 2000; neither is of a radiograph."""
    pair = []
    for name in ("JPEG-LL.dcm", "JPEG2000_UNC.dcm"):
        film = pydicom.dcmread(get_testdata_file(name))
        film.Modality = "CR"
        film.save_as(tmp_path / name)
        pair.append(images.read(tmp_path / name).pixels)
    assert pair[0].shape == (1024, 256)
    assert np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1] > 0.9


def test_real_chest_films_in_four_encodings():
    """Uncompressed and JPEG 2000, of the film and of it after a compression with loss."""
    names = [f"RG1_{kind}.dcm" for kind in ("UNCR", "J2KR", "UNCI", "J2KI")]
    films = [images.read(get_testdata_file(name)) for name in names]
    assert {film.notes for film in films} == {(images.INVERTED,)}
    exact, same, lossy, same_lossy = (film.pixels for film in films)
    np.testing.assert_array_equal(exact, same)
    np.testing.assert_array_equal(lossy, same_lossy)
    assert abs(exact.astype(int) - lossy).max() <= 5
    height, width = exact.shape
    lung = exact[height // 8 : height // 4, width // 4 : width // 3]  # the right one's apex
    middle = exact[height // 2 : 3 * height // 4, 7 * width // 16 : 9 * width // 16]
    assert lung.mean() < 140 < 200 < middle.mean()  # air is dark, the spine white


@pytest.mark.parametrize(
    "tags,said",
    [
        ({"Modality": "ct"}, "of modality ct, not a radiograph"),
        ({"Modality": "MG"}, "of modality MG, not a radiograph"),
        ({"NumberOfFrames": 3}, "3 pictures (frames) in one file"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour (RGB, 3 samples"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour (PALETTE COLOR, 1 samples"),
        ({"PhotometricInterpretation": ""}, "PhotometricInterpretation is missing: it must say"),
        ({"PhotometricInterpretation": "GREY"}, "PhotometricInterpretation is GREY: it must say"),
        ({"BitsAllocated": 32, "BitsStored": 32}, "32 bits stored in 32"),
        ({"HighBit": 15, "BitsStored": 12}, "HighBit 15 does not go with 12 bits"),
        ({"Rows": None}, "the header's Rows is missing"),
        ({"Rows": 60000, "Columns": 60000}, "more than 100 megapixels"),
        ({"Rows": 0}, "48 x 0 pixels"),
        ({"Rows": 640, "Columns": 480}, "6144 bytes of pixel data, where 480 x 640 pixels"),
        ({"Columns": 24}, "6144 bytes of pixel data, where 24 x 64"),
        ({"PixelData": None}, "no whole pixel data"),
        ({"PixelRepresentation": 3}, "PixelRepresentation 3 is neither 0 nor 1"),
        ({"RescaleSlope": "1e308", "RescaleIntercept": "0"}, "no finite numbers"),
    ],
)
def test_what_is_no_single_grey_radiograph_is_named(tmp_path, tags, said):
    path = dicoms.save(tmp_path / "film.dcm", TWELVE, **tags)
    assert said in message(path)
    with pytest.raises(InputError, match=re.escape(said)):  # before all are read
        images.check(path)


def test_without_a_modality_it_is_read(tmp_path):
    """VinBigData's files have none."""
    assert read(tmp_path, TWELVE, Modality=None).pixels.shape == (64, 48)


def test_files_that_are_cut_short(tmp_path):
    for syntax in (*LOSSLESS, uid.JPEGBaseline8Bit):
        path = dicoms.save(tmp_path / "film.dcm", EIGHT, syntax)
        whole = path.read_bytes()
        images.read(path)
        for keep in (100, 140, 400, 800, len(whole) // 2, len(whole) - 30):
            path.write_bytes(whole[:keep])
            assert message(path)
            if keep > 132:  # before all are read, and nothing is decoded
                with pytest.raises(InputError):
                    images.check(path)


def test_a_compressed_picture_that_is_cut_in_a_whole_file(tmp_path):
    film = dicoms.dataset(EIGHT, uid.JPEGBaseline8Bit)
    (frame,) = pydicom.encaps.generate_frames(film.PixelData, number_of_frames=1)
    film.PixelData = encapsulate([frame[: len(frame) // 2]])
    pydicom.dcmwrite(tmp_path / "film.dcm", film, enforce_file_format=True)
    assert "cut short" in message(tmp_path / "film.dcm")


def test_a_codestream_that_claims_gigapixels_takes_no_memory(tmp_path):
    """Its header says 60000 x 60000: openjpeg would take 21 GB and a minute to find no pixels."""
    film = dicoms.dataset(TWELVE, uid.JPEG2000Lossless)
    (frame,) = pydicom.encaps.generate_frames(film.PixelData, number_of_frames=1)
    at = frame.index(b"\xff\x4f\xff\x51") + 8
    large = (60000).to_bytes(4, "big")
    size = large + large + bytes(8)  # of the image and of its one tile, and where they begin
    film.PixelData = encapsulate([frame[:at] + size + large + large + frame[at + 24 :]])
    pydicom.dcmwrite(tmp_path / "film.dcm", film, enforce_file_format=True)
    said = message(tmp_path / "film.dcm")
    assert "60000 x 60000 pixels" in said and "header says 48 x 64" in said


def test_an_unknown_or_deflated_transfer_syntax(tmp_path):
    for syntax, said in (
        ("1.2.840.10008.1.2.4.9999", "coded in an unknown way (transfer syntax 1.2.840.10008"),
        (uid.MPEG2MPML, "coded in an unknown way"),
        (uid.DeflatedExplicitVRLittleEndian, "deflated"),
    ):
        path = dicoms.save(tmp_path / "film.dcm", TWELVE)
        data = path.read_bytes()
        before = f"{uid.ExplicitVRLittleEndian}\0".encode()  # of an even length, with its zero
        after = str(syntax).encode() + b"\0" * (len(syntax) % 2)
        at = data.index(before)
        head = data[: at - 2] + len(after).to_bytes(2, "little")
        path.write_bytes(head + after + data[at + len(before) :])
        assert said in message(path)


def test_text_by_the_name_of_a_dicom(tmp_path):
    (tmp_path / "film.dcm").write_text("not a film " * 100)
    assert message(tmp_path / "film.dcm") == "not a PNG, JPEG, TIFF or DICOM image"


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    syntaxes = (*LOSSLESS, uid.JPEGBaseline8Bit)
    return folder, [dicoms.save(folder / "x", EIGHT, syntax).read_bytes() for syntax in syntaxes]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_the_bytes_it_is_a_picture_or_one_line(whole_files, data):
    folder, wholes = whole_files
    whole = bytearray(data.draw(st.sampled_from(wholes)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(132, len(whole) - 8))
        whole[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    (folder / "broken").write_bytes(whole)
    try:
        assert images.read(folder / "broken").pixels.dtype == np.uint8
    except InputError as error:
        assert str(error).startswith(f"{folder}/broken: ") and "\n" not in str(error)


def test_without_the_extra_one_line_says_how_to_install_it(tmp_path, monkeypatch):
    path = dicoms.save(tmp_path / "film.dcm", TWELVE)
    dicoms.without_pydicom(monkeypatch)
    for function in (images.read, images.check):
        with pytest.raises(dicom.NotInstalled, match=r"film.dcm: .*pip install -e '.\[dicom\]'"):
            function(path)


def test_only_who_reads_a_dicom_loads_pydicom():
    """The extra is one: jaxdet runs without."""
    source = (Path(dicom.__file__)).read_text()
    top = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert not [line for line in top if "pydicom" in line or "jpeg" in line]
    assert "pydicom" in sys.modules


def test_a_dicom_is_known_by_its_content(tmp_path):
    for name, is_picture, image_id in (
        ("a.dcm", True, "a"),
        ("b.DICOM", True, "b"),
        ("c", True, "c"),
        ("1.2.840.55", True, "1.2.840.55"),
        ("d.png", True, "d"),
        ("._a.dcm", False, "._a"),
        ("DICOMDIR", False, "DICOMDIR"),
    ):
        path = dicoms.save(tmp_path / name, EIGHT)
        assert images.is_picture(path) == is_picture and images.image_id(path) == image_id
        np.testing.assert_array_equal(images.read(path).pixels, EIGHT)
    (tmp_path / "notes").write_text("no picture")
    assert not images.is_picture(tmp_path / "notes") and not images.is_picture(tmp_path)
