"""Every fold trained and evaluated, all images scored together."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from jaxdet import InputError
from jaxdet.data import splits
from jaxdet.data.dataset import Dataset
from jaxdet.evaluation import scores
from jaxdet.evaluation.evaluate import Evaluator, truth_of
from jaxdet.ops.boxes import concatenate
from jaxdet.runs import lock
from jaxdet.runs.fields import Fields
from jaxdet.training.loop import train


def train_folds(
    config: ConfigDict,
    fields: Fields,
    builder: tfds.core.DatasetBuilder,
    dataset: Dataset,
    folder: Path,
    write: Callable[[Evaluator, Path, int], object],
) -> scores.Case:
    """Train fold k in `folder`/foldk; what the detectors find in the images they have not seen.

    Args:
        dataset: the split "train" of `builder`.
        write: called with what has scored a fold, its workdir and its last step.

    Raises:
        InputError: if the config names no folds, or one of them, or its ground truth, cannot be;
            before any is trained.
    """
    if config.data.split != "folds" or config.data.eval_split != "rest":
        raise InputError(
            "--mode=crossval: needs config.data.split=folds and config.data.eval_split=rest"
        )
    folds = []
    for fold in range(config.data.num_folds):
        fold_config = config.copy_and_resolve_references()
        fold_config.data.fold = fold
        sets = splits.train_and_eval(fold_config.data, builder, dataset)
        truth_of(sets[1], config.evaluation.ground_truth)  # only to see that there is one
        folds.append((fold_config, sets))
    ids, tables, truths, sizes, known = [], [], [], [], []
    for fold, (fold_config, sets) in enumerate(folds):
        print(f"fold {fold} of {config.data.num_folds}")
        with lock.held(folder / f"fold{fold}"):
            loaded, evaluator = train(fold_config, fields, dataset, *sets, folder / f"fold{fold}")
            write(evaluator, folder / f"fold{fold}", loaded.step)
        tables.append(evaluator.table)
        truths.append(evaluator.truth)
        ids += list(evaluator.dataset.ids)
        sizes.append(len(evaluator.dataset))
        known.append(evaluator.dataset.exhaustive)
    truth, detections = concatenate(truths, sizes), concatenate(tables, sizes)
    exhaustive = None if dataset.exhaustive is None else np.concatenate(known)
    method = config.evaluation.ground_truth
    named = ids, dataset.class_names, truth, method, detections
    return scores.Case(*named, exhaustive=exhaustive)
