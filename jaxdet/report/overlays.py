"""Films with detections drawn on them."""

import functools
import io
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib import ft2font
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from jaxdet.data import images, machine
from jaxdet.inference.predict import Pictures
from jaxdet.ops.boxes import BoxTable
from jaxdet.runs.workdir import write_atomically

SCORE = 0.3  # boxes below it are not drawn; the files of detections have them
MOST = 20  # boxes drawn on a film, at most: those with the highest scores
FILMS = 300  # drawn of a folder, unless more are asked for
SIDES = (512, 1024)  # the longer side of a picture in pixels, at least and at most
_FONT = str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))
COLORS = ("#ffc857", "#6cb8ff", "#ff7b6b", "#58d6a0", "#d3a4ff", "#ff9fd0", "#6fe0e0", "#b9e769",
          "#ffb38a", "#9aa8ff")  # fmt: skip


def choose(table: BoxTable, num_pictures: int, num_classes: int, most: int) -> list[int]:
    """The `most` pictures whose findings have the highest scores, in the order of the pictures.

    Args:
        table: detections; `image` counts the pictures.
        num_classes: the label of "No finding", which does not count.
    """
    surest = np.zeros(num_pictures)
    found = table.labels < num_classes
    np.maximum.at(surest, table.image[found], table.scores[found])
    return sorted(np.argsort(-surest, kind="stable")[:most].tolist())


def write(
    folder: Path,
    pictures: Pictures,
    table: BoxTable,
    class_names: Sequence[str],
    inverted: Collection[int] = (),
    most: int | None = None,
) -> None:
    """Write `folder`/overlays/<image_id>.png for each file.

    Films are read again, as they are too large to keep. Threads work in parallel, as decoding,
    resizing and encoding release the GIL.

    Args:
        table: detections in pixels of the originals; `image` counts the pictures.
        inverted: images that were inverted before detection.
        most: how many pictures are drawn, those with the highest scores; `FILMS` if left out.

    Raises:
        InputError: if one cannot be written there.
    """
    files = len(pictures.files)
    if jax.process_index() != 0 or not files or most == 0:  # a split has no files
        return
    if legend := _legend(class_names):
        print(
            f"note: overlays have numbers where no font has the letters: {legend}", file=sys.stderr
        )
    chosen = choose(table, files, len(class_names), FILMS if most is None else most)
    print(f"drawing {len(chosen)} of {files} pictures in {folder / 'overlays'}")
    if most is None and len(chosen) < files:
        print(
            f"note: of {files} pictures the {len(chosen)} with the surest findings are drawn; "
            f"--overlays={files} draws all",
            file=sys.stderr,
        )

    def write_one(i: int) -> None:
        pixels = images.read(pictures.files[i]).pixels
        mine = np.flatnonzero(table.image == i)
        columns = (column[mine] for column in (table.labels, table.boxes, table.scores))
        shown = 255 - pixels if i in inverted else pixels
        film = draw(shown, tuple(pictures.sizes[i].tolist()), *columns, class_names)
        content = io.BytesIO()
        film.save(content, "png", compress_level=1)  # a third of the time for a fifth more bytes
        write_atomically(folder / "overlays" / f"{pictures.ids[i]}.png", content.getvalue())

    with ThreadPoolExecutor(machine.cores()) as pool:
        films = pool.map(write_one, chosen)
        try:
            for _ in tqdm(films, "draw", total=len(chosen), unit="image", disable=None):
                pass
        except BaseException:  # one that cannot be written, or a signal: the others do not follow
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def draw(
    pixels: UInt8[np.ndarray, "h w"],
    size: tuple[int, int],
    labels: Int[np.ndarray, "n"],
    boxes: Float[np.ndarray, "n 4"],
    scores: Float[np.ndarray, "n"],
    class_names: Sequence[str],
) -> Image.Image:
    """A film in its own aspect ratio with boxes, classes and scores, and a line of text below.

    Args:
        size: (height, width) of the original in pixels, which `boxes` are in.
        labels: of each box; the number of classes stands for "No finding", which is in that line.
    """
    height, width = size
    scale = np.clip(max(size), *SIDES) / max(size)
    shape = max(round(width * scale), 1), max(round(height * scale), 1)
    film = Image.fromarray(pixels).resize(shape, Image.Resampling.BILINEAR).convert("RGB")
    class_names = [_shown(name, label) for label, name in enumerate(class_names)]
    font = _font(class_names, max(film.size) / 60 + 3)
    found = np.flatnonzero(labels < len(class_names))
    colors = [COLORS[label % len(COLORS)] for label in labels]
    found = found[np.argsort(-scores[found], kind="stable")]
    shown = [i for i in found if scores[i] >= SCORE][:MOST]

    pen = ImageDraw.Draw(film)
    texts = [f"{class_names[labels[i]]} {scores[i]:.2f}" for i in shown]
    corners = [[float(x) for x in boxes[i] * scale] for i in shown]
    # Of each text its size, with a margin of 2 pixels.
    ends = [font.getbbox(text)[2:] for text in texts]
    places = place_labels(corners, [(w + 4, h + 4) for w, h in ends], film.size)
    line = max(film.size) // 400 + 1
    for i, box in reversed(list(zip(shown, corners, strict=True))):  # the surest on top
        pen.rectangle(box, outline=colors[i], width=line)
    for i, text, (w, h), place in zip(shown, texts, ends, places, strict=True):
        if place is not None:
            x, y = place
            pen.rectangle((x, y, x + w + 3, y + h + 3), fill=colors[i])
            pen.text((x + 2, y + 2), text, fill="black", font=font)

    normal = scores[labels == len(class_names)]
    words = [f"No finding {normal.max():.2f}"] if len(normal) else []
    words.append(f"boxes that score {SCORE:g} or more" if shown else f"no box scores {SCORE:g}")
    if not shown and len(found):
        words.append(f"the highest is {class_names[labels[found[0]]]} {scores[found[0]]:.2f}")
    return _with_line(film, "  |  ".join(words), font)


@functools.cache
def _letters() -> frozenset[int]:
    """The Unicode code points of matplotlib's font: Latin with accents, Greek, Cyrillic, Arabic; no
    Chinese."""
    return frozenset(ft2font.FT2Font(_FONT).get_charmap())


def _shown(name: str, label: int) -> str:
    """The name of a class, or its number if the font lacks a letter of the name."""
    return name if name.isascii() or _letters() >= set(map(ord, name)) else f"class {label}"


def _legend(class_names: Sequence[str]) -> str:
    """Which class names the numbers stand for."""
    shown = [(_shown(name, label), name) for label, name in enumerate(class_names)]
    return ", ".join(f"{number} is {name}" for number, name in shown if number != name)


def _font(names: Sequence[str], size: float) -> ImageFont.FreeTypeFont:
    """Pillow's font for ASCII, else matplotlib's."""
    if all(map(str.isascii, names)):
        return ImageFont.load_default(size)
    return ImageFont.truetype(_FONT, size)


def _with_line(film: Image.Image, text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """A picture with a line of text below it."""
    _, _, width, height = font.getbbox(text)
    page = Image.new("RGB", (max(film.width, width + 8), film.height + height + 8), "#202020")
    page.paste(film, (0, 0))
    ImageDraw.Draw(page).text((4, film.height + 4), text, fill="white", font=font)
    return page


def place_labels(
    boxes: Sequence[Sequence[float]],
    sizes: Sequence[tuple[int, int]],
    canvas: tuple[int, int],
) -> list[tuple[int, int] | None]:
    """The upper left corner of each box's label: inside the canvas, and no label on another.

    At a corner of its box if possible, above or below the box first; else at the nearest free
    place; None if there is none. Labels are placed in the order of the boxes.

    Args:
        boxes: (x1, y1, x2, y2) in pixels of the canvas.
        sizes: (width, height) of each label.
        canvas: (width, height).
    """
    taken, places = [], []
    for (x1, y1, x2, y2), (width, height) in zip(boxes, sizes, strict=True):
        right, bottom = canvas[0] - width, canvas[1] - height
        corners = [(x, y) for y in (y1 - height, y2, y1, y2 - height) for x in (x1, x2 - width)]
        grid = [(x, y) for y in range(0, max(bottom, 0) + 1, height)
                for x in range(0, max(right, 0) + 1, max(width // 4, 1))]  # fmt: skip
        grid.sort(key=lambda place: abs(place[0] - x1) + abs(place[1] - y1))
        place = None
        for x, y in (*corners, *grid):
            x, y = round(min(max(x, 0), right)), round(min(max(y, 0), bottom))
            free = all(
                x >= a + w or a >= x + width or y >= b + h or b >= y + height
                for a, b, w, h in taken
            )
            if free and right >= 0 and bottom >= 0:
                place = x, y
                taken.append((x, y, width, height))
                break
        places.append(place)
    return places
