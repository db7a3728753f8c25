"""What a detector of one data set finds in the films of another, class by class.

    python run.py --config=configs/phantom.py --workdir=runs/phantom
    python -m tfds_vinbig --config=nih --size=128 --coco=NIH/instances_partial.json \
        --images=NIH/images
    python benchmarks/zero_shot.py --workdir=runs/phantom --name=tfds_vinbig/nih

All films are scored, with the run's last checkpoint. Of each class:

- AP where a detection counts from an IoU of 0.1, 0.2, 0.3, 0.4;
- AUC: whether the surest detection in films with such a box is surer than in films without;
- pointing: the share of boxes that hold the middle of the surest detection in their film;
- the median width and height of the boxes, as shares of the film's, and of those that the detector
  is sure of (as many as there are boxes);
- what a box of that size would overlap a film's box by, were its middle the same: the share of
  boxes for which that is above 0.4. Where it is small, data sets mean other boxes by one name, and
  AP at 0.4 cannot tell what is known of the finding.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs

from configs import retina
from jaxdet.data import machine
from jaxdet.data.dataset import open_dataset, read_split
from jaxdet.inference.detector import load_detector
from jaxdet.inference.predict import predict, split_pictures
from jaxdet.ops import metrics
from jaxdet.ops.boxes import BoxTable, iou
from jaxdet.runs import config as configs
from jaxdet.runs import workdir

# NIH's names, and VinBigData's.
SAME = {
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Effusion": "Pleural effusion",
    "Mass": "Nodule/Mass",
    "Nodule": "Nodule/Mass",
    "Pneumothorax": "Pneumothorax",
}
THRESHOLDS = [0.1, 0.2, 0.3, 0.4]


def of_class(table: BoxTable, label: int, images: np.ndarray, sizes: np.ndarray) -> BoxTable:
    """The rows of a class in some images, as those of the only class; boxes as shares of a film."""
    rows = (table.labels == label) & images[table.image]
    image = table.image[rows]
    return BoxTable(
        image, np.zeros(len(image), int), table.boxes[rows] / sizes[image], table.scores[rows]
    )


def describe(found: BoxTable, truth: BoxTable, judged: np.ndarray) -> list[str]:
    """The cells of a class, see the head of this file."""
    ap = metrics.average_precision(found, truth, THRESHOLDS, 1)[:, 0]

    surest = np.zeros(len(judged))
    np.maximum.at(surest, found.image, found.scores)
    has = np.isin(np.arange(len(judged)), truth.image)
    with_it, without = surest[has, None], surest[judged & ~has]
    auc = (with_it > without).mean() + (with_it == without).mean() / 2

    order = np.argsort(-found.scores, kind="stable")
    _, first = np.unique(found.image[order], return_index=True)
    middle = np.full((len(judged), 2), np.inf)
    top = order[first]
    middle[found.image[top]] = (found.boxes[top, :2] + found.boxes[top, 2:]) / 2
    at = middle[truth.image]
    inside = (at >= truth.boxes[:, :2]) & (at <= truth.boxes[:, 2:])

    theirs = found.boxes[order[: len(truth.image)]]
    size, own = (np.median(b[:, 2:] - b[:, :2], axis=0) for b in (theirs, truth.boxes))
    centre = (truth.boxes[:, :2] + truth.boxes[:, 2:]) / 2
    same_middle = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    reachable = iou(same_middle, truth.boxes) > 0.4
    return [
        str(len(truth.image)),
        *(f"{x:.3f}" for x in ap),
        f"{auc:.2f}",
        f"{inside.all(axis=1).mean():.2f}",
        *("{:.2f} x {:.2f}".format(*x) for x in (own, size)),
        f"{reachable.mean():.2f}",
    ]


def main(folder: Path, name: str, data_dir: str) -> None:
    config = configs.of_run(folder, retina.get_fields())
    theirs = workdir.read_config(folder)[1].class_names
    loaded = load_detector(config, folder, "latest", len(theirs))
    films = read_split(open_dataset(name, machine.datasets_folder(data_dir)), "train")
    films = films.take(np.argsort(films.index))  # as `split_pictures` has them
    found = predict(loaded, split_pictures(films, config.data.image_size), len(theirs)).table

    sizes = films.sizes[:, [1, 0, 1, 0]].astype(float)
    rows = films.annotations
    truth = BoxTable(rows.image, rows.labels, rows.boxes, np.ones(len(rows.image)))
    columns = [f"AP, IoU {threshold}" for threshold in THRESHOLDS]
    columns = ["boxes", *columns, "AUC", "pointing", "size", "found", "reachable"]
    print(f"| | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    means = []
    for own, other in SAME.items():
        label = films.class_names.index(own)
        judged = np.ones(len(films), bool)
        if films.exhaustive is not None:
            has = np.isin(np.arange(len(films)), rows.image[rows.labels == label])
            judged = films.exhaustive[:, label] | has
        tables = (
            of_class(table, k, judged, sizes)
            for table, k in ((found, theirs.index(other)), (truth, label))
        )
        cells = describe(*tables, judged)
        means.append([float(x) for x in cells[1:5]])
        print(f"| {own} | {' | '.join(cells)} |", flush=True)
    means = [f"{x:.3f}" for x in np.mean(means, axis=0)]
    print(f"| mean | | {' | '.join(means)} |{' |' * 5}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--name", required=True, help="such as tfds_vinbig/nih")
    parser.add_argument("--data_dir", default="", help="folder that it was built in")
    flags = parser.parse_args()
    main(flags.workdir, flags.name, flags.data_dir)
