import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jaxdet.data.batches import decode_all
from jaxdet.data.dataset import Annotations
from jaxdet.report import survey
from tests import made_up


@pytest.fixture(scope="module")
def dataset():
    return made_up.phantom_dataset(30, 128)


def annotations(rows):
    """From (image, label, reader, box)."""
    return Annotations(
        np.array([row[0] for row in rows]),
        np.array([row[1] for row in rows]),
        np.array([row[2] for row in rows]),
        np.array([row[3] or [np.nan] * 4 for row in rows], np.float32).reshape(-1, 4),
    )


BOX, NEAR, FAR = [0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60]


def test_agreement_by_hand():
    """Class 0: found by all, and one more by R3 alone. Class 1: by two of three, and by one."""
    rows = annotations(
        [(0, 0, "R1", BOX), (0, 0, "R2", NEAR), (0, 0, "R3", BOX), (0, 0, "R3", FAR),
         (1, 1, "R1", BOX), (1, 1, "R9", NEAR), (1, 2, "R2", None),
         (2, 1, "R9", BOX), (2, 2, "R1", None)]
    )  # fmt: skip
    found = survey.agreement(rows, 2)
    assert found.readers.tolist() == [[1, 0, 1], [1, 1, 0]]
    # R1 with R2 and R3, R2 with R3; R1 with R9.
    np.testing.assert_allclose(np.sort(found.overlap[found.labels == 0]), [0.8, 0.8, 1])
    np.testing.assert_allclose(found.overlap[found.labels == 1], [0.8])


def test_agreement_of_nobody():
    found = survey.agreement(annotations([(0, 2, "R1", None)]), 2)
    assert found.readers.sum() == 0 and len(found.overlap) == 0


def test_readers_are_counted():
    rows = annotations([(0, 0, "A", BOX), (0, 1, "A", BOX), (1, 2, "A", None), (0, 2, "B", None)])
    assert survey.readers(rows, 2) == [("A", 2, 1, 2), ("B", 1, 0, 0)]


def test_what_others_confirm_by_hand():
    """As in `test_agreement_by_hand`; R3 overlooks what R1 and R2 agree on in image 3."""
    rows = annotations(
        [(0, 0, "R1", BOX), (0, 0, "R2", NEAR), (0, 0, "R3", BOX), (0, 0, "R3", FAR),
         (1, 1, "R1", BOX), (1, 1, "R9", NEAR), (1, 2, "R2", None),
         (2, 1, "R9", BOX), (2, 2, "R1", None),
         (3, 0, "R1", BOX), (3, 0, "R2", BOX), (3, 2, "R3", None)]
    )  # fmt: skip
    found = survey.confirmed(rows, 2)
    assert found.readers.tolist() == ["R1", "R2", "R3", "R9"]
    assert found.boxes.tolist() == [[2, 1], [2, 0], [2, 0], [0, 2]]
    assert found.confirmed.tolist() == [[2, 1], [2, 0], [1, 0], [0, 1]]
    assert found.agreed.tolist() == [[1, 0], [1, 1], [2, 0], [0, 0]]
    assert found.found.tolist() == [[1, 0], [1, 0], [1, 0], [0, 0]]


def test_heat_maps_cover_what_the_boxes_cover(dataset):
    height, width = 480, 960
    rows = annotations(
        [(0, 0, "A", [0, 0, width / 2, height]), (0, 0, "A", [0, 0, width / 2, height / 2]),
         (0, 1, "A", [width * 0.99, height * 0.99, width, height])]
    )  # fmt: skip
    made = replace(dataset.take(np.array([0])), annotations=rows, sizes=np.array([[480, 960]]))
    heat = survey.heat_maps(made)
    half = survey.CELLS // 2
    assert (heat[0, :half, :half] == 1).all() and (heat[0, half:, :half] == 0.5).all()
    assert (heat[0, :, half:] == 0).all()
    assert heat[1, -1, -1] == 1 and heat[1].sum() == 1  # a box is never nowhere
    assert heat[2:].sum() == 0


def test_heat_maps_equal_one_box_after_another(dataset):
    heat = survey.heat_maps(dataset)
    rows, cells = dataset.annotations, survey.CELLS
    label = np.bincount(rows.labels[rows.labels < 14]).argmax()
    expected = np.zeros((cells, cells))
    mine = np.flatnonzero(rows.labels == label)
    for i in mine:
        height, width = dataset.sizes[rows.image[i]]
        x1, y1, x2, y2 = np.rint(rows.boxes[i] / [width, height, width, height] * cells).astype(int)
        expected[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] += 1
    np.testing.assert_allclose(heat[label], expected / len(mine))


def test_black_borders():
    picture = np.full((100, 50), 90, np.uint8)
    assert survey.black_border(picture) == 0
    picture[:5] = picture[-7:] = 3
    assert survey.black_border(picture) == 0.12
    picture[:, :10] = 0
    assert survey.black_border(picture) == 0.2
    assert survey.black_border(picture * 0) == 1


def test_many_negatives_are_found_among_as_many_films(dataset):
    pixels = decode_all(dataset, 128, "test")
    pixels[:6] = 255 - pixels[:6]  # a fifth
    assert survey.find_inverted(pixels) == list(range(6))
    assert survey.find_inverted(pixels[:1]) == []  # nothing to compare it with


def changed(pixels):
    """The same film saved anew: another brightness and contrast, and as JPEG."""
    file = io.BytesIO()
    Image.fromarray((pixels * 0.8 + 20).astype(np.uint8)).save(file, "jpeg", quality=60)
    return np.asarray(Image.open(file))


def test_suspicious_images_are_found_and_no_others(dataset):
    """Thirty films, into which one of each kind of trouble is put."""
    pixels = decode_all(dataset, 128, "test")
    plain = {found.name for found in survey.suspicions(dataset, pixels, 512)}
    assert not plain & {"Inverted", "Flat", "Black borders", "Duplicates"}

    pixels[3] = 255 - pixels[3]
    pixels[5] = 77
    pixels[7, :, :25] = 0
    pixels[10] = changed(pixels[20])
    rows = dataset.annotations
    first = np.flatnonzero(rows.labels < 14)[0]
    width = dataset.sizes[rows.image[first], 1]
    boxes = rows.boxes.copy()
    boxes[first] = [width - 40, 100, width, 200]
    image, labels = np.append(rows.image, rows.image[first]), np.append(rows.labels, 14)
    readers, boxes = np.append(rows.readers, "R99"), np.append(boxes, [[np.nan] * 4], axis=0)
    dataset = replace(dataset, annotations=Annotations(image, labels, readers, boxes))
    found = {s.name: s for s in survey.suspicions(dataset, pixels, 64)}
    assert found["Inverted"].images.tolist() == [3]
    assert found["Flat"].images.tolist() == [5]
    (line,) = survey.flat_films(dataset, list(found.values()))
    assert line == f"1 images have hardly any contrast: {dataset.ids[5]}"
    assert survey.flat_films(dataset, [found["Inverted"]]) == []
    assert found["Black borders"].images.tolist() == [7]
    assert found["Black borders"].notes == ["20% of a side"]
    assert found["Duplicates"].images.tolist() == [10, 20]
    assert str(dataset.ids[20]) in found["Duplicates"].notes[0]
    assert found["At the edge"].images.tolist() == [rows.image[first]]
    assert found["At the edge"].notes == ["1 box"]
    assert found["Disputed"].images.tolist() == [rows.image[first]]
    # 40 pixels of 2,000 or more are one or two of 64.
    assert rows.image[first] in found["Tiny boxes"].images


def test_duplicates_among_more_than_fit_at_once():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (2100, 24, 24)).astype(np.uint8)
    pixels[2050] = pixels[3]
    pixels[1999] = pixels[2000] = 5  # flat ones are no copies
    pairs, likeness = survey.duplicates(pixels)
    assert pairs.tolist() == [[3, 2050]] and likeness[0] == pytest.approx(1)
