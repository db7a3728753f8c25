"""Weights of torchvision's kinds of files, made up here: no torch is needed but for one test."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from jaxdet import InputError, evaluate, parallel, train
from jaxdet.augment import normalize
from jaxdet.models import detector
from jaxdet.models.resnet import ResNet
from jaxdet.models.retinanet import RetinaNet
from jaxdet.models.torchvision import MEAN, STD, init_from, read
from tests import make_golden as golden
from tests.test_parity import torch_names


def detector_state(**options):
    """Structure, parameters and statistics of a ResNet-18 RetinaNet, all ones."""
    options = {"num_classes": 14, "num_anchors": 9, "depth": 18, **options}
    shapes = detector.split(nnx.eval_shape(lambda: RetinaNet(**options, rngs=nnx.Rngs(0))))
    return shapes[0], *jax.tree.map(lambda x: jnp.ones(x.shape), shapes[1:])


def file_of(params, batch_stats, seen=True):
    """A state dict as torchvision has it for such a network."""
    state = {
        name: golden.fill(name, value.shape)
        for name, value in (torch_names(params) | torch_names(batch_stats)).items()
    }
    return {**state, "backbone.body.bn1.num_batches_tracked": np.array(7)} if seen else state


@pytest.fixture(scope="module")
def coco():
    """A detector of 91 classes for colour."""
    return file_of(*detector_state(num_classes=91, in_channels=3)[1:])


@pytest.fixture(scope="module")
def classifier(coco):
    prefix = "backbone.body."
    state = {k.removeprefix(prefix): v for k, v in coco.items() if k.startswith(prefix)}
    return {**state, "fc.weight": np.zeros((1000, 512), "f"), "fc.bias": np.zeros(1000, "f")}


def save(path, state):
    np.savez(path, **state)
    return path


def test_every_kind_of_file_is_read_alike(coco, tmp_path):
    save(tmp_path / "a.npz", coco)
    save_file(coco, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.safetensors"):
        got = read(tmp_path / name)
        assert got.keys() == coco.keys()
        assert all(np.array_equal(got[key], coco[key]) for key in coco)


def test_torchs_own_files_are_read(coco, tmp_path):
    torch = pytest.importorskip("torch")
    state = {key: torch.tensor(value) for key, value in coco.items()}
    torch.save(state, tmp_path / "a.pth")
    torch.save({"model": state, "epoch": 3}, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        got = read(tmp_path / name)
        assert all(np.array_equal(got[key], coco[key]) for key in coco)


def test_a_classifier_gives_the_trunk_and_a_grey_picture_looks_the_same(classifier, tmp_path):
    """In colour by torchvision's normalisation, or in grey by ours: C2 to C5 are equal."""
    _, params, stats = detector_state()
    new, new_stats, report = init_from(save(tmp_path / "r18.npz", classifier), params, stats)
    assert "left as they were: box_head/" in report and "fpn/lateral/0/kernel" in report
    assert "of no use here: fc.bias, fc.weight" in report and "three colours summed" in report
    for ours, theirs in ((new.class_head, params.class_head), (new.fpn, params.fpn)):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)

    grey = np.random.default_rng(0).integers(0, 256, (1, 128, 128)).astype(np.uint8)
    colour = (grey[..., None] / 255 - MEAN) / STD

    def run(channels, params, stats, images):
        make = lambda: ResNet(18, in_channels=channels, rngs=nnx.Rngs(0))  # noqa: E731
        graphdef, *_ = detector.split(nnx.eval_shape(make))
        images = jnp.array(images, jnp.float32)
        return jax.jit(lambda p, s: nnx.merge(graphdef, p, s)(images, False))(params, stats)

    _, three, three_stats = detector_state(in_channels=3)
    three, three_stats, _ = init_from(tmp_path / "r18.npz", three, three_stats)
    ours = run(1, new.backbone, new_stats.backbone, normalize(jnp.array(grey)))
    theirs = run(3, three.backbone, three_stats.backbone, colour)
    for got, expected in zip(ours, theirs, strict=True):
        assert np.std(expected) > 0.1
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_detector_of_other_classes_keeps_all_but_the_class_layer(coco, tmp_path):
    _, params, stats = detector_state()
    new, _, report = init_from(save(tmp_path / "coco.npz", coco), params, stats)
    assert "class_head/final/kernel (819 outputs there, 126 here)" in report
    got, before, file = torch_names(new), torch_names(params), coco
    for name, value in got.items():
        if "cls_logits" in name:
            np.testing.assert_array_equal(value, before[name])
        elif name != "backbone.body.conv1.weight":
            np.testing.assert_array_equal(value, file[name])


def test_old_names_and_frozen_statistics(tmp_path):
    """As torchvision's COCO weights of v1 have them: no variance has an epsilon."""
    _, params, stats = detector_state(in_channels=3, norm="frozen_batch")
    state = file_of(params, stats, seen=False)
    old = {}
    for name, value in state.items():
        # Heads counted the ReLUs too, and neither they nor the pyramid had blocks of layers.
        for i in range(4):
            name = name.replace(f"head.conv.{i}.0.", f"head.conv.{2 * i}.")
            name = name.replace(f"_blocks.{i}.0.", f"_blocks.{i}.")
        old[name] = value
    assert "head.regression_head.conv.6.weight" in old
    assert "backbone.fpn.inner_blocks.2.weight" in old
    old["backbone.body.bn1.running_var"][0] = 1e-9  # a channel that is nearly dead
    new, new_stats, _ = init_from(save(tmp_path / "v1.npz", old), params, stats)
    got = torch_names(new) | torch_names(new_stats)
    assert got.keys() == state.keys()
    for name, value in got.items():
        np.testing.assert_array_equal(value, state[name])


@pytest.mark.parametrize("norm", ["batch", "frozen_batch"])
@pytest.mark.parametrize("seen", [True, False])
def test_variances_count_the_same_in_either_normalisation(seen, norm, tmp_path):
    """Whichever of file and network has an epsilon: the first normalisation's factor is equal."""
    state = file_of(*detector_state(in_channels=3)[1:], seen=seen)
    _, params, stats = detector_state(in_channels=3, norm=norm)
    _, new_stats, _ = init_from(save(tmp_path / "a.npz", state), params, stats)
    var = torch_names(new_stats)["backbone.body.bn1.running_var"]
    got = var + (1e-5 if norm == "batch" else 0)
    expected = state["backbone.body.bn1.running_var"] + (1e-5 if seen else 0)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_file_for_grey_pictures_is_taken_as_it_is(tmp_path):
    _, params, stats = detector_state()
    state = file_of(params, stats)
    del state["backbone.body.ones.weight"]
    new, new_stats, report = init_from(save(tmp_path / "grey.npz", state), params, stats)
    conv1 = torch_names(new)["backbone.body.conv1.weight"]
    np.testing.assert_array_equal(conv1, state["backbone.body.conv1.weight"])
    np.testing.assert_array_equal(new_stats.backbone.ones.kernel[...], stats.backbone.ones.kernel)
    assert "colours" not in report


def test_other_levels_and_anchors_take_what_fits(coco, tmp_path):
    _, params, stats = detector_state(levels=(2, 3, 4, 5, 6), num_anchors=6, num_classes=91)
    new, _, report = init_from(save(tmp_path / "coco.npz", coco), params, stats)
    for name in ("fpn/lateral/0", "fpn/output/0", "box_head/final/kernel (36 outputs there, 24"):
        assert name in report
    assert "of no use here: backbone.fpn.extra_blocks.p7.bias" in report
    kernel = coco["backbone.fpn.inner_blocks.2.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(new.fpn.lateral[3].kernel[...], kernel)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"depth": 34}, r"has no backbone.body.layer1.2.bn1.bias, which backbone/stages/0/2"),
        ({"depth": 50}, r"backbone.body.bn1|layer1.0"),
        ({"width": 32}, r"backbone.body.bn1.bias is \(64,\) there and \(32,\) in backbone/bn1"),
        ({"fpn_channels": 64}, r"is \(3, 3, 256, 256\) there and \(3, 3, 64, 256\)"),
        ({"head_depth": 2}, r"has head.classification_head.conv.2.0.bias, which this network"),
        ({"head_norm": "group"}, r"has no head.*conv.0.1"),
        ({"norm": "group"}, r"which this network lacks"),
    ],
)
def test_a_file_that_does_not_fit_is_named(coco, tmp_path, options, message):
    _, params, stats = detector_state(**options)
    with pytest.raises(InputError, match=rf"config\.model\.init_from: .*coco.npz: .*{message}"):
        init_from(save(tmp_path / "coco.npz", coco), params, stats)


@pytest.mark.parametrize("name", ["none.npz", "broken.npz", "broken.safetensors", "a.h5"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    if "broken" in name:
        (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(InputError, match=rf"config\.model\.init_from: .*{name}"):
        read(tmp_path / name)


def test_a_run_starts_from_the_file_and_goes_on_from_its_checkpoint(config, tmp_path, capsys):
    """With a learning rate of nearly nothing the weights stay what they were."""
    sizes = ("width", "fpn_channels", "head_channels", "head_depth", "levels")
    options = {name: config.model[name] for name in sizes}
    _, params, stats = detector_state(num_classes=91, in_channels=3, **options)
    config.model.init_from = str(save(tmp_path / "coco.npz", file_of(params, stats)))
    config.train.update({"steps": 1, "learning_rate": 1e-12})
    train.train(config, tmp_path / "run")
    assert "coco.npz: " in capsys.readouterr().out
    weights, _ = evaluate.load_weights(config, tmp_path / "run", "latest", parallel.make_mesh())
    got, file = torch_names(weights["params"]), np.load(tmp_path / "coco.npz")
    for name in ("backbone.body.layer3.0.conv1.weight", "head.regression_head.conv.0.0.weight"):
        np.testing.assert_allclose(got[name], file[name], atol=1e-6)

    config.train.steps = 2
    (tmp_path / "coco.npz").unlink()
    train.train(config, tmp_path / "run")


def test_a_run_from_a_file_that_does_not_fit_leaves_nothing(config, coco, tmp_path):
    config.model.init_from = str(save(tmp_path / "coco.npz", coco))
    with pytest.raises(InputError, match=r"coco.npz: .* there and"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
