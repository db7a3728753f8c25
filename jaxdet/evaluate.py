"""A split that is decoded once and scored as often as wanted."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx
from ml_collections import ConfigDict

from jaxdet import compare, inference, parallel, scores, workdir
from jaxdet.batches import Images
from jaxdet.boxes import BoxTable
from jaxdet.dataset import Dataset
from jaxdet.report.evaluation import evaluation_page
from jaxdet.splits import describe_eval_split


class Against(NamedTuple):
    """Another run's detections in the same images, and its name."""

    table: BoxTable
    name: str


class Evaluator:
    """The evaluation images of a run, scored by its detector.

    Attributes:
        dataset: the images.
        truth: the ground truth in original pixels.
        table: the detections of the last call of `score` in original pixels.
        seconds: that the last call took to detect.
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
        self.images = Images(dataset.take(mine), self.config.data.image_size, "evaluate")
        self.row = {int(image): row for row, image in enumerate(mine)}
        self.table, self.seconds = None, 0.0

    def score(
        self,
        weights: dict[str, nnx.State],
        bootstrap_samples: int = 0,
        between: Callable[[], None] = lambda: None,
    ) -> dict:
        """Detect and score, see `scores.summarize`; `between` is called after each batch."""
        start = time.perf_counter()
        detections = self.detector.detect_all(
            weights, lambda i: self.images[self.row[i]], len(self.dataset), between
        )
        self.seconds = time.perf_counter() - start
        self.table = inference.to_table(
            detections,
            self.dataset.sizes,
            self.config.data.image_size,
            self.dataset.num_classes,
        )
        return self.summarize(bootstrap_samples)

    def summarize(self, bootstrap_samples: int = 0) -> dict:
        """The scores of the last detections."""
        return self.case().summarize(self.config.evaluation.more_iou_thresholds, bootstrap_samples)

    def case(self) -> scores.Case:
        """What the last detections are scored as."""
        return scores.Case(
            list(map(str, self.dataset.ids)),
            self.dataset.class_names,
            self.truth,
            self.config.evaluation.ground_truth,
            self.table,
        )

    def write(self, folder: Path, step: int, against: Against | None = None) -> dict:
        """Print the scores of the last detections; write `evaluation.json` and `report.html`."""
        evaluation = self.config.evaluation
        samples = evaluation.bootstrap_samples
        result = {
            **self.summarize(samples),
            "checkpoint": step,
            "split": describe_eval_split(self.config.data),
            "inference": self.config.inference.to_dict(),
        }
        print(f"checkpoint {step} in {folder}, {result['split']}")
        print(scores.format_table(result, self.truth))
        if against:
            result["against"] = compare.compare(
                self.case(), *against, evaluation.more_iou_thresholds, samples
            )
            print(compare.format_table(result["against"]))
        workdir.write_atomically(folder / "evaluation.json", json.dumps(result, indent=2) + "\n")
        if jax.process_index() == 0:
            page = evaluation_page(
                self.case(),
                result,
                title=str(folder),
                dataset=self.dataset,
                other=against.table if against else None,
                history=workdir.read_metrics(folder),
                about=self.about(folder),
                config=self.config.to_dict(),
                bootstrap_samples=samples,
            )
            workdir.write_atomically(folder / "report.html", page)
        return result

    def about(self, folder: Path) -> dict[str, str]:
        """What was run, for people."""
        config, (_, run) = self.config, workdir.read_config(folder)
        fields = {
            "workdir": str(folder.absolute()),
            "dataset": f"{config.data.name}, fingerprint {run.dataset}",
            "trained on": f"images of fingerprint {run.training_images}, readers' boxes fused by "
            f"{config.data.fusion}",
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "detection": f"{len(self.dataset)} images in {self.seconds:.1f} s",
        }
        trained = training_seconds(workdir.read_metrics(folder), config.train.batch_size)
        if trained:
            fields["training"] = (
                f"{trained:.0f} s of steps" if trained < 120 else f"{trained / 60:.0f} min of steps"
            )
        return fields


def training_seconds(history: list[dict], batch_size: int) -> float:
    """How long the steps of `metrics.jsonl` took, by the rates that it has."""
    total, last = 0.0, 0
    for line in history:
        if line.get("images_per_second"):
            total += (line["step"] - last) * batch_size / line["images_per_second"]
            last = line["step"]
    return total


def evaluate_run(
    config: ConfigDict,
    dataset: Dataset,
    folder: Path,
    which: str,
    against: Against | None = None,
) -> Evaluator:
    """Score a checkpoint of the run in `folder` on its evaluation images, and write the scores."""
    loaded = inference.load(config, folder, which, dataset.num_classes)
    evaluator = Evaluator(loaded.detector, dataset)
    evaluator.score(loaded.weights)
    evaluator.write(folder, loaded.step, against)
    return evaluator
