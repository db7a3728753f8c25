"""COCO JSON from annotations to scores: built, trained on, evaluated, and scored as files."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.conftest import TINY, command

NAMES = {7: "Mass", 3: "Effusion", 12: "Device"}  # in no order, with gaps
HEIGHT, WIDTH = 90, 160


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """40 pictures that are not square, a quarter without boxes; the JSON and the folder."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "images").mkdir()
    (folder / "more").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(40):
        picture = rng.normal(60, 8, (HEIGHT, WIDTH)).clip(0, 255).astype(np.uint8)
        for _ in range(i % 4):
            w, h = rng.integers(20, 60, 2)
            x, y = rng.integers(0, WIDTH - w), rng.integers(0, HEIGHT - h)
            picture[y : y + h, x : x + w] += 90
            category = int(rng.choice(list(NAMES)))
            box = [int(x), int(y), int(w), int(h)]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": 1000 + i, "category_id": category,
                 "bbox": box, "area": int(w * h), "iscrowd": 0}
            )  # fmt: skip
        Image.fromarray(picture).save(folder / "images" / f"film{i:02}.png")
        if i < 3:
            Image.fromarray(picture).save(folder / "more" / f"other{i}.png")
        images.append(
            {"id": 1000 + i, "file_name": f"film{i:02}.png", "height": HEIGHT, "width": WIDTH}
        )
    categories = [{"id": key, "name": name} for key, name in NAMES.items()]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(data))
    return folder


@pytest.mark.slow
def test_from_json_to_scores_with_its_own_classes(coco, tmp_path):
    from tfds_vinbig.__main__ import main

    with contextlib.redirect_stdout(io.StringIO()) as said:
        main([
            "--config=films", "--size=64", f"--coco={coco}/instances.json",
            f"--images={coco}/images", f"--test_images={coco}/more", f"--data_dir={tmp_path}",
        ])  # fmt: skip
    assert "--config.data.name=tfds_vinbig/films" in said.getvalue()
    # One reader: nobody's skill could be told.
    flags = [word for word in TINY if "data.name" not in word and "fusion" not in word]
    done = command(
        *flags, "--config.data.name=tfds_vinbig/films", f"--config.data.dir={tmp_path}",
        f"--workdir={tmp_path}/run",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    scores = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert list(scores["AP"]) == ["Effusion", "Mass", "Device", "No finding"]  # by category id
    assert "mAP3@0.4" in scores and "mAP14@0.4" not in scores
    record = json.loads((tmp_path / "run/config.json").read_text())["run"]
    assert record["class_names"] == ["Effusion", "Mass", "Device"]
    results = json.loads((tmp_path / "run/detections.json").read_text())
    assert {row["category_id"] for row in results} <= set(NAMES)
    assert max(row["bbox"][0] + row["bbox"][2] for row in results) > 90  # pixels of the originals

    # Pictures that the JSON knows come out by its ids, and are scored.
    done = command(
        f"--workdir={tmp_path}/run", "--mode=predict", f"--images={coco}/images",
        f"--meta={coco}/instances.json", f"--output={tmp_path}/all.csv",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    rows = json.loads((tmp_path / "all.json").read_text())
    assert {row["image_id"] for row in rows} == set(range(1000, 1040))
    done = command(
        "--mode=score", f"--annotations={coco}/instances.json", f"--submission={tmp_path}/all.json"
    )
    assert done.code == 0, done.stderr
    scored = json.loads(done.stdout)
    assert scored["num_images"] == 40

    # In a file where each class has the id of another they come out by its ids.
    data = json.loads((coco / "instances.json").read_text())
    other = {7: 3, 3: 12, 12: 7}
    for entry in data["categories"]:
        entry["id"] = other[entry["id"]]
    for entry in data["annotations"]:
        entry["category_id"] = other[entry["category_id"]]
    (tmp_path / "other.json").write_text(json.dumps(data))
    predict = (f"--workdir={tmp_path}/run", "--mode=predict", f"--images={coco}/images",
               f"--meta={tmp_path}/other.json", f"--output={tmp_path}/other.csv")  # fmt: skip
    done = command(*predict[:-1], f"--output={tmp_path}/by_other.csv")
    assert done.code == 0, done.stderr
    by_other = json.loads((tmp_path / "by_other.json").read_text())
    assert [row["category_id"] for row in by_other] == [other[row["category_id"]] for row in rows]
    for results in ("by_other.json", "by_other.csv", "all.json"):  # the last is told by its names
        done = command(
            "--mode=score", f"--annotations={tmp_path}/other.json",
            f"--submission={tmp_path}/{results}",
        )  # fmt: skip
        assert done.code == 0, done.stderr
        assert json.loads(done.stdout)["AP"] == pytest.approx(scored["AP"], abs=1e-6)
        assert ("not that of their category_name" in done.stderr) == (results == "all.json")
    data["categories"][0]["name"] = "Fracture"
    (tmp_path / "other.json").write_text(json.dumps(data))
    done = command(*predict)
    assert done.code == 2 and not (tmp_path / "other.csv").exists()
    assert done.stderr.endswith(
        "has no category 'Mass', a class of the run; it has Fracture, Device, Effusion\n"
    )


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_json_are_pycocotools_where_the_definitions_meet(coco, tmp_path, seed):
    """At each IoU, with recall in steps fine enough to be every recall; no box is overlapped by
    two of its class, where VOC and COCO take different ones, and no IoU is a threshold."""
    rng = np.random.default_rng(seed)
    truth = json.loads((coco / "instances.json").read_text())
    truth["annotations"] = [
        a for i, a in enumerate(truth["annotations"])
        if all(a["image_id"] != b["image_id"] or a["category_id"] != b["category_id"]
               for b in truth["annotations"][:i])
    ]  # fmt: skip
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    results = []
    for a in truth["annotations"]:
        for _ in range(rng.integers(0, 3)):
            box = np.array(a["bbox"]) + rng.normal(0, 6, 4)
            box[2:] = np.maximum(box[2:], 5)
            results.append(
                {"image_id": a["image_id"], "category_id": int(rng.choice([a["category_id"], 7])),
                 "bbox": box.tolist(), "score": float(rng.random())}
            )  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(results))
    done = command(
        "--mode=score", f"--annotations={tmp_path}/truth.json",
        f"--submission={tmp_path}/results.json",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    ours = json.loads(done.stdout)

    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(tmp_path / "truth.json"))
        judge = COCOeval(gt, gt.loadRes(str(tmp_path / "results.json")), "bbox")
        judge.params.iouThrs = np.array([0.4, 0.5, 0.75])
        judge.params.recThrs = (np.arange(100_000) + 0.5) / 100_000
        judge.evaluate()
        judge.accumulate()
    ap = judge.eval["precision"][:, :, :, 0, 2].mean(axis=1)  # IoU, category by id
    for i, category in enumerate(sorted(NAMES)):
        assert ours["AP"][NAMES[category]] == pytest.approx(ap[0, i], abs=1e-4)
    assert ours["mAP3@0.4"] == pytest.approx(ap[0].mean(), abs=1e-4)
