"""What --images names, and folders of checkpoints."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxdet.inference.predict import find_files
from jaxdet.runs import checkpoint
from tests.bad_inputs.files import png

Read = Callable[[Path], object]


def found(pattern: str, *names: str | bytes) -> Read:
    """A glob, or a folder, with pictures of those names below."""

    def read(folder):
        for name in names:
            path = folder / os.fsdecode(name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(png())
        find_files(str(folder / pattern))

    return read


def link_in_itself(folder: Path) -> None:
    (folder / "x").mkdir()
    (folder / "x" / "again").symlink_to(folder / "x")
    find_files(str(folder / "x" / "**" / "*.png"))


def saved(make: Callable[[Path], object]) -> Read:
    """A folder of checkpoints as made, and its latest."""

    def read(folder):
        make(folder / "checkpoints")
        with checkpoint.open_manager(folder) as manager:
            step = checkpoint.find_step(manager, "latest", {})
            checkpoint.restore(manager, step, weights={"a": np.zeros(3)})

    return read


def steps(*names: str) -> Read:
    return saved(lambda place: [(place / name).mkdir(parents=True) for name in names])


def step_is_a_file(place: Path) -> None:
    place.mkdir()
    (place / "5").write_text("x")


def step_is_its_parent(place: Path) -> None:
    place.mkdir()
    (place / "5").symlink_to(place)


def damaged(change: Callable[[Path], object]) -> Read:
    """A whole checkpoint with a file of it changed."""

    def make(place):
        with checkpoint.open_manager(place.parent, {}) as manager:
            checkpoint.save(manager, 5, weights={"a": np.zeros(3)})
        change(place / "5/weights/manifest.ocdbt")

    return saved(make)


def other_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CASES = {
    "What --images names": {
        "a glob of nothing": found("*.png"),
        "an open bracket": found("[", "a.png"),
        "an empty folder": found("."),
        "no picture but other files": found(".", "a.txt"),
        "the same name twice": found(".", "x.png", "x.jpg"),
        "a name of two lines": found("*.png", "a\nb.png"),
        "a name that is no text": found("*.png", b"a\xff.png"),
        "a home of nobody": lambda folder: find_files("~nobody-of-that-name/x.png"),
        "a folder with itself in it": link_in_itself,
    },
    "Folders of checkpoints": {
        "a file": saved(lambda place: place.write_text("x")),
        "none in it": saved(Path.mkdir),
        "an empty step": steps("5"),
        "a step below 0": steps("-5"),
        "a step of 40 digits": steps("9" * 40),
        "a file of it is gone": damaged(Path.unlink),
        "a file of it has another bit": damaged(other_bit),
        "a step that is a file": saved(step_is_a_file),
        "a step that is a link to its parent": saved(step_is_its_parent),
    },
}
