"""What planned anchors reach of VinBigData's 36,096 boxes, beside COCO's anchors.

    pip download --no-deps torchxrayvision && unzip torchxrayvision-*.whl
    python benchmarks/plan_anchors.py --labels=torchxrayvision/data/vinbigdata-train.csv.gz

The file has no sizes of the originals: each gets the most common one that holds all its boxes.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.real_labels import BOX, SIZES
from jaxdet.ops import anchors
from tfds_vinbig.kaggle import CLASS_NAMES

COCO = anchors.Plan((3, 4, 5, 6, 7), (4.0, 5.04, 6.35), (0.5, 1.0, 2.0))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", required=True)
    rows = pd.read_csv(parser.parse_args().labels)
    rows = rows[rows.class_id != len(CLASS_NAMES)]
    extent = rows.groupby("image_id")[["y_max", "x_max"]].transform("max").to_numpy()
    sizes = np.array([next(s for s in SIZES if s[0] >= y and s[1] >= x) for y, x in extent])
    relative = rows[BOX].to_numpy() / sizes[:, [1, 0, 1, 0]]
    labels = rows.class_id.to_numpy()

    print("| pixels | anchors | levels | scales | height / width | all boxes | least of a class |")
    print("|---|---|---|---|---|---|---|")
    for size in (128, 256, 512, 1024):
        start = time.perf_counter()
        plan = anchors.plan(relative * size, labels, size)
        seconds = time.perf_counter() - start
        for name, layout in (("COCO's", COCO), (f"planned in {seconds:.1f} s", plan)):
            reached = anchors.best_iou(relative * size, (size, size), *layout) >= 0.5
            share = [reached[labels == label].mean() for label in range(len(CLASS_NAMES))]
            worst = f"{min(share):.2f}, {CLASS_NAMES[int(np.argmin(share))]}"
            cells = [size, name, *layout, f"{reached.mean():.3f}", worst]
            print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
