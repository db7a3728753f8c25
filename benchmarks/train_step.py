"""Images a second of one training step, of jaxdet and of torchvision with the same RetinaNet.

    pip install torch torchvision
    python benchmarks/train_step.py --network=r50 --network=r18

A step is everything from a batch in the host's memory to new parameters: transfer, anchor matching,
losses, gradients, clipping, AdamW. The networks are those of `configs/retina.py` on both sides: the
same backbone, pyramid, heads, anchors, classes and size; float32 on a CPU, bfloat16 on a GPU. Both
take turns, round by round, in one process; the table has the median of the rounds.

What is not equal: jaxdet's step also warps the images (every augmentation at 0, but computed) and
averages the parameters; torchvision's network takes three channels, and its transform does not
resize here. torchvision runs in channels_last with a fused AdamW, on a GPU also with its backbone
and heads under `torch.compile`.

The share of jaxdet's step that is not convolution comes from a profile: the time of the operations
that hold no convolution (nor matrix product, which a 1x1 convolution may turn into) over the time
of all operations.
"""

import os
import platform
import re
import sys
import tempfile
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
from ml_collections import ConfigDict

from benchmarks.torchvision_cpu import torchvision
from configs import retina
from jaxdet import anchors, parallel
from jaxdet.train_step import compile_training

FLAGS = flags.FLAGS
NUM_CLASSES = 14
MAX_BOXES = 64  # of an image, with padding

MATRIX_OPERATION = re.compile(r"\s(convolution|dot)\(|custom_call_target=\"[^\"]*(conv|gemm|dot)")


class P6(torchvision.ops.feature_pyramid_network.ExtraFPNBlock):
    """One level more: torchvision has this convolution of P5 only together with P7."""

    def __init__(self, channels: int):
        super().__init__()
        self.p6 = torch.nn.Conv2d(channels, channels, 3, 2, 1)
        torch.nn.init.kaiming_uniform_(self.p6.weight, a=1)
        torch.nn.init.zeros_(self.p6.bias)

    def forward(self, pyramid, features, names):
        return [*pyramid, self.p6(pyramid[-1])], [*names, "p6"]


def torchvision_retinanet(config: ConfigDict) -> torch.nn.Module:
    """torchvision's RetinaNet as `config` describes ours, with the very same anchors."""
    model, size = config.model, config.data.image_size
    # What torchvision's heads and backbone have fixed.
    assert model.head_depth == 4 and model.head_channels == model.fpn_channels
    assert model.backbone.width == 64 and model.backbone.norm == "batch"
    assert tuple(model.levels) == (2, 3, 4, 5, 6)
    backbone = getattr(torchvision.models, f"resnet{model.backbone.depth}")(weights=None)
    first = backbone.inplanes // 8
    backbone = torchvision.models.detection.backbone_utils.BackboneWithFPN(
        backbone,
        return_layers={f"layer{i + 1}": str(i) for i in range(4)},
        in_channels_list=[first * 2**i for i in range(4)],
        out_channels=model.fpn_channels,
        extra_blocks=P6(model.fpn_channels),
    )
    sizes = [[scale * 2**level for scale in model.anchor_scales] for level in model.levels]
    generator = torchvision.models.detection.anchor_utils.AnchorGenerator(
        tuple(map(tuple, sizes)), (tuple(model.aspect_ratios),) * len(sizes)
    )
    # It rounds anchors to whole pixels, and the smallest ones are 8 pixels wide: ours are not.
    generator.cell_anchors = [
        torch.tensor(anchors.cell_anchors(s, model.aspect_ratios), dtype=torch.float32)
        for s in sizes
    ]
    inference = config.inference
    return torchvision.models.detection.RetinaNet(
        backbone,
        NUM_CLASSES,  # no background column: labels count from 0
        anchor_generator=generator,
        min_size=size,
        max_size=size,
        _skip_resize=True,
        image_mean=[0.5] * 3,  # as `images.normalize`
        image_std=[0.25] * 3,
        score_thresh=inference.score_threshold,
        nms_thresh=inference.nms_iou,
        detections_per_img=inference.max_detections,
        fg_iou_thresh=config.loss.foreground_iou,
        bg_iou_thresh=config.loss.background_iou,
        topk_candidates=inference.pre_nms_top_k,
    )


def torchvision_optimizer(config: ConfigDict, model: torch.nn.Module) -> torch.optim.AdamW:
    """As `make_optimizer`: biases and normalisation do not decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    train = config.train
    return torch.optim.AdamW(
        groups, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
    )


def to_torchvision(batch: dict, device: str) -> tuple[list, list]:
    """A batch as torchvision takes it: three channels in [0, 1], boxes without padding."""
    gray = torch.from_numpy(batch["images"]).to(device, non_blocking=True).float() / 255
    images = list(gray[:, None].expand(-1, 3, -1, -1))
    targets = []
    for boxes, labels, mask in zip(batch["boxes"], batch["labels"], batch["mask"], strict=True):
        targets.append(
            {
                "boxes": torch.from_numpy(boxes[mask]).to(device),
                "labels": torch.from_numpy(labels[mask]).long().to(device),
            }
        )
    return images, targets


def random_batch(config: ConfigDict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Noise with up to eight boxes an image; half of the images are normal."""
    n, size, most = config.train.batch_size, config.data.image_size, MAX_BOXES
    extent = rng.uniform(size / 16, size / 2, (n, most, 2))
    corner = rng.uniform(0, 1, (n, most, 2)) * (size - extent)
    counts = rng.integers(1, 9, n) * (np.arange(n) % 2)
    return {
        "images": rng.integers(0, 256, (n, size, size), np.uint8),
        "boxes": np.concatenate([corner, corner + extent], axis=-1).astype(np.float32),
        "labels": rng.integers(0, NUM_CLASSES, (n, most), np.int32),
        "scores": np.ones((n, most), np.float32),
        "mask": np.arange(most) < counts[:, None],
    }


class Ours:
    """jaxdet's step, compiled ahead of time: the profile needs its text."""

    name = "jaxdet"

    def __init__(self, config: ConfigDict, batch: dict):
        self.mesh = parallel.make_mesh()
        init, step = compile_training(config, NUM_CLASSES, self.mesh)
        self.state = init()
        self.step = step.lower(self.state, parallel.shard_batch(batch, self.mesh)).compile()

    def run(self, batches: list[dict]) -> float:
        for batch in batches:
            batch = parallel.shard_batch(batch, self.mesh)
            self.state, metrics = self.step(self.state, batch)
        jax.block_until_ready(self.state)
        return float(metrics["loss"])

    def not_convolution(self, batches: list[dict]) -> tuple[float, float]:
        """(share of the operations' time that is not convolution, that time over the clock's)."""
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            with jax.profiler.trace(folder):
                self.run(batches)
                elapsed = time.perf_counter() - start
            file = next(Path(folder).rglob("*.xplane.pb"))
            times = operation_times(jax.profiler.ProfileData.from_file(str(file)))
        kinds = operation_kinds(self.step.as_text())
        total = sum(times.values())
        other = sum(t for name, t in times.items() if not kinds.get(name, False))
        return other / total, total / elapsed


class Theirs:
    """torchvision's RetinaNet in a plain training step."""

    name = "torchvision"

    def __init__(self, config: ConfigDict, device: str, compiled: bool = False):
        torch.manual_seed(0)
        model = torchvision_retinanet(config).train()
        self.model = model.to(device, memory_format=torch.channels_last)
        self.optimizer = torchvision_optimizer(config, model)
        self.parameters = list(model.parameters())
        self.clip_norm, self.device = config.train.clip_norm, device
        self.mixed = config.model.dtype == "bfloat16"
        if compiled:
            # The rest has shapes that change from batch to batch.
            self.name = "torchvision, torch.compile"
            model.backbone.compile()
            model.head.compile()

    def run(self, batches: list[dict]) -> float:
        for batch in batches:
            images, targets = to_torchvision(batch, self.device)
            with torch.autocast(self.device, torch.bfloat16, enabled=self.mixed):
                loss = sum(self.model(images, targets).values())
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
            self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return loss.item()


def operation_times(profile: jax.profiler.ProfileData) -> dict[str, float]:
    """Seconds of each HLO operation, without the operations inside it."""
    times = {}
    for plane in profile.planes:
        for line in plane.lines:
            events = []
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats:
                    start = event.start_ns
                    events.append((start, -(start + event.duration_ns), stats["hlo_op"]))
            open_until = []  # (end, name) of the operations that the next one may be inside of
            for start, end, name in sorted(events):
                end = -end
                while open_until and open_until[-1][0] <= start:
                    open_until.pop()
                duration = (end - start) / 1e9
                if open_until:
                    times[open_until[-1][1]] -= duration
                times[name] = times.get(name, 0.0) + duration
                open_until.append((end, name))
    return times


def operation_kinds(hlo: str) -> dict[str, bool]:
    """Whether each instruction is a convolution or matrix product, or a fusion that holds one."""
    holds, calls, computation = {}, {}, ""
    for line in hlo.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            computation = header[1]
            holds.setdefault(computation, False)
        elif instruction := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = ", line):
            called = re.search(r"(?:fusion|call)\(.*(?:calls|to_apply)=%?([\w.-]+)", line)
            # A computation stands before those that call it.
            is_one = bool(MATRIX_OPERATION.search(line)) or bool(
                called and holds.get(called[1], False)
            )
            calls[instruction[1]] = is_one
            holds[computation] = holds[computation] or is_one
    return calls


def device_name() -> str:
    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*: (.*)", text)
    cores = len(os.sched_getaffinity(0))
    return f"{found[1] if found else platform.processor()}, {cores} cores"


def make_config(network: str, gpu: bool) -> ConfigDict:
    """`configs/retina.py` at the flags' size, with every augmentation at 0."""
    config = retina.get_config()
    config.data.image_size = FLAGS.size
    config.model.backbone.depth = int(network[1:])
    # What is planned for VinBigData at 256 pixels.
    config.model.levels = (2, 3, 4, 5, 6)
    config.model.anchor_scales, config.model.aspect_ratios = (1.26, 2.0, 3.56), (0.35, 1.0, 2.0)
    config.model.dtype = FLAGS.dtype or ("bfloat16" if gpu else "float32")
    config.loss.update({"matching": "iou", "box": "l1", "box_weight": 1.0})  # as torchvision's
    config.train.batch_size = FLAGS.batch_size or (64 if gpu else 8)
    for name in config.augment:
        config.augment[name] = 0.0
    return config


def try_compiled(make: Callable[[], Theirs], batches: list[dict]) -> Theirs | None:
    """torchvision under torch.compile, warmed up; None, and a line that says why, if it fails."""
    try:
        system = make()
        system.run(batches)
    except Exception as error:  # whatever the compiler raises: the rest of the table stands
        print(f"torch.compile failed: {type(error).__name__}: {str(error).splitlines()[0]}\n")
        return None
    return system


def main(_):
    gpu = jax.default_backend() == "gpu"
    device = "cuda" if gpu else "cpu"
    torch.backends.cudnn.benchmark = True
    steps = FLAGS.steps or (20 if gpu else 2)
    print(f"{device_name()}; jax {jax.__version__}, torch {torch.__version__}")
    if gpu and not torch.cuda.is_available():
        print("this torch does not see the GPU: jaxdet alone")
    rows, notes = [], []
    for network in FLAGS.network:
        config = make_config(network, gpu)
        rng = np.random.default_rng(0)
        batches = [random_batch(config, rng) for _ in range(steps)]
        ours = Ours(config, batches[0])
        ours.run(batches)
        systems = [ours]
        if not gpu or torch.cuda.is_available():
            systems.append(Theirs(config, device))
            systems[-1].run(batches)
            if gpu or FLAGS.compile:
                make = lambda config=config: Theirs(config, device, compiled=True)  # noqa: E731
                systems += filter(None, [try_compiled(make, batches)])
        rates = {system.name: [] for system in systems}
        for _ in range(FLAGS.rounds):
            for system in systems:
                start = time.perf_counter()
                loss = system.run(batches)
                elapsed = time.perf_counter() - start
                assert np.isfinite(loss), f"{system.name}: the loss is {loss}"
                rates[system.name].append(steps * config.train.batch_size / elapsed)
        other, covered = ours.not_convolution(batches)
        for name, values in rates.items():
            ratio = np.median(np.array(rates[ours.name]) / np.array(values))
            rows.append(
                f"| {network.upper()} | {name} | {config.model.dtype} | {config.data.image_size} | "
                f"{config.train.batch_size} | {np.median(values):.3g} "
                f"({min(values):.3g} to {max(values):.3g}) | {ratio:.2f} |"
            )
        notes.append(
            f"{network.upper()}: {other:.0%} of jaxdet's operation time is not convolution "
            f"(the operations in the profile sum to {covered:.2f} of the clock's time)"
        )
        del ours, systems
    print("\n| network | step | type | pixels | batch | images/s (range) | jaxdet / this |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows), end="\n\n")
    print("\n".join(notes))


if __name__ == "__main__":
    # Here, so that a benchmark which imports this module keeps its own flags.
    flags.DEFINE_multi_enum("network", ["r50", "r18"], ["r50", "r18"], "ResNet-50 or ResNet-18.")
    flags.DEFINE_integer("batch_size", None, "Images a step. Default: 8 on a CPU, 64 on a GPU.")
    flags.DEFINE_integer("size", 256, "Pixels along a side.")
    flags.DEFINE_integer("rounds", 5, "Rounds, in each of which every system has its turn.")
    flags.DEFINE_integer("steps", None, "Steps a turn. Default: 2 on a CPU, 20 on a GPU.")
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Default: bfloat16 on a GPU.")
    flags.DEFINE_boolean("compile", False, "torch.compile on a CPU too.")
    app.run(main)
