"""Weights from a file, put into a detector of ours: by the names that others gave them."""

import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from jaxdet import InputError
from jaxdet.models import DETECTORS
from jaxdet.models.weights.pth import read_pth
from jaxdet.models.weights.torchvision import BODY, pyramid_names, to_grey

# How the end of a classifier is called: of no use to a detector.
CLASSIFIER = ("fc.", "classifier.", "head.")
SUFFIXES = (".safetensors", ".npz", ".pth", ".pt")  # of files that `read` reads


def read(path: Path) -> dict[str, np.ndarray]:
    """A state dict from a .safetensors, .npz or .pth file: arrays by name.

    Raises:
        InputError: for a file that cannot be read.
    """
    where = f"config.model.init_from: {path}"
    try:
        if path.suffix == ".npz":
            return read_npz(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in (".pth", ".pt"):
            return read_pth(path)
    except Exception as error:  # each format has its own
        why = (str(error) or repr(error)).splitlines()[0]
        raise InputError(f"{where}: cannot be read ({why})") from error
    raise InputError(f"{where}: not a .safetensors, .npz or .pth file, nor the workdir of a run")


def read_npz(path: Path, most_bytes: int = 2**30) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name; no pickle in it is read.

    Raises:
        ValueError: if they take more than `most_bytes`, packed though they may be.
        Exception: what NumPy and the file system raise.
    """
    with zipfile.ZipFile(path) as file:
        size = sum(member.file_size for member in file.infolist())
    if size > most_bytes:
        raise ValueError(f"its arrays take {size / 1e6:.0f} MB")
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    if other := [name for name, x in arrays.items() if not isinstance(x, np.ndarray)]:
        raise ValueError(f"{other[0]} in it is no array")  # NumPy then gives its bytes
    return arrays


def in_our_order(value: np.ndarray) -> np.ndarray:
    """An array of torch's with its axes in our order."""
    if value.ndim == 4:  # a convolution: (out, in, height, width) there
        return value.transpose(2, 3, 1, 0)
    if value.ndim == 3:  # a scale: (channels, 1, 1)
        return value.ravel()
    return value.T  # a linear layer, (out, in), or a vector


def names_of(tree: Any) -> dict[str, Any]:
    """The arrays of `params` or `batch_stats` by name, such as "fpn/lateral/0/kernel"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): value
        for path, value in jax.tree_util.tree_leaves_with_path(tree)
    }


def is_detector(state: dict[str, np.ndarray]) -> bool:
    """Whether a file is of a detector, not of a classifier."""
    return any(name.startswith(BODY) for name in state)


def detector_of(ours: list[str]) -> Any:
    """The detector whose heads our arrays are of: the one that has names for most of them, and of
    several the one with fewest others. None if none has any."""

    def fits(detector):
        return len(detector.names.keys() & set(ours)), -len(detector.names)

    best = max(DETECTORS.values(), key=fits)
    return best if fits(best)[0] else None


def names_in_file(
    ours: list[str], state: dict[str, np.ndarray], backbone: type[nnx.Module]
) -> dict[str, tuple[str, ...]]:
    """What this file may call each of our arrays, of those that others have too."""
    names = {f"backbone/{name}": theirs for name, theirs in backbone.names.items()}
    if not is_detector(state):
        return names
    num_laterals = sum(bool(re.fullmatch(r"fpn/lateral/\d/kernel", name)) for name in ours)
    num_inner = sum("inner_blocks" in k and k.endswith("weight") for k in state)
    names = {name: tuple(BODY + x for x in theirs) for name, theirs in names.items()}
    detector = detector_of(ours)
    heads = detector.names if detector else {}
    return names | pyramid_names(num_laterals, num_inner) | heads


def init_from(
    path: Path, params: Any, batch_stats: Any, backbone: type[nnx.Module]
) -> tuple[Any, Any, str]:
    """The weights of a file in place of those of a detector; and what was done, in sentences.

    A classifier gives the backbone. A detector gives all but what depends on the number of classes
    and anchors, where that differs, and laterals of levels that it does not have. A detector
    without a count of batches had frozen BatchNorm, as have torchvision's COCO weights; with which
    epsilon, our detector of the same kind knows.

    Args:
        path: see `read`. Names may be those of torchvision, and of timm for a classifier.
        params, batch_stats: as `models.split` gives them.
        backbone: the entry of `models.BACKBONES` that the detector has.

    Raises:
        InputError: for a file that cannot be read or is of another network: names what differs; and
            for a backbone that has no names in files.
    """
    where = f"config.model.init_from: {path}"
    if not backbone.names:
        raise InputError(
            f"{where}: {backbone.__name__} has no names in files of others (its `names` is empty): "
            "leave the field empty, or choose another config.model.backbone.name"
        )
    state = read(path)
    of_detector = is_detector(state)
    counted = any(name.endswith("num_batches_tracked") for name in state)
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    before = names_of(params) | names_of(batch_stats)
    names = names_in_file(list(before), state, backbone)

    # Their arrays by our names.
    keys = {}
    for name in [name for name in before if name in names]:
        known = [key for key in names[name] if key in state]
        if not known:
            raise InputError(f"{where}: has no {' or '.join(names[name])}, which {name} needs")
        keys[name] = known[0]
    unused = sorted(state.keys() - keys.values())
    of_no_use = "backbone.fpn." if of_detector else CLASSIFIER
    if foreign := [key for key in unused if not key.startswith(of_no_use)]:
        raise InputError(f"{where}: has {foreign[0]}, which this network lacks")
    found = {name: in_our_order(state[key]) for name, key in keys.items()}
    said = []

    # Grey pictures for coloured ones.
    stem, ones = "backbone/stem/conv/kernel", "backbone/stem/ones/kernel"
    if ones in before and found[stem].shape[2:3] == (3,):
        found[stem], found[ones] = to_grey(found[stem])
        said.append("filters of three colours summed for grey pictures")

    # Variances as our normalisation takes them: only one that is frozen keeps its scale there.
    is_frozen = any(name.endswith("/scale") for name in names_of(batch_stats))
    theirs = backbone.epsilon
    if of_detector and not counted and (detector := detector_of(list(before))):
        theirs = detector.frozen_epsilon
    shift = theirs - (0.0 if is_frozen else backbone.epsilon)
    variances = [name for name in found if name.endswith("/var")]
    if shift and variances:
        found |= {name: found[name] + shift for name in variances}
        said.append(f"{shift:+g} to the variances, for the epsilon of the normalisation")

    after, loaded, missing, misfits = [], Counter(), [], []
    for name, ours in before.items():
        value = found.get(name, ours)
        if name not in found:
            missing.append(name)
        elif value.shape == ours.shape:
            loaded[name.split("/")[0]] += 1
            value = np.asarray(value, np.float32)
        elif "_head/final/" in name:
            misfits.append(f"{name} ({value.shape[-1]} outputs there, {ours.shape[-1]} here)")
            value = ours
        else:
            raise InputError(
                f"{where}: {keys[name]} is {value.shape} there and {ours.shape} in {name}"
            )
        after.append(value)

    said.insert(0, "loaded " + ", ".join(f"{n} arrays of {part}" for part, n in loaded.items()))
    for reason, left in (
        ("not in the file, so left as they were", missing),
        ("of another shape, so left as they were", misfits),
        ("in the file, but of no use here", unused),
    ):
        if left:
            said.append(f"{reason}: {', '.join(left)}")
    structure = jax.tree.structure((params, batch_stats))
    return *jax.tree.unflatten(structure, after), f"{path}: {'; '.join(said)}"
