"""RetinaNet equals torchvision's v1 and v2, and FCOS its FCOS: from golden files, and live where
torch is there."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdet import models
from jaxdet.doors import choose
from jaxdet.kernels.compilation import jit
from jaxdet.models import fcos, retinanet
from jaxdet.models.fcos import FCOS
from jaxdet.models.resnet import ResNet
from jaxdet.models.retinanet import RetinaNet
from jaxdet.models.weights.init_from import init_from, names_in_file
from jaxdet.ops.anchors import pyramid_anchors
from jaxdet.ops.box_coder import BOX_CODERS
from jaxdet.ops.boxes import Targets
from jaxdet.ops.losses import BOX_LOSSES, CLASS_LOSSES
from jaxdet.ops.matching import MATCHERS, Priors
from tests import make_golden as golden
from tests import networks

VERSIONS = {
    "v1": {"norm": "frozen_batch", "p6_from": "p5", "head_norm": "none", "box": "l1"},
    "v2": {"norm": "batch", "p6_from": "c5", "head_norm": "group", "box": "giou"},
    "fcos": {"norm": "frozen_batch", "p6_from": "p5", "head_norm": "group", "box": "giou"},
}
# To put through the network.
PICTURES = [("v1", "128x128"), ("v1", "128x192"), ("v2", "128x128"), ("fcos", "128x192")]
LOSSES = ("class_loss", "box_loss", "centerness_loss")
SIZES = {f"{height}x{width}": (height, width) for height, width in golden.SIZES}


class RetinaNetAsTorchvision(RetinaNet):
    """With its anchors, for images that need not be square."""

    def priors(self):
        sizes = self.anchor_scales, self.aspect_ratios
        pyramid = pyramid_anchors(self.image_size, self.levels, *sizes, True)
        return Priors(pyramid, self.levels, self.image_size)


class FCOSAsTorchvision(FCOS):
    """With its locations, for images that need not be square."""

    def priors(self):
        pyramid = pyramid_anchors(self.image_size, self.levels, (1.0,), (1.0,), True)
        return Priors(pyramid, self.levels, self.image_size)


def create(version, dtype):
    options = VERSIONS[version]
    rngs = models.keys(0)
    backbone = ResNet(
        depth=50, width=64, norm=options["norm"], frozen_stages=0, in_channels=3, dtype=dtype,
        rngs=rngs,
    )  # fmt: skip
    loss = {**networks.LOSS, "matching": "iou"}
    common = {
        "num_classes": golden.NUM_CLASSES, "image_size": 128, "levels": (3, 4, 5, 6, 7),
        "p6_from": options["p6_from"], "fpn_channels": 256, "head_channels": 256, "head_depth": 4,
        "head_norm": options["head_norm"], "image_head": False, "dtype": dtype, "rngs": rngs,
        "class_loss": choose(CLASS_LOSSES, "focal", loss), "box_loss": BOX_LOSSES[options["box"]],
        "box_weight": 1.0, "image_weight": 0.0,
    }  # fmt: skip
    if version == "fcos":
        return FCOSAsTorchvision(backbone, center_radius=1.5, **common)
    return RetinaNetAsTorchvision(
        backbone, anchor_scales=(4.0, 5.04, 6.35), aspect_ratios=(0.5, 1.0, 2.0),
        matcher=choose(MATCHERS, "iou", loss), box_coder=BOX_CODERS["deltas"], **common,
    )  # fmt: skip


@functools.cache
def abstract(version):
    return nnx.eval_shape(lambda: create(version, jnp.float32))


def without_weights(version, size):
    """The detector for pictures of that size, to ask at once what needs no weights."""
    model = abstract(version)
    model.image_size = size
    return model


@functools.cache
def state_of(version):
    """What torchvision's network is filled with."""
    shapes = json.loads((golden.GOLDEN / "names.json").read_text())[f"torchvision/{version}"]
    counted = {name: np.array(0) for name in shapes if name.endswith("num_batches_tracked")}
    return {name: golden.fill(name, tuple(shape)) for name, shape in shapes.items()} | counted


@functools.cache
def network(version, folder, dtype=jnp.float32):
    """Structure, parameters and statistics, filled as torchvision's, by way of a file."""
    graphdef, *shapes = models.split(nnx.eval_shape(lambda: create(version, dtype)))
    params, batch_stats = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    file = folder / f"{version}.npz"
    if not file.exists():
        np.savez(file, **state_of(version))
    params, batch_stats, _ = init_from(file, params, batch_stats, ResNet)
    return graphdef, *jax.tree.map(jnp.array, (params, batch_stats))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module", params=["golden", pytest.param("live", marks=pytest.mark.slow)])
def source(request):
    if request.param == "live":
        pytest.importorskip("torch")
    return request.param


@functools.cache
def theirs(version, source):
    if source == "live":
        return golden.torchvision_side(version)
    with np.load(golden.GOLDEN / f"{version}.npz") as file:
        return dict(file)


@functools.cache
def outputs(version, size, folder):
    graphdef, params, batch_stats = network(version, folder)
    run = jit(lambda p, b, x: nnx.merge(graphdef, p, b)(x))
    return run(params, batch_stats, golden.images(size))


def padded(found, labels):
    """Two rows more, as a batch of other images would have them."""
    boxes = np.pad(found, ((0, 2), (0, 0)))
    return boxes, np.pad(labels, (0, 2)), np.arange(len(boxes)) < len(found)


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("version", VERSIONS)
def test_anchors_are_equal(version, key, source):
    got = np.concatenate(without_weights(version, SIZES[key]).priors().pyramid)[:: golden.EVERY]
    np.testing.assert_array_equal(got, theirs(version, source)[f"{key}/anchors"])


@pytest.mark.parametrize("version,key", PICTURES)
def test_outputs_are_equal(version, key, source, folder):
    ours, expected = outputs(version, SIZES[key], folder), theirs(version, source)
    for name, got in zip(golden.OUTPUTS.values(), ours[:-1], strict=False):
        other = expected[f"{key}/{name}"]
        assert np.std(other) > 0.05  # they say something
        got = got[:, :: golden.EVERY].reshape(other.shape)
        np.testing.assert_allclose(got, other, rtol=0, atol=1e-4)


def matches(version, size, boxes):
    boxes, labels, mask = padded(boxes, np.zeros(len(boxes), int))
    targets = Targets(*map(jnp.array, (boxes, labels, np.ones(len(boxes), np.float32), mask)))
    model = without_weights(version, size)
    return jit(lambda x: model.match(x))(targets)  # not of the method, which is one for all sizes


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("version", VERSIONS)
def test_matching_is_equal_anchor_by_anchor(version, key, source):
    expected = theirs(version, source)[f"{key}/matches"]
    assert set(expected) >= {-1 if version == "fcos" else -2, -1, 0, 1, 2, 3}
    got = matches(version, SIZES[key], golden.boxes(SIZES[key])[0])
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("key", SIZES)
def test_matching_of_locations_is_equal_on_every_level(key, source):
    """For boxes within boxes; of two at a location the smaller one counts."""
    expected = theirs("fcos", source)[f"{key}/matches_of_large"]
    pyramid = without_weights("fcos", SIZES[key]).priors().pyramid
    ends = np.cumsum([len(level) for level in pyramid])
    assert len({np.searchsorted(ends, i, "right") for i in np.flatnonzero(expected >= 0)}) >= 2
    got = matches("fcos", SIZES[key], golden.large_boxes(SIZES[key]))
    np.testing.assert_array_equal(got, expected)


@functools.cache
def gradients_function(version, folder):
    """A function mask -> (losses, gradients) of two images, jitted.

    In float64, as on the other side: in float32 the sign of an activation near 0 is a matter of
    chance, and its gradient all or nothing. (The losses themselves stay in float32.)
    """
    graphdef, params, batch_stats = network(version, folder, jnp.float64)
    images = golden.images(golden.SIZES[0]).astype(np.float64)
    boxes, labels, _ = padded(*golden.boxes(golden.SIZES[0]))
    boxes, labels = np.stack([boxes, boxes]), np.stack([labels, labels])

    def losses(params, mask):
        model = nnx.merge(graphdef, params, batch_stats, copy=True)
        outputs = model(jnp.array(images), train=True)
        scores = jnp.ones(labels.shape, jnp.float32)
        targets = Targets(jnp.array(boxes), jnp.array(labels), scores, mask)
        parts = model.losses(outputs, targets)
        return parts["loss"], [parts[name] for name in LOSSES if name in parts]

    # Not by `kernels.compilation`, whose option is for float32 and makes float64 slow.
    run = jax.jit(jax.value_and_grad(losses, has_aux=True))
    return lambda mask: run(params, mask)


@functools.cache
def losses_and_gradients(version, batch, folder):
    """The parts of the loss, and gradients by torchvision's names in its layout."""
    with jax.enable_x64(True):
        real = padded(*golden.boxes(golden.SIZES[0]))[2]
        mask = np.stack([real & (batch == "mixed"), np.zeros_like(real)])
        (_, parts), gradients = gradients_function(version, folder)(mask)
    gradients, state = networks.names(gradients), state_of(version)
    names, result = names_in_file(list(gradients), state, ResNet), {}
    for name, value in gradients.items():
        (theirs,) = (key for key in names[name] if key in state)
        value = np.asarray(value)
        result[theirs] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    return np.array(parts), result


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["mixed", "normal"])
@pytest.mark.parametrize("version", VERSIONS)
def test_losses_and_every_gradient_are_equal(version, batch, source, folder):
    got, gradients = losses_and_gradients(version, batch, folder)
    expected = theirs(version, source)
    np.testing.assert_allclose(got, expected[f"{batch}/losses"], rtol=1e-6)
    assert got[0] > 0 and (got[1:] > 0).all() == (batch == "mixed")
    names = [name.split("/")[-1] for name in expected if name.startswith(f"{batch}/gradient/")]
    assert sorted(names) == sorted(gradients)
    for name in names:
        mine, other = gradients[name], expected[f"{batch}/gradient/{name}"]
        if source == "golden":
            mine, norm = golden.project(name, mine), other[0]
        else:
            norm = np.linalg.norm(other)
        assert np.linalg.norm(mine - other) <= 1e-5 * norm, name


def assert_detections_are_equal(got, expected, key):
    boxes, labels, scores = (expected[f"{key}/{name}"] for name in ("boxes", "labels", "scores"))
    assert got.mask.sum() == len(boxes) >= 50
    np.testing.assert_array_equal(got.labels, labels)
    np.testing.assert_allclose(got.boxes, boxes, rtol=0, atol=0.01)
    np.testing.assert_allclose(got.scores, scores, rtol=0, atol=1e-5)


def inference(version, most):
    """As torchvision has it by default, but for the score that FCOS asks for, 0.2."""
    nms_iou = 0.6 if version == "fcos" else 0.5
    options = {"score_threshold": 0.05, "pre_nms_top_k": 1000, "nms_iou": nms_iou}
    return {**options, "max_detections": most}


def given_outputs(version, size):
    """The outputs of one image."""
    model = without_weights(version, size)
    count = sum(map(len, model.priors().pyramid))
    if version == "fcos":
        logits, distances, centerness = golden.location_outputs(size, count)
        return model, fcos.Outputs(logits, distances, centerness[:, 0], None)
    return model, retinanet.Outputs(*golden.head_outputs(size, count), None)


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("version", VERSIONS)
def test_detections_of_given_outputs_are_equal(version, key, source):
    model, given = given_outputs(version, SIZES[key])
    detect = jit(lambda x: model.detections(x, **inference(version, 300)))
    got = jax.tree.map(lambda x: x[0], detect(jax.tree.map(lambda x: x[None], given)))
    assert_detections_are_equal(got, theirs(version, source), f"{key}/given")


@pytest.mark.parametrize("version,key", PICTURES)
def test_detections_of_a_picture_are_equal(version, key, source, folder):
    model = nnx.merge(*network(version, folder))
    model.image_size = SIZES[key]
    detect = jit(lambda x: model.detections(x, **inference(version, 50)))
    got = jax.tree.map(lambda x: x[0], detect(outputs(version, SIZES[key], folder)))
    assert_detections_are_equal(got, theirs(version, source), f"{key}/image")


@pytest.mark.parametrize("batch", ["mixed", "normal"])
def test_losses_of_given_outputs_and_their_gradients_are_equal(batch, source):
    """Of FCOS, whose losses are of the whole batch: two images, one or both without boxes."""
    model, given = given_outputs("fcos", golden.SIZES[0])
    given = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), given)
    boxes, labels, mask = padded(*golden.boxes(golden.SIZES[0]))
    targets = Targets(
        np.stack([boxes] * 2), np.stack([labels] * 2), np.ones((2, len(boxes)), np.float32),
        np.stack([mask & (batch == "mixed"), np.zeros_like(mask)]),
    )  # fmt: skip

    def losses(outputs):
        parts = model.losses(outputs, jax.tree.map(jnp.array, targets))
        return parts["loss"], [parts[name] for name in LOSSES]

    (_, parts), gradients = jit(jax.value_and_grad(losses, has_aux=True))(given)
    expected = theirs("fcos", source)
    np.testing.assert_allclose(parts, expected[f"{batch}/given/losses"], rtol=1e-5)
    for name, got in zip(golden.OUTPUTS.values(), gradients, strict=False):
        other = expected[f"{batch}/given/{name}"]
        assert (np.abs(other).max() > 0) == (batch == "mixed" or name == "class_logits")
        np.testing.assert_allclose(got.reshape(other.shape), other, rtol=1e-4, atol=1e-6)
