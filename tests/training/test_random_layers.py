"""Dropout in a detector: a function of seed and step, and no part of what is saved."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from configs import retina
from jaxdet import models
from jaxdet.training.train_step import TrainState, make_train_step


class Dropping(nnx.Module):
    """A detector whose metrics are the bits of what each of its two layers keeps."""

    def __init__(self, rngs):
        self.weight = nnx.Param(jnp.ones(24))
        self.layers = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])

    def __call__(self, images, train):
        return [layer(self.weight[...], deterministic=not train) for layer in self.layers]

    def losses(self, outputs, targets):
        bits = [jnp.where(x > 0, 2 ** jnp.arange(24), 0).sum() for x in outputs]
        return {"loss": sum(x.sum() for x in outputs), "one": bits[0], "two": bits[1]}


def test_it_is_a_function_of_seed_and_step():
    config = retina.get_config()
    config.augment.apply = ()
    graphdef, params, batch_stats = models.split(Dropping(nnx.Rngs(0)))
    assert len(jax.tree.leaves((params, batch_stats))) == 1
    optimizer, zero = optax.sgd(1e-3), jnp.array(0)
    rest = params, batch_stats, optimizer.init(params), params, zero, zero
    batch = {
        "images": jnp.zeros((2, 8, 8), jnp.uint8), "boxes": jnp.zeros((2, 1, 4)),
        "labels": jnp.zeros((2, 1), int), "soft_targets": jnp.ones((2, 1)),
        "mask": jnp.zeros((2, 1), bool),
    }  # fmt: skip
    seen = []
    for seed in (0, 0, 1):
        config.seed = seed
        step, state = jax.jit(make_train_step(config, graphdef, optimizer)), TrainState(zero, *rest)
        for _ in range(2):
            state, metrics = step(state, batch)
            seen.append((int(metrics["one"]), int(metrics["two"])))
        assert jax.tree.structure(state) == jax.tree.structure(TrainState(zero, *rest))
    assert seen[:2] == seen[2:4]  # the same run again
    chosen = [bits for pair in (*seen[:2], *seen[4:]) for bits in pair]
    assert len(set(chosen)) == 8  # of steps, layers and seeds

    # Whoever starts at the second step draws what the first run drew there.
    config.seed = 0
    resumed = make_train_step(config, graphdef, optimizer)
    _, metrics = jax.jit(resumed)(TrainState(jnp.array(1), *rest), batch)
    assert (metrics["one"], metrics["two"]) == seen[1]

    everything = nnx.merge(graphdef, params, batch_stats)(None, train=False)
    np.testing.assert_array_equal(everything, np.ones((2, 24)))
