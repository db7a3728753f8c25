"""Datasets of one's own classes, in Kaggle's form or COCO's; and what is built already."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxdet import InputError
from jaxdet.data import images
from tests.tfds_vinbig import test_builder
from tests.tfds_vinbig.test_builder import HEADER, files, make_folder, pixels, records
from tfds_vinbig import tfds_vinbig_dataset_builder as builder
from tfds_vinbig.__main__ import main

folder = test_builder.folder


def make_lungs(folder: Path) -> Path:
    """The Kaggle form, with two classes and ids of its own."""
    make_folder(folder)
    (folder / "train.csv").write_text(
        f"{HEADER}\na,Right lung,7,R1,10,20,110.5,220\nb,NO finding,5,R1,,,,\n"
        "a,Left lung,2,R1,0,0,200,300\n"
    )
    return folder


def test_the_classes_of_train_csv(tmp_path, capsys):
    make_lungs(tmp_path / "lungs")
    path = builder.build("lungs", tmp_path / "data", tmp_path / "lungs", size=64)
    assert capsys.readouterr() == ("", "")
    assert path == tmp_path / "data/tfds_vinbig/lungs/1.3.0"
    info = tfds.builder_from_directory(path).info
    assert info.features["objects"]["label"].names == ["Left lung", "Right lung"]
    assert info.metadata["class_ids"] == [2, 7, 5]
    assert info.features["image"].shape == (64, 64, 1)
    a, b = records(path)["a"], records(path)["b"]
    assert list(a["objects"]["label"]) == [1, 0] and a["image"].shape == (64, 64, 1)
    np.testing.assert_allclose(pixels(a), [[10, 20, 110.5, 220], [0, 0, 200, 300]], atol=1e-4)
    assert list(b["normal_readers"]) == [b"R1"] and list(b["objects"]["label"]) == []


def test_coco_json_is_another_way_to_the_same_records(tmp_path):
    folder = make_lungs(tmp_path / "lungs")
    (tmp_path / "x.json").write_text(
        json.dumps(
            {
                "images": [
                    {"id": 9, "file_name": "b.png", "height": 310, "width": 210},
                    {"id": 4, "file_name": "a.png", "height": 300, "width": 200},
                ],
                "categories": [{"id": 7, "name": "Right lung"}, {"id": 2, "name": "Left lung"}],
                "annotations": [
                    {"image_id": 4, "category_id": 7, "bbox": [10, 20, 100.5, 200], "rad_id": "R1"},
                    {"image_id": 4, "category_id": 2, "bbox": [0, 0, 200, 300], "rad_id": "R1"},
                ],
            }
        )
    )
    path = builder.build(
        "coco",
        tmp_path / "data",
        size=64,
        coco=tmp_path / "x.json",
        images=folder / "train",
        test_images=folder / "test",
    )
    info = tfds.builder_from_directory(path).info
    assert info.features["objects"]["label"].names == ["Left lung", "Right lung"]
    assert info.metadata["class_ids"] == [2, 7, 8]
    assert info.metadata["train"] == {"images": 2, "boxes": 2, "no_finding_rows": 1}
    expected = records(builder.build("lungs", tmp_path / "data", folder, size=64))
    for name, record in records(path).items():
        if name == "b":
            assert record.pop("normal_readers") == [b"coco"]
            expected[name].pop("normal_readers")
        np.testing.assert_equal(record, expected[name])
    (q,) = records(path, "test").values()
    assert (q["height"], q["width"], q["index"]) == (256, 256, 0)


def test_films_as_others_have_them_from_the_command_line(tmp_path, capsys):
    """Folders of patients, links to another disk, a box outside, a flat film: each with its flag,
    or said by name; what it was built with is on record."""
    films = tmp_path / "films"
    for name, level in (("p1/view", None), ("p2/view", 9)):
        levels = np.full((60, 50), level or 0, np.uint8)
        levels[: 0 if level else 9] = 200
        (films / name).parent.mkdir(parents=True)
        Image.fromarray(levels).save(films / f"{name}.png")
    (films / "p2/view.png").rename(tmp_path / "disk.png")
    (films / "p2/view.png").symlink_to(tmp_path / "disk.png")
    listed = [{"id": i, "file_name": f"p{i}/view.png"} for i in (1, 2)]
    box = {"image_id": 1, "category_id": 1, "bbox": [-20, 10, 40, 20]}
    (tmp_path / "x.json").write_text(
        json.dumps(
            {"images": listed, "annotations": [box], "categories": [{"id": 1, "name": "Rib"}]}
        )
    )
    words = ["--config=films", "--size=32", f"--coco={tmp_path}/x.json", f"--images={films}",
             f"--data_dir={tmp_path}/data"]  # fmt: skip
    with pytest.raises(InputError, match="allow links by --follow_links"):
        main(words)
    with pytest.raises(InputError, match="--boxes=cut cuts such boxes"):
        main([*words, "--follow_links"])
    with pytest.raises(InputError, match="argument --boxes: invalid choice: 'drop'"):
        main([*words, "--boxes=drop"])
    main([*words, "--follow_links", "--boxes=cut"])
    said = capsys.readouterr().err
    assert f"note: train: 1 pictures: {images.FLAT}: p2__view\n" in said
    assert "1 boxes reach more than a pixel out of their image" in said
    path = tmp_path / "data/tfds_vinbig/films/1.3.0"
    found = records(path)
    assert set(found) == {"p1__view", "p2__view"}
    np.testing.assert_allclose(pixels(found["p1__view"]), [[0, 10, 20, 30]], atol=1e-4)
    assert tfds.builder_from_directory(path).info.metadata["source"]["boxes"] == "cut"
    main([*words, "--follow_links"])
    assert "already built from" in capsys.readouterr().err


def test_a_folder_that_was_not_read_is_said(folder, tmp_path, capsys):
    path = builder.build("256", tmp_path / "data", folder)
    assert builder.build("256", tmp_path / "data", folder / "train" / "..") == path  # the same
    assert capsys.readouterr().err == ""
    before = files(path)
    for flags, said in (
        ({"manual_dir": tmp_path / "other"}, f"--manual_dir={tmp_path}/other was not read"),
        (
            {"manual_dir": folder, "train_csv": tmp_path / "mended.csv"},
            f"--manual_dir={folder} --train_csv={tmp_path}/mended.csv was not read",
        ),
    ):
        assert builder.build("256", tmp_path / "data", **flags) == path
        captured = capsys.readouterr()
        assert captured.out == f"already built: {path}; remove it to build it anew\n"
        assert captured.err.startswith(f"note: already built from --manual_dir={folder};")
        assert said in captured.err and f"remove {path}" in captured.err
        assert captured.err.count("\n") == 1
    assert files(path) == before


def test_another_size_than_the_one_built_is_refused(tmp_path):
    make_lungs(tmp_path / "lungs")
    path = builder.build("lungs", tmp_path, tmp_path / "lungs", size=64)
    with pytest.raises(InputError, match=f"--size=128: already built with .* 64 .* remove {path}"):
        builder.build("lungs", tmp_path, tmp_path / "lungs", size=128)
