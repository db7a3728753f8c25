"""What `jaxdet.kernels.nn` computes is what flax computes, value and gradient, on any device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdet.kernels import convolution, nn, switch
from jaxdet.models import layers

TARGETS = ("plain", "cpu", "gpu")


@pytest.fixture
def made_for(monkeypatch):
    """A function that says for which device kernels are made; one device, as most have."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # or Winograd's way is never taken
    return lambda target: monkeypatch.setattr(switch, "target", lambda: target)


def assert_close(ours, theirs, tolerance=1e-5):
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        scale = np.abs(np.asarray(b)).max(initial=0)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(1, 2, shape), jnp.float32)


def value_and_gradients(layer, x, **kwargs):
    """The output, the gradient of a weighted sum of it by parameters and input, and the rest."""
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    def loss(params, x):
        layer = nnx.merge(graphdef, params, rest, copy=True)
        y = layer(x, **kwargs)
        return (y * noise(*y.shape, seed=1)).sum(), (y, nnx.state(layer, nnx.BatchStat))

    return jax.device_get(jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x))


def both_convolutions(*arguments, **options):
    """Ours and flax's, with the same parameters."""
    fill = lambda _, shape, *__: noise(*shape)  # noqa: E731  nothing to compile
    options = {"dtype": "float32", "kernel_init": fill, "bias_init": fill, **options}
    return (kind(*arguments, **options, rngs=nnx.Rngs(0)) for kind in (nn.Conv, nnx.Conv))


@pytest.mark.parametrize(
    "channels, outputs, kernel, stride, bias",
    [(5, 6, 1, 1, True), (5, 6, 1, 2, False), (5, 6, 3, 1, True), (5, 6, 3, 2, False),
     (5, 6, 7, 2, False), (2, 5, 7, 2, False), (36, 4, 3, 1, True)],
)  # fmt: skip
def test_convolution(made_for, channels, outputs, kernel, stride, bias):
    ours, flaxs = both_convolutions(
        channels, outputs, (kernel, kernel), stride, padding=kernel // 2, use_bias=bias
    )
    assert ours.has_kernel()
    x = noise(2, 8, 7, channels)  # an odd size too: a stride starts at the first pixel
    expected = value_and_gradients(flaxs, x)
    for target in TARGETS:
        made_for(target)
        assert_close(value_and_gradients(ours, x), expected)


@pytest.mark.parametrize(
    "options",
    [{"kernel_dilation": 2}, {"kernel_dilation": (1, 2)}, {"input_dilation": 2},
     {"feature_group_count": 2}, {"strides": (1, 2)}, {"padding": "SAME"},
     {"padding": ((1, 0), (2, 1))}, {"kernel_size": (1, 1)}, {"kernel_size": (3, 5)},
     {"kernel_size": (3,), "strides": (2,)}, {"mask": np.tri(36, 6).reshape(3, 3, 4, 6)},
     {"dtype": None}, {"dtype": "float16"}],
    ids=str,
)  # fmt: skip
def test_every_option_of_flaxs_convolution(made_for, options):
    """What has no kernel is flax's own: nothing is ignored without a word."""
    made_for("cpu")
    ours, flaxs = both_convolutions(4, 6, **{"kernel_size": (3, 3), "padding": 1, **options})
    x = noise(2, 7, 9, 4)
    assert ours(x).dtype == flaxs(x).dtype
    assert_close(ours(x), flaxs(x))


def test_a_convolution_of_one_image_without_a_batch(made_for):
    made_for("cpu")
    ours, flaxs = both_convolutions(4, 6, (3, 3), padding=1)
    x = noise(7, 9, 4)
    assert_close(ours(x), flaxs(x))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batch_norm(made_for, dtype):
    x = noise(3, 4, 6, 5) * noise(5)

    def compute(kind):
        layer = kind(5, momentum=0.9, epsilon=layers.EPSILON, dtype=dtype, rngs=nnx.Rngs(0))
        layer.scale[...], layer.bias[...] = noise(5), noise(5) + 1
        return value_and_gradients(layer, x, use_running_average=False)

    theirs = compute(nnx.BatchNorm)
    for target in TARGETS:
        made_for(target)
        ours = compute(nn.BatchNorm)
        assert ours[0][1][0].dtype == theirs[0][1][0].dtype == dtype
        if dtype == "bfloat16":
            np.testing.assert_allclose(ours[0][0], theirs[0][0], rtol=1e-2)
        else:
            assert_close(ours, theirs)
            # The statistics have moved, and are what flax keeps.
            assert not np.allclose(jax.tree.leaves(ours[0][1][1])[0], 0)


@pytest.mark.parametrize("options", [{"axis": 1}, {"use_scale": False}, {"use_bias": False}])
def test_other_batch_norms_are_flaxs_own(made_for, options):
    made_for("cpu")
    x = noise(3, 5, 5, 5)
    ours, flaxs = (
        value_and_gradients(
            kind(5, dtype="float32", rngs=nnx.Rngs(0), **options), x, use_running_average=False
        )
        for kind in (nn.BatchNorm, nnx.BatchNorm)
    )
    assert_close(ours, flaxs)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", ["batch", "frozen_batch", "group"])
def test_a_fixed_normalisation_is_the_convolutions_own(made_for, norm, bias):
    conv = layers.conv(5, 16, 3, bias=bias, dtype="float32", rngs=nnx.Rngs(0))
    norm = layers.Norm(norm, 16, dtype="float32", rngs=nnx.Rngs(0))
    leaves, structure = jax.tree.flatten(nnx.state(norm))
    numbers = [noise(16, seed=seed) ** 2 for seed in range(len(leaves))]
    nnx.update(norm, jax.tree.unflatten(structure, numbers))
    if bias:
        conv.bias[...] = noise(16)
    x = noise(2, 6, 7, 5)
    for train in (False, True):
        results = {}
        for target in TARGETS:
            made_for(target)
            results[target] = nn.conv_norm(conv, nnx.clone(norm), x, train)
        assert_close(results["cpu"], results["plain"])
        assert_close(results["gpu"], results["plain"])


@pytest.mark.parametrize("target", TARGETS)
def test_relu(made_for, target):
    made_for(target)
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0])
    (y, of_x), (expected, of_expected) = (jax.vjp(f, x) for f in (nn.relu, nnx.relu))
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(of_x(x + 5), of_expected(x + 5))


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(
    "arguments",
    [((3, 3), (2, 2), ((1, 1), (1, 1))), ((2, 3), (2, 1), ((0, 0), (1, 0)))],
)
def test_max_pool(made_for, arguments, size):
    x = noise(2, size, size, 3)
    expected, of_expected = jax.vjp(lambda x: nnx.max_pool(x, *arguments), x)
    for target in TARGETS:
        made_for(target)
        y, of_y = jax.vjp(lambda x: nn.max_pool(x, *arguments), x)
        np.testing.assert_array_equal(y, expected)
        assert_close(of_y(noise(*y.shape)), of_expected(noise(*y.shape)))


@pytest.mark.parametrize("height, width, channels", [(8, 10, 1), (7, 9, 2), (13, 6, 3)])
def test_the_first_convolution_of_blocks_is_that_of_pixels(height, width, channels):
    x, kernel = noise(2, height, width, channels), noise(7, 7, channels, 5)
    expected, gradient = jax.vjp(lambda *args: convolution.plain_conv(*args, 2, 3), x, kernel)
    y, ours = jax.vjp(convolution.conv_7x7_stride_2, x, kernel)
    assert_close((y, *ours(y)), (expected, *gradient(expected)))
