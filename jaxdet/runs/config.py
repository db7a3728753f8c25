"""A config that cannot mislead: its fields known, of their type, in their range, and the run's."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxdet import InputError, models
from jaxdet.ops import fusion
from jaxdet.runs import workdir

# Fields that None has a meaning for.
NULLABLE = ("data.normal_share", "model.levels", "model.anchor_scales", "model.aspect_ratios")
POSITIVE = (
    "data.image_size", "data.num_folds", "data.num_workers",
    "model.backbone.width", "model.fpn_channels", "model.head_channels", "model.anchor_scales",
    "model.aspect_ratios", "model.num_scales", "model.num_ratios", "loss.atss_candidates",
    "train.steps", "train.batch_size", "train.learning_rate", "train.clip_norm",
    "train.log_every", "train.checkpoint_every", "train.evaluate_every", "train.max_skipped_steps",
    "inference.pre_nms_top_k", "inference.max_detections", "inference.tta.scales",
    "evaluation.batch_size",
)  # fmt: skip
NOT_NEGATIVE = (
    "seed", "augment.scale", "augment.shift", "augment.rotate", "augment.brightness",
    "augment.contrast", "augment.gamma", "model.head_depth", "loss.gamma", "loss.box_weight",
    "loss.image_weight", "train.weight_decay", "train.warmup_steps",
    "train.backbone_lr_multiplier", "evaluation.bootstrap_samples",
)  # fmt: skip
SHARES = (
    "data.normal_share", "augment.flip", "augment.min_visible", "loss.foreground_iou",
    "loss.background_iou", "loss.alpha", "train.momentum", "train.ema_decay",
    "inference.score_threshold", "inference.nms_iou", "evaluation.more_iou_thresholds",
)  # fmt: skip
MAY_BE_EMPTY = ("inference.tta.scales", "evaluation.more_iou_thresholds")
# The most of what would take gigabytes, or for ever, where somebody mistypes it.
MOST = {
    "seed": 2**31 - 1, "data.image_size": 8192, "data.num_workers": 256,
    "model.backbone.width": 1024, "model.levels": 10, "model.fpn_channels": 4096,
    "model.head_channels": 4096, "model.head_depth": 64, "model.num_scales": 16,
    "model.num_ratios": 16,
    "loss.atss_candidates": 1000, "train.steps": 2**31 - 1, "train.warmup_steps": 2**31 - 1,
    "train.batch_size": 65_536, "inference.pre_nms_top_k": 65_536,
    "inference.max_detections": 65_536, "evaluation.batch_size": 65_536,
    "evaluation.bootstrap_samples": 1_000_000,
}  # fmt: skip
CHOICES = {**models.CHOICES, "train.optimizer": ("adamw", "sgd")}
# What may differ from the run's, since it does not change what the run is.
FREE = (
    "data.dir", "data.cache", "data.num_workers", "data.eval_split", "inference.", "evaluation.",
    "train.log_every", "train.checkpoint_every", "train.evaluate_every", "train.max_skipped_steps",
    "model.backbone.remat",
)  # fmt: skip


def fields(config: ConfigDict | dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("data.name", value), ... of all fields; lists, as JSON has them, as tuples."""
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, tuple(value) if isinstance(value, list) else value


def check(config: ConfigDict, known: ConfigDict) -> None:
    """Check a config against one that has every field (that of `configs/retina.py`).

    Raises:
        InputError: naming the first field that is unknown, missing, of another type, or has a value
            that it may not have.
    """
    ours, theirs = dict(fields(config)), dict(fields(known))
    for name in ours:
        if name not in theirs:
            section = name.rpartition(".")[0]
            there = ", ".join(sorted(n for n in theirs if n.rpartition(".")[0] == section))
            raise InputError(f"config.{name}: no such field; there are {there}")
    for name, default in theirs.items():
        if name not in ours:
            raise InputError(f"config.{name}: missing")
        _check_type(name, ours[name], default)
    for names, fits, wanted in (
        (POSITIVE, lambda x: x > 0, "above 0"),
        (NOT_NEGATIVE, lambda x: x >= 0, "0 or more"),
        (SHARES, lambda x: 0 <= x <= 1, "between 0 and 1"),
    ):
        for name in names:
            value = ours[name]
            if value == () and name not in MAY_BE_EMPTY:
                raise InputError(f"config.{name}: empty")
            for x in value if isinstance(value, tuple) else (value,):
                if x is not None and not fits(x):
                    raise InputError(f"config.{name}: {value} is not {wanted}")
    for name, value in ours.items():
        for x in value if isinstance(value, tuple) else (value,):
            if isinstance(x, float) and not math.isfinite(x):
                raise InputError(f"config.{name}: {x} is not finite")
            if x is not None and name in MOST and x > MOST[name]:
                raise InputError(f"config.{name}: {x} is above {MOST[name]}")
    for name, choices in CHOICES.items():
        if ours[name] not in choices:
            raise InputError(
                f"config.{name}: {ours[name]!r} is not one of {', '.join(map(repr, choices))}"
            )
    planned = {"levels": (3, 4, 5), "anchor_scales": (1.0,), "aspect_ratios": (1.0,)}
    try:  # the network says what it cannot follow
        model = {k: planned[k] if v is None else v for k, v in config.model.items()}
        models.abstract(model, config.loss, 1, config.data.image_size)
    except ValueError as error:
        raise InputError(f"config.{error}") from error
    for name in ("data.fusion", "evaluation.ground_truth", "inference.tta.fusion"):
        try:
            method = fusion.parse(ours[name])
        except InputError as error:
            raise InputError(f"config.{name}: {error}") from error
    if method.name not in ("wbf", "nms"):
        raise InputError(f"config.inference.tta.fusion: {ours[name]!r} is not wbf@IOU or nms@IOU")
    for scale in ours["inference.tta.scales"]:
        if not 32 <= scale * config.data.image_size <= 8192:
            raise InputError(
                f"config.inference.tta.scales: {scale} makes no image of 32 to 8192 pixels"
            )


def _check_type(name: str, value: Any, default: Any) -> None:
    if value is None:
        if name not in NULLABLE:
            raise InputError(f"config.{name}: None has no meaning here")
    elif default is None or isinstance(default, tuple):
        if not isinstance(value, tuple):
            raise InputError(f"config.{name}: {value!r} is not several numbers, such as (1,2)")
        number = int if name == "model.levels" else (int, float)
        if any(not isinstance(x, number) or isinstance(x, bool) for x in value):
            raise InputError(f"config.{name}: {value!r} has what is not a number, or not whole")
    else:
        accepted = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, accepted) or isinstance(value, bool) != isinstance(default, bool):
            raise InputError(f"config.{name}: {value!r} is not of type {type(default).__name__}")


def of_run(folder: Path, known: ConfigDict) -> ConfigDict:
    """The config of the run in `folder`, with the types of `known`.

    Raises:
        InputError: if its `config.json` is missing, broken, or of another version.
    """
    sections, _ = workdir.read_config(folder)
    config = known.copy_and_resolve_references()
    saved = dict(fields(sections))
    for name, _ in fields(known):
        if name not in saved and name.startswith(FREE):
            continue  # of an earlier version, and no part of what the run is
        if name not in saved:
            raise InputError(f"{folder / 'config.json'}: lacks {name}: it is of another version")
        section, _, field = name.rpartition(".")
        with config.ignore_type():
            _section(config, section)[field] = saved[name]
    return config


def as_run(config: ConfigDict, folder: Path) -> ConfigDict:
    """The config with what was planned for the run in `folder`, if it is that run's.

    Raises:
        InputError: naming the first field in which the two differ, but for those of `FREE`, and
            `train.steps`, which may grow.
    """
    sections, run = workdir.read_config(folder)
    saved = dict(fields(sections))
    config = config.copy_and_resolve_references()
    for name, value in fields(config):
        section, _, field = name.rpartition(".")
        if name.startswith(FREE):
            continue
        if value is None and name in run.planned:
            _section(config, section)[field] = saved[name]
        elif name not in saved:
            raise InputError(f"{folder / 'config.json'}: lacks {name}: it is of another version")
        elif value != saved[name] and not (name == "train.steps" and value > saved[name]):
            raise InputError(
                f"config.{name}: {value!r}, but the run in {folder} has {saved[name]!r}; "
                "give that, or another --workdir"
            )
    return config


def _section(config: ConfigDict, name: str) -> ConfigDict:
    for part in filter(None, name.split(".")):
        config = config[part]
    return config
