import importlib
import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from configs import retina
from jaxdet import InputError, inference, parallel, splits, train, train_step
from jaxdet import config as configs
from jaxdet.batches import Targets, decode_all, make_targets, training_batches
from jaxdet.dataset import open_dataset
from jaxdet.evaluate import Evaluator

AXES = {"axis_names": ("data",), "axis_types": (jax.sharding.AxisType.Auto,)}


def setup(config, num_devices):
    """A jitted step on some of the devices, its first state, and the mesh."""
    mesh = Mesh(np.array(jax.devices()[:num_devices]), **AXES)
    init, step = train_step.compile_training(config, 14, mesh)
    return step, init(), mesh


@pytest.fixture
def sets(config, dataset):
    """The images to train on and to evaluate on."""
    builder = open_dataset(config.data.name, config.data.dir)
    return splits.train_and_eval(config.data, builder, dataset)


@pytest.fixture
def batches(config, sets):
    targets = make_targets(sets[0], config.data.fusion, config.data.image_size)
    return training_batches(config, sets[0], targets, slice(None))


def test_four_devices_give_the_loss_and_the_parameters_of_one(config, batches):
    # Adam divides by the gradient's size: where that is noise, the updates would differ.
    config.train.update({"optimizer": "sgd", "learning_rate": 0.02})
    results = []
    for num_devices in (1, 4):
        step, state, mesh = setup(config, num_devices)
        losses = []
        for i in range(2):
            state, metrics = step(state, parallel.shard_batch(batches[i], mesh))
            losses.append(float(metrics["loss"]))
        assert len(state.step.sharding.device_set) == num_devices
        results.append((losses, jax.tree.leaves(jax.device_get((state.params, state.batch_stats)))))
    (one_loss, one), (four_loss, four) = results
    np.testing.assert_allclose(one_loss, four_loss, rtol=1e-4)
    for a, b in zip(one, four, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_bfloat16_computes_nearly_the_same_and_keeps_a_float32_state(config, batches):
    batch = batches[0]
    losses = {}
    for dtype in ("float32", "bfloat16"):
        config.model.dtype = dtype
        step, state, mesh = setup(config, 1)
        state, metrics = step(state, parallel.shard_batch(batch, mesh))
        losses[dtype] = float(metrics["loss"])
        kinds = {x.dtype for x in jax.tree.leaves((state.params, state.batch_stats))}
        assert kinds == {jax.numpy.dtype("float32")}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


@pytest.mark.parametrize("name", ["phantom", "retina:256", "retina:512", "retina:1024"])
def test_shipped_configs_fit_together(name):
    """Traced at full size, not computed: a batch goes in, the state comes out as it was."""
    module, *size = name.split(":")
    config = importlib.import_module(f"configs.{module}").get_config(*size)
    configs.check(config, retina.get_config())
    targets = Targets(
        np.array([[[10, 10, 60, 90]]], np.float32), *(np.ones((1, 1), t) for t in (int, "f", bool))
    )
    config, _ = train.plan_anchors(config, targets, ("Mass", "Nodule"))
    init, step = train_step.compile_training(config, 2, parallel.make_mesh())
    state = jax.eval_shape(init)
    rows, side, boxes = config.train.batch_size, config.data.image_size, 30
    shapes = {
        "images": ((rows, side, side), "uint8"), "boxes": ((rows, boxes, 4), "float32"),
        "labels": ((rows, boxes), "int32"), "scores": ((rows, boxes), "float32"),
        "mask": ((rows, boxes), "bool"),
    }  # fmt: skip
    batch = {key: jax.ShapeDtypeStruct(*value) for key, value in shapes.items()}
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    assert metrics["loss"].shape == () and metrics["loss"].dtype == "float32"


def test_overfitting_one_batch_reaches_map_1(config, sets, batches):
    """The first thing to try when a detector learns nothing."""
    config.augment.update({"flip": 0.0, "scale": 0.0, "shift": 0.0, "rotate": 0.0})
    config.augment.update({"brightness": 0.0, "contrast": 0.0, "gamma": 0.0})
    config.train.update({"steps": 150, "ema_decay": 0.9, "learning_rate": 2e-3})
    batch = batches[0]
    step, state, mesh = setup(config, 1)
    for _ in range(config.train.steps):
        state, metrics = step(state, parallel.shard_batch(batch, mesh))
    assert metrics["loss"] < 0.2

    images = decode_all(sets[0], 64, "train")
    chosen = [
        int(np.flatnonzero((images == image).all(axis=(1, 2)))[0]) for image in batch["images"]
    ]
    detector = inference.Detector(config, 14, mesh)
    scores = Evaluator(detector, sets[0].take(np.array(chosen))).score(state.weights())
    assert scores["mAP@0.4"] == 1.0
    assert scores["AP"]["No finding"] == 1.0
    assert sum(ap is not None for ap in scores["AP"].values()) == 4


def lines_of(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def weights_of(config, workdir):
    loaded = inference.load(config, workdir, "latest", 14)
    return loaded.weights, loaded.step


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    config, dataset, sets, tmp_path, monkeypatch
):
    """Stopped after step 3, one past its last checkpoint: 3 and 4 are done, and logged, again.

    And stopped between a checkpoint and its evaluation, which then comes first.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.train(config, dataset, *sets, whole)

    def break_off(batches, first, num_workers):
        yield from (batches[step] for step in range(3))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "read_ahead", break_off)
        with pytest.raises(KeyboardInterrupt):
            train.train(config, dataset, *sets, parts)
    assert [line["step"] for line in lines_of(parts)] == [1, 2, 2, 3]

    def fail(*_):
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "score", fail)
        with pytest.raises(RuntimeError):
            train.train(config, dataset, *sets, parts)
    assert [line["step"] for line in lines_of(parts)] == [1, 2, 2, 3, 4]
    train.train(config, dataset, *sets, parts)

    expected, _ = weights_of(config, whole)
    got, step = weights_of(config, parts)
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert lines_of(parts) == lines_of(whole)


def test_a_run_is_of_its_images(config, dataset, sets, tmp_path):
    """Others under the same workdir, or the same corrected and built anew, are refused."""
    train.train(config, dataset, *sets, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    fewer = sets[0].take(np.arange(len(sets[0]) - 1))
    with pytest.raises(InputError, match="has other training images than tfds_vinbig/256"):
        train.train(config, dataset, fewer, sets[1], tmp_path)
    with pytest.raises(InputError, match="has other images or annotations than"):
        train.train(config, replace(dataset, checksums=dataset.checksums + 1), *sets, tmp_path)
    renamed = replace(dataset, class_names=("Mass", *dataset.class_names[1:]))
    with pytest.raises(InputError, match="has other class names than"):
        train.train(config, renamed, *sets, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("field", ["train.batch_size", "evaluation.batch_size"])
def test_a_batch_that_the_devices_do_not_divide_is_known_before_the_first_step(
    config, dataset, sets, tmp_path, field
):
    section, name = field.split(".")
    config[section][name] = 6
    with pytest.raises(InputError, match=rf"config\.{field}: 6 does not divide over 4 devices"):
        train.train(config, dataset, *sets, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_disk_without_room_is_known_before_the_first_step(
    config, dataset, sets, tmp_path, monkeypatch
):
    full = shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(train.shutil, "disk_usage", lambda _: full)
    with pytest.raises(InputError, match="--workdir: checkpoints need .* MB, and .* for 0 MB"):
        train.train(config, dataset, *sets, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(config, dataset, sets, tmp_path):
    config.train.update({"learning_rate": 1e30, "optimizer": "sgd", "clip_norm": 1e30})
    with pytest.raises(InputError, match="learning_rate"):
        train.train(config, dataset, *sets, tmp_path)


def test_anchors_of_a_run_without_a_checkpoint_are_planned_anew(config, dataset, sets, tmp_path):
    """Stopped before its first checkpoint, and started again with larger pictures, say."""
    (tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir(parents=True)
    config.model.anchor_scales = None
    (tmp_path / "config.json").write_text('{"model": {"anchor_scales": [7.0]}}')
    train.train(config, dataset, *sets, tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    assert len(record["model"]["anchor_scales"]) == 3
    assert record["run"]["planned"] == ["model.anchor_scales"]
    # With one, they are the run's.
    again = configs.as_run(config, tmp_path)
    assert list(again.model.anchor_scales) == record["model"]["anchor_scales"]


def test_weights_of_another_model_do_not_fit(config, dataset, sets, tmp_path):
    train.train(config, dataset, *sets, tmp_path)
    config.model.head_channels = 16
    with pytest.raises(InputError, match=r"does not fit.*head.* is \(.* there and \("):
        inference.load(config, tmp_path, "latest", 14)


def test_the_backbone_learns_at_its_rate_and_frozen_stages_not_at_all(config, batches):
    """SGD's update is proportional to the rate; decay alone would move what is frozen."""
    batch = batches[0]
    config.train.update({"optimizer": "sgd", "weight_decay": 0.1, "clip_norm": 1e9})
    changes = {}
    for rate, frozen in ((1.0, 0), (0.1, 0), (1.0, 2)):
        config.train.backbone_lr_multiplier = rate
        config.model.backbone.frozen_stages = frozen
        step, state, mesh = setup(config, 1)
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
