"""All real labels fused by jaxdet and by the package ensemble-boxes: are they equal, how fast?

    pip download --no-deps torchxrayvision && unzip torchxrayvision-*.whl
    pip install ensemble-boxes
    python benchmarks/fusion.py --labels=torchxrayvision/data/vinbigdata-train.csv.gz

Readers' boxes are equal in score, and the package sorts equals by an argsort that promises no
order: it gets scores that fall by 1e-9 from box to box, in the order that jaxdet takes them.
Prints a Markdown table: boxes that come out, images that differ by more than 1e-5 of the largest
coordinate, and seconds for the whole set (the package after a warm-up, its input made before the
clock starts).
"""

import argparse
import time

import numpy as np
import pandas as pd
from ensemble_boxes import nms, weighted_boxes_fusion

from jaxdet.ops.boxes import BoxTable
from jaxdet.ops.fusion import fuse, parse
from tfds_vinbig.kaggle import CLASS_NAMES

METHODS = ("wbf@0.1", "wbf@0.4", "wbf@0.5", "wbf@0.7", "votes@0.4", "nms@0.4")
READERS = 3


def package_lists(rows: pd.DataFrame, scale: float) -> list[tuple[list, list, list]]:
    """Boxes, scores and labels of each image, a list a reader."""
    result = []
    for _, image in rows.groupby("image"):
        # The last reader to appear first, and of each the last row first.
        order = np.lexsort((-np.arange(len(image)), -pd.factorize(image.rad_id)[0]))
        image = image.iloc[order].assign(score=1 - 1e-9 * np.arange(len(image)))
        lists = ([], [], [])
        for _, reader in image.groupby("rad_id", sort=False):
            lists[0].append(reader[["x_min", "y_min", "x_max", "y_max"]].to_numpy() / scale)
            lists[1].append(reader.score.to_numpy())
            lists[2].append(reader.class_id.to_numpy())
        for x, empty in zip(lists, (np.zeros((0, 4)), np.zeros(0), np.zeros(0)), strict=True):
            x.extend([empty] * (READERS - len(x)))
        result.append(lists)
    return result


def by_ensemble_boxes(method: str, lists: list) -> list:
    """(boxes, scores, labels) of each image."""
    name, options = parse(method)
    threshold = options["iou_threshold"]
    call, options = {
        "wbf": (weighted_boxes_fusion, {}),
        "votes": (weighted_boxes_fusion, {"conf_type": "box_and_model_avg"}),
        "nms": (nms, {}),
    }[name]
    return [call(*image, iou_thr=threshold, **options) for image in lists]


def count_different(fused: BoxTable, theirs: list, scale: float) -> int:
    """Images with another number of boxes, or a box without a like one on the other side."""
    ours = np.c_[fused.labels, fused.scores, fused.boxes / scale]
    ends = np.cumsum(np.bincount(fused.image, minlength=len(theirs)))[:-1]
    different = 0
    for a, (boxes, scores, labels) in zip(np.split(ours, ends), theirs, strict=True):
        b = np.c_[labels, scores, boxes]
        if len(a) != len(b):
            different += 1
        elif len(a):
            distance = abs(a[:, None] - b).max(axis=-1)
            different += max(distance.min(axis=0).max(), distance.min(axis=1).max()) > 1e-5
    return different


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", required=True)
    rows = pd.read_csv(parser.parse_args().labels)
    num_images = rows.image_id.nunique()
    rows = rows[rows.class_id != len(CLASS_NAMES)]
    # Images without a box come out without one; the package is not asked about them.
    rows = rows.assign(image=pd.factorize(rows.image_id)[0])
    boxes = rows[["x_min", "y_min", "x_max", "y_max"]].to_numpy(float)
    table = rows.image.to_numpy(), rows.class_id.to_numpy(), rows.rad_id.to_numpy(), boxes
    scale = boxes.max()
    lists = package_lists(rows, scale)
    print(f"{num_images} images, {len(lists)} of them with boxes, {len(rows)} boxes\n")
    print("| method | boxes | images that differ | ensemble-boxes, s | jaxdet, s | ratio |")
    print("|---|---|---|---|---|---|")
    for method in METHODS:
        by_ensemble_boxes(method, lists[:20])
        start = time.perf_counter()
        theirs = by_ensemble_boxes(method, lists)
        middle = time.perf_counter()
        fused = fuse(method, *table)
        end = time.perf_counter()
        a, b = middle - start, end - middle
        different = count_different(fused, theirs, scale)
        print(f"| {method} | {len(fused.image)} | {different} | {a:.2f} | {b:.3f} | {a / b:.0f} |")


if __name__ == "__main__":
    main()
