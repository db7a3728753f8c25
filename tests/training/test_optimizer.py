import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jaxdet import ConfigError, InputError
from jaxdet.runs import parallel
from jaxdet.training import optimizer as optimizers
from jaxdet.training.train_step import accumulate
from tests import networks

RATE = 0.1
KEY = jax.random.key(0)


def train_config(name="adamw", **fields):
    """A `config.train` whose learning rate is highest at once, and hardly falls."""
    return ConfigDict(
        {
            "optimizer": name, "learning_rate": RATE, "warmup_steps": 0, "steps": 1_000_000,
            "weight_decay": 0.0, "momentum": 0.9, "clip_norm": 1e9, "backbone_lr_multiplier": 1.0,
            "lr_multipliers": (), **fields,
        }
    )  # fmt: skip


def arrays(seed=0):
    """Parameters of a made-up network, or gradients of them."""
    rng = np.random.default_rng(seed)
    shapes = {"stem": (3, 3, 1, 8), "stages": (3, 3, 8, 16)}
    tree = {
        "backbone": {k: {"kernel": rng.normal(size=s)} for k, s in shapes.items()},
        "head": {"kernel": rng.normal(size=(16, 4)), "bias": rng.normal(size=4)},
    }
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def first_update(config, grads, frozen=()):
    """By name."""
    params = arrays()
    optimizer = optimizers.make_optimizer(config, frozen, params)
    norm = optax.tree.norm(grads)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params, norm=norm)
    return {k: np.asarray(v, np.float64) for k, v in networks.names(updates).items()}


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_each_makes_a_loss_small(name):
    """That of a linear map which a matrix and a bias have to find."""
    rng = np.random.default_rng(0)
    x, truth = rng.normal(size=(64, 6)), rng.normal(size=(6, 3))
    y = jnp.asarray(x @ truth + 0.5, jnp.float32)
    params = {"kernel": jnp.asarray(rng.normal(size=(6, 3)), jnp.float32), "bias": jnp.ones(3)}
    optimizer = optimizers.make_optimizer(train_config(name), (), params)

    def loss(params):
        return jnp.mean((x @ params["kernel"] + params["bias"] - y) ** 2)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(loss)(params)
            updates, state = optimizer.update(grads, state, params, norm=1.0)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=200)[0][0]

    assert loss(run(params)) < 0.02 * loss(params)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_kernels_decay_and_the_rest_does_not(name):
    """Without a gradient, decay is all that moves them."""
    nothing = jax.tree.map(jnp.zeros_like, arrays())
    updates = first_update(train_config(name, weight_decay=0.1), nothing)
    for path, before in networks.names(arrays()).items():
        rate = RATE if name == "lamb" else RATE * 0.1  # LAMB's steps have the parameter's length
        expected = -rate * before if path.endswith("kernel") else np.zeros(4)
        np.testing.assert_allclose(updates[path], expected, rtol=1e-4, atol=1e-7)


def test_a_step_of_lamb_is_as_long_as_the_rate_times_the_parameter():
    for path, update in first_update(train_config("lamb"), arrays(1)).items():
        expected = RATE * np.linalg.norm(networks.names(arrays())[path])
        np.testing.assert_allclose(np.linalg.norm(update), expected, rtol=1e-4)


def test_muon_makes_kernels_orthogonal_and_leaves_the_rest_to_adam():
    """All singular values of a kernel's update, as a matrix, are about the same (Newton-Schulz
    brings them between 0.7 and 1.2), and the update is as large as Adam's would be."""
    updates = first_update(train_config("muon"), arrays(1))
    grads = networks.names(arrays(1))
    for path, update in updates.items():
        if path.endswith("kernel"):
            matrix = update.reshape(-1, update.shape[-1])
            scale = RATE * 0.2 * np.sqrt(max(matrix.shape))
            singular = np.linalg.svd(matrix / scale, compute_uv=False)
            assert singular.min() > 0.6 and singular.max() < 1.3, path
            gradient = np.asarray(grads[path]).reshape(matrix.shape)
            assert np.sum(matrix * gradient) < 0  # downhill
        else:
            adam = optax.nadam(RATE)
            expected, _ = adam.update(grads[path], adam.init(grads[path]))
            np.testing.assert_allclose(update, expected, rtol=1e-4)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_multipliers_scale_the_step_by_the_product_of_what_is_found_in_the_name(name):
    plain = first_update(train_config(name, weight_decay=0.1), arrays(1))
    config = train_config(
        name, weight_decay=0.1, backbone_lr_multiplier=0.5,
        lr_multipliers=("kernel=0.3", r"stem/|head/bias$=2"),
    )  # fmt: skip
    factors = {
        "backbone/stem/kernel": 0.5 * 0.3 * 2, "backbone/stages/kernel": 0.5 * 0.3,
        "head/kernel": 0.3, "head/bias": 2.0,
    }  # fmt: skip
    found = first_update(config, arrays(1))
    for path, factor in factors.items():
        np.testing.assert_allclose(found[path], factor * plain[path], rtol=1e-4)
    frozen = first_update(config, arrays(1), frozen=("backbone/stem/",))
    for path in factors:
        assert frozen[path].any() == (path != "backbone/stem/kernel")


def test_layer_wise_decay_can_be_said_by_patterns():
    """As docs/pretrained.md has it: each stage learns at 0.8 times the rate of the next."""
    patterns = (
        "backbone/=0.8", "(stem|stages/[0-2])/=0.8", "(stem|stages/[01])/=0.8",
        "(stem|stages/0)/=0.8", "stem/=0.8",
    )  # fmt: skip
    for kind in networks.BACKBONES:
        params = networks.abstract(kind)[1]["params"]
        found = optimizers.multipliers(train_config(lr_multipliers=patterns), (), params)
        assert {name.split("/")[0] for name in found} > {"backbone", "fpn", "class_head"}
        for name, factor in found.items():
            part = name.split("/")
            depth = 5 - {"stem": 0}.get(part[1], int(part[2]) + 1 if part[1] == "stages" else 0)
            expected = 0.8**depth if part[0] == "backbone" else 1.0
            assert factor == pytest.approx(expected), name


@pytest.mark.parametrize("text", ["stem", "=2", "stem=", "stem=-1", "stem=nan", "stem=inf", "(=1"])
def test_what_is_no_multiplier_is_named(text):
    with pytest.raises(InputError, match="is not PATTERN=FACTOR"):
        optimizers.parse_multipliers(("head=1", text))


def test_a_pattern_that_is_nowhere_is_named():
    with pytest.raises(ConfigError, match=r"lr_multipliers: 'neck/' is found in no .* such as b"):
        optimizers.multipliers(train_config(lr_multipliers=("neck/=1",)), (), arrays())


@pytest.mark.parametrize("limit", [0.1, 10.0, 1e9])
def test_clipping_is_that_of_optax(limit):
    grads = arrays(1)
    norm = optax.tree.norm(grads)
    clipped, _ = optimizers.clip(limit).update(grads, optax.EmptyState(), norm=norm)
    expected, _ = optax.clip_by_global_norm(limit).update(grads, optax.EmptyState())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), clipped, expected)


def test_a_young_average_follows_closely_and_an_old_one_as_it_is_told():
    mean, params = {"x": jnp.array([0.0])}, {"x": jnp.array([1.0])}
    for step, decay, kept in ((0, 0.9, 0.1), (8, 0.9, 0.5), (1000, 0.9, 0.9), (1000, 0.0, 0.0)):
        found = optimizers.average(mean, params, jnp.array(step), decay)
        np.testing.assert_allclose(found["x"], 1 - kept, rtol=1e-6)


def test_a_batch_in_parts_gives_the_means_and_counts_of_the_whole():
    """Statistics take a step for each part, one after the other."""

    def gradient(params, batch_stats, batch, key):
        errors = batch["x"] @ params - batch["y"]
        grads = (2 * errors[:, None] * batch["x"]).mean(axis=0)
        losses = {"loss": (errors**2).mean(), "large": (errors > 1).sum()}
        return losses, 0.9 * batch_stats + 0.1 * batch["y"].mean(), grads

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=12)
    given = jnp.ones(3), jnp.array(5.0), {"x": jnp.array(x), "y": jnp.array(y)}
    losses, _, grads = accumulate(gradient, *given, KEY, 1)
    for parts in (2, 3, 12):
        found, statistics, found_grads = accumulate(gradient, *given, KEY, parts)
        np.testing.assert_allclose(found["loss"], losses["loss"], rtol=1e-5)
        assert found["large"] == losses["large"] > 0
        np.testing.assert_allclose(found_grads, grads, rtol=1e-4)
        expected = 5.0
        for part in range(parts):
            expected = 0.9 * expected + 0.1 * y[part::parts].mean()
        np.testing.assert_allclose(statistics, expected, rtol=1e-5)


def test_a_batch_that_cannot_be_cut_so_is_named():
    devices = jax.device_count()
    parallel.check_batch_size("train.batch_size", 6 * devices, 3)
    with pytest.raises(InputError, match=r"train\.batch_size: \d+ does not divide over \d+ devices "
                       r"in 4 parts \(config\.train\.accumulate\)"):  # fmt: skip
        parallel.check_batch_size("train.batch_size", 6 * devices, 4)
