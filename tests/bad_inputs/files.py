"""Pictures, weights, and batches that a run has kept."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import dcmwrite, uid

from jaxdet.data import images
from jaxdet.models.weights import init_from as weights
from jaxdet.training import replay
from tests import dicoms
from tests.models.test_pth import NUMBERS, Call, pickled, tensor
from tests.models.test_pth import write as write_pth

GRAY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def png() -> bytes:
    """A picture."""
    Image.fromarray(GRAY).save(buffer := io.BytesIO(), "png")
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    sizes = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(kind + content))
    return sizes[0] + kind + content + sizes[1]


def png_of(side: int, content: bytes) -> bytes:
    """A PNG whose header says that size, with any content."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return png()[:8] + header + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def zeros(megabytes: int) -> bytes:
    """So many of them, compressed a thousand times."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(2**20)) for _ in range(megabytes)]
    return b"".join(parts) + packer.flush()


def with_text(content: bytes) -> bytes:
    """A PNG with a compressed text."""
    return png()[:33] + chunk(b"zTXt", b"x\0\0" + content) + png()[33:]


def read_by(
    read: Callable[[Path], object], name: str, content: bytes | Callable[[Path], object]
) -> Callable[[Path], object]:
    """A file of that name with that content, or made by it, read."""

    def make_and_read(folder):
        path = folder / name
        path.write_bytes(content) if isinstance(content, bytes) else content(path)
        read(path)

    return make_and_read


def picture(content, name="x.png"):
    return read_by(images.read, name, content)


def weights_of(content, name="x.npz"):
    return read_by(weights.read, name, content)


def batch(content):
    return read_by(replay.read, "skipped_batch.npz", content)


def pth(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """A file as of PyTorch with what `make(its path)` gives as its tensor."""

    def write(path):
        write_pth(path, pickled({"a": make(path)}), {"0": NUMBERS.tobytes()})

    return weights_of(write, "x.pth")


def dicom(
    syntax: str = uid.ExplicitVRLittleEndian, end: int | None = None, **tags: object
) -> Callable[[Path], object]:
    def write(path):
        data = dicoms.dataset(np.zeros((64, 64), np.uint16), **tags)
        data.file_meta.TransferSyntaxUID = syntax
        content = io.BytesIO()
        dcmwrite(content, data, implicit_vr=False, little_endian=True, enforce_file_format=True)
        path.write_bytes(content.getvalue()[:end])

    return picture(write, "x.dcm")


def two_frames(path: Path) -> None:
    image = Image.fromarray(GRAY)
    image.save(path, save_all=True, append_images=[image])


def not_a_number(path: Path) -> None:
    Image.fromarray(np.full((8, 8), np.nan, "f")).save(path)


def terabyte(path: Path) -> None:
    """One that takes no room, as it is not written."""
    path.touch()
    os.truncate(path, 10**12)


def npz_bomb(path: Path) -> None:
    """An array that takes 2 GB, says the file."""
    np.savez_compressed(path, a=np.zeros(2**20, np.uint8))
    data = bytearray(path.read_bytes())
    size = data.index(b"PK\1\2") + 24
    data[size : size + 4] = struct.pack("<I", 2**31)
    path.write_bytes(data)


def npz_of_junk(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../../x.npy", b"junk")


class Attack:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def pickled_array(path: Path) -> None:
    np.savez(path, a=np.array([Attack(path.parent / "executed")], object))


CASES = {
    "Pictures": {
        "an empty file": picture(b""),
        "a text file named .png": picture(b"not a picture"),
        "a PNG that is cut": picture(png()[:60]),
        "a PNG without its end": picture(png()[:-12]),
        "a PNG whose header says 40,000 x 40,000": picture(png_of(40_000, b"")),
        "a zip bomb in a PNG's text": picture(with_text(zeros(100))),
        "two pictures in one file": picture(two_frames, "x.tif"),
        "grey levels that are NaN": picture(not_a_number, "x.tif"),
        "a folder named .png": picture(Path.mkdir),
        "a pipe": picture(os.mkfifo),
        "a file of 1 TB": picture(terabyte),
        "no such file": picture(lambda path: None),
    },
    "DICOM": {
        "a CT": dicom(Modality="CT"),
        "several frames": dicom(NumberOfFrames=3),
        "colour": dicom(SamplesPerPixel=3, PhotometricInterpretation="RGB"),
        "no photometric interpretation": dicom(PhotometricInterpretation=""),
        "a header that says 60,000 x 60,000": dicom(Rows=60_000, Columns=60_000),
        "a coding that nobody knows": dicom(syntax="1.2.3.4"),
        "a file that is cut": dicom(end=-100),
    },
    "Weights": {
        "a .pth that calls a function": pth(
            lambda path: Call("os", "system", f"touch {path.parent}/executed")
        ),
        "a .pth whose tensor is larger than its numbers": pth(
            lambda path: tensor(size=(2**40,), stride=(1,))
        ),
        "a .pth that is text": weights_of(b"not weights", "x.pth"),
        "an .npz of pickled objects": weights_of(pickled_array),
        "a zip bomb: an .npz that unpacks to 2 GB": weights_of(npz_bomb),
        "an .npz of a file that is no array": weights_of(npz_of_junk),
        "a .safetensors whose header is 200,000 deep": weights_of(
            (200_000).to_bytes(8, "little") + b"[" * 200_000, "x.safetensors"
        ),
        "an empty .pth": weights_of(b"", "x.pth"),
        "an .npz that is text": weights_of(b"not weights"),
        "a .safetensors that is cut": weights_of(b"\xff" * 8 + b"{}", "x.safetensors"),
        "another kind of file": weights_of(b"\x89HDF", "x.h5"),
        "a folder": weights_of(Path.mkdir),
    },
    "Batches that a run has kept": {
        "text": batch(b"not a batch"),
        "pickled objects": batch(pickled_array),
        "a zip bomb of 2 GB": batch(npz_bomb),
        "no such file": batch(lambda path: None),
    },
}
