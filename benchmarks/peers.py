"""The same RetinaNet in jaxdet and in torchvision, what both are fed, and the machine they run on.

For the benchmarks that time one beside the other. The networks are those of `configs/retina.py`:
the same backbone, pyramid, heads, anchors, classes and size; float32 on a CPU, bfloat16 on a GPU.
torchvision's takes three channels, and its transform does not resize.
"""

import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from ml_collections import ConfigDict

from benchmarks.torchvision_cpu import torchvision
from configs import phantom, retina
from jaxdet.kernels import winograd
from jaxdet.kernels.compilation import jit
from jaxdet.kernels.memory import compute_where_asked, keep_freed_memory
from jaxdet.ops import anchors

compute_where_asked()  # as run.py does, for torch too: the process is one
keep_freed_memory()

NUM_CLASSES = 14
MAX_BOXES = 16  # of an image, with padding


def make_config(network: str, size: int, batch_size: int, dtype: str) -> ConfigDict:
    """The config of "r18", "r50" (`configs/retina.py`) or "phantom" (`configs/phantom.py`)."""
    if network == "phantom":
        config = phantom.get_config()
        config.model.anchor_scales, config.model.aspect_ratios = (2.24,), (0.71,)  # planned
    else:
        config = retina.get_config()
        config.data.image_size, config.train.batch_size = size, batch_size
        config.model.backbone.depth = int(network[1:])
        config.model.dtype = dtype
        # What is planned for VinBigData at 256 pixels.
        config.model.anchor_scales, config.model.aspect_ratios = (1.26, 2.0, 3.56), (0.35, 1.0, 2.0)
        config.loss.update({"matching": "iou", "box": "l1", "box_weight": 1.0})  # as torchvision's
        for name in set(config.augment) - {"apply"}:
            config.augment[name] = 0.0
        config.model.levels = (2, 3, 4, 5, 6)
    return config


def random_batch(
    config: ConfigDict, rng: np.random.Generator, most: int = MAX_BOXES
) -> dict[str, np.ndarray]:
    """Noise with up to eight boxes an image; half of the images are normal."""
    n, size = config.train.batch_size, config.data.image_size
    extent = rng.uniform(size / 16, size / 2, (n, most, 2))
    corner = rng.uniform(0, 1, (n, most, 2)) * (size - extent)
    counts = np.minimum(rng.integers(1, 9, n), most) * (np.arange(n) % 2)
    return {
        "images": rng.integers(0, 256, (n, size, size), np.uint8),
        "boxes": np.concatenate([corner, corner + extent], axis=-1).astype(np.float32),
        "labels": rng.integers(0, NUM_CLASSES, (n, most), np.int32),
        "soft_targets": np.ones((n, most), np.float32),
        "mask": np.arange(most) < counts[:, None],
    }


def gflop(lower: Callable[[jax.sharding.Mesh], jax.stages.Lowered]) -> float:
    """What XLA counts in what `lower(mesh)` traces, were all convolutions made in the plain way.

    The mesh is a CPU: for GPUs, JAX does not say.
    """
    axis_types = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ("data",), axis_types=axis_types, devices=jax.devices("cpu")[:1])
    with mock.patch.object(winograd, "pays", lambda *_: False):
        return lower(mesh).cost_analysis()["flops"] / 1e9


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


def compile_torchvision(model: torch.nn.Module) -> None:
    """torch.compile of what has the same shapes in every batch, when it is first called."""
    model.backbone.compile()
    model.head.compile()


def try_compiled(make: Callable[[], Callable[[], object]]) -> Callable[[], object] | None:
    """What `make` makes, called once; None, and a line that says why, if torch.compile fails."""
    try:
        system = make()
        system()
    except Exception as error:  # whatever the compiler raises: the rest of the table stands
        print(f"torch.compile failed: {type(error).__name__}: {str(error).splitlines()[0]}\n")
        return None
    return system


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


def in_turns(
    systems: dict[str, Callable[[], None]], rounds: int, prepare: Callable[[], None] = lambda: None
) -> dict[str, np.ndarray]:
    """Seconds of each call; everyone is called once before, and then, prepared, once a round."""
    for call in systems.values():
        call()
    seconds = {name: [] for name in systems}
    for _ in range(rounds):
        for name, call in systems.items():
            prepare()
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def matrix_product(dtype: str) -> tuple[Callable[[], None], float]:
    """A product of large matrices on JAX's device, and its GFLOP."""
    size = 16384 if jax.default_backend() == "gpu" else 3072
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(a, a)), 2 * size**3 / 1e9


def spread(values: np.ndarray, digits: int = 3) -> str:
    """The median and the range."""
    return (
        f"{np.median(values):.{digits}g} ({values.min():.{digits}g} to {values.max():.{digits}g})"
    )


def device_name() -> str:
    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*: (.*)", text)
    cores = len(os.sched_getaffinity(0))
    return f"{found[1] if found else platform.processor()}, {cores} cores"


def versions() -> str:
    """What ran, and on what."""
    return f"{device_name()}; jax {jax.__version__}, torch {torch.__version__}"
