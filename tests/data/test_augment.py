import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import retina
from jaxdet import InputError
from jaxdet.data.augment import (
    AUGMENTATIONS,
    augment,
    check_each_once,
    covered,
    warp_boxes,
    warp_image,
)
from jaxdet.data.images import normalize
from jaxdet.ops.boxes import Targets

NOTHING = {
    **retina.get_config().augment,
    "flip": 0.0, "scale": 0.0, "shift": 0.0, "rotate": 0.0, "min_visible": 0.3,
    "brightness": 0.0, "contrast": 0.0, "gamma": 0.0,
    "zoom_probability": 1.0, "zoom_in": 0.0, "zoom_out": 0.0,
    "paste_probability": 1.0, "paste_shift": 0.0, "paste_overlap": 0.0,
    "mix_probability": 1.0, "mix_share": 0.5,
}  # fmt: skip
SIZE = 64


def disc(x, y, rx, ry):
    """A bright ellipse on black, and its box."""
    grid_y, grid_x = np.mgrid[:SIZE, :SIZE] + 0.5
    inside = ((grid_x - x) / rx) ** 2 + ((grid_y - y) / ry) ** 2 <= 1
    return (inside * 255).astype(np.uint8), np.array([x - rx, y - ry, x + rx, y + ry], "f")


def extent(image):
    rows, columns = np.nonzero(np.asarray(image) > 127)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def batch_of(films):
    """Four films of up to three discs (x, y, rx, ry), whose labels count the discs of all.

    The last ones given: those before them are normal. As all batches have one shape, what each
    operation compiles to is made once.
    """
    films, num_boxes = [[]] * (4 - len(films)) + films, 3
    targets = Targets(
        np.zeros((len(films), num_boxes, 4), np.float32),
        np.zeros((len(films), num_boxes), np.int32),
        np.ones((len(films), num_boxes), np.float32),
        np.zeros((len(films), num_boxes), bool),
    )
    images, label = np.zeros((len(films), SIZE, SIZE), np.uint8), 0
    for i, film in enumerate(films):
        for slot, ellipse in enumerate(film):
            image, targets.boxes[i, slot] = disc(*ellipse)
            images[i] |= image
            label += 1
            targets.labels[i, slot], targets.mask[i, slot] = label, True
            targets.soft_targets[i, slot] = 1 / label
    batch = {"images": images, **targets.columns(), "image": np.arange(len(films))}
    return jax.tree.map(jnp.array, batch)


def run(key=0, batch=None, **options):
    """Films of a disc each, or a batch, under some fields."""
    batch = batch_of([[(22, 30, 9, 5)]] * 4) if batch is None else batch
    return augment(jax.random.key(key), batch, NOTHING | options)


def same_but(before, after, *names):
    for name in before.keys() - set(names):
        np.testing.assert_array_equal(before[name], after[name])


@pytest.mark.parametrize("apply", [(), ("affine", "grey_levels"), ("crop_and_zoom",)])
def test_nothing_asked_for_changes_nothing(apply):
    before = batch_of([[(22, 30, 9, 5)]])
    after = run(batch=before, apply=apply)
    np.testing.assert_allclose(after["images"], before["images"], atol=0.1)
    np.testing.assert_allclose(after["boxes"], before["boxes"], atol=1e-4)
    same_but(before, after, "images", "boxes")


@pytest.mark.parametrize(
    "options",
    [
        {"flip": 1.0},
        {"scale": 0.3},
        {"shift": 0.2},
        {"rotate": 30.0},
        {"flip": 0.5, "scale": 0.2, "shift": 0.1, "rotate": 20.0},
        {"apply": ("crop_and_zoom",), "zoom_in": 0.6, "zoom_out": 0.5},
        {"apply": ("crop_and_zoom", "affine"), "zoom_in": 0.2, "rotate": 20.0},
    ],
)
def test_the_box_stays_on_what_it_bounds(options):
    checked = 0
    for key in range(3):
        after = run(key, **options)
        for box, mask, image in zip(
            after["boxes"][:, 0], after["mask"][:, 0], after["images"], strict=True
        ):
            if mask:
                np.testing.assert_allclose(box, extent(image), atol=1.2)
                checked += 1
    assert checked > 8


def test_older_runs_go_on_with_the_same_numbers():
    """Those of commit 28ca199, where warp and grey levels were one function."""
    y, x = np.mgrid[:SIZE, :SIZE]
    batch = batch_of([])
    batch["images"] = jnp.stack([(x * 3 + y * 2 + 40 * i) % 256 for i in range(4)]).astype("uint8")
    batch["boxes"] = batch["boxes"].at[:2, 0].set(jnp.array([[8, 10, 40, 30], [20, 4, 60, 44]]))
    options = {
        "flip": 0.5, "scale": 0.15, "shift": 0.05, "rotate": 5.0,
        "brightness": 0.1, "contrast": 0.2, "gamma": 0.2,
    }  # fmt: skip
    after = run(7, batch, **options)
    expected = [[20.572, 7.433, 57.211, 30.405], [23.387, 5.228, 60.574, 42.415]]
    np.testing.assert_allclose(after["boxes"][:2, 0], expected, atol=2e-3)
    expected = [
        [173.16, 131.05, 86.89, 39.26], [25.5, 94.78, 163.14, 230.92],
        [140.47, 186.07, 229.87, 5.51], [115.45, 164.48, 154.7, 53.1],
    ]  # fmt: skip
    np.testing.assert_allclose(after["images"][:, 9, 5::18], expected, atol=0.02)


def test_flip_mirrors_pixels_exactly():
    after = run(flip=1.0)
    np.testing.assert_allclose(after["images"][0], disc(22, 30, 9, 5)[0][:, ::-1], atol=0.1)
    np.testing.assert_allclose(after["boxes"][0, 0], [SIZE - 31, 25, SIZE - 13, 35], atol=1e-4)


def test_a_box_moved_out_is_masked():
    runs = [run(key, shift=1.0) for key in range(10)]
    boxes, masks = (np.concatenate([x[name][:, 0] for x in runs]) for name in ("boxes", "mask"))
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) / (18 * 10)
    assert 5 < masks.sum() < 35
    np.testing.assert_array_equal(masks, area > 0.3)
    assert boxes.min() >= 0 and boxes.max() <= SIZE


def test_zoom_shows_a_part_or_puts_the_film_on_black():
    """Where the film lies is seen on a bright one; and a box on all of it says the same."""
    before = batch_of([[(32, 32, 32, 32)]] * 4)
    before["images"] = jnp.full((4, SIZE, SIZE), 255, jnp.uint8)
    options = {"apply": ("crop_and_zoom",), "zoom_in": 1.0, "zoom_out": 1.0, "min_visible": 0.5}
    sides, visible = [], []
    for key in range(5):
        after = run(key, before, **options)
        for image, box in zip(after["images"], after["boxes"][:, 0], strict=True):
            np.testing.assert_allclose(box, extent(image), atol=1)
            sides.append(box[2] - box[0])
        visible.extend(after["mask"][:, 0])
    assert SIZE / 2 <= min(sides) < 0.7 * SIZE and max(sides) == SIZE
    assert 3 < sum(visible) < 20  # a factor above 1.4 leaves less than half
    untouched = run(3, before, **options | {"zoom_probability": 0.0})
    same_but(before, untouched)


@pytest.mark.parametrize("name", ["brightness", "contrast", "gamma"])
def test_grey_levels_change_and_boxes_do_not(name):
    grey = jnp.broadcast_to(jnp.arange(0, 256, 4, dtype=jnp.uint8), (4, 64, 64))
    before = {**batch_of([[(22, 30, 9, 5)]]), "images": grey}
    means = []
    for key in range(3):
        after = run(key, before, apply=("grey_levels",), **{name: 0.5})
        changed = after["images"]
        assert changed.min() >= 0 and changed.max() <= 255
        assert (np.diff(changed[0, 0]) >= 0).all()  # brighter stays brighter
        same_but(before, after, "images")
        means.append(float(jnp.abs(changed - grey).mean()))
    assert max(means) > 5 and len(set(means)) == 3


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_films_of_a_batch_differ_and_keys_repeat(name):
    batch = batch_of([[(22, 30, 9, 5)]] * 2 + [[], []])
    options = {"shift": 0.2, "brightness": 0.2, "zoom_in": 1.0, "paste_shift": 0.5}
    one, two, other = (run(key, batch, apply=(name,), **options) for key in (5, 5, 6))
    same_but(one, two)
    first = 2 if name == "paste_findings" else 0
    assert not np.allclose(one["images"][first], one["images"][first + 1])
    assert not np.allclose(one["images"], other["images"])


def test_the_order_is_the_lists():
    """What zoom brings in from outside is black, unless grey levels change afterwards."""
    fields, names = {"zoom_out": 3.0, "brightness": 0.5}, ("crop_and_zoom", "grey_levels")
    after = run(4, apply=names, **fields)["images"].min(axis=(1, 2))
    before = run(4, apply=names[::-1], **fields)["images"].min(axis=(1, 2))
    assert (before == 0).all() and (after > 0).any()


def test_an_augmentation_is_named_once():
    check_each_once(("affine", "grey_levels"))
    with pytest.raises(InputError, match="'affine' is there twice"):
        check_each_once(("affine", "grey_levels", "affine"))


def paste(batch, key=0, **options):
    return run(key, batch, apply=("paste_findings",), **options)


def test_a_pasted_finding_brings_its_pixels_its_label_and_its_soft_target():
    """Normal films receive it; the one that gave it, whose others are normal, receives none."""
    before = batch_of([[(50, 50, 5, 5), (20, 24, 6, 5)]])
    before["weights"] = before["soft_targets"] / 2
    after = paste(before, paste_overlap=1.0)
    for film in range(4):
        given = film < 3
        assert after["mask"][film].tolist() == [True, not given, False]
        label = int(after["labels"][film, 0])
        assert label in (1, 2)
        assert after["soft_targets"][film, 0] == pytest.approx(1 / label)
        assert after["weights"][film, 0] == pytest.approx(1 / label / 2)
        ellipse = [(50, 50, 5, 5), (20, 24, 6, 5)][label - 1]
        image, box = disc(*ellipse)
        np.testing.assert_array_equal(after["boxes"][film, 0], box)
        if given:
            np.testing.assert_allclose(after["images"][film], image, atol=0.1)
    np.testing.assert_allclose(after["images"][3], before["images"][3], atol=0.1)
    np.testing.assert_array_equal(after["image"], before["image"])
    same_but(before, paste(before, paste_probability=0.0))


def test_it_comes_to_a_place_near_its_own_and_wholly_inside():
    before = batch_of([[(20, 10, 6, 5)]])
    places = []
    for key in range(6):
        after = paste(before, key, paste_shift=0.25)
        for box, image in zip(after["boxes"][:3, 0], after["images"], strict=False):
            np.testing.assert_array_equal(box, extent(image))
            assert box.min() >= 0 and box.max() <= SIZE
            places.append(box - before["boxes"][3, 0])
    assert (np.abs(places) <= SIZE / 4).all() and len(np.unique(places, axis=0)) > 12
    assert min(place[1] for place in places) == -5  # up to the border


def test_every_finding_of_the_other_films_comes_as_often():
    """And none of the film itself, though there is room."""
    before = batch_of([[(12, 12, 5, 5), (50, 12, 5, 5)], [(12, 50, 5, 5)], [], [(50, 50, 5, 5)]])
    own, free = ([1, 2], [3], [], [4]), [2, 1, 0, 1]
    came = [np.asarray(paste(before, key)["labels"])[range(4), free] for key in range(20)]
    for film, mine in enumerate(own):
        labels, counts = np.unique([x[film] for x in came], return_counts=True)
        assert labels.tolist() == [label for label in (1, 2, 3, 4) if label not in mine]
        assert counts.min() >= 2


@pytest.mark.parametrize(
    "films,options,pastes",
    [
        ([[(20, 24, 6, 5)], [(50, 50, 5, 5)]], {}, True),
        # No place for a box is left.
        ([[(20, 24, 6, 5)], [(50, 50, 5, 5), (50, 20, 5, 5), (20, 50, 5, 5)]], {}, False),
        # It would cover what is there, or half of it.
        ([[(20, 24, 8, 8)], [(20, 24, 2, 2)]], {}, False),
        ([[(20, 24, 8, 8)], [(30, 24, 5, 5)]], {"paste_overlap": 0.1}, False),
        ([[(20, 24, 8, 8)], [(30, 24, 5, 5)]], {"paste_overlap": 0.7}, True),
        # It is small upon something large.
        ([[(20, 24, 2, 2)], [(20, 24, 20, 20)]], {"paste_overlap": 0.1}, True),
        # Nobody has one to give.
        ([[], []], {}, False),
        ([[(20, 24, 6, 5)]], {}, False),
    ],
)
def test_when_a_finding_comes(films, options, pastes):
    before = batch_of(films)
    after = paste(before, **options)
    assert after["mask"][-1].sum() - before["mask"][-1].sum() == pastes
    if not pastes:
        np.testing.assert_allclose(after["images"][-1], before["images"][-1], atol=1e-3)
        for name in before.keys() - {"images"}:
            np.testing.assert_array_equal(after[name][-1], before[name][-1])


def test_a_film_receives_from_those_that_know_what_it_knows():
    """What comes along unseen must not become background: no one gives to who knows more."""
    before = batch_of([[(12, 12, 5, 5)], [(50, 12, 5, 5)], [(12, 50, 5, 5)], [(50, 50, 5, 5)]])
    before["exhaustive"] = jnp.array([[1, 0], [0, 1], [1, 1], [0, 0]], bool)
    came = {i: set() for i in range(4)}
    for key in range(12):
        after = paste(before, key)
        np.testing.assert_array_equal(after["exhaustive"], before["exhaustive"])
        for film in range(4):
            came[film] |= set(after["labels"][film, 1:][after["mask"][film, 1:]].tolist())
    assert came == {0: {3}, 1: {3}, 2: set(), 3: {1, 2, 3}}


def test_no_finding_comes_along_without_its_box():
    """The small one lies in the large one: only the small one can come."""
    before = batch_of([[(30, 30, 20, 20), (30, 30, 4, 4)]])
    came = [paste(before, key, paste_overlap=0.2)["labels"][:3, 0] for key in range(4)]
    assert set(np.ravel(came).tolist()) == {0, 2}


def test_the_edge_of_a_pasted_box_cannot_be_seen():
    """The finding of a brighter film is as bright as its new surroundings, and has no border."""
    before = batch_of([[(32, 32, 10, 10)]])
    finding, grey = disc(32, 32, 10, 10)[0] > 0, jnp.array([40, 40, 40, 120])[:, None, None]
    before["images"] = (grey + 60 * finding).at[:3].set(40).astype(jnp.uint8)
    after = paste(before)["images"][0]
    np.testing.assert_allclose(after, 40 + 60 * finding, atol=0.01)


def test_a_batch_over_four_devices_is_that_of_one():
    batch = batch_of([[(20, 24, 6, 5)], [], [(50, 50, 5, 5)], []])
    options = {"shift": 0.2, "gamma": 0.2, "zoom_in": 0.2, "paste_shift": 0.2}
    names = ("mix_with_normal", "paste_findings", "crop_and_zoom", "grey_levels")
    fields = NOTHING | {"apply": names} | options
    mesh = Mesh(np.array(jax.devices()), "data")
    split = NamedSharding(mesh, PartitionSpec("data"))
    step = jax.jit(lambda batch: augment(jax.random.key(1), batch, fields), in_shardings=split)
    one, four = augment(jax.random.key(1), batch, fields), step(batch)
    for name in one:
        np.testing.assert_allclose(one[name], four[name], rtol=1e-5, atol=1e-2)


def test_covered_shares():
    boxes = jnp.array([[0.0, 0, 10, 10], [5, 5, 15, 15], [20, 20, 30, 30], [5, 5, 5, 5]])
    np.testing.assert_allclose(covered(boxes, boxes[0]), [1, 0.25, 0, 0])


def test_warps_of_image_and_boxes_agree_off_centre():
    image, box = disc(40, 20, 6, 6)
    matrix, offset = jnp.array([[0.0, -0.8], [0.8, 0.0]]), jnp.array([58.0, 4.0])
    moved = warp_image(jnp.array(image, jnp.float32), matrix, offset)
    np.testing.assert_allclose(
        warp_boxes(jnp.array([box]), matrix, offset)[0], extent(moved), atol=1.0
    )


def test_normalize():
    images = jnp.array([[[0, 255]]], jnp.uint8)
    np.testing.assert_allclose(normalize(images), [[[[-2.0], [2.0]]]])


def test_a_normal_film_shines_through_and_changes_no_label():
    """The first film has no box either, but may have a finding."""
    before = batch_of([[(22, 30, 9, 5)], [(40, 40, 6, 6)], []])
    grey = np.array([[[200]], [[0]], [[0]], [[100]]], np.uint8)
    before["images"] = jnp.maximum(before["images"], grey)
    before["exhaustive"] = jnp.array([[True, False], [True, True], [False, True], [True, True]])
    options = {"apply": ("mix_with_normal",), "mix_share": 0.9}
    normal, shares = before["images"][3].astype("f"), []
    for key in range(4):
        after = run(key, before, **options)
        same_but(before, after, "images")
        np.testing.assert_allclose(after["images"][3], normal, atol=0.01)
        for film in range(3):
            change = normal - before["images"][film]
            mixed = np.asarray(after["images"][film]) - before["images"][film]
            shares.append(float((mixed * change).sum() / (change**2).sum()))
            np.testing.assert_allclose(mixed, shares[-1] * change, atol=0.01)
    assert 0 < min(shares) < 0.3 and 0.6 < max(shares) < 0.9
    after = run(0, before, **options | {"mix_probability": 0.0})
    same_but(before, after, "images")
    np.testing.assert_allclose(after["images"], before["images"], atol=0.1)


def test_without_a_normal_film_nothing_shines_through():
    before = batch_of([[(22, 30, 9, 5)]] * 4)
    same_but(before, run(0, before, apply=("mix_with_normal",)))
