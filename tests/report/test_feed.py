from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxdet import models
from jaxdet.data.batches import make_targets, training_batches
from jaxdet.ops import boxes
from jaxdet.report import feed
from jaxdet.report.data import data_page
from jaxdet.training.train_step import TrainState, make_train_step
from tests.report.test_report import galleries, read


@pytest.fixture(params=["atss", "iou"])
def fed(request, config, dataset):
    config.loss.matching = request.param
    targets = make_targets(dataset, config.data.fusion, 64)
    return feed.feed(config, dataset, targets, 10)


def test_whole_batches_of_what_is_trained_on(fed, dataset):
    assert fed.images.shape == (16, 64, 64)  # two steps of eight
    pyramid, mask = fed.priors.pyramid, fed.targets.mask
    assert len(pyramid) == 3 and fed.match.shape[1] == sum(map(len, pyramid))
    assert mask.any(axis=1).sum() == 12  # a quarter is normal
    assert (fed.match[~mask.any(axis=1)] < 0).all()


def test_positives_are_the_anchors_that_answer(fed):
    positives, targets = fed.positives(), fed.targets
    assert positives.sum() == (fed.match >= 0).sum() > 0
    assert (positives[~targets.mask] == 0).all()
    level = np.repeat(np.arange(3), [len(a) for a in fed.priors.pyramid])
    anchors = np.concatenate(fed.priors.pyramid)
    for i, box in zip(*np.nonzero(targets.mask), strict=True):
        mine = fed.match[i] == box
        assert positives[i, box].tolist() == np.bincount(level[mine], minlength=3).tolist()
        if mine.any():  # they overlap it
            assert (boxes.iou(anchors[mine], targets.boxes[i, box][None]) > 0).all()


class Recorder(nnx.Module):
    """A detector whose losses tell what they are given."""

    seen = []  # noqa: RUF012  of the class, as a module is taken apart and put together

    def __init__(self):
        self.weight = nnx.Param(jnp.ones(()))

    def __call__(self, images, train):
        return images.mean() * self.weight[...]

    def losses(self, outputs, targets):
        jax.debug.callback(lambda *x: self.seen.append(list(map(np.asarray, x))), *targets)
        return {"loss": outputs}


def test_it_is_what_the_step_sees(config, dataset):
    """The boxes that the second training step hands to its losses."""
    targets = make_targets(dataset, config.data.fusion, 64)
    fed = feed.feed(config, dataset, targets, 16)
    graphdef, params, batch_stats = models.split(Recorder())
    optimizer = optax.sgd(0.1)
    zero = jnp.array(0)
    state = TrainState(
        jnp.array(1), params, batch_stats, optimizer.init(params), params, zero, zero
    )
    batch = training_batches(config, dataset, targets, slice(None))[1]
    jax.jit(make_train_step(config, graphdef, optimizer))(state, batch)
    jax.effects_barrier()
    boxes, labels, _, mask, *_ = Recorder.seen[-1]
    np.testing.assert_array_equal(mask, fed.targets.mask[8:])
    np.testing.assert_array_equal(labels, fed.targets.labels[8:])
    np.testing.assert_allclose(boxes[mask], fed.targets.boxes[8:][mask], atol=1e-3)


@pytest.mark.slow
def test_the_page_about_a_detector_without_anchors(config, dataset):
    """Locations answer for boxes, by no matching that the config names; nothing reaches a box."""
    config.model.update({"name": "fcos", "anchor_scales": None, "aspect_ratios": None})
    html = data_page(config, dataset, dataset.take(np.arange(24)), dataset, "shapes")
    found = read(html)
    assert "anchors" in found.sections and "reached" not in found.cells
    assert "FCOS, levels P3, P4, P5" in html and "matching)" not in html
    assert "not all boxed" not in html and "unknown" not in found.cells
    fed, *_ = galleries(html)
    assert sum(len(film["boxes"]["anchors"]) for film in fed["films"]) > 24


def test_the_page_about_the_data(config, dataset):
    exhaustive = np.ones((len(dataset), dataset.num_classes), bool)
    exhaustive[:25, 3] = exhaustive[7, 5] = False
    dataset = replace(dataset, exhaustive=exhaustive)
    train_set, eval_set = dataset.take(np.arange(24)), dataset.take(np.arange(24, 30))
    config.data.fusion = "skill@0.4"
    html = data_page(config, dataset, train_set, eval_set, "shapes")
    found = read(html)
    assert found.sections == [
        "fed", "anchors", "classes", "sizes", "where", "readers", "suspicious", "samples", "run"
    ]  # fmt: skip
    assert all(link.startswith(("#", "data:")) for link in found.links)
    fed, *suspects, samples = galleries(html)
    assert len(fed["films"]) == 24 and len(samples["films"]) == 24
    # Three readers drew the same: one box is left of three.
    for film in samples["films"]:
        drawn, fused = film["boxes"]["readers"], film["boxes"]["fused"]
        assert len(drawn) == 3 * len(fused)
        corners = np.array([box[:5] for box in drawn], float).reshape(-1, 5)
        for box in fused:
            assert np.abs(corners - box[:5]).max(axis=1).min() < 1
    rows = dataset.annotations
    start = found.cells.index("drawn")
    for label, name in enumerate(dataset.class_names):
        _, _, unknown, _, drawn, *_ = found.cells[found.cells.index(name, start) :]
        assert drawn == str((rows.labels == label).sum())
        assert unknown == str({3: 25, 5: 1}.get(label, 0))
    assert "25 pairs of image and class not all boxed" in html  # of 24 films trained on
    # Of the readers what the others say, and what is inferred of them.
    assert "agreed by others" in found.cells and "true share" in found.cells
    assert "fingerprint " + dataset.fingerprint() in html
    for gallery in suspects:
        assert set(gallery["groups"]) <= {"Inverted", "Duplicates", "At the edge", "Tiny boxes",
                                          "Black borders", "Flat", "Disputed"}  # fmt: skip
