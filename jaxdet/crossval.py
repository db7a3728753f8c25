"""Every fold trained and evaluated, all images scored together."""

import json
from pathlib import Path

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from jaxdet import InputError, scores, splits, workdir
from jaxdet.boxes import concatenate
from jaxdet.dataset import Dataset
from jaxdet.report.evaluation import evaluation_page
from jaxdet.train import train


def train_folds(
    config: ConfigDict, builder: tfds.core.DatasetBuilder, dataset: Dataset, folder: Path
) -> scores.Case:
    """Train fold k in `folder`/foldk; what the detectors find in the images they have not seen.

    Args:
        dataset: the split "train" of `builder`.

    Raises:
        InputError: if the config names no folds, or one of them cannot be; before any is trained.
    """
    if config.data.split != "folds" or config.data.eval_split != "rest":
        raise InputError(
            "--mode=crossval: needs config.data.split=folds and config.data.eval_split=rest"
        )
    folds = []
    for fold in range(config.data.num_folds):
        fold_config = config.copy_and_resolve_references()
        fold_config.data.fold = fold
        folds.append((fold_config, splits.train_and_eval(fold_config.data, builder, dataset)))
    ids, tables, truths, sizes = [], [], [], []
    for fold, (fold_config, sets) in enumerate(folds):
        print(f"fold {fold} of {config.data.num_folds}")
        _, evaluator = train(fold_config, dataset, *sets, folder / f"fold{fold}")
        tables.append(evaluator.table)
        truths.append(evaluator.truth)
        ids += list(evaluator.dataset.ids)
        sizes.append(len(evaluator.dataset))
    truth, detections = concatenate(truths, sizes), concatenate(tables, sizes)
    return scores.Case(ids, dataset.class_names, truth, config.evaluation.ground_truth, detections)


def write_scores(case: scores.Case, config: ConfigDict, dataset: Dataset, folder: Path) -> None:
    """Print the scores of all folds; write `evaluation.json` and `report.html`."""
    evaluation = config.evaluation
    result = case.summarize(evaluation.more_iou_thresholds, evaluation.bootstrap_samples)
    result |= {"checkpoint": config.train.steps, "split": f"all {config.data.num_folds} folds"}
    print(result["split"])
    print(scores.format_table(result, case.truth))
    workdir.write_atomically(folder / "evaluation.json", json.dumps(result, indent=2) + "\n")
    page = evaluation_page(
        case, result, title=str(folder), dataset=dataset.of_ids(case.ids), config=config.to_dict(),
        about={"workdir": folder.absolute(), "dataset": config.data.name},
        bootstrap_samples=evaluation.bootstrap_samples,
    )  # fmt: skip
    workdir.write_atomically(folder / "report.html", page)
