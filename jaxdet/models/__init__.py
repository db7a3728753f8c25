"""The detector that a config describes, and what there is to choose from.

A detector is a module with
- `__call__(images, train) -> outputs`, of normalised images (`images.normalize`);
- `losses(outputs, targets) -> {name: number}`: "loss" is made small; all are logged by their names,
  and those that are whole numbers are counts of what went wrong, shown where they are not 0. Of a
  class that is not all boxed (`Targets.exhaustive`) what is not boxed is no background;
- `detections(outputs, **config.inference) -> Detections`, in pixels of the input;
- `describe() -> str`, what it is, for people.

Its arguments are fields of `config.model`, by name, and what `create` has made of `config.loss`.
What it wants to know of the training boxes beforehand is filled in where the config has None:
`planned` names those fields, with values that do until then, and `plan(model, boxes, labels,
image_size)` gives them. Where places of its output answer for boxes, `priors()` and
`match(targets)` tell which, and `reach(boxes)` how well they could: `inspect` shows it. `names` has
what files of others call the arrays of its heads, and may be empty; `frozen_epsilon` is that of
frozen BatchNorm in such files.

A backbone is a module with `out_channels`, the channels of C2 to C5, that makes those four of
images: `backbone(images, train) -> [C2, C3, C4, C5]`, C at level l 1/2**l of the image, rounded up.
What comes first in it is called `stem`, the rest `stages/0` to `stages/3` (for the learning rate,
and what is frozen). Its arguments are those fields of `config.model.backbone` that its signature
names; `depths` has what `depth` may be, if it takes one. `names` has what files of others call its
arrays, and may be empty; `epsilon` is that of its normalisation.

Random layers, such as `nnx.Dropout(rate, rngs=rngs)`, draw from what `seed` gives them in each step
of training, and are no part of the state: nothing of them is saved.
"""

from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxdet.doors import choose, fields_of
from jaxdet.kernels.precision import type_here
from jaxdet.models.convnext import ConvNeXt
from jaxdet.models.fcos import FCOS
from jaxdet.models.resnet import ResNet
from jaxdet.models.retinanet import RetinaNet
from jaxdet.ops.box_coder import BOX_CODERS
from jaxdet.ops.losses import BOX_LOSSES, CLASS_LOSSES
from jaxdet.ops.matching import MATCHERS

DETECTORS = {"retinanet": RetinaNet, "fcos": FCOS}
BACKBONES = {"resnet": ResNet, "convnext": ConvNeXt}
_ABSTRACT = {}  # of `abstract`: a run asks several times, and flax takes a second each time


def create(
    model: Any,
    loss: Any,
    num_classes: int,
    image_size: int,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """The detector of `config.model` and `config.loss`, for square images of `image_size` pixels.

    Raises:
        ConfigError: for a field that it cannot follow.
    """
    detector, backbone = DETECTORS[model["name"]], BACKBONES[model["backbone"]["name"]]
    common = {"dtype": type_here(model["dtype"]), "rngs": rngs}
    parts = {
        **model,
        **loss,
        "backbone": backbone(**fields_of(backbone, model["backbone"]), **common),
        "num_classes": num_classes,
        "image_size": image_size,
        "matcher": choose(MATCHERS, loss["matching"], loss),
        "box_coder": BOX_CODERS[loss["box_coder"]],
        "class_loss": choose(CLASS_LOSSES, loss["class_loss"], loss),
        "box_loss": choose(BOX_LOSSES, loss["box"], loss),
        **common,
    }
    return detector(**fields_of(detector, parts))


class _Stream(nnx.RngStream):
    """Gives the keys of `nnx.RngStream`, counted by NumPy.

    Flax asks a traced count for its sharding, which tracers lack, and JAX answers with a message
    for which it walks through all that was traced so far: seconds in a large network.
    """

    def __init__(self, key: jax.Array | int, *, tag: str):
        super().__init__(key, tag=tag)
        self.count.set_value(np.uint32(0))

    def __call__(self) -> jax.Array:
        count = self.count.get_value()
        self.count.set_value(count + np.uint32(1))
        return jax.random.fold_in(self.key[...], count)


def keys(seed: int) -> nnx.Rngs:
    """The keys of `nnx.Rngs(seed)`, in less time where they are traced."""
    rngs = nnx.Rngs()
    rngs.default = _Stream(seed, tag="default")
    return rngs


def as_if_planned(model: Any) -> dict[str, Any]:
    """`config.model` with some value for each field that `plan` has still to choose."""
    planned = DETECTORS[model["name"]].planned
    return {name: planned.get(name) if x is None else x for name, x in model.items()}


def split(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Its structure, its parameters, and its BatchNorm statistics (`batch_stats`).

    The keys of its random layers are taken away, see `seed`.
    """
    nnx.pop(model, nnx.RngState)
    return nnx.split(model, nnx.Param, nnx.BatchStat)


def seed(model: nnx.Module, key: jax.Array) -> None:
    """Give each random layer of a merged model a key of its own, made from `key`."""
    streams = [part for _, part in nnx.iter_graph(model) if isinstance(part, nnx.RngStream)]
    for i, stream in enumerate(streams):
        fresh = nnx.RngStream(jax.random.fold_in(key, i), tag=stream.tag)
        stream.key, stream.count = fresh.key, fresh.count


def abstract(
    model: Any, loss: Any, num_classes: int, image_size: int
) -> tuple[nnx.GraphDef, dict[str, nnx.State]]:
    """The structure, and shapes and types of {"params", "batch_stats"}: no parameter is made."""
    parts = DETECTORS[model["name"]], BACKBONES[model["backbone"]["name"]]
    key = *parts, str((model, loss, num_classes, image_size))
    if key not in _ABSTRACT:
        graphdef, params, batch_stats = split(
            nnx.eval_shape(lambda: create(model, loss, num_classes, image_size, keys(0)))
        )
        _ABSTRACT[key] = graphdef, {"params": params, "batch_stats": batch_stats}
    return _ABSTRACT[key]


def frozen_parameters(frozen_stages: int) -> tuple[str, ...]:
    """Path prefixes of frozen parameters, such as "backbone/stages/0/".

    They have no gradient, but weight decay would still move them.
    """
    parts = ("stem", *(f"stages/{i}" for i in range(4)))
    return tuple(f"backbone/{part}/" for part in parts[:frozen_stages])
