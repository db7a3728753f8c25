"""Files of torchvision's and timm's kinds, made up: their names and shapes are in tests/golden."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from jaxdet import InputError, models
from jaxdet.doors import fields_of
from jaxdet.kernels.compilation import jit
from jaxdet.models.resnet import ResNet
from jaxdet.models.weights import init_from as weights
from jaxdet.models.weights.init_from import init_from, read
from jaxdet.models.weights.torchvision import MEAN, STD
from tests import make_golden as golden
from tests import networks

NAMES = json.loads((golden.GOLDEN / "names.json").read_text())
# As `networks.model_config`: backbones that the files' networks have.
BACKBONE_OF = {
    "resnet18": {"name": "resnet", "depth": 18, "width": 64, "norm": "batch"},
    "convnext_tiny": {"name": "convnext", "depth": 18, "width": 96, "norm": "layer"},
}
# A detector for what torchvision's COCO files hold.
COCO = {
    "levels": (3, 4, 5, 6, 7), "anchor_scales": (4.0, 5.04, 6.35),
    "aspect_ratios": (0.5, 1.0, 2.0), "fpn_channels": 256, "head_channels": 256,
    "head_depth": 4, "image_head": False,
}  # fmt: skip


@functools.cache
def file_of(network):
    """A state dict with the names and shapes of a network of `NAMES`."""
    state = {name: golden.fill(name, tuple(shape)) for name, shape in NAMES[network].items()}
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    return {**state, **dict.fromkeys(counters, np.array(7))}


def detector(network="resnet18", num_classes=14, backbone=(), **fields):
    """Parameters and statistics, all ones, of a detector with that backbone."""
    config = networks.model_config(**fields)
    config["backbone"] = {**BACKBONE_OF[network], "frozen_stages": 0, **dict(backbone)}
    _, abstract = models.abstract(config, networks.LOSS, num_classes, 128)
    ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), abstract)
    return ones["params"], ones["batch_stats"]


@pytest.fixture
def load(monkeypatch):
    """`init_from` of a state dict that is in memory: a file of it would take long to write."""

    def load(state, params, batch_stats, backbone=ResNet):
        monkeypatch.setattr(weights, "read", lambda path: state)
        return init_from(golden.GOLDEN / "coco.pth", params, batch_stats, backbone)

    return load


def test_every_kind_of_file_is_read_alike(tmp_path):
    state = {"a.weight": np.arange(6, dtype="f").reshape(2, 3), "b": np.array(3)}
    np.savez(tmp_path / "a.npz", **state)
    save_file(state, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.safetensors"):
        got = read(tmp_path / name)
        assert got.keys() == state.keys()
        assert all(np.array_equal(got[key], state[key]) for key in state)


@pytest.mark.parametrize("name", ["none.npz", "broken.npz", "broken.safetensors", "a.h5", "b.pth"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    if name != "none.npz":
        (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(InputError, match=rf"^config\.model\.init_from: .*{name}.*$"):
        read(tmp_path / name)


def backbone(network, in_channels):
    """Structure of a backbone, and all that it has, in the trees of a detector's."""
    fields = {**BACKBONE_OF[network], "frozen_stages": 0, "in_channels": in_channels}
    make = class_of(network)
    fields = fields_of(make, fields)
    graphdef, *trees = models.split(nnx.eval_shape(lambda: make(**fields, rngs=models.keys(0))))
    ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), trees)
    return graphdef, *(nnx.State({"backbone": tree}) for tree in ones)


def class_of(network):
    return models.BACKBONES[BACKBONE_OF[network]["name"]]


def loaded(network, in_channels, load):
    """A backbone with the weights of a file of that network."""
    name = network.split("/")[1]
    graphdef, *trees = backbone(name, in_channels)
    params, statistics, report = load(file_of(network), *trees, class_of(name))
    return graphdef, params["backbone"], statistics["backbone"], report


@functools.cache
def see(graphdef):
    """A function (params, batch_stats, images) -> [C2, C3, C4, C5]."""
    return jit(lambda params, stats, images: nnx.merge(graphdef, params, stats)(images, False))


CLASSIFIERS = [name for name in NAMES if name.split("/")[1] in BACKBONE_OF]


def features(network, load):
    """What our network sees in colour, with the weights of a file of that one."""
    graphdef, params, statistics, _ = loaded(network, 3, load)
    return see(graphdef)(params, statistics, golden.images((96, 64)))


@pytest.mark.parametrize("network", CLASSIFIERS)
def test_features_equal_those_of_the_network_that_made_the_file(network, load):
    """torchvision's and timm's, in colour: C2 to C5."""
    expected = np.load(golden.GOLDEN / "features.npz")
    for level, x in enumerate(features(network, load), start=2):
        theirs = expected[f"{network}/C{level}"]
        assert np.std(theirs) > 0.5
        np.testing.assert_allclose(np.ravel(x)[:: golden.EVERY], theirs, atol=1e-4)


@pytest.mark.slow
def test_features_equal_torchvisions_live(load):
    pytest.importorskip("torch")
    networks = golden.torchvision_networks()
    for network in (name for name in CLASSIFIERS if name in networks):
        theirs = golden.features_of(*networks[network])
        for x, expected in zip(features(network, load), theirs, strict=True):
            np.testing.assert_allclose(x, expected, atol=1e-4)


@pytest.mark.parametrize("network", BACKBONE_OF)
def test_a_grey_picture_looks_the_same(network, load):
    """In colour by torchvision's normalisation, or in grey by ours: the first convolution, with
    what it adds for ones, says the same, up to the border, and so does the first stage."""
    grey = np.random.default_rng(0).uniform(0, 1, (1, 48, 32, 1)).astype(np.float32)
    colour = ((grey - MEAN) / STD).astype(np.float32)
    *ours, report = loaded(f"torchvision/{network}", 1, load)
    assert "three colours summed" in report
    *theirs, report = loaded(f"torchvision/{network}", 3, load)
    assert "colours" not in report
    ours, theirs = nnx.merge(*ours), nnx.merge(*theirs)
    assert theirs.stem.ones is None
    expected = theirs(jnp.array(colour), False)[0]
    got = ours(jnp.array((grey - 0.5) / 0.25), False)[0]
    assert np.std(expected) > 0.5
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("network", CLASSIFIERS)
def test_a_classifier_gives_the_backbone_and_says_what_else_there_is(network, load):
    name = network.split("/")[1]
    params, statistics = detector(name)
    new, _, report = load(file_of(network), params, statistics, class_of(name))
    for ours, before in ((new.class_head, params.class_head), (new.fpn, params.fpn)):
        jax.tree.map(np.testing.assert_array_equal, ours, before)
    for name, value in networks.names(new.backbone).items():
        assert not (value == 1).all(), name
    of_backbone = len(networks.names(new.backbone)) + len(networks.names(statistics.backbone))
    assert f"coco.pth: loaded {of_backbone} arrays of backbone;" in report
    assert "left as they were: box_head/final/bias" in report
    assert "fpn/lateral/0/kernel" in report
    unused = report.split("of no use here: ")[1].split(", ")
    assert unused and all(name.startswith(("fc.", "classifier.", "head.")) for name in unused)


def test_a_detector_of_other_classes_keeps_all_but_the_class_layer(load):
    state = file_of("torchvision/retinanet_resnet18")
    params, statistics = detector(**COCO)
    new, new_statistics, report = load(state, params, statistics)
    assert "class_head/final/kernel (819 outputs there, 126 here)" in report
    before = networks.names(params) | networks.names(statistics)
    for name, value in (networks.names(new) | networks.names(new_statistics)).items():
        same = np.array_equal(value, before[name])
        assert same == (name.startswith("class_head/final")), name


def test_parts_of_a_detector_are_where_they_belong(load):
    """An array of each, in our order of axes."""
    state = file_of("torchvision/retinanet_resnet18")
    new, _, _ = load(state, *detector(num_classes=91, **COCO))
    for ours, theirs in {
        "backbone/stages/2/1/conv2/kernel": "backbone.body.layer3.1.conv2.weight",
        "backbone/stages/1/0/shortcut/conv/kernel": "backbone.body.layer2.0.downsample.0.weight",
        "fpn/lateral/0/bias": "backbone.fpn.inner_blocks.0.0.bias",
        "fpn/output/2/kernel": "backbone.fpn.layer_blocks.2.0.weight",
        "fpn/extra/1/kernel": "backbone.fpn.extra_blocks.p7.weight",
        "class_head/tower/3/kernel": "head.classification_head.conv.3.0.weight",
        "class_head/final/bias": "head.classification_head.cls_logits.bias",
        "box_head/tower/1/bias": "head.regression_head.conv.1.0.bias",
        "box_head/final/kernel": "head.regression_head.bbox_reg.weight",
    }.items():
        value = state[theirs]
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        np.testing.assert_array_equal(networks.names(new)[ours], value)


def test_old_names_and_frozen_statistics(load):
    """As torchvision's COCO weights of v1 have them: no variance has an epsilon."""
    params, statistics = detector(num_classes=91, backbone={"norm": "frozen_batch"}, **COCO)
    state = dict(file_of("torchvision/retinanet_resnet18"))
    state["backbone.body.bn1.running_var"] = state["backbone.body.bn1.running_var"].copy()
    state["backbone.body.bn1.running_var"][0] = 1e-9  # a channel that is nearly dead
    old = {}
    for name, value in state.items():
        # Heads counted the ReLUs too, and neither they nor the pyramid had blocks of layers.
        for i in range(4):
            name = name.replace(f"head.conv.{i}.0.", f"head.conv.{2 * i}.")
            name = name.replace(f"_blocks.{i}.0.", f"_blocks.{i}.")
        old[name] = value
    assert "head.regression_head.conv.6.weight" in old
    assert "backbone.fpn.inner_blocks.2.weight" in old
    with_old_names = load(old, params, statistics)
    with_new_names = load(state, params, statistics)
    jax.tree.map(np.testing.assert_array_equal, with_old_names[:2], with_new_names[:2])
    variances = with_old_names[1].backbone.stem.norm.layer.var[...]
    np.testing.assert_array_equal(variances, state["backbone.body.bn1.running_var"])


@pytest.mark.parametrize("norm", ["batch", "frozen_batch"])
@pytest.mark.parametrize("counted", [True, False])
def test_variances_count_the_same_in_either_normalisation(counted, norm, load):
    """Whichever of file and network has an epsilon: the first normalisation's factor is equal."""
    state = file_of("torchvision/retinanet_resnet18")
    if counted:
        state = {**state, "backbone.body.bn1.num_batches_tracked": np.array(7)}
    params, statistics = detector(num_classes=91, backbone={"norm": norm}, **COCO)
    _, statistics, report = load(state, params, statistics)
    got = statistics.backbone.stem.norm.layer.var[...] + (1e-5 if norm == "batch" else 0)
    expected = state["backbone.body.bn1.running_var"] + (1e-5 if counted else 0)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert ("to the variances" in report) == (counted != (norm == "batch"))


def fcos(**fields):
    """For torchvision's file of FCOS, as its COCO weights are."""
    backbone = {"depth": 50, "norm": "frozen_batch"}
    return detector(backbone=backbone, **{**COCO, "name": "fcos", "head_norm": "group", **fields})


def test_a_file_of_fcos_gives_all_but_the_class_layer(load):
    """Its variances have no epsilon yet, which frozen BatchNorm has in torchvision's FCOS."""
    state = file_of("torchvision/fcos")
    params, statistics = fcos()
    new, new_statistics, report = load(state, params, statistics)
    assert "class_head/final/kernel (6 outputs there, 14 here)" in report
    assert "+1e-05 to the variances" in report and "of no use" not in report
    before = networks.names(params) | networks.names(statistics)
    after = networks.names(new) | networks.names(new_statistics)
    for name, value in after.items():
        same = np.array_equal(value, before[name])
        assert same == (name.startswith("class_head/final")), name
    for ours, theirs in {
        "class_head/tower/3/kernel": "head.classification_head.conv.9.weight",
        "box_head/norms/1/layer/scale": "head.regression_head.conv.4.weight",
        "box_head/centerness/kernel": "head.regression_head.bbox_ctrness.weight",
    }.items():
        value = state[theirs]
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        np.testing.assert_array_equal(after[ours], value)


def test_a_file_of_the_other_detector_is_named(load):
    with pytest.raises(InputError, match=r"has no head\S*conv.1.0.bias or \S*, which box_head"):
        load(file_of("torchvision/fcos"), *fcos(name="retinanet", head_norm="none"))
    with pytest.raises(InputError, match=r"has no \S*.bbox_ctrness.bias, which box_head"):
        load(file_of("torchvision/v1"), *fcos())


def test_a_backbone_has_an_epsilon_of_its_own(load):
    """A frozen one has it in its variances."""

    class Other(ResNet):
        epsilon = 1e-3

    state = file_of("torchvision/resnet18")
    params, statistics = detector(backbone={"norm": "frozen_batch"})
    _, statistics, report = load(state, params, statistics, Other)
    got = statistics.backbone.stem.norm.layer.var[...]
    np.testing.assert_allclose(got, state["bn1.running_var"] + 1e-3, rtol=1e-6)
    assert "+0.001 to the variances" in report


def test_a_backbone_may_have_names_for_nothing_or_not_for_all(load):
    """Without any, that is one line; what has no name stays as it was, and is said."""

    class Nameless(ResNet):
        names = {}  # noqa: RUF012

    message = r"^config\.model\.init_from: .*coco\.pth: Nameless has no names .*[^\n]$"
    with pytest.raises(InputError, match=message):
        load(file_of("timm/resnet18"), *detector(), Nameless)

    class Partly(ResNet):
        names = {k: v for k, v in ResNet.names.items() if not k.startswith("stem/norm")}  # noqa: RUF012

    state = {k: v for k, v in file_of("timm/resnet18").items() if not k.startswith("bn1.")}
    params, statistics = detector()
    new, _, report = load(state, params, statistics, Partly)
    assert (new.backbone.stem.norm.layer.scale[...] == 1).all()
    assert "backbone/stem/norm/layer/scale" in report.split("left as they were: ")[1]


def test_a_file_for_grey_pictures_is_taken_as_it_is(load):
    state = dict(file_of("timm/resnet18"))
    state["conv1.weight"] = state["conv1.weight"][:, :1]
    params, statistics = detector()
    new, new_statistics, report = load(state, params, statistics)
    kernel = new.backbone.stem.conv.kernel[...]
    np.testing.assert_array_equal(kernel, state["conv1.weight"].transpose(2, 3, 1, 0))
    jax.tree.map(
        np.testing.assert_array_equal,
        new_statistics.backbone.stem.ones,
        statistics.backbone.stem.ones,
    )
    assert "colours" not in report


def test_other_levels_and_anchors_take_what_fits(load):
    state = file_of("torchvision/retinanet_resnet18")
    fields = {**COCO, "levels": (2, 3, 4, 5, 6), "anchor_scales": (2.0, 4.0), "image_head": True}
    new, _, report = load(state, *detector(num_classes=91, **fields))
    for name in ("fpn/lateral/0", "fpn/output/0", "box_head/final/kernel (36 outputs there, 24"):
        assert name in report
    assert "image_head/kernel" in report
    assert "of no use here: backbone.fpn.extra_blocks.p7.bias" in report
    kernel = state["backbone.fpn.inner_blocks.2.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(new.fpn.lateral[3].kernel[...], kernel)


def test_half_precision_is_taken_as_float32(load):
    state = {k: v.astype(np.float16) for k, v in file_of("timm/resnet18").items()}
    new, new_statistics, _ = load(state, *detector())
    assert {x.dtype for x in jax.tree.leaves((new, new_statistics))} == {np.dtype("f")}
    state = {k: v.astype(jnp.bfloat16) for k, v in state.items()}
    new, new_statistics, _ = load(state, *detector())
    assert {x.dtype for x in jax.tree.leaves((new, new_statistics))} == {np.dtype("f")}


@pytest.mark.parametrize(
    "options,message",
    [
        ({"backbone": {"depth": 34}}, r"has no backbone.body.layer1.2.\S*, which \S*/stages/0/2"),
        ({"backbone": {"depth": 50}}, r"has no backbone.body.layer1.0.\S*3.\w*, which"),
        ({"backbone": {"width": 32}}, r"is \(3, 3, 64, 64\) there and \(3, 3, 32, 32\) in back"),
        ({"fpn_channels": 64}, r"is \(3, 3, 256, 256\) there and \(3, 3, 64, 256\) in"),
        ({"head_depth": 2}, r"has head.classification_head.conv.2.0.bias, which this network"),
        ({"head_norm": "group"}, r"has no head.\S*.conv.0.1.bias, which \S*_head/norms/0/"),
        ({"backbone": {"norm": "group"}}, r"which this network lacks"),
    ],
)
def test_a_file_that_does_not_fit_is_named(load, options, message):
    with pytest.raises(InputError, match=rf"^config\.model\.init_from: .*coco.pth: .*{message}.*"):
        load(file_of("torchvision/retinanet_resnet18"), *detector(**{**COCO, **options}))


def test_a_classifier_that_does_not_fit_is_named(load):
    message = r"has no layer1.2.\S*, which backbone/stages/0/2"
    with pytest.raises(InputError, match=message):
        load(file_of("timm/resnet18"), *detector(backbone={"depth": 34}))
