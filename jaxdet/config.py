"""A config that cannot mislead: every field known, of the right type, and in its range."""

import json
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxdet import InputError

POSITIVE = (
    "data.image_size", "data.max_boxes", "data.num_folds", "data.num_workers",
    "model.width", "model.fpn_channels", "model.head_channels", "model.anchor_scales",
    "model.aspect_ratios", "model.num_scales", "model.num_ratios", "loss.atss_candidates",
    "train.steps", "train.batch_size", "train.learning_rate",
    "train.clip_norm", "train.log_every", "train.evaluate_every", "inference.pre_nms_top_k",
    "inference.max_detections", "evaluation.batch_size",
)  # fmt: skip
NOT_NEGATIVE = (
    "seed", "augment.scale", "augment.shift", "augment.rotate", "augment.brightness",
    "augment.contrast", "augment.gamma", "model.head_depth", "train.frozen_stages", "loss.gamma",
    "loss.box_weight", "loss.image_weight", "train.weight_decay", "train.warmup_steps",
    "train.backbone_lr_multiplier", "inference.image_power", "evaluation.bootstrap_samples",
)  # fmt: skip
SHARES = (
    "data.normal_share", "augment.flip", "augment.min_visible", "loss.foreground_iou",
    "loss.background_iou", "loss.alpha", "train.momentum", "train.ema_decay",
    "inference.score_threshold", "inference.nms_iou", "evaluation.more_iou_thresholds",
)  # fmt: skip


def check(config: ConfigDict, known: ConfigDict) -> None:
    """Check a config against one that has every field (that of `configs/retina.py`).

    Raises:
        InputError: naming the first field that is unknown, missing, of another type, or out of
            range.
    """
    _check_fields(config, known, "config")
    if config.model.num_classes != known.model.num_classes:
        raise InputError(
            f"config.model.num_classes: {config.model.num_classes}, but the data has "
            f"{known.model.num_classes}"
        )
    for fields, fits, wanted in (
        (POSITIVE, lambda x: x > 0, "above 0"),
        (NOT_NEGATIVE, lambda x: x >= 0, "0 or more"),
        (SHARES, lambda x: 0 <= x <= 1, "between 0 and 1"),
    ):
        for name in fields:
            section, _, field = name.rpartition(".")
            value = (config[section] if section else config)[field]
            if value == () and name != "evaluation.more_iou_thresholds":
                raise InputError(f"config.{name}: empty")
            for x in value if isinstance(value, tuple) else (value,):
                if x is not None and not fits(x):
                    raise InputError(f"config.{name}: {value} is not {wanted}")


def _check_fields(config, known, path):
    for name in config:
        if name not in known:
            raise InputError(f"{path}.{name}: no such field; there are {', '.join(sorted(known))}")
    for name, default in known.items():
        if name not in config:
            raise InputError(f"{path}.{name}: missing")
        value = config[name]
        if isinstance(default, ConfigDict):
            _check_fields(value, default, f"{path}.{name}")
        elif isinstance(value, tuple) and (default is None or isinstance(default, tuple)):
            number = int if name == "levels" else (int, float)
            if any(not isinstance(x, number) or isinstance(x, bool) for x in value):
                raise InputError(f"{path}.{name}: {value!r} has what is not a number, or not whole")
        elif default is not None and value is not None:
            accepted = (int, float) if isinstance(default, float) else type(default)
            if not isinstance(value, accepted) or isinstance(value, bool) != isinstance(
                default, bool
            ):
                raise InputError(
                    f"{path}.{name}: {value!r} is not of type {type(default).__name__}"
                )


ANCHORS = ("model.levels", "model.anchor_scales", "model.aspect_ratios")
# What decides which images a run learns from.
TRAINING_IMAGES = ("data.name", "data.split", "data.fold", "data.num_folds", "data.groups")


def with_anchors_of_run(config: ConfigDict, workdir: Path, same: Sequence[str] = ()) -> ConfigDict:
    """The config with the anchors that were planned for the run in `workdir`, where it has none.

    Args:
        same: further fields in which config and run must agree.

    Raises:
        InputError: if that run's config.json is missing or broken, or differs in anchors or in a
            field of `same`.
    """
    config = config.copy_and_resolve_references()
    path = workdir / "config.json"
    for name in (*ANCHORS, *same):
        section, _, field = name.rpartition(".")
        ours = config[section] if section else config
        try:
            run = json.loads(path.read_text())
            theirs = (run[section] if section else run)[field]
            theirs = tuple(theirs) if name in ANCHORS else theirs
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: cannot read {name} of the run ({error}); train first"
                + (f", or give --config.{name}" if name in ANCHORS else "")
            ) from error
        if name in ANCHORS and ours[field] is None:
            ours[field] = theirs
        elif ours[field] != theirs:
            raise InputError(
                f"config.{name}: {ours[field]!r}, but the run in {workdir} has {theirs!r}; "
                "give it as it was, or another --workdir"
            )
    return config
