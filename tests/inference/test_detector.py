import jax
import numpy as np

from jaxdet.inference.detector import Detector, to_table
from jaxdet.ops.nms import Detections
from jaxdet.runs import parallel

SIZES = np.array([[1000, 2000], [500, 640]])  # (height, width)


def test_boxes_come_out_in_original_pixels_and_no_finding_ranks_images():
    detections = Detections(
        boxes=np.array([[[8, 16, 24, 48], [0, 0, 64, 64]], [[0, 0, 0, 0]] * 2], np.float32),
        labels=np.array([[3, 8], [0, 0]]),
        scores=np.array([[0.75, 0.5], [0, 0]], np.float32),
        mask=np.array([[True, True], [False, False]]),
        normal=np.array([0.25, 1.0], np.float32),
    )
    table = to_table(detections, SIZES, 64, 14)
    assert table.labels.tolist() == [3, 8, 14, 14]
    assert table.image.tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(table.boxes[0], [250, 250, 750, 750])
    np.testing.assert_allclose(table.boxes[2:], [[0, 0, 1, 1]] * 2)
    np.testing.assert_allclose(table.scores, [0.75, 0.5, 0.25, 1.0])


def test_each_image_is_detected_alone_whatever_its_batch(config):
    """Seven images in batches of four, the last filled up: as one by one."""
    config.inference.score_threshold = 0.0
    detector = Detector(config, 14, parallel.make_mesh())
    rng = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda x: rng.normal(0, 0.1, x.shape).astype("f") ** 2, detector.abstract_weights
    )
    images = rng.integers(0, 255, (7, 64, 64), np.uint8)
    together = detector.detect_all(weights, images.__getitem__, 7)
    assert together.boxes.shape[0] == 7
    for i in (0, 5, 6):
        alone = detector.detect_all(weights, lambda _, i=i: images[i], 1)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[i], b[0], rtol=1e-4, atol=1e-4)


def test_processes_share_the_images(monkeypatch):
    """Two processes of batches of four: every image once, each its rows of every batch."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    shares = []
    for i in range(2):
        monkeypatch.setattr(jax, "process_index", lambda i=i: i)
        shares.append(parallel.local_positions(6, 4))
    assert shares[0].tolist() == [[0, 1], [4, 5]]
    assert shares[1].tolist() == [[2, 3], [-1, -1]]


def test_a_look_is_the_image_mirrored_or_resized_and_boxes_come_back(config):
    """As a detector of that size sees that image, in pixels of the image as it is."""
    config.inference.score_threshold = 0.0
    config.inference.tta.update({"flip": True, "scales": (1.5, 0.75)})
    detector = Detector(config, 14, parallel.make_mesh())
    assert detector.looks == [
        (64, False), (64, True), (96, False), (96, True), (48, False), (48, True)
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda x: rng.normal(0, 0.1, x.shape).astype("f") ** 2, detector.abstract_weights
    )
    images = rng.integers(0, 255, (4, 64, 64), np.uint8)
    plain = detector.detect(weights, images, 64, False)

    mirrored = detector.detect(weights, images[:, :, ::-1].copy(), 64, True)
    x1, y1, x2, y2 = np.moveaxis(np.asarray(mirrored.boxes), -1, 0)
    np.testing.assert_allclose(mirrored.scores, plain.scores, rtol=1e-5)
    np.testing.assert_allclose(
        np.stack([64 - x2, y1, 64 - x1, y2], -1), plain.boxes, rtol=1e-4, atol=1e-4
    )

    # Twice every pixel: a detector for 96 pixels sees the same.
    config.data.image_size = 96
    larger = Detector(config, 14, detector.mesh)
    resized = np.stack([jax.image.resize(x.astype("f"), (96, 96), "linear") for x in images])
    expected = larger.detect(weights, resized, 96, False)
    got = detector.detect(weights, images, 96, False)
    np.testing.assert_allclose(got.scores, expected.scores, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.boxes * 1.5, expected.boxes, rtol=1e-3, atol=1e-3)


def test_several_looks_are_fused_and_one_is_left_as_it_is(config):
    config.inference.score_threshold = 0.0
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (6, 64, 64), np.uint8)
    images[3] = images[3, :, ::-1] // 2 + images[3] // 2  # nearly its own mirror image
    mesh, found = parallel.make_mesh(), []
    for flip in (False, True):
        config.inference.tta.flip = flip
        detector = Detector(config, 14, mesh)
        rng = np.random.default_rng(0)
        weights = jax.tree.map(
            lambda x, rng=rng: rng.normal(0, 0.1, x.shape).astype("f") ** 2,
            detector.abstract_weights,
        )
        found.append(detector.detect_all(weights, images.__getitem__, 6))
        one = detector.detect(weights, images[:4], 64, False)
        if not flip:
            np.testing.assert_array_equal(found[0].scores[:4], one.scores)
    one, two = found
    assert two.boxes.shape == one.boxes.shape and two.mask[:, 0].all()
    assert (two.scores[:, 0] <= 1).all() and not np.allclose(one.boxes, two.boxes)
