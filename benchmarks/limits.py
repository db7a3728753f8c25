"""What holds a detector back: its place, its name, or what it has learned by heart.

    python benchmarks/limits.py --workdirs=runs/fold0,runs/fold1

The last checkpoint of each run finds, in the films of its fold, what is then scored

- as it is, at several IoUs;
- without the detections in films that have no box at all, as if a judge of films knew those;
- without the detections of a class in films that have no box of that class: what is left to miss is
  the place;
- with only one class, "a finding": what is left to miss is all but the name;

and as many of the films that it was trained on, as it is. Prints mAP over the classes of findings,
at IoU 0.4 where nothing else is said: mean and standard deviation over the runs, and each run.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs

from benchmarks.study import mean_and_spread
from configs import retina
from jaxdet.data import splits
from jaxdet.data.dataset import open_dataset, read_split
from jaxdet.evaluation.evaluate import Evaluator
from jaxdet.evaluation.scores import Case
from jaxdet.inference.detector import load_detector
from jaxdet.ops import metrics
from jaxdet.ops.boxes import BoxTable
from jaxdet.runs import config as configs

HOLDS = "films not seen"


def mean_ap(case: Case, keep: np.ndarray | None = None, iou: float = 0.4) -> float:
    """Mean AP of the findings, of the detections that are kept.

    A class of which a film may have more than is boxed counts there if something is.
    """
    count, found, truth = len(case.class_names), case.detections, case.truth
    judged = boxed(case, count)
    if case.exhaustive is None:
        judged[:] = True
    else:
        judged[:, :-1] |= case.exhaustive
    rows = judged[found.image, found.labels] & (found.labels < count)
    rows = select(found, rows if keep is None else rows & keep)
    ap = metrics.average_precision(rows, select(truth, truth.labels < count), [iou], count)
    return float(np.nanmean(ap))


def boxed(case: Case, count: int) -> np.ndarray:
    """Whether a film has boxes of a class; "No finding" last."""
    has = np.zeros((len(case.ids), count + 1), bool)
    has[case.truth.image, case.truth.labels] = True
    return has


def select(table: BoxTable, rows: np.ndarray) -> BoxTable:
    return BoxTable(*(column[rows] for column in table))


def one_class(case: Case) -> Case:
    """The same with all findings of one class; a film counts that has all of it boxed."""
    count = len(case.class_names)

    def merged(table):
        return table._replace(labels=(table.labels == count).astype(int))

    all_boxed = None if case.exhaustive is None else case.exhaustive.all(axis=1)[:, None]
    return case._replace(
        class_names=("a finding",),
        truth=merged(case.truth),
        detections=merged(case.detections),
        exhaustive=all_boxed,
    )


def measure(folder: Path) -> dict[str, float]:
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
    has, found = boxed(case, dataset.num_classes), case.detections
    learned = np.linspace(0, len(train_set) - 1, len(eval_set)).astype(int)
    return {
        **{f"{HOLDS}, IoU {iou}": mean_ap(case, iou=iou) for iou in (0.2, 0.3, 0.4, 0.5)},
        "only in films with a box": mean_ap(case, has[:, :-1].any(axis=1)[found.image]),
        "only in films with a box of the class": mean_ap(case, has[found.image, found.labels]),
        "all classes as one": mean_ap(one_class(case)),
        "films trained on": mean_ap(case_of(train_set.take(learned))),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdirs", required=True, help="of runs, with commas between")
    flags = parser.parse_args()
    runs = [measure(Path(name)) for name in flags.workdirs.split(",")]
    print("| | mAP | each run |\n|---|---|---|")
    for name in runs[0]:
        each = [run[name] for run in runs]
        ((mean, spread),) = mean_and_spread([[x] for x in each])
        print(f"| {name} | {mean:.3f} ± {spread:.3f} | {', '.join(f'{x:.3f}' for x in each)} |")
