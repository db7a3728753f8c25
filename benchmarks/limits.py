"""What holds a detector back: the film, the place, the name, or what it has learned by heart.

    python benchmarks/limits.py --workdirs=runs/fold0,runs/fold1

The last checkpoint of each run finds, in the films of its fold, what is then scored

- as it is, at several IoUs;
- without the detections in films that have no box, as if somebody knew which films are normal;
- without the detections of a class in films that have no box of it, as if somebody knew what each
  film has;
- with all classes as one, "a finding", of overlapping boxes the surest (`nms@0.4`);

and as many of the films that it was trained on, as it is. Prints mAP over the classes of findings,
at IoU 0.4 where nothing else is said, of each run.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs

from configs import retina
from jaxdet.data import splits
from jaxdet.data.dataset import open_dataset, read_split
from jaxdet.evaluation.evaluate import Evaluator
from jaxdet.evaluation.metrics import Matched
from jaxdet.evaluation.scores import Case
from jaxdet.inference.detector import load_detector
from jaxdet.ops import fusion, metrics
from jaxdet.ops.boxes import BoxTable
from jaxdet.runs import config as configs


def mean_ap(matched: Matched, iou: float = 0.4) -> float:
    """Mean AP of the classes of findings."""
    once = np.ones((1, matched.num_images), np.int64)
    ap = metrics.weighted_average_precision(
        matched.is_true(iou)[None], matched.detections, matched.truth, matched.num_classes,
        once, matched.ignored(iou)[None],
    )  # fmt: skip
    return float(metrics.mean_of_classes(ap[:, 0])[0])


def as_one_class(case: Case) -> Case:
    """The same with all findings of one class; boxes that overlap are one."""
    count = len(case.class_names)

    def merged(table):
        image, labels, boxes, scores = (x[table.labels < count] for x in table)
        same = np.zeros_like(labels)
        return fusion.fuse("nms@0.4", image, same, same, boxes, scores=scores)

    # A film counts as one where all of it is boxed, if everything is.
    exhaustive = case.exhaustive
    if exhaustive is not None:
        exhaustive = exhaustive.all(axis=1, keepdims=True)
    return case._replace(
        class_names=("a finding",),
        truth=merged(case.truth),
        detections=merged(case.detections),
        exhaustive=exhaustive,
    )


def has_box(truth: BoxTable, num_images: int, num_classes: int) -> np.ndarray:
    """Whether an image has a box of a class; "No finding" last."""
    has = np.zeros((num_images, num_classes + 1), bool)
    has[truth.image, truth.labels] = True
    return has


def measure(folder: Path) -> dict[str, float]:
    """The rows of the table, of a run."""
    config = configs.of_run(folder, retina.get_fields())
    builder = open_dataset(config.data.name, config.data.dir)
    dataset = read_split(builder, "train")
    train_set, eval_set = splits.train_and_eval(config.data, builder, dataset)
    loaded = load_detector(config, folder, "latest", dataset.num_classes)

    def case_of(films):
        evaluator = Evaluator(loaded.detector, films)
        evaluator.score(loaded.weights)
        return evaluator.case()

    case = case_of(eval_set)
    matched = case.matched()
    image, labels = matched.detections.image, matched.detections.labels
    has = has_box(matched.truth, matched.num_images, matched.num_classes)
    learned = np.linspace(0, len(train_set) - 1, len(eval_set)).astype(int)
    return {
        **{f"not seen, IoU {iou}": mean_ap(matched, iou) for iou in (0.2, 0.3, 0.4, 0.5)},
        "in films with a box": mean_ap(matched.select(has[:, :-1].any(axis=1)[image])),
        "in films with a box of the class": mean_ap(matched.select(has[image, labels])),
        "all classes as one": mean_ap(as_one_class(case).matched()),
        "trained on": mean_ap(case_of(train_set.take(learned)).matched()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdirs", required=True, help="of runs, with commas between")
    folders = list(map(Path, parser.parse_args().workdirs.split(",")))
    runs = [measure(folder) for folder in folders]
    print(f"| | {' | '.join(folder.name for folder in folders)} |\n|---|{'---|' * len(folders)}")
    for name in runs[0]:
        print(f"| {name} | {' | '.join(f'{run[name]:.3f}' for run in runs)} |")
