"""Training: the state, the step, and one loop that reads from top to bottom."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter
from tqdm import tqdm

from jaxdet import InputError, anchors, checkpoint, data, evaluate, parallel, predict
from jaxdet.augment import augment, normalize
from jaxdet.losses import retinanet_loss
from jaxdet.matching import match_anchors
from jaxdet.models import detector
from tfds_vinbig.kaggle import CLASS_NAMES


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


def print_anchor_coverage(config: ConfigDict, targets: data.Targets) -> None:
    """Say how many training boxes the anchors can reach: the others learn from poor matches."""
    model, size = config.model, config.data.image_size
    boxes, classes = targets.boxes[targets.mask], targets.classes[targets.mask]
    if not len(boxes):
        raise InputError("config.data.split: the training images have no boxes to learn from")
    best = anchors.best_iou(
        boxes, (size, size), model.levels, model.anchor_scales, model.aspect_ratios
    )
    reached = best >= 0.5
    worst = min(np.unique(classes), key=lambda c: reached[classes == c].mean())
    print(
        f"anchors reach {reached.mean():.1%} of {len(boxes)} training boxes at IoU 0.5; "
        f"fewest of {CLASS_NAMES[worst]}, {reached[classes == worst].mean():.1%}"
    )


def open_log(workdir: Path, step: int) -> Callable[[int, dict], None]:
    """A function log(step, values) that adds a line to metrics.jsonl and the values to TensorBoard.

    What an earlier run logged after `step`, where this one goes on, is dropped from both.
    """
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    checkpoint.write_atomically(path, "".join(kept))
    events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def log(step, values):
        with path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            events.add_scalar(name, value, step)
        events.flush()

    return log


def train(config: ConfigDict, workdir: Path) -> None:
    """Train from the newest checkpoint in `workdir`, or from the start, to `config.train.steps`.

    Writes `config.json`, `checkpoints/`, `metrics.jsonl` and TensorBoard events.

    Raises:
        InputError: for a bad config field, a missing dataset, or a loss that is not finite.
    """
    # Data.
    batch_size = config.train.batch_size
    rows = parallel.local_rows(batch_size)
    train_set, eval_set = data.train_and_eval(config)
    targets = data.make_targets(train_set, config.data.fusion, config.data.max_boxes)
    print(
        f"{len(train_set)} images to train on, {len(eval_set)} to evaluate on; "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    )
    print_anchor_coverage(config, targets)

    # Model and optimiser, on every device.
    mesh = parallel.make_mesh()
    optimizer = make_optimizer(config.train)
    graphdef = detector.graphdef(config)
    init = jax.jit(lambda: init_state(config, optimizer), out_shardings=parallel.replicated(mesh))
    step_fn = jax.jit(
        make_train_step(config, graphdef, optimizer),
        in_shardings=(parallel.replicated(mesh), parallel.sharded(mesh)),
        out_shardings=parallel.replicated(mesh),
        donate_argnums=0,
    )

    main_process = jax.process_index() == 0
    with checkpoint.open_manager(workdir) as manager:
        # Where to begin.
        if manager.latest_step() is None:
            state = init()
        else:
            abstract = checkpoint.abstract_of(jax.eval_shape(init), parallel.replicated(mesh))
            state = checkpoint.restore(manager, manager.latest_step(), **to_items(abstract))
            state = from_items(state)
            print(f"resuming at step {int(state.step)}")
        first = int(state.step)
        if main_process:
            text = config.to_json(indent=2, sort_keys=False)
            checkpoint.write_atomically(workdir / "config.json", text + "\n")
        log = open_log(workdir, first) if main_process else lambda step, values: None
        if first >= config.train.steps:
            return

        # The loop.
        batches = data.training_batches(
            train_set,
            targets,
            batch_size=batch_size,
            seed=config.seed,
            normal_share=config.data.normal_share,
            cache=config.data.cache,
            rows=rows,
        )
        stream = data.read_ahead(batches, first, config.data.num_workers)
        evaluator = evaluate.Evaluator(config, eval_set, mesh)
        progress = tqdm(
            total=config.train.steps,
            initial=first,
            unit="step",
            smoothing=0,  # steps are handed out ahead of their end, so only the average says when
            disable=not main_process,
        )
        since, since_step = time.perf_counter(), first
        for step in range(first + 1, config.train.steps + 1):
            state, metrics = step_fn(state, parallel.shard_batch(next(stream), mesh))
            progress.update()
            evaluates = step % config.train.evaluate_every == 0 or step == config.train.steps

            if step % config.train.log_every == 0 or evaluates:
                values = {name: float(value) for name, value in metrics.items()}
                if not math.isfinite(values["loss"]):
                    raise InputError(
                        f"the loss is {values['loss']} at step {step}: "
                        "lower config.train.learning_rate or config.train.clip_norm"
                    )
                rate = (step - since_step) * batch_size / (time.perf_counter() - since)
                log(step, {**values, "images_per_second": rate})
                progress.set_postfix_str(f"loss={values['loss']:.3f}, {rate:.0f} images/s")
                since, since_step = time.perf_counter(), step

            if evaluates:
                scores = evaluator.score(state.weights())
                flat = {k: v for k, v in scores.items() if isinstance(v, float)}
                log(step, flat)
                progress.write(f"step {step}: mAP@0.4 {scores[checkpoint.METRIC]:.3f}")
                checkpoint.save(manager, step, scores[checkpoint.METRIC], **to_items(state))
                since, since_step = time.perf_counter(), step
        progress.close()


def train_and_evaluate(config: ConfigDict, workdir: Path) -> None:
    """Train, then evaluate the last checkpoint and predict the test split where there is one."""
    train(config, workdir)
    evaluate.evaluate(config, workdir)
    if "test" in data.open_dataset(config.data.name, config.data.dir).info.splits:
        predict.predict(config, workdir)


def to_items(state: TrainState) -> dict:
    """The state as the two items of a checkpoint: what inference reads, and the rest."""
    training = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    return {"weights": state.weights(), "training": training}


def from_items(items: dict) -> TrainState:
    """The inverse of `to_items`."""
    weights, training = items["weights"], items["training"]
    return TrainState(
        training["step"],
        training["params"],
        weights["batch_stats"],
        training["opt_state"],
        weights["params"],
    )
