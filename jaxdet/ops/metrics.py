"""Array functions for scores: matching, average precision, FROC, ranking areas, the bootstrap.

Average precision follows PASCAL VOC 2010. `jaxdet/evaluation/metrics.py` has the table of metrics.
Sums take a weight for each image, so that one call scores a whole bootstrap: `weights` has a row
for each sample, and in it how often each image was drawn; a row of ones gives the score itself.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdet.ops.boxes import BoxTable, area, iou

FALSE_POSITIVES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)  # per image: the rates of the LUNA16 challenge
_SAMPLES_AT_ONCE = 64  # of `average_precision`: more no longer fit a CPU's cache


def by_score(detections: BoxTable) -> BoxTable:
    """The rows by descending score over all images; equal scores keep their order."""
    order = np.argsort(-detections.scores, kind="stable")
    return BoxTable(*(column[order] for column in detections))


def pairs(
    detections: BoxTable, truth: BoxTable, other_class: bool = False
) -> tuple[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"], Float[np.ndarray, "pairs"]]:
    """Rows (detection, truth, IoU) of every pair in the same image and of the same class that
    overlaps, by detection and then by truth.

    With `other_class`, of the same image and *different* classes.
    """
    num_classes = 1 + max(detections.labels.max(initial=0), truth.labels.max(initial=0))
    key, wanted = truth.image, detections.image
    if not other_class:
        key = truth.image * num_classes + truth.labels
        wanted = detections.image * num_classes + detections.labels
    by_key = np.argsort(key, kind="stable")
    start = np.searchsorted(key[by_key], wanted, "left")
    count = np.searchsorted(key[by_key], wanted, "right") - start

    detection = np.repeat(np.arange(len(wanted)), count)
    nth = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
    candidate = by_key[np.repeat(start, count) + nth]
    overlap = iou(detections.boxes[detection], truth.boxes[candidate])
    kept = overlap > 0
    if other_class:
        kept &= detections.labels[detection] != truth.labels[candidate]
    return detection[kept], candidate[kept], overlap[kept]


def match(
    detections: BoxTable, truth: BoxTable, other_class: bool = False
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """For each detection, the truth of its image and class with the highest IoU, and that IoU.

    The first of equals; -1 and 0 where nothing overlaps. With `other_class`, among the truths of
    its image that are *not* of its class.
    """
    detection, candidate, overlap = pairs(detections, truth, other_class)
    best, best_overlap = np.full(len(detections.image), -1), np.zeros(len(detections.image))
    # Lowest IoU first, and the first of equals last: later assignments overwrite earlier ones.
    order = np.lexsort((-candidate, overlap))
    best[detection[order]] = candidate[order]
    best_overlap[detection[order]] = overlap[order]
    return best, best_overlap


def first_to_reach(
    best: Int[np.ndarray, "n"], overlap: Float[np.ndarray, "n"], iou_threshold: float
) -> Bool[np.ndarray, "n"]:
    """Which detections, best score first, are true positives: see `average_precision`.

    Args:
        best, overlap: of those detections, as `match` gives them.
    """
    close = np.flatnonzero((best >= 0) & (overlap > iou_threshold))
    result = np.zeros(len(best), bool)
    result[close[np.unique(best[close], return_index=True)[1]]] = True
    return result


def true_positives(
    detections: BoxTable, truth: BoxTable, iou_threshold: float
) -> tuple[Bool[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Which detections are true positives (see `average_precision`), and for each detection the
    truth of its image and class with the highest IoU, or -1. In the order of `detections`."""
    order = np.argsort(-detections.scores, kind="stable")
    best, overlap = match(by_score(detections), truth)
    is_true, target = np.zeros(len(best), bool), np.zeros(len(best), np.int64)
    is_true[order], target[order] = first_to_reach(best, overlap, iou_threshold), best
    return is_true, target


def share_in_crowds(detections: BoxTable, crowds: BoxTable) -> Float[np.ndarray, "n"]:
    """For each detection the largest share of its area inside a crowd of its image and class.

    A crowd is a region in which COCO does not count false positives (`iscrowd` of pycocotools).
    """
    result, whole = np.zeros(len(detections.image)), area(detections.boxes)
    for image, label, box in zip(crowds.image, crowds.labels, crowds.boxes, strict=True):
        mine = np.flatnonzero((detections.image == image) & (detections.labels == label))
        boxes = detections.boxes[mine]
        corners = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
        share = area(np.concatenate(corners, axis=1)) / np.maximum(whole[mine], 1e-9)
        result[mine] = np.maximum(result[mine], share)
    return result


def top_of_each_image(detections: BoxTable, limit: int) -> Bool[np.ndarray, "n"]:
    """Which detections are among the `limit` best of their image and class.

    Args:
        detections: best score first.
    """
    group = np.stack([detections.image, detections.labels])
    order = np.lexsort(group)  # stable, so best score first within a group
    rows = np.arange(len(order))
    new = np.any(np.diff(group[:, order], prepend=-1), axis=0)
    result = np.zeros(len(order), bool)
    result[order] = rows - np.maximum.accumulate(np.where(new, rows, 0)) < limit
    return result


def coco_true_positives(
    detections: BoxTable, truth: BoxTable, iou_thresholds: Sequence[float]
) -> Bool[np.ndarray, "thresholds n"]:
    """Which detections are true positives at each IoU by COCO's rule (COCOeval of pycocotools).

    Unlike PASCAL VOC's rule, an IoU equal to the threshold is enough, and a detection whose best
    truth is taken gets the next best one that is free.

    Args:
        detections: best score first.
    """
    rows, candidates, overlaps = pairs(detections, truth)
    # Best detection first; of its truths the highest IoU, and of equal ones the last.
    order = np.lexsort((-candidates, -overlaps, rows))
    order = order[overlaps[order] >= min(iou_thresholds)]
    possible = list(zip(*(x[order].tolist() for x in (rows, candidates, overlaps)), strict=True))
    result = np.zeros((len(iou_thresholds), len(detections.image)), bool)
    for threshold, is_true in zip(iou_thresholds, result, strict=True):
        taken = set()
        for row, candidate, overlap in possible:
            if overlap >= threshold and not is_true[row] and candidate not in taken:
                is_true[row] = True
                taken.add(candidate)
    return result


def area_under_curve(
    is_true: Bool[np.ndarray, "thresholds n"],
    weight: Int[np.ndarray, "n samples"],
    num_truth: Int[np.ndarray, "samples"],
) -> Float[np.ndarray, "thresholds samples"]:
    """Area under the precision-recall curve with precision made monotone: what average precision
    is. NaN for a sample without ground truth.

    Precision peaks at true positives, so the curve is computed only at those.

    Args:
        is_true: true positives at each IoU threshold; detections of one class, best score first.
        weight: how often each detection counts in each sample.
        num_truth: boxes of the class in each sample.
    """
    columns = np.flatnonzero(is_true.any(axis=0))
    area = np.zeros((len(is_true), len(num_truth)))
    if len(columns):
        starts = np.append(0, columns[:-1] + 1)
        seen = np.add.reduceat(weight[: columns[-1] + 1], starts, axis=0).cumsum(axis=0)
        found = weight[columns] * is_true[:, columns, None].astype(float)
        monotone = found.cumsum(axis=1)
        monotone /= np.maximum(seen, 1)
        np.maximum.accumulate(monotone[:, ::-1], axis=1, out=monotone[:, ::-1])
        area = (found * monotone).sum(axis=1)
    return np.where(num_truth > 0, area / np.maximum(num_truth, 1), np.nan)


def weighted_average_precision(
    is_true: Bool[np.ndarray, "thresholds n"],
    detections: BoxTable,
    truth: BoxTable,
    num_classes: int,
    weights: Int[np.ndarray, "samples images"],
    ignored: Bool[np.ndarray, "thresholds n"] | None = None,
) -> Float[np.ndarray, "samples thresholds classes"]:
    """Average precision in each sample at each threshold of each class; NaN without ground truth.

    Args:
        is_true: true positives at each IoU threshold.
        detections: best score first.
        ignored: detections that do not count at each threshold, such as those in crowds.
    """
    if ignored is not None and ignored.any():
        parts = []
        for hits, out in zip(is_true, ignored, strict=True):
            table = BoxTable(*(column[~out] for column in detections))
            part = hits[None, ~out], table, truth, num_classes, weights
            parts.append(weighted_average_precision(*part))
        return np.concatenate(parts, axis=1)
    result = np.full((len(weights), len(is_true), num_classes), np.nan)
    rows_of = [np.flatnonzero(detections.labels == label) for label in range(num_classes)]
    truth_of = [truth.image[truth.labels == label] for label in range(num_classes)]
    for start in range(0, len(weights), _SAMPLES_AT_ONCE):
        some = slice(start, start + _SAMPLES_AT_ONCE)
        drawn = np.ascontiguousarray(weights[some].T)
        for label, (rows, true) in enumerate(zip(rows_of, truth_of, strict=True)):
            area = area_under_curve(
                is_true[:, rows], drawn[detections.image[rows]], drawn[true].sum(axis=0)
            )
            result[some, :, label] = area.T
    return result


def average_precision(
    detections: BoxTable,
    truth: BoxTable,
    iou_thresholds: Sequence[float],
    num_classes: int,
    weights: Int[np.ndarray, "samples images"] | None = None,
) -> Float[np.ndarray, "samples thresholds classes"] | Float[np.ndarray, "thresholds classes"]:
    """Average precision of each class at each IoU; NaN for a class without ground truth.

    PASCAL VOC 2010 (Everingham et al., devkit, section 4.4). The detections of all images are taken
    by descending score, equal ones in the order of the table. Each is compared with the truth of
    its image and class that it overlaps most: it is a true positive if that IoU is *above* the
    threshold and no detection with a higher score has taken the truth, else a false positive.
    The result is the area under the precision-recall curve, precision made monotone, at every
    recall rather than at fixed ones.

    Args:
        weights: how often each image counts in each sample; once if left out, and the result has no
            axis of samples.
    """
    detections = by_score(detections)
    matched = match(detections, truth)
    is_true = np.stack([first_to_reach(*matched, threshold) for threshold in iou_thresholds])
    if weights is not None:
        return weighted_average_precision(is_true, detections, truth, num_classes, weights)
    num_images = 1 + max(detections.image.max(initial=-1), truth.image.max(initial=-1))
    once = np.ones((1, num_images), np.int32)
    return weighted_average_precision(is_true, detections, truth, num_classes, once)[0]


def froc(
    detections: BoxTable,
    truth: BoxTable,
    num_images: int,
    iou_threshold: float,
    num_classes: int,
    false_positives: Sequence[float] = FALSE_POSITIVES,
    images_judged: Int[np.ndarray, "classes"] | None = None,
) -> tuple[Float[np.ndarray, "classes rates"], Float[np.ndarray, "rates"]]:
    """Free-response ROC: recall (sensitivity) at given numbers of false positives per image.

    For each class (NaN without ground truth), and for all `num_classes` pooled: their boxes and
    false positives counted together. Classes from `num_classes` on ("No finding") are left out.
    True positives are those of `average_precision`. An operating point is a score threshold, with
    all detections that reach it; reported is the best recall of the points that have at most the
    given number of false positives, without interpolation (Bunch et al. 1978).

    Args:
        num_images: all images read, also those without ground truth or detections.
        images_judged: in how many of them the false positives of each class count; all, if left
            out. "Per image" is per such image. Pooled, each false positive of a class that counts
            in a part of the images stands for as many more as the part is smaller.
    """
    detections = by_score(detections)
    is_true = first_to_reach(*match(detections, truth), iou_threshold)
    judged = np.full(num_classes, num_images) if images_judged is None else images_judged

    def recall(mine, num_truth, num_images, weight):
        found, scores = is_true[mine], detections.scores[mine]
        ends = np.flatnonzero(np.diff(scores, append=-np.inf))  # equal scores come together
        num_found = np.cumsum(found)[ends]
        points = np.searchsorted(
            np.cumsum(~found * weight)[ends], np.array(false_positives) * num_images, side="right"
        )
        return np.append(0, num_found)[points] / num_truth if num_truth else np.nan

    counts = np.bincount(truth.labels, minlength=num_classes)[:num_classes]
    each = np.full((num_classes, len(false_positives)), np.nan)
    for label in range(num_classes):
        each[label] = recall(detections.labels == label, counts[label], judged[label], 1)
    pooled = np.full(len(false_positives), np.nan)
    mine = detections.labels < num_classes
    weight = (num_images / np.maximum(judged, 1))[detections.labels[mine]]
    pooled[:] = recall(mine, counts.sum(), num_images, weight)
    return each, pooled


def ranking_area(
    negative: Float[np.ndarray, "n"],
    positive: Float[np.ndarray, "m"],
    negative_weight: Float[np.ndarray, "samples n"] | Int[np.ndarray, "samples n"],
    positive_weight: Float[np.ndarray, "samples m"] | Int[np.ndarray, "samples m"],
) -> Float[np.ndarray, "samples"]:
    """The chance that a positive is rated above a negative, equal ratings counting half; NaN where
    a sample has no positive or no negative.

    The area under the empirical ROC curve (Hanley & McNeil 1982). Ratings may be -inf: not marked.
    """
    order = np.argsort(negative)
    below = np.pad(np.cumsum(negative_weight[:, order], axis=1), ((0, 0), (1, 0)))
    first, last = (np.searchsorted(negative[order], positive, side) for side in ("left", "right"))
    area = (positive_weight * (below[:, first] + below[:, last])).sum(axis=1) / 2
    total = below[:, -1] * positive_weight.sum(axis=1)
    return np.where(total > 0, area / np.where(total > 0, total, 1), np.nan)


def weighted_afroc_area(
    detections: BoxTable,
    is_true: Bool[np.ndarray, "n"],
    truth: BoxTable,
    target: Int[np.ndarray, "n"],
    num_classes: int,
    weights: Int[np.ndarray, "samples images"],
) -> Float[np.ndarray, "samples"]:
    """Area under the weighted alternative free-response ROC (wAFROC) curve; NaN without normal or
    without abnormal images.

    Chakraborty & Zhai 2016, "On the meaning of the weighted alternative free-response operating
    characteristic figure of merit"; Chakraborty 2017, "Observer Performance Methods for Diagnostic
    Imaging". As the score threshold falls, the curve shows
    - x: the share of normal images (without findings) that have a detection at or above it, false
      positives of abnormal images being ignored;
    - y: the share of lesions found at or above it, averaged over abnormal images. The lesions of an
      image have equal weights that sum to 1, so an image with many counts no more than others.
    The area is the empirical one, with a straight line from the last operating point to (1, 1): an
    image without a detection and a lesion that is missed are both rated -inf, and ties count half.

    Args:
        detections: best score first. Labels from `num_classes` on ("No finding") are left out, here
            and in `truth`.
        is_true, target: the true positives, and the row of `truth` that each has found.
    """
    num_images = weights.shape[1]
    lesion = np.flatnonzero(truth.labels < num_classes)
    lesions = np.bincount(truth.image[lesion], minlength=num_images)
    found = np.full(len(truth.image), -np.inf)
    found[target[is_true]] = detections.scores[is_true]
    highest = np.full(num_images, -np.inf)
    mine = detections.labels < num_classes
    np.maximum.at(highest, detections.image[mine], detections.scores[mine])
    normal = np.flatnonzero(lesions == 0)
    image = truth.image[lesion]
    return ranking_area(
        highest[normal], found[lesion], weights[:, normal], weights[:, image] / lesions[image]
    )


def resamples(
    num_images: int, num_samples: int, samples_at_once: int = 1000, seed: int = 0
) -> Iterator[Int[np.ndarray, "samples images"]]:
    """Bootstrap samples of images (Efron 1979), in blocks: how often each image was drawn.

    Each sample draws `num_images` images with replacement. Matching never leaves an image, so it
    need not be repeated: an image drawn twice counts twice. The same seed draws the same images,
    which makes differences of two runs paired.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, num_samples, samples_at_once):
        block = np.zeros((min(samples_at_once, num_samples - start), num_images), np.int32)
        for sample in block:
            drawn = rng.integers(num_images, size=num_images)
            sample[:] = np.bincount(drawn, minlength=num_images)
        yield block


def mean_of_classes(
    values: Float[np.ndarray, "samples classes"],
) -> Float[np.ndarray, "samples"]:
    """The mean over the classes that have ground truth in a sample; NaN where none has."""
    present = ~np.isnan(values)
    count = present.sum(axis=1)
    return np.where(count, np.where(present, values, 0).sum(axis=1) / np.maximum(count, 1), np.nan)


def percentile_interval(
    samples: Float[np.ndarray, "samples"], confidence: float = 0.95
) -> tuple[float, float]:
    """The percentile interval of bootstrap samples; NaN samples are left out.

    (NaN, NaN) if all are NaN, or there are none.
    """
    if np.isnan(samples).all():
        return np.nan, np.nan
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(samples, (tail, 1 - tail))
    return float(low), float(high)
