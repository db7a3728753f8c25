"""Boxes of an image and class that overlap, as clusters, for all images at once."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxdet.ops.boxes import BoxTable, iou

if TYPE_CHECKING:
    from jaxdet.ops.skill import Skills


class Readings(NamedTuple):
    """What readers (or detectors) drew, a row a box."""

    image: Int[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]
    readers: np.ndarray  # names or numbers
    boxes: Float[np.ndarray, "n 4"]  # in any unit
    scores: Float[np.ndarray, "n"]  # 1 of a reader's box
    num_readers: int = 3  # of an image, at most
    # The weight of a box's reader, as share of the weights of all who could have drawn it.
    shares: Float[np.ndarray, "n"] | None = None
    # (image, reader) of all who looked, those who saw nothing too; None: who has drawn a box.
    looked: tuple[Int[np.ndarray, "m"], np.ndarray] | None = None

    def take(self, rows: Int[np.ndarray, "m"]) -> "Readings":
        """Some of the rows, in that order."""
        columns = (self.image, self.labels, self.readers, self.boxes, self.scores)
        shares = self.shares if self.shares is None else self.shares[rows]
        return Readings(*(x[rows] for x in columns), self.num_readers, shares, self.looked)


class Findings(NamedTuple):
    """What a fusion of readers makes of `Readings`."""

    table: BoxTable
    soft_targets: Float[np.ndarray, "n"] | None = None  # None: 1 for each
    weights: Float[np.ndarray, "n"] | None = None  # of class and box loss; None: 1 for each
    skills: "Skills | None" = None  # what was inferred of the readers

    def take(self, rows: Int[np.ndarray, "m"]) -> "Findings":
        """Some of the findings, in that order."""
        columns = (self.soft_targets, self.weights)
        some = (x if x is None else x[rows] for x in columns)
        return Findings(BoxTable(*(x[rows] for x in self.table)), *some, self.skills)


class Clusters(NamedTuple):
    """The boxes of an image and class, parted into findings."""

    rows: Readings  # by image, label and descending score
    counts: Float[np.ndarray, "n"]  # the weight of each box: its score, times its share
    first: Int[np.ndarray, "clusters"]  # row of the box that started each cluster
    member: Int[np.ndarray, "n"]  # cluster of each row

    def table(
        self, scores: Float[np.ndarray, "clusters"], boxes: Float[np.ndarray, "clusters 4"]
    ) -> BoxTable:
        """The clusters as findings."""
        return BoxTable(self.rows.image[self.first], self.rows.labels[self.first], boxes, scores)

    def mean_boxes(self) -> Float[np.ndarray, "clusters 4"]:
        """The mean of each cluster's boxes by their weights."""
        total = np.zeros((len(self.first), 4))
        np.add.at(total, self.member, self.counts[:, None] * self.rows.boxes)
        return total / np.bincount(self.member, self.counts)[:, None]

    def pairs(self) -> tuple[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"]]:
        """The cluster and a row of each reader with boxes in it, each reader once a cluster."""
        numbers = np.unique(self.rows.readers, return_inverse=True)[1]
        pairs, row = np.unique(np.stack([self.member, numbers]), axis=1, return_index=True)
        return pairs[0], row

    def num_readers(self) -> Int[np.ndarray, "clusters"]:
        """How many readers have boxes in each cluster."""
        return np.bincount(self.pairs()[0], minlength=len(self.first))

    def votes(self) -> Float[np.ndarray, "clusters"]:
        """The share of an image's readers who have boxes in each cluster."""
        return np.minimum(self.num_readers(), self.rows.num_readers) / self.rows.num_readers


def cluster(readings: Readings, iou_threshold: float, moves: bool = True) -> Clusters:
    """A box joins the cluster with the highest IoU if that is above a threshold, else it starts a
    new one.

    Boxes come by descending weight. Those of readers weigh the same, so their order matters: the
    last reader of an image first, and the last row of each reader first. This is the order of
    weighted_boxes_fusion in ensemble-boxes if it gets one list per reader in the order of the table
    (its NMS breaks ties differently). That package drops boxes without area; here they are kept,
    and overlap nothing.

    Args:
        moves: whether a cluster's box is the mean of its boxes, by weight; else its first.
    """
    counts = readings.scores if readings.shares is None else readings.scores * readings.shares
    rows = np.arange(len(readings.image))
    names = np.unique(readings.readers, return_inverse=True)[1]
    # First row of each reader in each image.
    pair = readings.image * (names.max(initial=0) + 1) + names
    _, first, inverse = np.unique(pair, return_index=True, return_inverse=True)
    rows = np.lexsort((-rows, -first[inverse], -counts, readings.labels, readings.image))
    readings, counts = readings.take(rows), counts[rows]
    new = (np.diff(readings.image, prepend=-1) != 0) | (np.diff(readings.labels, prepend=-1) != 0)
    started = _cluster(readings.boxes, counts, np.cumsum(new) - 1, iou_threshold, moves)
    return Clusters(readings, counts, *np.unique(started, return_inverse=True))


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
