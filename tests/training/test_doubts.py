"""What is warned of before the first step."""

import numpy as np
import pytest

from configs import phantom, retina
from jaxdet.ops.boxes import Targets
from jaxdet.training.doubts import doubts, doubts_about_reach
from jaxdet.training.plan import plan_detector


def test_the_configs_that_come_with_it_are_not_doubted():
    assert doubts(retina.get_config()) == doubts(phantom.get_config()) == []


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("train.warmup_steps", 15_000, "15000 of 15000 steps: the learning rate never reaches"),
        ("model.backbone.frozen_stages", 5, "5 parts of the backbone are random numbers"),
        ("model.backbone.frozen_stages", 1, "1 parts of the backbone are random numbers"),
        ("model.backbone.norm", "frozen_batch", "frozen_batch keeps the statistics of weights"),
        ("train.backbone_lr_multiplier", 0.0, "0 keeps a backbone of random numbers as it is"),
    ],
)
def test_what_is_hardly_meant_is_said(field, value, said):
    config = retina.get_config()
    config.train.steps = 15_000
    config.update_from_flattened_dict({field: value})
    (doubt,) = doubts(config)
    assert doubt.startswith(f"config.{field}: {said}")
    config.model.init_from = "weights.pth"
    assert doubts(config) == ([doubt] if field == "train.warmup_steps" else [])


def test_boxes_out_of_reach():
    labels = np.array([0, 0, 2])
    names = ("Rib", "Heart", "Lung")
    assert doubts_about_reach(np.array([True, False, True]), labels, names) == []
    (doubt,) = doubts_about_reach(np.array([True, False, False]), labels, names)
    assert doubt.startswith("the anchors reach no training box of Lung at IoU 0.5: ")
    (doubt,) = doubts_about_reach(np.array([False, False, False]), labels, names)
    assert doubt.startswith("the anchors reach none of the 3 training boxes at IoU 0.5: ")


def test_they_are_said_before_the_first_step(config, capsys):
    """Anchors for pictures that are much larger."""
    config.model.anchor_scales = (16.0,)
    config.train.warmup_steps = config.train.steps
    boxes = np.tile(np.float32([10, 10, 20, 20]), (1, 2, 1))
    ones = np.ones((1, 2), np.float32)
    targets = Targets(boxes, np.zeros((1, 2), np.int32), soft_targets=ones, mask=ones > 0)
    plan_detector(config, targets, ("Rib",) * 14)
    one, other = capsys.readouterr().err.splitlines()
    assert one.startswith("warning: config.train.warmup_steps: 4 of 4 steps")
    assert other.startswith("warning: the anchors reach none of the 2 training boxes")
