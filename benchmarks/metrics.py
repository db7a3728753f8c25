"""Seconds to score 3,000 images with 300 detections and 5 findings each.

python benchmarks/metrics.py
"""

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from jaxdet import metrics

IMAGES, DETECTIONS, TRUTHS = 3000, 300, 5


def random_boxes(rng: np.random.Generator, per_image: int) -> metrics.Boxes:
    count = IMAGES * per_image
    corner, extent = rng.uniform(0, 1800, (count, 2)), rng.uniform(50, 600, (count, 2))
    return metrics.Boxes(
        image=np.repeat(np.arange(IMAGES), per_image),
        classes=rng.integers(0, 14, count),
        boxes=np.concatenate([corner, corner + extent], axis=1),
        scores=rng.uniform(size=count),
    )


def main():
    rng = np.random.default_rng(0)
    detections, truth = random_boxes(rng, DETECTIONS), random_boxes(rng, TRUTHS)
    for name, run in (
        (
            "average precision at 0.4, 0.5 and 0.75",
            lambda: metrics.average_precision(detections, truth, (0.4, 0.5, 0.75), 15),
        ),
        ("FROC", lambda: metrics.froc(detections, truth, IMAGES)),
        (
            "100 bootstrap samples",
            lambda: metrics.bootstrap_confidence_interval(
                detections, truth, IMAGES, num_samples=100
            ),
        ),
    ):
        start = time.perf_counter()
        run()
        print(f"{name}: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
