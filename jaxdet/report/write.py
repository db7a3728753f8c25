"""The files of an evaluation: `evaluation.json` and `report.html`."""

import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxdet.data.dataset import Dataset
from jaxdet.data.splits import describe_eval_split
from jaxdet.evaluation import compare, scores
from jaxdet.evaluation.compare import Against
from jaxdet.evaluation.evaluate import Evaluator
from jaxdet.report.evaluation import evaluation_page
from jaxdet.runs import workdir


def write_evaluation(
    evaluator: Evaluator, folder: Path, step: int, against: Against | None = None
) -> dict:
    """Print the scores of the last detections; write `evaluation.json` and `report.html`."""
    config, case = evaluator.config, evaluator.case()
    evaluation, samples = config.evaluation.to_dict(), config.evaluation.bootstrap_samples
    result = {
        **evaluator.summarize(samples),
        "checkpoint": step,
        "split": describe_eval_split(config.data),
        "inference": config.inference.to_dict(),
    }
    print(f"checkpoint {step} in {folder}, {result['split']}")
    print(scores.format_table(result, case.truth))
    if against:
        result["against"] = compare.compare(case, *against, evaluation, samples)
        print(compare.format_table(result["against"]))
    workdir.write_atomically(folder / "evaluation.json", json.dumps(result, indent=2) + "\n")
    if jax.process_index() == 0:
        page = evaluation_page(
            case,
            result,
            title=str(folder),
            dataset=evaluator.dataset,
            other=against.table if against else None,
            history=workdir.read_metrics(folder),
            readers=workdir.read_readers(folder),
            about=_about(evaluator, folder),
            config=config.to_dict(),
        )
        workdir.write_atomically(folder / "report.html", page)
    return result


def write_crossval(case: scores.Case, config: ConfigDict, dataset: Dataset, folder: Path) -> None:
    """As `write_evaluation`, of all folds together."""
    evaluation = config.evaluation
    result = case.summarize(evaluation.to_dict(), evaluation.bootstrap_samples)
    result |= {"checkpoint": config.train.steps, "split": f"all {config.data.num_folds} folds"}
    print(result["split"])
    print(scores.format_table(result, case.truth))
    workdir.write_atomically(folder / "evaluation.json", json.dumps(result, indent=2) + "\n")
    page = evaluation_page(
        case, result, title=str(folder), dataset=dataset.of_ids(case.ids), config=config.to_dict(),
        about={"workdir": folder.absolute(), "dataset": config.data.name},
    )  # fmt: skip
    workdir.write_atomically(folder / "report.html", page)


def write_page(path: Path, case: scores.Case, result: dict[str, Any], **more: Any) -> None:
    """Write a report without a run; `more` is for `evaluation_page`."""
    workdir.write_atomically(path, evaluation_page(case, result, **more))


def _about(evaluator: Evaluator, folder: Path) -> dict[str, str]:
    """Facts about the run, for people."""
    config, (_, run) = evaluator.config, workdir.read_config(folder)
    fields = {
        "workdir": str(folder.absolute()),
        "dataset": f"{config.data.name}, fingerprint {run.dataset}",
        "trained on": f"images of fingerprint {run.training_images}, readers' boxes fused by "
        f"{config.data.fusion}",
        "started from": run.began_from or config.model.init_from or "random numbers",
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "detection": f"{len(evaluator.dataset)} images in {evaluator.seconds:.1f} s",
    }
    trained = training_seconds(workdir.read_metrics(folder), config.train.batch_size)
    if trained:
        fields["training"] = (
            f"{trained:.0f} s of steps" if trained < 120 else f"{trained / 60:.0f} min of steps"
        )
    return fields


def training_seconds(history: list[dict], batch_size: int) -> float:
    """Seconds spent on training steps, from the `images_per_second` of `metrics.jsonl`."""
    total, last = 0.0, 0
    for line in history:
        if line.get("images_per_second"):
            total += (line["step"] - last) * batch_size / line["images_per_second"]
            last = line["step"]
    return total
