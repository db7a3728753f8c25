"""Several opinions of the same images made one: of looks at them, of detectors, of submissions."""

from collections.abc import Sequence

import numpy as np

from jaxdet.ops import fusion
from jaxdet.ops.boxes import BoxTable


def fuse_tables(
    tables: Sequence[BoxTable],
    weights: Sequence[float | int] | None = None,
    method: str = "wbf@0.5",
) -> BoxTable:
    """Tables of the same images as one, by weighted boxes fusion (Solovyev et al. 2021).

    A box counts with its score times the weight of its table. A fused one has the mean of those
    that joined it, times the share of the tables that could have: what one of three alone has found
    keeps a third of its score. This is `weighted_boxes_fusion` of ensemble-boxes with its default
    `conf_type`. A box that is the same in every table, as that of "No finding", comes out with the
    mean of its scores by weight.

    Args:
        weights: of each table, above 0; 1 if left out.
        method: "wbf@IOU", or another of `fusion.fuse` that takes scores.

    Returns:
        The fused boxes by image, label and descending score; rows of score 0 or below are dropped.
    """
    weights = np.ones(len(tables)) if weights is None else np.asarray(weights, np.float64)
    weights = weights / weights.max()  # changes nothing, but no sum overflows
    source = np.repeat(np.arange(len(tables)), [len(table.image) for table in tables])
    rows = BoxTable(*map(np.concatenate, zip(*tables, strict=True)))
    scores = rows.scores * weights[source]
    kept = scores > 0
    image, labels, boxes = rows.image[kept], rows.labels[kept], rows.boxes[kept]
    fused = fusion.fuse(method, image, labels, source[kept], boxes, len(tables), scores[kept])
    return fused._replace(scores=fused.scores * len(tables) / weights.sum())
