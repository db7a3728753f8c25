"""How like films the phantom's drawings are: power by octave and greys, in a table and a picture.

    python benchmarks/phantom_texture.py FOLDER_OF_FILMS [--number=300] [--picture=docs/phantom.png]

The films are any pictures (JPEG, PNG) of one folder, taken at even distances in the order of names;
both are reduced to 256 x 256 pixels, and each brought to mean 0 and variance 1. Power is of octaves
of cycles across the picture, in decades (log10 of the mean of |FFT|^2 / pixels over the ring, under
a Hann window): the mean and the standard deviation over pictures. The picture has drawings on the
left, films beside.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from tfds_vinbig.phantom import draw_image, plan_image

SIZE = 256
OCTAVES = (1, 2, 4, 8, 16, 32, 64, 128)
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def read(path: Path) -> np.ndarray:
    """A film as (SIZE, SIZE) greys."""
    with Image.open(path) as film:
        return np.asarray(film.convert("L").resize((SIZE, SIZE), Image.Resampling.BOX))


def power(picture: np.ndarray) -> np.ndarray:
    """log10 of the power within each octave, (len(OCTAVES) - 1,), of a picture at unit variance."""
    x = picture.astype(np.float64)
    x = (x - x.mean()) / max(x.std(), 1e-6)
    edge = np.hanning(SIZE)
    spectrum = np.abs(np.fft.fft2(x * np.outer(edge, edge))) ** 2 / x.size
    cycles = np.fft.fftfreq(SIZE, 1 / SIZE)
    r = np.hypot(*np.meshgrid(cycles, cycles))
    rings = itertools.pairwise(OCTAVES)
    return np.log10([spectrum[(r >= low) & (r < high)].mean() for low, high in rings])


def greys(picture: np.ndarray) -> np.ndarray:
    """Quantiles of a picture's greys, then mean and standard deviation, as shares of white."""
    return np.array([*np.quantile(picture, QUANTILES), picture.mean(), picture.std()]) / 255


def main() -> None:
    """Print the tables, and draw the picture where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("films", type=Path)
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    paths = sorted(p for p in args.films.iterdir() if p.suffix in (".jpg", ".jpeg", ".png"))
    paths = [paths[i] for i in np.linspace(0, len(paths) - 1, args.number).astype(int)]
    drawn = [draw_image(plan_image(0, 0, i), SIZE) for i in range(args.number)]
    films = [read(path) for path in paths]
    print("| cycles | drawings: decades | spread | films: decades | spread |\n" + "|---" * 5 + "|")
    columns = [np.array([power(p) for p in pictures]) for pictures in (drawn, films)]
    for i, low in enumerate(OCTAVES[:-1]):
        cells = [f"{f(c[:, i]):.2f}" for c in columns for f in (np.mean, np.std)]
        print(f"| {low} to {OCTAVES[i + 1]} | {' | '.join(cells)} |")
    print("\n| greys, % of white | drawings | spread | films | spread |\n" + "|---" * 5 + "|")
    columns = [100 * np.array([greys(p) for p in pictures]) for pictures in (drawn, films)]
    for i, name in enumerate([*(f"quantile {q}" for q in QUANTILES), "mean", "deviation"]):
        cells = [f"{f(c[:, i]):.0f}" for c in columns for f in (np.mean, np.std)]
        print(f"| {name} | {' | '.join(cells)} |")
    if args.picture:
        some = np.linspace(0, args.number - 1, 6).astype(int)[1:-1]
        sides = [np.block([[p[some[0]], p[some[1]]], [p[some[2]], p[some[3]]]])
                 for p in (drawn, films)]  # fmt: skip
        gap = np.full((2 * SIZE, 12), 255, np.uint8)
        sheet = Image.fromarray(np.hstack([sides[0], gap, sides[1]]))
        sheet.resize((3 * sheet.width // 4, 3 * SIZE // 2)).save(args.picture, optimize=True)


if __name__ == "__main__":
    main()
