"""Folders that are whole or not there."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jaxdet import InputError


def full_path(path: str | Path) -> str:
    """A path that means the same from everywhere."""
    return str(Path(path).expanduser().resolve())


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """A folder and its parents; what was new of them goes again if the block fails."""
    new = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):  # it is not empty: someone else's
                path.rmdir()
        raise


def put(folder: Path, target: Path) -> None:
    """Give a finished folder its final name, unless another process has put the same there."""
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder inside another for the time of the block."""
    with tempfile.TemporaryDirectory(prefix=".tfds_vinbig-", dir=folder) as path:
        yield Path(path)


def drawn_phantom(folder: Path) -> Path:
    """The phantom's Kaggle folder, drawn, whole or not at all, where there is none.

    Raises:
        InputError: where it cannot be written.
    """
    if os.path.exists(folder) and not (folder.is_dir() and not os.listdir(folder)):
        return folder
    from tfds_vinbig import phantom

    try:
        with made(folder.parent), scratch(folder.parent) as beside:
            phantom.draw_folder(beside / folder.name)
            put(beside / folder.name, folder)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot draw the phantom there ({error.strerror or error})"
        ) from error
    return folder
