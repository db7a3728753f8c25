"""Readers' skills: the posterior by brute force, true skills found again, no matter the order."""

import csv
import io
import itertools

import numpy as np
import pytest

from jaxdet import InputError
from jaxdet.ops import skill
from jaxdet.ops.fusion import fuse_rows
from jaxdet.ops.skill import Cases, Rates


def cases_of(drew, labels=None):
    """A case for each place: `drew` (places, readers) is True, False, or None for not looked."""
    drew = np.array(drew, object)
    looked = drew != None  # noqa: E711
    labels = np.zeros(len(drew), int) if labels is None else np.array(labels)
    readers = np.where(looked, np.arange(drew.shape[1]), -1)
    group = np.zeros(len(drew), int)
    return Cases(labels, group, readers, drew == True, np.ones(len(drew)))  # noqa: E712


TINY = cases_of(
    [[True, True, False], [False, False, True], [True, None, True], [False, False, False],
     [False, True, None], [True, True, True], [False, None, False], [True, False, False]]
)  # fmt: skip


def enumerate_worlds(cases, rates):
    """Every combination of places that have a finding, and how likely it is with what was drawn."""
    worlds = np.array(list(itertools.product([0, 1], repeat=len(cases.labels))))
    likely = np.ones(len(worlds))
    for i, (label, readers) in enumerate(zip(cases.labels, cases.readers, strict=True)):
        there, prevalence = worlds[:, i], rates.prevalence[0, label]
        likely *= np.where(there, prevalence, 1 - prevalence)
        for reader, drew in zip(readers, cases.drew[i], strict=True):
            if reader >= 0:
                draws = np.where(there, rates.recall[reader, label], rates.false[reader, label])
                likely *= draws if drew else 1 - draws
    return worlds, likely


def test_the_posterior_is_that_of_all_worlds():
    rng = np.random.default_rng(0)
    for _ in range(5):
        rates = Rates(*(rng.uniform(0.02, 0.98, shape) for shape in ((3, 1), (3, 1), (1, 1))))
        worlds, likely = enumerate_worlds(TINY, rates)
        np.testing.assert_allclose(
            skill.posterior(TINY, rates), likely @ worlds / likely.sum(), atol=1e-12
        )


def test_em_ends_where_no_other_rates_are_more_probable():
    """By what was drawn, and what is assumed; its findings are those of all worlds."""
    places = np.array([1.0])
    found, rates = skill.infer(TINY, 3, places)
    worlds, likely = enumerate_worlds(TINY, rates)
    np.testing.assert_allclose(found, likely @ worlds / likely.sum(), atol=1e-6)

    def objective(flat):
        recall, false, prevalence = flat[:3, None], flat[3:6, None], flat[6:, None]
        value = np.log(enumerate_worlds(TINY, Rates(recall, false, prevalence))[1].sum())
        value += skill.SEEN * (np.log(recall) + np.log1p(-recall)).sum()
        assumed = skill.FALSE * np.log(false) + skill.FILMS * places * np.log1p(-false)
        return value + assumed.sum()

    best = np.concatenate([rates.recall[:, 0], rates.false[:, 0], rates.prevalence[:, 0]])
    step = 1e-5
    for one in np.eye(7) * step:
        assert abs(objective(best + one) - objective(best - one)) / (2 * step) < 1e-4
        for size in (1e-3, 0.02):
            further = one / step * size * best
            assert objective(best) > max(objective(best + further), objective(best - further))


RECALL = np.array([[0.85, 0.4], [0.7, 0.55], [0.9, 0.65]])
FALSE = np.array([[0.02, 0.05], [0.05, 0.03], [0.03, 0.1]])  # a film
PREVALENCE = np.array([0.3, 0.6])  # a film


def draw(films, places, rng):
    """(films, places, classes) whether there is a finding; and for each reader whether drawn."""
    there = rng.random((films, places, 2)) < PREVALENCE / places
    rates = np.where(there[..., None], RECALL.T, FALSE.T / places)
    return there, rng.random(rates.shape) < rates


def log_likelihood(drew, labels, count, flat):
    """Of a class's recall and false rates of three readers, and the prevalence."""
    recall, false, prevalence = flat[:3], flat[3:6], flat[6]
    at = [np.where(drew, np.log(x), np.log1p(-x)).sum(axis=1) for x in (recall, false)]
    return count @ np.logaddexp(at[0] + np.log(prevalence), at[1] + np.log1p(-prevalence))


def test_true_skills_are_found_within_their_standard_error():
    """The errors of all 14 rates, in standard errors by the curvature of the likelihood."""
    films, places = 8000, 20
    _, drawn = draw(films, places, np.random.default_rng(3))
    errors = []
    for label in range(2):
        drew, count = np.unique(drawn[:, :, label].reshape(-1, 3), axis=0, return_counts=True)
        n = len(drew)
        readers = np.tile(np.arange(3), (n, 1))
        cases = Cases(np.zeros(n, int), np.zeros(n, int), readers, drew, count.astype(float))
        _, rates = skill.infer(cases, 3, np.array([float(places)]))
        best = np.concatenate([rates.recall[:, 0], rates.false[:, 0], rates.prevalence[:, 0]])
        truth = [*RECALL[:, label], *FALSE[:, label] / places, PREVALENCE[label] / places]
        steps = np.diag(best * 1e-3)
        value = lambda flat: log_likelihood(drew, label, count, flat)  # noqa: B023, E731
        curvature = [
            [
                (value(best + a + b) - value(best + a - b) - value(best - a + b)
                 + value(best - a - b)) / (4 * a.sum() * b.sum())
                for a in steps
            ]
            for b in steps
        ]  # fmt: skip
        deviation = np.sqrt(np.diag(np.linalg.inv(-np.array(curvature))))
        assert (deviation[:3] < 0.05).all()  # so that it says something
        errors += list((best - truth) / deviation)
    assert np.abs(errors).max() < 3 and np.sqrt(np.mean(np.square(errors))) < 1.4


CARE = np.array([0.02, 0.05, 0.1])  # a corner's standard deviation, in sides of the box


@pytest.fixture(scope="module")
def drawn():
    """Rows of three readers of 4,000 films with 4 x 4 places, and the boxes that are there."""
    rng = np.random.default_rng(7)
    there, drew = draw(4000, 16, rng)
    film, place, label, reader = np.nonzero(drew)
    side = np.array([60.0, 40.0])
    corner = np.stack([place % 4, place // 4], axis=1) * 100.0 + 20
    truth = np.concatenate([corner, corner + side], axis=1)
    boxes = truth + rng.normal(size=truth.shape) * CARE[reader, None] * np.tile(side, 2)
    names = np.array(["R8", "R9", "R10"])[reader]
    # Whoever saw nothing says so.
    idle = ~drew.any(axis=(1, 2))
    normal_film, normal_reader = np.nonzero(idle)
    columns = (
        np.concatenate([film, normal_film]),
        np.concatenate([label, np.full(len(normal_film), 2)]),
        np.concatenate([names, np.array(["R8", "R9", "R10"])[normal_reader]]),
        np.concatenate([boxes, np.full((len(normal_film), 4), np.nan)]),
    )
    film, place, label = np.nonzero(there)
    corner = np.stack([place % 4, place // 4], axis=1) * 100.0 + 20
    return columns, (film, label, np.concatenate([corner, corner + side], axis=1))


def hits(table, truth):
    """Which findings are at a place with one, and how far their corners are off."""
    at = {(f, c, *b[:2]): b for f, c, b in zip(*truth, strict=True)}
    places = np.round((table.boxes[:, :2] - 20) / 100) * 100 + 20
    keys = zip(table.image, table.labels, *places.T, strict=True)
    boxes = [at.get(key) for key in keys]
    hit = np.array([box is not None for box in boxes])
    error = np.array([b for b in boxes if b is not None]) - table.boxes[hit]
    return hit, np.sqrt((error**2).mean())


def test_findings_are_as_probable_as_they_are_often_true_and_boxes_are_better(drawn):
    columns, truth = drawn
    found = fuse_rows("skill@0.4", *columns, 2)
    hit, error = hits(found.table, truth)
    sure = found.soft_targets
    assert found.weights is None and (found.table.scores == sure).all()
    for low, high in ((0, 0.3), (0.3, 0.97), (0.97, 1.01)):
        mine = (sure >= low) & (sure < high)
        assert mine.sum() > 100 and abs(hit[mine].mean() - sure[mine].mean()) < 0.08
    _, of_wbf = hits(fuse_rows("wbf@0.4", *columns, 2).table, truth)
    assert error < 0.85 * of_wbf
    skills = found.skills
    order = [list(skills.readers).index(name) for name in ("R8", "R9", "R10")]
    np.testing.assert_allclose(skills.corner_error[order], CARE, atol=0.01)
    np.testing.assert_allclose(skills.recall[order], RECALL, atol=0.1)
    assert (skills.films == 4000).all()
    some = fuse_rows("skill@0.4:0.5", *columns, 2)
    assert some.table.scores.min() >= 0.5 and len(some.table.image) == (sure >= 0.5).sum()


def test_no_order_of_the_rows_matters(drawn):
    columns, _ = drawn
    films = columns[0] < 300
    columns = [column[films] for column in columns]
    one = fuse_rows("skill@0.4", *columns, 2)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(columns[0]))
        other = fuse_rows("skill@0.4", *(column[order] for column in columns), 2)
        for a, b in zip((*one.table, *one.skills), (*other.table, *other.skills), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_table_of_readers(drawn):
    columns, _ = drawn
    skills = fuse_rows("skill@0.4", *columns, 2).skills
    rows = list(csv.DictReader(io.StringIO(skills.to_csv(["Mass", "Nodule, or not"]))))
    assert [row["class"] for row in rows] == ["Mass", "Nodule, or not"] * 3
    for row in rows:
        label = ["Mass", "Nodule, or not"].index(row["class"])
        mine = (columns[2] == row["reader"]) & (columns[1] == label)
        assert int(row["drawn"]) == mine.sum() and row["films"] == "4000"


def test_one_reader_says_nothing_of_skill():
    alone = np.zeros(2, int), np.zeros(2, int), np.array(["R1", "R1"]), np.ones((2, 4))
    with pytest.raises(InputError, match="two readers"):
        fuse_rows("skill@0.4", *alone, 2)
    nothing = np.zeros(0, int), np.zeros(0, int), np.array([], str), np.ones((0, 4))
    with pytest.raises(InputError, match="two readers"):
        fuse_rows("skill@0.4", *nothing, 2)
    normal = np.zeros(2, int), np.full(2, 2), np.array(["R1", "R2"]), np.full((2, 4), np.nan)
    with pytest.raises(InputError, match=r"no image with a box .* such as wbf@0\.4"):
        fuse_rows("skill@0.4", *normal, 2)


def test_the_numbers_of_the_images_do_not_matter(drawn):
    """With so many boxes that only some are compared."""
    (image, *columns), _ = drawn
    films = image < 300
    image, *columns = image[films], *(column[films] for column in columns)
    assert (columns[0] == 0).sum() > skill.SAMPLED < (columns[0] == 1).sum()
    new = np.random.default_rng(0).permutation(300)
    one, other = (fuse_rows("skill@0.4", i, *columns, 2).table for i in (image, new[image]))

    def keyed(table, image):
        order = np.lexsort((*table.boxes.T.round(6), table.labels, image))
        return np.column_stack([image, table.labels, table.boxes, table.scores])[order]

    np.testing.assert_allclose(keyed(one, new[one.image]), keyed(other, other.image), atol=1e-9)


def test_what_was_drawn_of_another_class_does_not_part_findings_otherwise():
    """Three boxes, of which the middle one fits either neighbour."""
    row = np.array([[0, 0, 100, 100], [30, 0, 130, 100], [60, 0, 160, 100]], float)
    names, zeros = np.array(["R1", "R2", "R3"]), np.zeros(3, int)
    found = []
    for reader in names:  # who draws the other class too, on the same film
        labels, readers = np.append(zeros + 1, 0), np.append(names, reader)
        boxes = np.concatenate([row, [[500, 500, 600, 600]]])
        table = fuse_rows("skill@0.4", np.append(zeros, 0), labels, readers, boxes, 2).table
        found.append(np.sort(table.boxes[table.labels == 1][:, 0]))
    np.testing.assert_allclose(found, found[:1] * 3, atol=1)
