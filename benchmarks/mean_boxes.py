"""What a detector that ignores the picture scores: each class's mean training box on every image.

    python benchmarks/mean_boxes.py --config=configs/phantom.py \
        --truth=~/tensorflow_datasets/phantom/truth.csv

Prints the score on the evaluation split, and of the test split against the truth.
"""

import sys
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import config_flags

sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs

from jaxdet.data import splits
from jaxdet.data.batches import Targets, make_targets
from jaxdet.data.dataset import open_dataset, read_split
from jaxdet.evaluation import scores
from jaxdet.ops.boxes import NO_FINDING_BOX, BoxTable
from tfds_vinbig import kaggle

CONFIG = config_flags.DEFINE_config_file("config", "configs/phantom.py", "The data's config.")
TRUTH = flags.DEFINE_string("truth", None, "Annotations of the test split.")


def mean_boxes(targets: Targets, sizes: np.ndarray, image_size: int, num_classes: int) -> BoxTable:
    """The mean box of each class, scored by how often it occurs, on images of these sizes."""
    boxes, labels = targets.boxes[targets.mask], targets.labels[targets.mask]
    present, counts = np.unique(labels, return_counts=True)
    mean = np.stack([boxes[labels == label].mean(axis=0) for label in present]) / image_size
    image, n = np.repeat(np.arange(len(sizes)), len(present)), len(sizes)
    in_original = np.tile(mean, (n, 1)) * sizes[image][:, [1, 0, 1, 0]]
    return BoxTable(
        image=np.concatenate([image, np.arange(n)]),
        labels=np.concatenate([np.tile(present, n), np.full(n, num_classes)]),
        boxes=np.concatenate([in_original, np.tile(NO_FINDING_BOX, (n, 1))]),
        scores=np.concatenate([np.tile(counts / counts.sum(), n), np.full(n, 0.5)]),
    )


def main(_):
    config = CONFIG.value
    builder = open_dataset(config.data.name, config.data.dir)
    dataset = read_split(builder, "train")
    train_set, eval_set = splits.train_and_eval(config.data, builder, dataset)
    size, names = config.data.image_size, dataset.class_names
    targets = make_targets(train_set, config.data.fusion, size)
    method = config.evaluation.ground_truth
    rows = eval_set.annotations
    columns = rows.image, rows.labels, rows.readers, rows.boxes
    table = mean_boxes(targets, eval_set.sizes, size, len(names))
    print("evaluation split")
    result = scores.of_files(
        list(eval_set.ids), *columns, names, list(eval_set.ids), table, method
    ).summarize()
    print(scores.format_table(result, scores.ground_truth(method, *columns, len(names))))
    if TRUTH.value:
        test = read_split(builder, "test")
        truth = kaggle.read_annotations(Path(TRUTH.value).expanduser()).of_splits_with(test.ids)
        columns = truth.image, truth.labels, truth.readers, truth.boxes, truth.class_names
        table = mean_boxes(targets, test.sizes, size, len(names))
        result = scores.of_files(truth.ids, *columns, list(test.ids), table, "raw").summarize()
        print(f"test split: mAP14@0.4 {result['mAP14@0.4']:.3f}, mAP@0.4 {result['mAP@0.4']:.3f}")


if __name__ == "__main__":
    app.run(main)
