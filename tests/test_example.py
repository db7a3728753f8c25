"""The run that comes with the repository."""

import json

import numpy as np

from jaxdet.ops.boxes import iou
from tests.conftest import ROOT, command

LUNGS = ROOT / "examples" / "lungs"
# A radiologist's, for a film of a patient that the run was not trained on: see its card. Pixels of
# the original, of which film.png is a square of 256.
DRAWN = {"Right lung": (93, 42, 240, 319), "Left lung": (254, 36, 412, 313)}
WIDTH, HEIGHT = 479, 481


def test_it_finds_both_lungs_of_a_film(tmp_path):
    flags = ["--mode=predict", f"--images={LUNGS}/film.png", f"--output={tmp_path}"]
    done = command(f"--workdir={LUNGS}", *flags)
    assert done.code == 0, done.stderr
    assert (tmp_path / "overlays" / "film.png").is_file()
    found = json.loads((tmp_path / "detections.json").read_text())
    for name, box in DRAWN.items():
        best = max((x for x in found if x["category_name"] == name), key=lambda x: x["score"])
        x, y, width, height = best["bbox"]
        mine = np.array([x, y, x + width, y + height]) / 256
        drawn = np.array(box) / [WIDTH, HEIGHT, WIDTH, HEIGHT]
        assert best["score"] > 0.9 and iou(mine[None], drawn[None])[0] > 0.75


def test_it_is_small_and_names_where_it_comes_from():
    files = [path for path in LUNGS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6e6
    card = (LUNGS / "MODEL_CARD.md").read_text()
    assert "J. P. Cohen" in card and "General Blockchain" in card and "CC BY 4.0" in card
