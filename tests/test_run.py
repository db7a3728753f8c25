"""The command line as its users and their scripts meet it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
TINY = [
    "--config=configs/phantom.py", "--config.data.name=tfds_vinbig/256",
    "--config.data.image_size=64", "--config.data.max_boxes=4", "--config.model.width=8",
    "--config.model.fpn_channels=16", "--config.model.head_channels=16",
    "--config.model.head_depth=1", "--config.model.levels=(4,5)", "--config.train.batch_size=4",
    "--config.train.steps=3", "--config.train.warmup_steps=1", "--config.train.evaluate_every=2",
    "--config.train.log_every=1", "--config.evaluation.batch_size=4",
    "--config.inference.score_threshold=0.0",
]  # fmt: skip


def run(*arguments):
    return subprocess.run(
        [sys.executable, "run.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """A workdir after --mode=train, and what was printed."""
    workdir = tmp_path_factory.mktemp("run")
    done = run(*TINY, f"--config.data.dir={data_dir}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_train_leaves_every_file_of_the_contract(trained):
    workdir, done = trained
    assert {path.name for path in workdir.iterdir()} >= {
        "checkpoints", "config.json", "metrics.jsonl", "evaluation.json", "submission.csv",
        "detections.png",
    }  # fmt: skip
    scores = json.loads((workdir / "evaluation.json").read_text())
    assert list(scores) == [
        "mAP@0.4", "mAP14@0.4", "AP", "mAP@0.5", "mAP@0.75", "num_images", "ground_truth",
        "FROC", "95% interval",
    ]  # fmt: skip
    assert len(scores["AP"]) == 15 and scores["AP"]["Atelectasis"] is None
    assert scores["ground_truth"] == "wbf@0.4"
    assert "training boxes at IoU 0.5" in done.stdout and "mAP@0.4" in done.stdout
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    model = json.loads((workdir / "config.json").read_text())["model"]
    assert model["width"] == 8 and model["levels"] == [4, 5]
    # Not given, so planned.
    assert len(model["anchor_scales"]) == 2 and len(model["aspect_ratios"]) == 3
    assert list((workdir / "tensorboard").glob("events*"))


def test_two_processes_train_as_one(trained, data_dir, tmp_path):
    """As Slurm starts them: each loads half of every batch; together they write one run."""
    processes = []
    for i in range(2):
        environment = {
            "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2", "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i),
            "SLURM_STEP_NUM_NODES": "1", "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        }  # fmt: skip
        command = [sys.executable, "run.py", *TINY, f"--config.data.dir={data_dir}"]
        command += [f"--workdir={tmp_path}", "--distributed"]
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=os.environ | environment, stderr=subprocess.PIPE, text=True
            )
        )
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    one, two = (
        [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
        for workdir in (trained[0], tmp_path)
    )
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
    assert (tmp_path / "evaluation.json").exists() and (tmp_path / "submission.csv").exists()


def test_crossval_scores_every_training_image_once(data_dir, kaggle_folder, tmp_path):
    common = [*TINY, f"--config.data.dir={data_dir}", f"--workdir={tmp_path}", "--mode=crossval"]
    done = run(*common, "--config.data.num_folds=2")
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "evaluation.json").read_text())
    parts = [json.loads((tmp_path / f"fold{k}/evaluation.json").read_text()) for k in (0, 1)]
    assert scores["num_images"] == sum(part["num_images"] for part in parts) == 30
    train = pd.read_csv(kaggle_folder / "train.csv")
    assert set(pd.read_csv(tmp_path / "out_of_fold.csv").image_id) == set(train.image_id)
    again = run(
        "--mode=score", f"--annotations={kaggle_folder}/train.csv", "--ground_truth=wbf@0.4",
        f"--submission={tmp_path}/out_of_fold.csv", "--bootstrap=1000",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    # The file has two decimals of a pixel.
    got = json.loads(again.stdout)
    assert got["mAP@0.4"] == pytest.approx(scores["mAP@0.4"], abs=1e-3)
    assert got["95% interval"]["mAP@0.4"] == pytest.approx(
        scores["95% interval"]["mAP@0.4"], abs=0.05
    )
    wrong = run(*common, "--config.data.split=seed111")
    assert wrong.returncode == 2 and "config.data.split" in wrong.stderr


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


def test_evaluate_again_gives_the_same_and_ground_truth_can_be_raw(trained, data_dir):
    workdir, _ = trained
    before = json.loads((workdir / "evaluation.json").read_text())
    common = [*TINY, f"--config.data.dir={data_dir}", f"--workdir={workdir}", "--mode=evaluate"]
    assert run(*common, "--checkpoint=3").returncode == 0
    assert json.loads((workdir / "evaluation.json").read_text()) == before
    done = run(*common, "--checkpoint=best", "--ground_truth=raw")
    assert done.returncode == 0, done.stderr
    assert json.loads((workdir / "evaluation.json").read_text())["ground_truth"] == "raw"
    wrong = run(*common, "--checkpoint=77")
    assert wrong.returncode == 2 and "--checkpoint=77" in wrong.stderr


def test_predict_on_a_folder_with_and_without_sizes(trained, data_dir, kaggle_folder, tmp_path):
    """The test split's own pictures, resized ones of known size: the same boxes."""
    workdir, _ = trained
    common = [*TINY, f"--config.data.dir={data_dir}", f"--workdir={workdir}", "--mode=predict"]
    images = f"--images={kaggle_folder}/test"
    done = run(
        *common, images, f"--meta={kaggle_folder}/test_meta.csv", f"--output={tmp_path}/meta.csv"
    )
    assert done.returncode == 0, done.stderr
    split = pd.read_csv(workdir / "submission.csv").set_index("image_id").PredictionString
    meta = pd.read_csv(tmp_path / "meta.csv").set_index("image_id").PredictionString
    assert meta.index.tolist() == [f"test{i:02}" for i in range(6)]
    assert meta.to_dict() == split.to_dict()

    done = run(*common, f"--images={kaggle_folder}/test/test01.png", f"--output={tmp_path}/own.csv")
    assert done.returncode == 0, done.stderr
    own = np.array(pd.read_csv(tmp_path / "own.csv").PredictionString[0].split(), float)
    own, same = own.reshape(-1, 6)[:-1], np.array(meta["test01"].split(), float).reshape(-1, 6)[:-1]
    np.testing.assert_allclose(own[:, 2:] * [1.5, 2, 1.5, 2], same[:, 2:], atol=0.02)


def test_predict_names_what_is_wrong(trained, data_dir, kaggle_folder, tmp_path):
    workdir, _ = trained
    common = [*TINY, f"--config.data.dir={data_dir}", f"--workdir={workdir}", "--mode=predict"]
    (tmp_path / "broken.png").write_bytes((kaggle_folder / "test/test01.png").read_bytes()[:3000])
    meta = f"--meta={kaggle_folder}/train_meta.csv"
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("a.JPG", "a.k.png", "a.png"):  # in this order: the two are no neighbours
        Image.new("L", (8, 8)).save(twice / name)
    (twice / "._b.png").write_bytes(b"what macOS leaves")
    for arguments, named in (
        ([f"--images={twice}"], "2 files are named a"),
        ([f"--images={tmp_path}"], "broken.png"),
        (["--images=/nowhere"], "/nowhere"),
        ([f"--images={kaggle_folder}/test", meta], "test00"),
    ):
        output = tmp_path / "out.csv"
        done = run(*common, *arguments, f"--output={output}")
        assert done.returncode == 2 and named in done.stderr.splitlines()[-1]
        assert not output.exists()


def test_score_counts_by_the_rule(tmp_path):
    """Two images, worked by hand: one normal, one with two nodules and a wide heart."""
    (tmp_path / "train.csv").write_text(
        "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
        "a,Nodule/Mass,8,R1,0,0,10,10\n"
        "a,Nodule/Mass,8,R1,50,50,60,60\n"
        "a,Cardiomegaly,3,R2,0,0,100,40\n"
        "b,No finding,14,R1,,,,\n"
        "b,No finding,14,R2,,,,\n"
    )
    (tmp_path / "s.csv").write_text(
        "image_id,PredictionString\n"
        "a,8 0.9 0 0 10 9 8 0.8 0 0 10 10 8 0.7 50 50 60 60 14 0.2 0 0 1 1 3 0.5 0 0 100 16\n"
        "b,14 0.9 0 0 1 1 8 0.75 5 5 9 9\n"
    )
    done = run(
        "--mode=score", f"--annotations={tmp_path}/train.csv", f"--submission={tmp_path}/s.csv"
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    # Nodules by score: hit, the same again, false, hit. Precision 1 at recall 1/2, then 2/4.
    assert scores["AP"]["Nodule/Mass"] == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    assert scores["AP"]["Cardiomegaly"] == 0.0  # IoU is 0.4 and must be above
    assert scores["AP"]["No finding"] == 1.0  # twice said, once counted
    assert scores["mAP@0.4"] == pytest.approx((0.75 + 0 + 1) / 3)
    assert scores["mAP14@0.4"] == pytest.approx(0.75 / 2)
    assert scores["num_images"] == 2 and scores["ground_truth"] == "raw"


def test_score_of_a_split_of_the_truth(tmp_path):
    """With a column `split`, the splits that the submission is about."""
    (tmp_path / "truth.csv").write_text(
        "image_id,split,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
        "a,train,Cardiomegaly,3,truth,0,0,100,40\n"
        "b,test,Cardiomegaly,3,truth,0,0,100,40\n"
        "c,test,Cardiomegaly,3,truth,0,0,100,40\n"
    )
    (tmp_path / "s.csv").write_text("image_id,PredictionString\nb,3 1 0 0 100 40\n")
    done = run(
        "--mode=score", f"--annotations={tmp_path}/truth.csv", f"--submission={tmp_path}/s.csv"
    )
    scores = json.loads(done.stdout)
    assert scores["num_images"] == 2 and scores["mAP@0.4"] == 0.5
    assert "1 annotated images are not in the submission" in done.stderr


def test_score_counts_images_without_annotations(tmp_path):
    """Their boxes are false positives, and they are images to draw samples from."""
    (tmp_path / "train.csv").write_text(
        "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
        "a,Cardiomegaly,3,R1,0,0,100,40\n"
    )
    (tmp_path / "s.csv").write_text(
        "image_id,PredictionString\nb,3 1 0 0 9 9\nc,3 1 0 0 9 9\na,3 0.5 0 0 100 40\n"
    )
    done = run(
        "--mode=score", f"--annotations={tmp_path}/train.csv", f"--submission={tmp_path}/s.csv",
        "--bootstrap=50",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 images are not annotated" in done.stderr
    scores = json.loads(done.stdout)
    assert scores["num_images"] == 3 and scores["mAP@0.4"] == pytest.approx(1 / 3)
    assert scores["FROC"]["recall"] == [0, 0, 0, 1, 1, 1, 1]  # 2 / 3 an image
    low, high = scores["95% interval"]["mAP@0.4"]
    # A sample with "a" once has it behind two others; one with "a" alone, behind none.
    assert low == pytest.approx(1 / 3) and high == 1


def test_a_workdir_is_of_one_run(trained, data_dir):
    """Another fold would be trained on, or scored, with images that the model has seen."""
    workdir, _ = trained
    before = {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    common = [*TINY, f"--config.data.dir={data_dir}", f"--workdir={workdir}"]
    for arguments, named in (
        (["--config.data.fold=1"], "config.data.fold: 1, but the run in"),
        (["--config.data.fold=1", "--mode=evaluate"], "config.data.fold: 1, but the run in"),
        (["--config.seed=1"], "config.seed: 1, but the run in"),
        (
            ["--config.model.anchor_scales=(1.0,2.0)", "--mode=predict"],
            "config.model.anchor_scales",
        ),
    ):
        done = run(*common, *arguments)
        assert done.returncode == 2 and named in done.stderr.splitlines()[-1], done.stderr
    assert {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()} == before
    done = run(*common, "--mode=evaluate", "--config.data.fold=1", "--config.data.eval_split=train")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments,named",
    [
        (["--mode=dance"], "--mode=dance"),
        (["--nope=1"], "nope"),
        (["--config=configs/none.py", "--workdir=w"], "configs/none.py"),
        (["--workdir=w"], "--config"),
        (["--config=configs/phantom.py"], "--workdir"),
        (["--config=configs/retina.py:99", "--workdir=w"], "99"),
        (["--config=configs/phantom.py", "--config.data.fold=x", "--workdir=w"], "data.fold"),
        (["--config=configs/phantom.py", "--config.data.flod=1", "--workdir=w"], "data.flod"),
        (["--config=configs/phantom.py", "--config.train.steps=0", "--workdir=w"], "train.steps"),
        (["--config=configs/phantom.py", "--config.model.depth=20", "--workdir=w"], "model.depth"),
        (
            ["--config=configs/phantom.py", "--config.model.anchor_scales=()", "--workdir=w"],
            "config.model.anchor_scales",
        ),
        (["--config=configs/phantom.py", "--workdir=/dev/null"], "/dev/null"),
        (["--config=configs/phantom.py", "--mode=evaluate", "--workdir=w"], "train first"),
        (["--config=configs/phantom.py", "--config.model.num_scales=9", "--workdir=w"], "1..6"),
        (["--config=configs/phantom.py", "--config.data.fusion=x", "--workdir=w"], "'x'"),
        (
            ["--config=configs/phantom.py", "--config.model.levels=(3.5,5)", "--workdir=w"],
            "config.model.levels",
        ),
        (
            ["--config=configs/phantom.py", "--config.model.num_classes=20", "--workdir=w"],
            "config.model.num_classes",
        ),
        (["--mode=score", "--bootstrap=-5"], "--bootstrap"),
        (["--mode=score", "--submission=s.csv"], "--annotations"),
        (["--mode=score", "--annotations=none.csv", "--submission=s.csv"], "none.csv"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, named, tmp_path, data_dir):
    arguments = [a.replace("=w", f"={tmp_path}/w") for a in arguments]
    if "--config=configs/phantom.py" in arguments:
        arguments += [f"--config.data.dir={data_dir}", "--config.data.name=tfds_vinbig/256"]
    done = run(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and named in done.stderr, done.stderr
    assert not (tmp_path / "w").exists()


def test_a_config_of_ones_own_with_a_misspelt_field(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from configs import retina\n"
        "def get_config():\n"
        "    config = retina.get_config()\n"
        "    config.train.unlock(); config.train.learnig_rate = 1.0\n"
        "    return config\n"
    )
    done = run(f"--config={own}", f"--workdir={tmp_path}/w")
    assert done.returncode == 2 and "config.train.learnig_rate" in done.stderr
