"""Training: one loop that reads from top to bottom."""

import math
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxdet import InputError
from jaxdet.data.batches import fuse_readers, pad, read_ahead, training_batches, training_images
from jaxdet.data.dataset import Dataset
from jaxdet.evaluation.evaluate import Evaluator, truth_of
from jaxdet.evaluation.metrics import check_best_by
from jaxdet.inference.detector import Detector, Loaded
from jaxdet.models import BACKBONES
from jaxdet.runs import checkpoint, parallel, signals, workdir
from jaxdet.runs.fields import Fields
from jaxdet.runs.identity import check_run, new_run
from jaxdet.runs.timers import stage
from jaxdet.training import relabel, replay
from jaxdet.training.device_memory import compile_to_fit
from jaxdet.training.plan import plan_detector
from jaxdet.training.start import Start, open_start
from jaxdet.training.train_step import TrainState, compile_training


def train(
    config: ConfigDict,
    fields: Fields,
    dataset: Dataset,
    train_set: Dataset,
    eval_set: Dataset,
    folder: Path,
) -> tuple[Loaded, Evaluator]:
    """Train from the newest checkpoint in `folder`, or from the start, to `config.train.steps`.

    Writes `config.json`, `checkpoints/`, `metrics.jsonl` and TensorBoard events.

    Args:
        fields: all there are, for what the run there may lack or have otherwise.
        dataset: the whole split, of which `train_set` is a part.
        folder: the workdir.

    Returns:
        The detector with its last weights, and what has scored those.

    Raises:
        InputError: for a bad config field, a loss that is not finite, or where the run there is
            another one.
    """
    # Data.
    batch_size = config.train.batch_size
    parallel.check_batch_size("train.batch_size", batch_size, config.train.accumulate)
    parallel.check_batch_size("evaluation.batch_size", config.evaluation.batch_size)
    check_best_by(config.evaluation.to_dict(), dataset.class_names)
    # Of the training images alone: what readers drew in others says nothing of their skill here.
    findings = fuse_readers(train_set, config.data.fusion)
    targets = pad(train_set, findings, config.data.image_size)
    truth_of(eval_set, config.evaluation.ground_truth)  # only to see that there is one
    print(
        f"{len(train_set)} images to train on, {len(eval_set)} to evaluate on; "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    )
    if train_set.num_unknown:
        print(f"{train_set.num_unknown} pairs of image and class may have more than is boxed")

    # The run that goes on here, or a new one with a plan of its own.
    if workdir.has_checkpoint(folder):
        config, run = check_run(config, fields, dataset, train_set, folder)
    else:
        config, planned = plan_detector(config, targets, dataset.class_names)
        run = new_run(config, dataset, train_set, planned)

    # Model and optimiser, on every device.
    mesh = parallel.make_mesh()
    init, step_fn = compile_training(config, dataset.num_classes, mesh)
    detector = Detector(config, dataset.num_classes, mesh)
    abstract = jax.eval_shape(init)
    start, backbone = None, BACKBONES[config.model.backbone.name]
    if config.model.init_from and not workdir.has_checkpoint(folder):
        start = open_start(config.model.init_from, dataset.class_names, backbone, mesh)
        # Only to see that it fits, before anything is written.
        start.fill(*jax.tree.map(jnp.zeros_like, (abstract.params, abstract.batch_stats)))
        run = run._replace(began_from=start.began_from)
    check_room(folder, abstract)

    best_by = config.evaluation.best_by
    scores_by_step = workdir.read_scores(folder, best_by) if workdir.has_checkpoint(folder) else {}
    with checkpoint.open_manager(folder, scores_by_step) as manager:
        # Where to begin.
        if manager.latest_step() is None:
            with stage("compiling"):
                state = jax.block_until_ready(init())
            if start:
                state = with_weights_of(start, state, mesh)
        else:
            abstract = checkpoint.abstract_of(abstract, parallel.replicated(mesh))
            items, newest = checkpoint.restore_newest(manager, **abstract.to_items())
            state = TrainState.from_items(items)
            checkpoint.delete_leftovers(manager, newest, scores_by_step)
            print(f"resuming at step {newest}")
        first = int(state.step)
        for step in [step for step in scores_by_step if step > first]:
            del scores_by_step[step]
        workdir.write_config(folder, config, run)
        if relabel.made_at(config, first) == 0:
            workdir.write_skills(folder, findings.skills, dataset.class_names)
        log = workdir.open_log(folder, first)
        with stage("decoding"):
            keep, trains = config.data.cache, first < config.train.steps
            beside = len(train_set) * config.data.image_size**2 if keep and trains else 0
            evaluator = Evaluator(detector, eval_set, keep and trains, beside)

        def stop_if_asked():
            if number := agree(signals.asked()):
                raise signals.Stopped(number)

        def evaluate(step):
            with stage("evaluating"):
                scores = evaluator.score(state.weights(), between=stop_if_asked)
            log(step, {name: scores[name] for name in scores["metrics"]})
            if scores[best_by] is not None:
                scores_by_step[step] = scores[best_by]
            progress.write(f"step {step}: {best_by} {scores_by_step.get(step, math.nan):.3f}")

        def relabelled(step):
            sources = detector, state.weights(), train_set, images
            with stage("relabelling"):
                return relabel.relabel(*sources, folder, step, between=stop_if_asked)

        # The loop. In it a signal waits for the end of a step, and for its checkpoint.
        agree, watchdog = parallel.make_agree(mesh), parallel.Watchdog()
        if first < config.train.steps:
            with stage("decoding"):
                rows = parallel.local_rows(batch_size)
                images = training_images(config, train_set)
            if relabel.relabels(config, first):  # it may have been stopped before
                targets = relabelled(first)
            elif made_at := relabel.made_at(config, first):
                targets = relabel.read(folder, made_at, len(train_set))
            with stage("decoding"):
                batches = training_batches(config, train_set, targets, rows, images)
                batch = parallel.shard_batch(batches[first], mesh)
            with stage("compiling"):
                step_fn = compile_to_fit(step_fn, state, batch, config.train.accumulate)
            stream = read_ahead(batches, first, config.data.num_workers)
        progress = tqdm(
            total=config.train.steps,
            initial=first,
            unit="step",
            smoothing=0,  # steps are handed out ahead of their end, so only the average says when
            disable=None if jax.process_index() == 0 else True,
        )
        with signals.held(), progress, stage("training"), watchdog:
            if evaluates(config, first) and first not in scores_by_step:
                evaluate(first)  # stopped between a checkpoint and its evaluation
            since, since_step = time.perf_counter(), first
            for step in range(first + 1, config.train.steps + 1):
                state, metrics = step_fn(state, parallel.shard_batch(next(stream), mesh))
                progress.update()
                saves = evaluates(config, step) or step % config.train.checkpoint_every == 0
                saves |= relabel.relabels(config, step)

                if step % config.train.log_every == 0 or saves:
                    checkpoint.check(manager)
                    values = {k: v.item() for k, v in jax.device_get(metrics).items()}
                    counts = [k for k, v in values.items() if isinstance(v, int)]
                    rate = (step - since_step) * batch_size / (time.perf_counter() - since)
                    log(step, {**values, "images_per_second": rate})
                    said = [f"loss={values['loss']:.3f}", f"{rate:.0f} images/s"]
                    said += [
                        f"{values[name]} {name.replace('_', ' ')}"
                        for name in counts
                        if values[name]
                    ]
                    progress.set_postfix_str(", ".join(said))
                    since, since_step = time.perf_counter(), step
                    if values["skipped_in_a_row"] >= config.train.max_skipped_steps:
                        watchdog.rest()
                        checkpoint.save(manager, step, **state.to_items())
                        raise replay.failure(config, train_set, targets, folder, step, values)

                # Saved before it is scored: an evaluation may fail, and weights took longer.
                number = agree(signals.asked())
                watchdog.beat()
                if saves or number:
                    watchdog.rest()
                    checkpoint.save(manager, step, **state.to_items())
                if number:
                    raise signals.Stopped(number, step)
                if evaluates(config, step):
                    evaluate(step)
                if relabel.relabels(config, step):
                    targets = relabelled(step)
                    batches = training_batches(config, train_set, targets, rows, images)
                    stream = read_ahead(batches, step, config.data.num_workers)
                if evaluates(config, step) or relabel.relabels(config, step):
                    since, since_step = time.perf_counter(), step
            checkpoint.wait(manager)
    with stage("evaluating"):
        if evaluator.table is None:  # nothing was left to do
            evaluator.score(state.weights())
    return Loaded(detector, state.weights(), int(state.step)), evaluator


def evaluates(config: ConfigDict, step: int) -> bool:
    """Whether a step is evaluated."""
    return step > 0 and (step % config.train.evaluate_every == 0 or step == config.train.steps)


def check_room(folder: Path, state: TrainState) -> None:
    """Raise InputError unless the disk of `folder` has room for the checkpoints that are kept."""
    sizes = [x.size * x.dtype.itemsize for x in jax.tree.leaves(state)]
    needed = 4 * sum(sizes)  # three, and one that is being written
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"--workdir: checkpoints need {needed / 1e6:.0f} MB, and {existing} has room for "
            f"{free / 1e6:.0f} MB"
        )


def with_weights_of(start: Start, state: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
    """The initial state with the weights of `start`, where they fit."""
    params, batch_stats, report = start.fill(*jax.device_get((state.params, state.batch_stats)))
    print(report)
    params, batch_stats = jax.device_put((params, batch_stats), parallel.replicated(mesh))
    # Copied, as a donated state must not hold one array twice.
    ema_weights = jax.tree.map(jnp.copy, params)
    return state._replace(params=params, ema_weights=ema_weights, batch_stats=batch_stats)
