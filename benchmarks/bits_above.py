"""How often bits above those stored are told right: more of the film, or an overlay.

    python benchmarks/bits_above.py FILE ...

Real films are given a header that says from 1 to 4 bits fewer than they have; and one that is
right, with text, a filled box and an outline in each bit above. Films of 8 bits get 4 more of
noise.
"""

import sys
from pathlib import Path

import numpy as np
from extremes import levels_of
from PIL import Image, ImageDraw

from jaxdet.data import dicom_greys, grey

TEXT = "PORTABLE AP 12.03.2004 80 KV 2.5 MAS"


def is_read_whole(levels: np.ndarray, bits: int) -> bool:
    """Whether a film is taken to need more than these bits stored."""
    levels = levels.astype(np.uint16)
    low, high = int(levels.min()), int(levels.max())
    greys = dicom_greys.Greys(None, None, None, (0, (1 << bits) - 1), False, False, False, ())
    found = dicom_greys.with_bits_needed(greys, levels, low, grey.count(levels, low, high))
    return found is not greys


def drawn(height: int, width: int) -> np.ndarray:
    """An overlay: 1 where something is drawn."""
    picture = Image.new("1", (width, height))
    pen = ImageDraw.Draw(picture)
    for y in range(0, height, max(20, height // 12)):
        pen.text((width // 8, y), TEXT, fill=1)
    pen.rectangle((width // 2, height // 2, width * 3 // 4, height * 3 // 4), fill=1)
    pen.ellipse((0, 0, width // 4, height // 4), outline=1)
    return np.asarray(picture).astype(np.int64)


def main(paths: list[str]) -> None:
    rng, films = np.random.default_rng(0), 0
    whole = {missing: [0, 0] for missing in (1, 2, 3, 4)}  # right, of so many
    overlays = [0, 0]
    for path in map(Path, paths):
        levels = levels_of(path).astype(np.int64)
        levels -= min(levels.min(), 0)
        if levels.max() < 256:
            levels = levels * 16 + rng.integers(0, 16, levels.shape)
        films += 1
        bits = int(levels.max()).bit_length()
        for missing, found in whole.items():
            # Where all pixels have the same in the bits above, either reading is the same picture.
            if bits - missing >= 8 and np.ptp(levels >> (bits - missing)):
                right = is_read_whole(levels, bits - missing)
                found[0] += right
                found[1] += 1
                if not right:
                    print(f"cut by {missing} bits: {path}")
        for bit in range(bits, 16):
            right = not is_read_whole(levels | (drawn(*levels.shape) << bit), bits)
            overlays[0] += right
            overlays[1] += 1
            if not right:
                print(f"overlay in bit {bit} read as a film: {path}")
    print(f"{films} films")
    for missing, (right, of) in whole.items():
        print(f"{missing} bits fewer in the header: {right} of {of} read whole")
    print(f"overlays in the bits above: {overlays[0]} of {overlays[1]} left out")


if __name__ == "__main__":
    main(sys.argv[1:])
