"""Files of 15,000 images and 300 detections on each of 3,000, beside what one would use instead.

    pip install torch torchvision pycocotools "psutil>=7.2"
    python benchmarks/files.py

| task | jaxdet | instead |
|---|---|---|
| score | `average_precision` at IoU 0.4 | pycocotools' COCOeval at IoU 0.4, boxes read already |
| score files | from a submission | from COCO's JSON: `loadRes` and COCOeval |
| write | `submission.to_csv` | a string for each box by pandas, joined for each image |
| build | `python -m tfds_vinbig` | a loop with Pillow: open, make grey, resize, save |
| read | its records, decoded | train.csv by pandas, the loop's pictures one by one; TFDS itself |

By turns, round by round; "ratio" is the median of the rounds' ratios. Pictures are 500 drawn films
of 256 pixels, each under 30 names. Labels fused beside ensemble-boxes are in `fusion.py`.
"""

import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for benchmarks

import numpy as np
import pandas as pd
import psutil
from absl import app, flags
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks import peers
from jaxdet.data.batches import decode_all
from jaxdet.data.dataset import open_dataset, read_split
from jaxdet.ops.boxes import BoxTable
from jaxdet.ops.metrics import average_precision
from tfds_vinbig import submission
from tfds_vinbig.kaggle import CLASS_NAMES
from tfds_vinbig.phantom import draw_folder

FLAGS = flags.FLAGS
TASKS = ["score", "score files", "write", "build", "read"]
flags.DEFINE_multi_enum("task", TASKS, TASKS, "Which; reading needs building before it.")
flags.DEFINE_integer("rounds", 3, "Rounds, in each of which both have their turn.")
flags.DEFINE_integer("scored", 3000, "Images with detections.")
flags.DEFINE_integer("built", 15000, "Images built and read.")
SIZE = 256
DRAWN = 500
NUM_CLASSES = len(CLASS_NAMES)
CLASS_IDS = (*range(NUM_CLASSES), NUM_CLASSES)  # the last is "No finding"


def random_table(rng: np.random.Generator, images: int, each: int) -> BoxTable:
    """`each` boxes on every image, with scores that differ."""
    n = images * each
    corner, extent = rng.uniform(0, 1500, (n, 2)), rng.uniform(100, 500, (n, 2))
    return BoxTable(
        image=np.repeat(np.arange(images), each),
        labels=rng.integers(0, NUM_CLASSES, n),
        boxes=np.concatenate([corner, corner + extent], axis=1),
        scores=rng.permutation(n) / n,
    )


def coco_rows(table: BoxTable) -> list[dict]:
    """Rows of COCO's `annotations`, or of its results."""
    x, y, x2, y2 = table.boxes.T
    columns = zip(
        table.image.tolist(), table.labels.tolist(), table.scores.tolist(),
        np.stack([x, y, x2 - x, y2 - y], axis=1).tolist(), strict=True,
    )  # fmt: skip
    return [
        {"id": i, "image_id": image, "category_id": 1 + label, "score": score, "bbox": box,
         "area": box[2] * box[3], "iscrowd": 0}
        for i, (image, label, score, box) in enumerate(columns, 1)
    ]  # fmt: skip


def coco_score(truth: COCO, detections: COCO) -> float:
    evaluation = COCOeval(truth, detections, "bbox")
    evaluation.params.iouThrs = np.array([0.4])
    evaluation.params.maxDets = [300]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"]
    return float(precision[precision >= 0].mean())


def pandas_csv(ids: list[str], table: BoxTable) -> str:
    """A submission as a notebook makes it."""
    frame = pd.DataFrame(table.boxes, columns=["x1", "y1", "x2", "y2"]).round(2)
    frame.insert(0, "score", table.scores)
    frame.insert(0, "label", table.labels)
    words = frame.astype(str).agg(" ".join, axis=1)
    strings = words.groupby(np.array(ids)[table.image]).agg(" ".join)
    return strings.reindex(ids).rename_axis("image_id").rename("PredictionString").to_csv()


def quiet(function, *args):
    """pycocotools tells how long it took."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args)


def of_detections(folder: Path) -> dict[str, dict]:
    """The tasks about boxes: jaxdet's and the other's way of each."""
    rng = np.random.default_rng(0)
    ids = [f"{i:032x}" for i in range(FLAGS.scored)]
    truth, detections = random_table(rng, FLAGS.scored, 3), random_table(rng, FLAGS.scored, 300)
    # Every hundredth is near a truth of its image.
    near = truth.boxes + rng.normal(0, 20, truth.boxes.shape)
    detections.boxes[::100], detections.labels[::100] = near, truth.labels
    images = [{"id": i, "width": 2000, "height": 2000} for i in range(FLAGS.scored)]
    categories = [{"id": 1 + i, "name": name} for i, name in enumerate(CLASS_NAMES)]
    data = {"images": images, "categories": categories, "annotations": coco_rows(truth)}
    (folder / "truth.json").write_text(json.dumps(data))
    (folder / "detections.json").write_text(json.dumps(coco_rows(detections)))
    (folder / "submission.csv").write_text(submission.to_csv(ids, detections, CLASS_IDS))
    coco_truth = quiet(COCO, folder / "truth.json")
    coco_detections = quiet(coco_truth.loadRes, str(folder / "detections.json"))

    def score(table):
        return np.nanmean(average_precision(table, truth, (0.4,), NUM_CLASSES))

    theirs = quiet(coco_score, coco_truth, coco_detections)
    print(f"mAP@0.4: jaxdet {score(detections):.4f}, pycocotools at 101 recalls {theirs:.4f}\n")
    written = folder / "written.csv"
    return {
        "score": {
            "jaxdet": lambda: score(detections),
            "pycocotools": lambda: quiet(coco_score, coco_truth, coco_detections),
        },
        "score files": {
            "jaxdet": lambda: score(submission.read(folder / "submission.csv", CLASS_IDS)[1]),
            "pycocotools": lambda: quiet(
                lambda: coco_score(coco_truth, coco_truth.loadRes(str(folder / "detections.json")))
            ),
        },
        "write": {
            "jaxdet": lambda: written.write_text(submission.to_csv(ids, detections, CLASS_IDS)),
            "pandas": lambda: written.write_text(pandas_csv(ids, detections)),
        },
    }


def many_films(folder: Path) -> None:
    """A Kaggle folder of `FLAGS.built` films: drawn ones, each under many names."""
    draw_folder(folder, num_train=DRAWN, num_test=1, size=SIZE)
    films = sorted((folder / "train").iterdir())
    new_ids = {film.stem: [film.stem] for film in films}
    for i in range(FLAGS.built - DRAWN):
        film, new_id = films[i % DRAWN], f"{i:032x}"
        os.link(film, film.with_stem(new_id))
        new_ids[film.stem].append(new_id)
    for table in ("train.csv", "train_meta.csv"):
        with open(folder / table, newline="") as file:
            header, *rows = csv.reader(file)
        with open(folder / table, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows([i, *rest] for old, *rest in rows for i in new_ids[old])


def of_films(folder: Path) -> dict[str, dict]:
    """The tasks about pictures."""
    films = folder / "films"
    many_films(films)
    paths = sorted((films / "train").iterdir())

    def build_ours():
        shutil.rmtree(folder / "tfds", ignore_errors=True)
        command = [sys.executable, "-m", "tfds_vinbig", "--config=films", f"--size={SIZE}",
                   f"--manual_dir={films}", f"--data_dir={folder / 'tfds'}"]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def build_theirs():
        shutil.rmtree(folder / "pictures", ignore_errors=True)
        (folder / "pictures").mkdir()
        for path in paths:
            with Image.open(path) as image:
                image.convert("L").resize((SIZE, SIZE)).save(folder / "pictures" / path.name)

    # Called once before anything is timed, and so built then where building is not asked for.
    def read_ours():
        if not (folder / "tfds").exists():
            build_ours()
        dataset = read_split(open_dataset("tfds_vinbig/films", str(folder / "tfds")), "train")
        decode_all(dataset, SIZE, "train")

    def read_theirs():
        if not (folder / "pictures").exists():
            build_theirs()
        pd.read_csv(films / "train.csv")
        found = sorted((folder / "pictures").iterdir())
        pixels = np.empty((len(found), SIZE, SIZE), np.uint8)
        for i, path in enumerate(found):
            with Image.open(path) as image:
                pixels[i] = image

    def read_by_tfds():
        source = open_dataset("tfds_vinbig/films", str(folder / "tfds")).as_data_source("train")
        pixels = np.empty((len(source), SIZE, SIZE, 1), np.uint8)
        for i, record in enumerate(source):
            pixels[i] = record["image"]

    return {
        "build": {"jaxdet": build_ours, "Pillow": build_theirs},
        "read": {"jaxdet": read_ours, "Pillow": read_theirs, "TFDS": read_by_tfds},
    }


def same_memory() -> None:
    """None is kept from who came before, and the host of a virtual machine has given what is free.

    Otherwise who is next pays for it, up to two seconds for a GB; Python's protobuf gives all back
    after some thousand messages, so that would be jaxdet and TFDS alone.
    """
    psutil.heap_trim()
    np.ones(2 << 30, np.uint8)
    psutil.heap_trim()


def main(_):
    print(peers.versions(), end="\n\n")
    with tempfile.TemporaryDirectory() as folder:
        tasks = of_detections(Path(folder))
        if not tasks.keys() >= set(FLAGS.task):
            tasks |= of_films(Path(folder))
        rows = []
        for task in FLAGS.task:
            seconds = peers.in_turns(tasks[task], FLAGS.rounds, same_memory)
            for name, values in seconds.items():
                ratio = np.median(values / seconds["jaxdet"])
                rows.append(f"| {task} | {name} | {peers.spread(values)} | {ratio:.2g} |")
        print("\n| task | by | s (range) | ratio |\n|---|---|---|---|")
        print("\n".join(rows))


if __name__ == "__main__":
    app.run(main)
