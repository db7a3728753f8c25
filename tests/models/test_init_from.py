"""Whole runs that start from a file of weights."""

import jax
import numpy as np
import pytest

from configs import retina
from jaxdet import InputError, models
from jaxdet.inference.detector import load_detector
from jaxdet.inference.model_card import model_card
from jaxdet.models.resnet import ResNet
from jaxdet.runs import workdir
from jaxdet.training import loop


@pytest.fixture
def classifier(config, tmp_path):
    """A ResNet for grey pictures in the names of others: the file, and a kernel of it."""
    config.model.backbone.width = 8
    config.model.update({"levels": (5,), "fpn_channels": 8, "head_channels": 8})
    _, abstract = models.abstract(config.model, config.loss, 14, 64)
    rng, state = np.random.default_rng(0), {}
    for path, x in jax.tree_util.tree_leaves_with_path(abstract):
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        ours = name.split("backbone/")[-1]
        if "/backbone/" in name and "/ones/" not in name:
            value = rng.uniform(0.01, 0.1, x.shape).astype("f")
            value = value.transpose(3, 2, 0, 1) if x.ndim == 4 else value
            state[ResNet.names[ours][0]] = value
    np.savez(tmp_path / "resnet.npz", **state)
    return tmp_path / "resnet.npz", state["layer3.0.conv1.weight"]


@pytest.mark.slow
def test_a_run_starts_from_the_file_and_goes_on_from_its_checkpoint(
    config, dataset, sets, classifier, tmp_path, capsys
):
    """With a learning rate of nearly nothing the weights stay what they were; a run that goes on
    needs the file no more."""
    file, kernel = classifier
    config.model.init_from = str(file)
    config.train.update({"steps": 1, "learning_rate": 1e-12})
    loop.train(config, retina.get_fields(), dataset, *sets, tmp_path / "run")
    assert "resnet.npz: loaded" in capsys.readouterr().out
    weights = load_detector(config, tmp_path / "run", "latest", 14).weights
    got = weights["params"]["backbone"]["stages"][2][0]["conv1"]["kernel"][...]
    np.testing.assert_allclose(got, kernel.transpose(2, 3, 1, 0), atol=1e-6)

    file.unlink()
    config.train.steps = 2
    loaded, _ = loop.train(config, retina.get_fields(), dataset, *sets, tmp_path / "run")
    assert loaded.step == 2

    # And another from this one.
    config.model.init_from, config.train.steps = f"{tmp_path}/run@2", 1
    second, _ = loop.train(config, retina.get_fields(), dataset, *sets, tmp_path / "second")
    assert f"{tmp_path}/run at step 2: took " in capsys.readouterr().out
    run = workdir.read_config(tmp_path / "second")[1]
    assert run.began_from == f"{tmp_path}/run at step 2"
    card = model_card(second, run, tmp_path / "second", None, 9)
    assert f"Started from: {tmp_path}/run at step 2" in card
    ours, theirs = (jax.device_get(x.weights["params"]) for x in (second, loaded))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)


def test_a_run_from_a_file_that_does_not_fit_leaves_nothing(
    config, dataset, sets, classifier, tmp_path
):
    config.model.init_from = str(classifier[0])
    config.model.backbone.width = 4
    with pytest.raises(InputError, match=r"config\.model\.init_from: .*resnet\.npz"):
        loop.train(config, retina.get_fields(), dataset, *sets, tmp_path / "run")
    assert not (tmp_path / "run").exists()
