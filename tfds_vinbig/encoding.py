"""Records as they are stored: files with pictures as square 8-bit gray PNGs, made in parallel."""

import contextlib
import os
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import UInt8
from tensorflow_datasets.core import file_adapters
from tensorflow_datasets.core.file_adapters import FileFormat
from tensorflow_datasets.proto import tf_example_pb2

from jaxdet import InputError
from jaxdet.data import images as pictures
from jaxdet.data.machine import cores, processes
from tfds_vinbig.records import BadPicture, raise_all

_GRAY, _FROM_ABOVE = 0, 2  # a colour type and a row's filter, by PNG's numbers
# Pictures, and DICOMs among them, for which processes are not worth their start.
FEW, FEW_DICOMS = 1000, 32


class Shard(NamedTuple):
    """A file to be written: its records, serialized with an empty image, and their pictures."""

    path: Path
    records: Sequence[bytes]
    pictures: Sequence[Path]


class Written(NamedTuple):
    """What came of a file: checksums of its pictures, and what is to be said of them."""

    checksums: list[int]
    notes: list[tuple[Path, str]]
    problems: list[BadPicture]


def write_shards(
    shards: Iterable[Shard],
    paths: Sequence[Path],
    size: int,
    file_format: FileFormat,
    notes: list[tuple[Path, str]] | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """Write the files, with pictures as in `encode`; gives, of each that is there, its number and
    the checksums of its pictures.

    Only decoding tells of some pictures that they are broken: after the first that is, nothing more
    is written, but the others are read, so that all are named.

    Pillow decodes outside the interpreter lock, so in threads; many pictures in processes, and
    DICOM too, whose decoders hold it.

    Args:
        paths: the pictures of all shards.
        notes: what is seen in the pixels of each, see `pictures.Picture`, is added.

    Raises:
        InputError: naming the pictures that `pictures.read` refuses, or where a process is killed.
    """
    problems = []
    few = len(paths) < FEW and sum(map(pictures.is_dicom, paths)) < FEW_DICOMS
    stop = threading.Event() if few else None
    with _threads(stop) if few else processes() as pool:
        try:
            numbers = {}
            for number, shard in enumerate(shards):
                job = pool.submit(_write_shard, shard, size, file_format, stop)
                numbers[job] = number
            for done in as_completed(numbers):
                written = done.result()
                problems += written.problems
                if notes is not None:
                    notes += written.notes
                if not written.problems:
                    yield numbers[done], written.checksums
            raise_all(sorted(problems), paths[0].parent)
        except BrokenProcessPool as error:
            raise InputError(
                f"{paths[0].parent}: a process that decoded these pictures was killed: is there "
                "enough memory?"
            ) from error


@contextlib.contextmanager
def _threads(stop: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """They end after the picture at hand when this is left."""
    with ThreadPoolExecutor(cores()) as pool:
        try:
            yield pool
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _write_shard(
    shard: Shard, size: int, file_format: FileFormat, stop: threading.Event | None
) -> Written:
    written = Written([], [], [])
    examples = _with_pictures(shard, size, stop, written)
    if file_format != FileFormat.ARRAY_RECORD:  # which `tfds build` may ask for
        file_adapters.ADAPTER_FOR_FORMAT[file_format].write_examples(
            shard.path, enumerate(examples)
        )
        return written
    # zstd's first level, where TFDS takes the third: three times as fast, pictures are as small.
    file = ArrayRecordWriter(os.fspath(shard.path), "group_size:1,zstd:1")
    for example in examples:
        file.write(example)
    file.close()
    return written


def _with_pictures(
    shard: Shard, size: int, stop: threading.Event | None, written: Written
) -> Iterator[bytes]:
    for record, path in zip(shard.records, shard.pictures, strict=True):
        if stop is not None and stop.is_set():
            return  # no one will have the file
        try:
            picture = encode(path, size, written.notes)
        except pictures.NotInstalled:
            raise
        except InputError as error:
            written.problems.append(BadPicture(str(error), path.name))
            continue
        if written.problems:
            continue
        written.checksums.append(zlib.crc32(picture))
        example = tf_example_pb2.Example.FromString(record)
        example.features.feature["image"].bytes_list.value[:] = [picture]
        # The fields in one order; protobuf's differs from process to process.
        yield example.SerializeToString(deterministic=True)


def encode(path: Path, size: int, notes: list[tuple[Path, str]] | None = None) -> bytes:
    """A picture as an 8-bit gray PNG of size x size pixels; what is seen in its pixels is added to
    `notes`.

    Raises:
        InputError: for a file that `pictures.read` refuses.
    """
    found = pictures.read(path)
    if notes is not None:
        notes += [(path, note) for note in found.notes if pictures.is_of_pixels(note)]
    return png(pictures.resize(found.pixels, size))


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
