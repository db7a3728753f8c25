"""Which films look inverted beside the training images."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

GRID = 8  # cells along a side, for grey levels


def grey_levels(images: UInt8[np.ndarray, "n height width"]) -> list[list[float]]:
    """What `looks_inverted` needs of the training images: means and standard deviations of 8 x 8
    cells, each image brought to mean 0 and deviation 1, and of the images' own means."""
    described = np.stack([_describe(pixels.astype(np.float64)) for pixels in images])
    return [np.round(x, 4).tolist() for x in (described.mean(axis=0), described.std(axis=0))]


def looks_inverted(pixels: UInt8[np.ndarray, "height width"], levels: list[list[float]]) -> bool:
    """Whether a picture's negative is much nearer to the training images (`grey_levels`) than it.

    Much is 1.5 times, in squared distances. On real chest films and on the phantom that finds
    nearly every negative and no positive: `tests/data/test_inversion.py`.
    """
    mean, deviation = np.array(levels)
    deviation = np.maximum(deviation, [0.2] * GRID**2 + [8])  # training images may be all alike

    def distance(grey):
        *cells, level = np.square((_describe(grey) - mean) / deviation)
        return np.mean(cells) + level

    grey = pixels.astype(np.float64)
    return bool(1.5 * distance(255 - grey) < distance(grey))


def _describe(grey) -> Float[np.ndarray, "numbers"]:
    picture = Image.fromarray(grey.astype(np.float32)).resize(
        (GRID, GRID), Image.Resampling.BILINEAR
    )
    cells = np.asarray(picture, np.float64).ravel()
    return np.append((cells - cells.mean()) / (cells.std() + 8), cells.mean())
