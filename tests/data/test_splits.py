import unicodedata

import numpy as np
import pandas as pd
import pytest

from jaxdet import InputError
from jaxdet.data.dataset import open_dataset
from jaxdet.data.splits import read_groups, stratified_folds, train_and_eval


@pytest.fixture(scope="module")
def builder(data_dir):
    return open_dataset("tfds_vinbig/256", str(data_dir))


@pytest.fixture
def split(config, builder, dataset):
    """The two sides that `config.data` with these fields asks for."""

    def call(**fields):
        config.data.update(fields)
        return train_and_eval(config.data, builder, dataset)

    return call


def present_in(dataset):
    present = np.zeros((len(dataset), 15), bool)
    present[dataset.annotations.image, dataset.annotations.labels] = True
    return present


def test_folds_part_the_images_and_spread_the_classes(dataset):
    present = present_in(dataset)
    fold = stratified_folds(dataset.ids, present, dataset.ids, 3)
    assert np.bincount(fold, minlength=3).tolist() == [10, 10, 10]
    for label in np.flatnonzero(present.any(axis=0)):
        counts = np.bincount(fold[present[:, label]], minlength=3)
        assert counts.max() - counts.min() <= 2, label


def test_folds_do_not_depend_on_the_order_of_records(dataset):
    present, order = present_in(dataset), np.random.default_rng(0).permutation(30)
    np.testing.assert_array_equal(
        stratified_folds(dataset.ids[order], present[order], dataset.ids[order], 3),
        stratified_folds(dataset.ids, present, dataset.ids, 3)[order],
    )


@pytest.mark.parametrize("num_groups", [5, 6, 11])
def test_no_fold_is_empty(num_groups):
    rng = np.random.default_rng(num_groups)
    ids = np.array([f"{i:02}" for i in range(30)])
    groups = np.array([f"g{i % num_groups}" for i in range(30)])
    fold = stratified_folds(ids, rng.random((30, 4)) < 0.4, groups, 5)
    assert set(fold) == set(range(5))
    for group in set(groups):
        assert len(set(fold[groups == group])) == 1


def test_groups_stay_in_one_fold(split, dataset, tmp_path):
    table = pd.DataFrame({"image_id": dataset.ids})
    table["patient"] = table.image_id.str[-1]
    table.to_csv(tmp_path / "info.csv", index=False)
    train, held_out = split(groups=f"{tmp_path}/info.csv:patient")
    assert not {name[-1] for name in train.ids} & {name[-1] for name in held_out.ids}
    assert len(train) + len(held_out) == 30
    with pytest.raises(InputError, match=r"config\.data\.groups"):
        split(groups=f"{tmp_path}/info.csv:doctor")


def test_lines_that_agree_count_once_and_a_patient_may_be_called_na(tmp_path):
    file = tmp_path / "info.csv"
    file.write_text("patient,image_id\nNA,a\nNA,a\np2,b\nNA , a\n,unused\n")
    assert read_groups(f"{file}:patient", np.array(["b", "a"])).tolist() == ["p2", "NA"]


def test_a_path_stands_for_its_id(tmp_path):
    file = tmp_path / "info.csv"
    file.write_text("patient,image_id\n1,p1/view.png\n2,p2\\view\n3,a.png\n4,a\n5,\n6,/\n")
    ids = np.array(["p2__view", "p1__view", "a.png"])
    assert read_groups(f"{file}:patient", ids).tolist() == ["2", "1", "3"]


def test_names_are_compared_composed(tmp_path):
    """A patient whose name is written in two forms is one, and stays in one fold."""
    two = [unicodedata.normalize(form, "phổi") for form in ("NFC", "NFD")]
    file = tmp_path / "info.csv"
    file.write_text(f"{two[0]},image_id\n{two[0]},{two[1]}\n{two[1]},b\n")
    found = read_groups(f"{file}:{two[1]}", np.array([two[0], "b"]))
    assert found.tolist() == [two[0]] * 2


@pytest.mark.parametrize(
    "lines,named",
    [
        ("p1,a\n,b\n", "patient of image b is empty"),
        ("p1,a\np2,b\np3,a\n", "patient of image a is both p1 and p3"),
        ("p1,a\n", "lacks 1 images of the dataset, b first"),
    ],
)
def test_a_group_that_cannot_be_is_named(tmp_path, lines, named):
    (tmp_path / "info.csv").write_text(f"patient,image_id\n{lines}")
    with pytest.raises(InputError, match=f"config.data.groups: .*info.csv: {named}"):
        read_groups(f"{tmp_path}/info.csv:patient", np.array(["a", "b"]))


def test_seed111_follows_train_meta(split):
    train, held_out = split(split="seed111")
    order = np.random.RandomState(111).permutation(30)
    assert train.ids.tolist() == [f"train{i:02}" for i in order[:24]]
    assert set(held_out.ids) == {f"train{i:02}" for i in order[24:]}


def test_slices_are_those_of_tfds(split, builder):
    train, held_out = split(split="train[:80%]")
    assert (len(train), len(held_out)) == (24, 6)
    assert not set(train.ids) & set(held_out.ids)
    records = builder.as_data_source("train[:80%]")
    assert set(train.ids) == {record["image_id"].decode() for record in records}
    assert [len(x) for x in split(split="train", eval_split="train[:10%]")] == [30, 3]
    assert [len(x) for x in split(split="train[:2]+train[20:]")] == [12, 3]


@pytest.mark.parametrize(
    "fields,named",
    [
        ({"split": "valid"}, r"config\.data\.split: 'valid' is not one of folds, seed111, nor"),
        ({"split": "train"}, r"config\.data\.split: 'train' leaves no image to evaluate on"),
        ({"split": "train[:0]"}, r"config\.data\.split: 'train\[:0\]' leaves no image to train on"),
        ({"split": "test"}, r"config\.data\.split: 'test' is not of the split 'train'"),
        ({"split": "train+test"}, r"config\.data\.split: 'train\+test' is not"),
        ({"eval_split": "test"}, r"config\.data\.eval_split: 'test' has no annotations"),
        ({"eval_split": "valid"}, r"config\.data\.eval_split: 'valid' is not one of rest, nor"),
        ({"eval_split": "train[:0]"}, r"config\.data\.eval_split: 'train\[:0\]' has no image"),
        ({"fold": 5}, r"config\.data\.fold: 5 is not in 0\.\.4"),
        ({"num_folds": 31}, r"config\.data\.num_folds: 31 is not from 2 to the 30 images"),
        ({"num_folds": 1}, r"config\.data\.num_folds: 1 is not from 2"),
    ],
)
def test_a_split_that_cannot_be_is_named(split, fields, named):
    with pytest.raises(InputError, match=named):
        split(**fields)


def test_more_folds_than_groups_is_named(split, dataset, tmp_path):
    table = pd.DataFrame({"image_id": dataset.ids, "patient": "p1"})
    table.loc[:9, "patient"] = "p2"
    table.to_csv(tmp_path / "info.csv", index=False)
    with pytest.raises(InputError, match=r"num_folds: 3 is not from 2 to the 2 groups of"):
        split(groups=f"{tmp_path}/info.csv:patient", num_folds=3)
