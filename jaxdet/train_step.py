"""What changes in a run, and the step that changes it; no data tool is needed here."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from jaxdet import InputError
from jaxdet.augment import augment, normalize
from jaxdet.losses import retinanet_loss
from jaxdet.matching import match_anchors
from jaxdet.models import detector


class TrainState(NamedTuple):
    """All that changes in a run. Randomness and data are functions of `step` and the seed."""

    step: jax.Array
    params: nnx.State
    batch_stats: nnx.State
    opt_state: optax.OptState
    average: nnx.State  # of the parameters: what is evaluated and kept as "weights"

    def weights(self) -> dict[str, nnx.State]:
        """What inference needs."""
        return {"params": self.average, "batch_stats": self.batch_stats}


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine to 0 at the last step."""
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, max(config.steps, config.warmup_steps + 1)
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Clipping, then SGD with momentum or AdamW. Biases and normalisation do not decay.

    Raises:
        InputError: for another optimiser.
    """

    def decays(params):
        return jax.tree.map(lambda x: x.ndim > 1, params)

    if config.optimizer == "sgd":
        update = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask=decays),
            optax.sgd(make_schedule(config), momentum=config.momentum),
        )
    elif config.optimizer == "adamw":
        update = optax.adamw(make_schedule(config), weight_decay=config.weight_decay, mask=decays)
    else:
        raise InputError(
            f"config.train.optimizer: {config.optimizer!r} is not one of 'sgd', 'adamw'"
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def init_state(config: ConfigDict, optimizer: optax.GradientTransformation) -> TrainState:
    """The state at step 0. Run it under `jax.jit`: eager construction takes seconds."""
    _, params, batch_stats = detector.split(detector.create(config, nnx.Rngs(config.seed)))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        average=jax.tree.map(jnp.copy, params),  # a donated state must not hold one array twice
    )


def make_train_step(
    config: ConfigDict, graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """The step (state, batch) -> (state, metrics), a pure function to be jitted."""
    places = jnp.asarray(np.concatenate(detector.pyramid(config)))

    def image_loss(class_logits, box_offsets, boxes, classes, mask):
        loss = config.loss
        matches = match_anchors(places, boxes, mask, loss.foreground_iou, loss.background_iou)
        return retinanet_loss(
            class_logits, box_offsets, places, matches, boxes, classes, loss.alpha, loss.gamma
        )

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        images, boxes, mask = augment(
            key, batch["images"], batch["boxes"], batch["mask"], **config.augment
        )

        def loss_fn(params):
            model = nnx.merge(graphdef, params, state.batch_stats, copy=True)
            class_logits, box_offsets = model(normalize(images), train=True)
            losses = jax.vmap(image_loss)(class_logits, box_offsets, boxes, batch["classes"], mask)
            class_loss, box_loss = (x.mean() for x in losses)
            loss = class_loss + config.loss.box_weight * box_loss
            _, _, batch_stats = detector.split(model)
            return loss, (class_loss, box_loss, batch_stats)

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (class_loss, box_loss, batch_stats)), grads = grad_fn(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A young average follows closely, or it would remember the random start for long.
        decay = jnp.minimum(config.train.average_decay, (1 + state.step) / (10 + state.step))
        average = optax.incremental_update(params, state.average, 1 - decay)
        metrics = {
            "loss": loss,
            "class_loss": class_loss,
            "box_loss": box_loss,
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": make_schedule(config.train)(state.step),
        }
        return TrainState(state.step + 1, params, batch_stats, opt_state, average), metrics

    return train_step
