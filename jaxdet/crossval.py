"""Cross-validation: every training image scored by the one model that has not seen it."""

import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxdet import InputError, checkpoint, submission
from jaxdet.boxes import BoxTable
from jaxdet.evaluate import evaluate, format_table, summarize
from jaxdet.train import train


def crossval(config: ConfigDict, workdir: Path) -> None:
    """Train and evaluate each fold in `workdir`/fold0, fold1, ..., then score all of them together.

    Writes `out_of_fold.csv`, a submission on the training images, and `evaluation.json`. Called
    again it goes on where it was stopped.

    Raises:
        InputError: unless `config.data` splits by folds.
    """
    if config.data.split != "folds" or config.data.eval_split != "rest":
        raise InputError(
            "--mode=crossval: needs config.data.split=folds and config.data.eval_split=rest"
        )
    ids, tables, truths = [], [], []
    for fold in range(config.data.num_folds):
        fold_config = config.copy_and_resolve_references()
        fold_config.data.fold = fold
        folder = workdir / f"fold{fold}"
        print(f"fold {fold} of {config.data.num_folds}")
        train(fold_config, folder)
        evaluator = evaluate(fold_config, folder)
        for part, whole in ((evaluator.table, tables), (evaluator.truth, truths)):
            whole.append(part._replace(image=part.image + len(ids)))
        ids += list(evaluator.dataset.ids)

    detections, truth = (
        BoxTable(*map(np.concatenate, zip(*parts, strict=True))) for parts in (tables, truths)
    )
    evaluation = config.evaluation
    scores = summarize(
        detections,
        truth,
        (0.4, *evaluation.more_iou_thresholds),
        len(ids),
        evaluation.ground_truth,
        evaluation.bootstrap_samples,
    )
    print(f"all {config.data.num_folds} folds")
    print(format_table(scores, truth))
    submission.write(workdir / "out_of_fold.csv", ids, detections)
    checkpoint.write_atomically(workdir / "evaluation.json", json.dumps(scores, indent=2) + "\n")
