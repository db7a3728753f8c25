"""A data set learned by jaxdet and by torchvision's RetinaNet, from scratch: who finds more?

    pip install torch torchvision
    python benchmarks/against_torchvision.py --results=runs/against_torchvision.jsonl

The phantom, or the data set that --config names; --system=torchvision leaves jaxdet out. Network,
schedule and share of normal images are those below, whatever the config says. Where not everything
is boxed, torchvision is taught that what is not boxed is not there.

Both train a ResNet-18 with an FPN of 64 channels and heads of four convolutions on the same images
at the same size, in the same order and the same batches, augmented once for both; for as many
steps, with AdamW, the same schedule, clipping and weight decay. torchvision gets jaxdet's anchors
and thresholds; initialisation, matching, losses and NMS are its own. Its images have three equal
channels. jaxdet is evaluated with its average of the parameters, as in every run; torchvision both
as it is and with an average by the same rule. The better of the two counts, for each seed: this is
in torchvision's favour.

A finished run is a line of --results and is not run again. Prints a Markdown table of the scores on
the evaluation split.
"""

import copy
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import torch
from absl import app, flags
from ml_collections import ConfigDict, config_flags

sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs and benchmarks

from benchmarks.peers import to_torchvision, torchvision_optimizer, torchvision_retinanet
from jaxdet.data import splits
from jaxdet.data.augment import augment
from jaxdet.data.batches import Targets, make_targets, read_ahead, training_batches
from jaxdet.data.dataset import Dataset, open_dataset, read_split
from jaxdet.evaluation.evaluate import Evaluator
from jaxdet.inference.detector import Detector, to_table
from jaxdet.ops.nms import Detections
from jaxdet.runs import parallel
from jaxdet.training.plan import plan_detector
from jaxdet.training.train_step import compile_training, make_schedule

FLAGS = flags.FLAGS
LOG_EVERY = 50  # steps


def chosen(scores: dict) -> dict[str, float]:
    """The mean AP at 0.4 over the findings, and over all classes."""
    findings = next(name for name in scores if re.fullmatch(r"mAP\d+@0\.4", name))
    return {name: scores[name] for name in (findings, "mAP@0.4")}


def batches_of(
    config: ConfigDict, train_set: Dataset, targets: Targets
) -> Iterator[dict[str, np.ndarray]]:
    """The augmented batches of a run, on the host: what both systems learn from."""
    batches = training_batches(config, train_set, targets, slice(None))
    augment_fn = jax.jit(lambda key, batch: augment(key, batch, config.augment))
    stream = read_ahead(batches, 0, config.data.num_workers)
    for step in range(config.train.steps):
        batch = next(stream)
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        yield jax.tree.map(np.array, augment_fn(key, batch))


def report_progress(name: str, step: int, steps: int, loss: float, start: float) -> None:
    each = (time.perf_counter() - start) / step
    left = (steps - step) * each / 60
    print(
        f"{name} step {step}/{steps}: loss {loss:.3f}, {each * 1000:.0f} ms a step, "
        f"{left:.1f} minutes left",
        flush=True,
    )


def run_ours(config: ConfigDict, batches: Iterator[dict], evaluator: Evaluator) -> dict:
    """Scores of jaxdet after training on `batches`."""
    still = copy.deepcopy(config)
    still.augment.apply = ()  # the batches come augmented
    mesh = evaluator.detector.mesh
    init, step_fn = compile_training(still, evaluator.dataset.num_classes, mesh)
    state = init()
    name, steps = f"jaxdet seed {config.seed}", config.train.steps
    for step, batch in enumerate(batches):
        state, metrics = step_fn(state, parallel.shard_batch(batch, mesh))
        if step == 0:
            jax.block_until_ready(state)
            start = time.perf_counter()  # without the compilation
        elif step % LOG_EVERY == 0 or step == steps - 1:
            report_progress(name, step, steps - 1, float(metrics["loss"]), start)
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - start) / max(1, steps - 1)
    result = evaluator.score(state.weights())
    return {"seconds_a_step": seconds, **chosen(result)}


@torch.no_grad()
def score_torchvision(model: torch.nn.Module, evaluator: Evaluator, device: str) -> dict:
    """As `Evaluator.score`, with torchvision's detections."""
    config, dataset = evaluator.config, evaluator.dataset
    most, n = config.inference.max_detections, len(dataset)
    found = Detections(
        np.zeros((n, most, 4), np.float32),
        np.zeros((n, most), np.int64),
        np.zeros((n, most), np.float32),
        np.zeros((n, most), bool),
        np.ones(n, np.float32),
    )
    model.eval()
    for start in range(0, n, config.evaluation.batch_size):
        end = min(start + config.evaluation.batch_size, n)
        gray = torch.from_numpy(np.stack([evaluator.images[i] for i in range(start, end)]))
        images = (gray.to(device).float() / 255)[:, None].expand(-1, 3, -1, -1)
        for i, output in enumerate(model(list(images)), start):
            count = len(output["scores"])
            found.boxes[i, :count] = output["boxes"].cpu()
            found.labels[i, :count] = output["labels"].cpu()
            found.scores[i, :count] = output["scores"].cpu()
            found.mask[i, :count] = True
            found.normal[i] = 1 - found.scores[i].max()
    table = to_table(found, dataset.sizes, config.data.image_size, dataset.num_classes)
    return chosen(evaluator.case()._replace(detections=table).summarize())


def run_theirs(config: ConfigDict, batches: Iterator[dict], evaluator: Evaluator) -> dict:
    """Scores of torchvision after training on `batches`: the better of its weights and average."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config.seed)
    model = torchvision_retinanet(config).to(device, memory_format=torch.channels_last).train()
    average = copy.deepcopy(model)
    optimizer = torchvision_optimizer(config, model)
    parameters, averages = list(model.parameters()), list(average.parameters())
    steps = config.train.steps
    rates = np.asarray(jax.vmap(make_schedule(config.train))(np.arange(steps)))
    start = time.perf_counter()
    for step, batch in enumerate(batches):
        images, targets = to_torchvision(batch, device)
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.train.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = float(rates[step])
        optimizer.step()
        with torch.no_grad():  # the rule of `make_train_step`
            decay = min(config.train.ema_decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(averages, parameters, 1 - decay)
        if step == 0:
            start = time.perf_counter()  # the first step is left out on both sides
        elif step % LOG_EVERY == 0 or step == steps - 1:
            name = f"torchvision seed {config.seed}"
            report_progress(name, step, steps - 1, loss.item(), start)
    seconds = (time.perf_counter() - start) / max(1, steps - 1)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)  # BatchNorm's statistics are averages already, as on the other side
    both = {
        "weights": score_torchvision(model, evaluator, device),
        "average": score_torchvision(average, evaluator, device),
    }
    better = max(both, key=lambda name: tuple(both[name].values()))  # of findings, then of all
    return {"seconds_a_step": seconds, **both[better], "evaluated": better, "both": both}


def spread(values: list[float]) -> str:
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def print_table(results: list[dict]) -> None:
    metrics = [name for name in results[0] if name.startswith("mAP")]
    print(f"\n| system | seed | {' | '.join(metrics)} | evaluated | ms a step |")
    print("|---|---|---|---|---|---|")
    for name in SYSTEMS:
        lines = [line for line in results if line["system"] == name]
        for line in lines:
            cells = " | ".join(f"{line[metric]:.3f}" for metric in metrics)
            evaluated = line.get("evaluated", "average")
            milliseconds = f"{line['seconds_a_step'] * 1000:.0f}"
            print(f"| {name} | {line['seed']} | {cells} | {evaluated} | {milliseconds} |")
        if lines:
            cells = " | ".join(spread([line[metric] for line in lines]) for metric in metrics)
            print(f"| {name} | mean ± standard deviation | {cells} | | |")


SYSTEMS = {"jaxdet": run_ours, "torchvision": run_theirs}


def main(_):
    config = FLAGS.config
    # The network that torchvision can have too.
    config.model.backbone.depth, config.model.backbone.width = 18, 64
    config.model.fpn_channels = config.model.head_channels = 64
    config.model.head_depth = 4
    config.model.levels = (2, 3, 4, 5, 6)
    config.model.num_scales, config.model.num_ratios = 2, 3
    config.data.normal_share, config.train.learning_rate = 0.25, 2e-3
    config.train.steps, config.train.warmup_steps = FLAGS.steps, FLAGS.steps // 10
    builder = open_dataset(config.data.name, config.data.dir)
    dataset = read_split(builder, "train")
    train_set, eval_set = splits.train_and_eval(config.data, builder, dataset)
    targets = make_targets(train_set, config.data.fusion, config.data.image_size)
    config, _ = plan_detector(config, targets, dataset.class_names)
    detector = Detector(config, dataset.num_classes, parallel.make_mesh())
    evaluator = Evaluator(detector, eval_set)

    path = Path(FLAGS.results).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    study = {"steps": FLAGS.steps, "data": config.data.name, "fold": config.data.fold}
    older = {"data": "tfds_vinbig/phantom", "fold": 0}  # of lines that do not say
    runs = [older | json.loads(line) for line in lines]
    done = {(r["system"], r["seed"]): r for r in runs if study.items() <= r.items()}
    # Seed by seed, so that a run that is cut short has both systems.
    for seed in range(FLAGS.seeds):
        for name in FLAGS.system:
            if (name, seed) in done:
                continue
            config.seed = seed
            batches = batches_of(config, train_set, targets)
            scores = SYSTEMS[name](config, batches, evaluator)
            result = {"system": name, "seed": seed, **study, **scores}
            with path.open("a") as file:
                file.write(json.dumps(result) + "\n")
            done[name, seed] = result
            print(", ".join(f"{k} {v}" for k, v in result.items()), flush=True)
    print(
        f"\n{FLAGS.steps} steps of {config.train.batch_size} images of {config.data.image_size} "
        f"pixels; {len(eval_set)} images to evaluate on, ground truth "
        f"{config.evaluation.ground_truth}"
    )
    print_table([r for r in done.values() if r["seed"] < FLAGS.seeds])


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", "configs/phantom.py", "The data's config.")
    flags.DEFINE_string("results", "runs/against_torchvision.jsonl", "Finished runs, one a line.")
    flags.DEFINE_integer("steps", 500, "Steps of each run; a tenth of them warms up.")
    flags.DEFINE_multi_enum("system", list(SYSTEMS), list(SYSTEMS), "Which.")
    flags.DEFINE_integer("seeds", 3, "Runs of each system, from seed 0.", lower_bound=1)
    app.run(main)
