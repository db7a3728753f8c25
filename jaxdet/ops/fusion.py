"""Fusion of several readers' (or detectors') boxes of an image, for all images at once."""

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxdet import InputError, doors
from jaxdet.ops.bdc import bdc
from jaxdet.ops.boxes import BoxTable
from jaxdet.ops.clusters import Findings, Readings, cluster
from jaxdet.ops.skill import skill


def raw(readings: Readings) -> Findings:
    """Every box as it was drawn."""
    return Findings(BoxTable(readings.image, readings.labels, readings.boxes, readings.scores))


def nms(readings: Readings, iou_threshold: float) -> Findings:
    """A box is dropped if its IoU with a kept box is above a threshold."""
    clusters = cluster(readings, iou_threshold, moves=False)
    kept, first = clusters.rows, clusters.first
    return Findings(clusters.table(kept.scores[first], kept.boxes[first]))


def wbf(readings: Readings, iou_threshold: float) -> Findings:
    """Weighted boxes fusion (Solovyev et al. 2021): of each cluster the mean box.

    It is scored by the mean of its boxes' scores times min(boxes, num_readers) / num_readers. With
    shares of the readers, by the mean score, weighted by share, times the sum of the shares of its
    readers (each counted once): the `conf_type` "box_and_model_avg" of ensemble-boxes.
    """
    clusters = cluster(readings, iou_threshold)
    rows, member = clusters.rows, clusters.member
    count = np.bincount(member)
    if rows.shares is None:
        most = rows.num_readers
        scores = np.bincount(member, rows.scores) / count * np.minimum(count, most) / most
    else:
        mean = np.bincount(member, clusters.counts) / np.bincount(member, rows.shares)
        highest = np.zeros(len(clusters.first))
        np.maximum.at(highest, member, rows.scores)  # rounding does not lead above it
        of_reader, row = clusters.pairs()
        scores = np.minimum(mean * np.bincount(of_reader, rows.shares[row]), highest)
    return Findings(clusters.table(scores, clusters.mean_boxes()))


def votes(readings: Readings, iou_threshold: float) -> Findings:
    """The boxes of `wbf`; score and soft target are the share of readers who drew one.

    Several boxes of one reader in a cluster count once.
    """
    clusters = cluster(readings, iou_threshold)
    share = clusters.votes()
    return Findings(clusters.table(share, clusters.mean_boxes()), soft_targets=share)


def agree(readings: Readings, iou_threshold: float, min_readers: int) -> Findings:
    """The boxes and scores of `wbf` that at least so many readers have drawn.

    Raises:
        InputError: if no image has so many readers.
    """
    if min_readers > readings.num_readers:
        raise InputError(
            f"{min_readers} readers cannot agree, no image was read by more than "
            f"{readings.num_readers}: ask for fewer"
        )
    enough = cluster(readings, iou_threshold).num_readers() >= min_readers
    return wbf(readings, iou_threshold).take(np.flatnonzero(enough))


def earl(readings: Readings, iou_threshold: float) -> Findings:
    """The boxes of `wbf`, whose class and box loss weigh as the share of readers who drew one.

    WBF-EARL (Le, Tran, Pham et al. 2023, "Learning from Multiple Expert Annotators for Enhancing
    Anomaly Detection in Medical Image Analysis"): the expert agreement re-weighted loss.
    """
    clusters = cluster(readings, iou_threshold)
    share = clusters.votes()
    return Findings(clusters.table(share, clusters.mean_boxes()), weights=share)


# What `data.fusion` and `evaluation.ground_truth` may say: functions of Readings, and of what
# stands after the "@". One that takes `detections` is for `data.fusion` alone: it is given those of
# the detector that is trained, None before there are any.
FUSIONS = {
    "raw": raw,
    "nms": nms,
    "wbf": wbf,
    "votes": votes,
    "earl": earl,
    "skill": skill,
    "bdc": bdc,
    "agree": agree,
}


class Parameter(NamedTuple):
    """What may stand after the "@" of a method, for an argument of its function."""

    word: str
    kind: type
    fits: Callable[[Any], bool]
    range: str


PARAMETERS = {
    "iou_threshold": Parameter("IOU", float, lambda x: 0 <= x < 1, "0 <= IOU < 1"),
    "min_posterior": Parameter("P", float, lambda x: 0 <= x <= 1, "0 <= P <= 1"),
    "min_readers": Parameter("READERS", int, lambda x: x >= 1, "READERS from 1"),
}


class Method(NamedTuple):
    """A fusion method, as `parse` reads it."""

    name: str  # in FUSIONS
    options: dict[str, Any]  # arguments of its function


def _arguments(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of a method that stand after its "@"."""
    _, *found = inspect.signature(FUSIONS[name]).parameters.items()
    return {key: argument for key, argument in found if key != "detections"}


def parse(method: str) -> Method:
    """Parse a method such as "wbf@0.4" or "agree@0.4:2"; "none" is another name of "raw".

    Raises:
        InputError: for an unknown method, or a parameter out of its range.
    """
    name, at, text = method.partition("@")
    name = "raw" if name == "none" else name
    words = text.split(":") if at else []
    arguments = _arguments(name) if name in FUSIONS else {}
    needed = [x for x in arguments.values() if x.default is inspect.Parameter.empty]
    fits = name in FUSIONS and len(needed) <= len(words) <= len(arguments)
    if fits and not re.search(r"[\s_]", text):  # in which Python would read numbers too
        given = dict(zip(arguments, words, strict=False))
        try:
            options = {key: PARAMETERS[key].kind(word) for key, word in given.items()}
        except ValueError:
            options = None
        if options is not None and all(PARAMETERS[key].fits(x) for key, x in options.items()):
            return Method(name, options)
    *others, last = ("raw", "none", *(describe(name) for name in FUSIONS if name != "raw"))
    ranges = ", ".join(parameter.range for parameter in PARAMETERS.values())
    raise InputError(f"fusion {method!r}: not {', '.join(others)} or {last} with {ranges}")


def describe(name: str) -> str:
    """A method as one writes it, such as "agree@IOU:READERS"; what may be left out in brackets."""
    form = name
    for i, (key, argument) in enumerate(_arguments(name).items()):
        word = ("@" if i == 0 else ":") + PARAMETERS[key].word
        form += word if argument.default is inspect.Parameter.empty else f"[{word}]"
    return form


def asks_detector(method: str) -> bool:
    """Whether a method wants to know what the detector that is trained finds."""
    return doors.takes(FUSIONS[parse(method).name], "detections")


def parse_readers(method: str) -> Method:
    """As `parse`, but only methods for which readers' boxes are enough.

    Raises:
        InputError: as `parse`, and for another method.
    """
    if asks_detector(method):
        raise InputError(
            f"fusion {method!r}: made with a detector in training: for data.fusion alone"
        )
    return parse(method)


def parse_detections(method: str) -> Method:
    """As `parse`, but only methods for boxes with scores: "wbf@IOU" and "nms@IOU".

    Raises:
        InputError: as `parse`, and for another method.
    """
    parsed = parse(method)
    if parsed.name not in ("wbf", "nms"):
        raise InputError(f"{method!r} is not wbf@IOU or nms@IOU")
    return parsed


def find(method: str, readings: Readings, detections: BoxTable | None = None) -> Findings:
    """The findings of readings by a method of `FUSIONS`, by image, label and descending score.

    Args:
        detections: of the detector that is trained, in the same images and units, for a method that
            asks for them.

    Raises:
        InputError: see `parse`, and what the method says.
        ValueError: for a score or a share that is not above 0.
    """
    name, options = parse(method)
    shares = 1.0 if readings.shares is None else readings.shares
    if not (readings.scores * shares > 0).all():
        raise ValueError("fuse: a score or a share is not above 0")
    boxes, scores = readings.boxes.astype(np.float64), readings.scores.astype(np.float64)
    if detections is not None:
        options = {**options, "detections": detections}
    findings = FUSIONS[name](readings._replace(boxes=boxes, scores=scores), **options)
    table = findings.table
    return findings.take(np.lexsort((-table.scores, table.labels, table.image)))


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
    """Fuse overlapping boxes of the same image and class; arguments as the fields of `Readings`.

    Args:
        method: one of `FUSIONS`, see `parse`.
        scores: of each box, above 0; 1 if left out.

    Returns:
        The fused boxes by image, label and descending score.
    """
    scores = np.ones(len(image)) if scores is None else scores
    return find(method, Readings(image, labels, readers, boxes, scores, num_readers, shares)).table


def fuse_rows(
    method: str,
    image: Int[np.ndarray, "rows"],
    labels: Int[np.ndarray, "rows"],
    readers: np.ndarray,
    boxes: Float[np.ndarray, "rows 4"],
    num_classes: int,
    detections: BoxTable | None = None,
) -> Findings:
    """The findings of readers' rows, of which those with label `num_classes` say that a reader saw
    nothing. Shares are of as many readers as an image has at most.

    Args:
        detections: see `find`.
    """
    found = labels != num_classes
    names = np.unique(readers, return_inverse=True)[1]
    pairs = np.unique(np.stack([image, names]), axis=1)
    most = int(np.bincount(pairs[0]).max(initial=1))
    columns = image[found], labels[found], readers[found], boxes[found], np.ones(found.sum())
    readings = Readings(*columns, most, looked=(image, readers))
    return find(method, readings, detections)
