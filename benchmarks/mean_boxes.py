"""What a detector that ignores the picture scores: each class's mean training box on every image.

    python benchmarks/mean_boxes.py --config=configs/phantom.py \
        --truth=~/tensorflow_datasets/phantom/truth.csv

Prints the score on the evaluation split, and of the test split against the truth.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import config_flags

sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs

from jaxdet import data, evaluate, submission
from jaxdet.boxes import BoxTable

CONFIG = config_flags.DEFINE_config_file("config", "configs/phantom.py", "The data's config.")
TRUTH = flags.DEFINE_string("truth", None, "Annotations of the test split.")


def mean_boxes(targets: data.Targets, sizes: np.ndarray, image_size: int) -> BoxTable:
    """The mean box of each class, scored by how often it occurs, on images of these sizes."""
    boxes, labels = targets.boxes[targets.mask], targets.labels[targets.mask]
    present, counts = np.unique(labels, return_counts=True)
    mean = np.stack([boxes[labels == label].mean(axis=0) for label in present])
    image = np.repeat(np.arange(len(sizes)), len(present))
    normal = np.arange(len(sizes))
    in_original = submission.to_original(np.tile(mean, (len(sizes), 1)), sizes[image], image_size)
    return BoxTable(
        image=np.concatenate([image, normal]),
        labels=np.concatenate([np.tile(present, len(sizes)), np.full(len(sizes), 14)]),
        boxes=np.concatenate([in_original, np.tile(submission.NO_FINDING_BOX, (len(sizes), 1))]),
        scores=np.concatenate(
            [np.tile(counts / counts.sum(), len(sizes)), np.full(len(sizes), 0.5)]
        ),
    )


def main(_):
    config = CONFIG.value
    train_set, eval_set = data.train_and_eval(config)
    targets = data.make_targets(train_set, config.data.fusion, config.data.max_boxes)
    size = config.data.image_size
    method = config.evaluation.ground_truth
    table = mean_boxes(targets, eval_set.sizes, size)
    truth = evaluate.truth_of(eval_set, method)
    scores = evaluate.summarize(table, truth, (0.4, 0.5, 0.75), len(eval_set), method)
    print("evaluation split")
    print(evaluate.format_table(scores, truth))
    if TRUTH.value:
        test = data.read_split(config.data.name, "test", size, config.data.dir)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "submission.csv"
            submission.write(path, list(test.ids), mean_boxes(targets, test.sizes, size))
            scores = evaluate.score_files(Path(TRUTH.value).expanduser(), path)
        print(f"test split: mAP14@0.4 {scores['mAP14@0.4']:.3f}, mAP@0.4 {scores['mAP@0.4']:.3f}")


if __name__ == "__main__":
    app.run(main)
