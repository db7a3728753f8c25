"""Headers that are odd, padding and extreme pixels: what is left is read, and said."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread, dcmwrite, uid
from pydicom.dataset import Dataset

from jaxdet import InputError
from jaxdet.data import dicom_greys, grey, images
from tests import dicoms
from tests.data.test_dicom import LOSSLESS, lut, read

RNG = np.random.default_rng(0)
FILM = RNG.integers(500, 3001, (400, 60)).astype(np.uint16)
FILM[[30, 350], :2] = 500, 3000
SEEN = np.floor((FILM - 500.0) * 255 / 2500 + 0.5).astype(np.uint8)


def padded(value, dtype=np.uint16, rows=3):
    levels = FILM.astype(dtype)
    levels[:rows] = value
    return levels


def kinds(picture) -> list[str]:
    """Its notes, without their shares."""
    return [note.partition(" (")[0] for note in picture.notes]


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian,
                                    uid.ExplicitVRBigEndian, uid.RLELossless])  # fmt: skip
@pytest.mark.parametrize("value", [65535, 0, -32768, -2000])
@pytest.mark.parametrize("rows", [3, 100])
def test_padding_is_black_and_does_not_choose_the_range(tmp_path, value, syntax, rows):
    dtype = np.int16 if value < 0 else np.uint16
    bits = {} if value < 0 else {"BitsStored": 12}
    film = padded(value, dtype, rows)
    got = read(tmp_path, film, syntax, PixelPaddingValue=value, **bits)
    inside = SEEN[rows:].astype(int)
    assert abs(got.pixels[rows:].astype(int) - inside).max() <= 1 and not got.pixels[:rows].any()
    assert got.notes == (f"{images.PADDED} ({100 * rows / 400:.3g} %)",)


@pytest.mark.parametrize("value", [-32768, -2000])
def test_padding_below_what_the_bits_stored_may_have(tmp_path, value):
    film = padded(value, np.int16) - 1000
    film[:3] = value
    got = read(tmp_path, film, BitsStored=12, PixelPaddingValue=value)
    np.testing.assert_allclose(got.pixels[3:].astype(int), SEEN[3:], atol=1)
    assert not got.pixels[:3].any() and kinds(got) == [images.PADDED]


def test_an_overlay_in_the_bits_above_is_left_out(tmp_path):
    """As old files have it; padding beside it is padding still."""
    film = FILM.copy()
    film[10:20, 5:50] |= 0x8000
    got = read(tmp_path, film, BitsStored=12)
    np.testing.assert_array_equal(got.pixels, SEEN)
    assert got.notes == (f"{dicom_greys.BITS_ABOVE} (1.88 %)",)
    film[:3] = 65535
    got = read(tmp_path, film, BitsStored=12, PixelPaddingValue=65535)
    np.testing.assert_array_equal(got.pixels[3:], SEEN[3:])
    assert not got.pixels[:3].any()


def test_padding_below_the_bits_above(tmp_path):
    """An overlay reaches over the padding, and signed values have no sign in the bits above."""
    film = padded(0, rows=100)
    film[50:150, 5:50] |= 0x8000
    got = read(tmp_path, film, BitsStored=12, PixelPaddingValue=0)
    np.testing.assert_array_equal(got.pixels[100:], SEEN[100:])
    assert not got.pixels[:100].any() and got.notes[0] == f"{images.PADDED} (25 %)"
    film = (padded(-200, np.int16, 100) - 1800) & 0xFFF
    got = read(tmp_path, film, BitsStored=12, PixelPaddingValue=-2000)
    np.testing.assert_allclose(got.pixels[100:].astype(int), SEEN[100:], atol=1)
    assert not got.pixels[:100].any()
    assert kinds(got) == [images.PADDED, dicom_greys.BITS_ABOVE]


@pytest.mark.parametrize(
    "values", [[65535], [65535, 65534], [65535, 32768, 4096], range(9000, 9016)]
)
@pytest.mark.parametrize("rows", [1, 3, 200])
def test_values_beyond_the_bits_stored_are_padding_without_a_tag(tmp_path, values, rows):
    """However many pixels have them: no film of these bits can."""
    film = FILM.copy()
    border = film[:rows].reshape(-1)
    border[:] = np.resize(np.array(values, np.uint16), border.shape)
    got = read(tmp_path, film, BitsStored=12)
    np.testing.assert_allclose(got.pixels[rows:].astype(int), SEEN[rows:], atol=1)
    assert not got.pixels[:rows].any()
    assert got.notes == (f"{dicom_greys.BEYOND} ({100 * rows / 400:.3g} %)",)
    got = read(tmp_path, film, BitsStored=12, PixelPaddingValue=values[0],
               PhotometricInterpretation="MONOCHROME1")  # fmt: skip
    assert not got.pixels[:rows].any() and abs(got.pixels[rows:] - (255.0 - SEEN[rows:])).max() <= 1


def test_signed_values_below_the_bits_stored_are_padding_too(tmp_path):
    film = padded(-32768, np.int16) - 1000
    film[:2] = -32768
    film[2] = 32767
    got = read(tmp_path, film, BitsStored=12)
    np.testing.assert_allclose(got.pixels[3:].astype(int), SEEN[3:], atol=1)
    assert not got.pixels[:3].any() and kinds(got) == [dicom_greys.BEYOND]


def test_a_film_of_which_nothing_is_left_is_flat(tmp_path):
    got = read(tmp_path, np.full((9, 9), 5000, np.uint16), BitsStored=12)
    assert not got.pixels.any() and kinds(got) == [dicom_greys.BEYOND, images.FLAT]


def test_padding_of_films_with_white_as_zero(tmp_path):
    got = read(
        tmp_path, padded(0), PixelPaddingValue=0, BitsStored=12,
        PhotometricInterpretation="MONOCHROME1",
    )  # fmt: skip
    assert not got.pixels[:3].any() and got.pixels[3:].max() == 255
    assert abs(got.pixels[3:].astype(int) - (255 - SEEN[3:])).max() <= 1
    assert kinds(got) == [images.INVERTED, images.PADDED]


def test_a_range_of_padding(tmp_path):
    film = padded(4000)
    film[0] = 4095
    tags = {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 4000, "BitsStored": 12}
    got = read(tmp_path, film, **tags)
    assert not got.pixels[:3].any() and kinds(got) == [images.PADDED]
    np.testing.assert_allclose(got.pixels[3:].astype(int), SEEN[3:], atol=1)
    # Padding of a film of 8 bits, which is not stretched; of one whose window leaves it white.
    got = read(tmp_path, padded(255, np.uint8) // 2 * 2, PixelPaddingValue=254)
    assert not got.pixels[:3].any()
    got = read(tmp_path, film, **tags, WindowCenter=1750, WindowWidth=2501)
    assert not got.pixels[:3].any() and abs(got.pixels[3:].astype(int) - SEEN[3:]).max() <= 1


def test_a_tag_that_no_pixel_has_changes_nothing(tmp_path):
    for value in (4095, 65535, 0, ""):
        got = read(tmp_path, FILM, PixelPaddingValue=value, BitsStored=12)
        np.testing.assert_array_equal(got.pixels, SEEN)
        assert got.notes == ()
    got = read(tmp_path, np.full((9, 9), 7, np.uint16), PixelPaddingValue=7)
    assert not got.pixels.any() and kinds(got) == [images.PADDED, images.FLAT]


@pytest.mark.parametrize("value, dtype", [(65535, np.uint16), (-32768, np.int16), (-9000, "i2")])
def test_a_few_extreme_pixels_do_not_choose_the_range(tmp_path, value, dtype):
    film = padded(value, dtype)
    got = read(tmp_path, film)
    np.testing.assert_allclose(got.pixels[3:].astype(int), SEEN[3:], atol=1)
    assert set(np.unique(got.pixels[:3])) == {255 if value > 0 else 0}
    assert got.notes == (f"{images.EXTREME} (0.75 %)",)
    film[4, 5] = -32768 if value > 0 and film.dtype.kind == "i" else film[4, 5]
    many = read(tmp_path, padded(value, dtype, 5))  # more than a hundredth
    assert many.notes == () and abs(many.pixels[9:].astype(int) - SEEN[9:]).max() > 50


@pytest.mark.parametrize("suffix, white_is_zero", [("png", False), ("tif", False), ("tif", True)])
def test_one_extreme_pixel_of_a_gray_png_or_tiff(tmp_path, suffix, white_is_zero):
    film = padded(4000)
    film[5, 5] = 65535
    tags = {"tiffinfo": {262: 0}} if white_is_zero else {}
    Image.fromarray(film).save(tmp_path / f"x.{suffix}", **tags)
    got = images.read(tmp_path / f"x.{suffix}")
    expected = np.clip(np.round(film * (255 / 4095)), 0, 255)
    expected = 255 - expected if white_is_zero else expected
    np.testing.assert_array_equal(got.pixels, expected)
    assert images.EXTREME in kinds(got)
    assert images.EXTREME not in " ".join(images.check(tmp_path / f"x.{suffix}")[1])


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_the_usual_range_is_all_but_what_is_few_and_far(data):
    """By brute force, over every way to leave out levels at both ends."""
    levels = np.array(sorted(data.draw(st.sets(st.integers(-40, 40), min_size=1, max_size=8))))
    counts = np.array(data.draw(st.lists(st.sampled_from([0, 1, 3, 500, 999]),
                                         min_size=len(levels), max_size=len(levels))))  # fmt: skip
    counts[data.draw(st.integers(0, len(levels) - 1))] += 1000
    order = np.array(data.draw(st.permutations(range(len(levels)))))
    got = grey.usual_range(levels[order], counts[order])
    pixels = np.repeat(levels, counts)
    few = int(grey.FEW * len(pixels))
    core = pixels[len(pixels) - 1 - few] - pixels[few]
    low, high = pixels[0], pixels[-1]
    if core > 0:
        there = np.unique(pixels)
        for a, b in itertools.pairwise(there):
            if b - a >= core and (pixels <= a).sum() <= few:
                low = b
            if b - a >= core and (pixels >= b).sum() <= few and high >= b:
                high = a
    assert got == (low, high)


def test_films_as_they_are_lose_nothing(tmp_path):
    """A marker of lead, air around the patient, a collimated border."""
    film = np.tile(np.linspace(300, 2500, 400)[:, None], (1, 400)).astype(np.uint16)
    film[:40] = 0  # collimation
    film[:, 360:] = 0
    film[60:70, 20:40] = 4095  # the marker
    got = read(tmp_path, film, BitsStored=12)
    assert got.notes == () and got.pixels.max() == 255 and got.pixels[200, 200] < 160


# Headers


@pytest.mark.parametrize(
    "tags, note",
    [
        ({"WindowCenter": 1000, "WindowWidth": 0}, dicom_greys.PASSED_OVER),
        ({"WindowCenter": 1000, "WindowWidth": "0.5"}, dicom_greys.PASSED_OVER),
        ({"WindowCenter": 1000, "WindowWidth": -300}, dicom_greys.PASSED_OVER),
        ({"WindowCenter": [1, 2], "WindowWidth": [0, -1]}, dicom_greys.PASSED_OVER),
        ({"WindowCenter": "", "WindowWidth": ""}, None),
        ({"WindowCenter": 1000}, None),
        ({"WindowWidth": 1000}, None),
        ({"VOILUTFunction": "CUBIC"}, None),
        ({"RescaleSlope": "", "RescaleIntercept": ""}, None),
        ({"RescaleSlope": None, "RescaleIntercept": ""}, None),
        ({"SamplesPerPixel": None}, None),
        ({"PhotometricInterpretation": "monochrome2"}, None),
        ({"PhotometricInterpretation": " Monochrome2 "}, None),
        ({"PixelRepresentation": None, "HighBit": None}, None),
        ({"NumberOfFrames": ""}, None),
        ({"NumberOfFrames": 0}, None),
        ({"VOILUTSequence": [Dataset()]}, dicom_greys.PASSED_OVER),
        ({"VOILUTSequence": []}, None),
        ({"ModalityLUTSequence": [Dataset()]}, dicom_greys.PASSED_OVER),
        ({"Modality": ""}, None),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_left_of_an_odd_header_is_read(tmp_path, tags, note):
    header = dicoms.dataset(FILM, BitsStored=12)
    for name, value in tags.items():
        if value is None and name in header:
            delattr(header, name)
        elif value is not None:
            setattr(header, name, value)
    dcmwrite(tmp_path / "film.dcm", header, enforce_file_format=True)
    got = images.read(tmp_path / "film.dcm")
    np.testing.assert_array_equal(got.pixels, SEEN)
    notes = () if note is None else (note,)
    assert got.notes == notes and images.check(tmp_path / "film.dcm") == (FILM.shape, notes)


def test_the_next_window_or_table_that_can_be(tmp_path):
    usual = read(tmp_path, FILM, WindowCenter=2000, WindowWidth=900).pixels
    got = read(tmp_path, FILM, WindowCenter=[5, 6, 2000], WindowWidth=[0, "0.1", 900])
    np.testing.assert_array_equal(got.pixels, usual)
    assert got.notes == (dicom_greys.PASSED_OVER,)
    got = read(tmp_path, FILM, WindowCenter=2000, WindowWidth=900, VOILUTFunction="CUBIC")
    np.testing.assert_array_equal(got.pixels, usual)
    assert got.notes == (dicom_greys.UNKNOWN_FUNCTION,)
    whole = lut(np.sqrt(np.arange(4096)) * 60, 0, 12)
    expected = read(tmp_path, FILM, VOILUTSequence=whole).pixels
    empty = Dataset()
    empty.LUTDescriptor = ""
    got = read(tmp_path, FILM, VOILUTSequence=[empty, *whole])
    np.testing.assert_array_equal(got.pixels, expected)
    got = read(tmp_path, FILM, VOILUTSequence=[empty], WindowCenter=2000, WindowWidth=900)
    np.testing.assert_array_equal(got.pixels, usual)


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 40, "WindowWidth": 400},  # of a CT
        {"RescaleSlope": "0", "RescaleIntercept": "5"},
        {"WindowCenter": 9000, "WindowWidth": 3},
        {"VOILUTSequence": lut(np.full(4096, 9), 0, 16)},
    ],
)
def test_a_film_that_comes_out_flat_is_said(tmp_path, tags):
    got = read(tmp_path, FILM, BitsStored=12, **tags)
    assert got.notes == (images.FLAT,) and np.ptp(got.pixels) == 0


HEADER = st.sampled_from([
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PlanarConfiguration", "RescaleSlope", "RescaleIntercept",
    "VOILUTFunction", "WindowCenter", "WindowWidth", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "Rows", "Columns", "Modality",
])  # fmt: skip
VALUES = st.sampled_from(
    ["", "0", "1", "-1", "8", "12", "16", "1e308", "nan", "inf", "x", "MONOCHROME1", "monochrome2",
     "40\\400", "0\\300", "\\", "-32768", "65535", "LINEAR_EXACT", "sigmoid"]
)  # fmt: skip


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    small = FILM[:64, :48]
    return folder, [
        dicoms.save(folder / "x", small, syntax, BitsStored=12, PixelPaddingValue=9,
                    WindowCenter=1700, WindowWidth=900, RescaleSlope="1", RescaleIntercept="0",
                    VOILUTSequence=lut(np.arange(40), 1200, 16)).read_bytes()
        for syntax in LOSSLESS
    ]  # fmt: skip


def both(path):
    """Where `check` has nothing against a file, `read` reads it, and says the same of its header;
    where one refuses it, the other does. But whether compressed pixels are as many as the header
    says, only decoding tells."""
    try:
        shape, notes = images.check(path)
    except InputError:
        with pytest.raises(InputError):
            images.read(path)
        return
    try:
        picture = images.read(path)
    except InputError as error:
        compressed = dcmread(path, force=True).file_meta.TransferSyntaxUID.is_compressed
        assert compressed and "broken image" in str(error)
        return
    assert picture.pixels.shape == shape
    assert tuple(note for note in picture.notes if not images.is_of_pixels(note)) == notes


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_check_passes_read_reads_odd_headers(films, data):
    folder, wholes = films
    path = folder / "odd"
    path.write_bytes(data.draw(st.sampled_from(wholes)))
    film = dcmread(path)
    for name, value in data.draw(st.dictionaries(HEADER, VALUES | st.none(), max_size=4)).items():
        if name in film:
            del film[name]
        if value is not None:
            vr = "SH" if data.draw(st.booleans()) else "LO"
            film.add_new(name, vr, value.split("\\") if "\\" in value else value)
    try:
        dcmwrite(path, film, enforce_file_format=True)
    except Exception:  # what pydicom cannot write
        return
    both(path)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_check_passes_read_reads_damaged_headers(films, data):
    folder, wholes = films
    whole = bytearray(data.draw(st.sampled_from(wholes)))
    end = whole.rindex(b"\xe0\x7f\x10\x00") if b"\xe0\x7f\x10\x00" in whole else len(whole) - 700
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(132, end))
        whole[at] = data.draw(st.integers(0, 255))
    (folder / "damaged").write_bytes(whole)
    both(folder / "damaged")
