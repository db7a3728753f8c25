"""What changes in a run, and the step that changes it; no data tool is needed here."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from jaxdet import InputError, parallel
from jaxdet.augment import augment, normalize
from jaxdet.compilation import jit
from jaxdet.losses import image_loss, retinanet_loss
from jaxdet.matching import match_anchors, match_anchors_atss
from jaxdet.models import detector


class TrainState(NamedTuple):
    """All that changes in a run. Randomness and data are functions of `step` and the seed."""

    step: jax.Array
    params: nnx.State
    batch_stats: nnx.State
    opt_state: optax.OptState
    ema_params: nnx.State  # of the parameters: what is evaluated and kept as "weights"

    def weights(self) -> dict[str, nnx.State]:
        """What inference needs."""
        return {"params": self.ema_params, "batch_stats": self.batch_stats}


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine to 0 at the last step."""
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, max(config.steps, config.warmup_steps + 1)
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Clipping, then SGD with momentum or AdamW. Biases and normalisation do not decay.

    The backbone learns at `backbone_lr_multiplier` times the learning rate, its first
    `frozen_stages` not at all (see `ResNet`).

    Raises:
        InputError: for another optimiser.
    """

    def decays(params):
        return jax.tree.map(lambda x: x.ndim > 1, params)

    # Frozen stages have no gradient, but weight decay would still move them.
    frozen = ["backbone/conv1/", "backbone/bn1/"][: 2 * config.frozen_stages]
    frozen += [f"backbone/stages/{i}/" for i in range(config.frozen_stages - 1)]

    def rate(path, update):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.startswith(tuple(frozen)):
            return jnp.zeros_like(update)
        return config.backbone_lr_multiplier * update if name.startswith("backbone/") else update

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
    rates = optax.stateless(lambda updates, _: jax.tree.map_with_path(rate, updates))
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update, rates)


def init_state(config: ConfigDict, optimizer: optax.GradientTransformation) -> TrainState:
    """The state at step 0. Run it under `jax.jit`: eager construction takes seconds."""
    _, params, batch_stats = detector.split(detector.create(config, nnx.Rngs(config.seed)))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params),  # a donated state must not hold one array twice
    )


def make_train_step(
    config: ConfigDict, graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """The step (state, batch) -> (state, metrics), a pure function to be jitted.

    Raises:
        InputError: for a field of `config.loss` that it cannot follow.
    """
    for field, known in (("matching", ("iou", "atss")), ("box", ("l1", "giou"))):
        if config.loss[field] not in known:
            raise InputError(
                f"config.loss.{field}: {config.loss[field]!r} is not one of {', '.join(known)}"
            )
    model_config, loss_config = config.model, config.loss
    pyramid = detector.pyramid(config)
    locations = jnp.asarray(np.concatenate(pyramid))
    per_location = len(model_config.anchor_scales) * len(model_config.aspect_ratios)

    def match(boxes, mask):
        if loss_config.matching == "iou":
            iou_range = loss_config.foreground_iou, loss_config.background_iou
            return match_anchors(locations, boxes, mask, *iou_range)
        return match_anchors_atss(pyramid, boxes, mask, per_location, loss_config.atss_candidates)

    def losses_of_image(outputs, boxes, labels, scores, mask):
        class_loss, box_loss = retinanet_loss(
            outputs.class_logits, outputs.box_offsets, locations, match(boxes, mask),
            boxes, labels, scores, loss_config.alpha, loss_config.gamma, loss_config.box,
        )  # fmt: skip
        losses = {"class_loss": class_loss, "box_loss": box_loss}
        if outputs.image_logits is not None:
            losses["image_loss"] = image_loss(outputs.image_logits, labels, scores, mask)
        return losses

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        images, boxes, mask = augment(
            key, batch["images"], batch["boxes"], batch["mask"], **config.augment
        )

        def loss_fn(params):
            model = nnx.merge(graphdef, params, state.batch_stats, copy=True)
            outputs = model(normalize(images), train=True)
            losses = jax.vmap(losses_of_image)(
                outputs, boxes, batch["labels"], batch["scores"], mask
            )
            losses = {name: value.mean() for name, value in losses.items()}
            loss = losses["class_loss"] + loss_config.box_weight * losses["box_loss"]
            loss += loss_config.image_weight * losses.get("image_loss", 0.0)
            _, _, batch_stats = detector.split(model)
            return loss, (losses, batch_stats)

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (losses, batch_stats)), grads = grad_fn(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A young average follows closely, or it would remember the random start for long.
        decay = jnp.minimum(config.train.ema_decay, (1 + state.step) / (10 + state.step))
        ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
        metrics = {
            "loss": loss,
            **losses,
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": make_schedule(config.train)(state.step),
        }
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema_params), metrics

    return train_step


def compile_training(
    config: ConfigDict, mesh: jax.sharding.Mesh
) -> tuple[Callable[[], TrainState], Callable[[TrainState, dict], tuple[TrainState, dict]]]:
    """The jitted `init()` and `step(state, batch)`: state on every device, batch split over them.

    The step takes the state's memory for the new one.
    """
    optimizer = make_optimizer(config.train)
    replicated = parallel.replicated(mesh)
    init = jit(lambda: init_state(config, optimizer), out_shardings=replicated)
    step = jit(
        make_train_step(config, detector.graphdef(config), optimizer),
        in_shardings=(replicated, parallel.sharded(mesh)),
        out_shardings=replicated,
        donate_argnums=0,
    )
    return init, step
