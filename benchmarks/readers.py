"""What can be made of several readers' boxes: labels fused by each method, without any detector.

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
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from jaxdet.ops import metrics
from jaxdet.ops.boxes import BoxTable, iou
from jaxdet.ops.clusters import Findings
from jaxdet.ops.fusion import fuse_rows
from tfds_vinbig.kaggle import CLASS_NAMES

METHODS = (
    "raw", "nms@0.4", "wbf@0.4", "votes@0.4", "agree@0.4:2", "earl@0.4", "skill@0.4",
    "skill@0.4:0.5",
)  # fmt: skip
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


def fused(method: str, rows: pd.DataFrame, num_readers: int) -> Findings:
    columns = (rows[name].to_numpy() for name in ("image", "class_id", "rad_id"))
    return fuse_rows(method, *columns, rows[BOX].to_numpy(float), NORMAL, num_readers)


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
    found = fused("skill@0.4", rows, 3).skills
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
    for method in METHODS:
        each = []
        for name in names:
            others = mine.rad_id != name
            each.append(score(fused(method, mine[others], 2).table, truth_of(mine[~others])))
        mean = pd.DataFrame(each).mean().to_dict()
        results[method] = mean | {f"AP, {n} out": e["AP"] for n, e in zip(names, each, strict=True)}
    return table_of(results)


def phantom(folder: Path) -> str:
    """Labels of all readers against what was drawn, on the training films."""
    rows, truth = pd.read_csv(folder / "train.csv"), pd.read_csv(folder / "truth.csv")
    truth = truth[truth.split == "train"]
    ids = {name: i for i, name in enumerate(pd.unique(rows.image_id))}
    rows, truth = (table.assign(image=table.image_id.map(ids)) for table in (rows, truth))
    num_readers = int(rows.groupby("image").rad_id.nunique().max())
    right = truth_of(truth)
    return table_of({m: score(fused(m, rows, num_readers).table, right) for m in METHODS})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=["labels"], default="labels")
    parser.add_argument("--labels", type=Path, help="the real label file")
    parser.add_argument("--phantom", type=Path, help="the drawn folder, with truth.csv")
    flags = parser.parse_args()
    if flags.labels:
        rows = read_rows(flags.labels)
        print(f"What skill@0.4 infers\n\n{skills(rows)}")
        print(f"Leave one reader out\n\n{leave_one_out(rows)}")
    if flags.phantom:
        print(f"The phantom's labels against what was drawn\n\n{phantom(flags.phantom)}")
