"""What three readers see of an image's findings, and draw."""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from tfds_vinbig.phantom.body import Body, to_image
from tfds_vinbig.phantom.findings import (
    AORTA,
    CALCIFICATION,
    CARDIOMEGALY,
    CONSOLIDATION,
    EFFUSION,
    FIBROSIS,
    HABITS,
    INFILTRATION,
    NODULE,
    OPACITY,
    OTHER,
    THICKENING,
    Finding,
    place,
)


class Drawn(NamedTuple):
    """What a reader draws: a box in shares of the picture, and what it is taken for."""

    reader: int  # 0, 1 or 2
    label: int
    box: Float64[np.ndarray, "4"]


class Sight(NamedTuple):
    """How readers see the findings of a class."""

    seen: tuple[float, float, float]  # shares of the findings that 1, 2, 3 readers see
    wobble: float  # standard deviation of a reader's edge, in widths or heights of the box
    mistaken: tuple[int, ...]  # the labels that a reader may give it instead


# Fitted such that fused boxes have one, two or three readers, and pairs of readers overlap, as
# often as in VinBigData.
SIGHTS = (
    Sight((0.27, 0.18, 0.55), 0.076, ()),
    Sight((0.72, 0.16, 0.12), 0.155, (OPACITY, FIBROSIS, CONSOLIDATION)),
    Sight((0.64, 0.28, 0.08), 0.108, (NODULE, FIBROSIS)),
    Sight((0.22, 0.23, 0.55), 0.062, ()),
    Sight((0.65, 0.26, 0.09), 0.091, (OPACITY, INFILTRATION)),
    Sight((0.68, 0.14, 0.18), 0.097, (INFILTRATION, FIBROSIS)),
    Sight((0.69, 0.19, 0.12), 0.098, (FIBROSIS, OPACITY)),
    Sight((0.68, 0.26, 0.06), 0.108, (INFILTRATION, FIBROSIS, CONSOLIDATION, NODULE)),
    Sight((0.62, 0.21, 0.17), 0.077, (OPACITY, OTHER, CALCIFICATION)),
    Sight((0.75, 0.17, 0.08), 0.128, (OPACITY, NODULE)),
    Sight((0.41, 0.12, 0.47), 0.147, (THICKENING,)),
    Sight((0.70, 0.19, 0.11), 0.150, (FIBROSIS, EFFUSION)),
    Sight((0.52, 0.17, 0.31), 0.062, ()),
    Sight((0.46, 0.24, 0.30), 0.136, (INFILTRATION, OPACITY, THICKENING)),
)
MISTAKE = 0.08  # chance that a reader who does not give a finding its label gives it another
INVENT = 0.06  # boxes per reader and image that nothing stands behind
UNSEEN = 0.02  # share of the findings that no reader sees


def read_image(findings: list[Finding], body: Body, rng: np.random.Generator) -> list[Drawn]:
    """What three readers draw on an abnormal image.

    Subtle findings are missed more often. Every reader draws a box, since in VinBigData no image
    is normal to one reader and not to another.
    """
    drawn = []
    for finding in findings:
        sight = SIGHTS[finding.label]
        # How many see it follows the severity, with some luck, in the shares of the class.
        luck = 0.85 * NormalDist().inv_cdf(min(max(finding.severity, 1e-6), 1 - 1e-6))
        rank = NormalDist().cdf(luck + math.sqrt(1 - 0.85**2) * rng.standard_normal())
        shares = np.cumsum([UNSEEN, *sight.seen])
        order = rng.permutation(3)
        count = min(int(np.searchsorted(shares / shares[-1], rank)), 3)
        for reader in order[:count]:
            drawn.append(Drawn(int(reader), finding.label, wobble(finding, body, rng)))
        for reader in order[count:]:
            if sight.mistaken and rng.random() < MISTAKE:
                label = int(rng.choice(sight.mistaken))
                drawn.append(Drawn(int(reader), label, wobble(finding, body, rng)))
    weights = np.array([habit.rate for habit in HABITS])
    weights[[AORTA, CARDIOMEGALY]] = 0  # there is but one heart to be wrong about
    for reader in range(3):
        for _ in range(rng.poisson(INVENT)):
            label = int(rng.choice(len(HABITS), p=weights / weights.sum()))
            drawn.append(Drawn(reader, label, to_image(body, place(label, body, rng))))
    obvious = max(findings, key=lambda finding: finding.severity)
    for reader in range(3):
        if not any(one.reader == reader for one in drawn):
            drawn.append(Drawn(reader, obvious.label, wobble(obvious, body, rng)))
    return drawn


def wobble(finding: Finding, body: Body, rng: np.random.Generator) -> Float64[np.ndarray, "4"]:
    """A reader's box round a finding, in shares of the picture."""
    box = to_image(body, finding.box)
    size = box[2:] - box[:2]
    care = SIGHTS[finding.label].wobble * math.exp(rng.normal(0, 0.5))
    return box + np.clip(rng.normal(0, care, 4), -0.35, 0.6) * np.tile(size, 2) * (-1, -1, 1, 1)
