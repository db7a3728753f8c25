"""Anchors of a feature pyramid, laid out as torchvision does (Lin et al. 2017, section 4)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def grid_sizes(image_size: tuple[int, int], levels: Sequence[int]) -> list[tuple[int, int]]:
    """(rows, columns) of each level; level l halves the image l times, rounding up."""
    height, width = image_size
    return [(-(-height // 2**level), -(-width // 2**level)) for level in levels]


def cell_anchors(
    sizes: Sequence[float], aspect_ratios: Sequence[float]
) -> Float[np.ndarray, "anchors 4"]:
    """Anchors of one place, centred on (0, 0): all sizes of the first ratio, then of the next.

    A size is the square root of the area, in pixels; an aspect ratio is height / width.
    """
    root = np.sqrt(np.asarray(aspect_ratios, np.float64))[:, None]
    sizes = np.asarray(sizes, np.float64)
    width, height = (sizes / root).ravel(), (sizes * root).ravel()
    return np.stack([-width, -height, width, height], axis=1) / 2


def pyramid_anchors(
    image_size: tuple[int, int],
    levels: Sequence[int],
    scales: Sequence[float],
    aspect_ratios: Sequence[float],
) -> list[Float[np.ndarray, "_ 4"]]:
    """Anchors of every level in model-input pixels, each flattened from (row, column, anchor).

    Args:
        image_size: (height, width) in pixels.
        levels: pyramid levels; level l has one place every 2**l pixels.
        scales: sizes in units of the level's stride (COCO's RetinaNet: 4, 5.04, 6.35).
        aspect_ratios: height / width.
    """
    pyramid = []
    for level, (rows, columns) in zip(levels, grid_sizes(image_size, levels), strict=True):
        stride_y, stride_x = image_size[0] // rows, image_size[1] // columns
        y, x = np.meshgrid(np.arange(rows) * stride_y, np.arange(columns) * stride_x, indexing="ij")
        centres = np.stack([x, y, x, y], axis=-1)[:, :, None]
        cell = cell_anchors([scale * 2**level for scale in scales], aspect_ratios)
        pyramid.append((centres + cell).reshape(-1, 4).astype(np.float32))
    return pyramid


def best_iou(
    boxes: Float[np.ndarray, "boxes 4"],
    image_size: tuple[int, int],
    levels: Sequence[int],
    scales: Sequence[float],
    aspect_ratios: Sequence[float],
) -> Float[np.ndarray, "boxes"]:
    """IoU of each box with the anchor of the pyramid that overlaps it most.

    Of equal anchors on a grid, the one whose centre is nearest to the box's overlaps it most, so
    only that one is tried: 36,096 boxes take a fraction of a second at any image size.
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    best = np.zeros(len(boxes))
    for level, (rows, columns) in zip(levels, grid_sizes(image_size, levels), strict=True):
        stride = np.array([image_size[1] // columns, image_size[0] // rows])
        nearest = np.clip(np.rint(centre / stride), 0, [columns - 1, rows - 1]) * stride
        for cell in cell_anchors([scale * 2**level for scale in scales], aspect_ratios):
            top_left = np.maximum(boxes[:, :2], nearest + cell[:2])
            bottom_right = np.minimum(boxes[:, 2:], nearest + cell[2:])
            intersection = np.prod(np.maximum(bottom_right - top_left, 0), axis=1)
            union = area + np.prod(cell[2:] - cell[:2]) - intersection
            best = np.maximum(best, intersection / union)
    return best
