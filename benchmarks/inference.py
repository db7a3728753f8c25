"""Images to final detections: jaxdet and torchvision with the same RetinaNet and thresholds.

    pip install torch torchvision
    python benchmarks/inference.py

From uint8 images in the host's memory to detections there, NMS included; by turns in one process,
with a product of large matrices, which says what the machine can do. Ratios are medians of the
rounds'. Both have random weights, drawn anew for each, and so about as many candidates for NMS as a
trained network has with a threshold of 0.01. torchvision runs in channels_last under
inference_mode, on a GPU also under autocast, once as it is and once with its backbone and heads
under torch.compile; where PyPI's torchvision cannot load its NMS, it has one written in torch (see
torchvision_cpu.py), whose share of the time is printed.

Then jaxdet without the pyramid's finest level: what the heads on P2 cost.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Half of a GPU is left to torch. Set before JAX is imported.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs and benchmarks

import jax
import numpy as np
import torch
from absl import app, flags
from flax import nnx
from ml_collections import ConfigDict

from benchmarks import peers
from benchmarks.torchvision_cpu import torchvision
from jaxdet import models
from jaxdet.inference.detector import Detector
from jaxdet.runs import parallel

FLAGS = flags.FLAGS
flags.DEFINE_multi_enum("network", ["phantom", "r18", "r50"], ["phantom", "r18", "r50"], "Which.")
flags.DEFINE_multi_integer("batch_size", [1, 16], "Images at once.")
flags.DEFINE_integer("size", 256, "Pixels along a side; the phantom's are 128.")
flags.DEFINE_integer("rounds", 7, "Rounds, in each of which every system has its turn.")
flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Default: bfloat16 on a GPU.")


def ours(config: ConfigDict, images: np.ndarray) -> tuple[Callable[[], object], float]:
    """jaxdet's detections of the images, and the GFLOP that they take."""
    mesh = parallel.make_mesh()

    def create():
        sections = config.model, config.loss, peers.NUM_CLASSES, config.data.image_size
        _, params, batch_stats = models.split(models.create(*sections, nnx.Rngs(0)))
        return {"params": params, "batch_stats": batch_stats}

    weights = jax.jit(create)()
    shard = lambda: parallel.shard_batch({"images": images}, mesh)["images"]  # noqa: E731

    def lower(mesh):
        detect = Detector(config, peers.NUM_CLASSES, mesh).detect
        sharded = parallel.shard_batch({"images": images}, mesh)["images"]
        return detect.lower(jax.eval_shape(create), sharded)

    compiled = lower(mesh).compile()
    return lambda: jax.device_get(compiled(weights, shard())), peers.gflop(lower)


def theirs(config: ConfigDict, images: np.ndarray, compiled: bool = False) -> Callable[[], object]:
    """torchvision's."""
    torch.manual_seed(0)
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    model = peers.torchvision_retinanet(config).eval().to(device, memory_format=torch.channels_last)
    mixed = config.model.dtype == "bfloat16"
    if compiled:
        peers.compile_torchvision(model)

    @torch.inference_mode()
    def run():
        grey = torch.from_numpy(images).to(device).float() / 255
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            found = model(list(grey[:, None].expand(-1, 3, -1, -1)))
        return [{name: x.cpu() for name, x in one.items()} for one in found]

    return run


def seconds_in_nms(run: Callable[[], object]) -> float:
    """Share of a call that torchvision is in NMS."""
    inside, nms = [0.0], torchvision.ops.boxes.nms

    def timed(*args):
        start = time.perf_counter()
        kept = nms(*args)
        inside[0] += time.perf_counter() - start
        return kept

    torchvision.ops.boxes.nms = timed
    start = time.perf_counter()
    run()
    elapsed = time.perf_counter() - start
    torchvision.ops.boxes.nms = nms
    return inside[0] / elapsed


def main(_):
    torch.backends.cudnn.benchmark = True
    gpu = jax.default_backend() == "gpu"
    dtype = FLAGS.dtype or ("bfloat16" if gpu else "float32")
    print(peers.versions())
    print("\n| network | system | type | pixels | batch | ms an image | of a product | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for network in FLAGS.network:
        for batch_size in FLAGS.batch_size:
            config = peers.make_config(network, FLAGS.size, batch_size, dtype)
            size = config.data.image_size
            rng = np.random.default_rng(0)
            images = rng.integers(0, 256, (batch_size, size, size), np.uint8)
            run, gflop = ours(config, images)
            found = run().mask.sum(axis=1).mean()
            coarse = config.copy_and_resolve_references()
            coarse.model.levels = config.model.levels[1:]
            without, _ = ours(coarse, images)
            systems = {"jaxdet": run, "jaxdet, no P2": without}
            if network != "phantom" and (not gpu or torch.cuda.is_available()):
                systems["torchvision"] = theirs(config, images)
                make = lambda: theirs(config, images, compiled=True)  # noqa: B023, E731
                if gpu and (compiled := peers.try_compiled(make)):
                    systems["torchvision, torch.compile"] = compiled
            product, of_product = peers.matrix_product(dtype)
            seconds = peers.in_turns({**systems, "product": product}, FLAGS.rounds)
            rate = of_product / seconds.pop("product")
            for name, values in seconds.items():
                reached = (
                    f"{np.median(gflop / values / rate):.0%}" if name != "jaxdet, no P2" else ""
                )
                print(
                    f"| {network} | {name} | {dtype} | {size} | {batch_size} | "
                    f"{peers.spread(1e3 * values / batch_size)} | {reached} | "
                    f"{np.median(values / seconds['jaxdet']):.2f} |"
                )
            note = f"{network}, batch {batch_size}: {found:.0f} detections an image"
            if "torchvision" in systems:
                other = np.mean([len(one["boxes"]) for one in systems["torchvision"]()])
                share = seconds_in_nms(systems["torchvision"])
                note += f", torchvision {other:.0f}, with {share:.0%} of its time in NMS"
            print(note, file=sys.stderr)
    print("\nratio: how many times as long as jaxdet's")


if __name__ == "__main__":
    app.run(main)
