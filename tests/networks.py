"""Tiny detectors, compiled once for all tests that ask for the same one."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import retina
from jaxdet import models
from jaxdet.kernels.compilation import jit

SIZE, NUM_CLASSES = 64, 5


def smallest(name, **fields):
    """A `config.model.backbone` of few and narrow blocks."""
    depth = min(getattr(models.BACKBONES[name], "depths", (0,)))
    return {"name": name, "depth": depth, "width": 8, **fields}


# Backbones that go through the same tests: all there are, and ResNet in two ways.
BACKBONES = {
    "batch": smallest("resnet", norm="batch"),
    "group": smallest("resnet", norm="group"),
    **{name: smallest(name) for name in models.BACKBONES if name != "resnet"},
}
SMALL = {
    "levels": (3, 4, 5, 6), "anchor_scales": (2.0, 4.0), "aspect_ratios": (0.5, 1.0),
    "fpn_channels": 16, "head_channels": 16, "head_depth": 1, "image_head": True,
    "dtype": "float32",
}  # fmt: skip
LOSS = {**retina.get_config().loss, "image_weight": 0.5}


def model_config(kind="batch", frozen_stages=0, **fields):
    """A `config.model` with one of `BACKBONES`."""
    model = retina.get_config().model.to_dict()
    backbone = {**model["backbone"], **BACKBONES[kind], "frozen_stages": frozen_stages}
    return {**model, "backbone": backbone, **SMALL, **fields}


def abstract(kind="batch", image_size=SIZE, loss=LOSS, **fields):
    """Structure, and {"params", "batch_stats"} of shapes."""
    return models.abstract(model_config(kind, **fields), loss, NUM_CLASSES, image_size)


def fill(path, x):
    """An array of a network: noise that keeps activations near 1. To draw it as the network does
    takes longer to compile than all that a test does with it."""
    name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
    if name.endswith("kernel") and "ones" not in name:
        noise = np.random.default_rng(zlib.crc32(name.encode())).normal(size=x.shape)
        return jnp.array(noise / np.sqrt(np.prod(x.shape[:-1])), jnp.float32)
    return jnp.full(x.shape, 1.0 if name.endswith(("scale", "var")) else 0.0)


@functools.cache
def detector(kind="batch"):
    """Structure, parameters and statistics of a detector that has learnt nothing."""
    graphdef, weights = abstract(kind)
    return graphdef, *jax.tree.map_with_path(fill, tuple(weights.values()))


@functools.cache
def forward(kind="batch", train=False):
    """A function (params, batch_stats, images) -> (outputs, batch_stats)."""
    graphdef, *_ = detector(kind)

    def run(params, batch_stats, images):
        model = nnx.merge(graphdef, params, batch_stats, copy=True)
        outputs = model(images, train=train)
        return outputs, models.split(model)[2]

    return jit(run)


def images(count=2, size=SIZE, seed=0):
    """Normalised noise."""
    return np.random.default_rng(seed).normal(size=(count, size, size, 1)).astype(np.float32)


def names(tree):
    """Arrays by path, such as "backbone/stem/conv/kernel"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): x
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
