"""Boxes of COCO's entries: [x, y, width, height], or what a mask covers."""

import math
import re
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxdet import InputError
from tfds_vinbig.json_lists import parse_number, parse_whole, show
from tfds_vinbig.records import LARGEST, PIXEL

INSTALL = "pip install -e '.[coco]'"

Box = tuple[float, float, float, float]  # (x_min, y_min, x_max, y_max) in pixels


def is_of_mask(entry: dict) -> bool:
    """Whether the box of an annotation or detection is that of its mask."""
    return entry.get("bbox") in (None, []) and entry.get("segmentation") not in (None, [])


def box_of(entry: dict) -> Box:
    """The box of an annotation or detection: `bbox`, or that of `segmentation` where there is no
    bbox. One without area is a box too.

    Raises:
        InputError: without the place, which the caller knows.
    """
    return of_mask(entry["segmentation"]) if is_of_mask(entry) else corners(entry.get("bbox"))


def mask_size(entry: dict) -> tuple[int, int] | None:
    """(height, width) that run lengths have, where they are what the box is read from."""
    mask = entry.get("segmentation")
    if is_of_mask(entry) and isinstance(mask, dict):
        return tuple(map(parse_whole, mask["size"]))
    return None


def check_mask_size(size: tuple[int, int], expected: tuple[int, int], whose: str) -> None:
    """Run lengths are of the whole image: in those of another size nobody can tell where they are.

    Raises:
        InputError: without the place, which the caller knows.
    """
    if size != expected:
        raise InputError(
            f"segmentation's size {show(list(size))} is not that of {whose}, "
            f"{show(list(expected))} ([height, width])"
        )


def fit_as_corners(boxes: Float[np.ndarray, "n 4"], sizes: Float[np.ndarray, "n 2"]) -> bool:
    """Whether the four numbers of every box, taken as its corners, are a box in its image.

    Of one or two it may be chance.

    Args:
        boxes: corners, as `corners` makes them of what is read as x, y, width, height.
        sizes: (height, width) of the image of each.
    """
    low, high = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    return len(boxes) > 2 and bool(((low < high) & (high <= sizes[:, ::-1] + PIXEL)).all())


def corners(bbox: Any) -> Box:
    """[x, y, width, height] as corners.

    Raises:
        InputError: without the place, which the caller knows.
    """
    box = [parse_number(value) for value in bbox] if isinstance(bbox, list) else []
    if len(box) != 4 or any(map(math.isnan, box)):
        raise InputError(f"bbox {show(bbox)} is not four finite numbers")
    x, y, width, height = box
    found = x, y, x + width, y + height
    if max(map(abs, found)) > LARGEST:
        raise InputError(f"bbox {show(bbox)} is larger than any image")
    if min(width, height) < 0:
        raise InputError(f"bbox {show(bbox)} needs a width and a height of 0 or more")
    return found


def of_mask(mask: Any) -> Box:
    """The box around a mask: polygons [[x, y, x, y, ...], ...], or COCO's run lengths.

    Raises:
        InputError: for what is neither, and for run lengths where pycocotools is not installed.
    """
    if isinstance(mask, dict):
        return _of_runs(mask)
    polygons = mask if isinstance(mask, list) else [None]
    if not all(isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in polygons):
        raise InputError(f"segmentation {show(mask)} is neither polygons nor run lengths")
    points = [parse_number(value) for polygon in polygons for value in polygon]
    if not points or any(map(math.isnan, points)) or max(map(abs, points)) > LARGEST:
        raise InputError(f"segmentation {show(mask)} is not of points of an image")
    xs, ys = points[::2], points[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _of_runs(mask: dict) -> Box:
    """{"size": [height, width], "counts": lengths, as numbers or as COCO packs them}."""
    size, counts = mask.get("size"), mask.get("counts")
    sides = [parse_whole(side) or 0 for side in size] if isinstance(size, list) else []
    # pycocotools counts pixels in 32 bits.
    if len(sides) != 2 or not 0 < math.prod(sides) < 1 << 32 or max(sides) > LARGEST:
        raise InputError(f"segmentation's size {show(size)} is not [height, width]")
    tools = _pycocotools()
    if isinstance(counts, list):
        runs = [parse_whole(run) for run in counts]
        if None in runs or sum(runs) != math.prod(sides):
            raise InputError(f"segmentation's counts do not add up to {sides[0]} x {sides[1]}")
        packed = tools.frPyObjects({"size": sides, "counts": runs}, *sides)
    else:
        # Its decoder reads on where the last number of the text says that it goes on.
        if not (isinstance(counts, str) and re.fullmatch(r"[0-o]+", counts, re.ASCII)):
            raise InputError(f"segmentation's counts {show(counts)} are no run lengths")
        if (ord(counts[-1]) - 48) & 32:
            raise InputError(f"segmentation's counts {show(counts)} are cut short")
        packed = {"size": sides, "counts": counts.encode()}
        if int(tools.area(packed)) > math.prod(sides):
            raise InputError(f"segmentation's counts are of more than {sides[0]} x {sides[1]}")
    x, y, width, height = np.asarray(tools.toBbox(packed)).ravel().tolist()
    return x, y, x + width, y + height


def _pycocotools() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise InputError(
            f"a mask of run lengths, which needs pycocotools to be read: {INSTALL}"
        ) from error
    return mask


def is_crowd(entry: dict) -> bool:
    """What `iscrowd` says; some write it as text, or leave it empty.

    Raises:
        InputError: for what is neither 0 nor 1.
    """
    value = entry.get("iscrowd")
    word = str(value).strip().lower()
    if value is None or word in ("", "0", "0.0", "false"):
        return False
    if word in ("1", "1.0", "true"):
        return True
    raise InputError(f"iscrowd {show(value)} is neither 0 nor 1")
