"""What a config asks for that hardly anybody means: said before the first step."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict


def doubts(config: ConfigDict) -> list[str]:
    """A sentence for each setting that a run hardly learns with, though it may be meant."""
    model, train, found = config.model, config.train, []
    if train.warmup_steps >= train.steps:
        found.append(
            f"config.train.warmup_steps: {train.warmup_steps} of {train.steps} steps: the learning "
            f"rate never reaches {train.learning_rate:g}"
        )
    if model.init_from:
        return found
    backbone = model.backbone
    if stages := backbone.get("frozen_stages", 0):
        found.append(
            f"config.model.backbone.frozen_stages: {stages} parts of the backbone are random "
            "numbers that never learn: give config.model.init_from, or 0"
        )
    if backbone.get("norm", "") == "frozen_batch":
        found.append(
            "config.model.backbone.norm: frozen_batch keeps the statistics of weights that there "
            "are none of: give config.model.init_from, or another norm"
        )
    if train.get("backbone_lr_multiplier", 1.0) == 0:
        found.append(
            "config.train.backbone_lr_multiplier: 0 keeps a backbone of random numbers as it is: "
            "give config.model.init_from, or another number"
        )
    return found


def doubts_about_reach(
    reached: Bool[np.ndarray, "boxes"],
    labels: Int[np.ndarray, "boxes"],
    class_names: Sequence[str],
) -> list[str]:
    """A sentence where no box, or none of some classes, is reached at IoU 0.5."""
    none = [class_names[i] for i in np.unique(labels) if not reached[labels == i].any()]
    if not reached.any():
        said = f"none of the {len(reached)} training boxes"
    elif none:
        said = f"no training box of {', '.join(none)}"
    else:
        return []
    return [
        f"the anchors reach {said} at IoU 0.5: they are too large, too small or of another shape: "
        "leave config.model.levels, anchor_scales and aspect_ratios at None to have them planned"
    ]
