import numpy as np
import pytest

from jaxdet.ops import anchors, boxes

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
    brute = boxes.iou(found[:, None], everything).max(axis=1)
    np.testing.assert_allclose(anchors.best_iou(found, (256, 256), **COCO), brute, atol=1e-5)


def reached(boxes, plan, size=256):
    return anchors.best_iou(boxes, (size, size), *plan) >= 0.5


def boxes_of(rng, centre, size, ratio, count):
    """About one size (square root of the area) and ratio (height / width), in pixels."""
    size = size * 2 ** rng.uniform(-0.2, 0.2, count)
    half = np.stack([size / ratio**0.5, size * ratio**0.5], axis=1) / 2
    middle = rng.uniform(*centre, (count, 2))
    return np.concatenate([middle - half, middle + half], axis=1)


def test_a_plan_fits_its_boxes_better_than_cocos_anchors():
    """Small ones, and a rare flat class: COCO's anchors miss both."""
    rng = np.random.default_rng(0)
    found = np.concatenate(
        [boxes_of(rng, (20, 230), 10, 1.0, 500), boxes_of(rng, (100, 150), 60, 0.15, 20)]
    )
    labels = np.repeat([8, 3], [500, 20])
    plan = anchors.plan(found, labels, 256, 2, 2)
    assert plan == anchors.plan(found, labels, 256, 2, 2)
    assert plan.levels == (2, 3, 4, 5, 6)
    assert len(plan.scales) == len(plan.aspect_ratios) == 2
    for label in (3, 8):
        mine = found[labels == label]
        assert reached(mine, plan).mean() > 0.9 > 0.3 > reached(mine, list(COCO.values())).mean()


def test_a_plan_is_the_best_of_all_it_could_choose_where_that_can_be_tried():
    """One scale and one ratio: 13 x 17 plans a set of levels."""
    rng = np.random.default_rng(1)
    found = boxes_of(rng, (20, 108), 20, 0.5, 60)
    plan = anchors.plan(found, np.zeros(60, int), 128, 1, 1)
    best = max(
        reached(found, (levels, (scale,), (ratio,)), 128).mean()
        for levels in anchors.LEVELS
        for scale in anchors.SCALES
        for ratio in anchors.ASPECT_RATIOS
    )
    assert reached(found, plan, 128).mean() == best


def test_a_plan_keeps_what_is_given():
    rng = np.random.default_rng(2)
    found = boxes_of(rng, (20, 108), 20, 0.5, 60)
    given = {"levels": (4, 5), "scales": (3.0,), "aspect_ratios": (1.0, 3.0)}
    labels = np.zeros(60, int)
    assert anchors.plan(found, labels, 128, **given) == tuple(given.values())
    for name, value in given.items():
        assert getattr(anchors.plan(found, labels, 128, **{name: value}), name) == value
