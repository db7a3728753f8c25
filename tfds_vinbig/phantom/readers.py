"""What three readers see of an image's findings, and draw."""

import functools
import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from tfds_vinbig.phantom.body import Body, to_image
from tfds_vinbig.phantom.findings import (
    AORTA,
    ATELECTASIS,
    CALCIFICATION,
    CARDIOMEGALY,
    CONSOLIDATION,
    EFFUSION,
    FIBROSIS,
    HABITS,
    ILD,
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

    counted: tuple[tuple[float, ...], ...]  # of each reader, see below
    wobble: float  # standard deviation of a reader's edge, in widths or heights of the box
    apart: float  # share of two readers' boxes round one finding that do not overlap enough
    mistaken: tuple[int, ...]  # the classes whose findings may be given this label by mistake


# fmt: off
# Of VinBigData's 4,146 films that R8, R9 and R10 read and found abnormal, for each of them: boxes;
# share that another of the two confirms (IoU above 0.4, same class); findings on which both others
# agree; share of these that the reader drew too. `wobble` is fitted such that pairs of readers
# overlap as in VinBigData, and gives `apart` (IoU up to 0.4), by drawing 400 pairs.
SIGHTS = (
    Sight(((2066, .958, 1914, .850), (2541, .829, 1793, .909), (2349, .889, 1807, .901)),
          0.076, 0.03, ()),
    Sight(((37, .730, 22, .500), (78, .372, 20, .550), (115, .270, 18, .611)),
          0.155, 0.28, (OPACITY, CONSOLIDATION)),
    Sight(((321, .380, 55, .509), (298, .399, 56, .500), (139, .590, 94, .309)),
          0.108, 0.13, (NODULE,)),
    Sight(((1765, .922, 1406, .900), (1668, .913, 1505, .838), (1835, .901, 1378, .917)),
          0.062, 0.01, ()),
    Sight(((228, .386, 31, .677), (201, .398, 39, .538), (91, .527, 70, .300)),
          0.091, 0.05, (OPACITY, INFILTRATION, ATELECTASIS)),
    Sight(((303, .574, 104, .846), (291, .567, 114, .781), (218, .596, 149, .597)),
          0.097, 0.09, (INFILTRATION, FIBROSIS)),
    Sight(((412, .464, 129, .651), (439, .446, 127, .685), (338, .509, 149, .557)),
          0.098, 0.07, (OPACITY, CONSOLIDATION, FIBROSIS, ILD)),
    Sight(((411, .535, 314, .287), (1042, .377, 138, .638), (929, .395, 166, .542)),
          0.108, 0.07, (INFILTRATION, CONSOLIDATION, FIBROSIS, NODULE)),
    Sight(((745, .494, 358, .531), (857, .536, 269, .703), (866, .507, 290, .662)),
          0.077, 0.03, (OPACITY, CALCIFICATION, OTHER)),
    Sight(((414, .483, 186, .425), (971, .263, 136, .610), (650, .374, 144, .556)),
          0.128, 0.21, (NODULE, CALCIFICATION)),
    Sight(((560, .770, 434, .643), (1045, .498, 343, .808), (790, .644, 354, .777)),
          0.147, 0.21, (THICKENING,)),
    Sight(((1089, .547, 449, .512), (2466, .283, 356, .640), (1186, .497, 460, .491)),
          0.150, 0.23, (FIBROSIS, EFFUSION)),
    Sight(((70, .786, 40, .900), (75, .707, 43, .860), (74, .649, 49, .755)),
          0.062, 0.02, ()),
    Sight(((1341, .658, 636, .697), (1757, .503, 623, .701), (1391, .597, 677, .647)),
          0.136, 0.22, (THICKENING, INFILTRATION, ATELECTASIS, OPACITY)),
)
# fmt: on
# The spread of a reader's edges beside the three's mean: see benchmarks/compare_readers.py.
CARE = (0.96, 0.99, 1.05)
# Chance that a reader's false box lies on a finding of a class in `mistaken`, where there is one.
CONFUSED = (0.9, 0.7, 0.9)
SETS = ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))  # of readers who see a finding
SETS_OF_SIZE = (slice(0, 1), slice(1, 4), slice(4, 7), slice(7, 8))


class Skill(NamedTuple):
    """What the counts of a class come from."""

    seen: Float64[np.ndarray, "8"]  # shares of its findings that are seen by each of SETS
    false: Float64[np.ndarray, "3"]  # false boxes of each reader, per finding


@functools.cache
def skill(label: int) -> Skill:
    """Who sees what of a class, and who draws what is not there, from the counts of SIGHTS.

    The findings that all three see are drawn[i] * agreed[i] of the counts, and those that all but i
    see are the rest of agreed[i]; two boxes of one finding that lie `apart` are counted as boxes
    that nobody confirms, which is made good. What is left of these was seen, or invented, by one.

    Were all findings equally easy (Dawid and Skene 1979), reader i would see the share drawn[i] of
    them. That gives their number, how many one reader alone sees, and how many nobody does. Readers
    draw more alone than that. Counts cannot tell a subtle finding from a false one: as many as the
    most careful reader of the class draws, in proportion to recall, are taken for subtle findings;
    what the others draw beyond, and at least a twentieth of what one draws alone, is false.
    """
    boxes, confirmed, agreed, drawn = np.array(SIGHTS[label].counted).T
    apart, missed = SIGHTS[label].apart, 1 - drawn
    agreed_by_all = (drawn * agreed).mean()
    three = agreed_by_all / (1 - apart) ** 2
    but_one = np.clip((agreed - agreed_by_all) / (1 - apart) - three * apart, 0, None)
    with_one = but_one.sum() - but_one  # seen by this reader and one other
    alone = boxes * (1 - confirmed)
    alone = np.clip(alone - apart * with_one - apart**2 * three, 0, None)
    number = three / drawn.prod()
    by_chance = number * drawn * missed.prod() / missed
    more = np.clip(alone - by_chance, 0.05 * alone, None)
    subtle = drawn * (more / drawn).min()
    false = np.maximum(more - subtle, 0.05 * alone)
    found = np.array([number * missed.prod(), *(alone - false), *but_one[::-1], three])
    return Skill(found / found.sum(), false / found.sum())


def read_image(findings: list[Finding], body: Body, rng: np.random.Generator) -> list[Drawn]:
    """What three readers draw on an abnormal image.

    Subtle findings are missed more often. Every reader draws a box, since in VinBigData no image
    is normal to one reader and not to another.
    """
    drawn = []
    for finding in findings:
        seen = skill(finding.label).seen
        # How many see it follows the severity, with some luck, in the shares of the class.
        luck = 0.85 * NormalDist().inv_cdf(min(max(finding.severity, 1e-6), 1 - 1e-6))
        rank = NormalDist().cdf(luck + math.sqrt(1 - 0.85**2) * rng.standard_normal())
        size = int(np.searchsorted(np.cumsum(np.add.reduceat(seen, (0, 1, 4, 7)))[:3], rank))
        sets = SETS_OF_SIZE[size]
        share = np.cumsum(seen[sets])
        who = SETS[sets.start + int(np.searchsorted(share, rng.random() * share[-1]))]
        for reader in who:
            drawn.append(Drawn(reader, finding.label, wobble(finding, body, reader, rng)))
    present = {finding.label for finding in findings}
    for label, habit in enumerate(HABITS):
        often = habit.rate / (1 - habit.again)  # findings of the class in an abnormal image
        if label in (AORTA, CARDIOMEGALY):  # there is but one heart to be wrong about
            often = 0 if label in present else habit.rate / (1 - habit.rate)
        for reader, count in enumerate(rng.poisson(often * skill(label).false)):
            for _ in range(count):
                alike = [finding for finding in findings if finding.label in SIGHTS[label].mistaken]
                if alike and rng.random() < CONFUSED[reader]:
                    other = alike[rng.integers(len(alike))]
                    box = wobble(other, body, reader, rng)
                else:
                    box = to_image(body, place(label, body, rng))
                drawn.append(Drawn(reader, label, box))
    obvious = max(findings, key=lambda finding: finding.severity)
    for reader in range(3):
        if not any(one.reader == reader for one in drawn):
            drawn.append(Drawn(reader, obvious.label, wobble(obvious, body, reader, rng)))
    return drawn


def wobble(
    finding: Finding, body: Body, reader: int, rng: np.random.Generator
) -> Float64[np.ndarray, "4"]:
    """A reader's box round a finding, in shares of the picture."""
    box = to_image(body, finding.box)
    size = box[2:] - box[:2]
    care = CARE[reader] * SIGHTS[finding.label].wobble * math.exp(rng.normal(0, 0.5))
    return box + np.clip(rng.normal(0, care, 4), -0.35, 0.6) * np.tile(size, 2) * (-1, -1, 1, 1)
