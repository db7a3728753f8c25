import jax
import numpy as np

from jaxdet import inference, parallel
from jaxdet.nms import Detections

SIZES = np.array([[1000, 2000], [500, 640]])  # (height, width)


def test_boxes_come_out_in_original_pixels_and_no_finding_ranks_images():
    detections = Detections(
        boxes=np.array([[[8, 16, 24, 48], [0, 0, 64, 64]], [[0, 0, 0, 0]] * 2], np.float32),
        labels=np.array([[3, 8], [0, 0]]),
        scores=np.array([[0.75, 0.5], [0, 0]], np.float32),
        mask=np.array([[True, True], [False, False]]),
        normal=np.array([0.25, 1.0], np.float32),
    )
    table = inference.to_table(detections, SIZES, 64, 14)
    assert table.labels.tolist() == [3, 8, 14, 14]
    assert table.image.tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(table.boxes[0], [250, 250, 750, 750])
    np.testing.assert_allclose(table.boxes[2:], [[0, 0, 1, 1]] * 2)
    np.testing.assert_allclose(table.scores, [0.75, 0.5, 0.25, 1.0])


def test_each_image_is_detected_alone_whatever_its_batch(config):
    """Seven images in batches of four, the last filled up: as one by one."""
    config.inference.score_threshold = 0.0
    detector = inference.Detector(config, 14, parallel.make_mesh())
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
