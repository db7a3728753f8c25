"""python -m tfds_vinbig: its flags, what it prints, and its exit codes."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import tfds_vinbig
from jaxdet import InputError
from tests.tfds_vinbig import test_builder
from tests.tfds_vinbig.test_builder import files
from tests.tfds_vinbig.test_own_datasets import make_lungs
from tfds_vinbig import __main__ as command
from tfds_vinbig import tfds_vinbig_dataset_builder as builder

folder = test_builder.folder


def test_the_command_says_what_there_is_and_what_comes_next(folder, tmp_path, capsys):
    flags = ["--config=512", f"--manual_dir={folder}", f"--data_dir={tmp_path}"]
    for _ in range(2):  # built, and found built
        command.main(flags)
        out = capsys.readouterr().out
        assert f"dataset: {tmp_path}/tfds_vinbig/512/1.3.0" in out
        assert "train: 2 images, 3 boxes, 2 rows of no finding" in out
        assert "test: 1 images, 0 boxes, 0 rows of no finding" in out
        assert f"run.py --config=configs/retina.py:512 --config.data.dir={tmp_path}" in out


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "--config"),
        (["--config=256"], "--manual_dir: needed"),
        (["--config=256", "--manual_dir="], "--manual_dir: expected a path"),
        (["--config=256", "--manual_dir"], "--manual_dir: expected one argument"),
        (["--config=256", "--manual_dir=x", "--data=y"], "--data=y"),
        (["--config=256", "--manual_dir=x", "y"], "y"),
        (["--config=256", "--manual_dir=~nobody-of-that-name/x"], "--manual_dir: expected a path"),
        (["--config=256", "--manual_dir=x\0"], "--manual_dir: expected a path"),
        (["--config=256", "--manual_dir=x", "--size=256"], "--size: not with --config=256"),
        (["--config=512", "--coco=x", "--images=y"], "--coco: not with --config=512"),
        (["--config=phantom", "--images=y"], "--images: not with --config=phantom"),
        (["--config=phantom", "--size=128"], "--size: not with --config=phantom"),
        (["--config=12"], "--size: needed with --config=12"),
        (["--config=lungs", "--manual_dir=x"], "--size: needed with --config=lungs"),
        (["--config=lungs", "--size=128"], "--manual_dir: needed with --config=lungs, or --coco"),
        (["--config=lungs", "--size=128", "--images=y"], "--images: not with a Kaggle folder"),
        (
            ["--config=lungs", "--size=128", "--manual_dir=x", "--test_images=y"],
            "--test_images: not with a Kaggle folder",
        ),
        (["--config=lungs", "--size=128", "--coco=x"], "--images: needed with --coco"),
        *(
            (
                ["--config=lungs", "--size=128", "--coco=x", "--images=y", f"--{flag}=z"],
                f"--{flag}: not with none or several of --manual_dir",
            )
            for flag in ("train_csv", "train_meta", "test_meta")
        ),
        (
            ["--config=lungs", "--size=128", "--coco=x", "--images=y", "--coco=z"],
            "--images: 1 with 2 of --coco",
        ),
        (
            ["--config=lungs", "--size=64", *["--coco=x", "--images=y"] * 2, "--test_images=z"],
            "--test_images: not with several --coco",
        ),
        (["--config=256", "--manual_dir=x", "--manual_dir=y"], "--manual_dir: given twice"),
        *(
            (["--config=lungs", f"--size={size}", "--manual_dir=x"], f"--size: {size!r} is not")
            for size in ("", "0", "-64", "8", "1e3", "64.0", "9000", "x", "1_00", "9" * 5000)
        ),
        *(
            ([f"--config={name}", "--size=128", "--manual_dir=x"], f"--config: {name!r} is neither")
            for name in (
                "",
                ".",
                "..",
                ".x",
                "a/b",
                "/a",
                "a\\b",
                "a b",
                "a\n",
                "\xe9",
                "-",
                "x" * 101,
            )
        ),
    ],
)
def test_a_wrong_flag_is_named(flags, said):
    with pytest.raises(InputError) as caught:
        command.parse(flags)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("data_dir", ["plain", "a path/it's"])
def test_the_next_command_is_for_a_shell(tmp_path, capsys, data_dir):
    make_lungs(tmp_path / "lungs")
    data = tmp_path / data_dir
    flags = ["--config=lungs", "--size=64", f"--manual_dir={tmp_path}/lungs", f"--data_dir={data}"]
    command.main(flags)
    out = capsys.readouterr().out
    assert "classes: Left lung, Right lung\n" in out
    (line,) = re.findall("next: (.*)", out)
    assert shlex.split(line) == [
        "python", "run.py", "--config=configs/retina.py", "--config.data.name=tfds_vinbig/lungs",
        "--config.data.image_size=64", f"--config.data.dir={data}", "--workdir=runs/lungs",
    ]  # fmt: skip


def run(*flags):
    return subprocess.run(
        [sys.executable, "-m", "tfds_vinbig", *flags],
        cwd=Path(tfds_vinbig.__file__).parents[1],
        capture_output=True,
        text=True,
    )


def test_exit_codes(folder, tmp_path):
    done = run("--config=256", f"--manual_dir={folder}", f"--data_dir={tmp_path / 'data'}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("dataset: ")
    assert "--manual_dir FOLDER" in run("--help").stdout
    # Another process writes the same bytes (protobuf orders fields by a seed of the process).
    here = builder.build("256", tmp_path / "here", folder)
    assert files(here) == files(tmp_path / "data/tfds_vinbig/256/1.3.0")

    (folder / "train/a.png").write_bytes((folder / "train/a.png").read_bytes()[:5000])
    for flags, said in (
        (["--config=12"], "--size"),
        (["--config=512", f"--manual_dir={tmp_path / 'gone'}"], "gone: no such folder"),
        (["--config=512", f"--manual_dir={folder}"], "train/a.png: broken image"),
    ):
        done = run(*flags, f"--data_dir={tmp_path / 'other'}")
        assert done.returncode == 2 and done.stdout == ""
        assert said in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_interrupt_exits_130_without_a_word(tmp_path):
    code = (
        "import sys, runpy, tfds_vinbig.tfds_vinbig_dataset_builder as b\n"
        "def interrupt(**flags): raise KeyboardInterrupt\n"
        "b.build = interrupt\n"
        "sys.argv = ['x', '--config=phantom']\n"
        "runpy.run_module('tfds_vinbig', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(tfds_vinbig.__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
