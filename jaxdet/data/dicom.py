"""DICOM films: which are read, and the way from stored values to grey levels.

pydicom parses and pylibjpeg decodes: the extra "dicom". Nothing else of a file is looked at, so a
patient's name is never in memory. A file may say anything of itself: sizes are compared with what
there is before memory is taken for them.
"""

import io
import itertools
import logging
import struct
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxdet import InputError
from jaxdet.data import grey
from jaxdet.data.dicom_greys import (
    OVERLAY_POSITIONS,
    Greys,
    element,
    grey_of_values,
    read_greys,
    shown,
    with_bits_needed,
)

SUFFIXES = (".dcm", ".dicom")
MODALITIES = ("CR", "DX", "RG")  # computed and digital radiographs, and digitised films
INSTALL = "pip install -e '.[dicom]'"

_TAGS = [
    "Modality", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction",
    "WindowCenter", "WindowWidth", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelData",
    "FloatPixelData", "DoubleFloatPixelData", *OVERLAY_POSITIONS,
]  # fmt: skip
_DEFLATED = "1.2.840.10008.1.2.1.99"
_HTJ2K = tuple(f"1.2.840.10008.1.2.4.{i}" for i in (201, 202, 203))


class NotInstalled(InputError):
    """The extra "dicom" is missing: no DICOM can be read, so that one line says it for all."""


def is_dicom(data: bytes) -> bool:
    """Whether a file that begins with these 132 bytes or more is DICOM, whatever its name."""
    return data[128:132] == b"DICM"


def check(data: bytes, max_pixels: int) -> tuple[tuple[int, int], tuple[str, ...]]:
    """(height, width) and notes of a whole file, by all that can be told without decoding it.

    Raises:
        InputError: as `read`, without the path.
    """
    found, greys = _open(_tools(), data, max_pixels)
    return (found.Rows, found.Columns), greys.notes


def read(data: bytes, max_pixels: int) -> tuple[UInt8[np.ndarray, "height width"], tuple[str, ...]]:
    """The picture of a file as 8-bit gray, black is 0, and notes.

    As the usual PNGs of VinBigData are made: Modality LUT or rescale, VOI LUT or window,
    MONOCHROME1 inverted, and the range of what is then there stretched to 0..255. A file of 8 bits
    without LUT or rescale has such levels already, and is not stretched. Padding is black, and does
    not choose the range; nor do a few extreme pixels (`grey.usual_range`).

    Raises:
        InputError: one line, without the path, for what is no single grey radiograph, is broken or
            cut short, or is coded in an unknown way. pydicom raises whatever else it runs into.
    """
    tools = _tools()
    found, greys = _open(tools, data, max_pixels)
    syntax = found.file_meta.TransferSyntaxUID
    # pydicom unpacks RLE itself; pylibjpeg's way may end the program on a broken file.
    plugin = "pydicom" if syntax == tools.uid.RLELossless else "pylibjpeg"
    decoder = tools.get_decoder(syntax)
    # Bits above those stored are looked at in `grey_of_values`: padding may have them.
    stored, _ = decoder.as_array(found, decoding_plugin=plugin, correct_unused_bits=False)
    low, high = int(stored.min()), int(stored.max())
    counts = grey.count(stored, low, high)
    greys = with_bits_needed(greys, stored, low, counts)
    table, notes = grey_of_values(greys, low, counts)
    pixels = np.empty(stored.shape, np.uint8)
    for i, row in enumerate(stored):  # as a whole it would take 8 bytes a pixel
        pixels[i] = table[row.astype(np.int32) - low]
    return pixels, greys.notes + notes


def _tools() -> SimpleNamespace:
    """What is used of pydicom.

    Raises:
        NotInstalled: if it, or a decoder, is missing.
    """
    try:
        import libjpeg
        import openjpeg
        import pydicom
        import pylibjpeg  # noqa: F401  by which pydicom finds the two
        from pydicom import encaps, pixels, uid
        from pydicom.pixels.decoders.base import DecodeRunner
    except ImportError as error:
        raise NotInstalled(f"a DICOM file, which needs more packages: {INSTALL}") from error
    # It warns of what does not matter here; what does is an error, and one line.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"pydicom\.")
    return SimpleNamespace(
        dcmread=pydicom.dcmread,
        get_decoder=pixels.get_decoder,
        runner=DecodeRunner,
        generate_frames=encaps.generate_frames,
        uid=uid,
        j2k_header=openjpeg.get_parameters,
        jpeg_header=libjpeg.get_parameters,
    )


def _open(tools: SimpleNamespace, data: bytes, max_pixels: int) -> tuple[Any, Greys]:
    """The data set of a file that is as it should be, but for its codestream.

    What its header lacks and decoders ask for is added.
    """
    if _DEFLATED.encode() in data[132:4096]:  # where the transfer syntax stands
        raise InputError("a deflated DICOM, which may grow without bounds; save it uncompressed")
    found = tools.dcmread(io.BytesIO(data), specific_tags=_TAGS)
    modality = element(found, "Modality") or ""  # VinBigData's files lack it
    if modality and str(modality).upper() not in MODALITIES:
        raise InputError(f"a DICOM of modality {shown(modality)}, not a radiograph (CR, DX or RG)")
    if "PixelData" not in found:
        raise InputError("no whole pixel data: the file is cut short, or is no picture")
    frames = _whole(found, "NumberOfFrames", 1)
    if frames > 1:
        raise InputError(f"{frames} pictures (frames) in one file; save each on its own")
    samples = _whole(found, "SamplesPerPixel", 1)
    kind = str(element(found, "PhotometricInterpretation") or "").strip(" \0").upper()
    if samples != 1 or kind.startswith(("PALETTE", "RGB", "HSV", "ARGB", "CMYK", "YBR")):
        shades = f"{shown(kind)}, " if kind else ""
        raise InputError(f"colour ({shades}{samples} samples a pixel), not a radiograph")
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError(
            f"the header's PhotometricInterpretation is {shown(kind) if kind else 'missing'}: it "
            "must say whether white or black is zero, MONOCHROME1 or MONOCHROME2"
        )
    rows, columns = _whole(found, "Rows"), _whole(found, "Columns")
    if not 0 < rows * columns <= max_pixels:
        raise InputError(
            f"{columns} x {rows} pixels (Columns x Rows) are none, or more than "
            f"{max_pixels // 1_000_000} megapixels, which is no radiograph"
        )
    allocated = _whole(found, "BitsAllocated")
    bits = _whole(found, "BitsStored", allocated)
    if allocated not in (8, 16) or not 8 <= bits <= allocated:
        raise InputError(f"{bits} bits stored in {allocated}; read are 8 to 16 bits")
    if _whole(found, "HighBit", bits - 1) != bits - 1:
        raise InputError(f"HighBit {found.HighBit} does not go with {bits} bits stored")
    signed = _whole(found, "PixelRepresentation", 0)
    if signed not in (0, 1):
        raise InputError(f"PixelRepresentation {signed} is neither 0 nor 1")
    # As decoders want them; that they are there and right they do not take for granted.
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, kind
    found.Rows, found.Columns, found.PixelRepresentation = rows, columns, signed
    found.BitsAllocated, found.BitsStored, found.HighBit = allocated, bits, bits - 1
    for name in ("NumberOfFrames", "PlanarConfiguration"):
        if name in found:
            del found[name]
    _check_pixel_data(tools, found, rows, columns, allocated // 8)
    return found, read_greys(found)


def _check_pixel_data(
    tools: SimpleNamespace, found: Any, rows: int, columns: int, size: int
) -> None:
    """Compare the pixel data with what the header says of them: decoders take its word."""
    syntax, uid = found.file_meta.get("TransferSyntaxUID"), tools.uid
    length, expected = len(found.PixelData), rows * columns * size
    try:
        tools.get_decoder(syntax)
    except (NotImplementedError, TypeError, AttributeError) as error:
        raise InputError(f"coded in an unknown way (transfer syntax {shown(syntax)})") from error
    if not syntax.is_encapsulated:
        # Padding is less than a row.
        if not expected <= length < expected + columns * size:
            raise InputError(
                f"{length} bytes of pixel data, where {columns} x {rows} pixels of {size} bytes "
                f"are {expected}: the file is cut short, or its header is wrong"
            )
        return
    runner = tools.runner(syntax)
    runner.set_source(found)
    runner.validate()
    (frame,) = tools.generate_frames(found.PixelData, number_of_frames=1)
    if syntax == uid.RLELossless:
        segments = struct.unpack_from("<16L", frame) if len(frame) >= 64 else (0,)
        starts = segments[1 : 1 + size]
        if (
            segments[0] != size
            or starts[0] != 64
            or not all(a < b for a, b in itertools.pairwise((*starts, len(frame))))
        ):
            raise InputError(f"the compressed picture is not the {size} planes that it should be")
        return
    if b"\xff\xd9" not in frame[-16:]:  # libjpeg is content without it; padding may follow
        raise InputError("the compressed picture has no end: the file is cut short")
    of_j2k = syntax in (*uid.JPEG2000TransferSyntaxes, *_HTJ2K)
    inside = (tools.j2k_header if of_j2k else tools.jpeg_header)(frame)
    planes = inside.get("samples_per_pixel", inside.get("nr_components"))
    if (inside["rows"], inside["columns"], planes) != (rows, columns, 1):
        raise InputError(
            f"the compressed picture has {inside['columns']} x {inside['rows']} pixels of {planes} "
            f"samples, but the header says {columns} x {rows} of 1"
        )
    precision = inside.get("precision", found.BitsStored)
    if precision > found.BitsAllocated:
        raise InputError(
            f"the compressed picture has {precision} bits, the header says {found.BitsAllocated}"
        )


def _whole(found: Any, name: str, default: int | None = None) -> int:
    """A whole number of the header; `default` where it is missing or empty."""
    value = element(found, name)
    value = default if value is None or value == "" else value
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        said = "is missing" if value is None else f"is {shown(value)}, not a number"
        raise InputError(f"the header's {name} {said}") from error
