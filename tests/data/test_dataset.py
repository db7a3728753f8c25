import shutil
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from jaxdet import InputError
from jaxdet.data.batches import decode_all
from jaxdet.data.dataset import fingerprint_of_ids, open_dataset, read_split


def test_records_are_the_rows_of_train_csv_in_original_pixels(dataset, kaggle_folder):
    rows = pd.read_csv(kaggle_folder / "train.csv")
    got = dataset.annotations
    expected = {
        (r.image_id, r.class_id, r.rad_id, *np.round([r.x_min, r.y_min, r.x_max, r.y_max], 2))
        for r in rows.fillna(-1.0).itertuples()
    }
    boxes = np.where(np.isnan(got.boxes), -1, got.boxes)
    assert len(got.image) == len(rows)
    assert expected == {
        (dataset.ids[i], c, r, *np.round(b.astype(float), 2))
        for i, c, r, b in zip(got.image, got.labels, got.readers, boxes, strict=True)
    }


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_table_says_what_the_records_say(data_dir, split):
    """For whoever reads them with TFDS; both are in the same order."""
    builder = open_dataset("tfds_vinbig/256", str(data_dir))
    source, dataset = builder.as_data_source(split), read_split(builder, split)
    assert len(source) == len(dataset) == {"train": 30, "test": 6}[split]
    rows = dataset.annotations
    assert (rows.labels.dtype, rows.boxes.dtype) == (np.int64, np.float32)  # the fingerprint's
    for i, record in enumerate(source):
        assert record["image_id"].decode() == dataset.ids[i]
        assert record["index"] == dataset.index[i]
        assert (record["height"], record["width"]) == tuple(dataset.sizes[i])
        np.testing.assert_array_equal(record["image"][..., 0], dataset.decode(i, 256))
        assert zlib.crc32(dataset.encoded(i)) == dataset.checksums[i]
        found = (rows.image == i) & (rows.labels != 14)
        normal = (rows.image == i) & (rows.labels == 14)
        np.testing.assert_array_equal(record["objects"]["label"], rows.labels[found])
        assert [r.decode() for r in record["objects"]["reader"]] == [*rows.readers[found]]
        assert [r.decode() for r in record["normal_readers"]] == [*rows.readers[normal]]
        relative = np.reshape(record["objects"]["bbox"], (-1, 4))[:, [1, 0, 3, 2]]
        boxes = relative * np.tile(dataset.sizes[i][::-1], 2)
        np.testing.assert_array_equal(boxes.astype(np.float32), rows.boxes[found])
        assert np.isnan(rows.boxes[normal]).all()


def test_the_pictures_come_to_an_end(dataset):
    assert list(dataset.source) == [dataset.encoded(i) for i in range(len(dataset))]
    assert dataset.source[-1] == dataset.encoded(len(dataset) - 1)


def test_a_damaged_picture_is_said_when_it_is_read(data_dir, tmp_path):
    shutil.copytree(data_dir / "tfds_vinbig/256", tmp_path / "x/256")
    (path,) = tmp_path.rglob("*train.array_record*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + 1000] ^= 1  # there may be a header of the file's own before
    path.write_bytes(data)
    builder = open_dataset("x/256", str(tmp_path))
    with pytest.raises(InputError, match=r"\.dir: the dataset in .*/x/256/.* is damaged"):
        decode_all(read_split(builder, "train"), 64, "train")


def test_files_of_another_size_are_said(data_dir, tmp_path):
    shutil.copytree(data_dir / "tfds_vinbig/256", tmp_path / "x/256")
    (path,) = tmp_path.rglob("*train.array_record*")
    path.write_bytes(path.read_bytes() + bytes(1 << 16))  # which readers would skip
    with pytest.raises(InputError, match="the files of 'train' are not as large as they were"):
        read_split(open_dataset("x/256", str(tmp_path)), "train")


def test_a_split_that_there_is_not_is_said(data_dir):
    with pytest.raises(InputError, match=r"1\.3\.0 has no validation\.npz"):
        read_split(open_dataset("tfds_vinbig/256", str(data_dir)), "validation")


def test_a_table_of_another_dataset_is_said(data_dir, tmp_path):
    shutil.copytree(data_dir / "tfds_vinbig/256", tmp_path / "x/256")
    (table,) = tmp_path.rglob("train.npz")
    shutil.copy(table.with_name("test.npz"), table)
    with pytest.raises(InputError, match=r"train\.npz is of another dataset"):
        read_split(open_dataset("x/256", str(tmp_path)), "train")


def test_a_picture_of_another_image_is_said(data_dir):
    """As of record files that somebody has exchanged."""
    dataset = read_split(open_dataset("tfds_vinbig/256", str(data_dir)), "train")
    dataset.source.checksums = dataset.checksums[::-1]
    with pytest.raises(InputError, match=r"picture 0 is not the one that its table is of"):
        dataset.decode(0, 64)


def test_take_keeps_image_and_rows_together(dataset):
    part = dataset.take(np.array([7, 2]))
    assert part.ids.tolist() == dataset.ids[[7, 2]].tolist()
    np.testing.assert_array_equal(part.decode(0, 64), dataset.decode(7, 64))
    for new, old in ((0, 7), (1, 2)):
        mine = part.annotations.boxes[part.annotations.image == new]
        theirs = dataset.annotations.boxes[dataset.annotations.image == old]
        np.testing.assert_array_equal(mine, theirs)


def test_a_dataset_knows_its_classes(dataset):
    assert dataset.num_classes == 14 and dataset.class_names[3] == "Cardiomegaly"
    assert dataset.class_ids == tuple(range(15))


def test_a_dataset_that_is_not_built_is_named(tmp_path):
    with pytest.raises(InputError, match=r"config\.data\.name: no dataset in .*/no/such.*build it"):
        open_dataset("no/such", str(tmp_path))


def test_the_fingerprint_is_of_what_is_in_the_dataset(dataset):
    """Not of its order; each kind of change shows."""
    first = dataset.fingerprint()
    order = np.random.default_rng(0).permutation(len(dataset))
    assert dataset.take(order).fingerprint() == first
    assert dataset.take(order[:-1]).fingerprint() != first
    rows = dataset.annotations
    moved, renamed = rows.boxes.copy(), rows.labels.copy()
    moved[np.flatnonzero(rows.labels != 14)[0], 0] += 1
    renamed[np.flatnonzero(rows.labels != 14)[0]] += 1
    for changed in (
        {"annotations": replace(rows, boxes=moved)},
        {"annotations": replace(rows, labels=renamed)},
        {"checksums": dataset.checksums + 1},
        {"sizes": dataset.sizes + 1},
        {"class_names": ("Other", *dataset.class_names[1:])},
    ):
        assert replace(dataset, **changed).fingerprint() != first, changed


def test_ids_have_a_fingerprint_whatever_their_order():
    assert fingerprint_of_ids(np.array(["a", "b"])) == fingerprint_of_ids(np.array(["b", "a"]))
    assert fingerprint_of_ids(np.array(["a", "b"])) != fingerprint_of_ids(np.array(["a", "c"]))
