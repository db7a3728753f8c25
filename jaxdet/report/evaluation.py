"""The page about an evaluation: `report.html`."""

import json
import math
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

from jaxdet.data.dataset import Dataset
from jaxdet.evaluation import curves, tide
from jaxdet.evaluation.metrics import BEST_BY, IOU_THRESHOLD
from jaxdet.evaluation.scores import Case, number_names
from jaxdet.ops import metrics
from jaxdet.ops.boxes import NO_FINDING, BoxTable
from jaxdet.report import films, plots
from jaxdet.report.page import render

# What the kinds of error mean, for people; see `tide.classify`.
MEANINGS = {
    "wrong class": "the place is right, the name is not",
    "poor box": "right name, overlap too small",
    "both": "near a finding of another name, overlap too small",
    "duplicate": "a finding that a better-scored detection has found",
    "background": "nothing is there",
    "missed": "a finding that no detection comes near",
}

# What some metrics mean, in a few words below their numbers.
HINTS = {
    f"mAP@{IOU_THRESHOLD:g}": f"mean over classes, “{NO_FINDING}” too",
    "mAP@0.5:0.95": "COCO's, findings alone",
    "wAFROC": "lesions against normal images",
    "AUC": "normal or not",
}


def evaluation_page(
    case: Case,
    scores: dict[str, Any],
    *,
    title: str,
    dataset: Dataset | None = None,
    other: BoxTable | None = None,
    history: Sequence[dict[str, Any]] = (),
    readers: Sequence[dict[str, Any]] = (),
    about: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> str:
    """The HTML of `report.html`, without the sections that there is nothing to show in.

    Args:
        scores: of `case.summarize`; with the section "against" if another run is compared with.
        dataset: the images of the case, in that order, to be shown as films.
        other: detections of that other run, for the films.
        history: lines of `metrics.jsonl`.
        readers: rows of `readers.csv`.
        about: facts about the run, by name.
        config: of the run.
    """
    case = case._replace(detections=case.judged(case.detections))
    other = other if other is None else case.judged(other)
    num_classes = len(case.class_names)
    findings = bool(np.any(case.truth.labels < num_classes))
    against = scores.get("against")
    gallery = None
    if dataset is not None:
        score = curves.best_f1_score(case.detections, case.truth, IOU_THRESHOLD, num_classes)
        name = against["name"] if against else ""
        gallery = films.gallery(case, dataset, score, other, name)
        if not gallery["films"]:
            gallery = None
    any_finding = _any_finding(case)
    best_by = (config or {}).get("evaluation", {}).get("best_by", BEST_BY)
    values = {
        "title": title,
        "about": {**(about or {}), **versions()},
        "config": json.dumps(config, indent=2) if config else "",
        "scores": scores,
        "num_boxes": int(np.sum(case.truth.labels < num_classes)),
        "unjudged": int((len(case.ids) - case.images_judged()).sum()),
        "tiles": _tiles(case, scores),
        "against": against and _against(against, scores),
        "classes": _classes(case, scores),
        "curves": _precision_recall(case, scores) if findings else [],
        "froc": _froc(case, scores) if findings else None,
        "any_finding": any_finding,
        "interval_of_auc": scores.get("95% interval", {}).get("AUC"),
        "calibration": _calibration(case) if findings else [],
        "errors": _errors(case) if findings else None,
        "gallery": gallery,
        "readers": readers,
        "training": _training(history, best_by),
    }
    values["sections"] = [
        (id, name)
        for id, name, there in (
            ("against", "Side by side", values["against"]),
            ("classes", "Classes", True),
            ("curves", "Precision and recall", values["curves"]),
            ("froc", "FROC", values["froc"]),
            ("normal", "Normal or not", any_finding),
            ("calibration", "Calibration", values["calibration"]),
            ("errors", "Errors", values["errors"]),
            ("films", "Films", gallery),
            ("readers", "Readers", readers),
            ("training", "Training", values["training"]),
            ("run", "What was run", True),
        )
        if there
    ]
    return render("report.html", **values)


def versions() -> dict[str, str]:
    """Of Python and the packages that compute, as installed."""
    names = ("jaxdet", "jax", "jaxlib", "flax", "optax", "numpy")
    there = {distribution.metadata["Name"] for distribution in metadata.distributions()}
    found = [f"{name} {metadata.version(name)}" for name in names if name in there]
    return {"versions": ", ".join([f"Python {platform.python_version()}", *found])}


def _tiles(case, scores) -> list[dict]:
    """One for each metric that is a number."""
    intervals = scores.get("95% interval", {})
    hints = HINTS | {f"mAP{len(case.class_names)}@{IOU_THRESHOLD:g}": "findings alone"}
    return [
        {"name": name, "value": scores[name], "interval": intervals.get(name),
         "hint": hints.get(name, "")}
        for name in number_names(scores)
    ]  # fmt: skip


def _top(values: Sequence[float | None]) -> float:
    """The right end of a bar chart: the next tenth."""
    largest = max([value for value in values if value is not None], default=0)
    return max(math.ceil(largest * 10 - 1e-9), 1) / 10


def _classes(case, scores) -> dict:
    counts = np.bincount(case.truth.labels, minlength=len(case.class_names) + 1)
    intervals = scores.get("95% interval", {}).get("AP", {})
    top = _top([*scores["AP"].values(), *[ends[1] for ends in intervals.values() if ends]])
    more = [name for name in scores["metrics"] if name != "AP" and isinstance(scores[name], dict)]
    rows = [
        {"name": name, "count": int(count), "ap": ap, "interval": intervals.get(name),
         "more": [scores[metric].get(name) for metric in more]}
        for (name, ap), count in zip(scores["AP"].items(), counts, strict=True)
    ]  # fmt: skip
    # The best first; "No finding", which is scored by image, after all others.
    *found, normal = rows
    found.sort(key=lambda row: -1 if row["ap"] is None else row["ap"], reverse=True)
    return {"rows": [*found, normal], "top": top, "more": more}


def _judged(case) -> list[tuple]:
    """(scores, is_true, num_truth) of the detections of each class."""
    is_true, _ = metrics.true_positives(case.detections, case.truth, IOU_THRESHOLD)
    counts = np.bincount(case.truth.labels, minlength=len(case.class_names) + 1)
    result = []
    for label, count in enumerate(counts):
        mine = case.detections.labels == label
        result.append((case.detections.scores[mine], is_true[mine], count))
    return result


def _precision_recall(case, scores) -> list[dict]:
    result = []
    names = scores["AP"].items()
    for (name, ap), (score, is_true, count) in zip(names, _judged(case), strict=True):
        if count:
            recall, precision = curves.precision_recall(score, is_true, count)
            plot = plots.small_precision_recall(f"Precision and recall, {name}", recall, precision)
            result.append({"name": name, "ap": ap, "plot": plot, "recall": recall.max(initial=0)})
    return sorted(result, key=lambda row: -row["ap"])


def _froc(case, scores) -> dict:
    *of_classes, _ = _judged(case)
    num_images, counted = len(case.ids), case.images_judged()
    single = [
        curves.froc(*judged, images)
        for judged, images in zip(of_classes, counted, strict=True)
        if judged[2]
    ]
    together = [np.concatenate(column) for column in list(zip(*of_classes, strict=True))[:2]]
    weight = np.repeat(num_images / np.maximum(counted, 1), [len(one[0]) for one in of_classes])
    num_truth = sum(judged[2] for judged in of_classes)
    pooled = curves.froc(*together, num_truth, num_images, weight)
    froc = scores["FROC"]
    rates = ["1/8", "1/4", "1/2", *(f"{rate:g}" for rate in metrics.FALSE_POSITIVES[3:])]
    rows = [("all findings", froc["recall"])]
    rows += [(name, recall) for name, recall in froc["recall_by_class"].items() if recall]
    plot = plots.froc("FROC", pooled, single)
    return {"plot": plot, "rates": rates, "rows": rows}


def _scores_of_images(case) -> tuple[np.ndarray, np.ndarray]:
    """`curves.any_finding` of the images of which it is known whether they have one."""
    sizes, judged = (len(case.ids), len(case.class_names)), case.judged_classes()
    scores, abnormal = curves.any_finding(case.detections, case.truth, *sizes)
    known = slice(None) if judged is None else judged[:, -1]
    return scores[known], abnormal[known]


def _any_finding(case) -> dict | None:
    scores, abnormal = _scores_of_images(case)
    roc = curves.roc(scores, abnormal)
    if roc is None:
        return None
    sensitivity = roc.true_positive_rate[roc.false_positive_rate <= 0.1].max()
    return {
        "area": roc.area,
        "sensitivity": sensitivity,
        "normal": int((~abnormal).sum()),
        "abnormal": int(abnormal.sum()),
        "roc": plots.curve(
            "ROC of any finding", roc.false_positive_rate, roc.true_positive_rate,
            ("1 - specificity", "sensitivity"), diagonal=True,
        ),
        "separation": plots.separation(
            "Scores of normal and abnormal images", scores[~abnormal], scores[abnormal]
        ),
    }  # fmt: skip


def _calibration(case) -> list[dict]:
    """Of boxes, and of images by "any finding"; left out where scores are not in [0, 1]."""
    num_classes = len(case.class_names)
    is_true, _ = metrics.true_positives(case.detections, case.truth, IOU_THRESHOLD)
    boxes = case.detections.labels < num_classes
    images, abnormal = _scores_of_images(case)
    result = []
    for name, what, scores, held in (
        ("boxes", "share that hit", case.detections.scores[boxes], is_true[boxes]),
        ("images", "share with findings", images, abnormal),
    ):
        if len(scores) and scores.min() >= 0 and scores.max() <= 1:
            bins = curves.calibration(scores, held)
            plot = plots.calibration(f"Calibration of {name}", bins, what)
            result.append({"name": name, "plot": plot, "error": bins.error, "count": len(scores)})
    return result


def _errors(case) -> dict:
    now, costs = tide.costs(case.detections, case.truth, IOU_THRESHOLD, len(case.class_names))
    rows = [{**cost._asdict(), "meaning": MEANINGS[cost.name]} for cost in costs]
    rows.sort(key=lambda row: -row["gain"])
    return {"now": now, "rows": rows, "top": _top([row["mean_average_precision"] for row in rows])}


def _against(against, scores) -> dict:
    """Rows of a table of differences; the bars end at the largest end of an interval."""

    def rows_of(sections, mean, metric=""):
        mine, theirs, difference, sure = sections
        return [
            {"name": f"{metric} {name}".strip(), "mine": mine[name], "theirs": theirs[name],
             "difference": value, "interval": sure[name], "mean": mean}
            for name, value in difference.items()
            if value is not None and not isinstance(value, dict)
        ]  # fmt: skip

    sections = scores, against["scores"], against["difference"], against["95% interval"]
    rows = rows_of(sections, mean=True)
    for metric, value in against["difference"].items():
        if isinstance(value, dict):
            of_classes = [section[metric] for section in sections]
            rows += rows_of(of_classes, mean=False, metric="" if metric == "AP" else metric)
    ends = [abs(x) for row in rows for x in (row["interval"] or [row["difference"]])]
    return {
        "name": against["name"],
        "rows": rows,
        "top": max([*ends, 0.01]),
        "images": against["images"],
        "intervals": any(row["interval"] for row in rows),
    }


def _training(history, best_by) -> list:
    """Charts of the log: losses, the score that the best checkpoint is best by, learning rate."""

    def series(*names):
        found = {}
        for name in names:
            points = [(line["step"], line[name]) for line in history
                      if isinstance(line.get(name), int | float)]  # fmt: skip
            if len(points) > 1:
                found[name] = tuple(zip(*points, strict=True))
        return found

    parts = sorted({name for line in history for name in line if name.endswith("_loss")})
    charts = [
        ("Losses", series(*parts) or series("loss"), "loss"),
        ("Score", series(best_by), best_by),
        ("Learning rate", series("learning_rate"), "learning rate"),
    ]
    return [(name, plots.lines(name, found, label)) for name, found, label in charts if found]
