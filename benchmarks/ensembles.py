"""What test-time augmentation and ensembles are worth, on runs that differ in nothing but the seed.

    python benchmarks/ensembles.py --workdirs=runs/seed0,runs/seed1,runs/seed2 \
        --results=runs/ensembles.jsonl

Each run's latest checkpoint is scored on its evaluation split, which must be the same images: as it
is, with further looks, and all runs fused. `--folds=WORKDIR` adds the folds of a --mode=crossval,
scored on the phantom's test split against the truth that was drawn (a fold's own evaluation images
are training images of the others). Prints the table of docs/ensembles.md.
"""

import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs

from configs import retina
from jaxdet.data import splits
from jaxdet.data.dataset import open_dataset, read_split
from jaxdet.evaluation import scores
from jaxdet.evaluation.evaluate import Evaluator
from jaxdet.inference.detector import Loaded, load_detector
from jaxdet.inference.ensemble import fuse_tables
from jaxdet.inference.predict import predict, split_pictures
from jaxdet.runs.config import of_run
from tfds_vinbig import kaggle

WORKDIRS = flags.DEFINE_list("workdirs", None, "Runs of one config and several seeds.")
FOLDS = flags.DEFINE_string("folds", None, "Workdir of a cross-validation on the phantom.")
RESULTS = flags.DEFINE_string("results", "ensembles.jsonl", "Where a line a row is added.")

SCALES = (0.8, 1.25)
LOOKS = {
    "one look": {},
    "mirrored too": {"flip": True},
    "0.8 and 1.25 of the size too": {"scales": SCALES},
    "both: six looks": {"flip": True, "scales": SCALES},
}
NAMES = ("mAP14@0.4", "mAP@0.4")


def load(workdir: Path, tta: dict) -> Loaded:
    config = of_run(workdir, retina.get_fields())
    config.inference.tta.update(tta)
    num_classes = len(json.loads((workdir / "config.json").read_text())["run"]["class_names"])
    return load_detector(config, workdir, "latest", num_classes)


def of_seeds(workdirs: list[Path]) -> list[dict]:
    """A line for each row and run; fused ones are of no run."""
    lines, tables, case = [], {}, None
    for workdir in workdirs:
        config = of_run(workdir, retina.get_fields())
        builder = open_dataset(config.data.name, config.data.dir)
        dataset = read_split(builder, "train")
        eval_set = splits.train_and_eval(config.data, builder, dataset)[1]
        if case and list(map(str, eval_set.ids)) != list(case.ids):
            raise ValueError(f"{workdir} is evaluated on other images")
        for row, tta in LOOKS.items():
            loaded = load(workdir, tta)
            evaluator = Evaluator(loaded.detector, eval_set)
            evaluator.score(loaded.weights)  # compiles
            result = evaluator.score(loaded.weights)
            case = evaluator.case()
            tables.setdefault(row, []).append(evaluator.table)
            lines.append(
                {"row": row, "run": workdir.name, "step": loaded.step,
                 **{name: result[name] for name in NAMES},
                 "images_per_second": len(eval_set) / evaluator.seconds}
            )  # fmt: skip
            print(lines[-1], flush=True)
    for row in ("one look", "both: six looks"):
        start = time.perf_counter()
        fused = fuse_tables(tables[row])
        seconds = time.perf_counter() - start
        result = case._replace(detections=fused).summarize()
        lines.append(
            {"row": f"{len(workdirs)} runs fused, {row}", "run": None,
             **{name: result[name] for name in NAMES}, "seconds_to_fuse": seconds}
        )  # fmt: skip
        print(lines[-1], flush=True)
    return lines


def of_folds(folder: Path) -> list[dict]:
    """The same for the folds in `folder`, on the test split."""
    lines, tables = [], []
    for workdir in sorted(folder.glob("fold*")):
        loaded = load(workdir, {})
        config = loaded.detector.config
        test = read_split(open_dataset(config.data.name, config.data.dir), "test")
        pictures = split_pictures(test, config.data.image_size)
        tables.append(predict(loaded, pictures, len(test.class_names)).table)
        lines.append(line_of(tables[-1], pictures.ids, config, "one fold", workdir.name))
    fused = fuse_tables(tables)
    lines.append(line_of(fused, pictures.ids, config, f"{len(tables)} folds fused", None))
    return lines


def line_of(table, ids, config, row, run) -> dict:
    truth = kaggle.read_annotations(Path(config.data.dir).expanduser() / "phantom/truth.csv")
    truth = truth.of_splits_with(ids)
    columns = truth.ids, truth.image, truth.labels, truth.readers, truth.boxes, truth.class_names
    wanted = scores.of_files(*columns, ids, table, "raw").summarize()
    return {"row": row, "run": run, **{name: wanted[name] for name in NAMES}}


def print_table(lines: list[dict], first: str) -> None:
    """Mean ± standard deviation over the runs; beside the row `first`, run by run."""
    base = {line["run"]: line[NAMES[0]] for line in lines if line["row"] == first}
    print("\n| | mAP14@0.4 | beside the first row | mAP@0.4 |\n|---|---|---|---|")
    for row in dict.fromkeys(line["row"] for line in lines):
        mine = [line for line in lines if line["row"] == row]
        cells = [spread([line[name] for line in mine]) for name in NAMES]
        beside = [
            line[NAMES[0]] - base.get(line["run"], np.mean(list(base.values()))) for line in mine
        ]
        print(f"| {row} | {cells[0]} | {spread(beside, '+')} | {cells[1]} |")


def spread(values: list[float], sign: str = "") -> str:
    mean = f"{np.mean(values):{sign}.3f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.3f}"


def main(_):
    jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/jaxdet").expanduser()))
    parts = []
    if WORKDIRS.value:
        parts.append((of_seeds([Path(w).expanduser() for w in WORKDIRS.value]), "one look"))
    if FOLDS.value:
        parts.append((of_folds(Path(FOLDS.value).expanduser()), "one fold"))
    with Path(RESULTS.value).open("a") as file:
        for lines, _ in parts:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    for lines, first in parts:
        print_table(lines, first)


if __name__ == "__main__":
    app.run(main)
