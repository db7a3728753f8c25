"""The data of an interactive gallery (`templates/films.js`): films, and boxes in layers."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from jaxdet.data import images
from jaxdet.data.dataset import Dataset
from jaxdet.evaluation.compare import credit
from jaxdet.evaluation.metrics import IOU_THRESHOLD
from jaxdet.evaluation.scores import Case
from jaxdet.ops import metrics
from jaxdet.ops.boxes import BoxTable

FILMS = 60  # of a page: with 512 pixels each, 3 MB
PIXELS = 512  # along a side, at most

MISSES, ALARMS, HITS, DIFFER = "Worst misses", "False alarms", "Best hits", "Differ most"


def jpeg(pixels: UInt8[np.ndarray, "h w"]) -> str:
    """A picture as a JPEG data URI; a larger one is resized to a square of `PIXELS` a side."""
    if len(pixels) > PIXELS:
        pixels = images.resize(pixels, PIXELS)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def film(dataset: Dataset, i: int) -> dict[str, Any]:
    """Image i at its stored size or `PIXELS`, if less; the page restores its aspect ratio."""
    stored = int.from_bytes(dataset.encoded(i)[16:20], "big")  # the width in a PNG's header
    height, width = dataset.sizes[i]
    return {
        "id": str(dataset.ids[i]),
        "width": int(width),
        "height": int(height),
        "src": jpeg(dataset.decode(i, min(PIXELS, stored))),
    }


def boxes(
    labels: Int[np.ndarray, "n"],
    corners: Float[np.ndarray, "n 4"],
    styles: Sequence[str],
    scores: Float[np.ndarray, "n"] | None = None,
    texts: Sequence[str] | None = None,
) -> list[list]:
    """Rows of [label, x1, y1, x2, y2, style, score, text] of one layer of a film.

    Args:
        styles: CSS classes of each box, see "box" in page.css; a "truth" is drawn as missed if its
            score is below the slider's.
        texts: shown after the name of the class.
    """
    scores = np.ones(len(labels)) if scores is None else scores
    texts = [""] * len(labels) if texts is None else texts
    rows = zip(labels, corners, styles, scores, texts, strict=True)
    return [
        [int(label), *[round(float(x), 1) for x in box], style, round(float(score), 4), text]
        for label, box, style, score, text in rows
    ]


def reader_layers(dataset: Dataset, chosen: Int[np.ndarray, "n"]) -> tuple[list[list], list[dict]]:
    """The readers' boxes of each chosen image, and a legend of these readers.

    A reader has the same colour in every film; the eight with the most rows have different ones.
    """
    rows = dataset.annotations
    names, count = np.unique(rows.readers, return_counts=True)
    by_count = names[np.lexsort((names, -count))]
    style = {name: f"reader{i % 8}" for i, name in enumerate(by_count)}
    layers, present = [], set()
    for i in chosen:
        mine = np.flatnonzero(rows.image == i)
        present |= set(rows.readers[mine])
        mine = mine[rows.labels[mine] < dataset.num_classes]
        readers = rows.readers[mine]
        layers.append(
            boxes(
                rows.labels[mine],
                rows.boxes[mine],
                [style[name] for name in readers],
                texts=[str(name) for name in readers],
            )
        )
    legend = [{"name": str(n), "style": style[n]} for n in by_count if n in present]
    return layers, legend


def choose(by_class: Float[np.ndarray, "images classes"], limit: int) -> Int[np.ndarray, "chosen"]:
    """Images to show, highest first.

    Half of them have the highest sums over the classes (above 0). The other half is taken class by
    class, always the best image left of the class shown least so far: rare classes are seen too.

    Args:
        by_class: how much each image is worth showing for each class.
        limit: how many images, at most.
    """
    total = by_class.sum(axis=1)
    best = np.argsort(-total, kind="stable")[: limit - limit // 2]
    chosen = list(best[total[best] > 0])
    while len(chosen) < limit:
        free = np.where(by_class > 0, by_class, -np.inf)
        free[chosen] = -np.inf
        possible = np.isfinite(free.max(axis=0, initial=-np.inf))
        if not possible.any():
            break
        shown = (by_class[chosen] > 0).sum(axis=0)
        label = np.where(possible, shown, np.inf).argmin()
        chosen.append(free[:, label].argmax())
    return np.array(sorted(chosen, key=lambda i: -total[i]), np.int64)


def gallery(
    case: Case,
    dataset: Dataset,
    score: float,
    other: BoxTable | None = None,
    other_name: str = "",
    limit: int = FILMS,
) -> dict[str, Any]:
    """The gallery of an evaluation: worst misses, most confident false alarms, and best hits.

    Images are ranked for each class (see `choose`) by
    - misses: the sum over findings of 1 - the score of the detection that hits it, if any;
    - false alarms: the highest score of a false positive;
    - hits: the sum of their scores minus the highest score of a false positive.

    Args:
        dataset: of the same images as the case, in that order.
        score: initial value of the slider.
        other: detections of another run in the same images; adds those where the two differ most.
        limit: how many films, at most.
    """
    num_images, num_classes = len(case.ids), len(case.class_names)
    findings = case.truth.labels < num_classes
    truth = BoxTable(*(column[findings] for column in case.truth))
    runs = [judge(case.detections, truth, num_classes)]
    if other is not None:
        runs.append(judge(other, truth, num_classes))
    detections, is_true, hit_score = runs[0]

    misses, alarms, hits = (np.zeros((num_images, num_classes)) for _ in range(3))
    np.add.at(misses, (truth.image, truth.labels), 1 - hit_score)
    false = ~is_true
    np.maximum.at(
        alarms, (detections.image[false], detections.labels[false]), detections.scores[false]
    )
    np.add.at(hits, (truth.image, truth.labels), hit_score)
    rankings = {MISSES: misses, ALARMS: alarms, HITS: hits - alarms}
    if other is not None:
        apart = np.abs(credit(case, case.detections) - credit(case, other))
        rankings[DIFFER] = apart[:, None]
    each = limit // len(rankings)
    chosen = {group: choose(values, each) for group, values in rankings.items()}
    images = np.array(list(dict.fromkeys(np.concatenate(list(chosen.values())))), np.int64)

    readers, legend = reader_layers(dataset, images)
    shown = []
    for nth, i in enumerate(images):
        mine = truth.image == i
        layers = {
            "readers": readers[nth],
            "truth": boxes(
                truth.labels[mine], truth.boxes[mine], ["truth"] * mine.sum(), hit_score[mine]
            ),
        }
        for name, (table, hit, _) in zip(("found", "other"), runs, strict=False):
            mine = table.image == i
            of_other = " other" if name == "other" else ""
            styles = [("hit" if x else "false") + of_other for x in hit[mine]]
            texts = [of_other.strip()] * len(styles)
            layers[name] = boxes(
                table.labels[mine], table.boxes[mine], styles, table.scores[mine], texts
            )
        ranks = {group: int(np.flatnonzero(of_group == i)[0])
                 for group, of_group in chosen.items() if i in of_group}  # fmt: skip
        shown.append({**film(dataset, int(i)), "ranks": ranks, "boxes": layers})

    layers = [
        {"key": "readers", "name": "Readers", "on": False, "scored": False},
        {"key": "truth", "name": "Ground truth", "on": True, "scored": False},
        {"key": "found", "name": "Detections", "on": True, "scored": True},
    ]
    if other is not None:
        layers.append({"key": "other", "name": other_name, "on": False, "scored": True})
    return {
        "classes": list(case.class_names),
        "films": shown,
        "groups": [group for group in chosen if len(chosen[group])],
        "layers": layers,
        "legend": legend,
        "keys": [
            ("truth", "ground truth, dashed where missed"),
            ("hit", "detection that hits"),
            ("false", "false alarm"),
        ],
        "score": round(score, 2),
        "left_out": num_images - len(shown),
    }


def judge(detections: BoxTable, truth: BoxTable, num_classes: int):
    """Detections of findings, whether each is a hit, and for each truth the score of its hit (0 if
    missed)."""
    mine = detections.labels < num_classes
    table = BoxTable(*(column[mine] for column in detections))
    is_true, own = metrics.true_positives(table, truth, IOU_THRESHOLD)
    hit_score = np.zeros(len(truth.image))
    hit_score[own[is_true]] = table.scores[is_true]
    return table, is_true, hit_score
