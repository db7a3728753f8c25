"""A split that is decoded once and scored as often as wanted."""

import io
import json
from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxdet import inference, parallel, report, scores, workdir
from jaxdet.batches import decode_all, make_targets
from jaxdet.dataset import Dataset
from jaxdet.splits import describe_eval_split


class Evaluator:
    """The evaluation images of a run, scored by its detector.

    Attributes:
        dataset: the images.
        truth: the ground truth in original pixels.
        table: the detections of the last call of `score` in original pixels.
    """

    def __init__(self, detector: inference.Detector, dataset: Dataset):
        self.detector, self.dataset = detector, dataset
        self.config = detector.config
        rows = dataset.annotations
        self.truth = scores.ground_truth(
            self.config.evaluation.ground_truth,
            rows.image,
            rows.labels,
            rows.readers,
            rows.boxes,
            dataset.num_classes,
        )
        # This process's share of them.
        mine = parallel.local_positions(len(dataset), self.config.evaluation.batch_size).ravel()
        mine = mine[mine >= 0]
        self.images = decode_all(dataset.take(mine), self.config.data.image_size, "evaluate")
        self.row = {int(image): row for row, image in enumerate(mine)}
        self.detections = self.table = None

    def score(self, weights: dict[str, nnx.State], bootstrap_samples: int = 0) -> dict:
        """Detect and score; see `scores.summarize`."""
        self.detections = self.detector.detect_all(
            weights, lambda i: self.images[self.row[i]], len(self.dataset)
        )
        self.table = inference.to_table(
            self.detections,
            self.dataset.sizes,
            self.config.data.image_size,
            self.dataset.num_classes,
        )
        return self.summarize(bootstrap_samples)

    def summarize(self, bootstrap_samples: int = 0) -> dict:
        """The scores of the last detections."""
        return scores.summarize(
            self.table,
            self.truth,
            len(self.dataset),
            self.dataset.class_names,
            self.config.evaluation.ground_truth,
            self.config.evaluation.more_iou_thresholds,
            bootstrap_samples,
        )

    def write(self, folder: Path, step: int) -> dict:
        """Print the scores of the last detections; write `evaluation.json` and `detections.png`."""
        result = {
            **self.summarize(self.config.evaluation.bootstrap_samples),
            "checkpoint": step,
            "split": describe_eval_split(self.config.data),
        }
        print(f"checkpoint {step} in {folder}, {result['split']}")
        print(scores.format_table(result, self.truth))
        workdir.write_atomically(folder / "evaluation.json", json.dumps(result, indent=2) + "\n")
        workdir.write_atomically(folder / "detections.png", self.picture())
        return result

    def picture(self, num_images: int = 8) -> bytes:
        """A PNG of the first images with findings: the readers' fused boxes and the detections."""
        found = self.dataset.annotations.labels != self.dataset.num_classes
        chosen = np.unique(self.dataset.annotations.image[found])
        mine = np.intersect1d(chosen, list(self.row))
        chosen = (mine if len(mine) else np.array(list(self.row)))[:num_images]
        targets = make_targets(
            self.dataset.take(chosen), self.config.data.fusion, self.config.data.image_size
        )
        images = self.images[[self.row[i] for i in chosen]]
        detections = [x[chosen] for x in self.detections]
        buffer = io.BytesIO()
        picture = report.compare(
            images, targets, type(self.detections)(*detections), self.dataset.class_names
        )
        picture.save(buffer, "png")
        return buffer.getvalue()


def evaluate_run(config: ConfigDict, dataset: Dataset, folder: Path, which: str) -> Evaluator:
    """Score a checkpoint of the run in `folder` on its evaluation images, and write the scores."""
    loaded = inference.load(config, folder, which, dataset.num_classes)
    evaluator = Evaluator(loaded.detector, dataset)
    evaluator.score(loaded.weights)
    evaluator.write(folder, loaded.step)
    return evaluator
