import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdet import models
from jaxdet.models.convnext import Block, ConvNeXt, Stage
from tests import networks

X = jnp.array(np.random.default_rng(0).normal(size=(4, 8, 8, 32)), jnp.float32)
OPTIONS = {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}


def test_it_starts_as_in_the_paper():
    """A block is nearly the identity."""
    block = Block(32, 0.0, **OPTIONS)
    for kernel in (block.depthwise.kernel, block.expand.kernel, block.reduce.kernel):
        assert 0.015 < np.std(kernel[...]) < 0.025 and np.abs(kernel[...]).max() < 0.05
    np.testing.assert_allclose(block(X, True), X, atol=1e-5)
    assert (block(X, True) != X).any()


def with_paths_dropped(module):
    """A function (x, key) -> the module in training, and what it says in evaluation."""
    graphdef, *state = models.split(module)
    state = jax.tree.map_with_path(networks.fill, tuple(state))

    def run(x, key):
        module = nnx.merge(graphdef, *state, copy=True)
        models.seed(module, key)
        return module(x, True)

    return run, nnx.merge(graphdef, *state)(X, False)


def test_an_image_skips_a_block_or_has_more_of_it():
    """Each image by itself; over many keys, the mean is what there is in evaluation."""
    run, whole = with_paths_dropped(Block(32, 0.2, **OPTIONS))
    keys = jax.random.split(jax.random.key(0), 256)
    after = jax.jit(jax.vmap(run, (None, 0)))(X, keys)
    skipped = (after == X).all(axis=(2, 3, 4))
    share = (after - X) / (whole - X)
    np.testing.assert_allclose(share[~skipped], 1 / 0.8, rtol=1e-2)
    assert np.abs(skipped.mean(axis=0) - 0.2).max() < 0.08  # three standard deviations
    assert (skipped.sum(axis=1) == 1).any()  # one image of four
    np.testing.assert_array_equal(after[3], jax.jit(run)(X, keys[3]))


def test_remat_draws_the_same():
    results = []
    for remat in (False, True):
        run, _ = with_paths_dropped(Stage(32, 32, [0.5, 0.5], remat=remat, **OPTIONS))

        def loss(x, run=run):
            y = run(x, jax.random.key(1))
            return (y**2).sum(), y

        results.append(jax.jit(jax.grad(loss, has_aux=True))(X))
    for plain, anew in zip(*results, strict=True):
        np.testing.assert_allclose(plain, anew, rtol=1e-4, atol=1e-4)


def backbone(**fields):
    """Structure, and shapes of parameters and statistics."""
    make = lambda: ConvNeXt(depth=18, width=8, rngs=nnx.Rngs(0), **fields)  # noqa: E731
    return models.split(nnx.eval_shape(make))


def test_the_rate_rises_over_all_blocks():
    """torchvision: stochastic_depth_prob * block / (blocks - 1)."""
    network = nnx.merge(*backbone(frozen_stages=0, drop_path=0.34))
    rates = [block.drop_path.rate for stage in network.stages for block in stage.blocks]
    np.testing.assert_allclose(rates, np.arange(18) * 0.02)


def test_parameters_and_inference_are_those_of_a_network_without_it():
    plain, *state = backbone(frozen_stages=0)
    dropping, *same = backbone(frozen_stages=0, drop_path=0.3)
    assert networks.names(state).keys() == networks.names(same).keys()
    images = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    run = lambda graphdef: lambda state, x: nnx.merge(graphdef, *state)(x, False)  # noqa: E731
    one, other = (jax.make_jaxpr(run(graphdef))(state, images) for graphdef in (plain, dropping))
    assert str(one) == str(other)


def test_frozen_stages_drop_nothing():
    """They ask for no key, which blocks that drop must have."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    for frozen_stages in (5, 4):
        graphdef, *state = backbone(frozen_stages=frozen_stages, drop_path=0.3)
        run = lambda state, x, graphdef=graphdef: nnx.merge(graphdef, *state)(x, True)  # noqa: E731
        if frozen_stages == 5:
            jax.eval_shape(run, state, images)
        else:
            with pytest.raises(AttributeError, match="key|count"):
                jax.eval_shape(run, state, images)
