"""`jaxdet.kernels.winograd` is XLA's convolution, value and both gradients, for any shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdet.kernels import winograd
from jaxdet.models import layers
from tests.kernels.test_nn import noise, value_and_gradients


def plain(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def with_gradients(conv, x, kernel, g):
    y, backward = jax.vjp(conv, x, kernel)
    return y, *backward(g)


# Sides of 1 to 13 pixels: one tile and several, and each remainder of a tile's four.
@pytest.mark.parametrize(
    "b, h, w, c, d",
    [(1, 1, 1, 1, 1), (2, 2, 13, 3, 1), (1, 11, 3, 1, 4), (3, 4, 6, 5, 2), (2, 9, 8, 2, 5)],
)
def test_any_shape(b, h, w, c, d):
    """All three are linear in each of x, kernel and g, so noise in float64 tells every error."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        shapes = (b, h, w, c), (3, 3, c, d), (b, h, w, d)
        arrays = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]
        # Compiled as a whole: one by one, their hundreds of operations take ten times as long.
        ours, theirs = (
            jax.jit(with_gradients, static_argnums=0)(conv, *arrays)
            for conv in (winograd.conv_3x3, plain)
        )
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


in_float32 = jax.jit(functools.partial(with_gradients, winograd.conv_3x3))


@pytest.mark.parametrize("seed", range(3))
def test_rounding_in_float32(seed):
    """Of many channels and what a ReLU leaves, as the layers of a head see it."""
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.normal(size=(2, 16, 16, 256)), 0)
    kernel, g = rng.normal(size=(3, 3, 256, 128)) / 48, rng.normal(size=(2, 16, 16, 128))
    arrays = [jnp.asarray(array, jnp.float32) for array in (x, kernel, g)]
    ours = in_float32(*arrays)
    with jax.enable_x64(True):
        exact = with_gradients(plain, *(np.float64(array) for array in arrays))
    for a, b in zip(ours, exact, strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 5e-6 * np.abs(b).max()


def test_layers_use_it_where_it_pays(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    layer = layers.conv(36, 48, 3, bias=True, dtype="float32", rngs=nnx.Rngs(0))
    x = noise(1, 32, 32, 36)
    conv, calls = winograd.conv_3x3, []
    monkeypatch.setattr(winograd, "conv_3x3", lambda *args: calls.append(args) or conv(*args))
    used = value_and_gradients(layer, x)
    assert calls
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    known = len(calls)
    direct = value_and_gradients(layer, x)
    assert len(calls) == known
    for ours, theirs in zip(*map(jax.tree.leaves, (used, direct)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "shape, channels, dtype",
    [((8, 64, 64, 32), 32, "float32"), ((3, 16, 16, 256), 256, "float32"),
     ((8, 64, 64, 256), 256, "bfloat16")],
)  # fmt: skip
def test_where_it_does_not_pay(monkeypatch, shape, channels, dtype):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    x = jax.ShapeDtypeStruct(shape, dtype)
    kernel = jax.ShapeDtypeStruct((3, 3, shape[3], channels), dtype)
    answers = []
    jax.eval_shape(lambda *arrays: answers.append(winograd.pays(*arrays)), x, kernel)
    assert answers == [False]


def test_a_layer_is_exported_for_any_batch(monkeypatch):
    """Of which none can say whether it is large."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    layer = layers.conv(96, 96, 3, dtype="float32", rngs=nnx.Rngs(0))
    (batch,) = jax.export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((batch, 32, 32, 96), "float32")
    exported = jax.export.export(jax.jit(lambda x: layer(x)))(x)
    assert str(exported.out_avals[0].shape[0]) == "batch"
