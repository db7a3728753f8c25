import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.doors import choose
from jaxdet.ops import box_coder
from jaxdet.ops.boxes import Targets, giou
from jaxdet.ops.losses import (
    BOX_LOSSES,
    CLASS_LOSSES,
    anchor_losses,
    image_loss,
    sigmoid_focal,
    varifocal,
)
from jaxdet.ops.matching import BACKGROUND, IGNORED


def test_focal_equals_optax():
    rng = np.random.default_rng(0)
    logits = jnp.array(rng.normal(0, 4, (50, 14)), jnp.float32)
    targets = jnp.array(rng.integers(0, 2, (50, 14)), jnp.float32)
    expected = optax.sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0)
    np.testing.assert_allclose(sigmoid_focal(logits, targets), expected, rtol=2e-5, atol=1e-7)


def test_the_gradient_of_focal_is_that_of_its_formula():
    def formula(logits, targets, alpha, gamma):
        weight = alpha * targets + (1 - alpha) * (1 - targets)
        error = jnp.abs(targets - jax.nn.sigmoid(logits))
        return weight * error**gamma * optax.sigmoid_binary_cross_entropy(logits, targets)

    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        logits = jnp.array(rng.normal(0, 8, 500))
        targets = jnp.array(rng.choice([0, 0.3, 2 / 3, 1], 500))
        for numbers in ((0.25, 2.0), (0.7, 1.5), (0.5, 0.0)):
            ours, theirs = (
                jax.grad(lambda x, f=f, n=numbers: f(x, targets, *n).sum())(logits)
                for f in (sigmoid_focal, formula)
            )
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
        # Where the probability is the target, and where it is as far as can be.
        edges = jnp.array([0.0, 1e4, -1e4]), jnp.array([0.5, 0.0, 1.0])
        slopes = jax.vmap(jax.grad(sigmoid_focal))(*edges)
        np.testing.assert_allclose(slopes, [0, 0.75, -0.25])


def test_focal_is_finite_where_the_probability_is_not():
    loss, grad = jax.value_and_grad(lambda x: sigmoid_focal(x, jnp.ones(1)).sum())(
        jnp.array([-200.0])
    )
    np.testing.assert_allclose(loss, 0.25 * 200)
    assert np.isfinite(grad).all()


def test_a_soft_target_is_where_focal_is_least():
    logits = jnp.linspace(-4, 4, 801)
    for target in (1 / 3, 2 / 3):
        loss = sigmoid_focal(logits, jnp.full(801, target))
        assert abs(jax.nn.sigmoid(logits[loss.argmin()]) - target) < 0.005


ANCHORS = jnp.array([[0.0, 0, 10, 10], [10, 10, 30, 30], [5, 5, 9, 9], [40, 40, 50, 60]])
BOXES = jnp.array([[1.0, 1, 11, 9], [0, 0, 0, 0]])  # the second is padding
LABELS = jnp.array([1, 0])
SCORES = jnp.array([1.0, 0.0])


@functools.cache
def compiled(class_loss="focal", box_loss="l1", **options):
    entries = {
        "class_loss": choose(CLASS_LOSSES, class_loss, options),
        "box_loss": BOX_LOSSES[box_loss],
    }
    return jax.jit(functools.partial(anchor_losses, **entries))


def loss_of(logits, offsets, matches, scores=SCORES, **options):
    matches = jnp.array(matches)
    targets = Targets(BOXES, LABELS, scores, jnp.array([True, False]))
    return compiled(**options)(logits, offsets, ANCHORS, matches, targets)


def test_loss_by_hand():
    rng = np.random.default_rng(1)
    logits, offsets = (jnp.array(rng.normal(size=(4, n)), jnp.float32) for n in (3, 4))
    loss = loss_of(logits, offsets, [0, BACKGROUND, IGNORED, 0])
    targets = np.zeros((4, 3))
    targets[[0, 3], 1] = 1
    focal = np.asarray(optax.sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0))
    np.testing.assert_allclose(loss.class_loss, focal[[0, 1, 3]].sum() / 2, rtol=1e-5)
    wanted = box_coder.encode(BOXES[jnp.array([0, 0])], ANCHORS[jnp.array([0, 3])])
    error = np.abs(np.asarray(offsets)[[0, 3]] - wanted).sum()
    np.testing.assert_allclose(loss.box_loss, error / 2, rtol=1e-5)


def test_losses_weigh_as_the_boxes_that_anchors_answer_for():
    """Class and box loss of an anchor; background weighs 1, and the number of anchors stays."""
    rng = np.random.default_rng(2)
    logits, offsets = (jnp.array(rng.normal(size=(4, n)), jnp.float32) for n in (3, 4))
    targets = Targets(BOXES, LABELS, jnp.ones(2), jnp.array([True, True]))

    def loss(matches, weights):
        weighted = targets._replace(weights=None if weights is None else jnp.array(weights))
        given = logits, offsets, ANCHORS, jnp.array(matches), weighted
        return np.array(compiled(box_loss="giou")(*given))

    matches = [0, BACKGROUND, IGNORED, 1]
    plain = loss(matches, None)
    np.testing.assert_array_equal(loss(matches, [1.0, 1.0]), plain)
    # Linear in each weight; without any, what is left is the background's.
    none, first, last = (loss(matches, w) for w in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]))
    np.testing.assert_allclose(first + last - none, plain, rtol=1e-5)
    np.testing.assert_allclose(
        loss(matches, [0.5, 0.25]), none + 0.5 * (first - none) + 0.25 * (last - none), rtol=1e-5
    )
    background = loss([IGNORED, BACKGROUND, IGNORED, IGNORED], None)
    np.testing.assert_allclose(none, background / 2, rtol=1e-5)
    assert none[1] == 0 and first[1] > 0 and last[1] > 0


@pytest.mark.parametrize("class_loss", ["focal", "varifocal"])
def test_what_is_not_boxed_is_no_background_of_a_class_that_may_be_there(class_loss):
    """Class 0 is known, of 1 there is a box and may be more, 2 is unknown."""
    rng = np.random.default_rng(4)
    logits, offsets = (jnp.array(rng.normal(size=(4, n)), jnp.float32) for n in (3, 4))
    matches = jnp.array([0, BACKGROUND, IGNORED, BACKGROUND])
    loss = jax.jit(
        lambda x, known: anchor_losses(
            x, offsets, ANCHORS, matches,
            Targets(BOXES, jnp.array([1, 1]), jnp.ones(2), jnp.array([True, False]), known),
            class_loss=CLASS_LOSSES[class_loss],
        )
    )  # fmt: skip
    slope = jax.jit(jax.grad(lambda x, known: loss(x, known).class_loss))
    whole, part = slope(logits, None), slope(logits, jnp.array([True, False, False]))
    counts = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]])
    assert (np.asarray(whole) != 0).sum() == 9
    np.testing.assert_array_equal(part, whole * counts)
    assert loss(logits, None) == loss(logits, jnp.ones(3, bool))
    assert loss(logits, None).box_loss == loss(logits, jnp.zeros(3, bool)).box_loss


def test_an_image_without_boxes_teaches_the_background():
    zeros = jnp.zeros((4, 3)), jnp.zeros((4, 4))
    grads = jax.grad(lambda c, b: sum(loss_of(c, b, [BACKGROUND] * 4)), argnums=(0, 1))(*zeros)
    assert loss_of(*zeros, [BACKGROUND] * 4).class_loss > 0
    assert (grads[0] > 0).all()
    assert (grads[1] == 0).all()


def test_votes_lower_the_class_target_and_leave_the_boxes():
    rng = np.random.default_rng(2)
    logits, offsets = (jnp.array(rng.normal(size=(4, n)), jnp.float32) for n in (3, 4))
    matches = [0, BACKGROUND, IGNORED, 0]
    votes = loss_of(logits, offsets, matches, scores=jnp.array([1 / 3, 0.0]))
    targets = np.zeros((4, 3), np.float32)
    targets[[0, 3], 1] = 1 / 3
    focal = np.asarray(sigmoid_focal(logits, jnp.array(targets)))
    np.testing.assert_allclose(votes.class_loss, focal[[0, 1, 3]].sum() / 2, rtol=1e-5)
    np.testing.assert_array_equal(votes.box_loss, loss_of(logits, offsets, matches).box_loss)


def test_giou_loss_is_that_of_the_decoded_boxes_and_has_a_gradient_everywhere():
    rng = np.random.default_rng(3)
    logits, offsets = (jnp.array(rng.normal(size=(4, n)), jnp.float32) for n in (3, 4))
    matches = [0, BACKGROUND, IGNORED, 0]
    loss = loss_of(logits, offsets, matches, box_loss="giou")
    decoded = box_coder.decode(offsets, ANCHORS)[jnp.array([0, 3])]
    expected = (1 - giou(decoded, BOXES[jnp.array([0, 0])])).sum() / 2
    np.testing.assert_allclose(loss.box_loss, expected, rtol=1e-6)
    wild = offsets.at[1].set(jnp.array([0, 0, 90.0, -90]))  # unmatched
    grad = jax.grad(lambda b: loss_of(logits, b, matches, box_loss="giou").box_loss)(wild)
    assert (
        np.isfinite(grad).all() and (grad[1:3] == 0).all() and (grad[jnp.array([0, 3])] != 0).any()
    )


def test_varifocal_by_hand():
    """The paper's formula; a foreground anchor's target is the IoU of its decoded box."""
    rng = np.random.default_rng(4)
    logits = jnp.array(rng.normal(size=(4, 3)), jnp.float32)
    offsets = jnp.array(rng.normal(0, 0.2, size=(4, 4)), jnp.float32)
    scores = jnp.array([2 / 3, 0.0])  # two of three readers
    options = {"class_loss": "varifocal", "alpha": 0.7, "gamma": 1.5, "scores": scores}
    loss = loss_of(logits, offsets, [0, BACKGROUND, IGNORED, 0], **options)

    decoded = np.asarray(box_coder.decode(offsets, ANCHORS))
    x1, y1, x2, y2 = np.asarray(BOXES[0])
    p, expected = 1 / (1 + np.exp(-np.asarray(logits, np.float64))), 0.0
    for a in (0, 1, 3):
        ax1, ay1, ax2, ay2 = decoded[a]
        overlap = max(0, min(x2, ax2) - max(x1, ax1)) * max(0, min(y2, ay2) - max(y1, ay1))
        union = (x2 - x1) * (y2 - y1) + (ax2 - ax1) * (ay2 - ay1) - overlap
        for c in range(3):
            q = 2 / 3 * overlap / union if a != 1 and c == LABELS[0] else 0
            if q > 0:
                expected -= q * (q * np.log(p[a, c]) + (1 - q) * np.log(1 - p[a, c]))
            else:
                expected -= 0.7 * p[a, c] ** 1.5 * np.log(1 - p[a, c])
    np.testing.assert_allclose(loss.class_loss, expected / 2, rtol=1e-5)


def test_varifocal_does_not_move_boxes():
    """The IoU is a target: making it small is no way to make the loss small."""
    logits, offsets = jnp.zeros((4, 3)), jnp.full((4, 4), 0.1)

    def class_loss(offsets):
        matches = [0, BACKGROUND, IGNORED, 0]
        return loss_of(logits, offsets, matches, class_loss="varifocal").class_loss

    assert class_loss(offsets) != class_loss(offsets + 0.1)
    assert (jax.grad(class_loss)(offsets) == 0).all()


def test_varifocal_is_finite_where_the_probability_is_not():
    for logit, target in ((-200.0, 1.0), (200.0, 0.0), (200.0, 0.5)):
        loss = lambda x, t=target: varifocal(x, jnp.array([t])).sum()  # noqa: E731
        value, grad = jax.value_and_grad(loss)(jnp.array([logit]))
        assert np.isfinite(value) and value >= 50 and np.isfinite(grad).all()


def test_image_loss_by_hand():
    logits = jnp.array([0.5, -1.0, 2.0, 3.0])  # three classes, any
    labels, scores = jnp.array([1, 1, 0]), jnp.array([1 / 3, 2 / 3, 1.0])
    mask = jnp.array([True, True, False])
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    t = np.array([0, 2 / 3, 0, 2 / 3])
    expected = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    targets = Targets(jnp.zeros((3, 4)), labels, scores, mask)
    np.testing.assert_allclose(image_loss(logits, targets), expected, rtol=1e-6)
    normal = image_loss(logits, targets._replace(mask=jnp.zeros(3, bool)))
    np.testing.assert_allclose(normal, -np.log(1 - p).mean(), rtol=1e-6)


@pytest.mark.parametrize(
    "known,boxed,counts",
    [
        ([1, 1, 1], True, [1, 1, 1, 1]),
        ([1, 0, 0], True, [1, 1, 0, 1]),  # there is a box: it has a finding for sure
        ([1, 0, 1], False, [1, 0, 1, 0]),  # it may have one
        ([1, 1, 1], False, [1, 1, 1, 1]),
    ],
)
def test_image_loss_of_labels_that_are_known(known, boxed, counts):
    logits = jnp.array([0.5, -1.0, 2.0, 3.0])
    labels, mask = jnp.array([1]), jnp.array([boxed])
    targets = Targets(jnp.zeros((1, 4)), labels, jnp.ones(1), mask)
    slope = jax.grad(lambda x, t: image_loss(x, t))
    part = slope(logits, targets._replace(exhaustive=jnp.array(known, bool)))
    np.testing.assert_array_equal(part, slope(logits, targets) * np.array(counts))
