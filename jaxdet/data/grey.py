"""From the values of a film to what is seen: which values count, and the steps that DICOM names."""

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image

# Pixels so few and so far from all others do not choose the range: measured in docs/films.md.
FEW = 0.01
EXTREME = "a few pixels far from all others do not choose the range of greys"


def note(kind: str, share: float) -> str:
    """A note with the share of a picture's pixels that it is about."""
    return f"{kind} ({100 * share:.3g} %)"


def share_of_one(pixels: UInt8[np.ndarray, "height width"]) -> float:
    """The share of the pixels that have the most frequent grey level."""
    return max(Image.fromarray(pixels).histogram()) / pixels.size


def count(
    values: Shaped[np.ndarray, "height width"], low: int, high: int
) -> Int[np.ndarray, "levels"]:
    """How many pixels have each whole value from `low` to `high`."""
    counts = np.zeros(high - low + 1, np.int64)
    for row in values:  # as a whole it would take 8 bytes a pixel
        counts += np.bincount(row.astype(np.int64) - low, minlength=len(counts))
    return counts


def usual_range(
    levels: Shaped[np.ndarray, "levels"], counts: Int[np.ndarray, "levels"], few: float = FEW
) -> tuple[float, float]:
    """The lowest and the highest level of a picture, without a few extreme pixels.

    Extreme is what lies beyond a gap that no pixel is in, as wide as all but the darkest and the
    brightest `few` of the pixels span together; and no more than `few` of them may lie beyond. One
    pixel of 65535 in a film of 12 bits would leave 6 % of the greys to the film.

    Args:
        levels: in any order.
        counts: the pixels that have each.
    """
    there = counts > 0
    order = np.argsort(levels[there], kind="stable")
    levels, counts = levels[there][order].astype(np.float64), counts[there][order]
    below = np.cumsum(counts)  # pixels up to each level
    allowed = few * below[-1]
    first = np.searchsorted(below, allowed, side="right")
    last = np.searchsorted(below, below[-1] - allowed)
    if levels[last] <= levels[first]:
        return float(levels[0]), float(levels[-1])
    wide = np.flatnonzero(np.diff(levels) >= levels[last] - levels[first])
    low = max((gap + 1 for gap in wide if gap < first), default=0)
    high = min((gap for gap in wide if gap >= last), default=len(levels) - 1)
    return float(levels[low]), float(levels[high])


def window(
    values: Float[np.ndarray, "levels"], function: str, center: float, width: float
) -> Float[np.ndarray, "levels"]:
    """A window of DICOM (PS3.3 C.11.2.1.2), from 0 to 1; `function` is one of its three."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:  # of LINEAR with width 1
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)


def look_up(
    values: Float[np.ndarray, "levels"], first: int, entries: Shaped[np.ndarray, "entries"]
) -> Float[np.ndarray, "levels"]:
    """A table of DICOM: its first entry is that of the value `first` and all below."""
    at = np.clip(np.floor(values - first), 0, len(entries) - 1).astype(np.int64)
    return entries[at].astype(np.float64)
