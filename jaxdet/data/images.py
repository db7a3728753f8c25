"""A picture on its way from a file to the network: read, resized, normalised, each here alone.

NumPy and Pillow only, and pydicom for DICOM: whoever packages pictures needs no JAX.
"""

import contextlib
import io
import os
import re
import stat
import struct
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image

from jaxdet import InputError
from jaxdet.data import dicom, dicom_greys, grey

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", *dicom.SUFFIXES)
# Far above any radiograph. Whatever claims to be larger is refused before a pixel is decoded.
MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 30
DEPTHS = (8, 10, 12, 14, 16)  # bits at which films are stored

ORIENTED = "turned as its EXIF orientation says"
EIGHT_BITS = "16-bit file that holds 8-bit values, read as such"
INVERTED = dicom_greys.INVERTED
# What only decoding tells. Where a share of the pixels follows in brackets, it is of one picture.
FLAT = "all pixels have the same grey level: there is nothing to see"
NEARLY_FLAT = "nearly all pixels have the same grey level: there is hardly anything to see"
PADDED, EXTREME = dicom_greys.PADDED, grey.EXTREME
OF_PIXELS = (
    FLAT,
    NEARLY_FLAT,
    PADDED,
    dicom_greys.BEYOND,
    dicom_greys.BITS_ABOVE,
    dicom_greys.BITS_NEEDED,
    EXTREME,
)
NotInstalled = dicom.NotInstalled

_FORMATS = ("PNG", "JPEG", "TIFF")
_PHOTOMETRIC, _SAMPLE_BITS = 262, 258  # tags of TIFF
# Pillow warns of what read() refuses or does not need (large pictures, damaged EXIF), and whoever
# reads many pictures wants one line of what is wrong.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Picture(NamedTuple):
    """Grey levels, black is 0, and what was done to get them that a user may want to know."""

    pixels: UInt8[np.ndarray, "height width"]
    notes: tuple[str, ...]


def is_of_pixels(note: str) -> bool:
    """Whether a note is one that `check` may not know yet."""
    return note.startswith(OF_PIXELS)


def summarize(notes: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each kind of note, with the number of pictures; of pixels also with their names.

    Args:
        notes: names of pictures, each with a note.
    """
    found = {}
    for name, note in notes:
        kind = next((kind for kind in OF_PIXELS if note.startswith(kind)), note)
        found.setdefault(kind, []).append((name, note.removeprefix(kind)))
    lines = []
    for kind, seen in found.items():
        line = f"{len(seen)} pictures: {kind}"
        if kind in OF_PIXELS:
            names = sorted(name for name, _ in seen)
            shares = [float(share.strip(" (%)")) for _, share in seen if share]
            line += f" (at most {max(shares):.3g} % of one)" if shares else ""
            line += f": {', '.join(names[:10])}"
            line += f" and {len(names) - 10} more" if len(names) > 10 else ""
        lines.append(line)
    return lines


def is_picture(path: Path) -> bool:
    """Whether a file of a folder is meant: by its suffix, or a DICOM by whatever name.

    Hidden files are none of the user's: macOS leaves a ._NAME.png beside NAME.png.
    """
    if path.name.startswith(".") or path.name == "DICOMDIR":
        return False
    return path.suffix.lower() in SUFFIXES or is_dicom(path)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its content; one that cannot be read is not."""
    return dicom.is_dicom(_first_bytes(path, 132))


def is_gray_png(path: Path) -> bool:
    """Whether a file is a PNG of 8-bit gray by its header, so that to `check` it takes no time."""
    return _begins_as_gray_png(_first_bytes(path, 26))


def _begins_as_gray_png(data: bytes) -> bool:
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:26] == b"\x08\x00"  # bits, colour type


def _first_bytes(path: Path, count: int) -> bytes:
    """None of them where the file cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(count)
    except (OSError, ValueError):
        return b""


def image_id(path: str | Path, folder: str | Path | None = None) -> str:
    """What a picture is called: its name, after those of the folders between `folder` and it.

    A suffix of pictures is left off (1.2.840.55 is no picture of kind .55), and the parts are
    joined by "__", so that the id is the name of a file again: p1/view1.png is p1__view1. Without
    `folder` it is the name alone.
    """
    return path_id(Path(path).name if folder is None else Path(path).relative_to(folder))


def composed(name: str) -> str:
    """The form of a name in which names are compared, Unicode's composed one (NFC): macOS writes
    those of files decomposed, tables are not."""
    return unicodedata.normalize("NFC", name)


def path_id(path: str | PurePath) -> str:
    """The `image_id` of a path below the folder of pictures, composed; a backslash is a separator
    too."""
    *folders, name = [part for part in re.split(r"[/\\]", str(path)) if part not in ("", ".")]
    name = Path(name).stem if Path(name).suffix.lower() in SUFFIXES else name
    return composed("__".join([*folders, name]))


def read(path: str | Path) -> Picture:
    """A PNG, JPEG, TIFF or DICOM as 8-bit gray, turned as its EXIF orientation says.

    DICOM is known by its content, and read as in `dicom.read`. Of the others, colour becomes
    luminance, transparency is dropped. More than 8 bits of gray are scaled by the depth of what the
    file holds, the smallest of 8, 10, 12, 14 and 16 bits that its brightest pixel needs: dividing
    16 bits by 256 would darken all but the last.

    Raises:
        InputError: one line, naming a file that is missing, truncated, too large, or no such image.
    """
    path = Path(path)
    data = _bytes_of(path)
    with _named(path):
        if dicom.is_dicom(data):
            found = Picture(*dicom.read(data, MAX_PIXELS))
        else:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                _check_opened(picture, data)
                found = _read(picture, data)
    share = grey.share_of_one(found.pixels)
    if share > 1 - grey.FEW:
        said = FLAT if share == 1 else grey.note(NEARLY_FLAT, share)
        return found._replace(notes=(*found.notes, said))
    return found


def check_header(path: str | Path) -> None:
    """Refuse a file by what it says of itself; no pixel is decoded.

    Raises:
        InputError: as `read`, which may still find damage in compressed pixels.
    """
    path = Path(path)
    data = _bytes_of(path)
    with _named(path):
        if dicom.is_dicom(data):
            dicom.check(data, MAX_PIXELS)
        else:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                _check_opened(picture, data)


def check(path: str | Path) -> tuple[tuple[int, int], tuple[str, ...]]:
    """(height, width) and notes of a picture, decoded only where that is the way to know them.

    Of a DICOM its elements are read; of a plain gray PNG the checksums, which damage would change.
    What passes here `read` reads, but for damage in compressed pixels; what is to be said of the
    pixels (`is_of_pixels`) only it says.

    Raises:
        InputError: as `read`.
    """
    path = Path(path)
    data = _bytes_of(path)
    with _named(path):
        if dicom.is_dicom(data):
            return dicom.check(data, MAX_PIXELS)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            _check_opened(picture, data)
            plain = (kind in _PLAIN for kind, _ in _chunks(data))
            if picture.format == "PNG" and picture.mode == "L" and all(plain):
                picture.verify()
                return (picture.height, picture.width), ()
            found = _read(picture, data)
            notes = (note for note in found.notes if not is_of_pixels(note))
            return found.pixels.shape, tuple(notes)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file is one line that begins with its name."""
    try:
        yield
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{path}: not a PNG, JPEG, TIFF or DICOM image") from error
    except Image.DecompressionBombError as error:  # Pillow's own limit is twice as high
        raise InputError(f"{path}: {_TOO_LARGE}") from error
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error
    except Exception as error:  # Pillow raises whatever a broken file runs into
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: broken image ({reason})") from error


_TOO_LARGE = f"more than {MAX_PIXELS // 1_000_000} megapixels, which is no radiograph"


def _bytes_of(path: Path) -> bytes:
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # a pipe would never end
            raise InputError(f"{path}: cannot read this image (it is a folder, or no file)")
        if found.st_size > MAX_BYTES:
            raise InputError(f"{path}: a file of {found.st_size} bytes is no radiograph")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read this image ({error.strerror})") from error
    except ValueError as error:  # a zero byte in the name
        raise InputError(f"{str(path)!r}: not the name of a file") from error


def _check_opened(picture: Image.Image, data: bytes) -> None:
    """Refuse what is known to be no radiograph before a pixel is decoded."""
    if picture.width * picture.height > MAX_PIXELS:
        raise InputError(f"{picture.width} x {picture.height} pixels are {_TOO_LARGE}")
    if picture.format == "TIFF" and picture.n_frames > 1:
        raise InputError(f"{picture.n_frames} pictures in one file; save each on its own")
    # Pillow is content without a PNG's end, which comes after the last pixel.
    if picture.format == "PNG" and b"IEND\xaeB`\x82" not in data:
        raise OSError("image file is truncated")
    if picture.mode == "F":
        raise InputError("grey levels are floating-point numbers; save it with 8 or 16 bits")


# Chunks of a PNG that change nothing of how it is seen; EXIF, for one, may turn it.
_PLAIN = {b"IHDR", b"IDAT", b"IEND", b"gAMA", b"pHYs", b"sBIT", b"tIME"}


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kind and the data of each chunk that a PNG is made of."""
    at = 8
    while at + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        yield kind, png[at + 8 : at + 8 + length]
        at += length + 12  # with the length, the kind and the checksum


def _read(picture: Image.Image, data: bytes) -> Picture:
    """The picture of an opened file; `data` are all its bytes."""
    bits, white_is_zero = 8, False
    if picture.format == "PNG":
        bits = data[24]  # in the header, after width and height
    elif picture.format == "TIFF":
        bits = max(picture.tag_v2.get(_SAMPLE_BITS, (8,)))
        white_is_zero = picture.tag_v2.get(_PHOTOMETRIC) == 0

    notes = []
    turned = picture.format == "TIFF" and _orientation(picture) in _UPRIGHT  # Pillow turns these
    picture.load()
    orientation = _orientation(picture)
    if turned or orientation in _UPRIGHT:
        notes.append(ORIENTED)
    if picture.mode.startswith("I"):
        pixels, depth, extreme = _scale(np.asarray(picture))
        if depth == 8:
            notes.append(EIGHT_BITS)
        if extreme:
            notes.append(grey.note(EXTREME, extreme))
        if white_is_zero:  # Pillow inverts 8 bits, but not more
            pixels = 255 - pixels
            notes.append(INVERTED)
    else:
        if picture.mode == "P":  # straight to gray, Pillow warns of a transparent palette
            picture = picture.convert("RGBA")
        pixels = np.asarray(picture.convert("L"))
        # Of 16 bits a channel Pillow keeps the upper 8, which are dark where fewer are in use.
        if bits == 16 and pixels.max() < 1 << 6:
            raise InputError("16-bit colours of which 14 bits or fewer are in use; save it as gray")
    if orientation in _UPRIGHT:
        pixels = np.ascontiguousarray(_UPRIGHT[orientation](pixels))
    return Picture(pixels, tuple(notes))


# What turns a picture of each EXIF orientation but 1, which is upright.
_UPRIGHT = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).T,
    8: np.rot90,
}


def _orientation(picture: Image.Image) -> int | None:
    try:
        return picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF says nothing of the pixels
        return None


def _scale(levels: np.ndarray) -> tuple[UInt8[np.ndarray, "height width"], int, float]:
    """Grey levels of up to 16 bits at 8 bits, the depth that they have, and the share of extreme
    ones above it, which are white."""
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high >= 1 << 16:
        raise InputError(f"grey levels from {low} to {high}; save it with 8 or 16 bits")
    counts = grey.count(levels, low, high)
    _, usual = grey.usual_range(np.arange(low, high + 1), counts)
    depth = next(bits for bits in DEPTHS if usual < 1 << bits)
    top = (1 << depth) - 1
    table = np.minimum((np.arange(high + 1) * 255 + top // 2) // top, 255).astype(np.uint8)
    extreme = counts[max(top + 1 - low, 0) :].sum() / counts.sum()
    pixels = np.empty(levels.shape, np.uint8)
    for row, line in enumerate(levels):  # as a whole it would take 8 bytes a pixel
        pixels[row] = table[line]
    return pixels, depth, float(extreme)


def resize(
    pixels: UInt8[np.ndarray, "height width"], size: int
) -> UInt8[np.ndarray, "{size} {size}"]:
    """A picture squashed to `size` x `size` pixels; shrinking averages over what a pixel covers, so
    that small findings do not alias."""
    if pixels.shape == (size, size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))


def decode(data: bytes, size: int) -> UInt8[np.ndarray, "{size} {size}"]:
    """The stored PNG of a record (8-bit gray, see the builder) at the model's size.

    Raises:
        InputError: if it is none.
    """
    if not _begins_as_gray_png(data) or data[28:29] != b"\0":  # interlaced
        raise InputError("config.data.name: its pictures are no PNGs of 8-bit gray: build it again")
    # Pillow's decoder with all the data at once: Image.open hands it over piece by piece, and other
    # threads wait at each for Python's lock.
    shape = struct.unpack_from(">II", data, 16)  # width and height, in the header
    rows = b"".join(content for kind, content in _chunks(data) if kind == b"IDAT")
    return resize(np.asarray(Image.frombytes("L", shape, rows, "zip", "L", 0)), size)


def normalize(
    images: UInt8[Any, "*batch height width"] | Float[Any, "*batch height width"],
) -> Float[Any, "*batch height width 1"]:
    """Grey levels 0..255 to float32 of -2..2, with the channel axis that a network wants.

    NumPy in, NumPy out; the same for JAX.
    """
    return (images[..., None].astype("float32") / 255 - 0.5) / 0.25
