"""Does the data wait? Images decoded a second, and steps with the real pipeline beside one batch.

    python benchmarks/data.py

Draws films of 256 and 1024 pixels, builds datasets of them, and measures (1) how many images a
second are made into batches by so many threads, from the records and from memory;
(2) the step of `configs/phantom.py` fed with one constant batch, with images kept in memory, and
with images decoded for each batch, by turns. Everything that the pipeline costs is in (2): it runs
on the processors that compute the step too.
"""

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs and benchmarks

import jax
from absl import app, flags

from benchmarks import peers
from configs import phantom
from jaxdet.data.batches import make_targets, read_ahead, training_batches
from jaxdet.data.dataset import Dataset, open_dataset, read_split
from jaxdet.runs import parallel
from jaxdet.training.train_step import compile_training
from tfds_vinbig.phantom import draw_folder
from tfds_vinbig.tfds_vinbig_dataset_builder import build

FLAGS = flags.FLAGS
flags.DEFINE_multi_integer("size", [256, 1024], "Pixels of the films.")
flags.DEFINE_multi_integer("workers", [1, 2, 4, 8], "Threads that read ahead.")
flags.DEFINE_integer(
    "images", 1600, "Films of 256 pixels; of other sizes, as many as have as many pixels in all. "
    "Few mislead: Grain's shuffle takes 0.5 ms an image for 32 films, and 0.02 for 1,000.",
)  # fmt: skip
flags.DEFINE_integer("rounds", 5, "Rounds, in each of which every way has its turn.")
flags.DEFINE_integer("steps", 20, "Steps a turn.")


def make_dataset(folder: Path, size: int) -> Dataset:
    """Films of a size, drawn and built below `folder`."""
    count = FLAGS.images * 256**2 // size**2
    draw_folder(folder / f"films{size}", num_train=count, num_test=1, size=size)
    build(f"films{size}", folder, manual_dir=folder / f"films{size}", size=size)
    return read_split(open_dataset(f"tfds_vinbig/films{size}", str(folder)), "train")


def make_batches(dataset: Dataset, size: int, keep: bool):
    """The batches of `configs/phantom.py` with images of `size` pixels."""
    config = phantom.get_config()
    config.data.image_size, config.data.cache = size, keep
    targets = make_targets(dataset, config.data.fusion, size)
    return training_batches(config, dataset, targets, slice(None))


def decoded(dataset: Dataset, size: int) -> list[str]:
    """Rows of images a second, by threads."""
    batches = {keep: make_batches(dataset, size, keep) for keep in (True, False)}
    batch_size = len(batches[True][0]["images"])
    count = len(dataset) // batch_size

    def take(keep, workers):
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(batches[keep].__getitem__, range(count)))

    calls = {f"{n} threads": lambda n=n: take(False, n) for n in FLAGS.workers}
    calls["kept in memory"] = lambda: take(True, 1)
    turns = peers.in_turns(calls, FLAGS.rounds)
    return [f"| {size} | {n} | {peers.spread(count * batch_size / s)} |" for n, s in turns.items()]


def fed(dataset: Dataset) -> None:
    """Print the time of a step by what feeds it."""
    config = phantom.get_config()
    config.model.anchor_scales, config.model.aspect_ratios = (2.24,), (0.71,)
    size = config.data.image_size
    streams = {
        "kept in memory": read_ahead(make_batches(dataset, size, True), 0, 4),
        "decoded for each batch": read_ahead(make_batches(dataset, size, False), 0, 4),
    }
    constant = next(streams["kept in memory"])
    mesh = parallel.make_mesh()
    init, step = compile_training(config, dataset.num_classes, mesh)
    state = init()
    step = step.lower(state, parallel.shard_batch(constant, mesh)).compile()

    def run(draw):
        nonlocal state
        for _ in range(FLAGS.steps):
            state, _ = step(state, parallel.shard_batch(draw(), mesh))
        jax.block_until_ready(state)

    calls = {"one constant batch": lambda: run(lambda: constant)}
    calls |= {name: lambda s=stream: run(lambda: next(s)) for name, stream in streams.items()}
    seconds = peers.in_turns(calls, FLAGS.rounds)
    print("\n| a step fed with | s (range) | beside one batch (range) |\n|---|---|---|")
    for name, values in seconds.items():
        ratio = values / seconds["one constant batch"]
        print(f"| {name} | {peers.spread(values / FLAGS.steps)} | {peers.spread(ratio)} |")


def main(_):
    print(peers.versions())
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        sets = {size: make_dataset(Path(folder), size) for size in FLAGS.size}
        print(f"drawn and built in {time.perf_counter() - start:.0f} s")
        rows = [row for size, dataset in sets.items() for row in decoded(dataset, size)]
        print("\n| pixels | images | images/s (range) |\n|---|---|---|", *rows, sep="\n")
        fed(sets[min(sets)])


if __name__ == "__main__":
    app.run(main)
