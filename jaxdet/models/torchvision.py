"""Weights of torchvision: a ResNet classifier or a RetinaNet, put into a network of ours."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from jaxdet import InputError
from jaxdet.models.resnet import EPSILON

# What torchvision's models expect: grey levels 0..1, normalised so.
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
LEAVES = {
    "kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean",
    "var": "running_var",
}  # fmt: skip


def read(path: Path) -> dict[str, np.ndarray]:
    """A state dict of torch from a .safetensors, .npz or .pth file (torch is needed for the last).

    Raises:
        InputError: for a file that cannot be read.
    """
    where = f"config.model.init_from: {path}"
    try:
        if path.suffix == ".npz":
            with np.load(path) as file:
                return dict(file)
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in (".pth", ".pt"):
            import torch

            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("model", state)  # as torchvision's training script saves it
            return {name: value.numpy() for name, value in state.items()}
    except ImportError as error:
        raise InputError(f"{where}: needs torch; or save it as .safetensors or .npz") from error
    except Exception as error:  # each format has its own
        why = (str(error) or repr(error)).splitlines()[0]
        raise InputError(f"{where}: cannot be read ({why})") from error
    raise InputError(f"{where}: not a .safetensors, .npz or .pth file")


def torch_name(path: str, num_inner: int) -> str:
    """The name in a torchvision RetinaNet of one of our arrays, such as "fpn/lateral/0/kernel".

    `num_inner` is how many of C2 to C5 its pyramid is made from: laterals are counted from the top.
    """
    module, leaf = path.rsplit("/", 1)
    module = module.replace("/layer", "")
    for pattern, name in (
        (r"backbone/stages/(\d)/", lambda m: f"backbone.body.layer{int(m[1]) + 1}."),
        (r"backbone/", "backbone.body."),
        (r"downsample/conv$", "downsample.0"),
        (r"downsample/bn$", "downsample.1"),
        (r"fpn/lateral/(-\d)", lambda m: f"backbone.fpn.inner_blocks.{int(m[1]) + num_inner}.0"),
        (r"fpn/output/(-\d)", lambda m: f"backbone.fpn.layer_blocks.{int(m[1]) + num_inner}.0"),
        (r"fpn/extra/(\d)", lambda m: f"backbone.fpn.extra_blocks.p{int(m[1]) + 6}"),
        (r"class_head/", "head.classification_head."),
        (r"box_head/", "head.regression_head."),
        (r"tower/(\d)", r"conv.\1.0"),
        (r"norms/(\d)", r"conv.\1.1"),
        (r"classification_head.final", "classification_head.cls_logits"),
        (r"regression_head.final", "regression_head.bbox_reg"),
    ):
        module = re.sub(pattern, name, module)
    return f"{module.replace('/', '.')}.{LEAVES[leaf]}"


def to_grey(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A trunk for colour made one for `augment.normalize`d grey pictures.

    With g = 0.5 + 0.25 x a grey level and x what our network sees, channel c of theirs is
    0.25 x / STD[c] + (0.5 - MEAN[c]) / STD[c]: its filters are summed once with the one factor, for
    x, and once with the other, for a channel of ones. Both are padded with zeros, as theirs is, so
    outputs are equal up to the border.
    """
    weight = state["backbone.body.conv1.weight"].astype(np.float64)  # [out, 3, 7, 7]
    summed = [
        (weight * factor[:, None, None]).sum(axis=1, keepdims=True).astype(np.float32)
        for factor in (0.25 / STD, (0.5 - MEAN) / STD)
    ]
    names = ("backbone.body.conv1.weight", "backbone.body.ones.weight")
    return {**state, **dict(zip(names, summed, strict=True))}


def init_from(path: Path, params: Any, batch_stats: Any) -> tuple[Any, Any, str]:
    """The weights of a file in place of those of a `RetinaNet`; and what was loaded, in a sentence.

    A classifier gives the trunk. A detector gives all but what depends on the number of classes and
    anchors, where that differs, and laterals of levels that it does not have. Statistics of a
    detector with frozen BatchNorm are those of torchvision's COCO weights: without an epsilon.

    Args:
        path: see `read`.
        params, batch_stats: as `detector.split` gives them.

    Raises:
        InputError: for a file that cannot be read or is of another network: names what differs.
    """
    state = read(path)
    is_detector = any(name.startswith("head.") for name in state)
    if not is_detector:
        state = {f"backbone.body.{k}": v for k, v in state.items() if not k.startswith("fc.")}
    # Older files count a head's convolutions with the ReLUs between: conv.0, conv.2, ...
    state = {
        re.sub(r"conv\.(\d)\.(weight|bias)$", lambda m: f"conv.{int(m[1]) // 2}.0.{m[2]}", k)
        if k.startswith("head.")
        else k: v
        for k, v in state.items()
    }
    had_batches = any(name.endswith("num_batches_tracked") for name in state)
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    if is_detector and not had_batches:
        state = {k: v - EPSILON if k.endswith("running_var") else v for k, v in state.items()}

    leaves, structure = jax.tree_util.tree_flatten_with_path((params, batch_stats))
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves]
    names = [name.split("/", 1)[1].removesuffix("/value") for name in names]
    num_laterals = sum(bool(re.fullmatch(r"fpn/lateral/\d/kernel", name)) for name in names)
    num_inner = sum("inner_blocks" in k and k.endswith("weight") for k in state)
    in_channels = next(
        x.shape[2] for n, (_, x) in zip(names, leaves, strict=True) if n == "backbone/conv1/kernel"
    )
    conv1 = state.get("backbone.body.conv1.weight")
    if in_channels == 1 and conv1 is not None and conv1.ndim == 4 and conv1.shape[1] == 3:
        state = to_grey(state)

    def theirs(name):
        from_top = lambda m: f"fpn/{m[1]}/{int(m[2]) - num_laterals}"  # noqa: E731
        return torch_name(re.sub(r"fpn/(lateral|output)/(\d)", from_top, name), num_inner)

    values, kept, used = [], [], set()
    for name, (_, ours) in zip(names, leaves, strict=True):
        key = theirs(name) if not name.startswith("image_head") else name
        value = state.get(key)
        optional = not name.startswith("backbone") and (
            not is_detector or name.startswith("image_head") or "blocks.-" in key
        )
        if value is None and optional:
            kept.append(name)
            values.append(ours)
            continue
        if value is None:
            raise InputError(f"config.model.init_from: {path}: has no {key}, which {name} needs")
        used.add(key)
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        if value.shape != ours.shape and "_head/final" in name:
            kept.append(f"{name} ({value.shape[-1]} outputs there, {ours.shape[-1]} here)")
            values.append(ours)
            continue
        if value.shape != ours.shape:
            raise InputError(
                f"config.model.init_from: {path}: {key} is {value.shape} there and {ours.shape} "
                f"in {name}"
            )
        values.append(np.asarray(value, np.float32))

    unused = sorted(state.keys() - used)
    other_pyramid = [k for k in unused if "fpn." in k]
    if unused != other_pyramid:
        wrong = next(k for k in unused if k not in other_pyramid)
        raise InputError(f"config.model.init_from: {path}: has {wrong}, which this network lacks")
    report = f"{path}: {len(values) - len(kept)} arrays loaded"
    if kept:
        report += "; not in the file or of another shape, so left as they were: " + ", ".join(kept)
    if unused:
        report += "; of no use here: " + ", ".join(unused)
    return *jax.tree_util.tree_unflatten(structure, values), report
