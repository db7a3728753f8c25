"""Every backbone keeps the contract of `RetinaNet`, and every detector what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import retina
from jaxdet import ConfigError, models
from jaxdet.doors import fields_of, takes
from jaxdet.kernels.compilation import jit
from jaxdet.models import layers
from jaxdet.ops.anchors import grid_sizes
from jaxdet.runs import config as configs
from tests import networks

KINDS = tuple(networks.BACKBONES)


def num_parameters(make):
    return sum(x.size for x in jax.tree.leaves(nnx.state(nnx.eval_shape(make), nnx.Param)))


def backbone(kind, **options):
    fields = {**networks.model_config(kind)["backbone"], **options}
    make = models.BACKBONES[fields["name"]]
    return make(**fields_of(make, fields), rngs=models.keys(0))


def test_size_is_torchvisions():
    """34,014,999 without its frozen BatchNorm (53,120 numbers) and with three input channels."""
    config = networks.model_config(
        fpn_channels=256, head_channels=256, head_depth=4, levels=(3, 4, 5, 6, 7),
        anchor_scales=(4.0, 5.04, 6.35), aspect_ratios=(0.5, 1.0, 2.0), image_head=False,
    )  # fmt: skip
    config["backbone"].update(depth=50, width=64)
    make = lambda: models.create(config, networks.LOSS, 91, 256, models.keys(0))  # noqa: E731
    one_channel_instead_of_three = 2 * 64 * 7 * 7
    assert num_parameters(make) == 34_014_999 + 53_120 - one_channel_instead_of_three


@pytest.mark.parametrize("depth,count", [(18, 11_176_512), (34, 21_284_672), (101, 42_500_160)])
def test_resnets_size_is_torchvisions(depth, count):
    """The classifiers of torchvision, without their last layer."""
    make = lambda: backbone("batch", depth=depth, width=64, in_channels=3)  # noqa: E731
    assert num_parameters(make) == count


@pytest.mark.parametrize("depth,count", [(18, 28_589_128), (36, 50_223_688)])
def test_convnexts_size_is_torchvisions(depth, count):
    """Tiny and Small, without their last layers: a normalisation and a linear one."""
    make = lambda: backbone("convnext", depth=depth, width=96, in_channels=3)  # noqa: E731
    assert num_parameters(make) == count - 2 * 768 - 769 * 1000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (300, 200), (320, 320), (101, 37)])
def test_features_are_where_the_anchors_are(kind, size):
    """As many as `grid_sizes` says, at each level of the backbone and the pyramid."""
    graphdef, weights = networks.abstract(kind, levels=(2, 3, 4, 5, 6, 7))
    images = jax.ShapeDtypeStruct((2, *size, 1), jnp.float32)

    def run(weights, images):
        model = nnx.merge(graphdef, weights["params"], weights["batch_stats"])
        features = model.backbone(images, train=False)
        return features, model.fpn(features), model.backbone.out_channels

    features, pyramid, channels = jax.eval_shape(run, weights, images)
    channels = nnx.merge(graphdef, *weights.values()).backbone.out_channels
    grids = grid_sizes(size, (2, 3, 4, 5, 6, 7))
    expected = [(2, *grid, c) for grid, c in zip(grids, channels, strict=False)]
    assert [x.shape for x in features] == expected
    assert [x.shape for x in pyramid] == [(2, *grid, 16) for grid in grids]


def test_location_k_looks_around_k_times_the_stride():
    """The pixels that a feature of ResNet sees are as many before k * 2**level as after it.

    All weights are positive and nothing is cut off by a ReLU, so that no gradient is 0 by chance.
    """
    size = 300
    graphdef, params, statistics = models.split(
        nnx.eval_shape(lambda: backbone("batch", norm="frozen_batch"))
    )
    params = jax.tree.map(lambda x: jnp.full(x.shape, 1 / np.prod(x.shape[:-1])), params)
    statistics = jax.tree.map(lambda x: jnp.ones(x.shape), statistics)

    middle = {level: size // 2**level // 2 for level in (2, 3, 4)}

    def of_features(image):
        features = nnx.merge(graphdef, params, statistics)(image, False)
        return jnp.stack([features[level - 2][0, k, k].sum() for level, k in middle.items()])

    gradients = jit(jax.jacrev(of_features))(jnp.ones((1, size, size, 1)))[:, 0, :, :, 0]
    for gradient, (level, k) in zip(gradients, middle.items(), strict=True):
        for axis in (0, 1):
            pixels = np.flatnonzero(np.abs(gradient).sum(axis=axis))
            assert pixels[0] > 0 and pixels[-1] < size - 1  # the whole of it is in the image
            assert (pixels[0] + pixels[-1]) / 2 == k * 2**level


def test_untrained_scores_are_the_prior_and_boxes_the_anchors():
    def outputs(images):
        key = jax.random.key(0, impl="rbg")  # compiles three times as fast as the default
        config, rngs = networks.model_config("batch"), nnx.Rngs(key)
        return models.create(config, networks.LOSS, 5, 64, rngs)(images, train=True)

    outputs = jit(outputs)(networks.images())
    np.testing.assert_allclose(jax.nn.sigmoid(outputs.class_logits), 0.01, rtol=0.3)
    assert np.abs(outputs.box_offsets).max() < 0.5


def test_keys_are_those_that_flax_gives():
    ours, flaxs = models.keys(7), nnx.Rngs(7)
    for name in ("params", "params", "dropout"):
        assert getattr(ours, name)() == getattr(flaxs, name)()
    assert ours.dropout.fork()() == flaxs.dropout.fork()()

    def counts_in_a_trace():
        rngs = models.keys(7)
        return rngs.params(), isinstance(rngs.default.count.get_value(), np.uint32)

    key, is_numpys = jax.jit(counts_in_a_trace)()  # traced, it would take seconds in a network
    assert key == nnx.Rngs(7).params() and is_numpys


@pytest.mark.parametrize("kind", KINDS)
def test_inference_sees_each_image_alone_and_changes_nothing(kind):
    _, params, statistics = networks.detector(kind)
    run, images = networks.forward(kind), networks.images()
    both, after = run(params, statistics, images)
    jax.tree.map(np.testing.assert_array_equal, after, statistics)
    swapped, _ = run(params, statistics, images[::-1])
    for one, other in zip(*map(jax.tree.leaves, (both, swapped)), strict=True):
        assert np.abs(one[0] - one[1]).max() > 1e-6  # the two images differ
        np.testing.assert_allclose(one, other[::-1], atol=1e-5)


def test_training_updates_the_statistics_as_torch_does():
    graphdef, params, statistics = networks.detector("batch")
    _, after = networks.forward("batch", train=True)(params, statistics, networks.images())
    stem = nnx.merge(graphdef, params, statistics).backbone.stem
    mean = stem.conv(jnp.array(networks.images())).mean(axis=(0, 1, 2))
    assert (statistics.backbone.stem.norm.layer.mean[...] == 0).all()
    got = after.backbone.stem.norm.layer.mean[...]
    np.testing.assert_allclose(got, 0.1 * mean, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["group", "convnext"])
def test_what_has_no_batchnorm_has_no_statistics(kind):
    _, weights = networks.abstract(kind)
    assert list(networks.names(weights["batch_stats"])) == ["backbone/stem/ones/kernel"]


def test_frozen_parameters_are_named():
    assert models.frozen_parameters(0) == ()
    assert models.frozen_parameters(2) == ("backbone/stem/", "backbone/stages/0/")
    names = networks.names(networks.abstract()[1]["params"])
    of_backbone = [name for name in names if name.startswith("backbone/")]
    assert all(name.startswith(models.frozen_parameters(5)) for name in of_backbone)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_computes_in_bfloat16_and_keeps_float32(kind):
    graphdef, weights = networks.abstract(kind, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(weights)} == {jnp.dtype("float32")}
    run = lambda w, x: nnx.merge(graphdef, *w.values()).backbone(x, False)  # noqa: E731
    features = jax.eval_shape(run, weights, networks.images())
    assert {x.dtype for x in features} == {jnp.dtype("bfloat16")}
    run = lambda w, x: nnx.merge(graphdef, *w.values())(x)  # noqa: E731
    outputs = jax.eval_shape(run, weights, networks.images())
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("kind", ["batch", "frozen_batch"])
def test_a_norm_that_is_fixed_is_a_scale_and_a_shift(kind):
    """With whichever epsilon."""
    norm = layers.Norm(kind, 3, epsilon=0.5, dtype=jnp.float32, rngs=nnx.Rngs(0))
    norm.layer.mean[...], norm.layer.var[...] = jnp.array([1.0, 2, 3]), jnp.array([0.1, 1, 4])
    x = jnp.array(np.random.default_rng(0).normal(size=(1, 2, 2, 3)), jnp.float32)
    scale, shift = norm.fixed(train=False)
    np.testing.assert_allclose(norm(x, False), x * scale + shift, rtol=1e-5)


@pytest.mark.parametrize("channels,groups", [(64, 32), (40, 8)])
def test_group_norm_has_32_groups_or_8(channels, groups):
    norm = layers.Norm("group", channels, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert norm.layer.num_groups == groups


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"backbone.depth": 20}, r"model\.backbone\.depth: 20 is not one of 10, 18, 34, 50, 101"),
        ({"backbone.norm": "layer"}, r"model\.backbone\.norm: 'layer' is not one of batch, froz"),
        (
            {"backbone.name": "convnext", "backbone.depth": 50},
            r"model\.backbone\.depth: 50 is not one of 18, 36 for convnext",
        ),
        ({"backbone.norm": "group", "backbone.width": 12}, r"model\.backbone\.width or .* 12"),
        ({"head_norm": "group", "head_channels": 12}, r"model\.head_channels: .* 12"),
        ({"levels": (2, 4)}, r"model\.levels: \(2, 4\) must be consecutive"),
        ({"levels": (6, 7)}, r"model\.levels: \(6, 7\) must be consecutive"),
    ],
)
def test_a_value_that_a_network_cannot_follow_is_named(fields, message):
    config = retina.get_config()
    for name, value in fields.items():
        configs.set_field(config, f"model.{name}", value)
    with pytest.raises(ConfigError, match=message):
        configs.check(config, retina.get_fields())


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind == "batch" else pytest.mark.slow)
        for kind in KINDS
        if takes(models.BACKBONES[networks.BACKBONES[kind]["name"]], "remat")
    ],
)
def test_remat_computes_the_same_from_less_that_is_kept(kind):
    """XLA for CPUs undoes it, so what is looked at is what the gradient asks for."""
    images = jnp.asarray(networks.images(8))
    results, kept = [], []
    for remat in (True, False):
        make = lambda remat=remat: backbone(kind, remat=remat)  # noqa: E731
        graphdef, *state = models.split(nnx.eval_shape(make))
        params, batch_stats = jax.tree.map_with_path(networks.fill, tuple(state))

        @jax.jit
        def run(params, graphdef=graphdef, batch_stats=batch_stats):
            def loss(params):
                network = nnx.merge(graphdef, params, batch_stats, copy=True)
                features = network(images, train=True)
                return sum((x**2).mean() for x in features), models.split(network)[2]

            value, gradient, after = jax.vjp(loss, params, has_aux=True)
            return value, gradient(1.0), after, gradient

        *result, gradient = run(params)
        results.append(jax.device_get(result))
        kept.append(sum(x.size for x in jax.tree.leaves(gradient)))
    assert kept[0] < 0.75 * kept[1]
    for anew, plain in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(anew, plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max())
