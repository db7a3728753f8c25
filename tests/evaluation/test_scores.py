"""Scoring files, from the command line."""

import json

import pytest

from tests.conftest import command


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
    done = command(
        "--mode=score", f"--annotations={tmp_path}/train.csv", f"--submission={tmp_path}/s.csv"
    )
    assert done.code == 0, done.stderr
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
    done = command(
        "--mode=score", f"--annotations={tmp_path}/truth.csv", f"--submission={tmp_path}/s.csv"
    )
    scores = json.loads(done.stdout)
    assert scores["num_images"] == 2 and scores["mAP@0.4"] == 0.5
    assert "1 annotated images are not in the submission" in done.stderr
    box = {"image_id": "b", "category_id": 3, "bbox": [0, 0, 100, 40], "score": 1}
    (tmp_path / "s.json").write_text(json.dumps([box]))  # has no word on images of no finding
    same = command(
        "--mode=score", f"--annotations={tmp_path}/truth.csv", f"--submission={tmp_path}/s.json"
    )
    assert json.loads(same.stdout)["num_images"] == 2
    assert json.loads(same.stdout)["mAP@0.4"] == scores["mAP@0.4"]


def test_score_counts_images_without_annotations(tmp_path):
    """Their boxes are false positives, and they are images to draw samples from."""
    (tmp_path / "train.csv").write_text(
        "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
        "a,Cardiomegaly,3,R1,0,0,100,40\n"
    )
    (tmp_path / "s.csv").write_text(
        "image_id,PredictionString\nb,3 1 0 0 9 9\nc,3 1 0 0 9 9\na,3 0.5 0 0 100 40\n"
    )
    done = command(
        "--mode=score", f"--annotations={tmp_path}/train.csv", f"--submission={tmp_path}/s.csv",
        "--bootstrap=50",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert "2 images are not annotated" in done.stderr
    scores = json.loads(done.stdout)
    assert scores["num_images"] == 3 and scores["mAP@0.4"] == pytest.approx(1 / 3)
    assert scores["FROC"]["recall"] == [0, 0, 0, 1, 1, 1, 1]  # 2 / 3 an image
    low, high = scores["95% interval"]["mAP@0.4"]
    # A sample with "a" once has it behind two others; one with "a" alone, behind none.
    assert low == pytest.approx(1 / 3) and high == 1
