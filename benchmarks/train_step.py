"""A training step of jaxdet, of torchvision with the same RetinaNet, and of an earlier jaxdet.

    pip install torch torchvision
    git worktree add ../before e4b96f4
    python benchmarks/train_step.py --before=../before --picture=docs/step.png

A step is everything from a batch in the host's memory to new parameters: transfer, anchor matching,
losses, gradients, clipping, AdamW. All take turns, round by round, with a product of large
matrices, which says what the machine can do; tables have the median and range of the rounds, ratios
the median of the rounds' ratios. GFLOP of a step are what XLA counts in jaxdet's with every
convolution made in the plain way (Winograd's makes fewer products).

What is not equal: jaxdet's step also warps the images (for "r18" and "r50" every augmentation at 0,
but computed) and averages the parameters. torchvision runs in channels_last with a fused AdamW, on
a GPU also with its backbone and heads under torch.compile. "phantom" is `configs/phantom.py`, which
torchvision's heads cannot follow.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Half of a GPU is left to torch. Set before JAX is imported.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs and benchmarks

import jax
import numpy as np
import torch
from absl import app, flags
from ml_collections import ConfigDict

from benchmarks import peers, profiles
from jaxdet.runs import parallel
from jaxdet.training.train_step import compile_training

FLAGS = flags.FLAGS
flags.DEFINE_multi_enum("network", ["phantom", "r18", "r50"], ["phantom", "r18", "r50"], "Which.")
flags.DEFINE_integer("batch_size", None, "Images a step. Default: 8 on a CPU, 64 on a GPU.")
flags.DEFINE_integer("size", 256, "Pixels along a side.")
flags.DEFINE_integer("rounds", 5, "Rounds, in each of which every system has its turn.")
flags.DEFINE_integer("steps", None, "Steps a turn. Default: 1 on a CPU, 20 on a GPU.")
flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Default: bfloat16 on a GPU.")
flags.DEFINE_string("before", None, "A checkout of commit e4b96f4, whose step takes turns too.")
flags.DEFINE_string("picture", None, "A file for a picture of the parts of the step.")


class Ours:
    """jaxdet's step, compiled ahead of time: the profile needs its text."""

    def __init__(self, config: ConfigDict, batch: dict, steps: int):
        self.batch, self.steps = batch, steps
        self.mesh = parallel.make_mesh()
        init, _ = compile_training(config, peers.NUM_CLASSES, self.mesh)
        self.state = init()

        def lower(mesh):
            _, step = compile_training(config, peers.NUM_CLASSES, mesh)
            return step.lower(jax.eval_shape(init), batch)

        self.step, self.gflop = lower(self.mesh).compile(), peers.gflop(lower)

    def __call__(self) -> None:
        for _ in range(self.steps):
            batch = parallel.shard_batch(self.batch, self.mesh)
            self.state, metrics = self.step(self.state, batch)
        jax.block_until_ready(self.state)
        assert np.isfinite(metrics["loss"])

    def profile(self) -> dict[str, float]:
        return profiles.of_step(self, self.step.as_text(), self.steps)


class Theirs:
    """torchvision's RetinaNet in a plain training step."""

    def __init__(self, config: ConfigDict, batch: dict, steps: int, compiled: bool = False):
        torch.manual_seed(0)
        self.batch, self.steps = batch, steps
        self.device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        model = peers.torchvision_retinanet(config).train()
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.optimizer = peers.torchvision_optimizer(config, model)
        self.parameters = list(model.parameters())
        self.clip_norm = config.train.clip_norm
        self.mixed = config.model.dtype == "bfloat16"
        if compiled:
            peers.compile_torchvision(model)

    def __call__(self) -> None:
        for _ in range(self.steps):
            images, targets = peers.to_torchvision(self.batch, self.device)
            with torch.autocast(self.device, torch.bfloat16, enabled=self.mixed):
                loss = sum(self.model(images, targets).values())
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
            self.optimizer.step()
        assert np.isfinite(loss.item())


class Before:
    """The step of the checkout that --before names, in a process of its own."""

    def __init__(self, network: str, config: ConfigDict, batch: dict, steps: int):
        script = str(Path(__file__).with_name("before.py"))
        arguments = network, config.data.image_size, config.train.batch_size
        self.process = subprocess.Popen(
            [sys.executable, script, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": FLAGS.before},
        )  # fmt: skip
        self.steps = steps
        with tempfile.TemporaryDirectory() as folder:
            np.savez(f"{folder}/batch.npz", **batch)
            assert np.isfinite(float(self.ask(f"{folder}/batch.npz")))

    def ask(self, line: str) -> str:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def __call__(self) -> None:
        for _ in range(self.steps):
            self.ask("step")

    def profile(self) -> dict[str, float]:
        return json.loads(self.ask("profile"))


def measure(network: str) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Rows of the table, and the parts of jaxdet's step now and before."""
    gpu = jax.default_backend() == "gpu"
    steps = FLAGS.steps or (20 if gpu else 1)
    dtype = FLAGS.dtype or ("bfloat16" if gpu else "float32")
    config = peers.make_config(network, FLAGS.size, FLAGS.batch_size or (64 if gpu else 8), dtype)
    batch = peers.random_batch(config, np.random.default_rng(0))
    ours = Ours(config, batch, steps)
    systems = {"jaxdet": ours}
    if network != "phantom" and (not gpu or torch.cuda.is_available()):
        systems["torchvision"] = Theirs(config, batch, steps)
        make = lambda: Theirs(config, batch, steps, compiled=True)  # noqa: E731
        if gpu and (compiled := peers.try_compiled(make)):
            systems["torchvision, torch.compile"] = compiled
    if FLAGS.before:
        systems["jaxdet before"] = Before(network, config, batch, steps)
    product, gflop = peers.matrix_product(dtype)
    seconds = peers.in_turns({**systems, "product": product}, FLAGS.rounds)
    rate = gflop / seconds.pop("product")
    rows = []
    for name, values in seconds.items():
        values = values / steps
        ratio = np.median(values / (seconds["jaxdet"] / steps))
        reached = ours.gflop / values
        rows.append(
            f"| {network} | {name} | {dtype} | {config.data.image_size} | "
            f"{config.train.batch_size} | {peers.spread(values)} | {np.median(reached):.3g} | "
            f"{np.median(reached / rate):.0%} | {ratio:.2f} |"
        )
    rows.append(f"| {network} | a matrix product | {dtype} | | | | {peers.spread(rate)} | 100% | |")
    parts = {}
    for name in systems.keys() & {"jaxdet before", "jaxdet"}:
        profile = systems[name].profile()
        # The profiler slows steps down: its shares, of the time without it.
        whole = np.median(seconds[name]) / steps / sum(profile.values())
        parts[name] = {part: value * whole for part, value in profile.items()}
    parts = dict(sorted(parts.items(), reverse=True))  # before comes first
    return rows, parts


def draw(parts: dict[str, dict[str, dict[str, float]]], file: str) -> None:
    """Bars of the steps' parts, as shares of the first of each network."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.6 + 0.45 * sum(map(len, parts.values()))))
    names, left = [], []
    for network, steps in parts.items():
        whole = sum(next(iter(steps.values())).values())
        for name, seconds in steps.items():
            names.append(f"{network}, {name}")
            left.append({part: value / whole for part, value in seconds.items()})
    start = np.zeros(len(names))
    for part, colour in zip(profiles.PARTS, plt.colormaps["tab10"].colors, strict=False):
        share = np.array([of[part] for of in left])
        axes.barh(names, share, left=start, color=colour, label=part)
        start += share
    axes.invert_yaxis()
    axes.set_xlabel("time of a step, as a share of the network's first bar")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=3, frameon=False, fontsize=8)
    figure.savefig(file, dpi=120, bbox_inches="tight")


def main(_):
    torch.backends.cudnn.benchmark = True
    print(peers.versions())
    rows, parts = [], {}
    for network in FLAGS.network:
        more, parts[network] = measure(network)
        rows += more
    print(
        "\n| network | step | type | pixels | batch | s (range) | GFLOP/s | of a product | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    print("\nratio: how many times as long as jaxdet's\n")
    print("| network | step | ms | " + " | ".join(profiles.PARTS) + " |")
    print("|---" * (3 + len(profiles.PARTS)) + "|")
    for network, steps in parts.items():
        for name, seconds in steps.items():
            whole = sum(seconds.values())
            shares = " | ".join(f"{value / whole:.0%}" for value in seconds.values())
            print(f"| {network} | {name} | {1e3 * whole:.0f} | {shares} |")
    if FLAGS.picture:
        draw(parts, FLAGS.picture)


if __name__ == "__main__":
    app.run(main)
