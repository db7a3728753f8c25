"""The command line as its users and their scripts meet it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from configs import retina
from jaxdet import InputError
from jaxdet.inference.detector import load_detector
from jaxdet.report import overlays
from jaxdet.runs import config as configs
from tests.conftest import command

ROOT = Path(__file__).parent.parent


def test_train_leaves_every_file_of_the_contract(trained):
    workdir, done = trained
    assert {path.name for path in workdir.iterdir()} >= {
        "checkpoints", "config.json", "metrics.jsonl", "evaluation.json", "submission.csv",
        "report.html", "detections.json",
    }  # fmt: skip
    scores = json.loads((workdir / "evaluation.json").read_text())
    assert set(scores) >= {
        "mAP@0.4", "mAP14@0.4", "AP", "mAP@0.5", "mAP@0.75", "mAP@0.5:0.95", "wAFROC", "AUC",
        "metrics", "num_images", "ground_truth", "FROC", "95% interval", "checkpoint", "split",
        "inference",
    }  # fmt: skip
    assert len(scores["AP"]) == 15 and scores["AP"]["Atelectasis"] is None
    assert scores["ground_truth"] == "wbf@0.4"
    assert scores["checkpoint"] == 3 and scores["split"] == "fold 0 of 5"
    assert "training boxes at IoU 0.5" in done.stdout and "mAP@0.4" in done.stdout
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    evaluated = [line for line in lines if "AP" in line]
    assert [line["step"] for line in evaluated] == [2, 3]
    for name in scores["metrics"]:
        assert evaluated[-1][name] == scores[name]
    assert f"step 3: AUC {scores['AUC']:.3f}" in done.stdout  # as evaluation.best_by has it
    record = json.loads((workdir / "config.json").read_text())
    model = record["model"]
    assert model["backbone"]["width"] == 8 and model["levels"] == [4, 5]
    assert record["run"]["class_names"][3] == "Cardiomegaly"
    # Not given, so planned.
    assert len(model["anchor_scales"]) == len(model["aspect_ratios"]) == 1
    assert list((workdir / "tensorboard").glob("events*"))


@pytest.mark.slow
def test_crossval_scores_every_training_image_once(tiny, kaggle_folder, tmp_path):
    common = [*tiny, f"--workdir={tmp_path}", "--mode=crossval", "--config.train.steps=2"]
    done = command(*common, "--config.data.num_folds=2")
    assert done.code == 0, done.stderr
    scores = json.loads((tmp_path / "evaluation.json").read_text())
    parts = [json.loads((tmp_path / f"fold{k}/evaluation.json").read_text()) for k in (0, 1)]
    assert scores["num_images"] == sum(part["num_images"] for part in parts) == 30
    assert "all 2 folds" in (tmp_path / "report.html").read_text()
    train = pd.read_csv(kaggle_folder / "train.csv")
    assert set(pd.read_csv(tmp_path / "out_of_fold.csv").image_id) == set(train.image_id)
    again = command(
        "--mode=score", f"--annotations={kaggle_folder}/train.csv", "--ground_truth=wbf@0.4",
        f"--submission={tmp_path}/out_of_fold.csv", "--bootstrap=1000",
    )  # fmt: skip
    assert again.code == 0, again.stderr
    # The file has two decimals of a pixel.
    got = json.loads(again.stdout)
    assert got["mAP@0.4"] == pytest.approx(scores["mAP@0.4"], abs=1e-3)
    assert got["95% interval"]["mAP@0.4"] == pytest.approx(
        scores["95% interval"]["mAP@0.4"], abs=0.05
    )


@pytest.mark.parametrize(
    "argument,named",
    [
        ("--config.data.split=seed111", "config.data.split"),
        ("--config.data.num_folds=31", "config.data.num_folds: 31 is not from 2 to the 30 images"),
        ("--config.evaluation.ground_truth=agree@0.4:9", "ground_truth: 9 readers cannot agree"),
    ],
)
def test_crossval_that_cannot_be_is_known_before_the_first_fold(tiny, tmp_path, argument, named):
    done = command(*tiny, f"--workdir={tmp_path}/w", "--mode=crossval", argument)
    assert done.code == 2 and named in done.stderr
    assert not (tmp_path / "w").exists()


def test_a_truth_that_cannot_be_is_known_before_anything_is_written(tiny, tmp_path):
    asked = "--config.evaluation.ground_truth=agree@0.4:9"
    done = command(*tiny, f"--workdir={tmp_path}/w", asked)
    assert done.code == 2 and "evaluation.ground_truth: 9 readers cannot" in done.stderr
    assert not (tmp_path / "w/config.json").exists()


def test_submission_has_every_test_image_in_the_order_of_the_sample(trained, kaggle_folder):
    got = pd.read_csv(trained[0] / "submission.csv")
    assert (
        got.image_id.tolist()
        == pd.read_csv(kaggle_folder / "sample_submission.csv").image_id.tolist()
    )
    for string in got.PredictionString:
        boxes = np.array(string.split(), float).reshape(-1, 6)
        assert (boxes[:, 0] == 14).sum() == 1 and len(boxes) > 1
        findings = boxes[boxes[:, 0] != 14]
        assert boxes[boxes[:, 0] == 14, 1] == pytest.approx(1 - findings[:, 1].max(), abs=1e-5)
        assert findings[:, 4].max() <= 384 and findings[:, 5].max() <= 512
        assert findings[:, 4].max() > 256  # original pixels, not the picture's


def copy_of(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_run_is_evaluated_and_predicted_without_a_config(trained, tmp_path):
    """The same scores and file again, from what the run knows of itself."""
    workdir = copy_of(trained[0], tmp_path)
    before = {p.name: p.read_bytes() for p in workdir.iterdir() if p.is_file()}
    for name in ("evaluation.json", "submission.csv", "detections.json"):
        (workdir / name).unlink()
    done = command(f"--workdir={workdir}", "--mode=evaluate")
    assert done.code == 0, done.stderr
    done = command(f"--workdir={workdir}", "--mode=predict")
    assert done.code == 0, done.stderr
    for name in ("evaluation.json", "submission.csv", "detections.json"):
        assert (workdir / name).read_bytes() == before[name]
    done = command(
        f"--workdir={workdir}", "--mode=evaluate", "--checkpoint=best", "--ground_truth=raw"
    )
    assert done.code == 0, done.stderr
    scores = json.loads((workdir / "evaluation.json").read_text())
    assert scores["ground_truth"] == "raw" and scores["checkpoint"] in (2, 3)
    done = command(f"--workdir={workdir}", "--mode=evaluate", "--checkpoint=77")
    assert done.code == 2 and "--checkpoint=77" in done.stderr


def test_the_best_checkpoint_is_the_best_by_what_the_config_names(trained, tmp_path):
    """By mAP@0.4, as before, for a run that is older than the field."""
    workdir = copy_of(trained[0], tmp_path)
    lines = [{"step": 2, "mAP@0.4": 0.9, "AUC": 0.1}, {"step": 3, "mAP@0.4": 0.1, "AUC": 0.9}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def best(**fields):
        config = configs.of_run(workdir, retina.get_fields())
        config.evaluation.update(fields)
        return load_detector(config, workdir, "best", 14).step

    assert best() == 3 and best(best_by="mAP@0.4") == 2
    record = json.loads((workdir / "config.json").read_text())
    assert record["evaluation"].pop("best_by") == "AUC"
    (workdir / "config.json").write_text(json.dumps(record))
    assert best() == 2 and best(best_by="AUC") == 3
    with pytest.raises(InputError, match="--checkpoint=best: no evaluation of .* has wAFROC"):
        best(best_by="wAFROC")


def test_a_field_of_a_run_can_be_overridden_without_a_config(trained, tmp_path):
    workdir = copy_of(trained[0], tmp_path)
    flags = [f"--workdir={workdir}", "--mode=evaluate"]
    done = command(*flags, "--config.evaluation.ground_truth=nms@0.5")
    assert done.code == 0, done.stderr
    assert json.loads((workdir / "evaluation.json").read_text())["ground_truth"] == "nms@0.5"
    done = command(*flags, "--config.data.image_size=128")
    assert done.code == 2 and "config.data.image_size: 128, but the run in" in done.stderr


def test_a_workdir_is_of_one_run(trained, tiny, tmp_path):
    """Another fold would be trained on, or scored, with images that the model has seen."""
    workdir = copy_of(trained[0], tmp_path)
    before = {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    for arguments in (
        ["--config.data.fold=1"],
        ["--config.data.fold=1", "--mode=evaluate"],
        ["--config.seed=1"],
        ["--config.train.learning_rate=0.5"],
        ["--config.loss.box=l1"],
        ["--config.data.fusion=raw"],
        ["--config.data.image_size=128", "--mode=predict"],
        ["--config.model.anchor_scales=(1.0,2.0)", "--mode=predict"],
    ):
        done = command(*tiny, f"--workdir={workdir}", *arguments)
        field = arguments[0].partition("=")[0].removeprefix("--")
        assert done.code == 2 and f"{field}: " in done.stderr and "but the run in" in done.stderr
    assert {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()} == before


def test_predict_on_a_folder_with_and_without_sizes(trained, kaggle_folder, tmp_path):
    """The test split's own pictures, resized ones of known size: the same boxes."""
    workdir, _ = trained
    common = [f"--workdir={workdir}", "--mode=predict"]
    done = command(
        *common, f"--images={kaggle_folder}/test", f"--meta={kaggle_folder}/test_meta.csv",
        f"--output={tmp_path}/meta.csv",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    split = pd.read_csv(workdir / "submission.csv").set_index("image_id").PredictionString
    meta = pd.read_csv(tmp_path / "meta.csv").set_index("image_id").PredictionString
    assert meta.index.tolist() == [f"test{i:02}" for i in range(6)]
    assert meta.to_dict() == split.to_dict()
    results = json.loads((tmp_path / "meta.json").read_text())
    assert {row["image_id"] for row in results} == set(meta.index)

    done = command(*common, f"--images={kaggle_folder}/test/test01.png", f"--output={tmp_path}/own")
    assert done.code == 0, done.stderr
    own = pd.read_csv(tmp_path / "own/submission.csv").PredictionString[0]
    own = np.array(own.split(), float).reshape(-1, 6)[:-1]
    same = np.array(meta["test01"].split(), float).reshape(-1, 6)[:-1]
    np.testing.assert_allclose(own[:, 2:] * [1.5, 2, 1.5, 2], same[:, 2:], atol=0.02)


def test_predict_goes_on_past_a_broken_picture(trained, kaggle_folder, tmp_path):
    """The others are predicted; the broken one is named, and the exit code is 2."""
    folder = shutil.copytree(kaggle_folder / "test", tmp_path / "pictures")
    (folder / "broken.png").write_bytes((folder / "test01.png").read_bytes()[:3000])
    done = command(
        f"--workdir={trained[0]}",
        "--mode=predict",
        f"--images={folder}",
        f"--output={tmp_path}/x.csv",
    )
    assert done.code == 2
    assert "broken.png" in done.stderr and "1 of 7 pictures could not be read" in done.stderr
    assert len(pd.read_csv(tmp_path / "x.csv")) == 6


@pytest.mark.parametrize("at", ["draw", "_put"])
def test_a_signal_leaves_all_that_predict_writes_or_nothing(
    trained, kaggle_folder, tmp_path, monkeypatch, at
):
    """While films are drawn nothing is there yet; in the midst of writing, it waits."""
    function, number = getattr(overlays, at), iter([signal.SIGINT])

    def stop(*args):
        os.kill(os.getpid(), next(number, 0))
        return function(*args)

    monkeypatch.setattr(overlays, at, stop)
    output = tmp_path / "out"
    done = command(
        f"--workdir={trained[0]}", "--mode=predict", f"--images={kaggle_folder}/test",
        f"--output={output}",
    )  # fmt: skip
    assert done.code == 130 and "Traceback" not in done.stderr
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert len(files) == (0 if at == "draw" else 2 + 6) and not list(tmp_path.glob("**/.*"))


def test_predict_names_what_is_wrong(trained, kaggle_folder, tmp_path):
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("a.JPG", "a.k.png", "a.png"):  # in this order: the two are no neighbours
        Image.new("L", (8, 8)).save(twice / name)
    (twice / "._b.png").write_bytes(b"what macOS leaves")
    (tmp_path / "empty").mkdir()
    output = tmp_path / "out.csv"
    for arguments, named in (
        ([f"--images={twice}"], "2 files are named a"),
        ([f"--images={tmp_path}/empty"], "no picture there"),
        (["--images=/nowhere"], "/nowhere"),
        ([f"--images={kaggle_folder}/test", f"--meta={kaggle_folder}/train_meta.csv"], "test00"),
        ([f"--meta={kaggle_folder}/test_meta.csv"], "--meta, --overlays: go with --images"),
    ):
        done = command(
            f"--workdir={trained[0]}", "--mode=predict", *arguments, f"--output={output}"
        )
        assert done.code == 2 and named in done.stderr
        assert not output.exists()


def test_inverted_pictures_are_named_and_inverted_when_asked(trained, kaggle_folder, tmp_path):
    """As MONOCHROME1 comes out where nobody has inverted it."""
    folder = shutil.copytree(kaggle_folder / "test", tmp_path / "pictures")
    negative = 255 - np.asarray(Image.open(folder / "test01.png"))
    Image.fromarray(negative).save(folder / "test01.png")
    common = [f"--workdir={trained[0]}", "--mode=predict", f"--images={folder}"]
    as_it_was = command(*common[:2], f"--images={kaggle_folder}/test", f"--output={tmp_path}/0.csv")
    warned = command(*common, f"--output={tmp_path}/1.csv")
    mended = command(*common, "--invert", f"--output={tmp_path}/2.csv")
    assert as_it_was.code == warned.code == mended.code == 0
    assert "warning" not in as_it_was.stderr
    assert "warning: test01 look inverted" in warned.stderr and "--invert" in warned.stderr
    was, negative, mended = (
        pd.read_csv(tmp_path / f"{i}.csv").set_index("image_id").PredictionString for i in range(3)
    )
    assert (was.drop("test01") == negative.drop("test01")).all()
    assert (was.drop("test01") == mended.drop("test01")).all()
    # The score of "No finding", which comes last; shrinking rounds to whole grey levels.
    was, negative, mended = (float(x["test01"].split()[-5]) for x in (was, negative, mended))
    assert abs(mended - was) < abs(negative - was) / 10


PHANTOM = ["--config=configs/phantom.py", "--workdir=w"]


@pytest.mark.parametrize(
    "arguments,named",
    [
        (["--mode=dance"], "--mode=dance"),
        (["--nope=1"], "nope"),
        (["--config=configs/none.py", "--workdir=w"], "configs/none.py"),
        (["--workdir=w"], "--config: needed"),
        (["--workdir=w", "--mode=evaluate"], "there is no run in"),
        (["--config=configs/phantom.py"], "--workdir"),
        (["--config=configs/retina.py:99", "--workdir=w"], "99"),
        ([*PHANTOM, "--config.data.fold=x"], "data.fold"),
        ([*PHANTOM, "--config.data.flod=1"], "data.flod"),
        ([*PHANTOM, "--config.data.flod=None"], "data.flod"),
        ([*PHANTOM, "--config.train.steps=0"], "train.steps"),
        ([*PHANTOM, "--config.train.steps=None"], "train.steps: None has no meaning here"),
        ([*PHANTOM, "--config.model.backbone.depth=20"], "model.backbone.depth: 20 is not one of"),
        ([*PHANTOM, "--config.model.anchor_scales=()"], "config.model.anchor_scales"),
        (["--config=configs/phantom.py", "--workdir=/dev/null"], "/dev/null"),
        ([*PHANTOM, "--mode=evaluate"], "train first"),
        ([*PHANTOM, "--config.model.num_scales=9"], "between 1 and 6"),
        ([*PHANTOM, "--config.data.fusion=x"], "'x'"),
        ([*PHANTOM, "--config.data.eval_split=test"], "config.data.eval_split: 'test'"),
        ([*PHANTOM, "--config.model.levels=(3.5,5)"], "config.model.levels"),
        ([*PHANTOM, "--config.evaluation.batch_size=6"], "config.evaluation.batch_size: 6"),
        ([*PHANTOM, "--config.data.groups=no.csv:patient"], "config.data.groups"),
        ([*PHANTOM, "--images=x"], "--images: --mode=train does not use it"),
        ([*PHANTOM, "--mode=evaluate", "--output=x"], "--output: --mode=evaluate does not use it"),
        (["--mode=score", "--output=x"], "--output: --mode=score does not use it"),
        (["--mode=score", *PHANTOM], "--mode=score does not use it"),
        (["--mode=score", "--bootstrap=-5"], "--bootstrap"),
        (["--mode=score", "--submission=s.csv"], "--annotations"),
        (["--mode=score", "--annotations=none.csv", "--submission=s.csv"], "none.csv"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, named, tmp_path, data_dir):
    arguments = [a.replace("=w", f"={tmp_path}/w") for a in arguments]
    if "--config=configs/phantom.py" in arguments and "--mode=score" not in arguments:
        arguments += [f"--config.data.dir={data_dir}", "--config.data.name=tfds_vinbig/256"]
    done = command(*arguments)
    assert done.code == 2
    assert len(done.stderr.splitlines()) == 1 and named in done.stderr, done.stderr
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_none_can_be_said_on_the_command_line(tiny, tmp_path):
    done = command(
        *tiny, f"--workdir={tmp_path}", "--config.data.normal_share=None",
        "--config.model.levels=None", "--config.train.steps=1",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["data"]["normal_share"] is None
    assert "model.levels" in record["run"]["planned"] and len(record["model"]["levels"]) == 5


def test_a_config_of_ones_own_with_a_misspelt_field(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "from configs import retina\n"
        "def get_config():\n"
        "    config = retina.get_config()\n"
        "    config.train.unlock(); config.train.learnig_rate = 1.0\n"
        "    return config\n"
    )
    done = command(f"--config={own}", f"--workdir={tmp_path}/w")
    assert done.code == 2 and "config.train.learnig_rate" in done.stderr


def test_as_a_process_it_ends_with_the_exit_code(tmp_path):
    done = subprocess.run(
        [sys.executable, "run.py", "--nope"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_what_is_slow_to_import_waits_for_the_first_line(tmp_path):
    until_it_draws = """if True:
        import os, sys, run
        from tfds_vinbig import drawn

        def draw(folder):
            print(*sorted({"grain", "orbax", "pandas", "tensorflow_datasets"} & set(sys.modules)))
            sys.stdout.flush()
            os._exit(0)

        drawn.drawn_phantom = draw
        run.run(sys.argv)
        """
    folders = f"--workdir={tmp_path}/w", f"--config.data.dir={tmp_path}"
    flags = "--config=configs/phantom.py", *folders
    done = subprocess.run(
        [sys.executable, "-c", until_it_draws, *flags], cwd=ROOT, capture_output=True, text=True
    )
    first, imported = done.stdout.splitlines()
    assert first == f"drawing the phantom for {tmp_path}/tfds_vinbig/phantom" and not imported
