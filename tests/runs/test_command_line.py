"""A config that cannot be read is named."""

import sys

import pytest

from tests.conftest import command


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, ": no such file: give a file such as configs/phantom.py"),
        ("folder", ": a folder: give a file such as configs/phantom.py"),
        ("x = 1\ndef get_config(:\n", "x.py line 2: invalid syntax"),
        ("# Readme\n\nsome 'words\n", "x.py line 3: unterminated string literal"),
        ("x = 1\n", "x.py has no function get_config"),
        ("import nothing_of_that_name\n", ": No module named 'nothing_of_that_name'"),
        ("def get_config():\n    raise ValueError('unfit')\n", "ValueError: unfit"),
    ],
)
@pytest.mark.parametrize("written", ["--config={}", "-config {}", "--config={}:3"])
def test_a_config_that_cannot_be_read_is_named(tmp_path, monkeypatch, content, said, written):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # the one of a test before
    file = tmp_path / "x.py"
    if content == "folder":
        file.mkdir()
    elif content:
        file.write_text(content)
    words = written.format(file).split(" ")
    done = command(*words, f"--workdir={tmp_path}/run", "--config.train.steps=3")
    assert done.code == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("run.py: ") and f"--config={file}" in done.stderr
    if not (written.endswith(":3") and "ValueError" in said):  # which takes no argument
        assert said in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_config_of_another_kind_is_named(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    (tmp_path / "x.py").write_text("def get_config():\n    return {'seed': 1}\n")
    done = command(f"--config={tmp_path}/x.py", f"--workdir={tmp_path}/run")
    assert done.code == 2 and done.stderr.endswith("its get_config gives no ConfigDict\n")


@pytest.mark.parametrize("words", [["--config="], ["--config"], ["--config", "--workdir=x"]])
def test_a_config_without_a_path_is_named(words):
    done = command(*words)
    assert done.code == 2 and done.stderr.startswith("run.py: --config=")
    assert done.stderr.count("\n") == 1 and "no such file" in done.stderr
