"""What can be made of several readers' boxes: labels fused by each method, and what is learned.

    pip download --no-deps torchxrayvision && unzip torchxrayvision-*.whl
    python benchmarks/readers.py --task=labels --phantom=$HOME/tensorflow_datasets/phantom \
        --labels=torchxrayvision/data/vinbigdata-train.csv.gz

Prints Markdown. Of the real labels what `skill@0.4` infers of the three readers with the most
boxes, the seconds that it takes, and leave one reader out: on the films that those three read,
labels made of two of them are scored against the third's boxes. Of the phantom, labels made of all
its readers are scored against the findings that were drawn (truth.csv beside its train.csv).

AP is the mean over the classes at IoU 0.4, ranked by the score that the method gives; precision and
recall are of all boxes that it leaves; IoU is the mean of its true positives. A score that says how
probable a finding is has precision as its mean.

    python benchmarks/readers.py --task=train --phantom=$HOME/tensorflow_datasets/phantom \
        --results=runs/readers.jsonl

trains `configs/phantom.py` once for each method and seed, on the dataset that was built beside the
phantom's folder, and adds a line to --results after each run, see study.py; a run that was stopped
goes on too. Detections in the test split are scored against what was drawn, those in the
validation split against that and against what its readers say, fused. Calibration is the expected
error of the scores of findings (`curves.calibration`). Prints Markdown: means and standard
deviations over the seeds, the differences from `wbf@0.4` with the same seed, and by class.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs

from benchmarks.study import mean_and_spread, run_all
from configs import phantom as phantom_config
from configs import retina
from jaxdet.data import splits
from jaxdet.data.dataset import Dataset, open_dataset, read_split
from jaxdet.evaluation import curves, scores
from jaxdet.inference.predict import predict, split_pictures
from jaxdet.ops import metrics
from jaxdet.ops.boxes import BoxTable, Targets, iou
from jaxdet.ops.clusters import Findings
from jaxdet.ops.fusion import fuse_rows
from jaxdet.runs import parallel
from jaxdet.training import relabel
from jaxdet.training.loop import train
from tfds_vinbig.kaggle import CLASS_NAMES

METHODS = ("raw", "nms@0.4", "wbf@0.4", "votes@0.4", "agree@0.4:2", "earl@0.4", "skill@0.4")
LEARNED = (*METHODS, "bdc@0.4")
# What it leaves of the phantom are the findings of `agree@0.4:2`, all 0.99 probable or more: on
# drawings there is nothing else to learn from it.
SURE = "skill@0.4:0.5"
BASE = "wbf@0.4"
TEST, VALIDATION = "test, truth", "validation, truth"
FUSED = {f"validation, {method}": method for method in ("wbf@0.4", "agree@0.4:2")}
BOX = ["x_min", "y_min", "x_max", "y_max"]
THRESHOLD = 0.4
NORMAL = len(CLASS_NAMES)


def markdown(table: pd.DataFrame) -> str:
    rows = [["", *table.columns], ["---"] * (1 + len(table.columns)), *table.reset_index().values]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def read_rows(path: Path) -> pd.DataFrame:
    """The rows of a label file; `image` counts the films."""
    rows = pd.read_csv(path)
    return rows.assign(image=pd.factorize(rows.image_id)[0])


def fused(method: str, rows: pd.DataFrame) -> Findings:
    columns = (rows[name].to_numpy() for name in ("image", "class_id", "rad_id"))
    return fuse_rows(method, *columns, rows[BOX].to_numpy(float), NORMAL)


def truth_of(rows: pd.DataFrame) -> BoxTable:
    """Rows of one reader as ground truth."""
    rows = rows[rows.class_id != NORMAL]
    columns = (rows[name].to_numpy() for name in ("image", "class_id"))
    return BoxTable(*columns, rows[BOX].to_numpy(float), np.ones(len(rows)))


def score(table: BoxTable, truth: BoxTable) -> dict[str, float]:
    """See the head of this file."""
    is_true, target = metrics.true_positives(table, truth, THRESHOLD)
    ap = metrics.average_precision(table, truth, [THRESHOLD], NORMAL)[0]
    return {
        "boxes": len(table.image),
        "AP": np.nanmean(ap),
        "precision": is_true.mean(),
        "mean score": table.scores.mean(),
        "recall": is_true.sum() / len(truth.image),
        "IoU": iou(table.boxes[is_true], truth.boxes[target[is_true]]).mean(),
    }


def three_readers(rows: pd.DataFrame) -> tuple[list[str], pd.DataFrame]:
    """Those who drew the most boxes, and the films that all three read, with findings or not."""
    names = sorted(rows[rows.class_id != NORMAL].rad_id.value_counts().index[:3])
    mine = rows[rows.rad_id.isin(names)]
    count = mine.groupby("image").rad_id.nunique()
    mine = mine[mine.image.isin(count[count == 3].index)]
    return names, mine.assign(image=pd.factorize(mine.image)[0])


def skills(rows: pd.DataFrame) -> str:
    """What is inferred of the three, by class: recall, share of what they drew that is true."""
    start = time.perf_counter()
    found = fused("skill@0.4", rows).skills
    seconds = time.perf_counter() - start
    names, _ = three_readers(rows)
    table = pd.DataFrame(found.rows(CLASS_NAMES))
    table = table[table.reader.isin(names)]
    columns = {}
    for name in names:
        mine = table[table.reader == name].set_index("class").reindex(CLASS_NAMES)
        columns[f"{name} drawn"] = mine.drawn.fillna(0).astype(int)
        for column, words in (("recall", "recall"), ("share_true", "true"),
                              ("false_per_film", "false a film")):  # fmt: skip
            columns[f"{name} {words}"] = mine[column].map("{:.2f}".format)
    error = table.drop_duplicates("reader").set_index("reader").corner_error
    care = ", ".join(f"{name} {error[name]:.3f}" for name in names)
    boxes = int((rows.class_id != NORMAL).sum())
    return (
        f"{markdown(pd.DataFrame(columns))}\nCorners off by, share of the side: {care}. "
        f"{boxes} boxes, {rows.image.nunique()} films: {seconds:.1f} s\n"
    )


def table_of(results: dict[str, dict[str, float]]) -> str:
    table = pd.DataFrame(results).T
    words = {name: table[name].map("{:.3f}".format) for name in table}
    return markdown(pd.DataFrame(words | {"boxes": table.boxes.map("{:.0f}".format)}))


def leave_one_out(rows: pd.DataFrame) -> str:
    """The mean over the three readers who are left out, and each one's AP."""
    names, mine = three_readers(rows)
    results = {}
    for method in (*METHODS, SURE):
        each = []
        for name in names:
            others = mine.rad_id != name
            each.append(score(fused(method, mine[others]).table, truth_of(mine[~others])))
        mean = pd.DataFrame(each).mean().to_dict()
        results[method] = mean | {f"AP, {n} out": e["AP"] for n, e in zip(names, each, strict=True)}
    return table_of(results)


def phantom(folder: Path) -> str:
    """Labels of all readers against what was drawn, on the training films."""
    rows, truth = pd.read_csv(folder / "train.csv"), pd.read_csv(folder / "truth.csv")
    truth = truth[truth.split == "train"]
    ids = {name: i for i, name in enumerate(pd.unique(rows.image_id))}
    rows, truth = (table.assign(image=table.image_id.map(ids)) for table in (rows, truth))
    right = truth_of(truth)
    return table_of({m: score(fused(m, rows).table, right) for m in (*METHODS, SURE)})


def drawn(truth: pd.DataFrame, ids: list[str]) -> BoxTable:
    """What was drawn on images, "No finding" among it, as ground truth."""
    number = {name: i for i, name in enumerate(ids)}
    rows = truth[truth.image_id.isin(number)]
    columns = rows.image_id.map(number), rows.class_id, rows.rad_id, rows[BOX].astype(float)
    return scores.ground_truth("raw", *(column.to_numpy() for column in columns), NORMAL)


def summary(case: scores.Case) -> dict:
    """mAP14 at IoU 0.4, AP by class, and the calibration of findings."""
    result, matched = case.summarize(), case.matched()
    found = matched.detections.labels < NORMAL
    held = matched.is_true()[found]
    error = curves.calibration(matched.detections.scores[found], held).error
    return {"mAP14": result["mAP14@0.4"], "AP": result["AP"], "calibration": error}


def learn(folder: Path, method: str, seed: int, steps: int, workdir: Path) -> dict[str, dict]:
    """Train with labels by a method; what the detector scores against each ground truth."""
    config = phantom_config.get_config()
    config.seed, config.data.dir, config.data.fusion = seed, str(folder.parent), method
    if steps != config.train.steps:  # to try it out
        config.train.warmup_steps = steps // 10
        config.data.fusion_every = max(steps // 4, 1)
    config.train.steps = config.train.evaluate_every = steps
    builder = open_dataset(config.data.name, config.data.dir)
    dataset = read_split(builder, "train")
    sets = splits.train_and_eval(config.data, builder, dataset)
    loaded, evaluator = train(config, retina.get_fields(), dataset, *sets, workdir)

    truth, case = pd.read_csv(folder / "truth.csv"), evaluator.case()
    cases = {VALIDATION: case._replace(truth=drawn(truth, case.ids))}
    rows = evaluator.dataset.annotations
    columns = rows.image, rows.labels, rows.readers, rows.boxes, NORMAL
    for name, fusion in FUSED.items():
        cases[name] = case._replace(truth=scores.ground_truth(fusion, *columns), method=fusion)
    size, names = config.data.image_size, dataset.class_names
    pictures = split_pictures(read_split(builder, "test"), size)
    table = predict(loaded, pictures, NORMAL).table
    cases[TEST] = scores.Case(pictures.ids, names, drawn(truth, pictures.ids), "raw", table)
    result = {"scores": {name: summary(case) for name, case in cases.items()}}
    if made_at := relabel.made_at(config, steps - 1):
        learned = relabel.read(workdir, made_at, len(sets[0]))
        result["labels"] = score(*labels(learned, sets[0], size, truth))
    shutil.rmtree(workdir)
    jax.clear_caches()  # compiled programs of many runs take gigabytes
    return result


def labels(
    targets: Targets, train_set: Dataset, image_size: int, truth: pd.DataFrame
) -> tuple[BoxTable, BoxTable]:
    """What is learned of the training images, in pixels of the originals, and what was drawn."""
    image, slot = np.nonzero(targets.mask)
    scale = train_set.sizes[image][:, [1, 0, 1, 0]] / image_size
    boxes, soft_targets = targets.boxes[image, slot] * scale, targets.soft_targets[image, slot]
    table = BoxTable(image, targets.labels[image, slot], boxes, soft_targets.astype(float))
    number = {name: i for i, name in enumerate(train_set.ids)}
    rows = truth[truth.image_id.isin(number)]
    return table, truth_of(rows.assign(image=rows.image_id.map(number)))


def study(lines: list[dict]) -> str:
    """The tables of all runs."""
    runs = {}
    for line in lines:
        runs.setdefault(line["variant"], {})[line["seed"]] = line["scores"]
    runs = {method: runs[method] for method in LEARNED if method in runs}
    base = runs.get(BASE, {})

    def cell(values, form):
        ((mean, spread),) = mean_and_spread([[value] for value in values])
        return f"{mean:{form}} ± {spread:.3f}"

    def differences(method):
        pairs = [(run[TEST]["mAP14"], base[seed][TEST]["mAP14"])
                 for seed, run in runs[method].items() if seed in base]  # fmt: skip
        each = [a - b for a, b in pairs]
        by_seed = ", ".join(f"{x:+.3f}" for x in each)
        return f"{cell(each, '+.3f')} ({by_seed})" if each and method != BASE else ""

    by_truth = [TEST, VALIDATION, *FUSED]
    rows, classes, means = {}, {}, {}
    for method, of_seed in runs.items():
        all_runs = list(of_seed.values())
        mAP = {name: [run[name]["mAP14"] for run in all_runs] for name in by_truth}
        means[method] = {name: np.mean(values) for name, values in mAP.items()}
        cells = {f"mAP14, {name}": cell(values, ".3f") for name, values in mAP.items()}
        rows[method] = {
            "runs": len(all_runs),
            f"mAP14, {TEST}": cells.pop(f"mAP14, {TEST}"),
            f"beside {BASE}": differences(method),
            "AP of No finding": cell([run[TEST]["AP"]["No finding"] for run in all_runs], ".3f"),
            "calibration error": cell([run[TEST]["calibration"] for run in all_runs], ".3f"),
            **cells,
        }
        ap = pd.DataFrame([run[TEST]["AP"] for run in all_runs], dtype=float).mean()
        classes[method] = ap.map("{:.3f}".format)
    order = pd.DataFrame(means).T.rank().corr()[TEST].drop(TEST)
    ranks = ", ".join(f"{name} {value:.2f}" for name, value in order.items())
    seconds = ", ".join(
        f"{method} {np.mean([x['seconds'] for x in lines if x['variant'] == method]):.0f}"
        for method in runs
    )
    return (
        f"{markdown(pd.DataFrame(rows).T)}\nRank correlation of the methods' means with those of "
        f"{TEST}: {ranks}\n\nAP at IoU 0.4, {TEST}\n\n{markdown(pd.DataFrame(classes))}\n"
        f"Seconds of a run: {seconds}\n{learned(lines)}"
    )


def learned(lines: list[dict]) -> str:
    """Labels that were made with the detector, as they were at the end of training."""
    made = {f"{x['variant']}, seed {x['seed']}": x["labels"] for x in lines if "labels" in x}
    return f"\nLabels made last, against what was drawn\n\n{table_of(made)}" if made else ""


def train_all(flags: argparse.Namespace) -> str:
    parallel.start(False)
    folder = flags.phantom.expanduser().absolute()

    def run(method, seed):
        name = f"{method}-{seed}-{flags.steps}".replace(":", "-")
        return learn(folder, method, seed, flags.steps, flags.results.with_suffix(".runs") / name)

    rest = LEARNED, flags.seeds, flags.steps, flags.only
    return study(run_all(flags.results, *rest, run))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=["labels", "train"], default="labels")
    parser.add_argument("--labels", type=Path, help="the real label file")
    parser.add_argument("--phantom", type=Path, help="the drawn folder, with truth.csv")
    parser.add_argument("--results", type=Path, default=Path("runs/readers.jsonl"))
    parser.add_argument("--steps", type=int, default=phantom_config.get_config().train.steps)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=LEARNED, default=(), help="methods to train")
    flags = parser.parse_args()
    if flags.task == "train":
        print(train_all(flags))
        sys.exit()
    if flags.labels:
        rows = read_rows(flags.labels)
        print(f"What skill@0.4 infers\n\n{skills(rows)}")
        print(f"Leave one reader out\n\n{leave_one_out(rows)}")
    if flags.phantom:
        print(f"The phantom's labels against what was drawn\n\n{phantom(flags.phantom)}")
