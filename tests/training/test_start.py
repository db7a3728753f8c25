"""Which run and step `model.init_from` names; what comes over: tests/models/test_own_run.py."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxdet import InputError, models
from jaxdet.models.resnet import ResNet
from jaxdet.models.weights.init_from import names_of
from jaxdet.runs import checkpoint, parallel, workdir
from jaxdet.training.start import open_start
from tests.test_old_run import OLD

CLASSES = ("Nodule/Mass", "Scoliosis")


@pytest.fixture(scope="module")
def network():
    """Zeros for the detector of the old run, but for two classes."""
    sections = json.loads((OLD / "config.json").read_text())
    model = {**sections["model"], "name": "retinanet"}
    loss = {**sections["loss"], "box_coder": "deltas"}
    _, abstract = models.abstract(model, loss, len(CLASSES), 64)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), abstract)
    return zeros["params"], zeros["batch_stats"]


@pytest.mark.parametrize("which", ["", "@best", "@3"])
def test_a_run_gives_what_its_checkpoint_holds(network, which):
    """The average of its weights, and rows by the names of the classes."""
    start = open_start(f"{OLD}{which}", CLASSES, ResNet, parallel.make_mesh())
    assert start.began_from == f"{OLD} at step 3"
    params, batch_stats, report = start.fill(*network)
    assert "rows of the classes Nodule/Mass; no rows for Scoliosis" in report
    with checkpoint.open_manager(OLD) as manager:
        saved = manager.restore(3)["weights"]
    before = names_of(saved["params"]) | names_of(saved["batch_stats"])
    found = names_of(params) | names_of(batch_stats)
    label = workdir.read_config(OLD)[1].class_names.index("Nodule/Mass")
    assert found.keys() == before.keys()
    for name, value in found.items():
        expected = before[name]
        if name.startswith("class_head/final"):
            label = workdir.read_config(OLD)[1].class_names.index("Nodule/Mass")
            expected = np.stack([expected[..., label], np.zeros(expected.shape[:-1])], -1)
        elif name.startswith("image_head"):
            expected = np.stack(
                [expected[..., 8], np.zeros(expected.shape[:-1]), expected[..., -1]], -1
            )
        np.testing.assert_array_equal(value, expected, err_msg=name)


@pytest.mark.parametrize(
    "named,said",
    [
        ("run@2", r"--checkpoint=2: not in .*/run/checkpoints, which has 3; or say best or latest"),
        ("run@newest", r"--checkpoint=newest: not in"),
        ("empty", r"empty/config\.json: no such file"),
        ("nowhere", r"nowhere: not a \.safetensors, \.npz or \.pth file, nor the workdir of a run"),
        ("nowhere@best", r"nowhere@best: not a \.safetensors"),
        ("cut", r"checkpoint 3 in .* cannot be read"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, network, named, said):
    (tmp_path / "empty").mkdir()
    for name in ("run", "cut"):
        shutil.copytree(OLD, tmp_path / name)
    shutil.rmtree(tmp_path / "cut/checkpoints/3/weights/d")
    shutil.rmtree(tmp_path / "cut/checkpoints/3/weights/ocdbt.process_0")
    with pytest.raises(InputError, match=rf"^config\.model\.init_from: .*{said}"):
        open_start(f"{tmp_path}/{named}", CLASSES, ResNet, parallel.make_mesh()).fill(*network)


def test_another_backbone_is_one_line(network):
    params, batch_stats = network
    wider = jax.tree.map(lambda x: np.zeros((*x.shape[:-1], 2 * x.shape[-1])), params)
    start = open_start(str(OLD), CLASSES, ResNet, parallel.make_mesh())
    with pytest.raises(InputError) as caught:
        start.fill(wider, batch_stats)
    assert str(caught.value).startswith(
        f"config.model.init_from: {OLD} at step 3: its backbone is another one: backbone/"
    )
    assert "\n" not in str(caught.value)
