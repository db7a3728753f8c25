"""A config that cannot mislead: every field known, of the right type, and in its range."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from jaxdet import InputError

POSITIVE = (
    "data.image_size", "data.max_boxes", "data.num_folds", "data.num_workers", "model.num_classes",
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
    "train.backbone_rate", "inference.image_power", "evaluation.bootstrap_samples",
)  # fmt: skip
SHARES = (
    "data.normal_share", "augment.flip", "augment.min_visible", "loss.foreground_iou",
    "loss.background_iou", "loss.alpha", "train.momentum", "train.average_decay",
    "inference.score_threshold", "inference.nms_iou", "evaluation.more_iou_thresholds",
)  # fmt: skip


def check(config: ConfigDict, known: ConfigDict) -> None:
    """Check a config against one that has every field (that of `configs/retina.py`).

    Raises:
        InputError: naming the first field that is unknown, missing, of another type, or out of
            range.
    """
    _check_fields(config, known, "config")
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
        elif default is not None and value is not None:
            accepted = (int, float) if isinstance(default, float) else type(default)
            if not isinstance(value, accepted) or isinstance(value, bool) != isinstance(
                default, bool
            ):
                raise InputError(
                    f"{path}.{name}: {value!r} is not of type {type(default).__name__}"
                )


def with_anchors_of_run(config: ConfigDict, workdir: Path) -> ConfigDict:
    """The config with the anchors that were planned for the run in `workdir`, where it has none.

    Raises:
        InputError: if that run's config.json is missing or broken.
    """
    config = config.copy_and_resolve_references()
    path = workdir / "config.json"
    for field in ("levels", "anchor_scales", "aspect_ratios"):
        if config.model[field] is None:
            try:
                config.model[field] = tuple(json.loads(path.read_text())["model"][field])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path}: cannot read model.{field} of the run ({error}); train first, or give "
                    f"--config.model.{field}"
                ) from error
    return config
