"""Serves the training step of an earlier checkout, for `benchmarks/train_step.py --before=FOLDER`.

    git worktree add FOLDER e4b96f4
    PYTHONPATH=FOLDER python benchmarks/before.py NETWORK SIZE BATCH_SIZE

First it reads the name of a file with a batch. For each line after it on standard input it makes a
step and answers with its seconds; after "profile", with a JSON of the step's parts. The interface
is that of commit e4b96f4.
"""

import json
import sys
import time

import jax
import numpy as np
import profiles

from configs import phantom, retina
from jaxdet.runs import parallel
from jaxdet.training.train_step import compile_training


def main():
    network, size, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if network == "phantom":
        config = phantom.get_config()
        config.model.anchor_scales, config.model.aspect_ratios = (1.6, 3.56), (0.35, 1.0, 2.0)
    else:
        config = retina.get_config()
        config.data.image_size, config.train.batch_size = size, batch_size
        config.model.depth, config.model.dtype = int(network[1:]), "float32"
        config.model.anchor_scales, config.model.aspect_ratios = (1.26, 2.0, 3.56), (0.35, 1.0, 2.0)
        config.loss.update({"matching": "iou", "box": "l1", "box_weight": 1.0})
        for name in set(config.augment) - {"apply"}:
            config.augment[name] = 0.0
    config.model.levels = (2, 3, 4, 5, 6)
    arrays = np.load(sys.stdin.readline().strip())
    of_then = {"labels": "classes", "soft_targets": "scores"}
    batch = {of_then.get(name, name): arrays[name] for name in arrays}
    slots = config.data.max_boxes  # what it pads to, whatever the data has
    for name in ("boxes", "classes", "scores", "mask"):
        more = slots - batch[name].shape[1]
        batch[name] = np.pad(batch[name], [(0, 0), (0, more)] + [(0, 0)] * (batch[name].ndim - 2))
    mesh = parallel.make_mesh()
    init, step = compile_training(config, mesh)
    state = init()
    step = step.lower(state, parallel.shard_batch(batch, mesh)).compile()

    def run():
        nonlocal state
        state, metrics = step(state, parallel.shard_batch(batch, mesh))
        jax.block_until_ready(state)
        return float(metrics["loss"])

    print(run(), flush=True)
    for line in sys.stdin:
        if line.strip() == "profile":
            print(json.dumps(profiles.of_step(run, step.as_text(), 1)), flush=True)
        else:
            start = time.perf_counter()
            run()
            print(time.perf_counter() - start, flush=True)


main()
