"""Pictures as they are stored in a record: square 8-bit gray PNGs, made in parallel."""

import io
import multiprocessing
import os
import signal
import struct
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from PIL import Image

from jaxdet import InputError
from jaxdet import images as pictures

# Chunks of a PNG that change nothing of how it is seen; EXIF, for one, may turn it.
_PLAIN = {b"IHDR", b"IDAT", b"IEND", b"gAMA", b"pHYs", b"sBIT", b"tIME"}
PORTION = 256  # so that those who resize do not run gigabytes ahead of the writer
FEW = 32  # DICOMs for which processes are not worth their start


def encode_all(paths: Sequence[Path], size: int) -> Iterator[bytes]:
    """Each picture as in `encode`, in order.

    Pillow decodes outside the interpreter lock, in threads; decoders of DICOM hold it, and need
    processes of their own.

    Raises:
        InputError: for the first file that `pictures.read` refuses.
    """
    dicoms = sum(map(pictures.is_dicom, paths))
    with ThreadPoolExecutor() if dicoms < FEW else _processes() as pool:
        try:
            for start in range(0, len(paths), PORTION):
                yield from pool.map(partial(encode, size=size), paths[start : start + PORTION])
        except BrokenProcessPool as error:
            raise InputError(
                f"{paths[start]} or one of the {PORTION - 1} after it: the process that decoded it "
                "was killed: is there enough memory?"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _processes() -> ProcessPoolExecutor:
    """Started anew, as what is forked beside threads may hang."""
    return ProcessPoolExecutor(
        len(os.sched_getaffinity(0)),
        multiprocessing.get_context("spawn"),
        initializer=_begin_process,
    )


def _begin_process() -> None:
    """^C is for whoever started this process; that one killed, this one ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_it():
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()


def encode(path: Path, size: int) -> bytes:
    """A picture, which has been checked, as an 8-bit gray PNG of size x size pixels.

    One that is so already, and has nothing else in it, is not touched.

    Raises:
        InputError: for a file that `pictures.read` refuses.
    """
    try:
        with path.open("rb") as file:
            # PNG's first chunk: width, height, bits a sample, and 0 for gray.
            begin = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBB", size, size, 8, 0)
            data = file.read(len(begin))
            if data == begin:
                data += file.read()
                if chunks(data) <= _PLAIN:
                    return data
    except OSError as error:
        raise InputError(f"{path}: cannot read this image ({error.strerror})") from error
    buffer = io.BytesIO()
    Image.fromarray(pictures.resize(pictures.read(path).pixels, size)).save(buffer, "png")
    return buffer.getvalue()


def chunks(png: bytes) -> set[bytes]:
    """The kinds of the chunks that a PNG is made of."""
    kinds, at = set(), 8
    while at + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        kinds.add(kind)
        at += length + 12  # with the length, the kind and the checksum
    return kinds
