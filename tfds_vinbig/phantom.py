"""The phantom: a Kaggle folder of drawn chest X-rays, whole from a seed.

    draw_folder("phantom", seed=0)

It stands in for VinBigData where the real pictures are not at hand: the same files, the same
columns, the 14 findings drawn as what they are where they occur, and three readers who miss,
shift and misname them about as often as the real ones do. `truth.csv` tells what was drawn.

An image is planned first (`plan_image`: body, findings, readers' boxes; no pixels) and then drawn
(`draw_image`). Everything is a function of (seed, split, index). Coordinates are those of a
standard chest: u to the right and v downwards, 0..1 over the average picture, midline at u = 0.5,
the patient's right at low u. `Body` tells how the chest lies in the picture.
"""

import functools
import hashlib
import math
import multiprocessing
import os
import shutil
import signal
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from jaxdet import InputError
from tfds_vinbig.kaggle import CLASS_NAMES, NO_FINDING

# (height, width) of the pretended originals and how often they occur in VinBigData.
SIZES = {
    (2430, 1994): 2201,
    (3072, 3072): 1474,
    (2880, 2304): 1294,
    (2500, 2048): 1261,
    (2836, 2336): 864,
    (3072, 2540): 591,
    (3000, 3000): 438,
    (3170, 2642): 349,
    (3028, 2517): 317,
    (2930, 2504): 107,
    (3408, 3320): 75,
    (2688, 2208): 47,
}
SPLITS = ("train", "test")
READERS = tuple(f"R{i}" for i in range(1, 18))
AORTA, ATELECTASIS, CALCIFICATION, CARDIOMEGALY, CONSOLIDATION, ILD, INFILTRATION = range(7)
OPACITY, NODULE, OTHER, EFFUSION, THICKENING, PNEUMOTHORAX, FIBROSIS = range(7, 14)


class Habit(NamedTuple):
    """How a class of findings occurs: as in VinBigData, but that rare classes are lifted."""

    rate: float  # share of abnormal images that have it
    factors: tuple[float, float, float]  # what it shares with other classes, see `choose_classes`
    more: float  # chance of one more finding in the same image, and again
    width: tuple[float, float]  # median, and standard deviation of the logarithm
    height: tuple[float, float]
    together: float  # correlation of the logarithms of width and height
    level: tuple[float, float]  # mean and standard deviation of the centre's v
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


class Body(NamedTuple):
    """Who stands before the film, and how. Lengths in the standard chest's units."""

    scale: tuple[float, float]  # of the chest in the picture
    shift: tuple[float, float]
    turn: float  # radians
    fat: float  # -1 thin to 1 large
    breasts: float  # 0 none to 1
    apex: tuple[float, float]  # v of the lungs' tops, (right, left) as in all pairs
    reach: tuple[float, float]  # from a lung's axis to the side wall
    dome: tuple[float, float]  # v of the diaphragm's tops
    angle: tuple[float, float]  # v where diaphragm and side wall meet
    heart: tuple[float, float, float]  # u of right and left border, v
    knob: tuple[float, float, float]  # u of the left border, v, half height
    ribs: tuple[float, float, float]  # first rib, distance, slope


class Finding(NamedTuple):
    """One finding. `box` is (u0, v0, u1, v1), severity 0 (subtle) to 1 (obvious)."""

    class_id: int
    box: tuple[float, float, float, float]
    severity: float
    seed: int


class Plan(NamedTuple):
    """An image before it is drawn. Boxes of `readers` and `truth` in pixels of the original."""

    image_id: str
    key: tuple[int, int, int]  # seed, split, index
    height: int
    width: int
    body: Body
    findings: list[Finding]
    truth: list[tuple]  # (class id, box)
    readers: list[tuple]  # (reader, class id, box); box None where nothing was found


# Body


def make_body(rng: np.random.Generator) -> Body:
    """Draw a person from the clinic's door."""
    normal, uniform = rng.normal, rng.uniform
    fat = float(np.clip(normal(0, 0.5), -1, 1))
    dome = 0.665 + normal(0, 0.032)
    left_dome = dome + uniform(0.005, 0.04)
    depth = 0.095 + normal(0, 0.012)  # of the angles below the domes
    apex = 0.125 + normal(0, 0.012)
    reach = 0.215 + normal(0, 0.008)
    width = uniform(0.29, 0.35) + 0.01 * fat
    middle = 0.562 + normal(0, 0.01)
    return Body(
        scale=(1 + normal(0, 0.03), 1 + normal(0, 0.055)),
        shift=(normal(0, 0.018), normal(0, 0.03)),
        turn=normal(0, 0.018),
        fat=fat,
        breasts=max(0.0, uniform(-0.9, 1)),
        apex=(apex + normal(0, 0.006), apex + normal(0, 0.006)),
        reach=(reach + normal(0, 0.004), reach + normal(0, 0.004)),
        dome=(dome, left_dome),
        angle=(dome + depth, left_dome + depth - uniform(0, 0.015)),
        heart=(middle - width / 2, middle + width / 2, 0.268 + 0.5 * dome + normal(0, 0.015)),
        knob=(0.577 + normal(0, 0.007), 0.33 + normal(0, 0.012), uniform(0.035, 0.05)),
        ribs=(0.105 + normal(0, 0.01), uniform(0.062, 0.072), uniform(0.09, 0.17)),
    )


def to_image(body: Body, box) -> np.ndarray:
    """A box of the chest as (x1, y1, x2, y2) in shares of the picture."""
    u1, v1, u2, v2 = box
    (sx, sy), (tx, ty) = body.scale, body.shift
    x, y = ((u1 + u2) / 2 - 0.5) * sx + tx, ((v1 + v2) / 2 - 0.5) * sy + ty
    x, y = 0.5 + x - body.turn * y, 0.5 + y + body.turn * x
    w, h = (u2 - u1) * sx / 2, (v2 - v1) * sy / 2
    return np.array([x - w, y - h, x + w, y + h])


def lung_walls(body: Body, side: int, v, lateral=0.0, top=0.0):
    """Distances from the midline of a lung's inner and outer wall at height v.

    `lateral` and `top` shrink the lung from the side and from above: what is between the lung and
    the shrunken lung is where pleura thickens and where free air gathers.
    """
    apex = body.apex[side] + top
    t = np.clip((0.5 - v) / (0.5 - apex), 0, 1)
    bulge = np.where(t < 1, np.sqrt(1 - t**2.3), -0.1)  # no lung above the apex
    axis = 0.195 - 0.045 * t
    outer = axis + (body.reach[side] - lateral) * bulge + 0.03 * np.clip(v - 0.5, 0, 1)
    return axis - 0.15 * bulge, outer


def diaphragm(body: Body, side: int, d):
    """v of the dome at distance d from the midline."""
    peak = 0.19
    drop = body.angle[side] - body.dome[side]
    t = np.where(d > peak, (d - peak) / 0.225, (peak - d) / 0.26)
    return body.dome[side] + np.where(d > peak, drop, 0.55 * drop) * np.abs(t) ** 2.2


# Where findings lie


def place(class_id: int, body: Body, rng: np.random.Generator):
    """A box of the class (u0, v0, u1, v1), where the class occurs."""
    habit = HABITS[class_id]
    a, b = rng.standard_normal(2).clip(-2.5, 2.5)
    b = habit.together * a + math.sqrt(1 - habit.together**2) * b
    w = habit.width[0] * math.exp(habit.width[1] * a)
    h = habit.height[0] * math.exp(habit.height[1] * b)
    w, h = max(w, 0.009), max(h, 0.009)  # two pixels
    side = int(rng.random() >= habit.right)
    sign = 2 * side - 1
    v = rng.normal(*habit.level)
    if class_id == AORTA:
        u, v = rng.normal(0.567, 0.012), body.knob[1] + rng.normal(0, 0.02)
        u += 0.12 * (0.117 - w)  # what is wider is wider on both sides
    elif class_id == CARDIOMEGALY:
        w = max(w, body.heart[1] - body.heart[0] + 0.03)
        u, v = rng.normal(0.573, 0.015), body.heart[2] + rng.normal(0, 0.03)
    elif class_id == EFFUSION:
        bottom = body.angle[side] + 0.01
        outer = lung_walls(body, side, bottom - 0.03)[1] + 0.006
        w = min(w, 0.38)
        dome = float(diaphragm(body, side, outer - w))
        h = min(max(h, bottom - dome + 0.015), 0.6)  # above the dome, or it would not be seen
        u, v = 0.5 + sign * (outer - w / 2), bottom - h / 2
    elif class_id == THICKENING and rng.random() < 0.68:
        w, h = min(1.25 * w, 0.24), min(0.8 * h, 0.2)
        v = body.apex[side] - 0.008 + h / 2 + abs(rng.normal(0, 0.02))
        u = 0.5 + sign * (0.155 + rng.normal(0, 0.025))
    elif class_id == THICKENING:  # along the side wall: turned by 90 degrees
        w, h = 0.75 * h + 0.015, 0.6 * w + 0.02
        v = rng.uniform(0.4, body.angle[side]) if rng.random() < 0.5 else body.angle[side] - h / 2
        u = 0.5 + sign * (lung_walls(body, side, v)[1] + 0.005 - w / 2)
    elif class_id == PNEUMOTHORAX:
        w, h = min(w, 0.34), min(max(h, 0.05), 0.62)
        v = body.apex[side] - 0.005 + h / 2
        if w < h < 0.45 and rng.random() < 0.7:  # lateral rather than apical
            v = rng.uniform(0.3, 0.6)
        outer = lung_walls(body, side, np.linspace(v - h / 2, v + h / 2, 9))[1].max()
        u = 0.5 + sign * (outer + 0.004 - w / 2)
    elif class_id == OTHER and w * h < 0.03:  # anywhere in the picture
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


def choose_classes(rng: np.random.Generator) -> list[int]:
    """The classes of one abnormal image.

    A Gaussian copula with three factors keeps both the classes' rates and which of them come
    together: heart and vessels age, scars come with thickened pleura, airspace disease with fluid.
    """
    found = []
    while not found:
        common = rng.standard_normal(3)
        for class_id, habit in enumerate(HABITS):
            f = np.array(habit.factors)
            z = f @ common + math.sqrt(1 - f @ f) * rng.standard_normal()
            if z < NormalDist().inv_cdf(habit.rate):
                found.append(class_id)
    return found


def make_findings(body: Body, rng: np.random.Generator) -> list[Finding]:
    """The findings of one abnormal image; two of a class do not lie on each other."""
    findings = []
    for class_id in choose_classes(rng):
        count = 1
        while count < 12 and rng.random() < HABITS[class_id].more:
            count += 1
        boxes = []
        for _ in range(3 * count):
            box = place(class_id, body, rng)
            if all(iou(box, other) < 0.1 for other in boxes):
                boxes.append(box)
            if len(boxes) == count:
                break
        for box in boxes:
            severity = rng.random()
            if class_id in (AORTA, CARDIOMEGALY):  # their size is what shows
                median, spread = HABITS[class_id].width
                severity = NormalDist(math.log(median), spread).cdf(math.log(box[2] - box[0]))
            findings.append(Finding(class_id, box, severity, int(rng.integers(2**31))))
    return findings


def iou(a, b) -> float:
    """Intersection over union of two boxes."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return w * h / (area - w * h)


# Readers


class Sight(NamedTuple):
    """How readers see the findings of a class."""

    seen: tuple[float, float, float]  # shares of the findings that 1, 2, 3 readers see
    wobble: float  # standard deviation of a reader's edge, in widths or heights of the box
    names: tuple[int, ...]  # the classes that a reader may take it for


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
RENAME = 0.08  # chance that a reader who does not call a finding by its name gives it another
INVENT = 0.06  # boxes a reader and image that nothing stands behind
UNSEEN = 0.02  # findings that no reader sees


def read_image(
    findings: list[Finding], body: Body, rng: np.random.Generator
) -> list[tuple[int, int, np.ndarray]]:
    """What three readers draw: (reader 0-2, class id, box in shares of the picture).

    Subtle findings are missed more often. Every reader of an abnormal image draws a box, since in
    VinBigData no image is mixed.
    """
    drawn = []
    for finding in findings:
        sight = SIGHTS[finding.class_id]
        # How many see it follows the severity, with some luck, in the shares of the class.
        luck = 0.85 * NormalDist().inv_cdf(min(max(finding.severity, 1e-6), 1 - 1e-6))
        rank = NormalDist().cdf(luck + math.sqrt(1 - 0.85**2) * rng.standard_normal())
        shares = np.cumsum([UNSEEN, *sight.seen])
        order = rng.permutation(3)
        count = min(int(np.searchsorted(shares / shares[-1], rank)), 3)
        for reader in order[:count]:
            drawn.append((int(reader), finding.class_id, wobble(finding, body, rng)))
        for reader in order[count:]:
            if sight.names and rng.random() < RENAME:
                name = int(rng.choice(sight.names))
                drawn.append((int(reader), name, wobble(finding, body, rng)))
    weights = np.array([habit.rate for habit in HABITS])
    weights[[AORTA, CARDIOMEGALY]] = 0  # there is but one heart to be wrong about
    for reader in range(3):
        for _ in range(rng.poisson(INVENT)):
            class_id = int(rng.choice(len(HABITS), p=weights / weights.sum()))
            drawn.append((reader, class_id, to_image(body, place(class_id, body, rng))))
    plain = max(findings, key=lambda finding: finding.severity)
    for reader in range(3):
        if not any(row[0] == reader for row in drawn):
            drawn.append((reader, plain.class_id, wobble(plain, body, rng)))
    return drawn


def wobble(finding: Finding, body: Body, rng: np.random.Generator) -> np.ndarray:
    """A reader's box round a finding, in shares of the picture."""
    box = to_image(body, finding.box)
    size = box[2:] - box[:2]
    care = SIGHTS[finding.class_id].wobble * math.exp(rng.normal(0, 0.5))
    return box + np.clip(rng.normal(0, care, 4), -0.35, 0.6) * np.tile(size, 2) * (-1, -1, 1, 1)


# Plan


def plan_image(seed: int, split: int, index: int) -> Plan:
    """One image's body, findings and boxes, without a pixel. Every second image is normal."""
    rng = np.random.default_rng((seed, split, index))
    image_id = hashlib.md5(f"phantom {seed} {SPLITS[split]} {index}".encode()).hexdigest()
    sizes = list(SIZES)
    share = np.array(list(SIZES.values())) / sum(SIZES.values())
    height, width = sizes[rng.choice(len(sizes), p=share)]
    body = make_body(rng)
    findings = [] if index % 2 else make_findings(body, rng)
    names = rng.choice(READERS, 3, replace=False)
    pixels = functools.partial(to_pixels, height=height, width=width)
    if findings:
        truth = [(f.class_id, pixels(to_image(body, f.box))) for f in findings]
        drawn = read_image(findings, body, rng)
        readers = [(str(names[reader]), c, pixels(box)) for reader, c, box in drawn]
    else:
        truth = [(NO_FINDING, None)]
        readers = [(str(name), NO_FINDING, None) for name in names]
    return Plan(image_id, (seed, split, index), height, width, body, findings, truth, readers)


def to_pixels(box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Shares of the picture as whole pixels of the original, inside and with an area."""
    out = []
    for low, high, extent in ((box[0], box[2], width), (box[1], box[3], height)):
        middle, half = (low + high) / 2 * extent, max((high - low) / 2 * extent, 8)
        low = int(np.clip(middle - half, 1, extent - 18))
        high = int(np.clip(middle + half, low + 16, extent - 1))
        out.append((low, high))
    (x1, x2), (y1, y2) = out
    return x1, y1, x2, y2


# Drawing: shapes


def step(x: np.ndarray, soft: float) -> np.ndarray:
    """0 to 1 as x goes from -soft to soft, smoothly; no exponential, for speed."""
    t = np.clip(x * (0.5 / soft) + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def resize(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bicubic, to (height, width)."""
    image = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(image.resize(shape[::-1], Image.Resampling.BICUBIC))


def soften(layer: np.ndarray) -> np.ndarray:
    """Lines without the pen's hard edges."""
    half = resize(layer, tuple(max(1, n // 2) for n in layer.shape))
    return 0.4 * layer + 0.8 * resize(half, layer.shape)


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Smooth noise of unit variance or a little less; cell is its grain in pixels."""
    low = [max(2, round(n / max(cell, 1)) + 1) for n in shape]
    return resize(rng.standard_normal(low, np.float32), shape)


class Scene:
    """The layers of a picture that is being drawn, as attenuation; bright is dense.

    A finding changes `air` (the lungs' depth, which is subtracted), `marks` (vessels) or `more`
    (whatever else is in the way). u and v are the chest's coordinates of columns and rows.
    """

    def __init__(self, body: Body, size: int):
        self.body, self.size = body, size
        self.pad = round(0.05 * size)  # so that a turned picture has no empty corners
        x = (np.arange(size + 2 * self.pad, dtype=np.float32) + 0.5 - self.pad) / size - 0.5
        self.u = (x - np.float32(body.shift[0])) / np.float32(body.scale[0]) + np.float32(0.5)
        self.v = ((x - body.shift[1]) / body.scale[1] + 0.5).astype(np.float32)[:, None]
        self.shape = (len(x), len(x))
        self.lungs = [self.lung_mask(side) for side in (0, 1)]
        self.lung = np.maximum(*self.lungs)
        self.more = np.zeros(self.shape, np.float32)
        self.air = self.marks = self.more  # until the anatomy is drawn

    def cut(self, box, margin: float = 0.0):
        """The window round a box: index, u (row) and v (column)."""
        mu, mv = margin * (box[2] - box[0]), margin * (box[3] - box[1])
        px = 1.5 / self.size
        i = np.searchsorted(self.v[:, 0], (box[1] - mv - px, box[3] + mv + px))
        j = np.searchsorted(self.u, (box[0] - mu - px, box[2] + mu + px))
        window = np.s_[i[0] : i[1], j[0] : j[1]]
        return window, self.u[window[1]], self.v[window[0]]

    def blob(self, box, rng: np.random.Generator, rough: float, edge: float):
        """Window, soft irregular mask and the distance from the centre (1 at the box's edge)."""
        window, u, v = self.cut(box, 0.25)
        x = (2 * u - box[0] - box[2]) / (box[2] - box[0])
        y = (2 * v - box[1] - box[3]) / (box[3] - box[1])
        r = np.sqrt(x * x + y * y)
        if rough:
            bumps = np.clip(noise(rng, r.shape, max(r.shape) / 6), -1, 1)
            r = r + rough * (0.15 + bumps)
        return window, step(1 - 0.5 * edge - r, 0.5 * edge + 0.02), r

    def lines(self, box, strokes) -> tuple:
        """Window and a layer 0..1 with strokes ((u, v), (u, v), ..., width, strength) in it."""
        window, u, v = self.cut(box, 0.1)
        h, w = len(v), len(u)
        picture = Image.new("L", (3 * w, 3 * h))
        pen = ImageDraw.Draw(picture)
        scale = 3 * self.size
        for points, width, strength in strokes:
            points = [
                (
                    (pu - u[0]) * self.body.scale[0] * scale + 1.5,
                    (pv - v[0, 0]) * self.body.scale[1] * scale + 1.5,
                )
                for pu, pv in points
            ]
            pen.line(points, fill=round(255 * strength), width=max(2, round(width * scale)))
        return window, np.asarray(picture.reduce(3), np.float32) / 255

    def lung_mask(self, side: int, lateral: float = 0.0, top: float = 0.0) -> np.ndarray:
        """1 in the lung, 0 outside; shrunk as in `lung_walls`."""
        d = (self.u - 0.5) * (2 * side - 1)
        inner, outer = lung_walls(self.body, side, self.v, lateral, top)
        floor = diaphragm(self.body, side, d)
        mask = step(d - inner, 0.01) * step(outer - d, 0.008) * step(floor - self.v, 0.007)
        return mask.astype(np.float32)


# Drawing: anatomy


def draw_trunk(scene: Scene) -> np.ndarray:
    """Thickness of soft tissue, 0 in the air round the body."""
    body, u, v = scene.body, scene.u, scene.v
    d = np.abs(u - 0.5)
    # The line of the shoulders: neck, trapezius, shoulder.
    top = np.interp(d, (0, 0.09, 0.2, 0.3, 0.45, 0.6), (-0.4, -0.3, 0.0, 0.05, 0.1, 0.2))
    top = (top - 0.02 * body.fat).astype(np.float32)
    half = 0.475 + 0.045 * body.fat + 0.02 * np.sin(6 * v) + 0.09 * step(0.3 - v, 0.15)
    inside = step(half - d, 0.012) * step(v - top, 0.02)
    round_off = np.sqrt(np.clip(1 - (d / (half + 0.03)) ** 4, 0.05, 1))
    arms = step(d - half - 0.015, 0.015) * step(0.55 - v + 0.2 * body.fat, 0.3) * 0.6
    thick = 0.86 + 0.14 * step(v - 0.6, 0.25) - 0.12 * step(0.1 - v, 0.15) + 0.1 * body.fat
    return (inside * round_off * thick + arms).astype(np.float32)


def draw_mediastinum(scene: Scene, findings: list[Finding]) -> np.ndarray:
    """Mask of heart and great vessels; enlarged where a finding says so."""
    body, v = scene.body, scene.v[:, 0]
    heart_right, heart_left, heart_v = body.heart
    knob_u, knob_v, knob_h = body.knob
    bulge = 0.0
    for finding in findings:
        u1, v1, u2, v2 = finding.box
        if finding.class_id == CARDIOMEGALY:
            heart_right, heart_left, heart_v = u1 + 0.005, u2 - 0.005, (v1 + v2) / 2
        if finding.class_id == AORTA:
            knob_u, knob_v, knob_h = u2 - 0.008, (v1 + v2) / 2, (v2 - v1) / 2
            bulge = max(0.0, 0.49 - u1)

    def arc(middle, above, below, power=2.0):
        t = np.where(v < middle, (middle - v) / above, (v - middle) / below)
        return np.sqrt(np.clip(1 - np.abs(t) ** power, 0, 1))

    def slope(middle, length):
        return 1 - np.clip((middle - v) / length, 0, 1) ** 1.5

    low = heart_v + 0.02
    flare = 0.035 * step(0.2 - v, 0.1)  # great vessels to neck and arms
    chamber = np.where(v < low, slope(low, 0.2), arc(low, 1, max(0.16, 0.15 + body.dome[1] - low)))
    left = np.maximum.reduce(
        [
            0.05 + flare,
            0.02 + (knob_u - 0.52) * arc(knob_v, 1.15 * knob_h, 1.15 * knob_h) ** 1.5,
            0.08 * arc(0.42, 0.06, 0.1),
            0.05 + 0.025 * step(v - 0.37, 0.05) + (heart_left - 0.575) * chamber,
        ]
    )
    right = np.maximum.reduce(
        [
            0.045 + flare + 0.01 * step(v - 0.3, 0.1),
            bulge * arc(knob_v + 0.02, 0.1, 0.12),
            (0.5 - heart_right) * arc(heart_v, 0.17, max(0.2, 0.15 + body.dome[0] - heart_v)),
        ]
    )
    k = round(0.012 * scene.size)  # no corners where one arc meets the next
    kernel = np.hanning(2 * k + 3)[1:-1] / (k + 1)
    left, right = (np.convolve(np.pad(x, k, "edge"), kernel, "valid") for x in (left, right))
    left, right = left[:, None].astype(np.float32), right[:, None].astype(np.float32)
    x = scene.u - 0.5
    return step(left - x, 0.009) * step(x + right, 0.009)


def draw_bones(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Ribs, clavicles, shoulder blades and spine."""
    body, u, v = scene.body, scene.u, scene.v
    out = np.zeros(scene.shape, np.float32)
    d = np.abs(u - 0.5)
    wide = (0.42 + body.reach[0] - 0.215) + 0.01
    s = d / wide
    first, gap, slope = body.ribs
    side_shift = np.where(u < 0.5, 1, -1) * rng.normal(0, 0.006)

    columns = np.arange(len(u))
    pixel = v[1, 0] - v[0, 0]

    def band(line, thick, strength, gate):
        """A flat bone seen from the front: two bright edges and a fainter middle."""
        reach = math.ceil(1.4 * thick / pixel)
        rows = np.round((line - v[0, 0]) / pixel).astype(int)
        rows = np.clip(rows + np.arange(-reach, reach + 1)[:, None], 0, len(u) - 1)
        t2 = ((v[0, 0] + rows * pixel - line) / thick) ** 2
        out[rows, columns] += strength * gate * (0.65 + 0.5 * t2) * step(1.1 - t2, 0.5)

    for i in range(10):  # posterior ribs: up a little from the spine, then down to the side
        steep = slope * (3.0, 1.6, 1.2, *(1.0,) * 7)[i] * (0.8 + 0.06 * i)
        line = first + gap * i + side_shift + steep * s**2.2 - 0.045 * np.sin(np.pi * s)
        edge = min(1.0, 0.5 + 0.2 * i)
        gate = step(edge - s, 0.08 if i < 3 else 0.03) * step(s - 0.08, 0.05)
        band(line, 0.0105, rng.uniform(0.12, 0.18) * (1 if i < 8 else 0.6), gate)
    for i in range(6):  # anterior ribs: from the side down to the middle, fading into cartilage
        line = first + 0.13 + gap * 1.25 * i + 0.14 * np.clip(1 - s, 0, 1) ** 1.3 + 0.5 * side_shift
        gate = step(1.0 - s, 0.04) * step(s - 0.42, 0.12)
        band(line, 0.0125, rng.uniform(0.06, 0.1), gate)
    tilt = rng.normal(0, 0.012)  # clavicles
    x = (u - 0.5) / 0.42
    line = 0.185 - 0.085 * np.abs(x) + 0.02 * np.sin(5.5 * np.abs(x)) + tilt * x
    band(line, 0.0125, 0.2, step(d - 0.03, 0.012) * step(0.46 - d, 0.02))
    blade = step(d - (0.365 + 0.16 * (v - 0.2) ** 2 + 0.05 * body.fat), 0.008)
    blade = blade * step(0.42 - v, 0.12) * step(v - 0.12, 0.08) * step(0.47 - d, 0.06)
    out += 0.09 * blade
    for sign in (-1, 1):  # heads of the humeri, mostly out of the picture
        r = np.hypot((u - 0.5 - sign * 0.53) / 0.08, (v - 0.2) / 0.1)
        out += 0.12 * step(1 - r, 0.25)
    # Spine: vertebral bodies with discs between them.
    period = 0.062
    phase = (v[:, 0] - rng.uniform(0, period)) / period
    discs = (0.5 + 0.5 * np.cos(2 * np.pi * phase)).astype(np.float32)[:, None] ** 3
    column = step(0.04 - d - 0.004 * discs, 0.011) * (0.6 + 0.4 * step(v - 0.12, 0.12))
    out += column * (0.11 - 0.07 * discs)
    out += 0.04 * step(0.007 - d, 0.007) * (1 - discs)  # spinous processes
    return out


def draw_vessels(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Branching markings that thin out from the hila to the periphery."""
    strokes = []
    for side, sign in ((0, -1), (1, 1)):
        n = 13
        root = np.linspace(0, 1, n)  # from the upper to the lower pole of the hilum
        p = np.stack(
            [
                0.5 + sign * (rng.uniform(0.06, 0.1, n) - 0.015 * root),
                0.385 - 0.02 * side + 0.12 * root,
            ],
            1,
        )
        heading = -1.3 + 2.7 * root + rng.normal(0, 0.2, n)
        width = rng.uniform(0.005, 0.008, n) * (1 + 0.5 * root)
        for level in range(5):
            length = rng.uniform(0.03, 0.075, len(p))
            q = p + (length * np.stack([sign * np.cos(heading), np.sin(heading)], 0)).T
            mid = (p + q) / 2 + rng.normal(0, 0.005, p.shape)
            strength = 0.8 * 0.8**level
            strokes += [
                ((tuple(a), tuple(m), tuple(b)), w, strength)
                for a, m, b, w in zip(
                    p.tolist(), mid.tolist(), q.tolist(), width.tolist(), strict=True
                )
            ]
            spread = rng.uniform(0.1, 0.6, len(p))
            p = np.concatenate([q, q])
            heading = np.concatenate([heading + spread, heading - spread])
            width = np.concatenate([0.78 * width, 0.62 * width])
    strokes.reverse()  # the thick ones over the thin ones
    window, layer = scene.lines((0.05, 0.1, 0.95, 0.85), strokes)
    out = np.zeros(scene.shape, np.float32)
    out[window] = soften(layer)
    return 0.2 * out + 0.015 * noise(rng, scene.shape, 0.012 * scene.size)


def draw_anatomy(scene: Scene, findings: list[Finding], rng: np.random.Generator) -> np.ndarray:
    """A healthy chest but for heart and aorta. Returns what no finding changes."""
    body, u, v = scene.body, scene.u, scene.v
    trunk = draw_trunk(scene)
    middle = draw_mediastinum(scene, findings)
    depth = 0.6 - 0.12 * np.abs(v - 0.42) / 0.3 - 0.05 * body.fat
    scene.air = scene.lung * depth * (1 - 0.86 * middle) * np.minimum(trunk / 0.8, 1)
    scene.marks = draw_vessels(scene, rng) * scene.lung * (1 - 0.7 * middle)
    visible = 1 - 0.85 * step(v - body.dome[0] - 0.03, 0.05)  # not below the diaphragm
    fixed = trunk + 0.09 * middle * visible + draw_bones(scene, rng) * (0.55 + 0.45 * trunk)
    # Hila, left higher than right.
    for side, sign in ((0, -1), (1, 1)):
        window, mask, _ = scene.blob(
            box_at(0.5 + sign * 0.085, 0.445 - 0.025 * side, 0.085, 0.15), rng, 0.25, 0.9
        )
        fixed[window] += 0.17 * mask * scene.lung[window]
    # Trachea and main bronchi.
    bend = 0.5 - 0.006 + 0.01 * np.clip(v - 0.2, 0, 1)
    tube = step(0.018 - np.abs(u - bend), 0.008) * step(0.375 - v, 0.02)
    x = np.abs(u - 0.496)
    bronchi = step(0.011 - np.abs(v - 0.365 - 0.75 * x), 0.008) * step(0.075 - x, 0.02)
    fixed -= 0.17 * np.maximum(tube, 0.5 * bronchi)
    # Below the diaphragm: liver, and gas in the stomach.
    fixed += 0.1 * step(v - body.dome[0], 0.06) * step(0.55 - u, 0.2) * (trunk > 0.3)
    if rng.random() < 0.6:
        gas = box_at(rng.uniform(0.62, 0.74), body.dome[1] + rng.uniform(0.045, 0.07), 0.13, 0.07)
        window, mask, _ = scene.blob(gas, rng, 0.1, 0.35)
        fixed[window] -= 0.3 * mask * (1 - scene.lung[window])
    if body.breasts > 0:
        for sign in (-1, 1):
            low = 0.68 + 0.1 * body.breasts
            r = np.hypot((u - 0.5 - sign * 0.235) / 0.175, (v - low + 0.15) / 0.16)
            fixed += (0.05 + 0.13 * body.breasts) * step(1 - r, 0.06) * step(v - low + 0.25, 0.2)
    fixed += 0.03 * noise(rng, scene.shape, scene.size / 9) * (trunk > 0.2)
    return fixed


def box_at(u, v, w, h):
    """A box by its centre and size."""
    return (u - w / 2, v - h / 2, u + w / 2, v + h / 2)


# Drawing: findings. Each adds its layer to the scene.


def contrast(finding: Finding, subtle: float, obvious: float) -> float:
    """The attenuation of a finding by its severity."""
    return subtle + (obvious - subtle) * finding.severity


def side_of(finding: Finding) -> int:
    """0 for the patient's right lung, 1 for the left."""
    return int(finding.box[0] + finding.box[2] > 1)


def draw_aorta(scene, finding, rng):
    """The knob itself is part of the mediastinum; here its density, and a rim of chalk at times."""
    window, mask, r = scene.blob(finding.box, rng, 0, 0.25)
    scene.more[window] += contrast(finding, 0.04, 0.11) * mask
    if rng.random() < 0.3:
        rim = step(0.06 - np.abs(r - 0.85), 0.05) * (scene.u[window[1]] > 0.55)
        scene.more[window] += 0.2 * rim * finding.severity


def draw_cardiomegaly(scene, finding, rng):
    """The heart's border is part of the mediastinum; here the density of a thicker heart."""
    window, mask, _ = scene.blob(finding.box, rng, 0, 0.6)
    scene.more[window] += contrast(finding, 0.02, 0.06) * mask


def draw_atelectasis(scene, finding, rng):
    """A wedge from the hilum with one straight sharp border, or a plate when it is flat."""
    window, u, v = scene.cut(finding.box, 0.1)
    u0, v0, u1, v1 = finding.box
    sign = 2 * side_of(finding) - 1
    x = (u - u0) / (u1 - u0) if sign > 0 else (u1 - u) / (u1 - u0)  # 0 at the hilum's side
    y = (v - v0) / (v1 - v0)
    if (v1 - v0) < 0.6 * (u1 - u0):
        wave = y - 0.5 - 0.25 * (x - 0.5) * rng.choice((-1, 1))
        mask = step(0.3 - np.abs(wave), 0.1)
    else:
        flip = rng.random() < 0.5
        y = 1 - y if flip else y
        mask = step(y - 0.08 - 0.5 * (1 - x), 0.05) * step(0.97 - y + 0.06 * x, 0.06)
    mask = mask * step(x, 0.05) * step(1 - x, 0.06)
    scene.more[window] += contrast(finding, 0.14, 0.5) * mask * (0.3 + 0.7 * scene.lung[window])


def draw_calcification(scene, finding, rng):
    """Chalk: one speck in a small box; a shell or a handful of specks in a larger one."""
    u0, v0, u1, v1 = finding.box
    amount = contrast(finding, 0.35, 1.0)
    if max(u1 - u0, v1 - v0) < 0.045:
        window, mask, _ = scene.blob(finding.box, rng, 0.15, 0.2)
        scene.more[window] += amount * mask
        return
    if rng.random() < 0.3:
        window, mask, r = scene.blob(finding.box, rng, 0.08, 0.1)
        scene.more[window] += 0.6 * amount * step(0.1 - np.abs(r - 0.85), 0.06) + 0.1 * mask
        return
    for k in range(rng.integers(5, 12)):
        r = rng.uniform(0.005, 0.011)
        x, y = rng.uniform(0.1, 0.9, 2)
        if k < 4:  # the first four span the box
            x, y = ((0, y), (1, y), (x, 0), (x, 1))[k]
        cu, cv = u0 + r + x * (u1 - u0 - 2 * r), v0 + r + y * (v1 - v0 - 2 * r)
        window, mask, _ = scene.blob(box_at(cu, cv, 2 * r, 2 * r), rng, 0.1, 0.2)
        scene.more[window] += amount * mask


def draw_consolidation(scene, finding, rng):
    """Dense and fluffy; the bronchi in it stay open and show dark."""
    window, mask, r = scene.blob(finding.box, rng, 0.22, 0.5)
    texture = 1 + 0.15 * noise(rng, r.shape, scene.size * 0.02)
    layer = contrast(finding, 0.28, 0.6) * mask * texture
    u0, v0, u1, v1 = finding.box
    if finding.severity > 0.3:
        near = u0 if side_of(finding) else u1
        far = u0 + u1 - near
        hub = np.array((near, (v0 + v1) / 2))
        ends = [(0.35 * near + 0.65 * far, v0 + t * (v1 - v0)) for t in (0.25, 0.5, 0.8)]
        other, tubes = scene.lines(finding.box, [((tuple(hub), end), 0.008, 1.0) for end in ends])
        scene.more[other] -= 0.18 * contrast(finding, 0.28, 0.6) / 0.6 * tubes
    scene.more[window] += layer * (0.3 + 0.7 * scene.lung[window])


def mesh(rng, shape, cell):
    """Thin bright threads round dark cells: the zero lines of smooth noise."""
    threads = [np.abs(noise(rng, shape, cell)) for _ in range(2)]
    return step(0.25 - np.minimum(*threads), 0.25)


def draw_ild(scene, finding, rng):
    """A fine net with small nodules over a large part of the lung."""
    window, mask, r = scene.blob(finding.box, rng, 0.12, 0.4)
    net = mesh(rng, r.shape, scene.size * 0.016)
    grains = step(noise(rng, r.shape, scene.size * 0.011) - 1.0, 0.5)
    layer = 0.9 * net + 0.6 * grains + 0.15
    scene.more[window] += contrast(finding, 0.09, 0.28) * mask * layer * scene.lung[window]


def draw_infiltration(scene, finding, rng):
    """Patches of haze with aerated lung between them."""
    window, mask, r = scene.blob(finding.box, rng, 0.15, 0.5)
    patches = step(noise(rng, r.shape, scene.size * 0.035) + 0.1, 0.8)
    layer = contrast(finding, 0.18, 0.4) * mask * patches
    scene.more[window] += layer * (0.3 + 0.7 * scene.lung[window])


def draw_opacity(scene, finding, rng):
    """Haze without structure."""
    window, mask, _ = scene.blob(finding.box, rng, 0.06, 0.5)
    layer = contrast(finding, 0.14, 0.34) * mask
    scene.more[window] += layer * (0.3 + 0.7 * scene.lung[window])


def draw_nodule(scene, finding, rng):
    """A disc; a mass has lobes."""
    large = finding.box[2] - finding.box[0] > 0.08
    window, mask, _ = scene.blob(finding.box, rng, 0.1 if large else 0.0, 0.3)
    scene.more[window] += contrast(finding, 0.16, 0.42) * mask


def draw_other(scene, finding, rng):
    """What has no class of its own: implant, callus, hernia, cyst or a thick hilum."""
    u0, v0, u1, v1 = finding.box
    u, v, w, h = (u0 + u1) / 2, (v0 + v1) / 2, u1 - u0, v1 - v0
    if max(w, h) < 0.07:  # healed fracture on a rib, or a clip
        window, mask, _ = scene.blob(finding.box, rng, 0.1, 0.4)
        scene.more[window] += contrast(finding, 0.15, 0.35) * mask
    elif abs(u - 0.5) < 0.14 and v > 0.5:  # hiatal hernia: a pouch with gas above fluid
        window, mask, r = scene.blob(finding.box, rng, 0.03, 0.1)
        gas = step(0.85 - r, 0.05) * step(v - scene.v[window[0]], 0.01)
        scene.more[window] += contrast(finding, 0.15, 0.3) * mask - 0.35 * gas
    elif abs(u - 0.5) < 0.16:  # thick hilum or mediastinal mass
        window, mask, _ = scene.blob(finding.box, rng, 0.15, 0.25)
        scene.more[window] += contrast(finding, 0.15, 0.35) * mask
    elif v < 0.33 and w < 0.3 and rng.random() < 0.5:  # pacemaker with its lead
        can = (u0, v0, u0 + 0.75 * w, v0 + 0.6 * h)
        window, cu, cv = scene.cut(can)
        x, y = (2 * cu - can[0] - can[2]) / (0.75 * w), (2 * cv - can[1] - can[3]) / (0.6 * h)
        scene.more[window] += contrast(finding, 0.5, 1.1) * step(1 - x**4 - y**4, 0.15)
        lead = [(u0 + 0.6 * w, v0 + 0.3 * h), (u1, v0 + 0.5 * h), (u1 - 0.1 * w, v1)]
        window, wire = scene.lines(finding.box, [(tuple(lead), 0.006, 1.0)])
        scene.more[window] += 0.5 * wire
    elif max(w, h) > 2.5 * min(w, h):  # wire or tube
        ends = ((u0, v0), (u1, v1)) if rng.random() < 0.5 else ((u0, v1), (u1, v0))
        bow = (u + 0.2 * w * rng.normal(), v + 0.2 * h * rng.normal())
        window, wire = scene.lines(finding.box, [((ends[0], bow, ends[1]), 0.008, 1.0)])
        scene.more[window] += contrast(finding, 0.2, 0.7) * wire
    else:  # a cyst: thin wall, nothing in it
        window, _, r = scene.blob(finding.box, rng, 0.05, 0.1)
        thin = 0.012 / max(min(w, h), 0.03)
        scene.more[window] += contrast(finding, 0.1, 0.25) * step(thin - np.abs(r - 0.95), thin)
        inside = step(0.92 - r, 0.05)
        scene.marks[window] *= 1 - 0.8 * inside
        scene.more[window] -= 0.08 * inside * scene.lung[window]


def draw_effusion(scene, finding, rng):
    """Fluid in the angle, its surface climbing the side wall."""
    u0, v0, u1, _ = finding.box
    side = side_of(finding)
    x = (scene.u - u0) / (u1 - u0) if side else (u1 - scene.u) / (u1 - u0)
    x = np.clip(x, 0, 1)
    rise = x**1.2 if u1 - u0 < 0.2 else 0.6 * x**0.35 + 0.4 * x**5
    floor = diaphragm(scene.body, side, np.abs(scene.u - 0.5))
    surface = floor - (floor - v0) * rise
    fluid = step(scene.v - surface, 0.01) * step(x - 0.02, 0.05)
    fluid = fluid * scene.lungs[side]
    scene.air *= 1 - contrast(finding, 0.75, 1.0) * fluid
    scene.marks *= 1 - fluid
    scene.more += contrast(finding, 0.02, 0.1) * fluid


def draw_thickening(scene, finding, rng):
    """A bright band along the apex or the side wall."""
    u0, v0, u1, v1 = finding.box
    side = side_of(finding)
    window, u, v = scene.cut(finding.box, 0.1)
    x, y = (2 * u - u0 - u1) / (u1 - u0), (2 * v - v0 - v1) / (v1 - v0)
    lung = scene.lungs[side][window]
    if abs((u0 + u1) / 2 - 0.5) > 0.3:  # a lens on the side wall
        depth = lung_walls(scene.body, side, v)[1] - (2 * side - 1) * (u - 0.5)
        rim = lung * step(0.85 * (u1 - u0) * np.clip(1 - y * y, 0, 1) - depth, 0.006)
    else:  # a cap
        rest = scene.lung_mask(side, lateral=0.02, top=max(0.75 * (v1 - v0), 0.012))[window]
        rim = np.clip(lung - rest, 0, 1)
        rim = rim * step(0.85 - np.abs(x), 0.3) * step(1.05 - np.abs(y), 0.15)
    scene.more[window] += contrast(finding, 0.25, 0.5) * rim


def draw_pneumothorax(scene, finding, rng):
    """Air without markings outside a fine pleural line."""
    u0, v0, u1, v1 = finding.box
    side = side_of(finding)
    window, u, v = scene.cut(finding.box)
    x = (u - u0) / (u1 - u0) if side else (u1 - u) / (u1 - u0)  # 1 at the side wall
    y = (v1 - v) / (v1 - v0)  # 1 at the top
    if v0 < scene.body.apex[side] + 0.02:
        r = np.hypot(x / 0.72, y / 0.75)  # the lung has drawn back to the lower inner corner
    else:
        r = 2 - (1 - x) / np.clip(0.95 * (1 - 4 * (y - 0.5) ** 2), 1e-3, 1)  # from the side
    gate = scene.lungs[side][window] * step(y - 0.02, 0.05) * step(x - 0.02, 0.05)
    gate = gate * step(1.0 - y, 0.02)
    free = step(r - 1, 0.03) * gate
    line = step(0.035 - np.abs(r - 0.97), 0.03) * gate
    scene.marks[window] *= 1 - free
    scene.more[window] += 0.1 * line - contrast(finding, 0.06, 0.17) * free
    scene.more[window] += contrast(finding, 0.02, 0.1) * gate * (1 - free)  # less air in the rest


def draw_fibrosis(scene, finding, rng):
    """Coarse strands that draw together."""
    u0, v0, u1, v1 = finding.box
    w, h = u1 - u0, v1 - v0
    hub = np.array((u0 + w * rng.uniform(0.3, 0.7), v0 + h * rng.uniform(0.3, 0.7)))
    count = int(np.clip(10 + 90 * math.sqrt(w * h), 10, 32))
    strokes = []
    for k in range(count):
        a = 2 * np.pi * k / count + rng.normal(0, 0.3)
        rim = np.array(((u0 + u1) / 2 + 0.5 * w * np.cos(a), (v0 + v1) / 2 + 0.5 * h * np.sin(a)))
        start = hub + rng.uniform(0, 0.7) * (rim - hub) + rng.normal(0, 0.08, 2) * (w, h)
        mid = (start + rim) / 2 + rng.normal(0, 0.07, 2) * (w, h)
        points = tuple(map(tuple, (start.tolist(), mid.tolist(), rim.tolist())))
        strokes.append((points, rng.uniform(0.003, 0.008), rng.uniform(0.3, 1)))
    window, layer = scene.lines(finding.box, strokes)
    inside = 0.3 + 0.7 * scene.lung
    scene.more[window] += contrast(finding, 0.16, 0.4) * soften(layer) * inside[window]
    window, mask, r = scene.blob(finding.box, rng, 0.1, 0.6)
    comb = mesh(rng, r.shape, scene.size * 0.03)
    scene.more[window] += contrast(finding, 0.08, 0.22) * mask * (0.4 + comb) * inside[window]


DRAW = (
    draw_aorta,
    draw_atelectasis,
    draw_calcification,
    draw_cardiomegaly,
    draw_consolidation,
    draw_ild,
    draw_infiltration,
    draw_opacity,
    draw_nodule,
    draw_other,
    draw_effusion,
    draw_thickening,
    draw_pneumothorax,
    draw_fibrosis,
)  # by class id


# Film


def develop(
    attenuation: np.ndarray, body: Body, size: int, pad: int, rng: np.random.Generator
) -> np.ndarray:
    """Attenuation as an 8-bit film: turned, scattered, exposed, with grain and markers."""
    t = body.turn
    c = size / 2
    film = np.asarray(
        Image.fromarray(attenuation).transform(
            (size, size),
            Image.Transform.AFFINE,
            (1, t, pad - t * c, -t, 1, pad + t * c),
            Image.Resampling.BICUBIC,
        )
    )
    small = resize(film, (size // 8, size // 8))
    film = film + rng.uniform(0.08, 0.22) * (resize(resize(small, (6, 6)), (size, size)) - film)
    film = film + rng.uniform(0, 0.35) * (film - resize(small, (size, size)))  # sharpening
    film = film + 0.5 * extras((size, size), rng)
    x = (np.arange(size, dtype=np.float32) + 0.5) / size
    if rng.random() < 0.35:  # collimated
        left, right, top, bottom = rng.uniform(-0.03, 0.035, 4)
        open_ = (step(x - left, 0.004) * step(1 - right - x, 0.004))[None] * (
            step(x - top, 0.004) * step(1 - bottom - x, 0.004)
        )[:, None]
        film = film * open_
    gain, black, gamma = rng.uniform(0.7, 1.0), rng.uniform(-0.08, 0.06), rng.uniform(0.75, 1.25)
    level = np.clip(film * gain + black, 0, 1.6)
    level = level / (1 + level**5) ** 0.2  # the shoulder: dense parts saturate
    level = np.clip(level, 0.001, 1) ** gamma
    grain = rng.standard_normal((size, size), np.float32)
    grain += 1.3 * noise(rng, (size, size), 2.2)
    level += rng.uniform(0.003, 0.011) * grain * (0.4 + level)
    return np.clip(level * 255, 0, 255).astype(np.uint8)


def extras(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A side marker, at times a lead."""
    size = shape[0]
    picture = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(picture)
    if rng.random() < 0.6:
        letter, x = ("R", rng.uniform(0.02, 0.08)) if rng.random() < 0.5 else ("L", 0.9)
        font = ImageFont.load_default(round(size * rng.uniform(0.08, 0.13)))
        corner = (2 * size * x, 2 * size * rng.uniform(0.01, 0.12))
        pen.text(corner, letter, fill=255, font=font)
    if rng.random() < 0.12:
        t = np.linspace(0, 1, 24)
        a, b = rng.uniform(0.1, 0.9, 2), rng.uniform(0.1, 0.9, 2)
        bow = rng.normal(0, 0.15) * np.sin(np.pi * t)
        points = 2 * size * np.stack([a[0] + (b[0] - a[0]) * t + bow, a[1] + (b[1] - a[1]) * t], 1)
        pen.line([tuple(p) for p in points.tolist()], fill=110, width=max(2, size // 100))
    return np.asarray(picture.reduce(2), np.float32) / 255


def draw_image(plan: Plan, size: int = 256) -> np.ndarray:
    """The picture of a plan: uint8, (size, size), squashed to a square.

    A finding left out of `plan.findings` changes nothing but what it had drawn.
    """
    scene = Scene(plan.body, size)
    fixed = draw_anatomy(scene, plan.findings, np.random.default_rng((*plan.key, 1)))
    for finding in plan.findings:
        DRAW[finding.class_id](scene, finding, np.random.default_rng(finding.seed))
    attenuation = fixed + scene.more + scene.marks - scene.air
    rng = np.random.default_rng((*plan.key, 2))
    return develop(attenuation.astype(np.float32), plan.body, size, scene.pad, rng)


# Folder

COLUMNS = ["image_id", "class_name", "class_id", "rad_id", "x_min", "y_min", "x_max", "y_max"]


def draw_folder(
    folder: str | Path,
    seed: int = 0,
    num_train: int = 1600,
    num_test: int = 400,
    size: int = 256,
    workers: int | None = None,
) -> None:
    """Draw a Kaggle folder with `size` x `size` pictures, the same for the same seed.

    Half of the images are normal. Beside the competition's files there is `truth.csv`: what was
    drawn, in train.csv's columns and with the split, for both splits.

    Args:
        folder: must not exist yet, or be empty; its parents are made.
        size: pixels of a side.
        workers: processes, by default as many as there are processors; 1 draws in this one.

    Raises:
        InputError: if there is something in the folder.
        OSError: if it cannot be written. Nothing is left behind then, nor after an interruption.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder}: there is something: name a new folder for the phantom")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        plans = [
            plan_image(seed, split, index)
            for split, count in enumerate((num_train, num_test))
            for index in range(count)
        ]
        plans.sort(key=lambda plan: (plan.key[1], plan.image_id))  # normal ones in no pattern
        for split in SPLITS:
            (scratch / split).mkdir()
        draw_all(plans, size, scratch, workers or os.cpu_count() or 1)
        for name, table in tables(plans, seed).items():
            table.to_csv(scratch / name, index=False)
        scratch.chmod(0o755)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def draw_all(plans: list[Plan], size: int, folder: Path, workers: int) -> None:
    """Write every picture below `folder`, with a bar on standard error."""
    draw = functools.partial(write_image, size=size, folder=folder)
    bar = functools.partial(
        tqdm, total=len(plans), desc="draw the phantom", unit="image", disable=None
    )
    chunk = 8
    workers = min(workers, math.ceil(len(plans) / chunk))
    if workers <= 1:
        for _ in bar(map(draw, plans)):
            pass
        return
    # Spawned, since a fork of a process in which JAX runs threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=ignore_interrupts)
    try:
        for _ in bar(pool.map(draw, plans, chunksize=chunk)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def ignore_interrupts() -> None:
    """Ctrl-C is for the parent, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def write_image(plan: Plan, size: int, folder: Path) -> None:
    """Draw one picture and write it as PNG."""
    path = folder / SPLITS[plan.key[1]] / f"{plan.image_id}.png"
    Image.fromarray(draw_image(plan, size)).save(path, compress_level=1)


def tables(plans: list[Plan], seed: int) -> dict[str, pd.DataFrame]:
    """The CSV files by name. The readers' rows are shuffled, as Kaggle's are."""
    names = (*CLASS_NAMES, "No finding")
    nowhere = (None,) * 4
    rows, truth = [], []
    for plan in plans:
        split = SPLITS[plan.key[1]]
        for c, box in plan.truth:
            truth.append((plan.image_id, split, names[c], c, "truth", *(box or nowhere)))
        if split == "train":
            for reader, c, box in plan.readers:
                rows.append((plan.image_id, names[c], c, reader, *(box or nowhere)))
    order = np.random.default_rng((seed, len(SPLITS))).permutation(len(rows))
    integers = dict.fromkeys(COLUMNS[4:], "Int64")  # which have a missing value, unlike int
    out = {
        "train.csv": pd.DataFrame([rows[i] for i in order], columns=COLUMNS),
        "truth.csv": pd.DataFrame(truth, columns=[COLUMNS[0], "split", *COLUMNS[1:]]),
    }
    out = {name: table.astype(integers) for name, table in out.items()}
    for split in (0, 1):
        sizes = [(p.image_id, p.height, p.width) for p in plans if p.key[1] == split]
        meta = pd.DataFrame(sizes, columns=["image_id", "dim0", "dim1"])
        out[f"{SPLITS[split]}_meta.csv"] = meta
    sample = meta[["image_id"]].assign(PredictionString="14 1 0 0 1 1")
    return out | {"sample_submission.csv": sample}
