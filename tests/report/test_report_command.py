"""The pages, and two runs side by side, from the command line."""

import json
import shutil

import pandas as pd
import pytest
from ml_collections import ConfigDict

from jaxdet.data import splits
from jaxdet.data.batches import fuse_readers
from jaxdet.data.dataset import fingerprint_of_ids
from tests.conftest import command
from tests.report.test_report import galleries, read


def changed_copy(workdir, folder, **data):
    """A run with the same weights that says other things of its data."""
    folder = shutil.copytree(workdir, folder)
    record = json.loads((folder / "config.json").read_text())
    record["data"] |= data
    (folder / "config.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def other(trained, tmp_path):
    """A run on the same images, which it sees at half the size."""
    return changed_copy(trained[0], tmp_path / "other", image_size=32)


def test_a_trained_run_has_a_report(trained):
    workdir, _ = trained
    html = (workdir / "report.html").read_text()
    scores = json.loads((workdir / "evaluation.json").read_text())
    found = read(html)
    assert {"classes", "films", "training", "run"} <= set(found.sections)
    assert f"checkpoint {scores['checkpoint']}" in html and scores["split"] in html
    run = json.loads((workdir / "config.json").read_text())["run"]
    assert run["dataset"] in html and "&#34;head_channels&#34;: 16" in html and "jaxlib 0." in html
    (gallery,) = galleries(html)
    assert 0 < len(gallery["films"]) <= scores["num_images"]
    assert set(scores["95% interval"]["AP"]) == set(scores["AP"])


def test_what_readers_can_is_inferred_from_the_training_images_alone(trained, sets, dataset):
    """readers.csv counts their rows, and the report has it."""
    workdir, _ = trained
    table = pd.read_csv(workdir / "readers.csv")
    rows = sets[0].annotations
    drawn = rows.labels < dataset.num_classes
    assert table.drawn.sum() == drawn.sum() < (dataset.annotations.labels < 14).sum()
    assert (table.films == len(sets[0])).all() and set(table.reader) == set(rows.readers)
    text = fuse_readers(sets[0], "skill@0.4").skills.to_csv(dataset.class_names)
    assert text == (workdir / "readers.csv").read_text()
    found = read((workdir / "report.html").read_text())
    assert "readers" in found.sections
    start = found.cells.index("true share")
    name = table["class"][0]
    _, drew, recall, *_ = found.cells[found.cells.index(name, start) :]
    assert int(drew) == table.drawn[0] and float(recall) == round(table.recall[0], 2)


def test_two_runs_side_by_side(trained, other, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "copy")
    before = json.loads((workdir / "evaluation.json").read_text())
    done = command(f"--workdir={workdir}", "--mode=evaluate", f"--against={other}")
    assert done.code == 0, done.stderr
    assert f"difference from {other}" in done.stdout
    scores = json.loads((workdir / "evaluation.json").read_text())
    against = scores.pop("against")
    assert scores == before
    alone = command(f"--workdir={other}", "--mode=evaluate")
    assert alone.code == 0, alone.stderr
    theirs = json.loads((other / "evaluation.json").read_text())
    for name in ("mAP@0.4", "mAP14@0.4", "mAP@0.5", "mAP@0.75", "mAP@0.5:0.95"):
        assert against["scores"][name] == pytest.approx(theirs[name])
        assert against["difference"][name] == pytest.approx(scores[name] - theirs[name])
        low, high = against["95% interval"][name]
        assert low <= against["difference"][name] <= high or low == high
    html = (workdir / "report.html").read_text()
    assert read(html).sections[0] == "against"
    (gallery,) = galleries(html)
    assert gallery["groups"][-1] == "Differ most"
    assert [layer["key"] for layer in gallery["layers"]][-1] == "other"
    assert any(film["boxes"]["other"] for film in gallery["films"])


def test_a_run_on_other_images_is_no_comparison(trained, dataset, tmp_path):
    fold1 = changed_copy(trained[0], tmp_path / "fold1", fold=1)
    record = json.loads((fold1 / "config.json").read_text())
    folds = splits.fold_of_images(ConfigDict(record["data"]), dataset)
    record["run"]["training_images"] = fingerprint_of_ids(dataset.ids[folds != 1])
    (fold1 / "config.json").write_text(json.dumps(record))
    workdir = shutil.copytree(trained[0], tmp_path / "copy")
    files = {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    for against, named in (
        (fold1, "is evaluated on other images"),
        (f"{tmp_path}/none", "no such file"),
        ("", "--against: needs a path"),
    ):
        done = command(f"--workdir={workdir}", "--mode=evaluate", f"--against={against}")
        assert done.code == 2 and named in done.stderr and len(done.stderr.splitlines()) == 1
    assert files == {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()}


@pytest.fixture
def files(trained, kaggle_folder, tmp_path):
    """Annotations of ten images, and two submissions on them: the truth, and worse."""
    rows = pd.read_csv(kaggle_folder / "train.csv")
    rows = rows[rows.image_id.isin(sorted(set(rows.image_id))[:10])]
    rows.to_csv(tmp_path / "truth.csv", index=False)
    for name, shift in (("good", 0), ("bad", 40)):
        lines = []
        for image, found in rows[rows.rad_id == "R1"].groupby("image_id"):
            words = ["14 0.3 0 0 1 1"]
            words += [f"{r.class_id} 0.8 {r.x_min + shift} {r.y_min} {r.x_max + shift} {r.y_max}"
                      for r in found.itertuples() if r.class_id != 14]  # fmt: skip
            lines.append((image, " ".join(words)))
        lines = lines[::-1] if name == "bad" else lines
        table = pd.DataFrame(lines, columns=["image_id", "PredictionString"])
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


def test_a_submission_beside_another_with_a_report(files):
    common = ["--mode=score", f"--annotations={files}/truth.csv", f"--submission={files}/good.csv"]
    plain = command(*common)
    done = command(
        *common, f"--against={files}/bad.csv", f"--report={files}/pages/page.html", "--bootstrap=50"
    )
    assert done.code == plain.code == 0, done.stderr
    scores = json.loads(done.stdout)
    against = scores.pop("against")
    alone = command(*common[:2], f"--submission={files}/bad.csv")
    bad = json.loads(alone.stdout)
    assert against["scores"]["AP"] == bad["AP"]
    difference = scores["mAP@0.4"] - bad["mAP@0.4"]
    assert against["difference"]["mAP@0.4"] == pytest.approx(difference) and difference > 0
    assert {key: scores[key] for key in json.loads(plain.stdout)} == json.loads(plain.stdout)
    html = (files / "pages/page.html").read_text()
    found = read(html)
    assert found.sections[0] == "against" and "films" not in found.sections
    assert "good.csv" in html and not galleries(html)


def test_submissions_on_other_images_are_no_comparison(files):
    lines = (files / "bad.csv").read_text().splitlines()
    (files / "fewer.csv").write_text("\n".join(lines[:-1]) + "\n")
    done = command(
        "--mode=score", f"--annotations={files}/truth.csv", f"--submission={files}/good.csv",
        f"--against={files}/fewer.csv", f"--report={files}/page.html",
    )  # fmt: skip
    assert done.code == 2 and done.stdout == "" and not (files / "page.html").exists()
    assert "fewer.csv" in done.stderr and len(done.stderr.splitlines()) == 1


def test_inspect_writes_the_page_and_nothing_else(tiny, trained, tmp_path):
    """Before training, with anchors that are planned; and of a run, with its own."""
    done = command(*tiny, f"--workdir={tmp_path}/new", "--mode=inspect")
    assert done.code == 0, done.stderr
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["data.html"]
    assert "training boxes at IoU 0.5" in done.stdout and "data.html" in done.stdout
    workdir = shutil.copytree(trained[0], tmp_path / "copy")
    done = command(f"--workdir={workdir}", "--mode=inspect")
    assert done.code == 0, done.stderr
    anchors = json.loads((workdir / "config.json").read_text())["model"]["anchor_scales"]
    assert f"anchors of {tuple(anchors)} strides" in (workdir / "data.html").read_text()
    done = command(f"--workdir={workdir}", "--mode=inspect", "--config.seed=3")
    assert done.code == 2 and "config.seed" in done.stderr
