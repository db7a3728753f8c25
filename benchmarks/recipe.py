"""What each part of the recipe does on the phantom: every run differs from the first in one thing.

    python benchmarks/recipe.py --results=runs/recipe.jsonl

Trains `configs/phantom.py`, made shorter, with several seeds, and adds a line to --results after
each run, see study.py. 36 runs of 300 steps take about 70 minutes on two idle cores.

Then prints a Markdown table of the scores on the evaluation split, mean and standard deviation over
the seeds: mAP14@0.4, its difference from the first row's with the same seed, mAP@0.4, and the AP of
"No finding". The last parameters instead of their average need no training of their own.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs

from benchmarks.study import mean_and_spread, run_all
from jaxdet.data import splits
from jaxdet.data.batches import make_targets, read_ahead, training_batches
from jaxdet.data.dataset import open_dataset, read_split
from jaxdet.evaluation.evaluate import Evaluator
from jaxdet.inference.detector import Detector
from jaxdet.runs import parallel
from jaxdet.training.plan import plan_detector
from jaxdet.training.train_step import compile_training

CONFIG = config_flags.DEFINE_config_file("config", "configs/phantom.py", "What is varied.")
RESULTS = flags.DEFINE_string("results", "runs/recipe.jsonl", "A line a run.")
STEPS = flags.DEFINE_integer("steps", 300, "Of each run.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each variant.")
ONLY = flags.DEFINE_multi_string("only", [], "Variants to run, by name; all where none is named.")

# Plain, so that each variant switches one thing.
BASE = {
    "data.fusion": "wbf@0.4",
    "data.normal_share": 0.25,
    "data.balance_classes": False,
    "model.levels": (2, 3, 4, 5, 6),
    "model.num_scales": 2,
    "model.num_ratios": 3,
    "augment.flip": 0.0,
    "model.image_head": False,
    "loss.matching": "iou",
    "loss.box": "l1",
    "loss.box_weight": 1.0,
    "train.learning_rate": 2e-3,
}
COCO = {
    "model.levels": (3, 4, 5, 6, 7),
    "model.anchor_scales": (4.0, 5.04, 6.35),
    "model.aspect_ratios": (0.5, 1.0, 2.0),
}
ATSS = {"loss.matching": "atss"}
GIOU = {"loss.box": "giou", "loss.box_weight": 2.0}
IMAGE_HEAD = {"model.image_head": True}
PHANTOM = (
    ATSS
    | GIOU
    | {
        "data.normal_share": 0.1,
        "model.levels": (2, 3, 4, 5),
        "model.num_scales": 1,
        "model.num_ratios": 1,
        "train.learning_rate": 1.4e-3,
    }
)
FCOS = {"model.name": "fcos", "model.head_norm": "group", "loss.box_weight": 1.0}  # configs/fcos.py
HALF_WAY = "base, stopped half way"
VARIANTS = {
    "base": {},
    HALF_WAY: {},
    "COCO's anchors, not planned": COCO,
    "ATSS instead of IoU matching": ATSS,
    "GIoU instead of L1": GIOU,
    "image head": IMAGE_HEAD,
    "votes as soft targets": {"data.fusion": "votes@0.4"},
    "found by at least 2 readers": {"data.fusion": "agree@0.4:2"},
    "found by all 3 readers": {"data.fusion": "agree@0.4:3"},
    "varifocal loss": {"loss.class_loss": "varifocal", "loss.alpha": 0.75},
    "classes balanced": {"data.balance_classes": True},
    "normal images as in the data": {"data.normal_share": None},
    "flips": {"augment.flip": 0.5},
    "ATSS and GIoU": ATSS | GIOU,
    "ATSS, GIoU and image head": ATSS | GIOU | IMAGE_HEAD,
    "configs/phantom.py": PHANTOM,
    "configs/phantom.py with FCOS": PHANTOM | FCOS,
}
LAST = ", last parameters, not their average"


def run(config, train_set, eval_set, steps) -> dict[str, dict]:
    """Train `steps` steps; the scores by the name of the table's row that they belong to."""
    targets = make_targets(train_set, config.data.fusion, config.data.image_size)
    config, _ = plan_detector(config, targets, train_set.class_names)
    mesh = parallel.make_mesh()
    init, step_fn = compile_training(config, train_set.num_classes, mesh)
    batches = training_batches(config, train_set, targets, slice(None))
    stream = read_ahead(batches, 0, config.data.num_workers)
    state = init()
    for _ in range(steps):
        state, metrics = step_fn(state, parallel.shard_batch(next(stream), mesh))
    if not np.isfinite(float(metrics["loss"])):
        raise FloatingPointError("the loss is not finite")

    evaluator = Evaluator(Detector(config, train_set.num_classes, mesh), eval_set)
    last = {"params": state.params, "batch_stats": state.batch_stats}
    return {"": evaluator.score(state.weights()), LAST: evaluator.score(last)}


def print_table(lines: list[dict]) -> None:
    """Mean and standard deviation over the seeds; beside the first row, seed by seed."""
    print("\n| | mAP14@0.4 | beside the first | mAP@0.4 | AP of No finding |")
    print("|---|---|---|---|---|")
    rows = {}
    for line in lines:
        for row, scores in line["scores"].items():
            rows.setdefault(line["variant"], {}).setdefault(row, {})[line["seed"]] = scores
    base = next(rows[variant][""] for variant in VARIANTS if variant in rows)
    for variant in VARIANTS:
        for row, by_seed in rows.get(variant, {}).items():
            if row == LAST and variant not in ("base", HALF_WAY):
                continue  # the average does the same for each variant
            cells = [f"{m:.3f} ± {s:.3f}" for m, s in mean_and_spread(by_seed.values())]
            ((mean, spread), *_) = mean_and_spread(
                np.subtract(by_seed[seed], base[seed]) for seed in by_seed
            )
            cells.insert(1, f"{mean:+.3f} ± {spread:.3f}")
            print(f"| {variant}{row} | {' | '.join(cells)} |")


def main(_):
    jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/jaxdet").expanduser()))
    config = CONFIG.value
    config.update_from_flattened_dict(BASE)
    config.train.update(
        {"steps": STEPS.value, "warmup_steps": STEPS.value // 10, "ema_decay": 0.99}
    )
    builder = open_dataset(config.data.name, config.data.dir)
    dataset = read_split(builder, "train")
    train_set, eval_set = splits.train_and_eval(config.data, builder, dataset)

    def run_variant(variant, seed):
        run_config = config.copy_and_resolve_references()
        run_config.seed = seed
        run_config.update_from_flattened_dict(VARIANTS[variant])
        steps = STEPS.value // 2 if variant == HALF_WAY else STEPS.value
        scores = run(run_config, train_set, eval_set, steps)
        rows = {
            row: [s["mAP14@0.4"], s["mAP@0.4"], s["AP"]["No finding"]] for row, s in scores.items()
        }
        return {"scores": rows}

    path, chosen = Path(RESULTS.value), ONLY.value
    print_table(run_all(path, VARIANTS, SEEDS.value, STEPS.value, chosen, run_variant))


if __name__ == "__main__":
    app.run(main)
