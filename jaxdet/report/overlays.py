"""Films with detections drawn on them."""

import contextlib
import functools
import io
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib import ft2font
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from jaxdet import InputError
from jaxdet.data import images, machine
from jaxdet.data.ahead import in_order
from jaxdet.inference.detector import Loaded
from jaxdet.inference.predict import Found, Pictures, predict, say
from jaxdet.ops.boxes import BoxTable
from jaxdet.runs.workdir import Run, write_atomically

SCORE = 0.3  # boxes below it are not drawn; the files of detections have them
MOST = 20  # boxes drawn on a film, at most: those with the highest scores
FILMS = 300  # drawn of a folder, unless more are asked for
AHEAD = 64  # films wait to be drawn, at most: 1 MB each
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


@contextlib.contextmanager
def predicted(
    loaded: Loaded,
    pictures: Pictures,
    run: Run,
    folder: Path,
    invert: bool = False,
    most: int | None = None,
) -> Iterator[tuple[Found, Callable[[], None]]]:
    """Predict, and draw an overlay of each file: while the detector works, where all are drawn.

    Else the films are read again, when it is known which they are. Threads draw in parallel, as
    resizing and encoding release the GIL.

    Args:
        invert: whether films that look inverted beside the training images are inverted.
        most: how many are drawn, those with the highest scores; `FILMS` if left out.

    Yields:
        What was found, and a function that puts the overlays into `folder`/overlays, as
        <image_id>.png; if it is not called, nothing is left of them.

    Raises:
        InputError: if one cannot be written.
    """
    files = 0 if jax.process_index() else len(pictures.files)  # a split has none
    wanted = FILMS if most is None else most
    at_once = files <= wanted
    place, drawing = folder / "overlays", deque()
    with _elsewhere(place, files and wanted) as scratch, _threads() as pool:

        def draw_one(name, pixels, size, rows):
            film = draw(pixels, size, rows.labels, rows.boxes, rows.scores, run.class_names)
            content = io.BytesIO()
            film.save(content, "png", compress_level=1)  # a third of the time, a fifth more bytes
            write_atomically(scratch / f"{name}.png", content.getvalue())

        def drawn(i, film, rows):
            drawing.append(pool.submit(draw_one, pictures.ids[i], film.shown, film.size, rows))
            if len(drawing) > AHEAD:
                drawing.popleft().result()

        def draw_again(i):
            pixels = images.read(found.files[i]).pixels
            pixels = 255 - pixels if invert and i in found.suspects else pixels
            rows = BoxTable(*(column[found.table.image == i] for column in found.table))
            draw_one(found.ids[i], pixels, tuple(found.sizes[i].tolist()), rows)

        found = predict(
            loaded,
            pictures,
            len(run.class_names),
            run.grey_levels,
            invert,
            shrink if at_once and scratch else None,
            drawn,
        )
        say(found, invert)
        if scratch and found.ids:
            _say(len(found.ids), wanted, most, place, run.class_names)
        for job in drawing:
            job.result()
        if scratch and not at_once:
            chosen = choose(found.table, len(found.ids), len(run.class_names), wanted)
            bar = tqdm(
                in_order(draw_again, chosen), "draw", len(chosen), unit="image", disable=None
            )
            deque(bar, maxlen=0)
        yield found, functools.partial(_put, scratch, place)


def _say(files: int, wanted: int, most: int | None, place: Path, class_names: Sequence[str]):
    """Which films are drawn, and what the numbers on them are."""
    if legend := _legend(class_names):
        print(
            f"note: overlays have numbers where no font has the letters: {legend}", file=sys.stderr
        )
    print(f"drawing {min(files, wanted)} of {files} pictures in {place}")
    if most is None and wanted < files:
        print(
            f"note: of {files} pictures the {wanted} with the surest findings are drawn; "
            f"--overlays={files} draws all",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """As many as there are cores; at the end, what they have not begun is dropped."""
    pool = ThreadPoolExecutor(machine.cores())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _elsewhere(place: Path, needed: int | bool) -> Iterator[Path | None]:
    """A hidden folder on the disk of `place` that is gone afterwards; None where none is needed."""
    if not needed:
        yield None
        return
    existing = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
    try:
        scratch = tempfile.TemporaryDirectory(prefix=".overlays.", dir=existing)
    except OSError as error:
        raise InputError(f"cannot write {place}: {error.strerror}") from error
    with scratch as name:
        yield Path(name)


def _put(scratch: Path | None, place: Path) -> None:
    """Move what has been drawn to where it is looked for."""
    try:
        for file in sorted(scratch.iterdir()) if scratch else ():
            place.mkdir(parents=True, exist_ok=True)
            file.replace(place / file.name)
    except OSError as error:
        raise InputError(f"cannot write {place}: {error.strerror}") from error


def shrink(
    pixels: UInt8[np.ndarray, "h w"], size: tuple[int, int]
) -> UInt8[np.ndarray, "height width"]:
    """A film at the size of its overlay, in the aspect ratio of the original's `size`."""
    height, width = size
    scale = np.clip(max(size), *SIDES) / max(size)
    shape = max(round(width * scale), 1), max(round(height * scale), 1)
    return np.asarray(Image.fromarray(pixels).resize(shape, Image.Resampling.BILINEAR))


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
        pixels: the film, or what `shrink` makes of it.
        size: (height, width) of the original in pixels, which `boxes` are in.
        labels: of each box; the number of classes stands for "No finding", which is in that line.
    """
    scale = np.clip(max(size), *SIDES) / max(size)
    film = Image.fromarray(shrink(pixels, size)).convert("RGB")
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
