"""Training: one loop that reads from top to bottom."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter
from tqdm import tqdm

from jaxdet import InputError, anchors, checkpoint, data, evaluate, parallel, predict
from jaxdet.config import TRAINING_IMAGES, with_anchors_of_run
from jaxdet.models.torchvision import init_from
from jaxdet.train_step import TrainState, compile_training
from tfds_vinbig.kaggle import CLASS_NAMES


def plan_anchors(config: ConfigDict, targets: data.Targets) -> ConfigDict:
    """The config with anchors planned from the training boxes, where it has none.

    Says how many boxes of each class the anchors can reach: the others learn from poor matches.
    """
    config = config.copy_and_resolve_references()
    model, size = config.model, config.data.image_size
    boxes, labels = targets.boxes[targets.mask], targets.labels[targets.mask]
    if not len(boxes):
        raise InputError("config.data.split: the training images have no boxes to learn from")
    model.levels, model.anchor_scales, model.aspect_ratios = anchors.plan(
        boxes,
        labels,
        size,
        model.num_scales,
        model.num_ratios,
        levels=model.levels,
        scales=model.anchor_scales,
        aspect_ratios=model.aspect_ratios,
    )
    layout = (model.levels, model.anchor_scales, model.aspect_ratios)
    reached = anchors.best_iou(boxes, (size, size), *layout) >= 0.5
    print(f"anchors: levels {layout[0]}, scales {layout[1]} strides, height / width {layout[2]}")
    print(f"they reach {reached.mean():.1%} of {len(boxes)} training boxes at IoU 0.5:")
    for label in np.unique(labels):
        mine = reached[labels == label]
        print(f"  {CLASS_NAMES[label]:<20} {mine.mean():6.1%} of {len(mine)}")
    return config


def with_pretrained_weights(state: TrainState, file: Path, mesh: jax.sharding.Mesh) -> TrainState:
    """The first state with the weights of a file of torchvision's, see `init_from`."""
    params, batch_stats, report = init_from(file.expanduser(), state.params, state.batch_stats)
    print(report)
    params, batch_stats = jax.device_put((params, batch_stats), parallel.replicated(mesh))
    # Copied, as a donated state must not hold one array twice.
    ema_params = jax.tree.map(jnp.copy, params)
    return state._replace(params=params, ema_params=ema_params, batch_stats=batch_stats)


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
        InputError: for a bad config field, a missing dataset, a loss that is not finite, or where
            the run there learns from other images.
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

    # Anchors: of the run that goes on here, or planned.
    resumes = checkpoint.exists(workdir)
    if resumes:
        config = with_anchors_of_run(config, workdir, same=("seed", *TRAINING_IMAGES))
    config = plan_anchors(config, targets)

    # Model and optimiser, on every device.
    mesh = parallel.make_mesh()
    init, step_fn = compile_training(config, mesh)
    if config.model.init_from and not resumes:
        # Only to see that it fits, before anything is written.
        abstract = jax.eval_shape(init)
        init_from(Path(config.model.init_from).expanduser(), abstract.params, abstract.batch_stats)

    main_process = jax.process_index() == 0
    with checkpoint.open_manager(workdir) as manager:
        # Where to begin.
        if manager.latest_step() is None:
            state = init()
            if config.model.init_from:
                state = with_pretrained_weights(state, Path(config.model.init_from), mesh)
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
        batches = data.training_batches(config, train_set, targets, rows)
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
