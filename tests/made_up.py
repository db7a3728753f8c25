"""An evaluation that no model is needed for: phantom images, and made-up detections."""

import io
from types import SimpleNamespace

import numpy as np
from PIL import Image

from jaxdet.data.dataset import Annotations, Dataset
from jaxdet.evaluation import scores
from jaxdet.ops.boxes import BoxTable
from tfds_vinbig.kaggle import CLASS_NAMES
from tfds_vinbig.phantom import draw_image, plan_image


def phantom_dataset(num_images: int, size: int = 256, first: int = 0) -> Dataset:
    """Images of the phantom, drawn here and now."""
    plans = [plan_image(0, 0, i) for i in range(first, first + num_images)]
    records = []
    for plan in plans:
        file = io.BytesIO()
        Image.fromarray(draw_image(plan, size)).save(file, "png")
        records.append(file.getvalue())
    rows = [(i, row) for i, plan in enumerate(plans) for row in plan.readers]
    return Dataset(
        class_names=tuple(CLASS_NAMES),
        class_ids=tuple(range(15)),
        ids=np.array([plan.image_id for plan in plans]),
        index=np.arange(num_images),
        sizes=np.array([(plan.height, plan.width) for plan in plans]),
        annotations=Annotations(
            image=np.array([i for i, _ in rows]),
            labels=np.array([row.label for _, row in rows]),
            readers=np.array([row.reader for _, row in rows]),
            boxes=np.array([row.box or [np.nan] * 4 for _, row in rows], np.float32),
        ),
        checksums=np.arange(num_images),
        source=records,
        rows=np.arange(num_images),
    )


def detections(dataset: Dataset, truth: BoxTable, skill: float, seed: int = 0) -> BoxTable:
    """Most of the truth, more or less well; other things; and how normal each image is."""
    rng = np.random.default_rng(seed)
    num_classes = dataset.num_classes
    rows = []
    for image, label, box in zip(truth.image, truth.labels, truth.boxes, strict=True):
        if label == num_classes or rng.random() > 0.55 + 0.4 * skill:
            continue
        width, height = box[2] - box[0], box[3] - box[1]
        for _ in range(1 + (rng.random() < 0.2)):  # at times twice
            spread = rng.choice([0.04, 0.15, 0.3]) * (1.3 - skill)
            moved = box + rng.normal(0, spread, 4) * [width, height, width, height]
            said = label if rng.random() < 0.6 + 0.4 * skill else rng.integers(num_classes)
            score = np.clip(rng.beta(3, 2) * (0.5 + skill / 2) - spread / 2, 0.02, 1)
            rows.append((image, said, *moved, score))
    for image in range(len(dataset)):
        height, width = dataset.sizes[image]
        for _ in range(rng.integers(0, 6)):
            x, y = rng.uniform(0.1, 0.7, 2) * [width, height]
            w, h = rng.uniform(0.06, 0.25, 2) * [width, height]
            label = rng.integers(num_classes)
            rows.append((image, label, x, y, x + w, y + h, rng.beta(1, 5)))
    table = np.array([row for row in rows if row[4] > row[2] and row[5] > row[3]], float)
    best = np.zeros(len(dataset))
    np.maximum.at(best, table[:, 0].astype(int), table[:, 6])
    normal = [(i, num_classes, 0, 0, 1, 1, 1 - best[i]) for i in range(len(dataset))]
    table = np.concatenate([table, normal])
    return BoxTable(table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2:6], table[:, 6])


def evaluation(num_images: int = 80, size: int = 256) -> SimpleNamespace:
    """A dataset, the case of a fair detector, and the detections of a poorer one."""
    dataset = phantom_dataset(num_images, size)
    rows = dataset.annotations
    truth = scores.ground_truth(
        "wbf@0.4", rows.image, rows.labels, rows.readers, rows.boxes, dataset.num_classes
    )
    case = scores.Case(
        list(map(str, dataset.ids)), dataset.class_names, truth, "wbf@0.4",
        detections(dataset, truth, 0.7),
    )  # fmt: skip
    return SimpleNamespace(
        dataset=dataset, case=case, other=detections(dataset, truth, 0.3, seed=1)
    )


def history(steps: int = 1300) -> list[dict]:
    """As `metrics.jsonl` has it."""
    rng = np.random.default_rng(0)
    lines = []
    for step in range(50, steps + 1, 50):
        fall = np.exp(-step / 400)
        lines.append(
            {"step": step, "loss": 1.2 * fall + 0.4, "class_loss": 0.8 * fall + 0.15
             + 0.02 * rng.normal(), "box_loss": 0.5 * fall + 0.2 + 0.02 * rng.normal(),
             "learning_rate": 2e-3 * np.cos(step / steps * np.pi / 2) ** 2,
             "images_per_second": 30.0}
        )  # fmt: skip
        if step % 325 == 0 or step == steps:
            lines.append({"step": step, "mAP@0.4": 0.4 * (1 - fall), "AP": {}})
    return lines
