"""Weights of torchvision: a ResNet classifier or a RetinaNet, put into a network of ours."""

import re
from collections import Counter
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
    """A backbone for colour made one for `augment.normalize`d grey pictures.

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


def with_new_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names of today's torchvision for what older files call otherwise.

    Heads counted their convolutions with the ReLUs between: conv.0, conv.2, ... Neither these nor
    those of the pyramid were blocks of several layers, whose first is now "0".
    """
    renamed = {}
    for name, value in state.items():
        name = re.sub(
            r"^(head\..*conv)\.(\d)\.(weight|bias)$",
            lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}",
            name,
        )
        name = re.sub(r"((?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2", name)
        renamed[name] = value
    return renamed


def init_from(path: Path, params: Any, batch_stats: Any) -> tuple[Any, Any, str]:
    """The weights of a file in place of those of a `RetinaNet`; and what was done, in sentences.

    A classifier gives the backbone. A detector gives all but what depends on the number of classes
    and anchors, where that differs, and laterals of levels that it does not have. A detector
    without a count of batches had frozen BatchNorm without epsilon, as have torchvision's COCO
    weights of v1.

    Args:
        path: see `read`.
        params, batch_stats: as `detector.split` gives them.

    Raises:
        InputError: for a file that cannot be read or is of another network: names what differs.
    """
    where = f"config.model.init_from: {path}"
    state = with_new_names(read(path))
    is_detector = any(name.startswith("head.") for name in state)
    if not is_detector:
        state = {k if k.startswith("fc.") else f"backbone.body.{k}": v for k, v in state.items()}
    counted = any(name.endswith("num_batches_tracked") for name in state)
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}

    leaves, structure = jax.tree_util.tree_flatten_with_path((params, batch_stats))
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves]
    is_frozen = any(name.startswith("1/backbone/bn1/layer/scale") for name in names)
    names = [name.split("/", 1)[1].removesuffix("/value") for name in names]
    num_laterals = sum(bool(re.fullmatch(r"fpn/lateral/\d/kernel", name)) for name in names)
    num_inner = sum("inner_blocks" in k and k.endswith("weight") for k in state)

    said = []
    # Variances as our normalisation takes them.
    shift = (0.0 if is_detector and not counted else EPSILON) - (0.0 if is_frozen else EPSILON)
    if shift:
        state = {k: v + shift if k.endswith("running_var") else v for k, v in state.items()}
        said.append(f"{shift:+g} to the variances, for the epsilon of the normalisation")
    conv1 = state.get("backbone.body.conv1.weight")
    if "backbone/ones/kernel" in names and conv1 is not None and conv1.shape[1:2] == (3,):
        state = to_grey(state)
        said.append("filters of three colours summed for grey pictures")

    def theirs(name):
        from_top = lambda m: f"fpn/{m[1]}/{int(m[2]) - num_laterals}"  # noqa: E731
        return torch_name(re.sub(r"fpn/(lateral|output)/(\d)", from_top, name), num_inner)

    values, loaded, missing, misfits, used = [], Counter(), [], [], set()
    for name, (_, ours) in zip(names, leaves, strict=True):
        key = theirs(name) if not name.startswith("image_head") else name
        part = name.split("/")[0]
        value = state.get(key)
        if value is None:
            optional = part == "image_head" or name == "backbone/ones/kernel" or "blocks.-" in key
            if not optional and (is_detector or part == "backbone"):
                raise InputError(f"{where}: has no {key}, which {name} needs")
            missing.append(name)
            values.append(ours)
            continue
        used.add(key)
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        if value.shape == ours.shape:
            loaded[part] += 1
            values.append(np.asarray(value, np.float32))
        elif "_head/final" in name:
            misfits.append(f"{name} ({value.shape[-1]} outputs there, {ours.shape[-1]} here)")
            values.append(ours)
        else:
            raise InputError(f"{where}: {key} is {value.shape} there and {ours.shape} in {name}")

    unused = sorted(state.keys() - used)
    if wrong := [k for k in unused if "fpn." not in k and not k.startswith("fc.")]:
        raise InputError(f"{where}: has {wrong[0]}, which this network lacks")
    said.insert(0, "loaded " + ", ".join(f"{n} arrays of {part}" for part, n in loaded.items()))
    for reason, left in (
        ("not in the file, so left as they were", missing),
        ("of another shape, so left as they were", misfits),
        ("in the file, but of no use here", unused),
    ):
        if left:
            said.append(f"{reason}: {', '.join(left)}")
    return *jax.tree_util.tree_unflatten(structure, values), f"{path}: {'; '.join(said)}"
