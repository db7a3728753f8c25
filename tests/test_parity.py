"""RetinaNet equals torchvision's v1 and v2: from golden files, and live where torch is there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdet.anchors import pyramid_anchors
from jaxdet.inference import select_detections
from jaxdet.losses import retinanet_loss
from jaxdet.matching import match_anchors
from jaxdet.models import detector
from jaxdet.models.retinanet import RetinaNet
from jaxdet.models.torchvision import init_from, torch_name
from tests import make_golden as golden

LEVELS, COCO = (3, 4, 5, 6, 7), ((4.0, 5.04, 6.35), (0.5, 1.0, 2.0))
VERSIONS = {
    "v1": {"norm": "frozen_batch", "p6_from": "p5", "head_norm": None},
    "v2": {"norm": "batch", "p6_from": "c5", "head_norm": "group"},
}
BOX_LOSS = {"v1": "l1", "v2": "giou"}
KEYS = [f"{height}x{width}" for height, width in golden.SIZES]


@pytest.fixture(scope="module", params=["golden", "live"])
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


def torch_names(tree):
    """Our arrays by their names in torchvision, in its layout."""
    result = {}
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        for part in ("lateral", "output"):
            for i in range(3):  # C3 to C5, counted from the top
                name = name.replace(f"fpn/{part}/{i}/", f"fpn/{part}/{i - 3}/")
        value = np.asarray(value)
        result[torch_name(name, 3)] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    return result


@functools.cache
def network(version, folder, dtype=jnp.float32):
    """Filled as torchvision's is, by way of a file."""
    make = lambda: RetinaNet(  # noqa: E731
        num_classes=golden.NUM_CLASSES, num_anchors=9, in_channels=3, dtype=dtype, rngs=nnx.Rngs(0),
        **VERSIONS[version],
    )  # fmt: skip
    graphdef, *shapes = detector.split(nnx.eval_shape(make))
    params, batch_stats = jax.tree.map(lambda x: jnp.ones(x.shape), shapes)
    file = {
        name: golden.fill(name, value.shape)
        for name, value in (torch_names(params) | torch_names(batch_stats)).items()
    }
    if version == "v2":
        file["backbone.body.bn1.num_batches_tracked"] = np.array(0)
    np.savez(folder / f"{version}.npz", **file)
    params, batch_stats, _ = init_from(folder / f"{version}.npz", params, batch_stats)
    return graphdef, *jax.tree.map(jnp.array, (params, batch_stats))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


def anchors_of(size):
    return pyramid_anchors(size, LEVELS, *COCO, as_torchvision=True)


@functools.cache
def outputs(version, size, folder):
    graphdef, params, batch_stats = network(version, folder)
    run = jax.jit(lambda p, b, x: nnx.merge(graphdef, p, b)(x))
    return run(params, batch_stats, jnp.array(golden.images(size)))


def padded(found, labels):
    """Two rows more, as a batch of other images would have them."""
    boxes = jnp.array(np.pad(found, ((0, 2), (0, 0))))
    return boxes, jnp.array(np.pad(labels, (0, 2))), jnp.arange(len(boxes)) < len(found)


@pytest.mark.parametrize("key,size", list(zip(KEYS, golden.SIZES, strict=True)))
@pytest.mark.parametrize("version", VERSIONS)
def test_anchors_are_equal(version, key, size, source):
    got = np.concatenate(anchors_of(size))[:: golden.EVERY]
    np.testing.assert_array_equal(got, theirs(version, source)[f"{key}/anchors"])


@pytest.mark.parametrize("key,size", list(zip(KEYS, golden.SIZES, strict=True)))
@pytest.mark.parametrize("version", VERSIONS)
def test_outputs_are_equal(version, key, size, source, folder):
    ours, expected = outputs(version, size, folder), theirs(version, source)
    for name in ("class_logits", "box_offsets"):
        got = getattr(ours, name)[:, :: golden.EVERY]
        assert np.std(expected[f"{key}/{name}"]) > 0.1  # they say something
        np.testing.assert_allclose(got, expected[f"{key}/{name}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("key,size", list(zip(KEYS, golden.SIZES, strict=True)))
@pytest.mark.parametrize("version", VERSIONS)
def test_matching_is_equal_anchor_by_anchor(version, key, size, source):
    boxes, _, mask = padded(*golden.boxes(size))
    got = match_anchors(jnp.array(np.concatenate(anchors_of(size))), boxes, mask)
    expected = theirs(version, source)[f"{key}/matches"]
    assert set(expected) >= {-2, -1, 0, 1, 2, 3}
    np.testing.assert_array_equal(got, expected)


@functools.cache
def losses_and_gradients(version, batch, folder):
    """In float64, as on the other side: in float32 the sign of an activation near 0 is a matter of
    chance, and its gradient all or nothing. (The losses themselves stay in float32.)"""
    with jax.enable_x64(True):
        return _losses_and_gradients(version, batch, folder)


def _losses_and_gradients(version, batch, folder):
    graphdef, params, batch_stats = network(version, folder, jnp.float64)
    size = golden.SIZES[0]
    images = jnp.array(golden.images(size), jnp.float64)
    locations = jnp.array(np.concatenate(anchors_of(size)))
    boxes, labels, real = padded(*golden.boxes(size))

    def losses(params, mask):
        out = nnx.merge(graphdef, params, batch_stats, copy=True)(images, train=True)

        def of_image(logits, offsets, mask):
            return retinanet_loss(
                logits, offsets, locations, match_anchors(locations, boxes, mask), boxes, labels,
                jnp.ones(len(boxes)), box_loss=BOX_LOSS[version],
            )  # fmt: skip

        class_loss, box_loss = jax.vmap(of_image)(out.class_logits, out.box_offsets, mask)
        return class_loss.mean() + box_loss.mean(), (class_loss.mean(), box_loss.mean())

    mask = jnp.stack([real if batch == "mixed" else jnp.zeros_like(real), jnp.zeros_like(real)])
    (_, parts), gradients = jax.jit(jax.value_and_grad(losses, has_aux=True))(params, mask)
    return np.array(parts), torch_names(gradients)


@pytest.mark.parametrize("batch", ["mixed", "normal"])
@pytest.mark.parametrize("version", VERSIONS)
def test_losses_and_every_gradient_are_equal(version, batch, source, folder):
    got, gradients = losses_and_gradients(version, batch, folder)
    expected = theirs(version, source)
    np.testing.assert_allclose(got, expected[f"{batch}/losses"], rtol=1e-6)
    assert got[0] > 0 and (got[1] > 0) == (batch == "mixed")
    names = [name.split("/")[-1] for name in expected if name.startswith(f"{batch}/gradient/")]
    assert sorted(names) == sorted(gradients)
    for name in names:
        mine, other = gradients[name], expected[f"{batch}/gradient/{name}"]
        if source == "golden":
            mine, norm = golden.project(name, mine), other[0]
        else:
            norm = np.linalg.norm(other)
        assert np.linalg.norm(mine - other) <= 1e-5 * norm, name


@pytest.mark.parametrize("what", ["given", "image"])
@pytest.mark.parametrize("key,size", list(zip(KEYS, golden.SIZES, strict=True)))
@pytest.mark.parametrize("version", VERSIONS)
def test_detections_are_equal(version, key, size, what, source, folder):
    """Of given outputs, and of a picture."""
    pyramid = anchors_of(size)
    if what == "given":
        logits, offsets = map(jnp.array, golden.head_outputs(size, sum(map(len, pyramid))))
    else:
        logits, offsets = (x[0] for x in outputs(version, size, folder)[:2])
    got = select_detections(
        logits, offsets, None, pyramid, size,
        score_threshold=0.05, pre_nms_top_k=1000, nms_iou=0.5,
        max_detections=300 if what == "given" else 50,
    )  # fmt: skip
    expected = theirs(version, source)
    boxes, labels, scores = (
        expected[f"{key}/{what}/{field}"] for field in ("boxes", "labels", "scores")
    )
    assert got.mask.sum() == len(boxes) >= 50
    np.testing.assert_array_equal(got.labels, labels)
    np.testing.assert_allclose(got.boxes, boxes, rtol=0, atol=0.01)
    np.testing.assert_allclose(got.scores, scores, rtol=0, atol=1e-5)
