"""What whoever gets a detector should know of it, filled in from the run."""

import json
from pathlib import Path

import flax
import jax
from ml_collections import ConfigDict

from jaxdet import InputError
from jaxdet.data.augment import AUGMENTATIONS
from jaxdet.data.splits import describe_eval_split
from jaxdet.doors import fields_of, takes
from jaxdet.inference.detector import Loaded
from jaxdet.models import BACKBONES, DETECTORS
from jaxdet.runs.workdir import Run

LOW = 0.1  # AP below which a class is named among the limits


def model_card(
    loaded: Loaded, run: Run, folder: Path, counts: tuple[int, int] | None, version: int
) -> str:
    """The text of `MODEL_CARD.md`.

    Args:
        folder: of the run, whose `evaluation.json` has the scores.
        counts: images trained on and evaluated on, where that is known.
        version: of jax.export's calling convention.

    Raises:
        InputError: if `evaluation.json` is not what this version writes.
    """
    config = loaded.detector.config
    began_from = run.began_from or config.model.init_from
    scores = _read_scores(folder / "evaluation.json")
    train, size = config.train, config.data.image_size
    number = sum(x.size for x in jax.tree.leaves(loaded.weights["params"]))
    images = f"{counts[0]} to train on, {counts[1]} to evaluate on" if counts else "not counted"
    facts = {
        "Network": f"{loaded.detector.describe()}; backbone {_backbone(config)}; "
        f"{number:,} parameters",
        "Input": f"uint8 (batch, {size}, {size}): 8 bits of gray, air black, the whole film "
        "squashed to a square (Pillow's bilinear resize)",
        "Output": "boxes (x1, y1, x2, y2) in pixels of the input, labels, scores, mask (False: "
        "padding), and normal, the score for no finding",
        "Scores kept": f"above {config.inference.score_threshold}, at most "
        f"{config.inference.max_detections} an image after NMS at {config.inference.nms_iou}",
        "Runs on": "cpu, cuda and tpu, with jax alone",
        "Made with": f"jax {jax.__version__}, flax {flax.__version__}; calling convention "
        f"{version} of jax.export",
    }
    data = {
        "Dataset": f"{config.data.name}, fingerprint {run.dataset}",
        "Images": f"{images} ({describe_eval_split(config.data)}); those trained on have the "
        f"fingerprint {run.training_images}",
        "Classes": ", ".join(run.class_names),
        "Labels trained on": f"readers' boxes by `{config.data.fusion}`",
    }
    training = {
        "Steps": f"{loaded.step} of {train.steps}, of {train.batch_size} images",
        "Optimiser": f"{train.optimizer}, learning rate {train.learning_rate:g}, weight decay "
        f"{train.weight_decay:g}, seed {config.seed}",
        "Started from": began_from or "random numbers",
        "Losses": f"{config.loss.class_loss} and {config.loss.box}{_matching(config)}",
        "Augmentation": _augmentation(config) or "none",
    }
    return "\n".join(
        [
            f"# Model card of {folder.absolute().name}, step {loaded.step}",
            "",
            "Finds abnormalities in frontal chest X-rays. For research: **not a medical device**, "
            "and no ground for a decision about a patient.",
            *_section("The detector", facts),
            *_section("Data", data),
            *_section("Training", training),
            "The whole of it is in the run's `config.json`.",
            *_scores(loaded, run, scores),
            "## Limits",
            "",
            *(f"- {limit}" for limit in _limits(loaded, run, scores)),
            "",
            "## Licence",
            "",
            "jaxdet is Apache-2.0. The weights were learned from the dataset above"
            + (f" and from {began_from}" if began_from else "")
            + ": whoever passes them on has to see what its terms allow.",
            "",
        ]
    )


def _backbone(config: ConfigDict) -> str:
    """Its name, and those fields that it takes."""
    backbone = config.model.backbone
    fields = fields_of(BACKBONES[backbone.name], backbone)
    said = [f"{name} {fields[name]}" for name in ("depth", "width", "norm") if name in fields]
    return ", ".join([backbone.name, *said])


def _matching(config) -> str:
    """How boxes are matched, where that is for the config to say."""
    if not takes(DETECTORS[config.model.name], "matcher"):
        return ""
    return f", boxes matched by {config.loss.matching}"


def _read_scores(path: Path) -> dict | None:
    """What an evaluation has written; None where there was none."""
    try:
        scores = json.loads(path.read_text())
        scores["checkpoint"], scores["AP"], scores["split"], scores["inference"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not an evaluation of this version: --mode=evaluate writes it anew"
        ) from error
    return scores


def _augmentation(config: ConfigDict) -> str:
    """What is applied, with its fields."""
    said = []
    for name in config.augment.apply:
        fields = fields_of(AUGMENTATIONS[name], config.augment)
        said.append(f"{name} ({', '.join(f'{field} {x}' for field, x in fields.items())})")
    return "; ".join(said)


def _section(title: str, facts: dict[str, str]) -> list[str]:
    return ["", f"## {title}", "", *(f"- {name}: {fact}" for name, fact in facts.items()), ""]


def _scores(loaded: Loaded, run: Run, scores: dict | None) -> list[str]:
    """The section of the scores."""
    if scores is None:
        return ["", "## Score", "", "Not evaluated: the run has no `evaluation.json`.", ""]
    interval = scores.get("95% interval") or {}

    def row(name, value, bounds):
        cells = ["-" if value is None else f"{value:.3f}"]
        cells.append(f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else "-")
        return f"| {name} | {' | '.join(cells)} |"

    lines = ["", "## Score", ""]
    if scores["checkpoint"] != loaded.step:
        lines += [f"**Of step {scores['checkpoint']}, not of the one exported.**", ""]
    own = json.loads(json.dumps(loaded.detector.config.inference.to_dict()))
    own["tta"] |= {"flip": False, "scales": []}  # one look is what is exported
    if scores["inference"] != own:
        lines += ["**Scored with other fields of `config.inference` than the file's.**", ""]
    lines += [
        f"Average precision (PASCAL VOC 2010) at IoU above 0.4 on {scores['num_images']} images "
        f"({scores['split']}), against the readers' boxes by `{scores['ground_truth']}`; intervals "
        "of 95 % from samples of the images.",
        "",
        "| | AP | interval |",
        "|---|---|---|",
    ]
    for name in ("mAP@0.4", f"mAP{len(run.class_names)}@0.4"):
        lines.append(row(name, scores[name], interval.get(name)))
    for name, value in scores["AP"].items():
        lines.append(row(name, value, (interval.get("AP") or {}).get(name)))
    return [*lines, ""]


def _limits(loaded: Loaded, run: Run, scores: dict | None) -> list[str]:
    """What it cannot do, or what nobody has tried."""
    config = loaded.detector.config
    limits = []
    if config.data.name == "tfds_vinbig/phantom":
        limits.append("Trained on drawings (the phantom): its scores say nothing of patients.")
    else:
        limits.append(
            "Scored on images of the data that it was trained on, kept apart. What it does on "
            "films of other hospitals, machines or patients has not been measured."
        )
    aps = {name: (scores or {"AP": {}})["AP"].get(name) for name in run.class_names}
    low = [f"{name} ({ap:.2f})" for name, ap in aps.items() if ap is not None and ap < LOW]
    unknown = [name for name, ap in aps.items() if ap is None]
    if low:
        limits.append(f"Finds hardly any of: {', '.join(low)}, by AP at IoU 0.4.")
    if unknown:
        limits.append(f"No score for {', '.join(unknown)}: none among the evaluation images.")
    limits += [
        f"Looks at {config.data.image_size} pixels a side: a finding of few pixels there is lost.",
        "Takes any picture for a frontal chest film, air black: inverted, lateral or cropped films "
        "give boxes as well, and wrong ones.",
        "A score is no probability; at which score a box is worth a look depends on the use.",
        "Any other finding than the classes above goes unseen.",
    ]
    if "affine" in config.augment.apply and config.augment.flip:
        limits.append("Trained with mirrored films: it does not tell a film that was turned over.")
    return limits
