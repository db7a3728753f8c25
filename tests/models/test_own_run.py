"""What comes over from one detector of ours to another, on arrays made by hand."""

import jax
import numpy as np
import pytest

from jaxdet import InputError, models
from jaxdet.models.layers import EPSILON
from jaxdet.models.resnet import ResNet
from jaxdet.models.weights.init_from import names_of
from jaxdet.models.weights.own_run import from_run, same_levels, take
from tests import networks

THEIRS, OURS = ("Nodule", "Mass", "Effusion"), ("Mass", "Cardiomegaly", "Nodule", "Mass too")
STEM = {"backbone/stem/conv/kernel": np.full((3, 3, 1, 2), 7.0)}


def last_layers(classes, anchors, seed):
    """Numbers for the last layers of a detector whose towers have 2 channels."""
    rng = np.random.default_rng(seed)
    shapes = {
        "class_head/final/kernel": (3, 3, 2, anchors * classes),
        "class_head/final/bias": (anchors * classes,),
        "box_head/final/kernel": (3, 3, 2, anchors * 4),
        "box_head/final/bias": (anchors * 4,),
        "image_head/kernel": (5, classes + 1),
        "image_head/bias": (classes + 1,),
    }
    return STEM | {name: rng.normal(size=shape).astype("f") for name, shape in shapes.items()}


def rows_of(arrays, layer, outputs, name):
    """(..., anchors) of one output, from the definition: anchor after anchor."""
    x = arrays[f"{layer}/{name}"]
    return lambda output: np.stack(
        [x[..., anchor * outputs + output] for anchor in range(x.shape[-1] // outputs)], -1
    )


@pytest.mark.parametrize("their_anchors,our_anchors", [(2, 2), (3, 1), (1, 3), (2, 3)])
def test_rows_of_classes_come_over_by_name(their_anchors, our_anchors):
    """Those of a class that is not there stay as they were; of other anchors, the mean."""
    theirs, ours = last_layers(3, their_anchors, 0), last_layers(4, our_anchors, 1)
    taken = take(theirs, ours, THEIRS, OURS)
    assert not taken.new and not taken.misfits and not taken.unused
    same = their_anchors == our_anchors

    def assert_taken(layer, sizes, pairs):
        for name in ("kernel", "bias"):
            there = rows_of(theirs, layer, sizes[0], name)
            before, after = (rows_of(x, layer, sizes[1], name) for x in (ours, taken.arrays))
            for target in range(sizes[1]):
                if target not in pairs:
                    np.testing.assert_array_equal(after(target), before(target))
                    continue
                rows = there(pairs[target])
                if not same and layer != "image_head":
                    rows = rows.mean(axis=-1, keepdims=True)
                expected = np.broadcast_to(rows, after(target).shape)
                np.testing.assert_allclose(after(target), expected, rtol=1e-5)

    assert_taken("class_head/final", (3, 4), {0: 1, 2: 0})
    assert_taken("box_head/final", (4, 4), {i: i for i in range(4)})
    assert_taken("image_head", (4, 5), {0: 1, 2: 0, 4: 3})  # "any finding" is the last of both
    assert taken.said[0] == (
        "rows of the classes Mass, Nodule; no rows for Cardiomegaly, Mass too; of no use those of "
        "Effusion"
    )
    assert any("the mean of" in sentence for sentence in taken.said) != same


def test_the_same_classes_in_another_order_are_not_mistaken():
    theirs, ours = last_layers(2, 1, 0), last_layers(2, 1, 1)
    taken = take(theirs, ours, ("a", "b"), ("b", "a"))
    expected = theirs["class_head/final/kernel"][..., ::-1]
    np.testing.assert_array_equal(taken.arrays["class_head/final/kernel"], expected)


def test_what_does_not_come_over_is_said_array_by_array():
    theirs = STEM | {"fpn/extra/0/kernel": np.zeros((3, 3, 4, 4)), "old/bias": np.zeros(2)}
    ours = STEM | {"fpn/extra/0/kernel": np.ones((3, 3, 8, 8)), "new/bias": np.ones(3)}
    taken = take(theirs, ours, THEIRS, OURS)
    assert list(taken.arrays) == list(STEM)
    assert taken.new == ["new/bias"] and taken.unused == ["old/bias"]
    assert taken.misfits == ["fpn/extra/0/kernel ((3, 3, 4, 4) there, (3, 3, 8, 8) here)"]


@pytest.mark.parametrize(
    "other",
    [{}, {"backbone/stem/conv/kernel": np.zeros((3, 3, 1, 4))},
     STEM | {"backbone/stages/0/0/conv3/kernel": np.zeros((1, 1, 2, 8))}],
)  # fmt: skip
def test_another_backbone_is_one_line(other):
    for pair in ((other, STEM), (STEM, other)):
        with pytest.raises(InputError, match=r"^its backbone is another one: backbone/\S+ is .*$"):
            take(*pair, THEIRS, OURS)


@pytest.mark.parametrize("theirs,ours", [((2, 5), (3, 5)), ((4, 6), (2, 5)), ((3, 5), (3, 6))])
def test_layers_of_the_pyramid_are_those_of_the_same_level(theirs, ours):
    """Each layer holds its level; whatever has our name must be of our level."""

    def pyramid(first, last):
        levels = range(first, 6)
        arrays = {
            f"fpn/{part}/{i}/kernel": np.full(3, level)
            for part in ("lateral", "output") for i, level in enumerate(levels)
        }  # fmt: skip
        return arrays | {f"fpn/extra/{i}/kernel": np.full(3, 6 + i) for i in range(last - 5)}

    mine, found = pyramid(*ours), same_levels(pyramid(*theirs), pyramid(*ours))
    shared = mine.keys() & found.keys()
    assert all((mine[name] == found[name]).all() for name in shared)
    both = range(max(theirs[0], ours[0]), min(theirs[1], ours[1]) + 1)
    assert len(shared) == sum(1 if level > 5 else 2 for level in both)


def filled(classes, value=None, **fields):
    """A detector whose arrays have random numbers, or one value."""
    rng = np.random.default_rng(0)
    config = networks.model_config("batch", **fields)
    _, abstract = models.abstract(config, networks.LOSS, classes, networks.SIZE)

    def fill(x):
        return np.full(x.shape, value) if value is not None else rng.uniform(1, 2, x.shape)

    return jax.tree.map(lambda x: fill(x).astype("f"), abstract)


def test_a_whole_detector_comes_over_into_one_with_other_classes_and_anchors():
    theirs = filled(3)
    ours = filled(4, 0.0, anchor_scales=(2.0,), levels=(4, 5), image_head=False)
    params, batch_stats, report = from_run(
        "runs/a at step 3", theirs, THEIRS, OURS, **ours, backbone=ResNet
    )
    assert jax.tree.structure((params, batch_stats)) == jax.tree.structure(
        (ours["params"], ours["batch_stats"])
    )
    before = names_of(theirs["params"]) | names_of(theirs["batch_stats"])
    for name, value in (names_of(params) | names_of(batch_stats)).items():
        if name.startswith(("backbone/", "class_head/tower", "box_head/tower")):
            np.testing.assert_array_equal(value, before[name])
        elif name.startswith(("fpn/lateral", "fpn/output")):
            _, part, i, kind = name.split("/")
            np.testing.assert_array_equal(value, before[f"fpn/{part}/{int(i) + 1}/{kind}"])
        else:
            assert np.any(value)
    assert report.startswith("runs/a at step 3: took ")
    for said in ("fpn/extra/0/kernel", "image_head/kernel", "fpn/output/-1/kernel", "no rows for"):
        assert said in report


def test_variances_become_those_of_frozen_normalisation():
    """It adds no epsilon to them, and has its scale among the statistics."""
    theirs = filled(3)
    config = {**networks.model_config("batch")}
    config["backbone"] = {**config["backbone"], "norm": "frozen_batch"}
    _, ours = models.abstract(config, networks.LOSS, 3, networks.SIZE)
    ours = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), ours)
    _, batch_stats, _ = from_run("a", theirs, THEIRS, THEIRS, **ours, backbone=ResNet)
    found, before = names_of(batch_stats), names_of(theirs["params"])
    before |= names_of(theirs["batch_stats"])
    for name, value in found.items():
        np.testing.assert_allclose(value, before[name] + EPSILON * name.endswith("/var"), rtol=1e-6)
