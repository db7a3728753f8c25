"""The phantom where a dataset needs it, and by which drawing it was made."""

import os
import sys
from pathlib import Path

from jaxdet import InputError

DRAWING = 2  # goes up where the same seed gives other pictures or labels
FILE = "drawing.txt"  # in the phantom's folder; the first drawing had none


def drawn_phantom(folder: Path) -> Path:
    """The phantom's Kaggle folder, drawn, whole or not at all, where there is none.

    Raises:
        InputError: where it cannot be written.
    """
    if os.path.exists(folder) and not (folder.is_dir() and not os.listdir(folder)):
        tell_older(folder, drawing_of(folder))
        return folder
    from tfds_vinbig import phantom

    try:
        phantom.draw_folder(folder)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot draw the phantom there ({error.strerror or error})"
        ) from error
    return folder


def drawing_of(folder: Path) -> int:
    """The number of the drawing that made a phantom's folder."""
    file = folder / FILE
    text = file.read_text().strip() if file.is_file() else ""
    return int(text) if text.isdecimal() else 1


def tell_older(path: Path, drawing: int) -> None:
    """Say on standard error that a phantom's folder, or the dataset of it, is not today's."""
    if drawing != DRAWING:
        print(
            f"note: {path}: the phantom of drawing {drawing}; today's is {DRAWING}, with other "
            "readers' boxes, and its scores are others: remove that, and the folder that it was "
            "drawn in, for a new one",
            file=sys.stderr,
        )


def noted(builder):
    """The TFDS builder of a dataset; where that is a phantom of an older drawing, it is said."""
    tell_older_dataset(Path(builder.data_dir), builder.info.metadata)
    return builder


def tell_older_dataset(path: Path, metadata: dict | None) -> None:
    """`tell_older` of a dataset, DATA_DIR/tfds_vinbig/NAME/VERSION, if it is of the phantom."""
    if path.parent.name == "phantom":
        tell_older(path, (metadata or {}).get("drawing", 1))
