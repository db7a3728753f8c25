"""How the cost of a training step grows: with pixels, images, boxes and anchors.

    python benchmarks/growth.py

The network of `configs/phantom.py`, from 4 images of 256 pixels, 16 boxes and 6 anchors a location;
one of the four changes at a time. Memory is what XLA plans for the step beside its arguments
(`memory_analysis`). "predicted" is the growth of what the step should be proportional to: pixels
times images, and for boxes and anchors nothing but the losses, so 1.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs and benchmarks

import jax
import numpy as np
from absl import app, flags

from benchmarks import peers
from benchmarks.train_step import Ours

FLAGS = flags.FLAGS  # --rounds is train_step's
BASE = {"pixels": 256, "images": 4, "boxes": 16, "anchors": 6}
CHANGES = {
    "pixels": (128, 512, 1024),
    "images": (1, 2, 8, 16),
    "boxes": (1, 64, 256),
    "anchors": (3, 9, 15),
}
SCALES = {3: (2.0,), 6: (1.6, 3.56), 9: (1.26, 2.0, 3.56), 15: (1.26, 1.6, 2.0, 2.52, 3.56)}


def make(pixels: int, images: int, boxes: int, anchors: int) -> Ours:
    config = peers.make_config("phantom", 0, 0, "float32")
    config.data.image_size, config.train.batch_size = pixels, images
    config.model.levels = (2, 3, 4, 5, 6)
    config.model.anchor_scales, config.model.aspect_ratios = SCALES[anchors], (0.35, 1.0, 2.0)
    batch = peers.random_batch(config, np.random.default_rng(0), boxes)
    return Ours(config, batch, 1)


def main(_):
    print(peers.versions())
    print("\n| changed | to | s (range) | beside the base | predicted | MB | beside the base |")
    print("|---|---|---|---|---|---|---|")
    base = make(**BASE)
    temporary = lambda step: step.step.memory_analysis().temp_size_in_bytes / 1e6  # noqa: E731
    print(f"| the base | | | 1 | 1 | {temporary(base):.0f} | 1 |")
    for name, values in CHANGES.items():
        for value in values:
            other = make(**{**BASE, name: value})
            seconds = peers.in_turns({"base": base, "other": other}, FLAGS.rounds)
            ratio = seconds["other"] / seconds["base"]
            factor = value / BASE[name]
            predicted = {"pixels": factor**2, "images": factor}.get(name, 1)
            print(
                f"| {name} | {value} | {peers.spread(seconds['other'])} | {np.median(ratio):.2f} | "
                f"{predicted:.3g} | {temporary(other):.0f} | "
                f"{temporary(other) / temporary(base):.2f} |"
            )
            del other
            jax.clear_caches()


if __name__ == "__main__":
    app.run(main)
