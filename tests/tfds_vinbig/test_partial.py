"""Labels that are not whole: LVIS's two lists in COCO's JSON, and several sets joined to one."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxdet import InputError
from jaxdet.data.batches import make_targets, training_batches
from jaxdet.data.dataset import open_dataset, read_split
from jaxdet.ops.boxes import Targets
from tests.tfds_vinbig.test_coco import INSTANCES, changed, write
from tests.tfds_vinbig.test_own_datasets import make_lungs
from tfds_vinbig import coco
from tfds_vinbig import tfds_vinbig_dataset_builder as builder
from tfds_vinbig.__main__ import main
from tfds_vinbig.records import Allowed, Folder
from tfds_vinbig.sets import join


def instances(folder, lists, annotations=INSTANCES["annotations"]):
    """INSTANCES (Heart 2, Rib 5, Nodule 9) with the lists of each image, and its pictures."""
    images = [
        {**entry, **dict(zip(("neg_category_ids", "not_exhaustive_category_ids"), of, strict=True))}
        for entry, of in zip(INSTANCES["images"], lists, strict=True)
    ]
    for entry in images:
        file = folder / "films" / entry["file_name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        grey = np.arange(int(entry["height"]) * entry["width"]) % 251
        Image.fromarray(grey.reshape(-1, entry["width"]).astype(np.uint8)).save(file)
    return write(folder / "x.json", {**INSTANCES, "images": images, "annotations": annotations})


def read(path, name):
    return read_split(open_dataset(f"tfds_vinbig/{name}", str(path)), "train")


# Image c has no box, sub/a has a Nodule and a Rib, b a Heart.
LISTS = [([5, 2], None), (None, [9.0, 2]), ([], [2])]
EXHAUSTIVE = {"c": [1, 1, 0], "sub__a": [0, 1, 0], "b": [0, 0, 0]}


def test_lists_of_images_come_to_the_batch(tmp_path, config, capsys):
    path = instances(tmp_path, LISTS)
    main(["--config=films", "--size=32", f"--coco={path}", f"--images={tmp_path}/films",
          f"--data_dir={tmp_path}/data"])  # fmt: skip
    note = "6 pairs of image and class may have more than is boxed, in 3 images"
    assert f"note: {path}: {note}\n" in capsys.readouterr().err
    dataset = read(tmp_path / "data", "films")
    assert dataset.class_names == ("Heart", "Rib", "Nodule") and dataset.num_unknown == 6
    found = dict(zip(dataset.ids.tolist(), dataset.exhaustive.astype(int).tolist(), strict=True))
    assert found == EXHAUSTIVE
    # Image c has no box, but may have a nodule: it is not normal.
    assert 3 not in dataset.annotations.labels
    annotations = coco.read_annotations(path)
    assert dict(zip(annotations.ids, annotations.exhaustive.tolist(), strict=True)) == found
    records = tfds.builder_from_directory(tmp_path / "data/tfds_vinbig/films/1.3.0")
    for record in records.as_data_source("train"):
        row = found[record["image_id"].decode()]
        assert list(record["not_exhaustive"]) == np.flatnonzero(np.array(row) == 0).tolist()
    # A part of it, and what is learned of that.
    part = dataset.of_ids(["sub__a", "c"])
    targets = make_targets(part, "raw", 32)
    np.testing.assert_array_equal(targets.exhaustive, [EXHAUSTIVE["sub__a"], EXHAUSTIVE["c"]])
    config.train.batch_size, config.data.image_size = 2, 32
    config.data.normal_share, config.data.balance_classes = None, False
    batch = training_batches(config, part, targets, slice(None))[0]
    np.testing.assert_array_equal(batch["exhaustive"], targets.exhaustive[batch["image"]])
    assert Targets.of_batch(batch).exhaustive is batch["exhaustive"]


@pytest.mark.parametrize("lists", [[(None, None)] * 3, [([2, 5, 9], []), ([2], []), ([5, 9], [])]])
def test_where_all_is_boxed_the_batch_is_as_ever(tmp_path, config, lists):
    """Without the lists, or with such that leave nothing open, and of datasets of before."""
    path = instances(tmp_path, lists)
    built = builder.build("a", tmp_path, coco=path, images=tmp_path / "films", size=32)
    dataset = read(tmp_path, "a")
    assert dataset.exhaustive is None and (dataset.annotations.labels == 3).sum() == 1
    fingerprint = dataset.fingerprint()
    columns = dict(np.load(built / "train.npz"))
    del columns["exhaustive"]  # as in version 1.2.0
    np.savez(built / "train.npz", **columns)
    dataset = read(tmp_path, "a")
    assert dataset.exhaustive is None and dataset.fingerprint() == fingerprint
    config.train.batch_size, config.data.image_size = 2, 32
    config.data.normal_share, config.data.balance_classes = None, False
    targets = make_targets(dataset, "raw", 32)
    batch = training_batches(config, dataset, targets, slice(None))[0]
    assert set(batch) == {"images", "boxes", "labels", "soft_targets", "mask", "image"}
    assert Targets.of_batch(batch).exhaustive is None


def test_a_run_is_of_what_is_known(tmp_path):
    seen = set()
    for name, lists in (("a", LISTS), ("b", [*LISTS[:2], ([], None)]), ("c", [(None, None)] * 3)):
        path = instances(tmp_path, lists)
        builder.build(name, tmp_path, coco=path, images=tmp_path / "films", size=32)
        dataset = read(tmp_path, name)
        turned = dataset.take(np.array([2, 0, 1]))
        assert turned.fingerprint() == dataset.fingerprint()
        seen.add(dataset.fingerprint())
    assert len(seen) == 3


NEG, MORE = "neg_category_ids", "not_exhaustive_category_ids"


@pytest.mark.parametrize(
    "fields,said",
    [
        ({NEG: 5}, f"{NEG} 5 is not a list of ids of categories"),
        ({MORE: "2, 5"}, f"{MORE} '2, 5' is not a list of ids of categories"),
        ({NEG: [2, 6]}, f"{NEG}: 6 is in no category"),
        ({MORE: ["Rib"]}, f"{MORE}: 'Rib' is in no category"),
        ({NEG: [True]}, f"{NEG}: True is in no category"),
        ({NEG: [2], MORE: [9, 2]}, f"{NEG}: 2 is in {MORE} too"),
        ({NEG: [2, 9]}, f"{NEG}: 9 has a box in the image ({{path}}: annotations[0])"),
    ],
)
def test_lists_that_are_wrong(tmp_path, fields, said):
    path = write(tmp_path / "x.json", changed("images[1]", **fields))
    with pytest.raises(InputError) as raised:
        coco.read_annotations(path)
    assert str(raised.value) == f"{path}: images[1]: image sub__a: {said.format(path=path)}"


def test_a_crowd_is_not_all_there_is_and_no_finding_is_no_class(tmp_path):
    """A class that has a crowd alone is not boxed; an image that somebody calls normal is."""
    data = changed("images[0]", neg_category_ids=[2, 7])
    data["categories"].append({"id": 7, "name": "no finding"})
    data["annotations"] += [
        {"image_id": 30, "category_id": 9, "bbox": [1, 1, 9, 9], "iscrowd": 1},
        {"image_id": 30, "category_id": 7},
    ]
    found = coco.read_annotations(write(tmp_path / "x.json", data))
    np.testing.assert_array_equal(found.exhaustive[found.ids.index("c")], [1, 0, 0])
    assert found.labels[found.image == found.ids.index("c")].tolist() == [3]
    data["images"][0]["neg_category_ids"] = [9]
    with pytest.raises(InputError, match=r"9 has a box in the image \(a crowd\)"):
        coco.read_annotations(write(tmp_path / "x.json", data))


def test_a_box_without_area_does_not_say_that_all_is_boxed(tmp_path):
    """It is left out: as known, its class would be taught to be absent."""
    data = changed("images[1]", neg_category_ids=[2])
    place = next(i for i, x in enumerate(data["annotations"]) if x["category_id"] == 9)
    data["annotations"][place]["bbox"][2] = 0
    found = coco.read_annotations(write(tmp_path / "x.json", data))
    np.testing.assert_array_equal(found.exhaustive[found.ids.index("sub__a")], [1, 1, 0])
    data["images"][1]["neg_category_ids"] = [9]
    with pytest.raises(InputError, match=r"9 has a box in the image \(a box without area\)"):
        coco.read_annotations(write(tmp_path / "x.json", data))


@pytest.mark.parametrize("box, cut", [([25, 5, 9, 9], True), ([20, 5, 0.9, 9], False)])
def test_a_box_outside_its_image_does_not_say_that_its_class_is_absent(tmp_path, box, cut):
    """Image sub/a is 20 wide. Where the file says what is absent, a class without a box is unknown;
    where it does not, all is boxed."""
    rows = [dict(row) for row in INSTANCES["annotations"]]
    rows[0]["bbox"] = box  # the Nodule
    path = instances(tmp_path, [(None, None), ([2], None), (None, None)], rows)
    read = coco.read_instances(path, tmp_path / "films", None, Allowed(cut_boxes=cut))
    (record,) = (record for record in read.train if record.image_id == "sub__a")
    assert record.not_exhaustive == (2,) and [row.label for row in record.rows] == [1]
    (note,) = (note for note in read.notes if "whose boxes are all left out" in note)
    assert note.startswith(f"{path}: 1 images") and note.endswith("image sub__a first")
    # Another box of it in the image: it is boxed.
    more = [*rows, {**rows[0], "bbox": [1, 2, 3, 4]}]
    path = instances(tmp_path, [(None, None), ([2], None), (None, None)], more)
    read = coco.read_instances(path, tmp_path / "films", None, Allowed(cut_boxes=cut))
    assert not any(record.not_exhaustive for record in read.train)
    for lists in ((None, None), (None, [5])):
        path = instances(tmp_path, [(None, None), lists, (None, None)], rows)
        read = coco.read_instances(path, tmp_path / "films", None, Allowed(cut_boxes=cut))
        (record,) = (record for record in read.train if record.image_id == "sub__a")
        assert record.not_exhaustive == (() if lists[1] is None else (1,))


def test_a_set_given_twice_is_not_joined_with_itself(tmp_path):
    path = instances(tmp_path, [(None, None)] * 3)
    with pytest.raises(InputError, match="image c of .*x.json is in .*x.json too"):
        builder.build("x", tmp_path, coco=[path] * 2, images=[tmp_path / "films"] * 2, size=32)


def test_classes_that_differ_in_case_are_said():
    one, two = (Folder((name, "Heart"), (0, 1, 2), [], [], []) for name in ("Rib", "rib"))
    joined = join([one, two], ["1", "2"])
    assert joined.class_names == ("Rib", "Heart", "rib")
    assert joined.notes[-1].startswith("1 and 2: Rib, rib: differ in case alone, and are taken")


def test_sets_of_other_classes_are_joined(tmp_path, capsys):
    """What a set does not name is unknown in its images, and none of them is normal for sure."""
    path = instances(tmp_path, LISTS)
    make_lungs(tmp_path / "lungs")
    text = (tmp_path / "lungs/train.csv").read_text()
    (tmp_path / "own.csv").write_text(text.replace("Left lung,2", "Heart,2"))
    words = ["--config=both", "--size=32", f"--manual_dir={tmp_path}/lungs",
             f"--train_csv={tmp_path}/own.csv", f"--data_dir={tmp_path}/data"]  # fmt: skip
    of_coco = [f"--coco={path}", f"--images={tmp_path}/films"]
    with pytest.raises(InputError, match="image b of .*lungs is in .*x.json too: joined sets need"):
        main([*words, *of_coco])
    (tmp_path / "films/b.png").rename(tmp_path / "films/d.png")
    data = json.loads(path.read_text())
    data["images"][2]["file_name"] = "d.png"
    write(path, data)
    main([*words, *of_coco])
    said = capsys.readouterr().err
    assert "note: Heart: in several sets, and taken for the same class\n" in said
    dataset = read(tmp_path / "data", "both")
    assert dataset.class_names == ("Heart", "Rib", "Nodule", "Right lung")
    assert dataset.class_ids == (0, 1, 2, 3, 4)
    found = dict(zip(dataset.ids.tolist(), dataset.exhaustive.astype(int).tolist(), strict=True))
    theirs = {"d" if name == "b" else name: [*row, 0] for name, row in EXHAUSTIVE.items()}
    lungs = {name: [1, 0, 0, 1] for name in ("a", "b")}
    assert {name: row for name, row in found.items() if name in (*theirs, *lungs)} == theirs | lungs
    rows = dataset.annotations
    boxes = {
        (str(dataset.ids[i]), dataset.class_names[label])
        for i, label in zip(rows.image, rows.labels, strict=True)
    }
    assert boxes == {("a", "Right lung"), ("a", "Heart"), ("sub__a", "Nodule"), ("sub__a", "Rib"),
                     ("d", "Heart")}  # fmt: skip
    assert sorted(dataset.index) == list(range(len(dataset)))
    source = tfds.builder_from_directory(tmp_path / "data/tfds_vinbig/both/1.3.0").info.metadata
    assert source["source"]["coco"] == str(path)
    main([*words, *of_coco])
    assert "already built from" not in capsys.readouterr().err


def test_sets_of_the_same_classes_leave_nothing_open(tmp_path):
    """As one file with all images: what is normal stays so."""
    first = instances(tmp_path / "1", [(None, None)] * 3)
    second = instances(tmp_path / "2", [(None, None)] * 3)
    data = json.loads(second.read_text())
    for entry in data["images"]:
        file = tmp_path / "2/films" / entry["file_name"]
        entry["file_name"] = entry["file_name"].replace(".", "_2.")
        file.rename(tmp_path / "2/films" / entry["file_name"])
    write(second, data)
    films = [tmp_path / "1/films", tmp_path / "2/films"]
    builder.build("two", tmp_path, coco=[first, second], images=films, size=32)
    dataset = read(tmp_path, "two")
    assert dataset.exhaustive is None and len(dataset) == 6
    assert np.bincount(dataset.annotations.labels).tolist() == [2, 2, 2, 2]
