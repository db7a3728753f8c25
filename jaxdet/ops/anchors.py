"""Anchors of a feature pyramid (Lin et al. 2017, section 4), in torchvision's order."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxdet.ops.boxes import iou


def grid_sizes(image_size: tuple[int, int], levels: Sequence[int]) -> list[tuple[int, int]]:
    """(rows, columns) of each level; level l halves the image l times, rounding up."""
    height, width = image_size
    return [(-(-height // 2**level), -(-width // 2**level)) for level in levels]


def cell_anchors(
    sizes: Sequence[float | int], aspect_ratios: Sequence[float]
) -> Float[np.ndarray, "anchors 4"]:
    """Anchors of one location, centred on (0, 0): all sizes of the first ratio, then of the next.

    A size is the square root of the area, in pixels; an aspect ratio is height / width.
    """
    root = np.sqrt(np.asarray(aspect_ratios, np.float64))[:, None]
    sizes = np.asarray(sizes, np.float64)
    width, height = (sizes / root).ravel(), (sizes * root).ravel()
    return np.stack([-width, -height, width, height], axis=1) / 2


def pyramid_anchors(
    image_size: tuple[int, int],
    levels: Sequence[int],
    scales: Sequence[float | int],
    aspect_ratios: Sequence[float | int],
    as_torchvision: bool = False,
) -> list[Float[np.ndarray, "_ 4"]]:
    """Anchors of every level in model-input pixels, each flattened from (row, column, anchor).

    Args:
        image_size: (height, width) in pixels.
        levels: pyramid levels; level l has one location every 2**l pixels.
        scales: sizes in units of the level's stride (COCO's RetinaNet: 4, 5.04, 6.35).
        aspect_ratios: height / width.
        as_torchvision: its spacing, image size // columns, which differs where 2**l does not divide
            the image; and its rounding, of sizes and corners to whole pixels.
    """
    pyramid = []
    for level, (rows, columns) in zip(levels, grid_sizes(image_size, levels), strict=True):
        stride_y = stride_x = 2**level  # where the features look
        if as_torchvision:
            stride_y, stride_x = image_size[0] // rows, image_size[1] // columns
        y, x = np.meshgrid(np.arange(rows) * stride_y, np.arange(columns) * stride_x, indexing="ij")
        centres = np.stack([x, y, x, y], axis=-1)[:, :, None]
        sizes = [scale * 2**level for scale in scales]
        if as_torchvision:
            cell = np.rint(cell_anchors([float(int(size)) for size in sizes], aspect_ratios))
        else:
            cell = cell_anchors(sizes, aspect_ratios)
        pyramid.append((centres + cell).reshape(-1, 4).astype(np.float32))
    return pyramid


def best_iou(
    boxes: Float[np.ndarray, "boxes 4"],
    image_size: tuple[int, int],
    levels: Sequence[int],
    scales: Sequence[float | int],
    aspect_ratios: Sequence[float | int],
) -> Float[np.ndarray, "boxes"]:
    """IoU of each box with the anchor of the pyramid that overlaps it most.

    Of equal anchors on a grid, the one whose centre is nearest to the box's overlaps it most, so
    only that one is tried: 36,096 boxes take a fraction of a second at any image size.
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    best = np.zeros(len(boxes))
    for level, (rows, columns) in zip(levels, grid_sizes(image_size, levels), strict=True):
        nearest = np.clip(np.rint(centre / 2**level), 0, [columns - 1, rows - 1]) * 2**level
        for cell in cell_anchors([scale * 2**level for scale in scales], aspect_ratios):
            best = np.maximum(best, iou(boxes, np.tile(nearest, 2) + cell))
    return best


class Plan(NamedTuple):
    """Anchors as `pyramid_anchors` takes them."""

    levels: tuple[int, ...]
    scales: tuple[float, ...]
    aspect_ratios: tuple[float, ...]


# What a plan chooses from: five levels, scales by sixths of an octave, ratios by quarters.
LEVELS = ((2, 3, 4, 5, 6), (3, 4, 5, 6, 7))
SCALES = tuple(float(x) for x in np.round(2.0 ** (np.arange(13) / 6), 2))
ASPECT_RATIOS = tuple(float(x) for x in np.round(2.0 ** (np.arange(-8, 9) / 4), 2))
# Boxes of a class that are looked at: enough for a share, and quick.
BOXES_A_CLASS = 1000


def plan(
    boxes: Float[np.ndarray, "boxes 4"],
    labels: Int[np.ndarray, "boxes"],
    image_size: int,
    num_scales: int = 3,
    num_ratios: int = 3,
    *,
    levels: tuple[int, ...] | None = None,
    scales: tuple[float, ...] | None = None,
    aspect_ratios: tuple[float, ...] | None = None,
) -> Plan:
    """Levels, scales and ratios that reach the most boxes at IoU 0.5, and of every class many.

    Maximises the share of all boxes reached plus that of the class reached least: scales and ratios
    in turn, until neither improves. What is given stays. The same boxes give the same plan. (To
    plan anchors from the data is nnDetection's idea, Baumgartner et al. 2021; the search is ours.)

    Args:
        boxes: in pixels of a square image of `image_size`; at least one.
        num_scales, num_ratios: how many to choose, 1 to 6, as more take long; a location has their
            product of anchors.
    """
    present, counts = np.unique(labels, return_counts=True)
    rows = [np.flatnonzero(labels == label) for label in present]
    rows = [r[np.linspace(0, len(r) - 1, min(len(r), BOXES_A_CLASS)).astype(int)] for r in rows]
    share = np.repeat(np.eye(len(present)), [len(r) for r in rows], axis=1)
    share /= share.sum(axis=1, keepdims=True)
    boxes = boxes[np.concatenate(rows)]
    all_scales, all_ratios = scales or SCALES, aspect_ratios or ASPECT_RATIOS
    scale_sets = list(
        itertools.combinations(range(len(all_scales)), len(scales) if scales else num_scales)
    )

    def search(levels):
        reached = np.zeros((len(all_scales), len(all_ratios), len(boxes)), bool)
        for i, scale in enumerate(all_scales):
            for j, ratio in enumerate(all_ratios):
                best = best_iou(boxes, (image_size, image_size), levels, (scale,), (ratio,))
                reached[i, j] = best >= 0.5

        def quality(scales, ratios):
            of_class = share @ reached[np.ix_(scales, ratios)].any(axis=(0, 1))
            return of_class @ counts / counts.sum() + of_class.min()

        if aspect_ratios:
            ratios = tuple(range(len(aspect_ratios)))
        else:
            ratios = tuple(np.linspace(0, len(all_ratios) - 1, num_ratios + 2).astype(int)[1:-1])
        best, chosen = -1.0, None
        while True:
            scales = max(scale_sets, key=lambda s: quality(s, ratios))
            if not aspect_ratios:
                # One at a time, as all combinations would be too many.
                sets = {
                    tuple(sorted({*ratios[:k], value, *ratios[k + 1 :]}))
                    for k in range(num_ratios)
                    for value in range(len(all_ratios))
                }
                sets = sorted(r for r in sets if len(r) == num_ratios)
                ratios = max(sets, key=lambda r: quality(scales, r))
            if quality(scales, ratios) <= best:
                return best, chosen
            best = quality(scales, ratios)
            chosen = Plan(
                levels, tuple(all_scales[i] for i in scales), tuple(all_ratios[i] for i in ratios)
            )

    results = [search(candidate) for candidate in ([levels] if levels else LEVELS)]
    return max(results, key=lambda result: result[0])[1]
