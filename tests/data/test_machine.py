"""Where things are on this machine."""

import pwd

import pytest

from configs import retina
from jaxdet import InputError
from jaxdet.data import machine
from jaxdet.data.dataset import open_dataset
from jaxdet.kernels import compilation
from tests.conftest import command
from tfds_vinbig import __main__ as build


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """A user that the system does not know, as in a container with a number for a user."""

    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_home(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(machine.with_home("~/runs/a", "x")) == "/somewhere/runs/a"
    for plain in ("./~/a", "/a/~b", "a~"):
        assert machine.with_home(plain, "x") == machine.Path(plain)
    monkeypatch.setenv("HOME", "")  # it would be the root
    with pytest.raises(InputError, match="^x: ~/runs has no home here"):
        machine.with_home("~/runs", "x")


@pytest.mark.parametrize("path", ["~", "~/runs", "~nobody-of-that-name/runs"])
def test_no_folder_is_called_like_a_home_that_there_is_not(homeless, path):
    with pytest.raises(InputError, match=rf"^--workdir: {path} has no home here .* or \./{path}"):
        machine.with_home(path, "--workdir")
    done = command("--mode=score", f"--annotations={path}", "--submission=x.csv")
    assert done.code == 2 and done.stderr.startswith(f"run.py: --annotations: {path} has no home")
    done = command("--mode=ensemble", f"--submissions={path}", "--output=x.csv")
    assert done.code == 2 and done.stderr.startswith(f"run.py: --submissions: {path} has no home")


def test_datasets_are_not_put_into_such_a_folder_either(homeless):
    with pytest.raises(InputError, match=r"config.data.dir: ~/tensorflow_datasets has no home"):
        open_dataset("tfds_vinbig/256", "")
    with pytest.raises(InputError, match=r"--data_dir: ~/tensorflow_datasets has no home"):
        build.parse(["--config=phantom"])
    assert build.parse(["--config=phantom", "--data_dir=/x"]).data_dir == "/x"
    assert list(homeless.iterdir()) == []


def test_what_is_compiled_is_not_kept_there(homeless, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    config = compilation.jax.config
    before = config.jax_compilation_cache_dir
    config.update("jax_compilation_cache_dir", None)
    try:
        compilation.keep_compiled()
        assert config.jax_compilation_cache_dir is None
    finally:
        config.update("jax_compilation_cache_dir", before)


def test_tfds_knows_where_datasets_are_unless_it_is_said(monkeypatch, tmp_path, capsys):
    assert retina.get_config().data.dir == ""
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert machine.datasets_folder() == "~/tensorflow_datasets"
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert machine.datasets_folder("elsewhere") == "elsewhere"
    assert build.parse(["--config=phantom", "--data_dir=x"]).data_dir == "x"
    assert capsys.readouterr().err == ""
    assert build.parse(["--config=phantom"]).data_dir == str(tmp_path)
    said = f"note: datasets are in {tmp_path}, as TFDS_DATA_DIR says\n"
    assert capsys.readouterr().err == said
    done = command("--config=configs/retina.py", f"--workdir={tmp_path}/run")
    first, last = done.stderr.splitlines()
    assert f"{first}\n" == said
    assert f"no dataset in {tmp_path}/tfds_vinbig/256" in last and done.code == 2
