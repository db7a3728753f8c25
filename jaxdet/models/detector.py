"""The detector that a config describes: its network, its anchors, its parts as pytrees."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jaxdet import InputError, anchors
from jaxdet.models.retinanet import RetinaNet

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def create(config, rngs: nnx.Rngs) -> RetinaNet:
    """The network of `config.model`.

    Raises:
        InputError: for a field that it cannot follow.
    """
    model = config.model
    if model.dtype not in DTYPES:
        raise InputError(f"config.model.dtype: {model.dtype!r} is not one of {', '.join(DTYPES)}")
    if model.head_norm not in ("none", "group"):
        raise InputError(f"config.model.head_norm: {model.head_norm!r} is not one of none, group")
    return RetinaNet(
        num_classes=model.num_classes,
        num_anchors=len(model.anchor_scales) * len(model.aspect_ratios),
        depth=model.depth,
        width=model.width,
        norm=model.norm,
        frozen_stages=config.train.frozen_stages,
        levels=model.levels,
        p6_from=model.p6_from,
        fpn_channels=model.fpn_channels,
        head_channels=model.head_channels,
        head_depth=model.head_depth,
        head_norm=None if model.head_norm == "none" else model.head_norm,
        image_head=model.image_head,
        dtype=DTYPES[model.dtype],
        rngs=rngs,
    )


def split(network: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Its structure, parameters and BatchNorm statistics."""
    return nnx.split(network, nnx.Param, nnx.BatchStat)


def graphdef(config) -> nnx.GraphDef:
    """The structure alone, without making a single parameter."""
    return split(nnx.eval_shape(lambda: create(config, nnx.Rngs(0))))[0]


def abstract_weights(config) -> dict[str, nnx.State]:
    """Shapes and types of what inference needs, as a checkpoint holds it."""
    _, params, batch_stats = split(nnx.eval_shape(lambda: create(config, nnx.Rngs(0))))
    return {"params": params, "batch_stats": batch_stats}


def pyramid(config) -> list[Float[np.ndarray, "_ 4"]]:
    """Anchors of each level, in pixels, in the order of the network's outputs."""
    model, size = config.model, config.data.image_size
    return anchors.pyramid_anchors(
        (size, size), model.levels, model.anchor_scales, model.aspect_ratios
    )
