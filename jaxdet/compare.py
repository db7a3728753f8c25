"""Two runs side by side: how sure the difference of their scores is, and where it lies."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxdet import metrics
from jaxdet.boxes import BoxTable
from jaxdet.curves import precision_at
from jaxdet.scores import IOU_THRESHOLD, NO_FINDING, Case, intervals


def compare(
    case: Case,
    other: BoxTable,
    name: str,
    more_iou_thresholds: Sequence[float] = (0.5, 0.75),
    bootstrap_samples: int = 1000,
    num_listed: int = 20,
) -> dict:
    """The section "against" of `evaluation.json`: this run's scores less those of another one.

    The intervals are of 95 %, paired: in each sample both runs are scored on the same images, drawn
    with replacement, and the difference taken, so that what is hard for both cancels out. A
    difference whose interval leaves 0 out is more than luck with the images.

    Args:
        other: detections of the other run in the same images.
        name: of the other run, for people.
        num_listed: so many images where the two differ most are named.
    """
    num_classes, num_images = len(case.class_names), len(case.ids)
    names = (*case.class_names, NO_FINDING)
    thresholds = (IOU_THRESHOLD, *more_iou_thresholds)
    result = {"name": name, "scores": {}, "difference": {}, "95% interval": {}}

    aps = [
        metrics.average_precision(table, case.truth, thresholds, num_classes + 1)
        for table in (case.detections, other)
    ]
    for t, threshold in enumerate(thresholds):
        at = f"@{threshold:g}"
        samples = [
            metrics.bootstrap_average_precision(
                table, case.truth, num_images, threshold, num_classes + 1,
                num_samples=bootstrap_samples,
            )
            for table in (case.detections, other)
        ]  # fmt: skip
        of_each, of_other, sure = aps[0][t] - aps[1][t], aps[1][t], samples[0] - samples[1]
        more = intervals(sure, case.class_names, at)
        means = {f"mAP{at}": slice(None)}
        if t == 0:  # as `scores.summarize` has it
            means[f"mAP{num_classes}{at}"] = slice(num_classes)
            result["scores"]["AP"] = _by_name(names, of_other)
            result["difference"]["AP"] = _by_name(names, of_each)
            result["95% interval"]["AP"] = more["AP"]
        for key, labels in means.items():
            result["scores"][key] = _mean(of_other[labels])
            result["difference"][key] = _mean(of_each[labels])
            result["95% interval"][key] = more[key]

    difference = credit(case, case.detections) - credit(case, other)
    largest = np.argsort(-np.abs(difference), kind="stable")[:num_listed]
    result["images"] = [
        {"image_id": str(case.ids[i]), "difference": float(difference[i])}
        for i in largest
        if difference[i]
    ]
    return result


def format_table(against: dict) -> str:
    """For the console: the means, their differences, and how sure those are."""
    lines = [f"beside {against['name']}:"]
    for name, difference in against["difference"].items():
        if name == "AP" or difference is None:
            continue
        line = f"{name:<27} {difference:>+7.3f}"
        if against["95% interval"][name]:
            line += " ({:+.3f} to {:+.3f} in 95 % of samples of the images)".format(
                *against["95% interval"][name]
            )
        lines.append(line)
    return "\n".join(lines)


def credit(case: Case, detections: BoxTable) -> Float[np.ndarray, "images"]:
    """What detections are worth in each image: for each finding that is found the precision down to
    its detection's score, less that of the image's worst false alarm.

    The first, summed over all images and divided by the boxes of each class, is average precision.
    By precision rather than by score, so that runs whose scores are on other scales compare.
    """
    found = detections.labels < len(case.class_names)
    detections = BoxTable(*(column[found] for column in detections))
    is_true, _ = metrics.true_positives(detections, case.truth, IOU_THRESHOLD)
    worth = precision_at(detections, is_true)
    gained, lost = np.zeros(len(case.ids)), np.zeros(len(case.ids))
    np.add.at(gained, detections.image[is_true], worth[is_true])
    np.maximum.at(lost, detections.image[~is_true], worth[~is_true])
    return gained - lost


def _mean(values) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def _by_name(names, values) -> dict:
    return {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(names, values, strict=True)
    }
