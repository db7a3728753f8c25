"""What a detector of VinBigData's classes finds in NIH's films, class by class.

    python run.py --config=configs/phantom.py --workdir=runs/phantom
    python -m tfds_vinbig --config=nih --size=128 --coco=NIH/instances_partial.json \
        --images=NIH/images
    python benchmarks/zero_shot.py --workdir=runs/phantom --name=tfds_vinbig/nih

All films are scored, with the run's last checkpoint. Of each class:

- AP where a detection counts from an IoU of 0.1, 0.2, 0.3, 0.4;
- AUC: whether the surest detection in a film with such a box is surer than in one without;
- pointing: the share of boxes that hold the middle of the surest detection in their film;
- size: the median width and height of the boxes, as shares of the film's;
- found: those of as many surest detections;
- reachable: the share of boxes that a box of the size found would overlap by more than 0.4, were
  its middle the same. Where it is small, the data sets mean other boxes by one name, and AP at 0.4
  cannot tell what is known of the finding.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs

from configs import retina
from jaxdet.data import machine
from jaxdet.data.dataset import open_dataset, read_split
from jaxdet.evaluation.scores import Case
from jaxdet.inference.detector import load_detector
from jaxdet.inference.predict import predict, split_pictures
from jaxdet.ops import metrics
from jaxdet.ops.boxes import BoxTable, iou
from jaxdet.runs import config as configs
from jaxdet.runs import workdir

# VinBigData's names, and what NIH calls the same.
SAME = {
    "Atelectasis": ["Atelectasis"],
    "Cardiomegaly": ["Cardiomegaly"],
    "Nodule/Mass": ["Nodule", "Mass"],
    "Pleural effusion": ["Effusion"],
    "Pneumothorax": ["Pneumothorax"],
}
IOUS = (0.1, 0.2, 0.3, 0.4)


def alone(table: BoxTable, labels: list[int], sizes: np.ndarray) -> BoxTable:
    """The rows of some classes as those of the only one; boxes as shares of their film."""
    image, _, boxes, scores = (x[np.isin(table.labels, labels)] for x in table)
    return BoxTable(image, np.zeros_like(image), boxes / sizes[image][:, [1, 0, 1, 0]], scores)


def describe(case: Case) -> list[float | str]:
    """The cells of a class, see the head of this file; the case has that class alone."""
    matched = case.matched()
    found, truth = matched.detections, matched.truth
    num_images = len(case.ids)
    once = np.ones((1, num_images), np.int64)
    hits, ignored = (np.stack([f(x) for x in IOUS]) for f in (matched.is_true, matched.ignored))
    ap = metrics.weighted_average_precision(hits, found, truth, 1, once, ignored)[0, :, 0]

    best, middle = np.zeros(num_images), np.full((num_images, 2), np.inf)
    image, first = np.unique(found.image, return_index=True)  # they are sorted by score
    best[image] = found.scores[first]
    middle[image] = (found.boxes[first, :2] + found.boxes[first, 2:]) / 2
    inside = (middle[truth.image] >= truth.boxes[:, :2]) & (
        middle[truth.image] <= truth.boxes[:, 2:]
    )

    has = np.isin(np.arange(num_images), truth.image)
    without = ~has if case.exhaustive is None else ~has & case.exhaustive[:, 0]
    auc = np.sign(best[has, None] - best[without]).mean() / 2 + 0.5

    surest = found.boxes[: len(truth.image)]
    own, size = (np.median(boxes[:, 2:] - boxes[:, :2], axis=0) for boxes in (truth.boxes, surest))
    centre = (truth.boxes[:, :2] + truth.boxes[:, 2:]) / 2
    same_middle = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    reachable = (iou(same_middle, truth.boxes) > 0.4).mean()
    sizes = ("{:.2f} x {:.2f}".format(*x) for x in (own, size))
    return [*ap, auc, inside.all(axis=1).mean(), *sizes, reachable]


def main(folder: Path, name: str, data_dir: str) -> None:
    config = configs.of_run(folder, retina.get_fields())
    names = workdir.read_config(folder)[1].class_names
    loaded = load_detector(config, folder, "latest", len(names))
    films = read_split(open_dataset(name, machine.datasets_folder(data_dir)), "train")
    films = films.take(np.argsort(films.index))  # as `split_pictures` has them
    found = predict(loaded, split_pictures(films, config.data.image_size), len(names)).table
    rows = films.annotations
    truth = BoxTable(rows.image, rows.labels, rows.boxes, np.ones(len(rows.image)))

    columns = [f"AP, IoU {x}" for x in IOUS]
    columns = ["boxes", *columns, "AUC", "pointing", "size", "found", "reachable"]
    print(f"| | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    aps = []
    for own, others in SAME.items():
        labels = [films.class_names.index(other) for other in others]
        case = Case(
            list(films.ids), (own,), alone(truth, labels, films.sizes), "raw",
            alone(found, [names.index(own)], films.sizes),
            exhaustive=None if films.exhaustive is None
            else films.exhaustive[:, labels].all(axis=1, keepdims=True),
        )  # fmt: skip
        cells = describe(case)
        aps.append(cells[: len(IOUS)])
        cells = [x if isinstance(x, str) else f"{x:.3f}" for x in cells]
        print(f"| {own} | {len(case.truth.image)} | {' | '.join(cells)} |")
    means = [f"{x:.3f}" for x in np.mean(aps, axis=0)]
    print(f"| mean | | {' | '.join(means)} |{' |' * 5}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--name", required=True, help="such as tfds_vinbig/nih")
    parser.add_argument("--data_dir", default="", help="folder that it was built in")
    flags = parser.parse_args()
    main(flags.workdir, flags.name, flags.data_dir)
