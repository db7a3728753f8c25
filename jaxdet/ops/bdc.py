"""Readers' skills and findings together with the detector that learns from them.

Bayesian Detector Combination (Tan, Isupova, Carneiro, Zhu and Li, ECCV 2024, "Bayesian Detector
Combination for Object Detection with Crowdsourced Annotations"). Again and again while training,
the detections in the training images are matched to what the readers drew, and boxes, classes and
the readers' skills are inferred anew. Here the detector is one more reader of `skill`, with a
recall, false findings and care of its own; there it is what the true box and class are expected to
be, and readers may take one class for another.

A detector has learned what it is asked about. It agrees with labels that it knows by heart, and the
model takes that for skill.
"""

import numpy as np
from jaxtyping import Int

from jaxdet.ops.boxes import BoxTable, iou
from jaxdet.ops.clusters import Findings, Readings
from jaxdet.ops.skill import Opinions, count_places, each_once, gather, judge

NAME = "the detector"  # in the table of readers


def bdc(readings: Readings, iou_threshold: float, detections: BoxTable | None = None) -> Findings:
    """The findings of `skill`, the detector's opinion of them counted too.

    Without detections they are those of `skill`. What only the detector sees is no finding, but
    counts as false.

    Raises:
        InputError: see `judge`.
    """
    clusters, opinions = gather(readings, iou_threshold)
    places = count_places(clusters.rows, iou_threshold)
    if detections is not None:
        chosen = choose(detections, opinions)
        drawn = clusters.table(np.ones(len(clusters.first)), clusters.mean_boxes())
        opinions = with_detector(opinions, chosen, match(chosen, drawn, iou_threshold))
    probability, corners, skills = judge(opinions, places)
    by_readers = slice(len(clusters.first))
    table = clusters.table(probability[by_readers], corners[by_readers])
    return Findings(table, table.scores, skills=skills)


def choose(detections: BoxTable, opinions: Opinions) -> BoxTable:
    """What the detector would draw: of each class its best, as many as all readers found together,
    on the images on which one of them drew something."""
    images, most = np.unique(opinions.image), np.bincount(opinions.labels)
    fits = np.isin(detections.image, images) & (detections.labels < len(most))
    rows = np.flatnonzero(fits)
    rows = rows[np.lexsort((-detections.scores[rows], detections.labels[rows]))]
    labels = detections.labels[rows]
    place = np.arange(len(rows)) - np.searchsorted(labels, labels)  # among those of its class
    return BoxTable(*(column[rows[place < most[labels]]] for column in detections))


def match(
    detections: BoxTable, clusters: BoxTable, iou_threshold: float
) -> Int[np.ndarray, "detections"]:
    """Which cluster of its image and class each detection overlaps most, if by more than the
    threshold; others are numbered on from the last cluster.

    Args:
        clusters: by image and label.
    """
    num_labels = max(detections.labels.max(initial=0), clusters.labels.max(initial=0)) + 1
    of_clusters = clusters.image * num_labels + clusters.labels
    of_detections = detections.image * num_labels + detections.labels
    start, end = (np.searchsorted(of_clusters, of_detections, side) for side in ("left", "right"))
    # Every detection beside every cluster of its image and class.
    detection = np.repeat(np.arange(len(start)), end - start)
    cluster = np.arange(len(detection)) + np.repeat(end - np.cumsum(end - start), end - start)
    overlap = iou(detections.boxes[detection], clusters.boxes[cluster])
    order = np.lexsort((overlap, detection))
    order = order[overlap[order] > iou_threshold]
    result = np.full(len(start), -1)
    result[detection[order]] = cluster[order]  # the last, which overlaps most
    alone = np.flatnonzero(result < 0)
    result[alone] = len(of_clusters) + np.arange(len(alone))
    return result


def with_detector(
    opinions: Opinions, detections: BoxTable, cluster: Int[np.ndarray, "detections"]
) -> Opinions:
    """The opinions with the detector as the last reader, who looked at every image.

    Args:
        cluster: of each detection, see `match`.
    """
    number, images = len(opinions.names), np.unique(opinions.looked[0])
    alone = cluster >= len(opinions.image)
    film, reader = opinions.looked
    more = {
        "image": detections.image[alone],
        "labels": detections.labels[alone],
        "cluster": cluster,
        "reader": np.full(len(cluster), number),
        "boxes": detections.boxes,
    }
    joined = {name: np.concatenate([getattr(opinions, name), new]) for name, new in more.items()}
    looked = np.append(film, images), np.append(reader, np.full(len(images), number))
    return each_once(Opinions(np.append(opinions.names, NAME), looked, **joined))
