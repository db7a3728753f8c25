"""The phantom where a dataset needs it."""

import os
from pathlib import Path

from jaxdet import InputError


def drawn_phantom(folder: Path) -> Path:
    """The phantom's Kaggle folder, drawn, whole or not at all, where there is none.

    Raises:
        InputError: where it cannot be written.
    """
    if os.path.exists(folder) and not (folder.is_dir() and not os.listdir(folder)):
        return folder
    from tfds_vinbig import phantom

    try:
        phantom.draw_folder(folder)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot draw the phantom there ({error.strerror or error})"
        ) from error
    return folder
