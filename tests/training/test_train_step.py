import importlib
import re

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from configs import retina
from jaxdet import models
from jaxdet.data.batches import Targets, decode_all, make_targets, training_batches
from jaxdet.evaluation.evaluate import Evaluator
from jaxdet.inference.detector import Detector
from jaxdet.kernels import switch
from jaxdet.models import layers
from jaxdet.runs import checkpoint, parallel
from jaxdet.runs import config as configs
from jaxdet.training import train_step
from jaxdet.training.plan import plan_detector

AXES = {"axis_names": ("data",), "axis_types": (jax.sharding.AxisType.Auto,)}


def setup(config, num_devices):
    """A jitted step on some of the devices, its first state, and the mesh."""
    mesh = Mesh(np.array(jax.devices()[:num_devices]), **AXES)
    init, step = train_step.compile_training(config, 14, mesh)
    return step, init(), mesh


class FourLayers(nnx.Module):
    """A backbone that compiles fast: C2 to C5 are four convolutions, each with a norm."""

    def __init__(self, *, norm, dtype, rngs: nnx.Rngs):
        self.out_channels = (8, 8, 8, 8)
        sizes = [(1, 7, 4), (8, 3, 2), (8, 3, 2), (8, 3, 2)]  # channels in, kernel, stride
        self.stages = nnx.List(
            [layers.conv(c, 8, k, stride, dtype=dtype, rngs=rngs) for c, k, stride in sizes]
        )
        self.norms = nnx.List([layers.Norm(norm, 8, dtype=dtype, rngs=rngs) for _ in sizes])

    def __call__(self, x, train):
        features = []
        for layer, norm in zip(self.stages, self.norms, strict=True):
            x = layers.relu(norm(layer(x), train))
            features.append(x)
        return features


@pytest.fixture
def small(config, monkeypatch):
    """A config with that backbone, GroupNorm and SGD."""
    monkeypatch.setitem(models.BACKBONES, "four layers", FourLayers)
    config.model.backbone.update({"name": "four layers", "norm": "group"})
    config.model.update({"levels": (4, 5), "fpn_channels": 8, "head_channels": 8})
    config.train.update({"optimizer": "sgd", "learning_rate": 0.02, "warmup_steps": 0})
    return config


def test_four_devices_give_the_loss_and_the_parameters_of_one(small, batches, tmp_path):
    """With BatchNorm, whose statistics are of all images. One goes on from what four have saved."""
    # SGD, as Adam divides by the gradient's size: where that is noise, the updates would differ.
    small.model.backbone.norm = "batch"
    results = []
    for num_devices in (4, 1):
        step, state, mesh = setup(small, num_devices)
        losses = []
        for i in range(2):
            state, metrics = step(state, parallel.shard_batch(batches[i], mesh))
            losses.append(float(metrics["loss"]))
            if num_devices == 4 and i == 0:
                saved = jax.device_get(state)
                with checkpoint.open_manager(tmp_path, {}) as manager:
                    checkpoint.save(manager, 1, **state.to_items())
        assert len(state.step.sharding.device_set) == num_devices
        results.append((losses, jax.tree.leaves(jax.device_get((state.params, state.batch_stats)))))
    (four_loss, four), (one_loss, one) = results
    np.testing.assert_allclose(one_loss, four_loss, rtol=1e-4)
    for a, b in zip(one, four, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)

    abstract = checkpoint.abstract_of(state, parallel.replicated(mesh))
    with checkpoint.open_manager(tmp_path) as manager:
        items, _ = checkpoint.restore_newest(manager, **abstract.to_items())
    state = train_step.TrainState.from_items(items)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), saved)
    assert len(state.step.sharding.device_set) == 1
    _, metrics = step(state, parallel.shard_batch(batches[1], mesh))
    np.testing.assert_allclose(metrics["loss"], four_loss[1], rtol=1e-4)


def test_bfloat16_computes_nearly_the_same_and_keeps_a_float32_state(small, batches):
    small.model.backbone.norm = "batch"
    batch = batches[0]
    losses = {}
    for dtype in ("float32", "bfloat16"):
        small.model.dtype = dtype
        step, state, mesh = setup(small, 1)
        state, metrics = step(state, parallel.shard_batch(batch, mesh))
        losses[dtype] = float(metrics["loss"])
        kinds = {x.dtype for x in jax.tree.leaves((state.params, state.batch_stats))}
        assert kinds == {jax.numpy.dtype("float32")}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_the_step_on_a_gpu_calls_nothing_from_outside_and_convolves_in_bfloat16(
    config, batches, monkeypatch
):
    """As it is handed to XLA: no host, no solver, no layer of the CPU's kind."""
    monkeypatch.setattr(switch, "target", lambda: "gpu")
    config.model.dtype = "bfloat16"
    init, step = train_step.compile_training(config, 14, parallel.make_mesh())
    batch = parallel.shard_batch(batches[0], parallel.make_mesh())
    lowered = step.trace(jax.eval_shape(init), batch).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert not re.findall(r"custom_call @(?!Sharding)\w+|infeed|outfeed|send|recv", text)
    results = re.findall(r"stablehlo\.convolution.*-> tensor<[\dx]+x(\w+)>", text)
    assert len(results) > 30 and set(results) == {"bf16"}


@pytest.mark.parametrize(
    "name",
    [
        "phantom",
        "small",
        "retina:256",
        pytest.param("retina:512", marks=pytest.mark.slow),  # with all blocks of ResNet-50
        pytest.param("retina:1024", marks=pytest.mark.slow),
        "fcos:256",
    ],
)
def test_shipped_configs_fit_together(name):
    """Traced at full size, not computed: a batch goes in, the state comes out as it was."""
    module, *size = name.split(":")
    config = importlib.import_module(f"configs.{module}").get_config(*size)
    configs.check(config, retina.get_fields())
    if name in ("retina:256", "retina:1024", "fcos:256"):
        config.model.backbone.depth = 10
    targets = Targets(
        np.array([[[10, 10, 60, 90]]], np.float32), *(np.ones((1, 1), t) for t in (int, "f", bool))
    )
    config, _ = plan_detector(config, targets, ("Mass", "Nodule"))
    init, step = train_step.compile_training(config, 2, parallel.make_mesh())
    state = jax.eval_shape(init)
    rows, side, boxes = config.train.batch_size, config.data.image_size, 30
    shapes = {
        "images": ((rows, side, side), "uint8"), "boxes": ((rows, boxes, 4), "float32"),
        "labels": ((rows, boxes), "int32"), "soft_targets": ((rows, boxes), "float32"),
        "mask": ((rows, boxes), "bool"),
    }  # fmt: skip
    batch = {key: jax.ShapeDtypeStruct(*value) for key, value in shapes.items()}
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    assert metrics["loss"].shape == () and metrics["loss"].dtype == "float32"


@pytest.mark.slow
def test_overfitting_one_batch_reaches_map_1(config, sets, batches):
    """The first thing to try when a detector learns nothing."""
    config.augment.update({"flip": 0.0, "scale": 0.0, "shift": 0.0, "rotate": 0.0})
    config.augment.update({"brightness": 0.0, "contrast": 0.0, "gamma": 0.0})
    config.train.update({"steps": 100, "ema_decay": 0.9, "learning_rate": 3e-3})
    batch = batches[0]
    step, state, mesh = setup(config, 1)
    for _ in range(config.train.steps):
        state, metrics = step(state, parallel.shard_batch(batch, mesh))
    assert metrics["loss"] < 0.2

    images = decode_all(sets[0], 64, "train")
    chosen = [
        int(np.flatnonzero((images == image).all(axis=(1, 2)))[0]) for image in batch["images"]
    ]
    detector = Detector(config, 14, mesh)
    scores = Evaluator(detector, sets[0].take(np.array(chosen))).score(state.weights())
    assert scores["mAP@0.4"] == 1.0
    assert scores["AP"]["No finding"] == 1.0
    assert sum(ap is not None for ap in scores["AP"].values()) == 4


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(small, batches):
    """A target, or a gradient that overflows, spoils no parameter, statistic or moment."""
    small.model.backbone.norm = "batch"
    small.train.optimizer = "adamw"
    step, state, mesh = setup(small, 1)
    bad = {**batches[0], "soft_targets": np.full_like(batches[0]["soft_targets"], np.nan)}
    state, metrics = step(state, parallel.shard_batch(batches[0], mesh))
    assert metrics["skipped_steps"] == metrics["skipped_in_a_row"] == 0
    before = jax.device_get(state)
    for number in (1, 2):
        state, metrics = step(state, parallel.shard_batch(bad, mesh))
        assert not np.isfinite(metrics["loss"]) and not np.isfinite(metrics["gradient_norm"])
        assert metrics["skipped_steps"] == metrics["skipped_in_a_row"] == number
    expected = before._replace(step=3, skipped_steps=2, skipped_in_a_row=2)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), expected)
    state, metrics = step(state, parallel.shard_batch(batches[1], mesh))
    assert metrics["skipped_steps"] == 2 and metrics["skipped_in_a_row"] == 0
    # The second update, so the second learning rate.
    assert metrics["learning_rate"] == train_step.make_schedule(small.train)(1)
    assert any(
        (a != b).any()
        for a, b in zip(*map(jax.tree.leaves, (state.params, before.params)), strict=True)
    )


def test_gradients_are_clipped_by_the_norm_of_all(small, batches):
    """SGD's update shrinks by as much as the norm is above the limit, and else stays."""
    small.train.weight_decay = 0.0
    updates = {}
    for limit in (1e9, 0.05):
        small.train.clip_norm = limit
        step, state, mesh = setup(small, 1)
        before = jax.device_get(state.params)
        after, metrics = step(state, parallel.shard_batch(batches[0], mesh))
        change = jax.tree.map(lambda a, b: np.ravel(a - b), jax.device_get(after.params), before)
        updates[limit] = np.concatenate(jax.tree.leaves(change)).astype(np.float64)
    norm = metrics["gradient_norm"]
    assert norm > 0.1  # of the gradient as it was
    rate = metrics["learning_rate"]
    np.testing.assert_allclose(np.linalg.norm(updates[1e9]), rate * norm, rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(updates[0.05]), rate * 0.05, rtol=1e-3)


def test_the_backbone_learns_at_its_rate_and_frozen_stages_not_at_all(small, batches):
    """SGD's update is proportional to the rate; decay alone would move what is frozen."""
    batch = batches[0]
    small.train.update({"weight_decay": 0.1, "clip_norm": 1e9})
    changes = {}
    for rate, frozen in ((1.0, 0), (0.1, 0), (1.0, 2)):
        small.train.backbone_lr_multiplier = rate
        small.model.backbone.frozen_stages = frozen
        step, state, mesh = setup(small, 1)
        before = jax.device_get(state.params)
        after, _ = step(state, parallel.shard_batch(batch, mesh))
        difference = jax.tree.map(lambda a, b: a - b, jax.device_get(after.params), before)
        changes[rate, frozen] = {
            jax.tree_util.keystr(path, simple=True, separator="/"): value
            for path, value in jax.tree_util.tree_leaves_with_path(difference)
        }
    stem = ("backbone/stem/", "backbone/stages/0/")
    for name, change in changes[1.0, 0].items():
        share = 0.1 if name.startswith("backbone/") else 1.0
        np.testing.assert_allclose(changes[0.1, 0][name], share * change, rtol=1e-3, atol=1e-6)
        frozen = changes[1.0, 2][name]
        assert not frozen.any() if name.startswith(stem) else frozen.any() or not change.any()


@pytest.mark.slow
def test_a_step_in_parts_is_that_of_the_whole_batch(small, batches):
    """On four devices: the same losses, counts, gradient and parameters."""
    small.augment.shift = 0.3  # so that there are boxes without an anchor
    results = []
    for parts in (1, 2):
        small.train.accumulate = parts
        step, state, mesh = setup(small, 4)
        after, metrics = step(state, parallel.shard_batch(batches[0], mesh))
        results.append((jax.device_get(after.params), jax.device_get(metrics)))
    (whole, losses), (found, metrics) = results
    assert losses.keys() == metrics.keys() and losses["gradient_norm"] > 0.1
    for name, value in losses.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, whole)


@pytest.mark.slow
def test_a_run_learns_with_every_part_of_the_recipe_on(config, sets):
    """ATSS, GIoU, the image head, votes and balanced classes in one step after another."""
    config.model.image_head = True
    config.loss.update({"matching": "atss", "box": "giou", "box_weight": 2.0})
    config.train.update({"steps": 40, "ema_decay": 0.9})
    targets = make_targets(sets[0], "votes@0.4", config.data.image_size)
    config.data.update({"normal_share": 0.25, "balance_classes": True})
    batches = training_batches(config, sets[0], targets, slice(None))
    step, state, mesh = setup(config, 1)
    history = []
    for i in range(config.train.steps):
        state, metrics = step(state, parallel.shard_batch(batches[i], mesh))
        history.append({name: float(metrics[name]) for name in metrics})
    for name in ("class_loss", "box_loss", "image_loss"):
        assert history[-1][name] < 0.8 * history[0][name], name
    total = {"class_loss": 1, "box_loss": 2.0, "image_loss": 1.0}
    for line in history:
        expected = sum(weight * line[name] for name, weight in total.items())
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
