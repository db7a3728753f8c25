import ast
import json
import os
import shutil
import subprocess
import sys

import jax.export
import numpy as np
import pytest
from PIL import Image

from jaxdet.inference.detector import load_detector, to_table
from jaxdet.runs import workdir
from jaxdet.runs.config import of_run
from tests.conftest import command


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """What --mode=export writes, and the run's own detector."""
    from configs import retina

    output = tmp_path_factory.mktemp("out") / "export"
    done = command(f"--workdir={trained[0]}", "--mode=export", f"--output={output}")
    assert done.code == 0, done.stderr
    assert "for cpu, cuda, tpu" in done.stdout
    loaded = load_detector(of_run(trained[0], retina.get_fields()), trained[0], "latest", 14)
    return output, loaded


@pytest.mark.slow
def test_a_run_of_fcos_trains_reports_and_exports(tiny, tmp_path):
    """The other detector, by its name alone."""
    run = tmp_path / "run"
    flags = ["--config.model.name=fcos", "--config.train.steps=2"]
    done = command(*tiny, *flags, f"--workdir={run}")
    assert done.code == 0, done.stderr
    assert "FCOS, levels P4, P5" in done.stdout
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert line["centerness_loss"] > 0 and line["boxes_without_location"] >= 0
    assert "centerness_loss" in (run / "report.html").read_text()
    done = command(f"--workdir={run}", "--mode=export", f"--output={tmp_path}/out")
    assert done.code == 0, done.stderr
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "FCOS, levels P4, P5" in card and "matched by" not in card


@pytest.mark.parametrize("batch", [1, 5])
def test_the_artifact_detects_as_the_run_does(exported, batch):
    output, loaded = exported
    detector = jax.export.deserialize((output / "detector.bin").read_bytes())
    assert detector.platforms == ("cpu", "cuda", "tpu") and detector.nr_devices == 1
    images = np.random.default_rng(0).integers(0, 255, (batch, 64, 64), np.uint8)
    own = loaded.detector.detect_all(loaded.weights, images.__getitem__, batch)
    got = detector.call(images)
    assert own.mask.sum() > 10 * batch
    for name in own._fields:
        np.testing.assert_allclose(got[name], getattr(own, name), rtol=1e-5, atol=1e-5)


def test_the_example_needs_no_jaxdet(exported, tmp_path):
    """Run in a process where jaxdet and its libraries cannot be imported: the same boxes."""
    output, loaded = exported
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (100, 80), np.uint8))
    picture.save(tmp_path / "film.png")
    for name in ("jaxdet", "flax", "ml_collections", "orbax", "tensorflow_datasets"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')")
    done = subprocess.run(
        [sys.executable, str(output / "example.py"), str(tmp_path / "film.png")],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "XLA_FLAGS": ""}, cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pixels = np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR))
    own = loaded.detector.detect_all(loaded.weights, lambda _: pixels, 1)
    table = to_table(own, np.array([[100, 80]]), 64, 14)
    normal, *lines = done.stdout.splitlines()
    assert float(normal.removeprefix("No finding: ")) == pytest.approx(own.normal[0], abs=1e-5)
    assert len(lines) == len(table.image) - 1
    names = classes_of(output)
    for i, line in enumerate(lines):
        label, box, score = table.labels[i], table.boxes[i], table.scores[i]
        name, _, rest = line.partition(": ")
        words = rest.split()
        assert name == names[label]
        assert float(words[0]) == pytest.approx(score, abs=1e-5)
        np.testing.assert_allclose([float(x) for x in words[2:]], box, atol=2e-3)


def classes_of(output):
    """CLASSES of the example."""
    text = (output / "example.py").read_text()
    return ast.literal_eval(text.partition("CLASSES = ")[2].partition("\n")[0])


def test_the_card_says_what_the_run_says(exported, trained):
    output, _ = exported
    card = (output / "MODEL_CARD.md").read_text()
    scores = json.loads((trained[0] / "evaluation.json").read_text())
    _, run = workdir.read_config(trained[0])
    assert run.dataset in card and run.training_images in card
    assert "23 to train on, 7 to evaluate on (fold 0 of 5)" in card
    low, high = scores["95% interval"]["mAP@0.4"]
    assert f"| mAP@0.4 | {scores['mAP@0.4']:.3f} | {low:.3f} to {high:.3f} |" in card
    assert "| Atelectasis | - | - |" in card
    limits = card.partition("## Limits")[2]
    assert "No score for" in limits and "Atelectasis" in limits.partition("No score for")[2]
    assert "hardly any of: Cardiomegaly (0.0" in limits  # three steps teach nothing
    assert "not a medical device" in card and "drawings" not in card
    assert "not of the one exported" not in card and "None" not in card


def test_a_card_of_another_step_or_without_scores_says_so(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    done = command(f"--workdir={folder}", "--mode=export", "--checkpoint=2")
    assert done.code == 0, done.stderr
    card = (folder / "export/MODEL_CARD.md").read_text()
    assert "**Of step 3, not of the one exported.**" in card and ", step 2\n" in card
    assert "**Scored with other fields" not in card
    scores = json.loads((folder / "evaluation.json").read_text())
    scores["inference"]["tta"]["flip"] = True
    (folder / "evaluation.json").write_text(json.dumps(scores))
    assert command(f"--workdir={folder}", "--mode=export").code == 0
    assert "**Scored with other fields" in (folder / "export/MODEL_CARD.md").read_text()
    (folder / "evaluation.json").write_text("{}")
    done = command(f"--workdir={folder}", "--mode=export")
    assert done.code == 2 and "not an evaluation of this version" in done.stderr
    (folder / "evaluation.json").unlink()
    done = command(
        f"--workdir={folder}", "--mode=export", f"--config.data.dir={tmp_path}/elsewhere"
    )
    assert done.code == 0, done.stderr
    card = (folder / "export/MODEL_CARD.md").read_text()
    assert "Not evaluated" in card and "not counted" in card


def test_mistakes(trained, tmp_path):
    for arguments, named in (
        ([f"--workdir={tmp_path}/none"], "--config: needed"),
        ([f"--workdir={trained[0]}", "--checkpoint=77"], "--checkpoint=77"),
        ([f"--workdir={trained[0]}", "--output=/dev/null/x"], "/dev/null"),
    ):
        done = command("--mode=export", *arguments)
        assert done.code == 2 and named in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
