"""Films whose bits above those stored are in use: more of the film, or an overlay."""

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite, uid

from jaxdet.data import dicom_greys, images
from tests import dicoms
from tests.data.test_dicom import LOSSLESS, read

# Smooth as films are, with some noise, from 200 to 8,200 by what is beside and what is below.
RNG = np.random.default_rng(0)
ACROSS = np.linspace(200, 8000, 200)[None] + RNG.integers(0, 200, (90, 200))
FILMS = {"across": ACROSS.astype(np.uint16), "down": np.repeat(ACROSS[:1].T, 40, 1).astype("u2")}


def as_seen(film):
    low, high = int(film.min()), int(film.max())
    return np.floor((film.astype(float) - low) * 255 / (high - low) + 0.5)


@pytest.mark.parametrize("bits", [8, 9, 12])
@pytest.mark.parametrize("way", FILMS)
def test_a_film_that_needs_more_bits_than_it_says_does_not_wrap(tmp_path, way, bits):
    film = FILMS[way]
    got = read(tmp_path, film, BitsStored=bits)
    np.testing.assert_array_equal(got.pixels, as_seen(film))
    share = 100 * np.mean(film >= 1 << bits)
    assert got.notes == (f"{dicom_greys.BITS_NEEDED} ({share:.3g} %)",)
    assert images.check(tmp_path / "film.dcm") == (film.shape, ())
    signed = film.astype(np.int16) - 4200
    np.testing.assert_array_equal(read(tmp_path, signed, BitsStored=bits).pixels, as_seen(film))


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_in_every_way_it_may_be_coded(tmp_path, syntax):
    film = FILMS["across"]
    got = read(tmp_path, film, syntax, BitsStored=16)
    np.testing.assert_array_equal(got.pixels, as_seen(film))
    header = dcmread(tmp_path / "film.dcm")
    header.BitsStored, header.HighBit = 12, 11
    dcmwrite(tmp_path / "film.dcm", header, enforce_file_format=True)
    got = images.read(tmp_path / "film.dcm")
    np.testing.assert_array_equal(got.pixels, as_seen(film))


def test_padding_and_a_rescale_of_a_film_that_needs_more_bits(tmp_path):
    film = FILMS["across"].copy()
    film[:30] = 0
    tags = {"PixelPaddingValue": 0, "RescaleSlope": "2", "RescaleIntercept": "-9"}
    got = read(tmp_path, film, BitsStored=12, **tags)
    np.testing.assert_array_equal(got.pixels[30:], as_seen(film[30:]))
    assert not got.pixels[:30].any() and len(got.notes) == 2
    got = read(tmp_path, film, BitsStored=12, PhotometricInterpretation="MONOCHROME1", **tags)
    assert abs(got.pixels[30:] - (255 - as_seen(film[30:]))).max() <= 1


@pytest.mark.parametrize("bit", [12, 13, 15])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_an_overlay_is_left_out_without_a_word_of_it_in_the_header(tmp_path, bit, syntax):
    """Text, scattered and large, over a film of 12 bits."""
    film = FILMS["across"] // 3
    drawn = np.zeros(film.shape, bool)
    drawn[::7, 20:90:2], drawn[30:60, 100:] = True, True
    got = read(tmp_path, film | (drawn.astype(np.uint16) << bit), syntax, BitsStored=12)
    np.testing.assert_array_equal(got.pixels, as_seen(film))
    assert got.notes == (f"{dicom_greys.BITS_ABOVE} ({100 * drawn.mean():.3g} %)",)


def overlaid(folder, levels, position):
    header = dicoms.dataset(levels, BitsStored=12)
    header.add_new((0x6004, 0x0102), "US", position)  # OverlayBitPosition
    dcmwrite(folder / "film.dcm", header, enforce_file_format=True)
    return images.read(folder / "film.dcm")


def test_where_the_header_says_that_an_overlay_is_there_it_is(tmp_path):
    """Even where it looks like a film; one at position 0 has data of its own, not here."""
    film = FILMS["across"]
    for position in (12, 15):
        got = overlaid(tmp_path, film, position)
        assert got.notes[0].startswith(dicom_greys.BITS_ABOVE)
        np.testing.assert_array_equal(got.pixels, as_seen(film & 0xFFF))
    got = overlaid(tmp_path, film, 0)
    assert got.notes[0].startswith(dicom_greys.BITS_NEEDED)
    np.testing.assert_array_equal(got.pixels, as_seen(film))
