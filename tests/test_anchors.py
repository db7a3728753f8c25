import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import anchors, boxes

COCO = {
    "levels": (3, 4, 5, 6, 7),
    "scales": (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)),
    "aspect_ratios": (0.5, 1.0, 2.0),
}


def test_cell_anchors_have_the_area_and_ratio_asked_for():
    cell = anchors.cell_anchors((8.0, 16.0), (0.5, 1.0, 2.0))
    width, height = (cell[:, 2:] - cell[:, :2]).T
    np.testing.assert_allclose(width * height, [64, 256] * 3)
    np.testing.assert_allclose(height / width, [0.5, 0.5, 1, 1, 2, 2])
    np.testing.assert_allclose(cell[:, :2], -cell[:, 2:])


def test_layout_is_row_column_anchor():
    (level,) = anchors.pyramid_anchors((16, 24), (3,), (1.0,), (1.0, 4.0))
    centres = (level[:, :2] + level[:, 2:]) / 2
    assert len(level) == 2 * 3 * 2
    np.testing.assert_allclose(
        centres[::2], [[0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8]], atol=1e-6
    )


@pytest.mark.parametrize("size", [(128, 128), (256, 256), (100, 132)])
def test_number_of_anchors_is_the_number_of_features(size):
    """A stride-2 convolution padded by 1 halves and rounds up."""
    per_level = [len(level) for level in anchors.pyramid_anchors(size, **COCO)]
    expected = []
    height, width = size
    for level in range(1, 8):
        height, width = (height + 1) // 2, (width + 1) // 2
        if level in COCO["levels"]:
            expected.append(height * width * 9)
    assert per_level == expected


def test_best_iou_is_that_of_all_anchors():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 230, (300, 2))
    found = np.concatenate([corner, np.minimum(corner + rng.uniform(2, 90, (300, 2)), 256)], 1)
    everything = np.concatenate(anchors.pyramid_anchors((256, 256), **COCO))
    brute = np.asarray(boxes.iou(jnp.array(found, "f"), jnp.array(everything))).max(axis=1)
    np.testing.assert_allclose(anchors.best_iou(found, (256, 256), **COCO), brute, atol=1e-5)
