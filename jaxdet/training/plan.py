"""What a detector wants to know of the training boxes before it is made, such as its anchors."""

import sys

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxdet import InputError, models
from jaxdet.ops.boxes import Targets
from jaxdet.runs.config import set_field
from jaxdet.training.doubts import doubts, doubts_about_reach


def plan_detector(
    config: ConfigDict, targets: Targets, class_names: tuple[str, ...]
) -> tuple[ConfigDict, list[str]]:
    """The config with what the detector plans from the training boxes, and which fields those are.

    Says what the detector is, and, if it knows, how many boxes of each class it can reach: matched
    by IoU, the others learn from poor matches. Warns of what the config hardly means.

    Raises:
        InputError: if there are no boxes.
    """
    config = config.copy_and_resolve_references()
    boxes, labels = targets.boxes[targets.mask], targets.labels[targets.mask]
    if not len(boxes):
        raise InputError("config.data.split: the training images have no boxes to learn from")
    plan = models.DETECTORS[config.model.name].plan(
        config.model, boxes, labels, config.data.image_size
    )
    planned = [f"model.{name}" for name in plan if config.model[name] is None]
    for name, value in plan.items():
        set_field(config, f"model.{name}", value)

    model = abstract_detector(config, len(class_names))
    print(model.describe())
    found = doubts(config)
    if hasattr(model, "reach"):
        reached = model.reach(boxes) >= 0.5
        asked = " (ATSS asks for none)" if config.loss.matching == "atss" else ""
        print(
            f"anchors reach {reached.mean():.1%} of {len(boxes)} training boxes at IoU 0.5{asked}:"
        )
        for label in np.unique(labels):
            mine = reached[labels == label]
            print(f"  {class_names[label]:<20} {mine.mean():6.1%} of {len(mine)}")
        if config.loss.matching != "atss" or not reached.any():
            found += doubts_about_reach(reached, labels, class_names)
    for doubt in found if jax.process_index() == 0 else ():
        print(f"warning: {doubt}", file=sys.stderr)
    return config, planned


def abstract_detector(config: ConfigDict, num_classes: int) -> nnx.Module:
    """The detector of a config without any weights, to ask what it is."""
    sections = config.model, config.loss, num_classes, config.data.image_size
    graphdef, abstract = models.abstract(*sections)
    return nnx.merge(graphdef, *abstract.values())
