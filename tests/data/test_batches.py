from dataclasses import replace

import numpy as np
import psutil
import pytest

from configs import retina
from jaxdet import InputError
from jaxdet.data import batches as rooms
from jaxdet.data.batches import Images, make_targets, read_ahead, training_batches
from jaxdet.data.dataset import Annotations
from jaxdet.data.machine import free_memory

NO_FINDING = 14


def batches(
    dataset, seed=0, normal_share=None, balance_classes=False, cache=True, rows=slice(None)
):
    config = retina.get_config()
    config.seed, config.train.batch_size, config.data.image_size = seed, 8, 64
    config.data.update({"balance_classes": balance_classes, "cache": cache})
    config.data.normal_share = normal_share
    targets = make_targets(dataset, "wbf@0.4", 64)
    return training_batches(config, dataset, targets, rows)


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_targets_are_fused_and_padded(dataset):
    raw = make_targets(dataset, "none", 64)
    fused = make_targets(dataset, "wbf@0.4", 64)
    normal = np.zeros(len(dataset), bool)
    normal[dataset.annotations.image[dataset.annotations.labels == NO_FINDING]] = True
    np.testing.assert_array_equal(fused.mask.any(axis=1), ~normal)
    np.testing.assert_array_equal(raw.mask.sum(axis=1), 3 * fused.mask.sum(axis=1))
    i = np.flatnonzero(~normal)[0]
    first = fused.boxes[i, 0]
    assert np.isclose(raw.boxes[i], first, atol=1e-3).all(axis=1).sum() == 3


def test_targets_are_padded_to_the_most_that_an_image_has(dataset):
    """Whatever that is: no box is cut, and nothing asks for a limit."""
    rows = dataset.annotations
    counts = np.bincount(rows.image[rows.labels != NO_FINDING])
    assert make_targets(dataset, "none", 64).boxes.shape == (30, counts.max(), 4)
    normal = dataset.take(np.setdiff1d(np.arange(30), rows.image[rows.labels != NO_FINDING]))
    targets = make_targets(normal, "none", 64)
    assert targets.boxes.shape == (10, 1, 4) and not targets.mask.any()


def test_targets_are_in_pixels_of_the_model_input(dataset):
    rows = dataset.annotations
    image = rows.image[rows.labels != NO_FINDING][0]
    raw = make_targets(dataset, "none", 64)
    mine = (rows.image == image) & (rows.labels != NO_FINDING)
    expected = rows.boxes[mine] * np.array([64 / 384, 64 / 512] * 2)
    got = raw.boxes[image][raw.mask[image]]
    np.testing.assert_allclose(sorted(got.tolist()), sorted(expected.tolist()), rtol=1e-5)


def test_a_batch_is_a_function_of_seed_and_step(dataset):
    one, two, other = batches(dataset), batches(dataset), batches(dataset, seed=1)
    assert all(same(one[step], two[step]) for step in (5, 0, 3))
    assert not same(one[0], other[0])
    assert not same(one[0], one[1])


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("cache", [True, False])
def test_the_stream_does_not_depend_on_the_workers(dataset, workers, cache):
    expected = batches(dataset)
    stream = read_ahead(batches(dataset, cache=cache), 4, workers)
    for step in range(4, 12):
        assert same(next(stream), expected[step])


def test_images_are_kept_where_they_fit_and_are_the_same_where_not(dataset, monkeypatch, capsys):
    kept = batches(dataset)[3]
    assert "train: 30 images are 0 MB" in (line := capsys.readouterr().out)
    assert line.endswith("are free: kept in memory\n")
    monkeypatch.setattr(rooms, "free_memory", lambda: 30 * 64**2)
    streamed = batches(dataset)[3]
    assert capsys.readouterr().out.endswith("are free: decoded when they are needed\n")
    assert same(kept, streamed)
    assert Images(dataset, 64, "x").kept is None
    # Beside others that are kept first, where those can be kept at all.
    monkeypatch.setattr(rooms, "free_memory", lambda: 100 * 64**2)
    for others, fits in ((0, True), (49, True), (50, False), (79, False), (80, True)):
        kept = Images(dataset, 64, "x", beside=others * 64**2).kept
        assert (kept is not None) is fits
    assert Images(dataset, 64, "x", keep=False).kept is None
    monkeypatch.setattr(rooms, "free_memory", lambda: 30 * 64**2 - 1)
    with pytest.raises(InputError, match="test: 30 images of 64 pixels need 0 MB of memory"):
        rooms.decode_all(dataset, 64, "test")


def test_free_memory_is_what_the_cgroup_leaves(tmp_path):
    total, mine = psutil.virtual_memory().total, psutil.Process().memory_info().rss
    assert 0 < free_memory() < total
    (tmp_path / "proc/self").mkdir(parents=True)
    groups, limits = tmp_path / "proc/self/cgroup", tmp_path / "sys/fs/cgroup"
    for lines, place, name in (
        ("0::/job/7\n", "job/7", "memory.max"),
        ("5:cpu:/\n4:memory:/job/8\n", "memory/job/8", "memory.limit_in_bytes"),
    ):
        groups.write_text(lines)
        (limits / place).mkdir(parents=True)
        (limits / place / name).write_text("max\n")
        assert free_memory(tmp_path) > 1e6
        (limits / place / name).write_text(f"{mine + 1_000_000_000}\n")
        assert 0 < free_memory(tmp_path) < 1.1e9
        (limits / place / name).write_text("max\n")
        (limits / place).parent.joinpath(name).write_text("1\n")  # of all that is below
        assert free_memory(tmp_path) == 0


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
    targets = make_targets(dataset, "wbf@0.4", 64)
    found = dataset.take(np.flatnonzero(targets.mask.any(axis=1)))
    stream = batches(found, normal_share=0.25)
    assert all(stream[step]["mask"].any(axis=1).all() for step in range(8))
    with pytest.raises(InputError, match=r"config\.data\.normal_share: 1\.0"):
        batches(found, normal_share=1.0)


def test_balanced_classes_come_equally_often(dataset):
    """Each third of the images with findings comes from those with one of the three classes."""
    targets = make_targets(dataset, "wbf@0.4", 64)
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


def where_two_see_nothing(dataset):
    """The dataset without two of three readers' boxes in one image; and that image."""
    rows = dataset.annotations
    image = rows.image[rows.labels != NO_FINDING][0]
    gone = (rows.image == image) & (rows.readers != "R1")
    fewer = Annotations(*(column[~gone] for column in vars(rows).values()))
    return replace(dataset, annotations=fewer), image


def test_votes_are_soft_targets(dataset):
    """Two of three readers of one image see nothing: its boxes aim at a third."""
    fewer, image = where_two_see_nothing(dataset)
    votes = make_targets(fewer, "votes@0.4", 64)
    np.testing.assert_allclose(votes.soft_targets[image][votes.mask[image]], 1 / 3)
    others = np.delete(votes.mask, image, axis=0)
    np.testing.assert_array_equal(np.delete(votes.soft_targets, image, axis=0)[others], 1)
    fused = make_targets(fewer, "wbf@0.4", 64)
    assert (fused.soft_targets == 1).all()
    # Where there is but one reader, that one is all of them.
    rows = dataset.annotations
    alone = Annotations(*(column[rows.readers == "R1"] for column in vars(rows).values()))
    votes = make_targets(replace(dataset, annotations=alone), "votes@0.4", 64)
    assert (votes.soft_targets == 1).all()


def test_earl_weighs_by_the_share_of_readers(dataset):
    """A weight for each box, in batches too; other methods have none, and batches are as before."""
    fewer, image = where_two_see_nothing(dataset)
    targets = make_targets(fewer, "earl@0.4", 64)
    weights = targets.weights[targets.mask]
    assert (targets.soft_targets == 1).all() and weights.dtype == np.float32
    np.testing.assert_allclose(targets.weights[image][targets.mask[image]], 1 / 3)
    assert (np.delete(targets.weights, image, axis=0) == 1).all()
    wbf = make_targets(fewer, "wbf@0.4", 64)
    order = lambda t: t.boxes[t.mask][np.lexsort(t.boxes[t.mask].T)]  # noqa: E731
    np.testing.assert_array_equal(order(targets), order(wbf))
    assert wbf.weights is None and "weights" not in wbf.columns() and "weights" in targets.columns()


def test_processes_load_their_rows_of_one_global_batch(dataset):
    whole = batches(dataset)[2]
    halves = [batches(dataset, rows=rows)[2] for rows in (slice(0, 4), slice(4, 8))]
    for name in whole:
        np.testing.assert_array_equal(whole[name], np.concatenate([h[name] for h in halves]))
