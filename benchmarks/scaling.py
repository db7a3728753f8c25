"""What several devices tell each other in one step, and what a step takes, on simulated devices.

    python benchmarks/scaling.py

writes the tables of docs/scaling.md to standard output. The devices are one CPU's (XLA's flag
--xla_force_host_platform_device_count): bytes and kinds of messages are those of any devices,
seconds only say what splitting costs where nothing is gained.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}


def messages(program: str) -> list[tuple[str, int, str]]:
    """Of a compiled program's text: the kind, bytes, and place in the model of each collective."""
    found = []
    for line in program.splitlines():
        match = re.search(rf" = (.*?) ({KINDS})(-start)?\(", line)
        if match is None:
            continue
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
        size = sum(BYTES[t] * math.prod(int(n) for n in d.split(",") if n) for t, d in shapes)
        place = re.search(r'op_name="([^"]*)"', line)
        found.append((match[2], size, place[1] if place else ""))
    return found


def measure(config_name: str, image_size: int, batch_size: int, num_devices: int, run: bool):
    """The messages of a step, and seconds of eight if it is to run; on this process's devices."""
    import importlib

    import jax
    import numpy as np

    from jaxdet.kernels import memory
    from jaxdet.runs import parallel
    from jaxdet.training.train_step import compile_training

    memory.compute_where_asked()  # as run.py does
    memory.keep_freed_memory()
    assert jax.device_count() == num_devices
    config = importlib.import_module(f"configs.{config_name}").get_config()
    config.data.image_size = image_size
    config.model.levels = (3, 4, 5, 6, 7)
    config.model.anchor_scales, config.model.aspect_ratios = (2.0, 2.52, 3.17), (0.4, 1.0, 2.0)
    rng, boxes = np.random.default_rng(0), np.array([0.2, 0.2, 0.7, 0.6], np.float32)
    batch = {
        "images": rng.integers(0, 255, (batch_size, image_size, image_size)).astype(np.uint8),
        "boxes": np.tile(boxes * image_size, (batch_size, 16, 1)),
        "labels": rng.integers(0, 14, (batch_size, 16)).astype(np.int32),
        "soft_targets": np.ones((batch_size, 16), np.float32),
        "mask": np.tile(np.arange(16) < 3, (batch_size, 1)),
        "image": np.arange(batch_size),
    }
    mesh = parallel.make_mesh()
    init, step = compile_training(config, 14, mesh)
    batch = parallel.shard_batch(batch, mesh)
    abstract = jax.eval_shape(init)
    compiled = step.lower(abstract, batch).compile()
    parameters = sum(x.size for x in jax.tree.leaves(abstract.params))
    seconds = None
    if run:
        state, seconds = init(), []
        for _ in range(9):
            began = time.perf_counter()
            state, _ = compiled(state, batch)
            jax.block_until_ready(state)
            seconds.append(time.perf_counter() - began)
        seconds = seconds[1:]
    found = messages(compiled.as_text())
    return {"messages": found, "parameters": parameters, "seconds": seconds}


def what_for(kind: str, size: int, place: str) -> str:
    """In words, what a collective is for."""
    if "top_k" in place or "sort" in place:
        return "candidates of ATSS"
    if kind == "all-reduce" and size > 2**16:
        return "gradients"
    if kind == "all-reduce" and size > 64 and re.search("reduce_sum|dot_general", place):
        return "BatchNorm's statistics, " + ("backward" if "transpose(" in place else "forward")
    return "losses, counts" if kind == "all-reduce" and size <= 64 else place


def main() -> None:
    """Measure in a process for each number of devices, and print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", type=json.loads, help="what `measure` takes; prints JSON")
    parser.add_argument("--image_size", type=int, default=64, help="pixels, of the compiled R50")
    options = parser.parse_args()
    if options.one:
        sys.path.insert(0, str(ROOT))
        print(json.dumps(measure(**options.one)))
        return

    def in_a_process(flags="", **arguments):
        count = arguments["num_devices"]
        flags = f"--xla_force_host_platform_device_count={count} {flags}"
        words = [sys.executable, __file__, f"--one={json.dumps(arguments)}"]
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        return json.loads(done.stdout.splitlines()[-1])

    print("| devices | message | of | messages | bytes |\n|---|---|---|---|---|", flush=True)
    for count in (1, 2, 4, 8):
        # It is not run, so it need not be compiled well.
        got = in_a_process(
            "--xla_backend_optimization_level=0", config_name="retina",
            image_size=options.image_size, batch_size=16, num_devices=count, run=False,
        )  # fmt: skip
        sums = defaultdict(lambda: [0, 0])
        for kind, size, place in got["messages"]:
            row = sums[kind, what_for(kind, size, place)]
            row[0] += 1
            row[1] += size
        for (kind, why), (times, size) in sorted(sums.items()):
            print(f"| {count} | {kind} | {why} | {times} | {size:,} |", flush=True)
    print(
        f"\nparameters: {got['parameters']:,} in float32, {4 * got['parameters']:,} bytes",
        flush=True,
    )
    print("\n| devices | seconds a step of 16 (range) | beside one |\n|---|---|---|")
    one = None
    for count in (1, 2, 4, 8):
        got = in_a_process(
            config_name="phantom", image_size=128, batch_size=16, num_devices=count, run=True
        )
        median = statistics.median(got["seconds"])
        one = one or median
        low, high = min(got["seconds"]), max(got["seconds"])
        print(
            f"| {count} | {median:.2f} ({low:.2f} to {high:.2f}) | {median / one:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
