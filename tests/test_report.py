import numpy as np

from jaxdet import report
from jaxdet.batches import Targets
from jaxdet.nms import Detections

NAMES = tuple(f"class {i}" for i in range(14))


def changed(picture, image):
    """Where a drawn picture differs from the bare image, at the image's size."""
    bare = np.asarray(report.draw(image, np.zeros((0, 4)), np.zeros(0, int), NAMES, zoom=1), int)
    return (np.asarray(picture, int) != bare).any(axis=2)


def test_a_box_is_drawn_where_it_is():
    image = np.full((64, 64), 90, np.uint8)
    drawn = report.draw(image, np.array([[10.0, 20, 50, 60]]), np.array([3]), NAMES, zoom=1)
    edges = changed(drawn, image)
    for y, x in ((20, 30), (60, 30), (40, 10), (40, 50)):
        assert edges[y, x]
    assert not edges[30:55, 15:45].any()


def test_truth_on_the_left_and_confident_detections_on_the_right():
    images = np.full((2, 64, 64), 90, np.uint8)
    box = np.array([[[5.0, 20, 30, 40]]] * 2, np.float32)
    label, yes = np.array([[3]] * 2), np.ones((2, 1), bool)
    targets = Targets(box, label, np.ones((2, 1), np.float32), np.array([[True], [False]]))
    detections = Detections(box, label, np.array([[0.2], [0.9]], np.float32), yes, yes[:, 0])
    sheet = np.asarray(report.compare(images, targets, detections, NAMES), int)
    colored = sheet.max(axis=2) - sheet.min(axis=2) > 20
    size = 64 * 6  # the zoom that makes 384 pixels
    left, right = np.s_[:, :size], np.s_[:, size + 2 : 2 * size + 2]
    assert colored[left].any() and not colored[right].any()  # 0.2 is too little to be shown
    second = colored[:, 2 * size + 18 :]
    assert not second[left].any() and second[right].any()
