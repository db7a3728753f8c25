"""What a device without bfloat16 does instead."""

from types import SimpleNamespace

import jax
import pytest
from flax import nnx

from jaxdet import models
from jaxdet.kernels import precision
from tests import networks


@pytest.fixture
def device(monkeypatch):
    """A function that puts a device in the place of those there are."""

    def put(kind, **attributes):
        found = SimpleNamespace(device_kind=kind, platform="gpu", **attributes)
        monkeypatch.setattr(precision.jax, "devices", lambda: [found])
        precision._has_bfloat16.cache_clear()

    yield put
    monkeypatch.undo()
    precision._has_bfloat16.cache_clear()


@pytest.mark.parametrize(
    "kind,attributes,expected",
    [
        ("Tesla T4", {"compute_capability": "7.5"}, "float32"),
        ("Tesla V100-SXM2-16GB", {"compute_capability": "7.0"}, "float32"),
        ("NVIDIA A100-SXM4-40GB", {"compute_capability": "8.0"}, "bfloat16"),
        ("NVIDIA B200", {"compute_capability": "10.0"}, "bfloat16"),
        ("AMD Instinct MI250X", {"compute_capability": "gfx90a"}, "bfloat16"),
        ("TPU v3", {}, "bfloat16"),
        ("cpu", {}, "bfloat16"),
    ],
)
def test_a_device_without_it_computes_in_float32_and_says_so_once(
    device, kind, attributes, expected, capsys
):
    device(kind, **attributes)
    assert [precision.type_here("bfloat16") for _ in range(2)] == [expected] * 2
    assert precision.type_here("float32") == "float32"
    said = capsys.readouterr().err
    note = f"note: {kind} has no bfloat16 (config.model.dtype): it computes in float32\n"
    assert said == (note if expected == "float32" else "")


@pytest.mark.parametrize("kind", ["batch", "convnext"])
@pytest.mark.parametrize("capability,half", [("7.5", False), ("8.0", True)])
def test_no_part_of_a_network_is_left_in_bfloat16_there(
    device, kind, capability, half, monkeypatch
):
    device("a GPU", compute_capability=capability)
    monkeypatch.setattr(models, "_ABSTRACT", {})  # of another device
    graphdef, weights = networks.abstract(kind, dtype="bfloat16")

    def forward(weights, images):
        model = nnx.merge(graphdef, weights["params"], weights["batch_stats"], copy=True)
        return model(images, train=True)

    assert ("bf16" in str(jax.make_jaxpr(forward)(weights, networks.images()))) is half
