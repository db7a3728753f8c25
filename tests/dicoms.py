"""DICOM files for tests, written by pydicom."""

import builtins
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmwrite, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

UNCOMPRESSED = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian)


def dataset(levels: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian, **tags) -> Dataset:
    """A digital radiograph with these stored values; `tags` add to, replace or (None) drop others.

    Compressed without loss, but for JPEG baseline.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    made = Dataset()
    made.file_meta = meta
    bits = levels.dtype.itemsize * 8
    header = {
        "SOPClassUID": meta.MediaStorageSOPClassUID, "SOPInstanceUID": "1.2.3", "Modality": "DX",
        "PatientName": "Doe^Jane", "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "Rows": levels.shape[0], "Columns": levels.shape[1], "BitsAllocated": bits,
        "PixelRepresentation": int(levels.dtype.kind == "i"),
    }  # fmt: skip
    header["BitsStored"] = tags.get("BitsStored", bits)
    header["HighBit"] = header["BitsStored"] - 1
    for name, value in header.items():
        setattr(made, name, value)
    pixels = levels.tobytes()
    made.PixelData = pixels + b"\0" * (len(pixels) % 2)
    if syntax in (uid.JPEGBaseline8Bit, uid.JPEGLosslessSV1):
        encode = jpeg if syntax == uid.JPEGBaseline8Bit else lossless_jpeg
        made.PixelData = encapsulate([encode(levels)])
        made["PixelData"].is_undefined_length = True
        meta.TransferSyntaxUID = syntax
    elif syntax in UNCOMPRESSED:
        meta.TransferSyntaxUID = syntax
        if syntax == uid.ExplicitVRBigEndian and bits == 16:
            made.PixelData = levels.byteswap().tobytes()
    else:
        made.compress(syntax, generate_instance_uid=False)
    for name, value in tags.items():
        if value is None:
            delattr(made, name)
        else:
            setattr(made, name, value)
    return made


def save(path: Path, levels: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian, **tags) -> Path:
    """Write a file as in `dataset`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, dataset(levels, syntax, **tags), enforce_file_format=True)
    return path


def without_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra "dicom" is not installed."""
    real = builtins.__import__

    def no_pydicom(name, *arguments, **keywords):
        if name.startswith("pydicom"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", no_pydicom)


def jpeg(levels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "jpeg", quality=95)
    return file.getvalue()


def lossless_jpeg(levels: np.ndarray) -> bytes:
    """JPEG's lossless process 14 with predictor 1, the left neighbour (ITU T.81, annex H)."""
    bits = levels.dtype.itemsize * 8
    values = levels.astype(np.int64) % (1 << bits)  # signed ones as they are stored
    predicted = np.empty_like(values)
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]  # in the first column that above
    predicted[0, 0] = 1 << (bits - 1)
    apart = (values - predicted + 32768) % 65536 - 32768
    # Each difference is its number of bits, by codes of 5 bits, and these bits.
    words = []
    for x in apart.ravel():
        size = int(abs(x)).bit_length()
        words.append(f"{size:05b}")
        if 0 < size < 16:
            words.append(f"{x if x > 0 else x + (1 << size) - 1:0{size}b}")
    stream = "".join(words)
    stream += "1" * (-len(stream) % 8)
    coded = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\0")

    def segment(marker: int, *content: int) -> bytes:
        return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + bytes(content)

    (height, width), codes = levels.shape, 17
    frame = segment(0xC3, bits, *divmod(height, 256), *divmod(width, 256), 1, 1, 0x11, 0)
    table = segment(0xC4, 0, 0, 0, 0, 0, codes, *[0] * 11, *range(codes))
    scan = segment(0xDA, 1, 1, 0, 1, 0, 0)
    return b"\xff\xd8" + frame + table + scan + coded + b"\xff\xd9"
