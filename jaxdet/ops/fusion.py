"""Fusion of several readers' (or detectors') boxes of an image, for all images at once."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxdet import InputError
from jaxdet.ops.boxes import BoxTable, iou


class Method(NamedTuple):
    """A fusion method, as `parse` reads it."""

    name: str  # none, nms, wbf, votes or agree
    iou_threshold: float = 0.0
    min_readers: int = 1  # of agree


def parse(method: str) -> Method:
    """Parse a method such as "wbf@0.4" or "agree@0.4:2"; "raw" is another name of "none".

    Raises:
        InputError: for an unknown method, an IoU that is not in [0, 1), or readers below 1.
    """
    if method in ("none", "raw"):
        return Method("none")
    name, _, parameter = method.partition("@")
    threshold, colon, readers = parameter.partition(":")
    try:
        parsed = Method(name, float(threshold), int(readers) if colon else 1)
    except ValueError:
        parsed = Method("")
    takes_readers = name == "agree"
    if (
        parsed.name in ("nms", "wbf", "votes", "agree")
        and 0 <= parsed.iou_threshold < 1
        and bool(colon) == takes_readers
        and parsed.min_readers >= 1
    ):
        return parsed
    raise InputError(
        f"fusion {method!r}: not raw, none, nms@IOU, wbf@IOU, votes@IOU or agree@IOU:READERS with "
        "0 <= IOU < 1 and READERS from 1"
    )


def parse_detections(method: str) -> Method:
    """As `parse`, but only methods for boxes with scores: "wbf@IOU" and "nms@IOU".

    Raises:
        InputError: as `parse`, and for another method.
    """
    parsed = parse(method)
    if parsed.name not in ("wbf", "nms"):
        raise InputError(f"{method!r} is not wbf@IOU or nms@IOU")
    return parsed


def fuse(
    method: str,
    image: Int[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
    readers: np.ndarray,
    boxes: Float[np.ndarray, "n 4"],
    num_readers: int = 3,
    scores: Float[np.ndarray, "n"] | None = None,
    shares: Float[np.ndarray, "n"] | None = None,
) -> BoxTable:
    """Fuse overlapping boxes of the same image and class.

    - "none" keeps every box. All others take the boxes of an image and class by descending score.
    - "nms@T" drops a box if its IoU with a kept box is above T.
    - "wbf@T" is weighted boxes fusion (Solovyev et al. 2021). A cluster's box is the mean of its
      boxes, weighted by score. A box joins the cluster with the highest IoU if that is above T,
      else it starts a new one. The result has the box of each cluster, with the mean of the scores
      times min(boxes, num_readers) / num_readers.
    - "votes@T" has the boxes of "wbf@T", scored by the share of readers with a box in the cluster;
      several boxes of one reader count once.
    - "agree@T:K" has the boxes and scores of "wbf@T" for clusters of at least K readers.

    Readers' boxes have equal scores, so their order matters: the last reader of the table first,
    and the last row of each reader first. This is the order of weighted_boxes_fusion in
    ensemble-boxes if it gets one list per reader in the order of the table (its NMS breaks ties
    differently). That package drops boxes without area; here they are kept, and overlap nothing.

    Args:
        method: see `parse`.
        image, labels, readers, boxes: a row for each box; readers are names or numbers, boxes in
            any unit.
        num_readers: readers of an image.
        scores: of each box, above 0; 1 if left out.
        shares: of each box, above 0: the weight of its reader, as share of the weights of all
            readers who could have drawn it. A box's weight is then its score times its share, and
            "wbf@T" scores a cluster by the mean score, weighted by share, times the sum of the
            shares of its readers (each counted once). This is the `conf_type` "box_and_model_avg"
            of ensemble-boxes.

    Returns:
        The fused boxes by image, label and descending score.

    Raises:
        InputError: see `parse`.
        ValueError: for a score or a share that is not above 0.
    """
    how = parse(method)
    scores = np.ones(len(image)) if scores is None else scores.astype(np.float64)
    counts = scores if shares is None else scores * shares
    if not (counts > 0).all():
        raise ValueError("fuse: a score or a share is not above 0")
    rows = np.arange(len(image))
    names = np.unique(readers, return_inverse=True)[1]
    if how.name != "none":
        # First row of each reader in each image.
        pair = image * (names.max(initial=0) + 1) + names
        _, first, inverse = np.unique(pair, return_index=True, return_inverse=True)
        rows = np.lexsort((-rows, -first[inverse], -counts, labels, image))
    image, labels, names = image[rows], labels[rows], names[rows]
    scores, counts = scores[rows], counts[rows]
    boxes = boxes[rows].astype(np.float64)

    kept = np.arange(len(image))
    if how.name != "none":
        new = (np.diff(image, prepend=-1) != 0) | (np.diff(labels, prepend=-1) != 0)
        group = np.cumsum(new) - 1
        cluster = _cluster(boxes, counts, group, how.iou_threshold, moves=how.name != "nms")
        # The first row of a cluster takes the cluster's box.
        kept, member = np.unique(cluster, return_inverse=True)
        if how.name != "nms":
            total = np.zeros((len(kept), 4))
            np.add.at(total, member, counts[:, None] * boxes)
            boxes[kept] = total / np.bincount(member, counts)[:, None]
            count = np.bincount(member)
            mean_score = np.bincount(member, scores) / count
            pairs, first = np.unique(np.stack([member, names]), axis=1, return_index=True)
            readers_of = np.bincount(pairs[0])
            if shares is not None:
                shares = shares[rows]
                mean_score = np.bincount(member, counts) / np.bincount(member, shares)
                highest = np.zeros(len(kept))
                np.maximum.at(highest, member, scores)  # rounding does not lead above it
                share = np.bincount(pairs[0], shares[first])
                scores[kept] = np.minimum(mean_score * share, highest)
            elif how.name == "votes":
                scores[kept] = np.minimum(readers_of, num_readers) / num_readers
            else:
                scores[kept] = mean_score * np.minimum(count, num_readers) / num_readers
            kept = kept[readers_of >= how.min_readers]

    kept = kept[np.lexsort((-scores[kept], labels[kept], image[kept]))]
    return BoxTable(image[kept], labels[kept], boxes[kept], scores[kept])


def _cluster(boxes, scores, group, iou_threshold, moves) -> Int[np.ndarray, "n"]:
    """For each box the first row of the cluster that it joins; its own row if it starts one.

    Args:
        group: number of the image and class of each row, ascending.
        moves: whether a cluster's box is the mean of its boxes, weighted by score; else its first.
    """
    # Groups in parallel, largest first: step k takes the k-th box of every group that has one.
    sizes = np.bincount(group)
    largest_first = np.argsort(-sizes, kind="stable")
    starts, sizes = (np.cumsum(sizes) - sizes)[largest_first], sizes[largest_first]
    # The s-th cluster of a group is kept in row start + s.
    mean, total, weight = np.zeros_like(boxes), np.zeros_like(boxes), np.zeros(len(boxes))
    first, result = np.zeros(len(boxes), np.int64), np.zeros(len(boxes), np.int64)
    opened = np.zeros(len(starts), np.int64)
    for k in range(sizes.max(initial=0)):
        some = np.arange(np.searchsorted(-sizes, -k))  # the groups with more than k boxes
        row = starts[some] + k
        # At most k clusters exist, so these rows are the group's own; unused ones are empty boxes.
        slots = np.arange(max(opened[some].max(), 1))
        overlap = iou(mean[starts[some, None] + slots], boxes[row, None])
        best = overlap.argmax(axis=1)
        opens = overlap[some, best] <= iou_threshold
        slot = starts[some] + np.where(opens, opened[some], best)
        first[slot[opens]] = row[opens]
        opened[some] += opens
        result[row] = first[slot]
        total[slot] += scores[row, None] * boxes[row]
        weight[slot] += scores[row]
        changed = slot if moves else slot[opens]
        mean[changed] = total[changed] / weight[changed, None]
    return result
