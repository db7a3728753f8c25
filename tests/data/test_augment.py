import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.data.augment import warp, warp_boxes, warp_image
from jaxdet.data.images import normalize

NOTHING = {
    "flip": 0.0, "scale": 0.0, "shift": 0.0, "rotate": 0.0, "min_visible": 0.3,
    "brightness": 0.0, "contrast": 0.0, "gamma": 0.0,
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


def run(key=0, **options):
    image, box = disc(22, 30, 9, 5)
    boxes = jnp.array([[box, np.zeros(4)]], jnp.float32)
    mask = jnp.array([[True, False]])
    return warp(jax.random.key(key), jnp.array(image[None]), boxes, mask, **{**NOTHING, **options})


def test_nothing_asked_for_changes_nothing():
    image, box = disc(22, 30, 9, 5)
    got, boxes, mask = run()
    np.testing.assert_allclose(got[0], image, atol=0.1)
    np.testing.assert_allclose(boxes[0, 0], box, atol=1e-4)
    assert mask.tolist() == [[True, False]]


@pytest.mark.parametrize("key", range(12))
@pytest.mark.parametrize(
    "options",
    [
        {"flip": 1.0},
        {"scale": 0.3},
        {"shift": 0.2},
        {"rotate": 30.0},
        {"flip": 0.5, "scale": 0.2, "shift": 0.1, "rotate": 20.0},
    ],
)
def test_the_box_stays_on_what_it_bounds(key, options):
    image, boxes, _ = run(key, **options)
    np.testing.assert_allclose(boxes[0, 0], extent(image[0]), atol=1.2)


def test_flip_mirrors_pixels_exactly():
    image, boxes, _ = run(flip=1.0)
    np.testing.assert_allclose(image[0], disc(22, 30, 9, 5)[0][:, ::-1], atol=0.1)
    np.testing.assert_allclose(boxes[0, 0], [SIZE - 31, 25, SIZE - 13, 35], atol=1e-4)


def test_a_box_moved_out_is_masked():
    masks = np.concatenate([run(key, shift=1.0)[2] for key in range(40)])
    boxes = np.concatenate([run(key, shift=1.0)[1] for key in range(40)])
    area = np.prod(boxes[:, 0, 2:] - boxes[:, 0, :2], axis=1) / (18 * 10)
    assert 5 < masks[:, 0].sum() < 35
    np.testing.assert_array_equal(masks[:, 0], area > 0.3)
    assert boxes.min() >= 0 and boxes.max() <= SIZE


@pytest.mark.parametrize("name", ["brightness", "contrast", "gamma"])
def test_grey_levels_change_and_boxes_do_not(name):
    grey = jnp.broadcast_to(jnp.arange(0, 256, 4, dtype=jnp.uint8), (1, 64, 64))
    boxes, mask = jnp.array([[[1.0, 2, 30, 40]]]), jnp.ones((1, 1), bool)
    means = []
    for key in range(3):
        changed, same, _ = warp(jax.random.key(key), grey, boxes, mask, **{**NOTHING, name: 0.5})
        assert changed.min() >= 0 and changed.max() <= 255
        assert (np.diff(changed[0, 0]) >= 0).all()  # brighter stays brighter
        np.testing.assert_allclose(boxes, same, atol=1e-4)
        means.append(float(jnp.abs(changed - grey).mean()))
    assert max(means) > 5 and len(set(means)) == 3


def test_images_of_a_batch_differ_and_keys_repeat():
    image, box = disc(22, 30, 9, 5)
    images, boxes = jnp.array([image] * 3), jnp.array([[box]] * 3)
    options = {**NOTHING, "shift": 0.2, "brightness": 0.2}
    one = warp(jax.random.key(5), images, boxes, jnp.ones((3, 1), bool), **options)
    two = warp(jax.random.key(5), images, boxes, jnp.ones((3, 1), bool), **options)
    np.testing.assert_array_equal(one[0], two[0])
    assert not np.allclose(one[1][0], one[1][1])


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
