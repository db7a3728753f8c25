"""The optimiser that `config.train` describes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict

from jaxdet.doors import choose


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine to 0 at the last step; `config` is `config.train`."""
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, max(config.steps, config.warmup_steps + 1)
    )


def adamw(
    schedule: optax.Schedule, decays: Callable, weight_decay: float
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019)."""
    return optax.adamw(schedule, weight_decay=weight_decay, mask=decays)


def sgd(
    schedule: optax.Schedule, decays: Callable, weight_decay: float, momentum: float
) -> optax.GradientTransformation:
    """SGD with momentum; the decay is added to the gradient."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decays),
        optax.sgd(schedule, momentum=momentum),
    )


# What `train.optimizer` may say: functions of the learning rate by step, which parameters decay (a
# function of their tree), and fields of `train`.
OPTIMIZERS = {"adamw": adamw, "sgd": sgd}


def clip(limit: float) -> optax.GradientTransformationExtraArgs:
    """Makes a gradient shorter whose norm is above the limit.

    Its update takes the norm as an argument, since the step logs it and has a faster way to it than
    `optax.clip_by_global_norm`.
    """

    def update(updates, state, params=None, *, norm, **_):
        factor = jnp.minimum(1, limit / norm)
        return jax.tree.map(lambda x: x * factor, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def average(mean: nnx.State, params: nnx.State, step: jax.Array, decay: float) -> nnx.State:
    """The exponential moving average of the parameters, one step on.

    A young average follows closely, or it would remember the random start for long.
    """
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, mean, 1 - decay)


def make_optimizer(config: ConfigDict, frozen: tuple[str, ...]) -> optax.GradientTransformation:
    """The optimiser of `config.optimizer`. Kernels decay; the rest does not.

    The backbone learns at `backbone_lr_multiplier` times the learning rate.

    Args:
        config: `config.train`.
        frozen: path prefixes of frozen parameters, see `models.frozen_parameters`.
    """

    def by_name(function):
        def of_tree(params):
            return jax.tree.map_with_path(
                lambda path, _: function(jax.tree_util.keystr(path, simple=True, separator="/")),
                params,
            )

        return of_tree

    def group(name):
        if name.startswith(frozen):
            return "frozen"
        return "backbone" if name.startswith("backbone/") else "rest"

    decays = by_name(lambda name: name.removesuffix("/value").endswith("kernel"))

    update = choose(OPTIMIZERS, config.optimizer, config)(make_schedule(config), decays)
    scales = {"frozen": 0.0, "backbone": config.backbone_lr_multiplier, "rest": 1.0}
    return optax.chain(
        clip(config.clip_norm),
        update,
        optax.partition(
            {name: optax.scale(scale) for name, scale in scales.items()},
            by_name(group),
        ),
    )
