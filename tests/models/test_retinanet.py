"""RetinaNet's losses and detections, against the same rules in plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet import models
from jaxdet.kernels.compilation import jit
from jaxdet.models.retinanet import Outputs, detections_of_image
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.anchors import pyramid_anchors
from jaxdet.ops.box_coder import BOX_CODERS
from jaxdet.ops.boxes import Targets
from jaxdet.ops.losses import BOX_LOSSES, anchor_losses, focal_loss, image_loss
from jaxdet.ops.matching import Priors, match_anchors, match_anchors_atss
from jaxdet.ops.nms import top_k
from tests import networks

SIZE = (32, 48)
PYRAMID = pyramid_anchors(SIZE, (3, 4), (1.0, 2.0), (0.5, 1.0))
NUM_ANCHORS = sum(map(len, PYRAMID))
OPTIONS = {"score_threshold": 0.3, "pre_nms_top_k": 40, "nms_iou": 0.4, "max_detections": 12}
PRIORS = Priors(PYRAMID, (3, 4), SIZE)
select = jit(
    lambda *of_image: detections_of_image(
        Outputs(*of_image), PRIORS, BOX_CODERS["deltas"], **OPTIONS
    )
)


def reference(logits, offsets, score_threshold, pre_nms_top_k, nms_iou, max_detections):
    """The same rule in loops: top-k of each level, decode, clip, greedy NMS by class."""
    candidates, start = [], 0
    for anchors in PYRAMID:
        pairs = []
        for a in range(start, start + len(anchors)):
            x1, y1, x2, y2 = anchors[a - start].tolist()
            dx, dy, dw, dh = offsets[a].tolist()
            w, h = (x2 - x1) * np.exp(dw), (y2 - y1) * np.exp(dh)
            x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
            box = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, [48, 32, 48, 32])
            for c, logit in enumerate(logits[a].tolist()):
                score = 1 / (1 + np.exp(-logit))
                if score > score_threshold:
                    pairs.append((score, c, box))
        candidates += sorted(pairs, key=lambda p: -p[0])[:pre_nms_top_k]
        start += len(anchors)
    kept = []
    for score, c, box in sorted(candidates, key=lambda p: -p[0]):
        overlaps = [
            box_ops.iou(box[None], other[None])[0] for _, label, other in kept if label == c
        ]
        if max(overlaps, default=0) <= nms_iou:
            kept.append((score, c, box))
    return kept[:max_detections]


def random_outputs(seed, count=NUM_ANCHORS, classes=3):
    rng = np.random.default_rng(seed)
    logits = rng.normal(-2, 2, (count, classes)).astype("f")
    return logits, rng.normal(0, 0.4, (count, 4)).astype("f")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True])
def test_detections_equal_the_rule_in_loops(seed, ties):
    """Of equal scores too, where the first pair of anchor and class counts as better."""
    logits, offsets = random_outputs(seed)
    if ties:
        logits = logits.round()
    got = select(logits, offsets, None)
    expected = reference(logits, offsets, **OPTIONS)
    assert got.mask.sum() == len(expected) > 5
    assert got.normal == 1 - got.scores[0]
    for i, (score, label, box) in enumerate(expected):
        assert got.mask[i] and got.labels[i] == label
        np.testing.assert_allclose(got.scores[i], score, rtol=1e-5)
        np.testing.assert_allclose(got.boxes[i], box, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 4), st.integers(1, 60))
def test_the_best_are_found_group_by_group(n, k, group, values):
    """Of equal ones the first, as of `jax.lax.top_k`."""
    x = jnp.asarray(np.random.default_rng(n).integers(0, values, n), jnp.float32)
    k = min(k, n)
    for ours, theirs in zip(top_k(x, k, group + 1), jax.lax.top_k(x, k), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_nothing_above_the_threshold_is_nothing():
    got = select(np.full((NUM_ANCHORS, 3), -9.0, "f"), np.zeros((NUM_ANCHORS, 4), "f"), None)
    assert not got.mask.any() and got.boxes.shape == (12, 4)


def test_the_image_head_says_how_normal_the_image_is():
    """Its last logit is of any finding; boxes and their scores are as without."""
    logits, offsets = random_outputs(0)
    got = select(logits, offsets, np.array([-1.0, 0.5, 3, 0.25], "f"))
    for mine, theirs in zip(got[:4], select(logits, offsets, None)[:4], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_allclose(got.normal, 1 - 1 / (1 + np.exp(-0.25)), rtol=1e-6)


def model_of(loss=networks.LOSS, **fields):
    """A detector that holds shapes for parameters: for what needs none."""
    config = networks.model_config(**fields)
    return nnx.eval_shape(lambda: models.create(config, loss, 3, 64, models.keys(0)))


def batch(anchors, count=3):
    """Outputs for `count` images; one has two boxes, one has one, one none."""
    rng = np.random.default_rng(5)
    logits, offsets = zip(*(random_outputs(i, len(anchors)) for i in range(count)), strict=True)
    image_logits = rng.normal(size=(count, 4)).astype("f")
    corner = rng.uniform(0, 30, (count, 2, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 30, corner.shape)], -1).astype("f")
    labels = rng.integers(0, 3, (count, 2))
    scores = np.array([[1, 1 / 3]] * count, "f")
    mask = np.array([[True, True], [True, False], [False, False]])
    outputs = Outputs(np.stack(logits), np.stack(offsets), image_logits)
    return jax.tree.map(jnp.array, (outputs, Targets(boxes, labels, scores, mask)))


@pytest.mark.parametrize("matching,box", [("atss", "giou"), ("iou", "l1")])
def test_losses_are_the_means_of_the_images_and_their_weighted_sum(matching, box):
    loss = {
        **networks.LOSS, "matching": matching, "box": box, "foreground_iou": 0.3,
        "background_iou": 0.2, "atss_candidates": 4, "alpha": 0.4, "gamma": 1.5,
    }  # fmt: skip
    model = model_of(loss)
    pyramid = model.priors().pyramid
    anchors = jnp.array(np.concatenate(pyramid))
    given = batch(anchors)
    parts = {"class_loss": [], "box_loss": [], "image_loss": []}

    @jit
    def of_image(outputs, targets):
        boxes, mask = targets.boxes, targets.mask
        if matching == "iou":
            matches = match_anchors(anchors, boxes, mask, 0.3, 0.2)
        else:
            matches = match_anchors_atss(model.priors(), boxes, mask, 4)
        losses = anchor_losses(
            outputs.class_logits, outputs.box_offsets, anchors, matches, targets,
            class_loss=functools.partial(focal_loss, alpha=0.4, gamma=1.5),
            box_loss=BOX_LOSSES[box],
        )  # fmt: skip
        return *losses, image_loss(outputs.image_logits, targets)

    for i in range(3):
        values = of_image(*jax.tree.map(lambda x, i=i: x[i], given))
        for name, value in zip(parts, values, strict=True):
            parts[name].append(value)
    got = jit(model.losses)(*given)
    assert set(got) == {"loss", *parts, "boxes_without_anchor"}
    for name, values in parts.items():
        np.testing.assert_allclose(got[name], np.mean(values), rtol=1e-5)
    weighted = got["class_loss"] + 2 * got["box_loss"] + 0.5 * got["image_loss"]
    np.testing.assert_allclose(got["loss"], weighted, rtol=1e-6)


def test_without_an_image_head_there_is_no_image_loss():
    model = model_of(image_head=False)
    assert model.image_head is None
    outputs, targets = batch(np.concatenate(model.priors().pyramid))
    got = jit(model.losses)(outputs._replace(image_logits=None), targets)
    assert set(got) == {"loss", "class_loss", "box_loss", "boxes_without_anchor"}


def test_boxes_that_teach_nothing_are_counted():
    """By ATSS a box between the anchors' centres has none; padding is no box."""
    model = model_of()
    outputs, targets = batch(np.concatenate(model.priors().pyramid))
    boxes = targets.boxes.at[:].set(jnp.array([1.0, 1.0, 3.0, 3.0])).at[0, 0].set([8, 8, 40, 40])
    got = jit(model.losses)(outputs, targets._replace(boxes=boxes))
    assert int(targets.mask.sum()) == 3 and int(got["boxes_without_anchor"]) == 2


def test_detections_of_a_batch_are_those_of_each_image():
    model = model_of()
    outputs, _ = batch(np.concatenate(model.priors().pyramid))
    got = jit(lambda x: model.detections(x, **OPTIONS))(outputs)
    assert got.mask.any(axis=1).all()
    one = jit(lambda x: detections_of_image(x, model.priors(), model.box_coder, **OPTIONS))
    for i in range(3):
        expected = one(jax.tree.map(lambda x, i=i: x[i], outputs))
        for mine, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(mine[i], theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", networks.BACKBONES)
def test_every_parameter_learns_but_the_frozen(kind):
    """Nothing, the stem, or the first stage too; the statistics of BatchNorm as well."""
    frozen_stages = {"batch": 2, "group": 0}.get(kind, 1)
    graphdef, _ = networks.abstract(kind, frozen_stages=frozen_stages)
    _, params, statistics = networks.detector(kind)
    boxes = jnp.array([[[10.0, 12, 40, 44], [30, 5, 60, 21]], [[2, 2, 20, 20], [0, 0, 0, 0]]])
    labels, scores = jnp.array([[0, 3], [1, 0]]), jnp.ones((2, 2))
    mask = jnp.array([[True, True], [True, False]])

    def loss(params):
        model = nnx.merge(graphdef, params, statistics, copy=True)
        outputs = model(jnp.array(networks.images()), train=True)
        loss = model.losses(outputs, Targets(boxes, labels, scores, mask))["loss"]
        return loss, models.split(model)[2]

    gradients, after = jit(jax.grad(loss, has_aux=True))(params)
    frozen = models.frozen_parameters(frozen_stages)
    for name, gradient in networks.names(gradients).items():
        assert np.isfinite(gradient).all()
        assert (np.abs(gradient).max() == 0) == name.startswith(frozen), name
    before = networks.names(statistics)
    for name, value in networks.names(after).items():
        same = np.array_equal(value, before[name])
        assert same == (name.startswith(frozen) or "/ones/" in name), name
