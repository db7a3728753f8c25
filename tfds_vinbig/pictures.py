"""The pictures of a folder: which there are, their ids and sizes, and which cannot be read."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from jaxdet import InputError
from jaxdet.data import images
from tfds_vinbig.records import BadPicture


def find_pictures(folder: Path, problems: list[str]) -> dict[str, Path]:
    """The picture of each image id in a folder and those below it, see `images.is_picture`."""
    found, before = {}, len(problems)
    for path in sorted(filter(images.is_picture, _files_below(folder, problems))):
        name = images.image_id(path, folder)
        if name in found:
            other = found[name].relative_to(folder)
            problems.append(f"{path}: a second picture of this id, see {other}")
        found[name] = path
    if not found and len(problems) == before:
        problems.append(f"{folder}: no PNG, JPEG, TIFF or DICOM in it")
    return found


def _files_below(folder: Path, problems: list[str]) -> Iterator[Path]:
    """Linked folders are gone through too, each once; what may be read is for `read_shapes`."""

    def refuse(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot read this folder ({error.strerror})")

    seen = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # A folder by the name of a picture is taken for one, and cannot be read.
        odd = [name for name in folders if Path(name).suffix.lower() in images.SUFFIXES]
        folders[:] = sorted(n for n in folders if n not in odd and not n.startswith("."))
        yield from (Path(place, name) for name in (*names, *odd))


def read_shapes(
    paths: Iterable[Path],
    folder: Path,
    problems: list[str],
    notes: list[str],
    follow_links: bool = False,
) -> dict[Path, tuple[int, int]]:
    """(height, width) in pixels of each picture in `folder`; all are read once, see `images.check`.

    One that cannot be read, or is a link that leads out of the folder (unless such are followed),
    is a problem and left out.

    Raises:
        images.NotInstalled: for the first DICOM, where no other could be read either.
    """
    paths, inside = list(paths), os.path.join(os.path.realpath(folder), "")

    def read(path: Path) -> tuple[tuple[int, int], tuple[str, ...]] | InputError:
        if not follow_links and not os.path.realpath(path).startswith(inside):
            return InputError(
                f"{path}: a link that leads out of {folder}; put the file itself, or allow links "
                "by --follow_links"
            )
        if not (name := str(path.relative_to(folder))).isprintable():
            return InputError(f"{folder}: the name {name!a} is no line of text: rename it")
        try:
            return images.check(path)
        except images.NotInstalled:
            raise
        except InputError as error:
            return error

    shapes, said = {}, []
    quick = set(filter(images.is_gray_png, paths))
    pool = ThreadPoolExecutor()
    try:
        # Pillow decodes outside the interpreter lock. What needs no decoding is done here: threads
        # would take twice as long for it, waiting for each other's lock.
        slow = pool.map(read, [path for path in paths if path not in quick])
        results = (read(path) if path in quick else next(slow) for path in paths)
        # Where no one watches, no bar: an error is to be the one line on standard error.
        results = tqdm(results, "check", len(paths), unit="image", leave=False, disable=None)
        for path, result in zip(paths, results, strict=True):
            if isinstance(result, InputError):
                problems.append(BadPicture(str(result), path.name))
            else:
                shapes[path] = result[0]
                said += [(path.name, note) for note in result[1]]
    finally:
        pool.shutdown(cancel_futures=True)  # after ^C, not thousands of images later
    notes += [f"{folder}: {line}" for line in images.summarize(said)]
    return shapes


def check_shape(
    path: Path, shape: tuple[int, int], size: tuple[int, int], listed_by: str | Path
) -> str | None:
    """What is wrong with a picture of this shape for an original of this size, if anything.

    Resizing either squashes to a square or keeps the proportions, up to a pixel of rounding.
    """

    def scaled(shape):
        (height, width), (full_height, full_width) = shape, size
        lowest = max((height - 1) / full_height, (width - 1) / full_width)
        return lowest <= min((height + 1) / full_height, (width + 1) / full_width)

    height, width = shape
    if height == width or scaled(shape):
        return None
    problem = (
        f"{path}: the picture is {width} wide and {height} high, but the original {size[1]} wide "
        f"and {size[0]} high by {listed_by}"
    )
    hint = "; are width and height exchanged, or is it turned by its EXIF orientation?"
    return problem + (hint if scaled(shape[::-1]) else "")
