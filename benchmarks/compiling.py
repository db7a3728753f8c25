"""How long a training step takes to trace, lower and compile, and what that is worth in steps.

    python benchmarks/compiling.py --way=fast --way="no winograd" --way=plain

"fast" is the step as it is, "no winograd" the one without Winograd's convolutions, "no emitters"
the one without XLA's newer emitters of fusions, "plain" the one of JAXDET_PLAIN=1. Of compiling,
the seconds by the clock and those of all cores together are printed: only the second are of use
where other programs run. Steps take turns, round by round. The compiled programs are not kept.
"""

import os
import resource
import sys
import time
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs and benchmarks

import jax
import numpy as np
from absl import app, flags

from benchmarks import peers
from jaxdet.kernels import compilation, winograd
from jaxdet.runs import parallel
from jaxdet.training.train_step import compile_training

WAYS = {
    "fast": lambda: mock.patch.dict(os.environ, JAXDET_PLAIN=""),
    "no winograd": lambda: mock.patch.object(winograd, "pays", lambda *_: False),
    "no emitters": lambda: mock.patch.dict(
        compilation.CPU_OPTIONS, xla_cpu_use_fusion_emitters=False
    ),
    "plain": lambda: mock.patch.dict(os.environ, JAXDET_PLAIN="1"),
}

FLAGS = flags.FLAGS
flags.DEFINE_multi_enum("way", list(WAYS), list(WAYS), "Which.")
flags.DEFINE_integer("rounds", 30, "Rounds of steps, in each of which every way has its turn.")


def main(_):
    config = peers.make_config("phantom", 128, 16, "float32")
    batch = peers.random_batch(config, np.random.default_rng(0))
    mesh = parallel.make_mesh()
    init, _ = compile_training(config, peers.NUM_CLASSES, mesh)

    def stage(call):
        """What `call()` gives, and its seconds by the clock and of all cores."""
        start, used = time.perf_counter(), sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        result = call()
        cores = sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - used
        return result, (time.perf_counter() - start, cores)

    def steps(program):
        state = init()

        def step():
            nonlocal state
            state, _ = program(state, parallel.shard_batch(batch, mesh))
            jax.block_until_ready(state)

        return step

    shapes = jax.eval_shape(init)
    compile_training(config, peers.NUM_CLASSES, mesh)[1].trace(shapes, batch)  # imports, caches
    spent, systems = {}, {}
    for way in FLAGS.way:
        with WAYS[way]():
            _, step = compile_training(config, peers.NUM_CLASSES, mesh)
            traced, tracing = stage(lambda step=step: step.trace(shapes, batch))
            lowered, lowering = stage(traced.lower)
            program, compiling = stage(lowered.compile)
        kernels = program.as_text().count(" fusion(")
        spent[way] = tracing, lowering, compiling, kernels
        systems[way] = steps(program)
    seconds = peers.in_turns(systems, FLAGS.rounds)
    print(peers.versions(), "\n")
    print(
        "| way | trace, s (of all cores) | lower | XLA | fused kernels | step, s (range) | ratio | "
        "compiling and 1,400 steps, s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for way, (*stages, kernels) in spent.items():
        cells = " | ".join(f"{clock:.1f} ({cores:.1f})" for clock, cores in stages)
        ratio = np.median(seconds[way] / seconds[FLAGS.way[0]])
        whole = sum(clock for clock, _ in stages) + 1400 * np.median(seconds[way])
        print(
            f"| {way} | {cells} | {kernels} | {peers.spread(seconds[way])} | {ratio:.2f} | "
            f"{whole:.0f} |"
        )


if __name__ == "__main__":
    app.run(main)
