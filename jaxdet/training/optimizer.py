"""The optimiser that `config.train` describes, and what belongs to it: the course of the learning
rate, its factor for each parameter, clipping, and the average of the weights."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from jaxdet import ConfigError, InputError
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


def lamb(
    schedule: optax.Schedule, decays: Callable, weight_decay: float
) -> optax.GradientTransformation:
    """LAMB (You et al. 2020), for large batches."""
    return optax.lamb(schedule, weight_decay=weight_decay, mask=decays)


def muon(
    schedule: optax.Schedule, decays: Callable, weight_decay: float
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for what decays, the kernels; Adam for the rest.

    The kernel of a convolution is taken as a matrix of (height x width x inputs, outputs). Updates
    are as large as AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training"), so that its
    learning rate and decay do here too.
    """

    def as_matrices(params):
        def axes(x, is_kernel):
            *inputs, output = range(x.ndim)
            return optax.contrib.MuonDimensionNumbers(inputs, output) if is_kernel else None

        return jax.tree.map(axes, params, decays(params))

    return optax.contrib.muon(
        schedule,
        weight_decay=weight_decay,
        muon_weight_dimension_numbers=as_matrices,
        consistent_rms=0.2,
    )


# What `train.optimizer` may say: functions of the learning rate by step, which parameters decay (a
# function of their tree), and fields of `train`.
OPTIMIZERS = {"adamw": adamw, "sgd": sgd, "lamb": lamb, "muon": muon}


def clip(limit: float) -> optax.GradientTransformationExtraArgs:
    """Makes a gradient shorter whose norm is above the limit.

    Its update takes the norm as an argument, since the step logs it and has a faster way to it than
    `optax.clip_by_global_norm`.
    """

    def update(updates, state, params=None, *, norm, **_):
        factor = jnp.minimum(1, limit / norm)
        return jax.tree.map(lambda x: x * factor, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def average(mean: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """The exponential moving average of the parameters, one step on.

    A young average follows closely, or it would remember the random start for long.
    """
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, mean, 1 - decay)


def parse_multipliers(texts: tuple[str, ...]) -> list[tuple[str, float]]:
    """The pattern and the factor of texts such as "backbone/stem=0.1".

    Raises:
        InputError: for a text that is not PATTERN=FACTOR.
    """
    parsed = []
    for text in texts:
        pattern, _, number = text.rpartition("=")
        try:
            re.compile(pattern)
            factor = float(number)
        except (re.error, ValueError) as error:
            raise InputError(f"{text!r} is not PATTERN=FACTOR: {error}") from error
        if not pattern or not 0 <= factor < math.inf:
            raise InputError(f"{text!r} is not PATTERN=FACTOR with a factor of 0 or more")
        parsed.append((pattern, factor))
    return parsed


def name_of(path: tuple) -> str:
    """Of a parameter, such as "backbone/stages/0/1/conv1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def multipliers(config: ConfigDict, frozen: tuple[str, ...], params: Any) -> dict[str, float]:
    """What the learning rate of each parameter is multiplied by, by its name.

    It is the product of the factors of all patterns that are found in the name.

    Args:
        config: `config.train`.
        frozen: path prefixes of frozen parameters, see `models.frozen_parameters`.
        params: arrays or their shapes.

    Raises:
        ConfigError: for a pattern that is found in no name.
    """
    names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    given = parse_multipliers(config.lr_multipliers)
    for pattern, _ in given:
        if not any(re.search(pattern, name) for name in names):
            raise ConfigError(
                "train.lr_multipliers",
                f"{pattern!r} is found in no parameter's name, such as {names[0]} or {names[-1]}",
            )
    factors = [*given, ("^backbone/", config.backbone_lr_multiplier)]
    factors += [(f"^{prefix}", 0.0) for prefix in frozen]
    return {
        name: math.prod(
            (factor for pattern, factor in factors if re.search(pattern, name)), start=1.0
        )
        for name in names
    }


def make_optimizer(
    config: ConfigDict, frozen: tuple[str, ...], params: Any
) -> optax.GradientTransformationExtraArgs:
    """The optimiser of `config.optimizer`. Kernels decay; the rest does not.

    Its update takes the gradient's `norm` beside the gradient, see `clip`.

    Args, Raises: see `multipliers`.
    """
    factors = multipliers(config, frozen, params)

    def decays(params):
        return jax.tree.map_with_path(lambda path, _: name_of(path).endswith("kernel"), params)

    def multiply(updates, _):
        return jax.tree.map_with_path(lambda path, x: x * factors[name_of(path)], updates)

    update = choose(OPTIMIZERS, config.optimizer, config)(make_schedule(config), decays)
    return optax.chain(clip(config.clip_norm), update, optax.stateless(multiply))
