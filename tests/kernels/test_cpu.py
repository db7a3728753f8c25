"""What `jaxdet.kernels.cpu` computes is what flax computes, value and gradient."""

import os
import platform
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxdet import models
from jaxdet.kernels import cpu
from jaxdet.models import layers
from jaxdet.ops.boxes import Targets
from tests import networks


def both_ways(monkeypatch, compute):
    """What `compute()` gives as on a CPU, and as on another device."""
    results = []
    for on_cpu in (True, False):
        monkeypatch.setattr(cpu, "on_cpu", lambda on_cpu=on_cpu: on_cpu)
        results.append(jax.device_get(compute()))
    return results


def assert_close(results):
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(1, 2, shape), jnp.float32)


def value_and_gradients(layer, x, **kwargs):
    """The output, the gradient of a weighted sum of it by parameters and input, and the rest."""
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    def loss(params, x):
        layer = nnx.merge(graphdef, params, rest, copy=True)
        y = layer(x, **kwargs)
        return (y * noise(*y.shape, seed=1)).sum(), (y, nnx.state(layer, nnx.BatchStat))

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "channels, outputs, kernel, stride",
    [(5, 6, 1, 1), (5, 6, 1, 2), (5, 6, 3, 1), (5, 6, 3, 2), (5, 6, 7, 2), (36, 4, 3, 1)],
)
def test_convolution(monkeypatch, channels, outputs, kernel, stride, bias):
    layer = layers.conv(
        channels, outputs, kernel, stride, bias=bias, bias_init=nnx.initializers.normal(1.0),
        dtype="float32", rngs=nnx.Rngs(0),
    )  # fmt: skip
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # or the gradient is the plain one
    for height, width in ((8, 6), (7, 9)):  # odd sizes too: a stride starts at the first pixel
        x = noise(2, height, width, channels)
        assert_close(both_ways(monkeypatch, lambda x=x: value_and_gradients(layer, x)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batch_norm(monkeypatch, dtype):
    """Flax's, on a CPU and elsewhere."""
    x = noise(3, 4, 6, 5) * noise(5)

    def compute(kind):
        layer = kind(5, momentum=0.9, epsilon=layers.EPSILON, dtype=dtype, rngs=nnx.Rngs(0))
        layer.scale[...], layer.bias[...] = noise(5), noise(5) + 1
        return value_and_gradients(layer, x, use_running_average=False)

    theirs = jax.device_get(compute(nnx.BatchNorm))
    for ours in both_ways(monkeypatch, lambda: compute(layers.BatchNorm)):
        assert ours[0][1][0].dtype == theirs[0][1][0].dtype == dtype
        if dtype == "bfloat16":
            np.testing.assert_allclose(ours[0][0], theirs[0][0], rtol=1e-2)
        else:
            assert_close((ours, theirs))
            # The statistics have moved, and are what flax keeps.
            assert not np.allclose(jax.tree.leaves(ours[0][1][1])[0], 0)


def test_a_detector_has_the_same_loss_and_gradients(monkeypatch):
    graphdef, params, batch_stats = networks.detector("batch")
    images = jnp.asarray(networks.images())
    boxes = jnp.array([[[4, 4, 30, 40], [20, 10, 60, 50]]] * 2, jnp.float32)
    labels, ones = jnp.array([[0, 3]] * 2), jnp.ones((2, 2))

    def compute():
        def loss(params):
            model = nnx.merge(graphdef, params, batch_stats, copy=True)
            targets = Targets(boxes, labels, ones, ones > 0)
            losses = model.losses(model(images, train=True), targets)
            return losses["loss"], models.split(model)[2]

        (value, batch_stats_after), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return value, optax.tree.norm(grads), batch_stats_after

    assert_close(both_ways(monkeypatch, compute))


@pytest.mark.parametrize("norm", ["batch", "frozen_batch", "group"])
def test_a_fixed_normalisation_is_the_convolutions_own(monkeypatch, norm):
    conv = layers.conv(5, 16, 3, dtype="float32", rngs=nnx.Rngs(0))
    norm = layers.Norm(norm, 16, dtype="float32", rngs=nnx.Rngs(0))
    leaves, structure = jax.tree.flatten(nnx.state(norm))
    numbers = [noise(16, seed=seed) ** 2 for seed in range(len(leaves))]
    nnx.update(norm, jax.tree.unflatten(structure, numbers))
    x = noise(2, 6, 7, 5)
    for train in (False, True):
        compute = lambda: layers.conv_norm(conv, nnx.clone(norm), x, train)  # noqa: B023, E731
        assert_close(both_ways(monkeypatch, compute))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="said to glibc")
def test_memory_that_a_step_frees_is_not_fetched_anew():
    # Of a process of its own: the setting is for good, and comes before JAX starts.
    program = """if True:
        import resource
        import jax, jax.numpy as jnp, numpy as np
        from jaxdet import cpu, parallel
        cpu.keep_freed_memory()
        step = jax.jit(lambda x: jnp.exp(x) @ x[:256])  # needs 16 MB for exp(x), and as many out
        mesh = parallel.make_mesh()
        # Not where JAX could use it in place: it copies, in another thread.
        batch = np.ones(16384 * 256 + 1, np.float32)[1:].reshape(16384, 256)
        def run(steps):
            for _ in range(steps):
                x = step(parallel.shard_batch({"x": batch}, mesh)["x"])
            x.block_until_ready()
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        run(20)  # now and then what is kept lies in pieces too small, and more is added
        print(-run(1) + run(100))
    """
    # One device: several compute on threads of their own.
    environment = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    fetched = int(done.stdout) * resource.getpagesize() / 100  # bytes a step
    # At most 0.5 MB in 26 processes, 1.2 to 21 where a part of what this needs is left out.
    assert fetched < 1e6
