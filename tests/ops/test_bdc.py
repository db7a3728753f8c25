"""The detector as one more reader: beside a plain count, and what it changes in the labels."""

import numpy as np
import pytest

from jaxdet import InputError
from jaxdet.ops import bdc, fusion, skill
from jaxdet.ops.boxes import BoxTable, iou
from jaxdet.ops.fusion import fuse_rows
from tests.ops.test_skill import FALSE, PREVALENCE, RECALL

NAMES = np.array(["R8", "R9", "R10"])


def box_of(place):
    """The boxes of 4 x 4 places of a film."""
    corner = np.stack([place % 4, place // 4], axis=-1) * 100.0 + 20
    return np.concatenate([corner, corner + np.array([60.0, 40.0])], axis=-1)


def films(number, detector, rng):
    """Of two classes at 16 places: whether there is a finding, the readers' rows, and detections.

    Args:
        detector: of each class, the chance that it finds what is there, and of a false alarm at a
            place; its true ones have higher scores by chance.
    """
    there = rng.random((number, 16, 2)) < PREVALENCE / 16
    drew = rng.random((number, 16, 2, 3)) < np.where(there[..., None], RECALL.T, FALSE.T / 16)
    film, place, label, reader = np.nonzero(drew)
    idle_film, idle = np.nonzero(~drew.any(axis=(1, 2)))
    rows = (
        np.concatenate([film, idle_film]),
        np.concatenate([label, np.full(len(idle), 2)]),
        np.concatenate([NAMES[reader], NAMES[idle]]),
        np.concatenate([box_of(place), np.full((len(idle), 4), np.nan)]),
    )
    recall, false = np.array(detector).T
    film, place, label = np.nonzero(rng.random(there.shape) < np.where(there, recall, false))
    scores = rng.random(len(film)) + there[film, place, label]
    return there, rows, BoxTable(film, label, box_of(place), scores)


def places_of(table):
    """The film, place and class of each box."""
    column, row = np.rint((table.boxes[:, :2] - 20) / 100).astype(int).T
    return table.image, row * 4 + column, table.labels


def plain_count(rows, detections, places):
    """{(film, class, place): posterior} of one class, by a loop over all places of all films."""
    said = {}  # (film, place) -> who drew
    for film, name, box in zip(rows[0], rows[2], rows[3], strict=True):
        if not np.isnan(box[0]):
            place = int(places_of(BoxTable(film, 0, box[None], 1))[1][0])
            said.setdefault((film, place), set()).add(name)
    seen = {film for film, _ in said}
    found = len(said)
    order = sorted(zip(-detections.scores, *places_of(detections)[:2], strict=True))
    for _, film, place in [x for x in order if x[1] in seen][:found]:
        said.setdefault((int(film), int(place)), set()).add("detector")
    readers = [*NAMES, "detector"]
    patterns = [frozenset(names) for names in said.values()]
    patterns, counts = [*patterns, frozenset()], [1.0] * len(patterns)
    counts.append(len(seen) * places - len(said))
    chance = [max(len(p) - 1, 0) / 3 for p in patterns]
    before = None
    while before is None or np.abs(np.subtract(chance, before)).max() > 1e-9:
        before = chance
        found = sum(n * p for n, p in zip(counts, chance, strict=True))
        others = sum(counts) - found
        rates = []
        for r in readers:
            mine = [(n, p) for n, p, w in zip(counts, chance, patterns, strict=True) if r in w]
            hits, wrong = sum(n * p for n, p in mine), sum(n * (1 - p) for n, p in mine)
            rates.append(((hits + 1) / (found + 2), (wrong + 1) / (others + 10 * places + 1)))
        chance = []
        for who in patterns:
            worlds = [1 - found / sum(counts), found / sum(counts)]  # no finding, a finding
            for r, (recall, false) in zip(readers, rates, strict=True):
                worlds[1] *= recall if r in who else 1 - recall
                worlds[0] *= false if r in who else 1 - false
            chance.append(worlds[1] / sum(worlds))
    return dict(zip(said, chance, strict=False))


def test_the_posterior_is_that_of_a_plain_count():
    rng = np.random.default_rng(2)
    _, (image, labels, names, boxes), detections = films(80, [(0.8, 0.02), (0, 0)], rng)
    # Of class 0; whoever drew another saw nothing.
    boxes = np.where(labels[:, None] == 0, boxes, np.nan)
    rows = image, np.where(labels == 0, 0, 2), names, boxes
    found = fuse_rows("bdc@0.4", *rows, 2, detections=detections)
    clusters, opinions = skill.gather(readings_of(rows), 0.4)
    (places,) = skill.count_places(clusters.rows, 0.4)
    expected = plain_count(rows, detections, places)
    at = zip(*places_of(found.table)[:2], strict=True)
    values = [expected[int(film), int(place)] for film, place in at]
    np.testing.assert_allclose(found.soft_targets, values, atol=1e-6)
    alone = len(expected) - len(found.table.image)
    assert alone > 0  # which only the detector saw, and which is none of the findings
    assert len(clusters.first) == len(found.table.image) and opinions.image.max() < 80
    plain = fuse_rows("skill@0.4", *rows, 2)
    assert np.abs(plain.soft_targets - found.soft_targets).max() > 0.05


def readings_of(rows):
    found = rows[1] != 2
    columns = rows[0][found], rows[1][found], rows[2][found], rows[3][found], np.ones(found.sum())
    return fusion.Readings(*columns, looked=(rows[0], rows[2]))


def errors(found, there):
    """Mean squared error of the posterior."""
    return ((found.table.scores - there[places_of(found.table)]) ** 2).mean()


def test_a_detector_makes_findings_surer_as_far_as_it_is_right():
    rng = np.random.default_rng(5)
    there, rows, detections = films(2500, [(0.8, 0.01), (0.7, 0.02)], rng)
    plain = fuse_rows("skill@0.4", *rows, 2)
    better = fuse_rows("bdc@0.4", *rows, 2, detections=detections)
    assert errors(better, there) < 0.75 * errors(plain, there)
    # The same findings: what is learned of them is another.
    for a, b in zip(plain.table[:2], better.table[:2], strict=True):
        np.testing.assert_array_equal(a, b)
    skills = better.skills
    assert list(skills.readers) == [*sorted(NAMES), bdc.NAME]
    assert skills.films[-1] == 2500 and skills.drawn[-1].sum() > 1000
    assert (skills.recall[-1] > 0.4).all()

    # Boxes that lie anywhere say nothing.
    wrong = BoxTable(rng.permutation(detections.image), *detections[1:])
    same = fuse_rows("bdc@0.4", *rows, 2, detections=wrong)
    assert np.abs(same.table.scores - plain.table.scores).mean() < 0.02
    assert (same.skills.recall[-1] < 0.2).all()


def test_without_detections_it_is_skill():
    _, rows, detections = films(200, [(0.8, 0.01), (0.7, 0.02)], np.random.default_rng(1))
    plain = fuse_rows("skill@0.4", *rows, 2)
    for nothing in (None, BoxTable(*(column[:0] for column in detections))):
        found = fuse_rows("bdc@0.4", *rows, 2, detections=nothing)
        # One who draws nothing is not trusted, but for what is assumed of everybody.
        np.testing.assert_allclose(found.soft_targets, plain.soft_targets, atol=0.05)
        if nothing is None:
            for a, b in zip((*found.table, *found.skills), (*plain.table, *plain.skills),
                            strict=True):  # fmt: skip
                np.testing.assert_array_equal(a, b)


def test_no_order_of_rows_and_detections_matters():
    rng = np.random.default_rng(3)
    _, rows, detections = films(300, [(0.8, 0.01), (0.7, 0.02)], rng)
    one = fuse_rows("bdc@0.4", *rows, 2, detections=detections)
    order = rng.permutation(len(rows[0]))
    others = rng.permutation(len(detections.image))
    other = fuse_rows(
        "bdc@0.4", *(column[order] for column in rows), 2,
        detections=BoxTable(*(column[others] for column in detections)),
    )  # fmt: skip
    for a, b in zip((*one.table, *one.skills), (*other.table, *other.skills), strict=True):
        np.testing.assert_array_equal(a, b)


def test_detections_are_matched_as_by_a_loop():
    rng = np.random.default_rng(4)

    def boxes(number):
        corner = rng.uniform(0, 10, (number, 2))
        order = rng.integers(0, [[5, 2]], (number, 2))
        order = order[np.lexsort(order.T[::-1])]
        size = rng.uniform(3, 9, (number, 2))
        corners = np.concatenate([corner, corner + size], axis=1)
        return BoxTable(*order.T, corners, rng.random(number))

    clusters, detections = boxes(60), boxes(80)
    expected, alone = [], len(clusters.image)
    for image, label, box, _ in zip(*detections, strict=True):
        best, overlap = None, 0.3
        for i, (other, of, drawn, _) in enumerate(zip(*clusters, strict=True)):
            if (other, of) == (image, label) and iou(box[None], drawn[None])[0] > overlap:
                best, overlap = i, iou(box[None], drawn[None])[0]
        expected.append(alone if best is None else best)
        alone += best is None
    np.testing.assert_array_equal(bdc.match(detections, clusters, 0.3), expected)
    assert 0 < np.count_nonzero(np.array(expected) < 60) < 70


def test_it_is_asked_for_as_many_boxes_as_readers_found():
    """Two readers find two of class 0, one of them both, and one of class 2, on films 3 and 8."""
    place = np.array([0, 0, 1, 2])
    columns = (
        np.array([3, 3, 8, 8]), np.array([0, 0, 0, 2]), np.array(["a", "b", "a", "b"]),
        box_of(place), np.ones(4),
    )  # fmt: skip
    _, opinions = skill.gather(fusion.Readings(*columns), 0.4)
    image = np.array([3, 3, 8, 8, 5, 8, 8, 3])
    labels = np.array([0, 0, 0, 1, 0, 0, 3, 2])
    scores = np.array([0.2, 0.5, 0.4, 0.9, 0.9, 0.1, 0.8, 0.1])
    chosen = bdc.choose(BoxTable(image, labels, box_of(np.arange(8)), scores), opinions)
    found = list(zip(*chosen[:2], chosen.scores, strict=True))
    assert found == [(3, 0, 0.5), (8, 0, 0.4), (3, 2, 0.1)]


def test_it_is_for_training_alone():
    assert fusion.asks_detector("bdc@0.4") and not fusion.asks_detector("skill@0.4:0.5")
    assert fusion.parse_readers("wbf@0.4") == fusion.parse("wbf@0.4")
    with pytest.raises(InputError, match="for data.fusion alone"):
        fusion.parse_readers("bdc@0.4")
