"""Statistics of a dataset: readers and their agreement, heat maps, and what looks wrong."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxdet.data import grey, images
from jaxdet.data.dataset import Annotations, Dataset
from jaxdet.data.inversion import grey_levels, looks_inverted
from jaxdet.ops import fusion, metrics
from jaxdet.ops.boxes import BoxTable
from jaxdet.ops.clusters import Readings, cluster

CELLS = 48  # of a heat map, along a side
FLAT = "Flat"
THUMBNAIL = 24  # pixels along a side, in which duplicates are looked for
# Correlation of two thumbnails above which they are the same film. The most similar two of 112
# films of different people have 0.94; a film saved again as JPEG 0.9998, with a gamma of 0.8 0.998.
SAME = 0.995
BLACK = 8  # grey levels, of 255
BORDER = 0.1  # share of a side
TINY = 4  # pixels of the model input


def findings(rows: Annotations, num_classes: int) -> Annotations:
    """The rows that are boxes, without "No finding"."""
    found = rows.labels < num_classes
    return Annotations(
        rows.image[found], rows.labels[found], rows.readers[found], rows.boxes[found]
    )


class Agreement(NamedTuple):
    """How many readers drew each finding, and how much their boxes overlap."""

    readers: Int[np.ndarray, "classes most"]  # findings that 1, 2, ... readers drew
    labels: Int[np.ndarray, "pairs"]
    overlap: Float[np.ndarray, "pairs"]  # IoU of two readers' boxes of one class that overlap


def agreement(rows: Annotations, num_classes: int, iou_threshold: float = 0.4) -> Agreement:
    """The agreement of the readers of an image.

    A finding is a cluster of boxes by "votes@`iou_threshold`", see `fusion.fuse`. Overlaps are
    those of each pair of readers: of each box of the one with the box of the other, of the same
    class, that it overlaps most.
    """
    rows = findings(rows, num_classes)
    # Readers of an image are counted 0, 1, ...
    pairs = np.stack([rows.image, np.unique(rows.readers, return_inverse=True)[1]])
    _, which = np.unique(pairs, axis=1, return_inverse=True)
    first = np.full(rows.image.max(initial=-1) + 1, len(which))
    np.minimum.at(first, rows.image, which)
    nth = which - first[rows.image]
    most = int(nth.max(initial=0)) + 1

    fused = fusion.fuse(
        f"votes@{iou_threshold}", rows.image, rows.labels, rows.readers, rows.boxes, most
    )
    count = np.zeros((num_classes, most), np.int64)
    np.add.at(count, (fused.labels, np.rint(fused.scores * most).astype(int) - 1), 1)

    table = BoxTable(rows.image, rows.labels, rows.boxes.astype(float), np.ones(len(nth)))
    labels, overlaps = [np.zeros(0, np.int64)], [np.zeros(0)]
    for a in range(most):
        for b in range(a + 1, most):
            mine, theirs = (BoxTable(*(column[nth == r] for column in table)) for r in (a, b))
            _, overlap = metrics.match(mine, theirs)
            labels.append(mine.labels[overlap > 0])
            overlaps.append(overlap[overlap > 0])
    return Agreement(count, np.concatenate(labels), np.concatenate(overlaps))


class Reader(NamedTuple):
    """How much one reader read and drew."""

    name: str
    images: int
    abnormal: int  # of these, images with a box of this reader
    boxes: int


def readers(rows: Annotations, num_classes: int) -> list[Reader]:
    """All readers, those with the most images first."""
    result = []
    for name in np.unique(rows.readers):
        mine = rows.readers == name
        boxes = mine & (rows.labels < num_classes)
        result.append(
            Reader(
                str(name),
                len(np.unique(rows.image[mine])),
                len(np.unique(rows.image[boxes])),
                int(boxes.sum()),
            )
        )
    return sorted(result, key=lambda reader: -reader.images)


class Confirmed(NamedTuple):
    """How far the others confirm each reader, by class."""

    readers: np.ndarray  # names
    boxes: Int[np.ndarray, "readers classes"]
    confirmed: Int[np.ndarray, "readers classes"]  # of these, in a finding that another drew too
    agreed: Int[np.ndarray, "readers classes"]  # findings that two others or more drew
    found: Int[np.ndarray, "readers classes"]  # of these, drawn by the reader too


def confirmed(rows: Annotations, num_classes: int, iou_threshold: float = 0.4) -> Confirmed:
    """What the other readers of each image say; findings are those of `agreement`."""
    names, number = np.unique(rows.readers, return_inverse=True)
    looked = np.zeros((rows.image.max(initial=-1) + 1, len(names)), bool)
    looked[rows.image, number] = True
    drawn = rows.labels < num_classes
    columns = rows.image[drawn], rows.labels[drawn], number[drawn], rows.boxes[drawn].astype(float)
    clusters = cluster(Readings(*columns, np.ones(drawn.sum())), iou_threshold)
    found, member = clusters.rows, clusters.member
    image, labels = found.image[clusters.first], found.labels[clusters.first]
    drew = np.zeros((len(image), len(names)), bool)
    drew[member, found.readers] = True
    votes = drew.sum(axis=1)

    def count(readers, labels):
        result = np.zeros((len(names), num_classes), np.int64)
        np.add.at(result, (readers, labels), 1)
        return result

    shared = votes[member] > 1
    which, reader = np.nonzero(looked[image] & (votes[:, None] - drew >= 2))
    hit = drew[which, reader]
    return Confirmed(
        names,
        count(found.readers, found.labels),
        count(found.readers[shared], found.labels[shared]),
        count(reader, labels[which]),
        count(reader[hit], labels[which][hit]),
    )


def heat_maps(dataset: Dataset) -> Float[np.ndarray, "classes cells cells"]:
    """For each class, the share of the readers' boxes that cover each cell of the image."""
    rows = findings(dataset.annotations, dataset.num_classes)
    width_height = dataset.sizes[rows.image][:, [1, 0, 1, 0]]
    cells = np.rint(rows.boxes / width_height * CELLS).astype(int)
    x1, y1 = cells[:, :2].T.clip(0, CELLS - 1)
    x2, y2 = cells[:, 2:].T.clip([x1 + 1, y1 + 1], CELLS)  # a box covers one cell at least
    # The integral image, backwards: +1 and -1 at the corners of a box, then summed along both axes.
    corners = np.zeros((dataset.num_classes, CELLS + 1, CELLS + 1))
    for y, x, sign in ((y1, x1, 1), (y1, x2, -1), (y2, x1, -1), (y2, x2, 1)):
        np.add.at(corners, (rows.labels, y, x), sign)
    covered = corners.cumsum(axis=1).cumsum(axis=2)[:, :CELLS, :CELLS]
    counts = np.bincount(rows.labels, minlength=dataset.num_classes)
    return covered / np.maximum(counts, 1)[:, None, None]


class Suspicion(NamedTuple):
    """A kind of suspicion, and the images that a person should look at."""

    name: str
    meaning: str
    images: Int[np.ndarray, "n"]
    notes: list[str]  # on each image


def black_border(pixels: UInt8[np.ndarray, "h w"]) -> float:
    """The width of the black borders of both sides, as share of the image; that of top and bottom,
    if larger."""
    shares = []
    for brightest in (pixels.max(axis=1), pixels.max(axis=0)):
        bright = np.flatnonzero(brightest > BLACK)
        if not len(bright):
            return 1.0
        shares.append((bright[0] + len(brightest) - 1 - bright[-1]) / len(brightest))
    return max(shares)


def find_inverted(pixels: UInt8[np.ndarray, "n h w"]) -> list[int]:
    """Images that look inverted among the others, see `looks_inverted`.

    The grey levels of normal films are estimated from the images not found yet, and the search is
    repeated until nothing changes: where a fifth are inverted (MONOCHROME1 read as MONOCHROME2),
    they would distort the estimate.
    """
    found: list[int] = []
    for _ in range(10):
        rest = np.setdiff1d(np.arange(len(pixels)), found)
        some = rest[np.unique(np.linspace(0, len(rest) - 1, 500).astype(int))]
        levels = grey_levels(pixels[some])
        last = found
        found = [i for i, image in enumerate(pixels) if looks_inverted(image, levels)]
        if found == last or len(found) == len(pixels):
            break
    return found


def duplicates(
    pixels: UInt8[np.ndarray, "n h w"],
) -> tuple[Int[np.ndarray, "pairs 2"], Float[np.ndarray, "pairs"]]:
    """Pairs of images that show the same film, and the correlation of their thumbnails.

    Pairs are those with a correlation above `SAME`, which does not depend on brightness or contrast
    and hardly on compression.
    """
    small = np.stack([images.resize(image, THUMBNAIL) for image in pixels]).astype(np.float32)
    flat = small.reshape(len(small), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-3)  # a flat one is no copy
    pairs, likeness = [], []
    for start in range(0, len(flat), 1000):  # all at once would be gigabytes
        alike = flat[start : start + 1000] @ flat.T
        i, j = np.nonzero(alike > SAME)
        once = i + start < j
        pairs.append(np.stack([i[once] + start, j[once]], axis=1))
        likeness.append(alike[i[once], j[once]])
    return np.concatenate(pairs), np.concatenate(likeness).astype(float)


def flat_films(dataset: Dataset, suspicions: list[Suspicion]) -> list[str]:
    """A line that names the films of the suspicion "Flat", if there are any."""
    flat = [dataset.ids[i] for found in suspicions if found.name == FLAT for i in found.images]
    names = ", ".join(map(str, flat[:10])) + (f" and {len(flat) - 10} more" if flat[10:] else "")
    return [f"{len(flat)} images have hardly any contrast: {names}"] if flat else []


def suspicions(
    dataset: Dataset, pixels: UInt8[np.ndarray, "n h w"], image_size: int
) -> list[Suspicion]:
    """What looks wrong in the images and the readers' boxes, without the kinds that do not occur.

    Args:
        pixels: the images, at any size.
        image_size: of the model input.
    """
    flat = [
        i
        for i, image in enumerate(pixels)
        if image.std() < 4 or grey.share_of_one(image) > 1 - grey.FEW
    ]
    inverted = sorted(set(find_inverted(pixels)) - set(flat))
    border = np.array([black_border(image) for image in pixels])
    wide = np.flatnonzero((border > BORDER) & (border < 1))
    wide = wide[np.argsort(-border[wide], kind="stable")]
    pairs, likeness = duplicates(pixels)
    result = [
        Suspicion(
            "Inverted", "inverted, it would look more like the other images",
            np.array(inverted, np.int64), [""] * len(inverted),
        ),
        Suspicion(
            FLAT, "hardly any contrast", np.array(flat, np.int64), [""] * len(flat)
        ),
        Suspicion(
            "Black borders", f"more than {BORDER:.0%} of a side is black from the edges on",
            wide, [f"{border[i]:.0%} of a side" for i in wide],
        ),
        Suspicion(
            "Duplicates", "the same film under two names: dangerous where one is trained on and "
            "the other evaluated",
            pairs.ravel(),
            [
                f"as {dataset.ids[other]} ({alike:.5f})"
                for (i, j), alike in zip(pairs, likeness, strict=True)
                for other in (j, i)
            ],
        ),
    ]  # fmt: skip

    rows = findings(dataset.annotations, dataset.num_classes)
    width_height = dataset.sizes[rows.image][:, [1, 0]]
    at_edge = ((rows.boxes[:, :2] <= 1) | (rows.boxes[:, 2:] >= width_height - 1)).any(axis=1)
    side = ((rows.boxes[:, 2:] - rows.boxes[:, :2]) / width_height * image_size).min(axis=1)
    normal = np.unique(dataset.annotations.image[dataset.annotations.labels == dataset.num_classes])
    for name, meaning, chosen, what in (
        ("At the edge", "a box that ends at the edge of the image: cut off?", at_edge, "boxes"),
        ("Tiny boxes", f"below {TINY} pixels of the model input: hard to see at all",
         side < TINY, "boxes"),
        ("Disputed", "normal for one reader, not for another",
         np.isin(rows.image, normal), "boxes"),
    ):  # fmt: skip
        which, count = np.unique(rows.image[chosen], return_counts=True)
        order = np.argsort(-count, kind="stable")
        notes = [f"{n} {what if n > 1 else what.removesuffix('es')}" for n in count[order]]
        result.append(Suspicion(name, meaning, which[order], notes))
    return [suspicion for suspicion in result if len(suspicion.images)]
