"""What the environment says does not change a run, and is a line where it cannot be."""

import os
import subprocess
import sys

import jax
import pytest

from jaxdet import InputError
from jaxdet.runs import environment
from tests.conftest import ROOT


def test_a_run_does_not_depend_on_it(capsys):
    before = {name: getattr(jax.config, name) for name in environment.OF_A_RUN}
    assert before == environment.OF_A_RUN  # as JAX comes
    try:
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_default_prng_impl", "rbg")
        jax.config.update("jax_threefry_partitionable", False)
        jax.config.update("jax_random_seed_offset", 5)
        jax.config.update("jax_numpy_rank_promotion", "raise")
        jax.config.update("jax_numpy_dtype_promotion", "strict")
        environment.settle()
        assert {name: getattr(jax.config, name) for name in before} == before
        said = capsys.readouterr().err.splitlines()
        assert len(said) == len(environment.OF_A_RUN)
        assert "note: JAX_ENABLE_X64 is set: a run does not depend on it" in said[0]
        environment.settle()
        assert capsys.readouterr().err == ""
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_a_device_that_there_is_not_is_one_line(tmp_path):
    """A process of its own, as JAX looks for devices once."""
    words = ["--config=configs/phantom.py", f"--workdir={tmp_path}/run"]
    done = subprocess.run(
        [sys.executable, "run.py", *words], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "run.py: JAX_PLATFORMS=cuda: JAX finds no such device here: unset JAX_PLATFORMS, or "
        "install JAX for it\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["JAX_ENABLE_X64=perhaps", "JAX_NUMPY_RANK_PROMOTION=no"])
def test_a_setting_that_jax_does_not_know_is_one_line(setting):
    name, value = setting.split("=")
    done = subprocess.run(
        [sys.executable, "run.py", "--mode=score"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {name: value},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"run.py: {setting}: JAX knows no such value (")
    assert done.stderr.endswith("): unset it\n") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [RuntimeError("Unable to initialize backend (set JAX_PLATFORMS='')\nx"), AssertionError()],
)
def test_why_there_is_no_device_is_said_in_one_line(error, monkeypatch):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    for told in ("", "JAX_PLATFORM_NAME=gpu: "):
        if told:
            monkeypatch.setenv("JAX_PLATFORM_NAME", "gpu")
        with pytest.raises(InputError) as caught:
            environment.check_devices()
        said = str(caught.value)
        assert said.startswith(f"{told}JAX finds no ") and "\n" not in said
        assert ("initialize" in said) == bool(str(error))


def test_what_needs_no_device_asks_for_none(tmp_path):
    (tmp_path / "s.csv").write_text("image_id,PredictionString\na,3 0.5 1 1 9 9\n")
    words = ["--mode=ensemble", f"--submissions={tmp_path}/s.csv", f"--output={tmp_path}/o.csv"]
    done = subprocess.run(
        [sys.executable, "run.py", *words], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o.csv").exists()
