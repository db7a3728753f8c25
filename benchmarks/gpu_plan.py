"""What a training step will do on an H100, read off the program compiled for one: no GPU is needed.

    pip install -e . torch torchvision 'jax[cuda13]>=0.11'
    python benchmarks/gpu_plan.py

in an environment of its own, with Python 3.12 or later.

Predicted is the sum over fusions, calls and copies of the longer of two times: of a convolution's
arithmetic at 600 TFLOP/s, and of the bytes that a kernel reads and writes at 2.6 TB/s, about what
an H100 reaches. Convolutions are not tried out, so which of cuDNN's ways they take is open. The
last column is what the devices of a step tell each other, if there are several.

Then a table of how many images a device of so many GB takes. Planned memory grows with the pixels
of all images (a line through the three programs of each kind); JAX takes three quarters of a GPU,
unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise. In float32 the line rises twice as steeply.
"""

import math
import os
import re
import sys
from pathlib import Path
from unittest import mock

os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # which looks for a GPU
sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs and benchmarks

import jax
import numpy as np
from absl import app, flags
from jax.experimental import topologies

from benchmarks import peers
from benchmarks.scaling import BYTES, messages
from jaxdet.kernels import compilation, switch
from jaxdet.training import device_memory
from jaxdet.training.train_step import compile_training

FLAGS = flags.FLAGS
flags.DEFINE_enum("network", "r50", ["r18", "r50"], "Which.")
flags.DEFINE_integer("devices", 1, "GPUs, each with the batch of the table.")

FLOP_RATE, BYTE_RATE = 600e12, 2.6e12  # of a second
BATCH_SIZE = {256: 64, 512: 32, 1024: 8}
GIGABYTES, SHARE = (8, 16, 24, 40, 80), 0.75

# The device, as XLA wants it described (its GpuTargetConfigProto).
H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 12 patch: 0 }
runtime_version { major: 13 minor: 0 }
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84978434048
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""


def compile_step(size: int, remat: bool) -> jax.stages.Compiled:
    """The step of a network of `configs/retina.py` in bfloat16, for `FLAGS.devices` H100s."""
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=H100, topology=f"1x{FLAGS.devices}x1"
    )
    mesh = topologies.make_mesh(topology, (FLAGS.devices,), ("data",))
    config = peers.make_config(FLAGS.network, size, BATCH_SIZE[size] * FLAGS.devices, "bfloat16")
    config.model.backbone.remat = remat
    batch = peers.random_batch(config, np.random.default_rng(0))
    with (
        mock.patch.object(switch, "target", lambda: "gpu"),
        mock.patch.object(compilation, "compiler_options", lambda *_: None),
    ):
        init, step = compile_training(config, peers.NUM_CLASSES, mesh)
        lowered = step.lower(jax.eval_shape(init), batch)
    return lowered.compile({"xla_gpu_autotune_level": 0})


def arrays(shape: str) -> list[tuple[int, list[int]]]:
    """The bytes and the sides of each array of a type in HLO."""
    found = [
        (kind, [int(side) for side in sides.split(",") if side])
        for kind, sides in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    ]
    return [(BYTES[kind] * math.prod(sides), sides) for kind, sides in found]


def kernels(hlo: str) -> list[tuple[float, float]]:
    """(FLOP, bytes) of each kernel; the FLOP of a convolution, of others 0."""
    shapes, found = {}, []
    for line in hlo[hlo.index("\nENTRY") :].splitlines()[1:]:
        match = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)", line)
        if match is None:
            continue
        name, shape, operation, operands = match.groups()
        shapes[name] = shape
        if operation not in ("fusion", "custom-call", "copy"):
            continue
        read = [shapes[operand] for operand in re.findall(r"%([\w.-]+)", operands)]
        moved = sum(size for text in (shape, *read) for size, _ in arrays(text))
        flop = 0.0
        if target := re.search(r'custom_call_target="__cudnn\$conv(\w+)"', line):
            result = arrays(shape)[0][1]
            first, second = (arrays(text)[0][1] for text in read[:2])
            kernel, at = {
                "BackwardFilter": (result, second),
                "BackwardInput": (second, first),
            }.get(target[1], (second, result))
            flop = 2.0 * math.prod(kernel) * math.prod(at[:-1])  # for each location
        found.append((flop, moved))
    return found


def images_that_fit(
    planned: dict[tuple[int, int], int], size: int, gigabytes: float, halves: int = 1
) -> int:
    """Images of `size` pixels that a device takes, 0 if not one.

    Args:
        planned: bytes by (pixels, batch size) of a step in bfloat16.
        halves: 2 for float32, which has twice the bytes.
    """
    pixels = [side**2 * count for side, count in planned]
    growth, base = np.polyfit(pixels, list(planned.values()), 1)
    room = SHARE * 1e9 * gigabytes - base
    return max(int(room / (growth * halves * size**2)), 0)


def print_what_fits(planned: dict[bool, dict[tuple[int, int], int]]) -> None:
    """The table of images a device, by what was planned without remat and with it."""
    print(f"\n| pixels | type | remat | {' | '.join(f'{n} GB' for n in GIGABYTES)} |")
    print("|---" * (3 + len(GIGABYTES)) + "|")
    for size in BATCH_SIZE:
        for halves, name in ((1, "bfloat16"), (2, "float32")):
            for remat, bytes_of in planned.items():
                fit = [images_that_fit(bytes_of, size, n, halves) for n in GIGABYTES]
                print(f"| {size} | {name} | {remat} | {' | '.join(map(str, fit))} |")


def main(_):
    print(f"{FLAGS.network}, {FLAGS.devices} x H100; jax {jax.__version__}\n")
    print(
        "| pixels | batch of each | remat | kernels | TFLOP of convolutions | ms of those | "
        "predicted ms of all | memory planned, GB | messages, MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    bytes_of = {False: {}, True: {}}
    for size, batch_size in BATCH_SIZE.items():
        for remat in (False, True):
            compiled = compile_step(size, remat)
            text = compiled.as_text()
            found = np.array(kernels(text))
            seconds = np.maximum(found[:, 0] / FLOP_RATE, found[:, 1] / BYTE_RATE)
            convolutions = found[:, 0] > 0
            planned = compiled.memory_analysis().temp_size_in_bytes
            bytes_of[remat][size, batch_size] = device_memory.planned(compiled)
            told = sum(count for _, count, _ in messages(text))
            print(
                f"| {size} | {batch_size} | {remat} | {len(found)} | "
                f"{found[:, 0].sum() / 1e12:.3g} | {1e3 * seconds[convolutions].sum():.3g} | "
                f"{1e3 * seconds.sum():.3g} | {planned / 1e9:.3g} | {told / 1e6:.4g} |",
                flush=True,
            )
    print_what_fits(bytes_of)


if __name__ == "__main__":
    app.run(main)
