"""The readers' boxes of an image fused into one list, for all images at once."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxdet import InputError
from jaxdet.metrics import iou

# Soft-NMS drops what has decayed to this score or below.
LOWEST_SCORE = 0.001


class Fused(NamedTuple):
    """Fused boxes as a flat table, by image, class and descending score."""

    image: Int[np.ndarray, "m"]
    classes: Int[np.ndarray, "m"]
    boxes: Float[np.ndarray, "m 4"]
    scores: Float[np.ndarray, "m"]


def parse(method: str) -> tuple[str, float]:
    """("wbf", 0.4) of "wbf@0.4"; "raw" is another word for "none".

    Raises:
        InputError: for an unknown method, an IoU that is not in [0, 1), or a SIGMA not above 0.
    """
    if method in ("none", "raw"):
        return "none", 0.0
    name, _, parameter = method.partition("@")
    try:
        value = float(parameter)
    except ValueError:
        value = -1.0
    if name == "soft-nms-gaussian" and 0 < value < np.inf:
        return name, value
    if name in ("nms", "soft-nms", "nmw", "votes", "wbf") and 0 <= value < 1:
        return name, value
    raise InputError(
        f"fusion {method!r}: not raw, none, nms@IOU, soft-nms@IOU, nmw@IOU, votes@IOU or wbf@IOU "
        "with 0 <= IOU < 1, or soft-nms-gaussian@SIGMA"
    )


def fuse(
    method: str,
    image: Int[np.ndarray, "n"],
    classes: Int[np.ndarray, "n"],
    readers: np.ndarray,
    boxes: Float[np.ndarray, "n 4"],
    num_readers: int = 3,
    scores: Float[np.ndarray, "n"] | None = None,
) -> Fused:
    """Fuse boxes of one image and class that overlap.

    "none" keeps every box. The others take the boxes by descending score.
    "nms@T" drops a box that overlaps an earlier kept one by an IoU above T.
    "soft-nms@T" (Bodla et al. 2017, linear) keeps it, but multiplies its score by 1 - IoU.
    "soft-nms-gaussian@SIGMA" multiplies all later scores by exp(-IoU^2 / SIGMA), whatever the IoU.
    "wbf@T" is weighted boxes fusion (Solovyev et al. 2021): a box joins the cluster whose mean,
    weighted by score, it overlaps most, if by an IoU above T, or opens one; what comes out are the
    means, scored by the mean score times min(boxes, num_readers) / num_readers.
    "votes@T" are the boxes of "wbf@T" scored by the share of readers in the cluster, however many
    boxes a reader drew there.
    "nmw@T" is non-maximum weighted (Zhou et al. 2017): a box joins the cluster whose first box it
    overlaps most; what comes out are means weighted by score times IoU with the first, whose score
    they keep.

    Readers' boxes being equal in score, their order decides: the reader who comes last in the table
    goes first, and with each reader the last row. It is that of weighted_boxes_fusion in
    ensemble-boxes, given a list a reader in the order of the table (its NMS orders equals in other
    ways). The package leaves boxes without area out; here they stay, and overlap nothing.

    Args:
        method: see `parse`.
        image, classes, readers, boxes: a row for each box; readers are names or numbers, boxes in
            any unit.
        num_readers: readers of an image.
        scores: of each box, above 0; 1 if left out.

    Raises:
        InputError: see `parse`.
        ValueError: for a score that is not above 0.
    """
    method, parameter = parse(method)
    scores = np.ones(len(image)) if scores is None else scores.astype(np.float64)
    if not (scores > 0).all():
        raise ValueError("fuse: a score is not above 0")
    rows = np.arange(len(image))
    names = np.unique(readers, return_inverse=True)[1]
    if method != "none":
        # First row of each reader in each image.
        pair = image * (names.max(initial=0) + 1) + names
        _, first, inverse = np.unique(pair, return_index=True, return_inverse=True)
        rows = np.lexsort((-rows, -first[inverse], -scores, classes, image))
    image, classes, names, scores = image[rows], classes[rows], names[rows], scores[rows]
    boxes = boxes[rows].astype(np.float64)
    new = (np.diff(image, prepend=-1) != 0) | (np.diff(classes, prepend=-1) != 0)
    group = np.cumsum(new) - 1

    if method in ("soft-nms", "soft-nms-gaussian"):
        scores = _decay(boxes, scores, group, method, parameter)
        kept = np.flatnonzero(scores > LOWEST_SCORE)
    elif method in ("nms", "nmw", "votes", "wbf"):
        moves = method in ("votes", "wbf")
        cluster = _cluster(boxes, scores, group, parameter, moves)
        # A cluster is called after its first row, which becomes its box.
        kept, member = np.unique(cluster, return_inverse=True)
        if method != "nms":
            # An IoU with itself is 1, also of a box without area.
            first_iou = np.where(cluster == np.arange(len(boxes)), 1, iou(boxes, boxes[cluster]))
            weight = scores if moves else scores * first_iou
            total = np.zeros((len(kept), 4))
            np.add.at(total, member, weight[:, None] * boxes)
            boxes[kept] = total / np.bincount(member, weight)[:, None]
        if method == "wbf":
            count = np.bincount(member)
            mean = np.bincount(member, scores) / count
            scores[kept] = mean * np.minimum(count, num_readers) / num_readers
        elif method == "votes":
            readers_of = np.unique(np.stack([member, names]), axis=1)[0]
            scores[kept] = np.minimum(np.bincount(readers_of), num_readers) / num_readers
    else:
        kept = np.arange(len(image))

    kept = kept[np.lexsort((-scores[kept], classes[kept], image[kept]))]
    return Fused(image[kept], classes[kept], boxes[kept], scores[kept])


def _cluster(boxes, scores, group, iou_threshold, moves) -> Int[np.ndarray, "n"]:
    """For each box the first row of the cluster that it joins, its own if it opens one.

    `group` numbers the runs of rows of one image and class. A cluster stands at the mean of its
    boxes weighted by score, or at its first if not `moves`.
    """
    # Largest groups first; step k takes the k-th box of the first so many groups, all at once.
    sizes = np.bincount(group)
    largest_first = np.argsort(-sizes, kind="stable")
    starts, sizes = (np.cumsum(sizes) - sizes)[largest_first], sizes[largest_first]
    # Row start + s of a group holds its s-th cluster.
    place, total, weight = np.zeros_like(boxes), np.zeros_like(boxes), np.zeros(len(boxes))
    first, result = np.zeros(len(boxes), np.int64), np.zeros(len(boxes), np.int64)
    opened = np.zeros(len(starts), np.int64)
    for k in range(sizes.max(initial=0)):
        some = np.arange(np.searchsorted(-sizes, -k))  # the groups with more than k boxes
        row = starts[some] + k
        # At most k are opened, so these are rows of the group; one not opened is an empty box.
        slots = np.arange(max(opened[some].max(), 1))
        overlap = iou(place[starts[some, None] + slots], boxes[row, None])
        best = overlap.argmax(axis=1)
        opens = overlap[some, best] <= iou_threshold
        slot = starts[some] + np.where(opens, opened[some], best)
        first[slot[opens]] = row[opens]
        opened[some] += opens
        result[row] = first[slot]
        total[slot] += scores[row, None] * boxes[row]
        weight[slot] += scores[row]
        changed = slot if moves else slot[opens]
        place[changed] = total[changed] / weight[changed, None]
    return result


def _decay(boxes, scores, group, method, parameter) -> Float[np.ndarray, "n"]:
    """Scores after soft-NMS: in turn the best box left of each group lowers those left."""
    scores, left = scores.copy(), np.arange(len(boxes))
    while len(left):
        left = left[np.lexsort((left, -scores[left], group[left]))]
        is_best = np.diff(group[left], prepend=-1) != 0
        best = left[is_best][np.cumsum(is_best) - 1]  # of the group of each
        overlap = iou(boxes[left], boxes[best])[~is_best]
        left = left[~is_best]
        if method == "soft-nms":
            scores[left] *= np.where(overlap > parameter, 1 - overlap, 1)
        else:
            scores[left] *= np.exp(-(overlap**2) / parameter)
    return scores
