"""How well each reader reads, inferred from where readers agree, and the findings that follow.

Dawid and Skene 1979 ("Maximum likelihood estimation of observer error-rates using the EM
algorithm") for detection. A film has so many places for a class; a finding is there or not, each
reader who looked draws it with a probability of the reader's own if it is (recall) and with another
if it is not. Places where nobody drew count too: of `places` on each film, as many as are left.

Only films on which somebody drew something are looked at. In VinBigData most films were chosen to
be normal for all who read them; on those nobody has false findings, and that is no merit.

How many places there are decides how likely two false findings coincide: one in so many. It is
counted on boxes of different films, which have nothing to do with each other.

Readers are taken to err independently. What all overlook is therefore estimated too low where a
finding that one overlooks is hard for the others too.
"""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdet import InputError
from jaxdet.ops.boxes import iou
from jaxdet.ops.clusters import Clusters, Findings, Readings, cluster

# What is known of a reader and class beforehand counts as little as
SEEN = 1.0  # findings that were drawn, and as many that were overlooked,
FALSE = 1.0  # false findings in
FILMS = 10.0  # films.
CARE = 0.1, 4.0  # error of a corner, as share of the side of the box; of so many corners
# Readers who looked at fewer films together share how frequent a class is with all such readers.
OWN_PREVALENCE = 100
SAMPLED = 200  # boxes of a class of which pairs are looked at


class Skills(NamedTuple):
    """What is inferred of each reader and class; classes without a box have only what was assumed.

    False findings are counted on films on which somebody drew something.
    """

    readers: np.ndarray  # names
    films: Int[np.ndarray, "readers"]  # looked at
    drawn: Int[np.ndarray, "readers classes"]  # findings that a reader drew
    recall: Float[np.ndarray, "readers classes"]
    false_per_film: Float[np.ndarray, "readers classes"]
    true: Float[np.ndarray, "readers classes"]  # share of what a reader drew that is a finding
    corner_error: Float[np.ndarray, "readers"]  # standard deviation, share of the box's side

    def rows(self, class_names: Sequence[str]) -> list[dict[str, str | int | float]]:
        """A row for each reader and class that the reader drew, who read most films first."""
        return [
            {
                "reader": str(self.readers[r]),
                "class": class_names[c],
                "films": int(self.films[r]),
                "drawn": int(self.drawn[r, c]),
                "recall": round(float(self.recall[r, c]), 4),
                "false_per_film": round(float(self.false_per_film[r, c]), 6),
                "share_true": round(float(self.true[r, c]), 4),
                "corner_error": round(float(self.corner_error[r]), 4),
            }
            for r in np.argsort(-self.films, kind="stable")
            for c in np.flatnonzero(self.drawn[r])
        ]

    def to_csv(self, class_names: Sequence[str]) -> str:
        """`rows` as a table."""
        rows, file = self.rows(class_names), io.StringIO()
        columns = rows[0] if rows else ()
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue()


class Cases(NamedTuple):
    """Places that are alike: of one class, with the same readers, of whom the same ones drew."""

    labels: Int[np.ndarray, "cases"]
    group: Int[np.ndarray, "cases"]  # of films in which a class is equally frequent
    readers: Int[np.ndarray, "cases most"]  # who looked; below 0 for nobody
    drew: Bool[np.ndarray, "cases most"]
    count: Float[np.ndarray, "cases"]


class Rates(NamedTuple):
    """The parameters of the model; all are probabilities."""

    recall: Float[np.ndarray, "readers classes"]
    false: Float[np.ndarray, "readers classes"]  # to draw at a place without a finding
    prevalence: Float[np.ndarray, "groups classes"]  # of findings among places


def posterior(cases: Cases, rates: Rates) -> Float[np.ndarray, "cases"]:
    """How probable a finding is at each of the places."""
    labels = cases.labels[:, None]

    def evidence(drawing):
        of_reader = np.where(cases.drew, np.log(drawing), np.log1p(-drawing))
        return np.where(cases.readers >= 0, of_reader, 0).sum(axis=1)

    there = rates.prevalence[cases.group, cases.labels]
    at = cases.readers, labels
    logit = evidence(rates.recall[at]) - evidence(rates.false[at])
    logit += np.log(there) - np.log1p(-there)
    return 1 / (1 + np.exp(-logit))


def infer(
    cases: Cases, num_readers: int, places: Float[np.ndarray, "classes"]
) -> tuple[Float[np.ndarray, "cases"], Rates]:
    """Expectation-maximisation: the posterior of each case, and the most probable rates.

    Of a reader's recall, findings are assumed beforehand as `SEEN` says, and of false findings as
    `FALSE` and `FILMS` say (beta distributions, of which this finds the mode).

    Args:
        num_readers: whom `cases.readers` counts.
        places: of a film, for each class.
    """
    num_groups = int(cases.group.max(initial=0)) + 1
    shape, groups = (num_readers, len(places)), (num_groups, len(places))
    case, column = np.nonzero(cases.readers >= 0)
    pair = cases.readers[case, column] * len(places) + cases.labels[case]
    drew = cases.drew[case, column]
    of_group = cases.group * len(places) + cases.labels

    def add(weights, index, shape):
        return np.bincount(index, weights, minlength=shape[0] * shape[1]).reshape(shape)

    def maximise(probability):
        there, absent = cases.count * probability, cases.count * (1 - probability)
        hits, false = (add(x[case] * drew, pair, shape) for x in (there, absent))
        chances, others = (add(x[case], pair, shape) for x in (there, absent))
        found, all_places = (add(x, of_group, groups) for x in (there, cases.count))
        return Rates(
            (hits + SEEN) / (chances + 2 * SEEN),
            np.minimum((false + FALSE) / (others + FILMS * places + FALSE), 1 - 1e-9),
            np.clip(found / np.maximum(all_places, 1e-9), 1e-9, 1 - 1e-9),
        )

    # To begin with, a finding is as probable as the share of the other readers who drew it too.
    # From higher up one may end where most are true and everybody overlooks most of them.
    others = np.maximum((cases.readers >= 0).sum(axis=1) - 1, 1)
    probability = np.maximum(cases.drew.sum(axis=1) - 1, 0) / others
    for _ in range(20_000):
        rates = maximise(probability)
        before, probability = probability, posterior(cases, rates)
        if np.abs(probability - before).max(initial=0) < 1e-9:
            break
    return probability, rates


def count_places(readings: Readings, iou_threshold: float) -> Float[np.ndarray, "classes"]:
    """In how many places of a film boxes of each class are: as boxes of different films overlap by
    more than a threshold in one of so many pairs."""
    places = np.ones(int(readings.labels.max(initial=0)) + 1)
    for label in range(len(places)):
        mine = np.flatnonzero(readings.labels == label)
        # In an order of their own, so that the numbers of the images do not matter.
        mine = mine[np.lexsort(readings.boxes[mine].T)]
        if len(mine) > SAMPLED:
            mine = mine[np.linspace(0, len(mine) - 1, SAMPLED).astype(int)]
        image, boxes = readings.image[mine], readings.boxes[mine]
        others = image[:, None] != image
        hits = (iou(boxes[:, None], boxes) > iou_threshold) & others
        places[label] = (others.sum() + 1) / (hits.sum() + 1)
    return places


def weigh_corners(
    boxes: Float[np.ndarray, "pairs 4"],
    member: Int[np.ndarray, "pairs"],
    reader: Int[np.ndarray, "pairs"],
    probability: Float[np.ndarray, "clusters"],
    num_readers: int,
) -> tuple[Float[np.ndarray, "clusters 4"], Float[np.ndarray, "readers"]]:
    """The box of each cluster, in which careful readers weigh more, and the error of each reader.

    A reader's corner is the finding's plus a normal error, of which the variance, in sides of the
    box, is the reader's. Expectation-maximisation finds the variances; the box is the mean weighted
    by their inverses.

    Args:
        boxes, member, reader: a row for each cluster and reader in it.
        probability: that a cluster is a finding.
    """

    def mean(boxes, member, weight, num_clusters):
        columns = (np.bincount(member, weight * x, num_clusters) for x in boxes.T)
        return np.stack(list(columns), axis=1) / np.bincount(member, weight)[:, None]

    # Only where several drew do their boxes tell how careful they are.
    count = np.bincount(member, minlength=len(probability))
    some = np.flatnonzero(count[member] > 1)
    numbers, mine = np.unique(member[some], return_inverse=True)
    who, weight, drawn = reader[some], probability[member[some]], boxes[some]
    plain = mean(drawn, mine, np.ones(len(some)), len(numbers))
    side = np.tile(np.maximum(plain[:, 2:] - plain[:, :2], 1e-9), 2)[mine]
    drawn = (drawn - plain[mine]) / side

    assumed, corners = CARE
    known = np.bincount(who, 4 * weight, num_readers) + corners
    variance = np.full(num_readers, assumed**2)
    for _ in range(1000):
        precision = 1 / variance[who]
        error = ((drawn - mean(drawn, mine, precision, len(numbers))[mine]) ** 2).sum(axis=1)
        error += 4 / np.bincount(mine, precision)[mine]  # the finding's own corners are unsure too
        before = variance
        variance = np.bincount(who, weight * error, num_readers) + corners * assumed**2
        variance /= known
        if np.abs(np.log(variance / before)).max(initial=0) < 1e-6:
            break
    return mean(boxes, member, 1 / variance[reader], len(count)), np.sqrt(variance)


class Opinions(NamedTuple):
    """What may be findings (clusters of boxes), and what everybody who looked says of them."""

    names: np.ndarray  # of readers
    looked: tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]  # image and reader, each pair once
    image: Int[np.ndarray, "clusters"]
    labels: Int[np.ndarray, "clusters"]
    # A row for each cluster and reader who drew it.
    cluster: Int[np.ndarray, "pairs"]
    reader: Int[np.ndarray, "pairs"]
    boxes: Float[np.ndarray, "pairs 4"]  # the mean of the reader's in the cluster


def gather(readings: Readings, iou_threshold: float) -> tuple[Clusters, Opinions]:
    """The clusters of `votes`, for readers in the order of their names, so that no order of the
    rows matters; and who drew them."""
    looked = (readings.image, readings.readers) if readings.looked is None else readings.looked
    names, who_looked = np.unique(looked[1].astype(str), return_inverse=True)
    number = np.searchsorted(names, readings.readers.astype(str))
    # By reader before label: a reader's rank in an image is not to depend on what else was drawn.
    order = np.lexsort((*readings.boxes.T, readings.labels, number, readings.image))
    clusters = cluster(readings._replace(readers=number).take(order), iou_threshold)
    rows, first = clusters.rows, clusters.first
    drawn = clusters.member, rows.readers, rows.boxes
    looked = tuple(np.unique(np.stack([looked[0], who_looked]), axis=1))  # each once
    opinions = Opinions(names, looked, rows.image[first], rows.labels[first], *drawn)
    return clusters, each_once(opinions)


def each_once(opinions: Opinions) -> Opinions:
    """Each reader once a cluster, with the mean of the reader's boxes in it."""
    both = opinions.cluster * len(opinions.names) + opinions.reader
    pairs, inverse = np.unique(both, return_inverse=True)
    total = np.stack([np.bincount(inverse, x) for x in opinions.boxes.T], axis=1)
    boxes = total / np.bincount(inverse)[:, None]
    readers = len(opinions.names)
    return opinions._replace(cluster=pairs // readers, reader=pairs % readers, boxes=boxes)


def judge(
    opinions: Opinions, places: Float[np.ndarray, "classes"]
) -> tuple[Float[np.ndarray, "clusters"], Float[np.ndarray, "clusters 4"], Skills]:
    """How probable each cluster is as a finding, its box, and the readers' skills.

    Args:
        places: of a film, see `count_places`.

    Raises:
        InputError: if no image with a box was read by two readers: nothing can be inferred then.
    """
    names, image, labels = opinions.names, opinions.image, opinions.labels
    of_cluster, of_reader, num_classes = opinions.cluster, opinions.reader, len(places)

    # Who looked at each film, in the order of their names.
    code = np.unique(opinions.looked[0] * len(names) + opinions.looked[1])
    film, reader = code // len(names), code % len(names)
    films_read = np.bincount(reader, minlength=len(names))
    some = np.isin(film, image)
    code, film, reader = code[some], film[some], reader[some]
    starts = np.searchsorted(film, np.arange(film.max(initial=-1) + 2))
    column = np.arange(len(film)) - starts[film]
    if len(film) == 0 or column.max() == 0:
        raise InputError(
            "fusion by skill: no image with a box was read by two readers or more, so that nothing "
            "can be inferred of them: choose another method, such as wbf@0.4"
        )
    who = np.full((len(starts) - 1, column.max() + 1), -1)
    who[film, column] = reader
    seen = np.unique(film)
    readers_of, team, films = np.unique(who[seen], axis=0, return_inverse=True, return_counts=True)
    team_of = np.zeros(len(who), np.int64)
    team_of[seen] = team.ravel()
    drew = np.zeros((len(image), who.shape[1]), bool)
    at = np.searchsorted(code, image[of_cluster] * len(names) + of_reader)
    drew[of_cluster, column[at]] = True

    # Clusters that are alike, and places where nobody drew.
    keys = np.column_stack([labels, team_of[image], drew])
    alike, case, count = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    taken = np.zeros((len(films), num_classes))
    np.add.at(taken, (team_of[image], labels), 1)
    empty_team, empty_label = np.indices(taken.shape).reshape(2, -1)
    left = np.maximum(films[:, None] * places - taken, 0).ravel()
    # The first group is that of all teams of few films.
    large = films >= OWN_PREVALENCE
    group = np.where(large, np.cumsum(large), 0)
    team = np.concatenate([alike[:, 1], empty_team])
    cases = Cases(
        labels=np.concatenate([alike[:, 0], empty_label]),
        group=group[team],
        readers=readers_of[team],
        drew=np.concatenate([alike[:, 2:] > 0, np.zeros((len(left), who.shape[1]), bool)]),
        count=np.concatenate([count, left]),
    )
    of_case, rates = infer(cases, len(names), places)
    probability = of_case[case.ravel()]

    drawn_by = opinions.boxes, of_cluster, of_reader
    corners, error = weigh_corners(*drawn_by, probability, len(names))
    drawn, true = np.zeros((2, len(names), num_classes))
    np.add.at(drawn, (of_reader, labels[of_cluster]), 1)
    np.add.at(true, (of_reader, labels[of_cluster]), probability[of_cluster])
    skills = Skills(
        names, films_read, drawn.astype(int), rates.recall,
        rates.false * places, true / np.maximum(drawn, 1), error,
    )  # fmt: skip
    return probability, corners, skills


def skill(readings: Readings, iou_threshold: float, min_posterior: float = 0.0) -> Findings:
    """Findings as probable as the skills of who drew them, and of who did not, make them.

    Score and soft target are the posterior; findings below `min_posterior` are left out. No order
    of the rows matters.

    Raises:
        InputError: see `judge`.
    """
    clusters, opinions = gather(readings, iou_threshold)
    places = count_places(clusters.rows, iou_threshold)
    probability, corners, skills = judge(opinions, places)
    findings = Findings(clusters.table(probability, corners), probability, skills=skills)
    return findings.take(np.flatnonzero(probability >= min_posterior))
