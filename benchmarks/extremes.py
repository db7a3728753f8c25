"""How many real films have pixels that `grey.usual_range` takes for extreme, by the share allowed.

    python benchmarks/extremes.py FOLDER_OR_FILE ...

Beside it what a plain cut of that share at both ends would do: how many films it changes by more
than 8 of 256 grey levels, and by how many levels the worst.
"""

import os
import sys
from pathlib import Path

import numpy as np

from jaxdet.data import dicom, grey, images

SHARES = (0.0001, 0.001, 0.01, 0.02, 0.05, 0.1)


def levels_of(path: Path) -> np.ndarray:
    """The values of a film before they are stretched."""
    data = path.read_bytes()
    if not dicom.is_dicom(data):
        return images.read(path).pixels
    found, _ = dicom._open(dicom._tools(), data, images.MAX_PIXELS)
    return found.pixel_array


def main(paths: list[str]) -> None:
    files = []
    for path in map(Path, paths):
        files += sorted(path.rglob("*")) if path.is_dir() else [path]
    count = {share: [0, 0, 0.0] for share in SHARES}
    films = 0
    for path in files:
        if not images.is_picture(path):
            continue
        levels = levels_of(path)
        low, high = int(levels.min()), int(levels.max())
        values, pixels = np.arange(low, high + 1), grey.count(levels, low, high)
        films += 1
        below = np.cumsum(pixels)
        for share in SHARES:
            found = count[share]
            if grey.usual_range(values, pixels, share) != (low, high):
                found[0] += 1
                print(f"{share:g}: {os.path.basename(path)}")
            ends = np.searchsorted(below, [share * below[-1], (1 - share) * below[-1]])
            lost = 256 * (1 - (ends[1] - ends[0]) / max(high - low, 1))
            found[1] += lost > 8
            found[2] = max(found[2], lost)
    print(f"{films} films\nshare    beyond a gap   cut by more than 8 levels   at most")
    for share, (beyond, cut, most) in count.items():
        print(f"{share:<8g} {beyond:>12} {cut:>26} {most:>9.0f}")


if __name__ == "__main__":
    main(sys.argv[1:])
