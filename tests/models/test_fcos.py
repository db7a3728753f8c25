"""FCOS against its rules in loops, and what it promises as a detector."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import fcos as config_of_fcos
from configs import phantom, retina
from jaxdet import models
from jaxdet.kernels.compilation import jit
from jaxdet.models.fcos import DISTANCES, FCOS, Outputs, centerness, match_locations
from jaxdet.ops.anchors import pyramid_anchors
from jaxdet.ops.boxes import Targets
from jaxdet.ops.matching import Priors
from jaxdet.runs import config as configs
from tests import networks

SIZE, LEVELS = (48, 64), (2, 3, 4)
PRIORS = Priors(pyramid_anchors(SIZE, LEVELS, (1.0,), (1.0,)), LEVELS, SIZE)
MOST = 5  # boxes of one shape, so that the rule is compiled once


@functools.cache
def matcher(radius):
    return jit(lambda boxes, mask: match_locations(PRIORS, boxes, mask, radius))


def in_loops(boxes, radius):
    """The rule of the papers, a location and a box at a time."""
    result = []
    for level in LEVELS:
        stride = 2**level
        lower = 0 if level == LEVELS[0] else 4 * stride
        upper = np.inf if level == LEVELS[-1] else 8 * stride
        for y in range(0, SIZE[0], stride):
            for x in range(0, SIZE[1], stride):
                fitting = []
                for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
                    sides = (x - x1, y - y1, x2 - x, y2 - y)
                    reach = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
                    if min(sides) > 0 and reach < radius * stride and lower < max(sides) < upper:
                        fitting.append(((x2 - x1) * (y2 - y1), index))
                result.append(min(fitting)[1] if fitting else -1)
    return result


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, MOST), st.sampled_from([1.5, 0.75]))
def test_matching_equals_the_rule_in_loops_and_ignores_padding(seed, real, radius):
    """Of boxes in half pixels, so that locations lie on borders and distances on bounds."""
    rng = np.random.default_rng(seed)
    x, y = (np.sort(rng.integers(0, 2 * side + 1, (MOST, 2))) / 2 for side in SIZE[::-1])
    boxes = np.stack([x[:, 0], y[:, 0], x[:, 1] + 0.5, y[:, 1] + 0.5], axis=1).astype("f")
    got = matcher(radius)(boxes, np.arange(MOST) < real)
    assert got.tolist() == in_loops(boxes[:real], radius)


def test_distances_by_hand_and_back():
    cell = jnp.array([[12.0, 20.0, 20.0, 28.0]])  # around (16, 24), of stride 8
    box = jnp.array([[4.0, 16.0, 24.0, 56.0]])
    np.testing.assert_array_equal(DISTANCES.encode(box, cell), [[1.5, 1.0, 1.0, 4.0]])
    np.testing.assert_array_equal(DISTANCES.decode(DISTANCES.encode(box, cell), cell), box)


def test_centerness_by_hand():
    distances = jnp.array([[2.0, 3, 2, 3], [1, 2, 4, 2], [1, 1, 9, 4], [0, 1, 1, 1]])
    np.testing.assert_allclose(centerness(distances), [1, 0.5, 1 / 6, 0], rtol=1e-6)


def model_of(loss=networks.LOSS, **fields):
    """A detector that holds shapes for parameters: for what needs none."""
    config = networks.model_config(name="fcos", **fields)
    return nnx.eval_shape(lambda: models.create(config, loss, 3, 64, models.keys(0)))


def batch(model, count=3):
    """Outputs for `count` images, and targets: of two boxes, of one, of none."""
    rng = np.random.default_rng(5)
    places = sum(map(len, model.priors().pyramid))
    outputs = Outputs(
        rng.normal(-2, 2, (count, places, 3)), rng.uniform(0, 3, (count, places, 4)),
        rng.normal(size=(count, places)), rng.normal(size=(count, 4)),
    )  # fmt: skip
    corner = rng.uniform(0, 24, (count, 2, 2))
    targets = Targets(
        np.concatenate([corner, corner + rng.uniform(12, 40, corner.shape)], -1),
        rng.integers(0, 3, (count, 2), np.int32), np.array([[1, 1 / 3]] * count),
        np.array([[True, True], [True, False], [False, False]]),
    )  # fmt: skip
    as_float32 = lambda x: jnp.array(x, "f" if x.dtype == "d" else x.dtype)  # noqa: E731
    return jax.tree.map(as_float32, (outputs, targets))


def test_losses_are_of_all_locations_of_the_batch():
    """As if its images were one: the one with a box more counts more. In plain NumPy, with boxes
    that weigh more and less."""
    model = model_of({**networks.LOSS, "center_radius": 2.0, "alpha": 0.4, "gamma": 1.0})
    outputs, targets = batch(model)
    targets = targets._replace(weights=jnp.array([[0.5, 1.0], [0.25, 1.0], [1.0, 1.0]]))
    got = jit(lambda *x: model.losses(*x))(outputs, targets)
    matches = np.asarray(jax.vmap(lambda t: match_locations(model.priors(), t.boxes, t.mask, 2.0))(
        targets))  # fmt: skip
    cells = np.concatenate(model.priors().pyramid)
    sums, positives = np.zeros(3), 0
    for i, place in np.ndindex(matches.shape):
        logits = np.asarray(outputs.class_logits[i, place], float)
        p, wanted, match = 1 / (1 + np.exp(-logits)), np.zeros(3), matches[i, place]
        weight = 1.0
        if match >= 0:
            weight = float(targets.weights[i, match])
            wanted[targets.labels[i, match]] = targets.soft_targets[i, match]
            positives += 1
            x1, y1, x2, y2 = b = np.asarray(targets.boxes[i, match], float)
            x, y = (cells[place, :2] + cells[place, 2:]) / 2
            stride = cells[place, 2] - cells[place, 0]
            left, top, right, bottom = outputs.distances[i, place] * stride
            a = np.array([x - left, y - top, x + right, y + bottom])
            width, height = (
                np.minimum(a, [x1, y1, x2, y2])[2:] - np.maximum(a, [x1, y1, x2, y2])[:2]
            )
            intersection = max(width, 0) * max(height, 0)
            union = (left + right) * (top + bottom) + (x2 - x1) * (y2 - y1) - intersection
            outer = np.maximum(a, b)[2:] - np.minimum(a, b)[:2]
            giou = intersection / union - (outer.prod() - union) / outer.prod()
            sums[1] += weight * (1 - giou)
            by_x = min(x - x1, x2 - x) / max(x - x1, x2 - x)
            by_y = min(y - y1, y2 - y) / max(y - y1, y2 - y)
            q = 1 / (1 + np.exp(-float(outputs.centerness_logits[i, place])))
            center = np.sqrt(by_x * by_y)
            sums[2] -= weight * (center * np.log(q) + (1 - center) * np.log(1 - q))
        entropy = -wanted * np.log(p) - (1 - wanted) * np.log(1 - p)
        focal = (0.4 * wanted + 0.6 * (1 - wanted)) * np.abs(wanted - p) * entropy
        sums[0] += weight * focal.sum()
    assert positives > 10 and len(set((matches >= 0).sum(axis=1))) == 3
    names = ("class_loss", "box_loss", "centerness_loss")
    np.testing.assert_allclose([got[name] for name in names], sums / positives, rtol=1e-4)
    total = got["class_loss"] + 2 * got["box_loss"] + got["centerness_loss"]
    np.testing.assert_allclose(got["loss"], total + 0.5 * got["image_loss"], rtol=1e-6)
    assert set(got) == {"loss", *names, "image_loss", "boxes_without_location"}


def test_boxes_that_teach_nothing_are_counted():
    """One between the locations has none; padding is no box."""
    model = model_of(image_head=False)
    outputs, targets = batch(model)
    boxes = targets.boxes.at[:].set(jnp.array([1.0, 1.0, 3.0, 3.0])).at[0, 0].set([8, 8, 40, 40])
    got = jit(lambda *x: model.losses(*x))(
        outputs._replace(image_logits=None), targets._replace(boxes=boxes)
    )
    assert "image_loss" not in got
    assert int(targets.mask.sum()) == 3 and int(got["boxes_without_location"]) == 2


def test_the_score_is_of_class_and_centerness():
    model = model_of()
    outputs, _ = batch(model)
    options = {"score_threshold": 0.0, "pre_nms_top_k": 9, "nms_iou": 1.0, "max_detections": 5}
    got = jit(lambda x: model.detections(x, **options))(outputs)
    sigmoid = lambda x: 1 / (1 + np.exp(-np.asarray(x)))  # noqa: E731
    scores = np.sqrt(sigmoid(outputs.class_logits) * sigmoid(outputs.centerness_logits)[..., None])
    for i in range(3):
        best = np.argsort(-scores[i], axis=None)[:5]
        np.testing.assert_allclose(got.scores[i], scores[i].ravel()[best], rtol=1e-5)
        assert got.labels[i].tolist() == (best % 3).tolist()
        cells = np.concatenate(model.priors().pyramid)[best // 3]
        boxes = DISTANCES.decode(outputs.distances[i, best // 3], jnp.array(cells))
        np.testing.assert_allclose(got.boxes[i], np.clip(boxes, 0, 64), atol=1e-4)
    np.testing.assert_allclose(got.normal, 1 - sigmoid(outputs.image_logits[:, -1]), rtol=1e-5)


def test_every_parameter_learns_and_distances_are_no_less_than_0():
    config = networks.model_config(name="fcos", head_norm="group")
    graphdef, weights = models.abstract(config, networks.LOSS, 3, 64)
    params, statistics = jax.tree.map_with_path(networks.fill, tuple(weights.values()))
    _, targets = batch(model_of())

    def loss(params):
        model = nnx.merge(graphdef, params, statistics, copy=True)
        outputs = model(jnp.array(networks.images(3)), train=True)
        return model.losses(outputs, targets)["loss"], outputs

    gradients, outputs = jit(jax.grad(loss, has_aux=True))(params)
    assert (outputs.distances >= 0).all() and (outputs.distances > 0).mean() > 0.2
    for name, gradient in networks.names(gradients).items():
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, name


@pytest.mark.slow
def test_no_side_of_a_box_is_without_a_gradient_at_first():
    """A ReLU that is 0 everywhere stays so."""
    config = networks.model_config(name="fcos", head_norm="group")
    model = models.create(config, networks.LOSS, 3, 64, nnx.Rngs(0))
    distances = model(jnp.array(networks.images(3)), train=False).distances
    assert ((distances > 0.5) & (distances < 2)).mean() > 0.95


def test_size_is_torchvisions():
    """32,269,600 without its frozen BatchNorm and with three input channels."""
    config = networks.model_config(
        name="fcos", fpn_channels=256, head_channels=256, head_depth=4, levels=(3, 4, 5, 6, 7),
        head_norm="group", image_head=False,
    )  # fmt: skip
    config["backbone"].update(depth=50, width=64, norm="frozen_batch")
    make = lambda: models.create(config, networks.LOSS, 91, 256, models.keys(0))  # noqa: E731
    params = nnx.state(nnx.eval_shape(make), nnx.Param)
    one_channel_instead_of_three = 2 * 64 * 7 * 7
    count = sum(x.size for x in jax.tree.leaves(params))
    assert count == 32_269_600 - one_channel_instead_of_three


def test_levels_are_planned_from_the_boxes_and_what_is_given_stays():
    """From P2 where many boxes lie between the locations of P3."""
    wide = np.tile([[0.0, 0.0, 30.0, 9.0]], (99, 1))
    narrow = np.array([[0.0, 0.0, 30.0, 7.0]])
    model = {"levels": None}
    for boxes, first in ((wide, 3), (np.concatenate([wide, narrow, narrow]), 2)):
        plan = FCOS.plan(model, boxes, np.zeros(len(boxes), int), 256)
        assert plan == {"levels": tuple(range(first, first + 5))}
    assert FCOS.plan({"levels": (4, 5)}, wide, np.zeros(99, int), 256) == {"levels": (4, 5)}


def test_configs_that_name_it_can_be_followed():
    fields = retina.get_fields()
    slim = phantom.get_config()
    slim.model.name = "fcos"
    for config, levels in (
        (slim, "P2, P3, P4, P5"),
        (config_of_fcos.get_config("512"), "P3, P4, P5"),
    ):
        configs.check(config, fields)
        model = nnx.eval_shape(
            lambda c=config: models.create(
                models.as_if_planned(c.model), c.loss, 14, c.data.image_size, models.keys(0)
            )
        )
        assert model.describe() == f"FCOS, levels {levels}, centre sampling within 1.5 strides"
