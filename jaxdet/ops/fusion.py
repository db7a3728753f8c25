"""The readers' boxes of an image fused into one list, for all images at once."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxdet import InputError
from jaxdet.ops.boxes import BoxTable, iou


class Method(NamedTuple):
    """A way of fusing, as `parse` reads it."""

    name: str  # none, nms, wbf, votes or agree
    iou_threshold: float = 0.0
    min_readers: int = 1  # of agree


def parse(method: str) -> Method:
    """The method that a string such as "wbf@0.4" or "agree@0.4:2" names; "raw" is "none".

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
    """As `parse`, of the methods that take scored boxes: "wbf@IOU" and "nms@IOU"."""
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
    """Fuse boxes of one image and class that overlap.

    "none" keeps every box. The others take the boxes by descending score.
    "nms@T" drops a box that overlaps an earlier kept one by an IoU above T.
    "wbf@T" is weighted boxes fusion (Solovyev et al. 2021): a box joins the cluster whose mean,
    weighted by score, it overlaps most, if by an IoU above T, or opens one; what comes out are the
    means, scored by the mean score times min(boxes, num_readers) / num_readers.
    "votes@T" are the boxes of "wbf@T" scored by the share of readers in the cluster, however many
    boxes a reader drew there.
    "agree@T:K" are those boxes of "wbf@T" that at least K readers had a part in.

    Readers' boxes being equal in score, their order decides: the reader who comes last in the table
    goes first, and with each reader the last row. It is that of weighted_boxes_fusion in
    ensemble-boxes, given one list per reader in the order of the table (its NMS orders equals in
    other ways). The package leaves boxes without area out; here they stay, and overlap nothing.

    Args:
        method: see `parse`.
        image, labels, readers, boxes: a row for each box; readers are names or numbers, boxes in
            any unit.
        num_readers: readers of an image.
        scores: of each box, above 0; 1 if left out.
        shares: of each box, what its reader counts among all who could have drawn it, above 0: a
            box then counts with its score times that, and "wbf@T" scores a cluster by the mean
            score, weighted by share, times the sum of the shares of the readers in it, however many
            boxes a reader has there. That is the `conf_type` "box_and_model_avg" of ensemble-boxes.

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
        # A cluster is called after its first row, which becomes its box.
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
    """For each box the first row of the cluster that it joins, its own if it opens one.

    `group` numbers the runs of rows of one image and class. A cluster is where the mean of its
    boxes weighted by score is, or its first if not `moves`.
    """
    # Largest groups first; step k takes the k-th box of the first so many groups, all at once.
    sizes = np.bincount(group)
    largest_first = np.argsort(-sizes, kind="stable")
    starts, sizes = (np.cumsum(sizes) - sizes)[largest_first], sizes[largest_first]
    # Row start + s of a group holds its s-th cluster.
    mean, total, weight = np.zeros_like(boxes), np.zeros_like(boxes), np.zeros(len(boxes))
    first, result = np.zeros(len(boxes), np.int64), np.zeros(len(boxes), np.int64)
    opened = np.zeros(len(starts), np.int64)
    for k in range(sizes.max(initial=0)):
        some = np.arange(np.searchsorted(-sizes, -k))  # the groups with more than k boxes
        row = starts[some] + k
        # At most k are opened, so these are rows of the group; one not opened is an empty box.
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
