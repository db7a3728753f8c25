"""What changes in a run, and the step that changes it; no data tool is needed here."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from jaxdet import models
from jaxdet.data.augment import augment
from jaxdet.data.images import normalize
from jaxdet.kernels.compilation import jit, jit_to_run_once
from jaxdet.ops.boxes import Targets
from jaxdet.runs import parallel
from jaxdet.training.optimizer import average, make_optimizer, make_schedule


class TrainState(NamedTuple):
    """All that changes in a run. Randomness and data are functions of `step` and the seed."""

    step: jax.Array
    params: nnx.State
    batch_stats: nnx.State
    opt_state: optax.OptState
    ema_weights: nnx.State  # exponential moving average: what is evaluated and kept as "weights"
    skipped_steps: jax.Array  # steps whose loss or gradient was not finite, and
    skipped_in_a_row: jax.Array  # those since the last that was

    def weights(self) -> dict[str, nnx.State]:
        """What inference needs."""
        return {"params": self.ema_weights, "batch_stats": self.batch_stats}

    def to_items(self) -> dict[str, dict]:
        """The two items of a checkpoint: what inference needs, and the rest."""
        rest = self._asdict()
        del rest["ema_weights"], rest["batch_stats"]
        return {"weights": self.weights(), "training": rest}

    @classmethod
    def from_items(cls, items: dict[str, dict]) -> "TrainState":
        """The inverse of `to_items`."""
        weights, rest = items["weights"], items["training"]
        return cls(ema_weights=weights["params"], batch_stats=weights["batch_stats"], **rest)


def make_train_step(
    config: ConfigDict, graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """The step (state, batch) -> (state, metrics), a pure function to be jitted."""
    optimizer = optax.with_extra_args_support(optimizer)

    def gradient(params, batch_stats, batch, key):
        def loss_fn(params):
            model = nnx.merge(graphdef, params, batch_stats, copy=True)
            models.seed(model, key)
            outputs = model(normalize(batch["images"]), train=True)
            losses = model.losses(outputs, Targets.of_batch(batch))
            return losses["loss"], (losses, models.split(model)[2])

        grads, (losses, batch_stats) = jax.grad(loss_fn, has_aux=True)(params)
        return losses, batch_stats, grads

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        batch = augment(key, batch, config.augment)

        # Far from the small numbers that `augment` splits the key by.
        model_key = jax.random.fold_in(key, zlib.crc32(b"model"))
        given = state.params, state.batch_stats, batch, model_key
        losses, batch_stats, grads = accumulate(gradient, *given, config.train.accumulate)
        # As one vector: on a GPU, its norm takes one kernel instead of two for each parameter, and
        # the optimiser finds gradients in the parameters' layout instead of the convolutions'.
        flat, unflatten = ravel_pytree(grads)
        flat = jax.lax.optimization_barrier(flat)
        gradient_norm = jnp.linalg.norm(flat)
        updates, opt_state = optimizer.update(
            unflatten(flat), state.opt_state, state.params, norm=gradient_norm
        )
        params = optax.apply_updates(state.params, updates)
        ema_weights = average(state.ema_weights, params, state.step, config.train.ema_decay)
        # What is not finite would stay for ever: such a step changes nothing, and is counted.
        finite = jnp.isfinite(losses["loss"]) & jnp.isfinite(gradient_norm)
        changed = {
            "params": params,
            "batch_stats": batch_stats,
            "opt_state": opt_state,
            "ema_weights": ema_weights,
        }
        before = {name: getattr(state, name) for name in changed}
        after = TrainState(
            step=state.step + 1,
            **jax.tree.map(lambda new, old: jax.lax.select(finite, new, old), changed, before),
            skipped_steps=state.skipped_steps + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        metrics = {
            **losses,
            "gradient_norm": gradient_norm,
            # The optimiser counts the steps that it has made.
            "learning_rate": make_schedule(config.train)(state.step - state.skipped_steps),
            "skipped_steps": after.skipped_steps,
            "skipped_in_a_row": after.skipped_in_a_row,
        }
        return after, metrics

    return train_step


def accumulate(
    gradient: Callable[[Any, Any, dict, jax.Array], tuple[dict, Any, Any]],
    params: Any,
    batch_stats: Any,
    batch: dict,
    key: Key[Array, ""],
    parts: int,
) -> tuple[dict, Any, Any]:
    """The losses, statistics and gradient of a batch that is worked on in parts, one by one.

    They are those of the whole batch, as losses are means over images, and counts of them sums. But
    BatchNorm normalises each part by itself, and its running averages take a step for each.

    Args:
        gradient: function (params, batch_stats, batch, key) -> (losses, batch_stats, gradient).
        key: for randomness in the model, of which each part has its own.
        parts: a divisor of the number of images.
    """
    if parts == 1:
        return gradient(params, batch_stats, batch, key)

    def cut(x):  # every `parts`-th row, so that each device has its share of each part
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(carry, part):
        batch_stats, total = carry
        losses, batch_stats, grads = gradient(params, batch_stats, *part)
        return (batch_stats, jax.tree.map(jnp.add, total, grads)), losses

    zeros = jax.tree.map(jnp.zeros_like, params)
    each = jax.tree.map(cut, batch), jax.random.split(key, parts)
    (batch_stats, total), losses = jax.lax.scan(add, (batch_stats, zeros), each)
    losses = {
        name: x.mean() if jnp.issubdtype(x.dtype, jnp.floating) else x.sum()
        for name, x in losses.items()
    }
    return losses, batch_stats, jax.tree.map(lambda x: x / parts, total)


def compile_training(
    config: ConfigDict, num_classes: int, mesh: jax.sharding.Mesh
) -> tuple[Callable[[], TrainState], Callable[[TrainState, dict], tuple[TrainState, dict]]]:
    """The jitted `init()` and `step(state, batch)`: state on every device, batch split over them.

    The step takes the state's memory for the new one.
    """

    sections = config.model, config.loss, num_classes, config.data.image_size
    graphdef, shapes = models.abstract(*sections)
    frozen = models.frozen_parameters(config.model.backbone.frozen_stages)
    optimizer = make_optimizer(config.train, frozen, shapes["params"])

    def init():
        model = models.create(*sections, models.keys(config.seed))
        _, params, batch_stats = models.split(model)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(params),
            # Copied, as a donated state must not hold one array twice.
            ema_weights=jax.tree.map(jnp.copy, params),
            skipped_steps=jnp.zeros((), jnp.int32),
            skipped_in_a_row=jnp.zeros((), jnp.int32),
        )

    replicated = parallel.replicated(mesh)
    step = jit(
        make_train_step(config, graphdef, optimizer),
        config.train.deterministic,
        in_shardings=(replicated, parallel.sharded(mesh)),
        out_shardings=replicated,
        donate_argnums=0,
    )
    # Under jit, as eager construction takes seconds.
    return jit_to_run_once(init, out_shardings=replicated), step
