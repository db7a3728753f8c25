"""How like the phantom's three readers are to R8, R9 and R10, who read most of VinBigData's films.

    pip download --no-deps torchxrayvision && unzip torchxrayvision-*.whl
    python benchmarks/compare_readers.py ~/tensorflow_datasets/phantom/train.csv \
        torchxrayvision/data/vinbigdata-train.csv.gz

Only abnormal films that all three read count. Prints a Markdown table: per class and reader the
boxes per 100 of the films; the share, %, that another of the two confirms (same class, IoU above
0.4); and the share, %, that the reader drew too of the findings on which both others agree. Below
it each reader's care, the spread of the reader's edges in units of the three's mean, from the IoUs
of the pairs; and the share of the boxes that nobody confirms which lie (IoU above 0.4) on a box of
another class of another reader.
"""

import sys

import numpy as np
import pandas as pd

from jaxdet.ops.boxes import iou
from tfds_vinbig.kaggle import CLASS_NAMES

READERS = ("R8", "R9", "R10")
BOX = ["x_min", "y_min", "x_max", "y_max"]
SAME = 0.4


def habits(rows: pd.DataFrame) -> tuple[dict, np.ndarray, np.ndarray]:
    """What the readers do.

    Args:
        rows: image_id, class_id, rad_id and the box, a row for each box or "No finding".

    Returns:
        {(class, reader): counts} with the numbers of boxes, of confirmed ones, of findings on which
        the others agree, and of those drawn too; (class, 3 pairs) mean IoU of boxes that are above
        0.4; and (3,) shares of unconfirmed boxes that lie on a box of another class.
    """
    mine = rows[rows.rad_id.isin(READERS)]
    read = mine.groupby("image_id").rad_id.nunique()
    mine = mine[mine.image_id.isin(read.index[read == 3]) & (mine.class_id < len(CLASS_NAMES))]
    counts = {(c, r): np.zeros(4, int) for c in range(len(CLASS_NAMES)) for r in range(3)}
    pairs = [[[] for _ in range(3)] for _ in CLASS_NAMES]
    alone = np.zeros((3, 2))
    for _, film in mine.groupby("image_id"):
        labels, boxes = film.class_id.to_numpy(), film[BOX].to_numpy(float)
        reader = film.rad_id.map(READERS.index).to_numpy()
        overlaps = iou(boxes[:, None], boxes)
        same = (overlaps > SAME) & (labels[:, None] == labels)
        other = (overlaps > SAME) & (labels[:, None] != labels) & (reader[:, None] != reader)
        for label in np.unique(labels):
            of = [np.flatnonzero((labels == label) & (reader == r)) for r in range(3)]
            for r, j, k in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
                seen = same[np.ix_(of[r], np.r_[of[j], of[k]])].any(1)
                agreed = np.argwhere(same[np.ix_(of[j], of[k])])
                also = [same[of[r], of[j][a]].any() for a in np.unique(agreed[:, 0])]
                counts[label, r] += (len(seen), seen.sum(), len(also), sum(also))
                alone[r] += ((~seen).sum(), other[of[r][~seen]].any(1).sum())
                pairs[label][3 - j - k] += [overlaps[of[j][a], of[k][b]] for a, b in agreed]
    means = np.array([[np.mean(p) if p else np.nan for p in row] for row in pairs])
    return counts, means, alone[:, 1] / alone[:, 0]


def care(means: np.ndarray) -> np.ndarray:
    """(3,) spreads of the readers' edges, mean 1, from (classes, 3) IoUs; pair i leaves out i.

    1 - IoU of two boxes goes with the root of the sum of their variances.
    """
    loss = 1 - means
    squares = np.nanmean((loss / np.nanmean(loss, 1, keepdims=True)) ** 2, 0)
    spread = np.sqrt(np.clip(squares.sum() / 2 - squares, 0, None))
    return spread / spread.mean()


def films_of(rows: pd.DataFrame) -> int:
    """Abnormal films that all three read."""
    mine = rows[rows.rad_id.isin(READERS) & (rows.class_id < len(CLASS_NAMES))]
    return int((mine.groupby("image_id").rad_id.nunique() == 3).sum())


if __name__ == "__main__":
    files = [pd.read_csv(path) for path in sys.argv[1:3]]
    found, films = [habits(rows) for rows in files], [films_of(rows) for rows in files]
    print(f"| class |{''.join(f' {reader} | |' for reader in READERS)}")
    print("|---" * 7 + "|")
    for label, name in enumerate(CLASS_NAMES):
        cells = []
        for r in range(len(READERS)):
            for (counts, *_), n in zip(found, films, strict=True):
                boxes, confirmed, agreed, also = counts[label, r]
                shares = boxes / n, confirmed / max(boxes, 1), also / max(agreed, 1)
                cells.append(", ".join(f"{100 * share:.0f}" for share in shares))
        print(f"| {name} | {' | '.join(cells)} |")
    print()
    for what, numbers in (
        ("care", [care(means) for _, means, _ in found]),
        ("on another class", [share for *_, share in found]),
    ):
        for where, values in zip(("phantom", "VinBigData"), numbers, strict=True):
            each = ", ".join(f"{r} {x:.2f}" for r, x in zip(READERS, values, strict=True))
            print(f"- {what}, {where}: {each}")
