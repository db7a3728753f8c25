import numpy as np

from jaxdet import inference


def test_image_batches_fill_up_the_last():
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    got = list(inference.image_batches(images, 2, slice(None)))
    assert [real for _, real in got] == [2, 2, 1]
    assert [batch[:, 0, 0].tolist() for batch, _ in got] == [[1, 2], [3, 4], [5, 0]]
