"""Every detector leaves out what is not boxed of a class that may be there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdet import models
from jaxdet.kernels.compilation import jit
from jaxdet.ops.boxes import Targets
from tests import networks


@pytest.mark.parametrize("name", sorted(models.DETECTORS))
def test_what_may_be_there_is_no_background(name):
    """The first image has a box of class 1, of which there may be more; of class 2 all is unknown.
    In the second everything is known, and there is nothing."""
    config = networks.model_config(name=name, image_head=True)
    model = nnx.eval_shape(lambda: models.create(config, networks.LOSS, 3, 64, models.keys(0)))
    graphdef, weights = models.abstract(config, networks.LOSS, 3, 64)
    run = lambda *arrays: nnx.merge(graphdef, *arrays)(jnp.zeros((2, 64, 64, 1)), train=True)  # noqa: E731
    rng = np.random.default_rng(0)
    outputs = jax.tree.map(
        lambda x: jnp.array(rng.normal(size=x.shape), x.dtype),
        jax.eval_shape(run, *weights.values()),
    )
    boxes = jnp.array([[[8.0, 8.0, 40.0, 44.0]]] * 2)
    targets = Targets(boxes, jnp.ones((2, 1), int), jnp.ones((2, 1)), jnp.array([[True], [False]]))
    known = targets._replace(exhaustive=jnp.array([[1, 0, 0], [1, 1, 1]], bool))
    slope = jit(jax.grad(lambda *x: model.losses(*x)["loss"]))
    whole, part = slope(outputs, targets), slope(outputs, known)
    found = np.asarray(jax.vmap(model.match)(targets))[0] >= 0
    assert found.any() and not found.all()
    counts = np.ones(part.class_logits.shape, bool)
    counts[0, ~found, 1] = counts[0, :, 2] = False
    np.testing.assert_allclose(part.class_logits, whole.class_logits * counts, rtol=1e-6)
    assert (np.asarray(part.class_logits)[counts] != 0).mean() > 0.5
    # The image head knows of the box, and so of "any finding".
    np.testing.assert_allclose(
        part.image_logits, whole.image_logits * np.array([[1, 1, 0, 1], [1, 1, 1, 1]]), rtol=1e-6
    )
