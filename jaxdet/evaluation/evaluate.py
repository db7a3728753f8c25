"""The evaluation split, scored at every evaluation."""

import time
from collections.abc import Callable

from flax import nnx

from jaxdet import ConfigError, InputError
from jaxdet.data.batches import Images
from jaxdet.data.dataset import Dataset
from jaxdet.evaluation import scores
from jaxdet.inference.detector import Detector, to_table
from jaxdet.ops.boxes import BoxTable
from jaxdet.runs import parallel


def truth_of(dataset: Dataset, method: str) -> BoxTable:
    """The ground truth of a dataset in original pixels, see `scores.ground_truth`.

    Raises:
        ConfigError: if there is none by that method of what the readers of these images drew.
    """
    rows = dataset.annotations
    columns = rows.image, rows.labels, rows.readers, rows.boxes
    try:
        return scores.ground_truth(method, *columns, dataset.num_classes)
    except InputError as error:
        raise ConfigError("evaluation.ground_truth", str(error)) from error


class Evaluator:
    """Runs a detector on the evaluation images and scores what it detects.

    Args:
        keep: whether the images are kept in memory, where they fit. Else they are decoded while the
            detector works: what is scored only once, needs no more.
        beside: bytes of the training images, which are kept first.

    Attributes:
        dataset: the images.
        truth: the ground truth in original pixels.
        table: the detections of the last call of `score` in original pixels.
        seconds: how long the last call spent on detection.
    """

    def __init__(self, detector: Detector, dataset: Dataset, keep: bool = False, beside: int = 0):
        self.detector, self.dataset = detector, dataset
        self.config = detector.config
        self.truth = truth_of(dataset, self.config.evaluation.ground_truth)
        # The images of this process.
        mine = parallel.local_positions(len(dataset), self.config.evaluation.batch_size).ravel()
        mine = mine[mine >= 0]
        size = self.config.data.image_size
        self.images = Images(dataset.take(mine), size, "evaluate", keep, beside)
        self.row = {int(image): row for row, image in enumerate(mine)}
        self.table, self.seconds = None, 0.0

    def score(
        self,
        weights: dict[str, nnx.State],
        bootstrap_samples: int = 0,
        between: Callable[[], None] = lambda: None,
    ) -> dict:
        """Detect and score, see `Case.summarize`; `between` is called after each batch."""
        start = time.perf_counter()
        detections = self.detector.detect_all(
            weights, lambda i: self.images[self.row[i]], len(self.dataset), between
        )
        self.seconds = time.perf_counter() - start
        self.table = to_table(
            detections,
            self.dataset.sizes,
            self.config.data.image_size,
            self.dataset.num_classes,
        )
        return self.summarize(bootstrap_samples)

    def summarize(self, bootstrap_samples: int = 0) -> dict:
        """The scores of the last detections."""
        return self.case().summarize(self.config.evaluation.to_dict(), bootstrap_samples)

    def case(self) -> scores.Case:
        """The last detections and the ground truth."""
        return scores.Case(
            list(map(str, self.dataset.ids)),
            self.dataset.class_names,
            self.truth,
            self.config.evaluation.ground_truth,
            self.table,
            exhaustive=self.dataset.exhaustive,
        )
