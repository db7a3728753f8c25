"""JAXDET_PLAIN turns every kernel off, and nothing changes but the time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdet import models
from jaxdet.kernels import channels, convolution, nn, switch, winograd
from jaxdet.ops.boxes import Targets
from tests import networks
from tests.kernels.test_nn import assert_close, made_for  # noqa: F401


@pytest.mark.parametrize("value, target", [("1", "plain"), ("0", "cpu"), ("", "cpu")])
def test_the_environment_says_plain(monkeypatch, value, target):
    monkeypatch.setenv("JAXDET_PLAIN", value)
    assert switch.target() == target


def loss_and_gradients():
    """Of a detector: what it trains on, all gradients, BatchNorm's statistics, and outputs then."""
    graphdef, weights = networks.abstract("batch", levels=(4, 5))
    params, batch_stats = jax.tree.map_with_path(networks.fill, tuple(weights.values()))
    images = jnp.asarray(networks.images())
    boxes = jnp.array([[[4, 4, 30, 40], [20, 10, 60, 50]]] * 2, jnp.float32)
    ones = jnp.ones((2, 2))
    targets = Targets(boxes, jnp.array([[0, 3]] * 2), ones, ones > 0)

    def loss(params):
        model = nnx.merge(graphdef, params, batch_stats, copy=True)
        outputs = model(images, train=True)
        losses = model.losses(outputs, targets)
        return losses["loss"], (outputs, losses, models.split(model)[2], model(images))

    return jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(params))


@pytest.fixture(scope="module")
def plain():
    """What flax and XLA compute by themselves; a kernel that is called all the same fails."""

    def called(*_, **__):
        raise AssertionError("a kernel, though plain was asked for")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXDET_PLAIN", "1")
        kernels = {
            nn: ("add_bias", "batch_norm", "_relu"),
            channels: ("sum_of_channels",),
            winograd: ("conv_3x3",),
            convolution: ("conv_1x1", "conv_3x3_few", "conv_7x7_stride_2", "conv"),
        }
        for module, names in kernels.items():
            for name in names:
                patch.setattr(module, name, called)
        return loss_and_gradients()


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_a_detector_computes_the_same(made_for, monkeypatch, plain, target):  # noqa: F811
    made_for(target)
    # For so small a network too, though not everywhere: that takes a minute to compile.
    monkeypatch.setattr(winograd, "pays", lambda x, kernel: x.shape[1] == 8)
    used = []
    conv = winograd.conv_3x3
    monkeypatch.setattr(winograd, "conv_3x3", lambda *args: used.append(1) or conv(*args))
    ours = loss_and_gradients()
    assert bool(used) == (target == "cpu")
    assert np.isfinite(ours[0][0])
    assert_close(ours, plain, 1e-4)
