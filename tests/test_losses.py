import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet import boxes as box_ops
from jaxdet.losses import retinanet_loss, sigmoid_focal
from jaxdet.matching import BACKGROUND, IGNORED


def test_focal_equals_optax():
    rng = np.random.default_rng(0)
    logits = jnp.array(rng.normal(0, 4, (50, 14)), jnp.float32)
    targets = jnp.array(rng.integers(0, 2, (50, 14)), jnp.float32)
    expected = optax.sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0)
    np.testing.assert_allclose(sigmoid_focal(logits, targets), expected, rtol=2e-5, atol=1e-7)


def test_focal_is_finite_where_the_probability_is_not():
    loss, grad = jax.value_and_grad(lambda x: sigmoid_focal(x, jnp.ones(1)).sum())(
        jnp.array([-200.0])
    )
    np.testing.assert_allclose(loss, 0.25 * 200)
    assert np.isfinite(grad).all()


ANCHORS = jnp.array([[0.0, 0, 10, 10], [10, 10, 30, 30], [5, 5, 9, 9], [40, 40, 50, 60]])
BOXES = jnp.array([[1.0, 1, 11, 9], [0, 0, 0, 0]])  # the second is padding
CLASSES = jnp.array([1, 0])


def loss_of(logits, offsets, matches):
    return retinanet_loss(logits, offsets, ANCHORS, jnp.array(matches), BOXES, CLASSES)


def test_loss_by_hand():
    rng = np.random.default_rng(1)
    logits, offsets = (jnp.array(rng.normal(size=(4, n)), jnp.float32) for n in (3, 4))
    loss = loss_of(logits, offsets, [0, BACKGROUND, IGNORED, 0])
    targets = np.zeros((4, 3))
    targets[[0, 3], 1] = 1
    focal = np.asarray(optax.sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0))
    np.testing.assert_allclose(loss.classes, focal[[0, 1, 3]].sum() / 2, rtol=1e-5)
    wanted = box_ops.encode(BOXES[jnp.array([0, 0])], ANCHORS[jnp.array([0, 3])])
    error = np.abs(np.asarray(offsets)[[0, 3]] - wanted).sum()
    np.testing.assert_allclose(loss.boxes, error / 2, rtol=1e-5)


def test_an_image_without_boxes_teaches_the_background():
    zeros = jnp.zeros((4, 3)), jnp.zeros((4, 4))
    grads = jax.grad(lambda c, b: sum(loss_of(c, b, [BACKGROUND] * 4)), argnums=(0, 1))(*zeros)
    assert loss_of(*zeros, [BACKGROUND] * 4).classes > 0
    assert (grads[0] > 0).all()
    assert (grads[1] == 0).all()
