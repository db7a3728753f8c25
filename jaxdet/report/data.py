"""The page about the data, and about what the model is fed: `data.html`."""

import base64
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from jaxdet.data.batches import decode_all, fuse_readers, pad
from jaxdet.data.dataset import Dataset
from jaxdet.doors import takes
from jaxdet.ops.boxes import Targets
from jaxdet.report import films, plots, survey
from jaxdet.report.evaluation import versions
from jaxdet.report.feed import Fed, feed
from jaxdet.report.page import render
from jaxdet.runs import workdir
from jaxdet.training.plan import abstract_detector, plan_detector

SUSPECTS = 12  # films of a suspicion
SAMPLES = 24  # films before and after fusion
SHOWN_FED = 24  # films of what the model is fed
COUNTED_FED = 256  # images of which anchors are counted
CHECKED_SIZE = 128  # pixels, at which images are looked over


def inspect(
    config: ConfigDict, dataset: Dataset, train_set: Dataset, eval_set: Dataset, folder: Path
) -> None:
    """Write `data.html` into the workdir; what the config leaves to the detector is planned."""
    findings = fuse_readers(train_set, config.data.fusion)
    targets = pad(train_set, findings, config.data.image_size)
    config, _ = plan_detector(config, targets, dataset.class_names)
    page = data_page(config, dataset, train_set, eval_set, config.data.name)
    workdir.write_atomically(folder / "data.html", page)
    print(f"written to {folder / 'data.html'}")


def data_page(
    config: ConfigDict, dataset: Dataset, train_set: Dataset, eval_set: Dataset, title: str
) -> str:
    """The HTML of `data.html`.

    Args:
        config: as planned, see `plan_detector`.
        dataset: all images, of which the others are parts.
    """
    size = config.data.image_size
    findings = fuse_readers(train_set, config.data.fusion)
    targets = pad(train_set, findings, size)
    pixels = decode_all(dataset, CHECKED_SIZE, "look over")
    suspicions = survey.suspicions(dataset, pixels, size)
    for line in survey.flat_films(dataset, suspicions):
        print(f"note: {line}", file=sys.stderr)
    fed = feed(config, train_set, targets, COUNTED_FED)
    model = abstract_detector(config, dataset.num_classes)
    values = {
        "title": title,
        "config": config,
        "sets": [_describe(name, part) for name, part in
                 (("training", train_set), ("evaluation", eval_set))],
        "classes": _classes(model, dataset, targets),
        "unknown": dataset.num_unknown,
        "reaches": hasattr(model, "reach"),
        "sizes": _sizes(dataset, targets),
        "maps": _maps(dataset, pixels),
        "agreement": _agreement(dataset),
        "readers": _readers(dataset),
        "skills": findings.skills.rows(dataset.class_names) if findings.skills else [],
        "suspicions": suspicions,
        "checked": len(dataset),
        "suspects_shown": SUSPECTS,
        "suspects": _suspects(dataset, suspicions, train_set),
        "samples": _samples(train_set, targets, config),
        "fed": _fed(fed, dataset.class_names, config),
        "matching": config.loss.matching if takes(type(model), "matcher") else None,
        "positives": _positives(fed, dataset.class_names) if fed.priors else None,
        "about": {
            "dataset": f"{config.data.name}, fingerprint {dataset.fingerprint()}",
            "detector": model.describe(),
            **versions(),
        },
        "sections": [
            ("fed", "What the model is fed"),
            *([("anchors", "Anchors")] if fed.priors else []), ("classes", "Classes"),
            ("sizes", "Sizes"), ("where", "Where"), ("readers", "Readers"),
            ("suspicious", "Suspicious"), ("samples", "Samples"), ("run", "What was read"),
        ],
    }  # fmt: skip
    return render("data.html", **values)


def _describe(name: str, dataset: Dataset) -> dict:
    rows = survey.findings(dataset.annotations, dataset.num_classes)
    abnormal = len(np.unique(rows.image))
    return {
        "name": name,
        "images": len(dataset),
        "abnormal": abnormal,
        "boxes": len(rows.image),
        "unknown": dataset.num_unknown,
    }


def _classes(model, dataset, targets) -> list[dict]:
    """Of each class its counts, and the share of boxes that an anchor overlaps by an IoU of 0.5."""
    boxes, labels = targets.boxes[targets.mask], targets.labels[targets.mask]
    best = model.reach(boxes) if hasattr(model, "reach") else None
    rows = survey.findings(dataset.annotations, dataset.num_classes)
    side = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    result = []
    for label, name in enumerate(dataset.class_names):
        mine = labels == label
        result.append(
            {
                "name": name,
                "images": len(np.unique(rows.image[rows.labels == label])),
                "unknown": 0
                if dataset.exhaustive is None
                else int((~dataset.exhaustive[:, label]).sum()),
                "drawn": int((rows.labels == label).sum()),
                "fused": int(mine.sum()),
                "side": float(np.median(side[mine])) if mine.any() else None,
                "reached": None
                if best is None or not mine.any()
                else float((best[mine] >= 0.5).mean()),
            }
        )
    return sorted(result, key=lambda row: -row["drawn"])


def _sizes(dataset, targets) -> list:
    boxes = targets.boxes[targets.mask]
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    side = np.sqrt(width * height)
    ratio = height / np.maximum(width, 1e-3)
    per_image = targets.mask.sum(axis=1)
    most = int(per_image.max(initial=0))
    charts = [
        plots.histogram(
            "Boxes of an image", per_image, "fused boxes of an image", "images",
            bins=np.arange(most + 2) - 0.5,
        ),
        plots.histogram(
            "Sizes of boxes", side, "square root of the area, pixels of the input", "boxes",
            bins=np.geomspace(max(side.min(), 1), side.max() + 1e-3, 31), log=True,
        ),
        plots.histogram(
            "Shapes of boxes", ratio, "height / width in the input", "boxes",
            bins=np.geomspace(ratio.min(), ratio.max() + 1e-3, 31), log=True,
        ),
        plots.scatter(
            "Sizes of images", dataset.sizes[:, 1], dataset.sizes[:, 0],
            "width of the original, pixels", "height",
        ),
    ]  # fmt: skip
    return charts


def _maps(dataset, pixels) -> list[dict]:
    """Heat maps over the mean film, each scaled to its own maximum."""
    some = np.unique(np.linspace(0, len(pixels) - 1, min(len(pixels), 400)).astype(int))
    mean = films.jpeg(pixels[some].mean(axis=0).astype(np.uint8))
    result = []
    counts = np.bincount(dataset.annotations.labels, minlength=dataset.num_classes)
    for name, heat, count in zip(
        dataset.class_names, survey.heat_maps(dataset), counts, strict=False
    ):
        alpha = np.rint(230 * heat / max(heat.max(), 1e-9)).astype(np.uint8)
        colour = np.full((*alpha.shape, 3), (255, 140, 50), np.uint8)
        file = io.BytesIO()
        Image.fromarray(np.dstack([colour, alpha])).save(file, "png")
        heat_src = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        if count:
            result.append({"name": name, "count": int(count), "peak": heat.max(), "src": heat_src})
    return [{"mean": mean, **row} for row in sorted(result, key=lambda row: -row["count"])]


def _agreement(dataset) -> dict | None:
    """The readers' agreement for each class; None if no image has two readers."""
    found = survey.agreement(dataset.annotations, dataset.num_classes)
    most = found.readers.shape[1]
    if most == 1:
        return None
    rows = []
    for label, name in enumerate(dataset.class_names):
        total = found.readers[label].sum()
        if total:
            overlap = found.overlap[found.labels == label]
            rows.append(
                {
                    "name": name,
                    "findings": int(total),
                    "shares": (found.readers[label] / total).tolist(),
                    "overlap": float(np.median(overlap)) if len(overlap) else None,
                }
            )
    rows.sort(key=lambda row: row["shares"][0])
    plot = plots.histogram(
        "Overlap of two readers' boxes", found.overlap, "IoU of two readers' boxes", "pairs",
        bins=np.linspace(0, 1, 41),
    )  # fmt: skip
    return {"rows": rows, "most": most, "plot": plot}


def _readers(dataset) -> list[dict]:
    """What each reader read and drew, and how far the others confirm it, who read most first."""
    by_class = survey.confirmed(dataset.annotations, dataset.num_classes)
    at = {str(name): i for i, name in enumerate(by_class.readers)}

    def shares(boxes, confirmed, agreed, found):
        return {
            "boxes": int(boxes),
            "confirmed": confirmed / boxes if boxes else None,
            "agreed": int(agreed),
            "recall": found / agreed if agreed else None,
        }

    result = []
    for reader in survey.readers(dataset.annotations, dataset.num_classes):
        mine = [column[at[reader.name]] for column in by_class[1:]]
        classes = [
            {"name": name, **shares(*(column[label] for column in mine))}
            for label, name in enumerate(dataset.class_names)
            if mine[0][label] or mine[2][label]
        ]
        result.append({**reader._asdict(), **shares(*(x.sum() for x in mine)), "classes": classes})
    return result


def _gallery(class_names, shown, layers, groups=(), legend=(), keys=()) -> dict[str, Any]:
    return {
        "classes": list(class_names), "films": shown, "groups": list(groups), "layers": layers,
        "legend": list(legend), "keys": list(keys), "score": None,
    }  # fmt: skip


def _suspects(dataset, suspicions, train_set) -> dict | None:
    if not suspicions:
        return None
    trained = set(train_set.ids)
    images = np.concatenate([suspicion.images[:SUSPECTS] for suspicion in suspicions])
    readers, legend = films.reader_layers(dataset, images)
    shown = []
    for suspicion in suspicions:
        pairs = zip(suspicion.images[:SUSPECTS], suspicion.notes, strict=False)
        for i, note in pairs:
            where = "trained on" if dataset.ids[i] in trained else "not trained on"
            shown.append(
                {
                    **films.film(dataset, int(i)),
                    "ranks": {suspicion.name: 0},
                    "note": f"{note}, {where}" if note else where,
                    "boxes": {"readers": readers[len(shown)]},
                }
            )
    layers = [{"key": "readers", "name": "Readers", "on": True, "scored": False}]
    return _gallery(dataset.class_names, shown, layers, [s.name for s in suspicions], legend)


def _samples(dataset, targets, config) -> dict:
    """Training images before and after fusion, from each class and "No finding" in turn."""
    rng = np.random.default_rng(0)
    rows = dataset.annotations
    by_label = [rng.permutation(np.unique(rows.image[rows.labels == label]))
                for label in range(dataset.num_classes + 1)]  # fmt: skip
    chosen = []
    for nth in range(SAMPLES):
        for found in by_label:
            if nth < len(found) and found[nth] not in chosen and len(chosen) < SAMPLES:
                chosen.append(int(found[nth]))
    chosen = np.array(chosen, np.int64)
    readers, legend = films.reader_layers(dataset, chosen)
    part = dataset.take(chosen)
    shown = []
    fused = Targets(*(x if x is None else x[chosen] for x in targets))
    for i in range(len(part)):
        mine = fused.mask[i]
        scale = part.sizes[i][[1, 0, 1, 0]] / config.data.image_size
        corners = fused.boxes[i][mine] * scale
        sure = fused.soft_targets if fused.weights is None else fused.weights
        votes = sure[i][mine]
        texts = [f"{vote:.2f}" if vote < 1 else "" for vote in votes]
        drawn = len(readers[i])
        boxes = films.boxes(fused.labels[i][mine], corners, ["fused"] * len(votes), texts=texts)
        note = f"{drawn} boxes drawn, {len(votes)} after fusion" if drawn else "normal"
        layers = {"readers": readers[i], "fused": boxes}
        shown.append({**films.film(part, i), "note": note, "boxes": layers})
    layers = [
        {"key": "readers", "name": "Readers, before fusion", "on": True, "scored": False},
        {
            "key": "fused",
            "name": f"After fusion by {config.data.fusion}",
            "on": False,
            "scored": False,
        },
    ]
    return _gallery(
        dataset.class_names, shown, layers, legend=legend, keys=[("fused", "after fusion")]
    )


def _fed(fed: Fed, class_names, config) -> dict:
    """The first images as the training step sees them, with boxes and their matched anchors."""
    size, targets, priors = config.data.image_size, fed.targets, fed.priors
    if priors:
        every = np.concatenate(priors.pyramid)
        level = np.repeat(priors.levels, [len(part) for part in priors.pyramid])
        positives = fed.positives().sum(axis=2)
    shown = []
    for i in range(min(SHOWN_FED, len(fed.images))):
        mine = targets.mask[i]
        labels, corners = targets.labels[i][mine], targets.boxes[i][mine]
        texts, note, layers = None, f"{int(mine.sum())} boxes" if mine.any() else "normal", {}
        if priors:
            texts = [f"{n} anchor{'' if n == 1 else 's'}" for n in positives[i][mine]]
            matched = np.flatnonzero(fed.match[i] >= 0)
            note += (
                f", {len(matched)} anchors of {len(every)}"
                if mine.any()
                else ": all anchors are background"
            )
            of_prior = targets.labels[i][fed.match[i][matched]]
            styles = [f"anchor level{level[k]}" for k in matched]
            layers["anchors"] = films.boxes(of_prior, every[matched], styles)
        layers["boxes"] = films.boxes(labels, corners, ["fused"] * len(labels), texts=texts)
        step, row = divmod(i, config.train.batch_size)
        shown.append(
            {
                "id": f"step {step}, image {row}",
                "width": size,
                "height": size,
                "src": films.jpeg(fed.images[i]),
                "note": note,
                "boxes": layers,
            }
        )
    layers = [{"key": "boxes", "name": "Boxes", "on": True, "scored": False}]
    keys = [("fused", "box")]
    if priors:
        layers.insert(
            0,
            {"key": "anchors", "name": "Anchors that matched", "on": True, "scored": False,
             "silent": True},
        )  # fmt: skip
        keys += [(f"level{n}", f"anchor of level {n}") for n in priors.levels]
    return _gallery(class_names, shown, layers, keys=keys)


def _positives(fed: Fed, class_names) -> dict:
    """How many anchors are matched to the boxes of each class, by pyramid level."""
    positives = fed.positives()[fed.targets.mask]
    labels = fed.targets.labels[fed.targets.mask]
    total = positives.sum(axis=1)
    rows = []
    for label, name in enumerate(class_names):
        mine = labels == label
        if mine.any():
            rows.append(
                {
                    "name": name,
                    "boxes": int(mine.sum()),
                    "mean": float(total[mine].mean()),
                    "none": int((total[mine] == 0).sum()),
                    "levels": positives[mine].mean(axis=0).tolist(),
                }
            )
    most = max([max(row["levels"]) for row in rows], default=1) or 1
    plot = plots.histogram(
        "Anchors of a box", np.minimum(total, 60), "anchors that answer for a box", "boxes",
        bins=np.arange(-0.5, min(int(total.max(initial=1)), 60) + 1),
    )  # fmt: skip
    return {
        "rows": sorted(rows, key=lambda row: row["mean"]),
        "levels": list(fed.priors.levels),
        "most": most,
        "plot": plot,
        "images": len(fed.images),
        "boxes": len(total),
        "none": int((total == 0).sum()),
        "mean": float(total.mean()) if len(total) else None,
        "share": float((fed.match >= 0).mean()),
    }
