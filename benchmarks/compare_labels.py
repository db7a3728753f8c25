"""How like two label files are: the phantom's train.csv beside VinBigData's, class by class.

    pip download --no-deps torchxrayvision && unzip torchxrayvision-*.whl
    python benchmarks/compare_labels.py ~/tensorflow_datasets/phantom/train.csv \
        torchxrayvision/data/vinbigdata-train.csv.gz

Prints a Markdown table: boxes per 100 abnormal images; the IoU of two readers' boxes of the same
finding, on average (pairs of an image and class, best overlaps first); and of the findings (WBF at
0.5) the shares that one, two and three readers drew.
"""

import sys
from itertools import combinations

import numpy as np
import pandas as pd

from jaxdet.ops.boxes import iou
from jaxdet.ops.fusion import fuse
from tfds_vinbig.kaggle import CLASS_NAMES


def pair_ious(rows: pd.DataFrame) -> list[float]:
    """IoUs of matched boxes of two readers, over all images of one class."""
    result = []
    for _, image in rows.groupby("image_id"):
        readers = [r[["x_min", "y_min", "x_max", "y_max"]].to_numpy(float)
                   for _, r in image.groupby("rad_id")]  # fmt: skip
        for a, b in combinations(readers, 2):
            overlap = iou(np.repeat(a, len(b), axis=0), np.tile(b, (len(a), 1)))
            overlap = overlap.reshape(len(a), len(b))
            while overlap.max() > 0:
                i, j = np.unravel_index(overlap.argmax(), overlap.shape)
                result.append(overlap[i, j])
                overlap[i], overlap[:, j] = 0, 0
    return result


def summarize(path: str) -> tuple[pd.DataFrame, np.ndarray]:
    """A row for each class, and the shares of 1, 2 and 3 readers over all classes."""
    rows = pd.read_csv(path)
    rows = rows[rows.class_id != len(CLASS_NAMES)]
    image, names = pd.factorize(rows.image_id)
    boxes = rows[["x_min", "y_min", "x_max", "y_max"]].to_numpy(float)
    fused = fuse("wbf@0.5", image, rows.class_id.to_numpy(), rows.rad_id.to_numpy(), boxes)
    readers = np.rint(fused.scores * 3).astype(int)
    table = {}
    for label, name in enumerate(CLASS_NAMES):
        share = np.bincount(readers[fused.labels == label], minlength=4)[1:]
        mine = rows[rows.class_id == label]
        table[name] = {
            "boxes": f"{100 * len(mine) / len(names):.0f}",
            "IoU": f"{np.mean(pair_ious(mine)):.2f}",
            "1/2/3": "/".join(f"{x:.0f}" for x in 100 * share / share.sum()),
        }
    share = np.bincount(readers, minlength=4)[1:]
    return pd.DataFrame(table).T, 100 * share / share.sum()


if __name__ == "__main__":
    (first, all_first), (second, all_second) = (summarize(path) for path in sys.argv[1:3])
    print("| class | boxes | | IoU of readers | | drawn by 1/2/3, % | |")
    print("|---" * 7 + "|")
    for name in CLASS_NAMES:
        cells = [table.loc[name, key] for key in first for table in (first, second)]
        print(f"| {name} | {' | '.join(cells)} |")
    overall = ["/".join(f"{x:.0f}" for x in share) for share in (all_first, all_second)]
    print(f"| all | | | | | {' | '.join(overall)} |")
