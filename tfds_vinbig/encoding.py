"""Pictures as they are stored in a record: square 8-bit gray PNGs, made in parallel."""

import itertools
import multiprocessing
import os
import signal
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxdet import InputError
from jaxdet import images as pictures

_GRAY, _FROM_ABOVE = 0, 2  # a colour type and a row's filter, by PNG's numbers
AHEAD = 256  # pictures, or those who make them would run gigabytes ahead of the writer
# Pictures, and DICOMs among them, for which processes are not worth their start.
FEW, FEW_DICOMS = 1000, 32


def encode_all(paths: Sequence[Path], size: int) -> Iterator[bytes]:
    """Each picture as in `encode`, in order.

    Pillow decodes outside the interpreter lock, so in threads; many pictures in processes, as
    whoever writes the records holds it meanwhile, and DICOM too, whose decoders hold it.

    Raises:
        InputError: for the first file that `pictures.read` refuses.
    """
    dicoms = sum(map(pictures.is_dicom, paths))
    few = len(paths) < FEW
    portion = 1 if few else 16  # at a time, as asking for each on its own takes longer
    starts = range(0, len(paths), portion)
    with ThreadPoolExecutor() if few and dicoms < FEW_DICOMS else _processes() as pool:
        coming = (pool.submit(_encode_some, paths[i : i + portion], size) for i in starts)
        ahead = deque(itertools.islice(coming, AHEAD // portion))
        try:
            for start in starts:
                try:
                    made = ahead.popleft().result()
                    ahead.extend(itertools.islice(coming, 1))
                except BrokenProcessPool as error:
                    raise InputError(
                        f"{paths[start]} or one of the {AHEAD - 1} after it: the process that "
                        "decoded it was killed: is there enough memory?"
                    ) from error
                yield from made
        finally:
            pool.shutdown(cancel_futures=True)


def _processes() -> ProcessPoolExecutor:
    """Started anew, as what is forked beside threads may hang."""
    return ProcessPoolExecutor(
        pictures.cores(),
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


def _encode_some(paths: Sequence[Path], size: int) -> list[bytes]:
    return [encode(path, size) for path in paths]


def encode(path: Path, size: int) -> bytes:
    """A picture as an 8-bit gray PNG of size x size pixels.

    Raises:
        InputError: for a file that `pictures.read` refuses.
    """
    return png(pictures.resize(pictures.read(path).pixels, size))


def png(pixels: UInt8[np.ndarray, "height width"]) -> bytes:
    """A gray PNG that is read nine times as fast as Pillow's.

    It is not compressed, as ArrayRecord compresses what it writes, and much faster; each row is
    stored as its difference from the row above, as both then come to the same bytes on disk.
    """
    height, width = pixels.shape
    rows = np.full((height, 1 + width), _FROM_ABOVE, np.uint8)
    rows[:, 1:] = pixels
    rows[1:, 1:] -= pixels[:-1]
    header = struct.pack(">IIBBBBB", width, height, 8, _GRAY, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
