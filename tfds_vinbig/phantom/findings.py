"""Which findings an abnormal image has, and where they lie."""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from tfds_vinbig.phantom.body import Body, Box, diaphragm, lung_walls

# The labels: places in kaggle.CLASS_NAMES.
AORTA, ATELECTASIS, CALCIFICATION, CARDIOMEGALY, CONSOLIDATION, ILD, INFILTRATION = range(7)
OPACITY, NODULE, OTHER, EFFUSION, THICKENING, PNEUMOTHORAX, FIBROSIS = range(7, 14)


class Habit(NamedTuple):
    """How a class of findings occurs: as in VinBigData, but that rare classes are lifted."""

    rate: float  # share of abnormal images that have it
    factors: tuple[float, float, float]  # what it shares with other classes, see `choose_labels`
    again: float  # chance of one more in the same image, and of one more again
    width: tuple[float, float]  # median, and standard deviation of the logarithm
    height: tuple[float, float]
    correlation: float  # of the logarithms of width and height
    centre: tuple[float, float]  # mean and standard deviation of its v
    right: float  # share on the patient's right


# fmt: off
HABITS = (
    Habit(0.696, (-.55, -.05, .38), 0.00, (0.115, 0.12), (0.113, 0.18), 0.70, (0.33, 0.02), 0.00),
    Habit(0.085, (.56, .08, -.02), 0.09, (0.200, 0.32), (0.180, 0.52), 0.60, (0.36, 0.15), 0.61),
    Habit(0.091, (.10, .80, -.01), 0.40, (0.065, 0.75), (0.067, 0.85), 0.76, (0.39, 0.15), 0.39),
    Habit(0.513, (-.70, -.25, .32), 0.00, (0.425, 0.08), (0.133, 0.18), 0.40, (0.60, 0.05), 0.00),
    Habit(0.083, (.65, -.30, -.11), 0.15, (0.187, 0.36), (0.180, 0.50), 0.70, (0.43, 0.13), 0.65),
    Habit(0.096, (.26, .08, -.11), 0.54, (0.217, 0.30), (0.330, 0.42), 0.68, (0.49, 0.09), 0.52),
    Habit(0.100, (.57, -.29, -.21), 0.36, (0.190, 0.38), (0.195, 0.50), 0.72, (0.40, 0.14), 0.59),
    Habit(0.238, (.61, -.22, -.02), 0.26, (0.160, 0.52), (0.150, 0.62), 0.68, (0.44, 0.16), 0.62),
    Habit(0.145, (.30, .33, -.13), 0.58, (0.034, 0.85), (0.030, 0.87), 0.90, (0.44, 0.16), 0.54),
    Habit(0.232, (.30, .16, .09), 0.31, (0.114, 0.80), (0.132, 0.90), 0.50, (0.45, 0.19), 0.59),
    Habit(0.195, (.68, -.18, .44), 0.22, (0.070, 0.98), (0.092, 0.70), 0.80, (0.00, 0.00), 0.59),
    Habit(0.430, (.54, .20, .69), 0.44, (0.100, 0.50), (0.052, 0.55), 0.35, (0.00, 0.00), 0.56),
    Habit(0.052, (.40, -.20, .09), 0.22, (0.255, 0.40), (0.275, 0.80), 0.58, (0.00, 0.00), 0.65),
    Habit(0.305, (.55, .17, -.01), 0.41, (0.115, 0.58), (0.092, 0.76), 0.69, (0.37, 0.15), 0.57),
)
# fmt: on


class Finding(NamedTuple):
    """One finding. Severity goes from 0 (subtle) to 1 (obvious); the seed draws its details."""

    label: int
    box: Box
    severity: float
    seed: int


def place(label: int, body: Body, rng: np.random.Generator) -> Box:
    """A box where findings of the label occur, as large as they are."""
    habit = HABITS[label]
    a, b = rng.standard_normal(2).clip(-2.5, 2.5)
    b = habit.correlation * a + math.sqrt(1 - habit.correlation**2) * b
    w = habit.width[0] * math.exp(habit.width[1] * a)
    h = habit.height[0] * math.exp(habit.height[1] * b)
    w, h = max(w, 0.009), max(h, 0.009)  # two pixels
    side = int(rng.random() >= habit.right)
    sign = 2 * side - 1
    v = rng.normal(*habit.centre)
    if label == AORTA:
        u, v = rng.normal(0.567, 0.012), body.knob[1] + rng.normal(0, 0.02)
        u += 0.12 * (0.117 - w)  # what is wider is wider on both sides
    elif label == CARDIOMEGALY:
        w = max(w, body.heart[1] - body.heart[0] + 0.03)
        u, v = rng.normal(0.573, 0.015), body.heart[2] + rng.normal(0, 0.03)
    elif label == EFFUSION:
        bottom = body.angle[side] + 0.01
        outer = lung_walls(body, side, bottom - 0.03)[1] + 0.006
        w = min(w, 0.38)
        dome = float(diaphragm(body, side, outer - w))
        h = min(max(h, bottom - dome + 0.015), 0.6)  # above the dome, or it would not be seen
        u, v = 0.5 + sign * (outer - w / 2), bottom - h / 2
    elif label == THICKENING and rng.random() < 0.68:
        w, h = min(1.25 * w, 0.24), min(0.8 * h, 0.2)
        v = body.apex[side] - 0.008 + h / 2 + abs(rng.normal(0, 0.02))
        u = 0.5 + sign * (0.155 + rng.normal(0, 0.025))
    elif label == THICKENING:  # along the side wall: turned by 90 degrees
        w, h = 0.75 * h + 0.015, 0.6 * w + 0.02
        v = rng.uniform(0.4, body.angle[side]) if rng.random() < 0.5 else body.angle[side] - h / 2
        u = 0.5 + sign * (lung_walls(body, side, v)[1] + 0.005 - w / 2)
    elif label == PNEUMOTHORAX:
        w, h = min(w, 0.34), min(max(h, 0.05), 0.62)
        v = body.apex[side] - 0.005 + h / 2
        if w < h < 0.45 and rng.random() < 0.7:  # lateral rather than apical
            v = rng.uniform(0.3, 0.6)
        outer = lung_walls(body, side, np.linspace(v - h / 2, v + h / 2, 9))[1].max()
        u = 0.5 + sign * (outer + 0.004 - w / 2)
    elif label == OTHER and w * h < 0.03:  # anywhere in the picture
        u = 0.5 + sign * abs(rng.normal(0.24, 0.11))
        v = np.clip(v, 0.08, 0.86)
        u = np.clip(u, 0.05, 0.95)
    else:
        v = np.clip(v, body.apex[side] + 0.03, body.angle[side] - 0.05)
        inner, outer = lung_walls(body, side, v)
        d = np.clip(rng.normal(0.225, 0.07), max(inner, 0.06) + 0.01, outer - 0.015)
        w, h = min(w, outer - max(inner, 0.03) + 0.03), min(h, 0.58)
        u = 0.5 + sign * np.clip(d, 0.03 + w / 2, max(outer + 0.01 - w / 2, 0.03 + w / 2))
        low = (body.angle[side] + body.dome[side]) / 2
        v = np.clip(v, body.apex[side] + h / 2, max(low - h / 2, body.apex[side] + h / 2))
    return (float(u - w / 2), float(v - h / 2), float(u + w / 2), float(v + h / 2))


def choose_labels(rng: np.random.Generator) -> list[int]:
    """The labels of one abnormal image, each once.

    A Gaussian copula with three factors keeps both the classes' rates and which of them come
    together: heart and vessels age, scars come with thickened pleura, airspace disease with fluid.
    """
    found = []
    while not found:
        common = rng.standard_normal(3)
        for label, habit in enumerate(HABITS):
            f = np.array(habit.factors)
            z = f @ common + math.sqrt(1 - f @ f) * rng.standard_normal()
            if z < NormalDist().inv_cdf(habit.rate):
                found.append(label)
    return found


def make_findings(body: Body, rng: np.random.Generator) -> list[Finding]:
    """The findings of one abnormal image; two of a label do not lie on each other."""
    findings = []
    for label in choose_labels(rng):
        count = 1
        while count < 12 and rng.random() < HABITS[label].again:
            count += 1
        boxes = []
        for _ in range(3 * count):
            box = place(label, body, rng)
            if all(iou(box, other) < 0.1 for other in boxes):
                boxes.append(box)
            if len(boxes) == count:
                break
        for box in boxes:
            severity = rng.random()
            if label in (AORTA, CARDIOMEGALY):  # their size is what shows
                median, spread = HABITS[label].width
                severity = NormalDist(math.log(median), spread).cdf(math.log(box[2] - box[0]))
            findings.append(Finding(label, box, severity, int(rng.integers(2**31))))
    return findings


def iou(a, b) -> float:
    """Intersection over union of two boxes."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return w * h / (area - w * h)
