from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from configs import retina
from jaxdet import InputError, data
from tfds_vinbig.kaggle import NO_FINDING


@pytest.fixture
def dataset(config):
    return data.read_split("tfds_vinbig/256", "train", 64, config.data.dir)


def batches(
    dataset, seed=0, normal_share=None, balance_classes=False, cache=True, rows=slice(None)
):
    config = retina.get_config()
    config.seed, config.train.batch_size = seed, 8
    config.data.update({"balance_classes": balance_classes, "cache": cache})
    config.data.normal_share = normal_share
    targets = data.make_targets(dataset, "wbf@0.4", 4)
    return data.training_batches(config, dataset, targets, rows)


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_records_are_the_rows_of_train_csv_in_model_pixels(dataset, kaggle_folder):
    rows = pd.read_csv(kaggle_folder / "train.csv")
    got = dataset.annotations
    scale = np.array([64 / 384, 64 / 512] * 2)
    expected = {
        (r.image_id, r.class_id, r.rad_id, *np.round(
            np.array([r.x_min, r.y_min, r.x_max, r.y_max]) * scale, 2))
        for r in rows.fillna(-1e6).itertuples()
    }  # fmt: skip
    boxes = np.where(np.isnan(got.boxes), -1e6 * scale, got.boxes)
    assert len(got.image) == len(rows)
    assert expected == {
        (dataset.ids[i], c, r, *np.round(b.astype(float), 2))
        for i, c, r, b in zip(got.image, got.labels, got.reader, boxes, strict=True)
    }


def test_take_keeps_image_and_rows_together(dataset):
    part = dataset.take(np.array([7, 2]))
    assert part.ids.tolist() == dataset.ids[[7, 2]].tolist()
    np.testing.assert_array_equal(part.decode(0), dataset.decode(7))
    for new, old in ((0, 7), (1, 2)):
        mine = part.annotations.boxes[part.annotations.image == new]
        theirs = dataset.annotations.boxes[dataset.annotations.image == old]
        np.testing.assert_array_equal(mine, theirs)


def test_targets_are_fused_and_padded(dataset):
    raw = data.make_targets(dataset, "none", 12)
    fused = data.make_targets(dataset, "wbf@0.4", 4)
    normal = np.zeros(len(dataset), bool)
    normal[dataset.annotations.image[dataset.annotations.labels == NO_FINDING]] = True
    np.testing.assert_array_equal(fused.mask.any(axis=1), ~normal)
    np.testing.assert_array_equal(raw.mask.sum(axis=1), 3 * fused.mask.sum(axis=1))
    i = np.flatnonzero(~normal)[0]
    first = fused.boxes[i, 0]
    assert np.isclose(raw.boxes[i], first, atol=1e-3).all(axis=1).sum() == 3


def test_too_many_boxes_is_an_error(dataset):
    with pytest.raises(InputError, match=r"config\.data\.max_boxes: 2 .* image train"):
        data.make_targets(dataset, "wbf@0.4", 2)


def test_a_batch_is_a_function_of_seed_and_step(dataset):
    one, two, other = batches(dataset), batches(dataset), batches(dataset, seed=1)
    assert all(same(one[step], two[step]) for step in (5, 0, 3))
    assert not same(one[0], other[0])
    assert not same(one[0], one[1])


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("cache", [True, False])
def test_the_stream_does_not_depend_on_the_workers(dataset, workers, cache):
    expected = batches(dataset)
    stream = data.read_ahead(batches(dataset, cache=cache), 4, workers)
    for step in range(4, 12):
        assert same(next(stream), expected[step])


def test_an_epoch_has_every_image_once(dataset):
    """30 images, batches of 8: the first 30 places are one epoch."""
    images = np.concatenate([batches(dataset)[step]["images"] for step in range(4)])[:30]
    assert len(np.unique(images.reshape(30, -1), axis=0)) == 30


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 1.0])
def test_normal_share(dataset, share):
    stream = batches(dataset, normal_share=share)
    masks = np.concatenate([stream[step]["mask"] for step in range(8)])
    assert abs((~masks.any(axis=1)).mean() - share) < 0.02


def test_without_normal_images_there_is_no_share_of_them(dataset):
    targets = data.make_targets(dataset, "wbf@0.4", 4)
    found = dataset.take(np.flatnonzero(targets.mask.any(axis=1)))
    stream = batches(found, normal_share=0.25)
    assert all(stream[step]["mask"].any(axis=1).all() for step in range(8))
    with pytest.raises(InputError, match=r"config\.data\.normal_share: 1\.0"):
        batches(found, normal_share=1.0)


def test_balanced_classes_come_equally_often(dataset):
    """Each third of the images with findings comes from those with one of the three classes."""
    targets = data.make_targets(dataset, "wbf@0.4", 4)
    stream = batches(dataset, normal_share=0.25, balance_classes=True)
    drawn = [stream[step] for step in range(64)]
    masks = np.concatenate([batch["mask"] for batch in drawn])
    assert abs((~masks.any(axis=1)).mean() - 0.25) < 0.02
    has = np.stack([(targets.mask & (targets.labels == c)).any(axis=1) for c in (3, 4, 8)])
    # An image is drawn once an epoch of each of its classes.
    expected = np.mean([(has[:, mine].mean(axis=1)) for mine in has], axis=0)
    labels = np.concatenate([batch["labels"] for batch in drawn])[masks.any(axis=1)]
    found = masks[masks.any(axis=1)]
    got = [((labels == c) & found).any(axis=1).mean() for c in (3, 4, 8)]
    np.testing.assert_allclose(got, expected, atol=0.04)
    assert same(stream[5], batches(dataset, normal_share=0.25, balance_classes=True)[5])


def test_votes_are_soft_targets(dataset):
    """Two of three readers of one image see nothing: its boxes aim at a third."""
    rows = dataset.annotations
    image = rows.image[rows.labels != NO_FINDING][0]
    gone = (rows.image == image) & (rows.reader != "R1")
    fewer = data.Annotations(*(column[~gone] for column in vars(rows).values()))
    votes = data.make_targets(replace(dataset, annotations=fewer), "votes@0.4", 4)
    np.testing.assert_allclose(votes.scores[image][votes.mask[image]], 1 / 3)
    others = np.delete(votes.mask, image, axis=0)
    np.testing.assert_array_equal(np.delete(votes.scores, image, axis=0)[others], 1)
    fused = data.make_targets(replace(dataset, annotations=fewer), "wbf@0.4", 4)
    assert (fused.scores == 1).all()
    # Where there is but one reader, that one is all of them.
    alone = data.Annotations(*(column[rows.reader == "R1"] for column in vars(rows).values()))
    votes = data.make_targets(replace(dataset, annotations=alone), "votes@0.4", 4)
    assert (votes.scores == 1).all()


def test_processes_load_their_rows_of_one_global_batch(dataset):
    whole = batches(dataset)[2]
    halves = [batches(dataset, rows=rows)[2] for rows in (slice(0, 4), slice(4, 8))]
    for name in whole:
        np.testing.assert_array_equal(whole[name], np.concatenate([h[name] for h in halves]))


def test_folds_part_the_images_and_spread_the_classes(dataset):
    fold = data.stratified_folds(dataset, dataset.ids, 3)
    normal = np.array([i for i in range(30) if dataset.ids[i].startswith("train")])
    assert np.bincount(fold[normal], minlength=3).tolist() == [10, 10, 10]
    rows = dataset.annotations
    for label in np.unique(rows.labels):
        images = np.unique(rows.image[rows.labels == label])
        counts = np.bincount(fold[images], minlength=3)
        assert counts.max() - counts.min() <= 2, label


def test_folds_do_not_depend_on_the_order_of_records(dataset):
    order = np.random.default_rng(0).permutation(30)
    moved = dataset.take(order)
    np.testing.assert_array_equal(
        data.stratified_folds(moved, moved.ids, 3),
        data.stratified_folds(dataset, dataset.ids, 3)[order],
    )


def test_groups_stay_in_one_fold(config, dataset, tmp_path):
    table = pd.DataFrame({"image_id": dataset.ids})
    table["patient"] = table.image_id.str[-1]
    table.to_csv(tmp_path / "info.csv", index=False)
    config.data.groups = f"{tmp_path}/info.csv:patient"
    train, held_out = data.train_and_eval(config)
    assert not {name[-1] for name in train.ids} & {name[-1] for name in held_out.ids}
    assert len(train) + len(held_out) == 30
    config.data.groups = f"{tmp_path}/info.csv:doctor"
    with pytest.raises(InputError, match=r"config\.data\.groups"):
        data.train_and_eval(config)


def test_seed111_follows_train_meta(config):
    config.data.split = "seed111"
    train, held_out = data.train_and_eval(config)
    order = np.random.RandomState(111).permutation(30)
    assert train.ids.tolist() == [f"train{i:02}" for i in order[:24]]
    assert set(held_out.ids) == {f"train{i:02}" for i in order[24:]}


def test_slices(config):
    config.data.split = "train[:80%]"
    train, held_out = data.train_and_eval(config)
    assert (len(train), len(held_out)) == (24, 6)
    assert not set(train.ids) & set(held_out.ids)
    config.data.split, config.data.eval_split = "train", "train[:10%]"
    assert [len(x) for x in data.train_and_eval(config)] == [30, 3]


@pytest.mark.parametrize(
    "field,value", [("split", "valid"), ("split", "train"), ("fold", 5), ("name", "no/such")]
)
def test_a_split_that_cannot_be_is_named(config, field, value):
    config.data[field] = value
    with pytest.raises(InputError, match=str(value)):
        data.train_and_eval(config)
