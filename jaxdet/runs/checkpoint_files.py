"""The files of a checkpoint: a list of them, and whether they are as the list has them."""

import json
import zlib
from collections.abc import Collection
from pathlib import Path

import jax

# In the folder of a checkpoint: bytes and CRC-32 of each file of its items.
FILES = "files.json"


def write_list(directory: Path) -> None:
    """Write `FILES` for the checkpoint that is being saved, of which there is one at a time."""
    if jax.process_index() != 0:
        return
    unfinished = [path for path in directory.iterdir() if not path.name.isdecimal()]
    folder = max(unfinished, key=lambda path: path.stat().st_mtime)
    found = {
        str(path.relative_to(folder)): [path.stat().st_size, _crc_of_file(path)]
        for path in sorted(folder.glob("*/**/*"))
        if path.is_file()
    }
    (folder / FILES).write_text(json.dumps(found, indent=1) + "\n")


def _crc_of_file(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def check(folder: Path, items: Collection[str]) -> str:
    """What is wrong with the files of these items of a checkpoint, in words; nothing is an empty
    string. What only other items need may be gone.

    Orbax would say it of each array, in hundreds of lines. A checkpoint of before there were such
    lists has none: then it is known which kinds of files there must be, and the arrays' checksums
    tell the rest.
    """
    items = {*items, "checksums"}
    try:
        listed = json.loads((folder / FILES).read_text())
        expected = [
            (Path(name).parts[0], folder / name, size, crc)
            for name, (size, crc) in listed.items()
            if Path(name).parts[0] in items
        ]
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
        expected = []
    if items != {item for item, *_ in expected}:  # no list, or a damaged one
        return _check_kinds(folder, items - {"checksums"})
    for _, path, size, crc in expected:
        name = path.relative_to(folder)
        try:
            there = path.stat().st_size
            if there != size:
                return f"its file {name} has {there} bytes of {size}"
            if _crc_of_file(path) != crc:
                return f"its file {name} is not as it was saved"
        except FileNotFoundError:
            return f"its file {name} is gone"
        except OSError as error:
            return f"its file {name}: {error.strerror}"
        except ValueError:
            return f"its list {FILES} has {str(name)[:60]!r}, which is no name of a file"
    return ""


def _check_kinds(folder: Path, items: Collection[str]) -> str:
    """As `check`, without a list: Orbax writes a table of arrays (OCDBT) for each item, and
    one for each process that saved it."""
    for item in sorted(items):
        if not (folder / item / "_METADATA").is_file():
            return f"its folder {item} is gone, or has no _METADATA"
        parts = list((folder / item).glob("ocdbt.process_*"))
        for part in (folder / item, *parts):
            lost = [name for name in ("manifest.ocdbt", "d/*") if not any(part.glob(name))]
            if lost or not parts:
                return f"files of {part.relative_to(folder)} are gone"
    there = (folder / "checksums/metadata").is_file()
    return "" if there else "its file checksums/metadata is gone"
