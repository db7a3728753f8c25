import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import retina
from jaxdet import InputError
from jaxdet.models import detector, resnet
from jaxdet.models.retinanet import RetinaNet


def tiny(**fields):
    """A config of a network that compiles in seconds."""
    config = retina.get_config()
    config.data.image_size = 64
    config.model.update({"depth": 18, "width": 8, "fpn_channels": 16, "head_channels": 16})
    config.model.update({"head_depth": 1, "dtype": "float32", "levels": (2, 3, 4, 5, 6)})
    config.model.update({"anchor_scales": (2.0, 4.0), "aspect_ratios": (0.5, 1.0), **fields})
    return config


def num_parameters(make):
    model = nnx.eval_shape(make)
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_size_is_torchvisions():
    """34,014,999 without its frozen BatchNorm (53,120 numbers) and with three input channels."""

    def make():
        return RetinaNet(num_classes=91, num_anchors=9, depth=50, rngs=nnx.Rngs(0))

    one_channel_less = 2 * 64 * 7 * 7
    assert num_parameters(make) == 34_014_999 + 53_120 - one_channel_less


@pytest.mark.parametrize("depth,count", [(18, 11_176_512), (34, 21_284_672), (101, 42_500_160)])
def test_trunk_size_is_torchvisions(depth, count):
    """The classifiers of torchvision, without their last layer."""
    make = lambda: resnet.ResNet(depth, in_channels=3, rngs=nnx.Rngs(0))  # noqa: E731
    assert num_parameters(make) == count


@pytest.mark.parametrize("levels", [(3, 4, 5, 6, 7), (2, 3, 4, 5, 6), (4, 5)])
@pytest.mark.parametrize("image_size", [64, 96, 100])
def test_an_output_for_every_anchor(levels, image_size):
    config = tiny(levels=levels)
    config.data.image_size = image_size
    anchors = sum(len(level) for level in detector.pyramid(config))
    graph, *state = detector.split(nnx.eval_shape(lambda: detector.create(config, nnx.Rngs(0))))
    images = jax.ShapeDtypeStruct((2, image_size, image_size, 1), jnp.float32)
    logits, offsets, _ = jax.eval_shape(lambda *s, x: nnx.merge(graph, *s)(x), *state, x=images)
    assert logits.shape == (2, anchors, 14)
    assert offsets.shape == (2, anchors, 4)


def test_untrained_scores_are_the_prior_and_boxes_the_anchors():
    model = detector.create(tiny(), nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 1))
    logits, offsets, _ = model(images, train=True)
    np.testing.assert_allclose(jax.nn.sigmoid(logits), 0.01, rtol=0.2)
    assert np.abs(offsets).max() < 0.5


def test_train_updates_the_statistics_and_inference_does_not():
    model = detector.create(tiny(), nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 1))
    read = lambda: np.asarray(model.backbone.bn1.layer.mean[...])  # noqa: E731
    before = read()
    model(images, train=False)
    np.testing.assert_array_equal(read(), before)
    model(images, train=True)
    mean = model.backbone.conv1(images).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(read(), 0.1 * mean, rtol=1e-3, atol=1e-6)  # torch's momentum


def test_group_norm_has_no_statistics_and_treats_images_alone():
    model = detector.create(tiny(norm="group"), nnx.Rngs(0))
    assert list(nnx.state(model, nnx.BatchStat).backbone) == ["ones"]
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 1))
    both, *_ = model(images, train=True)
    one, *_ = model(images[:1], train=True)
    np.testing.assert_allclose(both[:1], one, atol=1e-4)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    model = detector.create(tiny(dtype="bfloat16"), nnx.Rngs(0))
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype("float32")}
    logits, *_ = model(jnp.zeros((1, 64, 64, 1)))
    assert logits.dtype == jnp.bfloat16


@pytest.mark.parametrize("size", [8, 9])
def test_max_pool_equals_reduce_window(size):
    x = jax.random.normal(jax.random.key(0), (2, size, size, 3))
    expected = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )
    np.testing.assert_array_equal(resnet.max_pool_3x3_stride_2(x), expected)


def test_group_norm_needs_channels_in_eights():
    with pytest.raises(InputError, match=r"config\.model\.norm or head_norm: .* 12"):
        nnx.eval_shape(lambda: detector.create(tiny(norm="group", width=12), nnx.Rngs(0)))


@pytest.mark.parametrize(
    "field,value",
    [("depth", 19), ("norm", "layer"), ("levels", (2, 4)), ("levels", (6, 7)), ("dtype", "int8")],
)
def test_a_field_that_fits_nothing_is_named(field, value):
    with pytest.raises(InputError, match=f"config.model.{field}"):
        nnx.eval_shape(lambda: detector.create(tiny(**{field: value}), nnx.Rngs(0)))


def test_the_image_head_sees_the_whole_image_and_each_image_alone():
    model = detector.create(tiny(image_head=True), nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 1))
    logits = model(images).image_logits
    assert logits.shape == (2, 15)
    np.testing.assert_allclose(model(images[1:]).image_logits, logits[1:], atol=1e-5)
    for corner in (images.at[0, :16, :16].add(5), images.at[0, -16:, -16:].add(5)):
        assert (model(corner).image_logits[0] != logits[0]).all()
    assert detector.create(tiny(), nnx.Rngs(0))(images).image_logits is None
