"""The VinDr-CXR release: its layout, its test set as a split that is scored, from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from pydicom import uid

from jaxdet import InputError
from jaxdet.data import images
from jaxdet.data.dataset import open_dataset, read_split
from tests import dicoms
from tests.conftest import TINY, command, draw_shapes
from tests.tfds_vinbig.test_builder import files, pixels, records
from tfds_vinbig import kaggle, vindr
from tfds_vinbig import tfds_vinbig_dataset_builder as builder

LABELS = ["Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture",
          "Consolidation", "Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration",
          "Lung Opacity", "Lung cavity", "Lung cyst", "Mediastinal shift", "Nodule/Mass",
          "Pleural effusion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis",
          "Rib fracture", "Other lesion"]  # fmt: skip
GLOBAL = ["COPD", "Lung tumor", "Pneumonia", "Tuberculosis"]
CORNERS = "x_min,y_min,x_max,y_max"
SYNTAXES = [uid.JPEG2000Lossless, uid.ExplicitVRLittleEndian]


def write_labels(path: Path, head: str, other: str, rows: dict[tuple, set[str]]) -> None:
    """image_labels_*.csv: a column a label."""
    names = [*LABELS, *GLOBAL, other, "No finding"]
    lines = [",".join([head, *names])]
    lines += [
        ",".join([*key, *(str(int(n in found)) for n in names)]) for key, found in rows.items()
    ]
    path.write_text("\n".join(lines) + "\n")


def make_release(folder: Path, per_split=(6, 3)) -> Path:
    """Drawn films of 12 bits, MONOCHROME1 now and then; every third image is normal."""
    rng = np.random.default_rng(0)
    tables = folder / "annotations"
    tables.mkdir(parents=True)
    for split, count in zip(("train", "test"), per_split, strict=True):
        readers = ("R1", "R8", "R9") if split == "train" else ("",)
        boxes, labels = [], {}
        for i in range(count):
            name = f"{split}{i:02}"
            levels, found = draw_shapes(rng)
            found = [] if i % 3 == 0 else found
            levels = 16 * np.clip(rng.normal(60, 8, levels.shape) if not found else levels, 0, 255)
            levels, white = levels.astype(np.uint16), i % 4 == 1
            dicoms.save(
                folder / split / f"{name}.dicom",
                np.where(white, 4095 - levels, levels).astype(np.uint16),
                SYNTAXES[i % 2],
                Modality=None, BitsStored=12, WindowCenter="2048", WindowWidth="4096",
                PhotometricInterpretation="MONOCHROME1" if white else "MONOCHROME2",
            )  # fmt: skip
            for reader in readers:
                key = (name, reader) if reader else (name,)
                labels[key] = set()
                for label, box in found:
                    word = kaggle.CLASS_NAMES[label] if label != 3 else "Rib fracture"
                    boxes.append(",".join([*key, word, *map(str, box)]))
                    labels[key].add(word)
                if not found:
                    boxes.append(",".join([*key, "No finding", "", "", "", ""]))
                    labels[key].add("No finding")
        rad = "rad_id," if split == "train" else ""
        table = "\n".join([f"image_id,{rad}class_name,{CORNERS}", *boxes])
        (tables / f"annotations_{split}.csv").write_text(table + "\n")
        other = "Other diseases" if split == "train" else "Other disease"
        write_labels(
            tables / f"image_labels_{split}.csv", f"image_id,{rad}".rstrip(","), other, labels
        )
    return folder


@pytest.fixture
def release(tmp_path):
    return make_release(tmp_path / "vindr")


def change(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def test_the_22_local_labels_and_kaggles_numbers():
    assert sorted(LABELS) == sorted(set(vindr.CLASSES.values()) - {"No finding"})
    for class_id, name in kaggle.VINBIGDATA.items():
        assert vindr.CLASSES[class_id] == name


def test_the_release_as_it_comes(release):
    found = vindr.read_folder(release)
    assert len(found.class_names) == 22 and found.class_ids == (*range(14), *range(15, 23), 14)
    assert found.class_names[:14] == kaggle.CLASS_NAMES
    assert [r.image_id for r in found.train] == [f"train{i:02}" for i in range(6)]
    assert [r.index for r in found.test] == [0, 1, 2] and found.test[0].path.suffix == ".dicom"
    assert {(r.height, r.width) for r in found.train} == {(256, 256)}
    assert {row.rad_id for r in found.train for row in r.rows} == {"R1", "R8", "R9"}
    assert {row.rad_id for r in found.test for row in r.rows} == {"consensus"}
    normal = [[row.label == 22 for row in r.rows] for r in found.train]
    assert normal[0] == normal[3] == [True] * 3 and not any(normal[1] + normal[2])
    assert [row.label for row in found.test[0].rows] == [22]
    assert any("stored with white as zero" in note for note in found.notes)


def test_images_that_only_image_labels_name_are_normal(release):
    """And so is a reader who names a disease of the whole image."""
    table = release / "annotations/annotations_test.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line for line in lines if "No finding" not in line) + "\n")
    labels = release / "annotations/image_labels_test.csv"
    change(labels, "0,0,1\n", "1,0,0\n")  # tuberculosis, rather than no finding
    found = vindr.read_folder(release)
    assert [row.label for row in found.test[0].rows] == [22]
    assert any("1 readings have a label but No finding, and no box" in note for note in found.notes)
    scored = kaggle.read_annotations(table)
    assert set(scored.ids) == {"test00", "test01", "test02"}


def test_rows_of_global_labels_have_no_box(release):
    table = release / "annotations/annotations_test.csv"
    change(table, "test00,No finding,,,,", "test00,Other disease,,,,\ntest00,COPD,,,,")
    assert [row.label for row in vindr.read_folder(release).test[0].rows] == [22]


def test_it_is_scored_by_its_own_table(release, tmp_path):
    table = release / "annotations/annotations_test.csv"
    truth = kaggle.read_annotations(table)
    assert truth.class_ids == (*range(14), *range(15, 23), 14)
    lines = ["image_id,PredictionString"]
    for i, name in enumerate(truth.ids):
        words = []
        for row in np.flatnonzero(truth.image == i):
            box = truth.boxes[row]
            box = (0, 0, 1, 1) if np.isnan(box[0]) else box
            words.append(f"{truth.class_ids[truth.labels[row]]} 1 {' '.join(map(str, box))}")
        lines.append(f"{name},{' '.join(words)}")
    (tmp_path / "perfect.csv").write_text("\n".join(lines))
    done = command("--mode=score", f"--annotations={table}", f"--submission={tmp_path}/perfect.csv")
    assert done.code == 0, done.stderr
    scores = json.loads(done.stdout)
    assert scores["mAP22@0.4"] == scores["mAP@0.4"] == 1.0 and scores["num_images"] == 3
    assert scores["AP"]["Clavicle fracture"] is None and scores["AP"]["No finding"] == 1.0


def test_a_built_release(release, tmp_path, capsys):
    path = builder.build("vindr", tmp_path / "data", release, size=64)
    info = tfds.builder_from_directory(path).info
    assert info.metadata["test"]["images"] == 3 and info.metadata["test"]["boxes"] > 0
    assert info.features["objects"]["label"].num_classes == 22
    for split in ("train", "test"):
        for name, record in records(path, split).items():
            film = images.read(release / split / f"{name}.dicom").pixels
            np.testing.assert_array_equal(record["image"][..., 0], images.resize(film, 64))
            assert (record["height"], record["width"]) == (256, 256)
            assert pixels(record).max(initial=0) <= 256
    test = read_split(open_dataset("tfds_vinbig/vindr", str(tmp_path / "data")), "test")
    assert set(test.annotations.readers) == {"consensus"} and len(test.annotations.image) >= 3
    again = builder.build("vindr", tmp_path / "again", release, size=64)
    assert files(again) == files(path)


def test_resized_pngs_in_the_layout_of_the_release(release, tmp_path):
    for split in ("train", "test"):
        lines = ["image_id,dim0,dim1"]
        for film in list((release / split).iterdir()):
            small = images.resize(images.read(film).pixels, 32)
            Image.fromarray(small).save(film.with_suffix(".png"))
            film.unlink()
            lines.append(f"{film.stem},256,256")
        (release / f"{split}_meta.csv").write_text("\n".join(lines))
    for table in list((release / "annotations").iterdir()):
        table.rename(release / table.name)
    assert {(r.height, r.width) for r in vindr.read_folder(release).train} == {(256, 256)}
    (release / "train_meta.csv").unlink()
    with pytest.raises(InputError, match="leaves its image, 32 wide .*train_meta.csv with the siz"):
        vindr.read_folder(release)


@pytest.mark.parametrize(
    "harm,said",
    [
        (lambda f: (f / "train/train01.dicom").unlink(), "train01.png: no such image"),
        (lambda f: (f / "train/train01.dicom").write_text("x"), "train01.dicom: not a PNG, JPEG"),
        (lambda f: cut(f / "train/train02.dicom"), "train02.dicom: "),
        (lambda f: change_train(f, "train00,R1,No finding", "train00,R1,Scoliosis"),
         "annotations_train.csv line 2: unknown class_name 'Scoliosis'"),
        (lambda f: change_train(f, "R1,No finding,,,,", f"{'R' * 101},No finding,,,,"),
         "'... is longer than 100 characters"),
        (lambda f: change_train(f, "R1,No finding,,,,", "R1,No finding,1,2,3,4"),
         "No finding with the box 1,2,3,4; it has none"),
        (lambda f: change_train(f, "R1,No finding,,,,", "R1,Edema,,,,"),
         "x_min is empty in a row of Edema"),
        (lambda f: change_train(f, "R1,No finding,,,,", "R1,Edema,1,2,300,4"), "leaves its image"),
        (lambda f: change_labels(f, "No finding", "no"), "needs the columns image_id,no finding"),
        (lambda f: change_labels(f, "0,1\n", "0,7\n"), "line 2: No finding is '7', not 0 or 1"),
        (lambda f: (f / "test/train00.dicom").write_bytes((f / "test/test00.dicom").read_bytes()),
         None),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(release, harm, said):
    harm(release)
    if said is None:
        notes = vindr.read_folder(release).notes
        assert any("1 images are not in" in note for note in notes)
        return
    with pytest.raises(InputError) as caught:
        vindr.read_folder(release)
    assert said in str(caught.value)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def change_train(folder, before, after):
    change(folder / "annotations/annotations_train.csv", before, after)


def change_labels(folder, before, after):
    change(folder / "annotations/image_labels_train.csv", before, after)


def test_vinbigdatas_names_are_not_for_it(release, tmp_path):
    with pytest.raises(InputError, match="--config=256: is VinBigData with 14 .*--config=NAME"):
        builder.build("256", tmp_path / "data", release)
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").rglob("*.json"))


@pytest.mark.slow
def test_trained_and_scored_on_its_test_set(release, tmp_path):
    builder.build("vindr", tmp_path / "data", release, size=64)
    flags = [*TINY, "--config.data.name=tfds_vinbig/vindr", f"--config.data.dir={tmp_path}/data",
             "--config.data.num_folds=2"]  # fmt: skip
    run = f"--workdir={tmp_path}/run"
    done = command(*flags, run)
    assert done.code == 0, done.stderr
    done = command(run, "--mode=evaluate", "--config.data.eval_split=test", "--ground_truth=raw")
    assert done.code == 0, done.stderr
    scores = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert scores["split"] == "test" and scores["num_images"] == 3
    assert len(scores["AP"]) == 23 and scores["ground_truth"] == "raw"
    scored = command(
        "--mode=score", f"--submission={tmp_path}/run/submission.csv",
        f"--annotations={release}/annotations/annotations_test.csv",
    )  # fmt: skip
    assert scored.code == 0, scored.stderr
    assert json.loads(scored.stdout)["mAP@0.4"] == pytest.approx(scores["mAP@0.4"], abs=1e-3)
