"""Weights of one detector of ours put into another: by name, and classes by theirs."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from jaxdet import InputError
from jaxdet.models.weights.init_from import names_of

Arrays = dict[str, Any]  # by name, such as "fpn/lateral/0/kernel"


class Taken(NamedTuple):
    """What comes over, and what does not.

    Attributes:
        arrays: those that come over, by our names.
        new: names of ours that are not there.
        misfits: names of ours that have another shape there, with both.
        unused: names of theirs that are of no use.
        said: sentences about what was not simply copied.
    """

    arrays: dict[str, np.ndarray]
    new: list[str]
    misfits: list[str]
    unused: list[str]
    said: list[str]


def take(
    theirs: Arrays, ours: Arrays, their_classes: Sequence[str], our_classes: Sequence[str]
) -> Taken:
    """What a detector takes over from another: whatever has the same name and shape.

    Of the last layers, a class has the rows of the class of that name. Where the anchors of a
    location are not as many, each has the mean of theirs. The pyramid's layers are those of the
    same level, whichever is the finest.

    Raises:
        InputError: if the backbone is another one, with the first array that says so.
    """
    check_backbone(theirs, ours)
    their_classes, our_classes = (
        [unicodedata.normalize("NFC", name) for name in names]
        for names in (their_classes, our_classes)
    )
    theirs = same_levels(theirs, ours)
    taken = Taken({}, [], [], [name for name in theirs if name not in ours], [])
    shared = [(their_classes.index(c), i) for i, c in enumerate(our_classes) if c in their_classes]
    any_finding = (len(their_classes), len(our_classes))
    sizes, coordinates = any_finding, [(i, i) for i in range(4)]
    # Of each last layer: outputs an anchor there and here, and which becomes which.
    last = {
        "class_head/final": (*sizes, shared),
        "image_head": (sizes[0] + 1, sizes[1] + 1, [*shared, any_finding]),
        "box_head/final": (4, 4, coordinates),
    }
    averaged = {}
    for name, mine in ours.items():
        if name not in theirs:
            taken.new.append(name)
            continue
        value, layer = np.asarray(theirs[name], np.float32), name.rpartition("/")[0]
        if layer in last and value.shape[:-1] == mine.shape[:-1]:
            there, here, pairs = last[layer]
            anchors = value.shape[-1] // there, mine.shape[-1] // here
            if anchors[0] != anchors[1]:
                averaged[layer] = anchors
            taken.arrays[name] = move_rows(value, np.asarray(mine), there, here, pairs)
        elif value.shape == mine.shape:
            taken.arrays[name] = value
        else:
            taken.misfits.append(f"{name} ({value.shape} there, {mine.shape} here)")
    names = [our_classes[i] for _, i in shared]
    classes = {
        "rows of the classes": names,
        "no rows for": [c for c in our_classes if c not in names],
        "of no use those of": [c for c in their_classes if c not in names],
    }
    taken.said.append("; ".join(f"{k} {', '.join(v)}" for k, v in classes.items() if v))
    for layer, (there, here) in averaged.items():
        taken.said.append(
            f"{layer}: the mean of {there} anchors a location for {'each of ' * (here > 1)}{here}"
        )
    return taken


def check_backbone(theirs: Arrays, ours: Arrays) -> None:
    """Raise InputError unless both backbones have the same arrays."""
    for name in sorted(theirs.keys() | ours.keys()):
        there, here = (x[name].shape if name in x else None for x in (theirs, ours))
        if name.startswith("backbone/") and there != here:
            raise InputError(f"its backbone is another one: {name} is {there} there, {here} here")


def same_levels(theirs: Arrays, ours: Arrays) -> Arrays:
    """Theirs, with our numbers of the pyramid's layers: both count from the finest level up to 5.

    A layer of a level that is finer than ours has a number below 0.
    """

    def count(arrays):
        return sum(bool(re.fullmatch(r"fpn/lateral/\d+/kernel", name)) for name in arrays)

    shift = count(ours) - count(theirs)

    def rename(name):
        return re.sub(
            r"^fpn/(lateral|output)/(\d+)/",
            lambda found: f"fpn/{found[1]}/{int(found[2]) + shift}/",
            name,
        )

    return {rename(name): value for name, value in theirs.items()}


def move_rows(
    theirs: Float[np.ndarray, "... their_outputs"],
    ours: Float[np.ndarray, "... our_outputs"],
    there: int,
    here: int,
    pairs: Sequence[tuple[int, int]],
) -> Float[np.ndarray, "... our_outputs"]:
    """Ours, with some of the outputs of each anchor from theirs.

    Args:
        theirs, ours: the last axis has the outputs of the first anchor, then those of the next.
        there, here: how many outputs an anchor has.
        pairs: (output there, output here) of those that come over.
    """
    theirs = theirs.reshape(*theirs.shape[:-1], -1, there)
    result = ours.reshape(*ours.shape[:-1], -1, here).copy()
    if theirs.shape[-2] != result.shape[-2]:
        theirs = theirs.mean(axis=-2, keepdims=True)
    for source, target in pairs:
        result[..., target] = theirs[..., source]
    return result.reshape(ours.shape)


def from_run(
    where: str,
    weights: dict[str, Any],
    their_classes: Sequence[str],
    our_classes: Sequence[str],
    params: Any,
    batch_stats: Any,
    backbone: type[nnx.Module],
) -> tuple[Any, Any, str]:
    """The weights of a run in place of those of a detector; and what was done, in sentences.

    Args:
        where: the run, for people.
        weights: its {"params", "batch_stats"}.
        params, batch_stats: as `models.split` gives them.
        backbone: the entry of `models.BACKBONES` that the detector has.

    Raises:
        InputError: if its backbone is another one.
    """
    theirs = names_of(weights["params"]) | names_of(weights["batch_stats"])
    ours = names_of(params) | names_of(batch_stats)
    shift = epsilon_outside(weights["batch_stats"], backbone.epsilon)
    shift -= epsilon_outside(batch_stats, backbone.epsilon)
    theirs |= {name: x + shift for name, x in theirs.items() if name.endswith("/var")}
    try:
        taken = take(theirs, ours, their_classes, our_classes)
    except InputError as error:
        raise InputError(f"config.model.init_from: {where}: {error}") from error
    parts = Counter(name.split("/")[0] for name in taken.arrays)
    said = ["took " + ", ".join(f"{n} arrays of {part}" for part, n in parts.items()), *taken.said]
    for reason, left in (
        ("not there, so left as they were", taken.new),
        ("of another shape, so left as they were", taken.misfits),
        ("there, but of no use here", taken.unused),
    ):
        if left:
            said.append(f"{reason}: {', '.join(left)}")
    after = [taken.arrays.get(name, mine) for name, mine in ours.items()]
    structure = jax.tree.structure((params, batch_stats))
    return *jax.tree.unflatten(structure, after), f"{where}: {'; '.join(said)}"


def epsilon_outside(batch_stats: Any, epsilon: float) -> float:
    """What the normalisation adds to the variances: frozen, it adds nothing, and has its scale
    there."""
    is_frozen = any(name.endswith("/scale") for name in names_of(batch_stats))
    return 0.0 if is_frozen else epsilon
