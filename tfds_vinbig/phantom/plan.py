"""An image before it is drawn: body, findings, and what the readers say of them."""

import functools
import hashlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from tfds_vinbig.kaggle import CLASS_NAMES
from tfds_vinbig.phantom.body import Body, make_body, to_image
from tfds_vinbig.phantom.findings import Finding, make_findings
from tfds_vinbig.phantom.readers import read_image

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
READERS = ("R8", "R9", "R10")  # who read most of VinBigData, and nearly all that is abnormal
NO_FINDING_LABEL = len(CLASS_NAMES)


class Annotation(NamedTuple):
    """A row of a table. The box is in pixels of the original, None where nothing was found."""

    reader: str  # or "truth"
    label: int
    box: tuple[int, int, int, int] | None


class Plan(NamedTuple):
    """An image before it is drawn."""

    image_id: str
    key: tuple[int, int, int]  # seed, split, index
    height: int  # of the pretended original
    width: int
    body: Body
    findings: list[Finding]
    truth: list[Annotation]
    readers: list[Annotation]  # by all three


def plan_image(seed: int, split: int, index: int) -> Plan:
    """Plan one image of split 0 (train) or 1 (test). Every second image is normal."""
    rng = np.random.default_rng((seed, split, index))
    image_id = hashlib.md5(f"phantom {seed} {SPLITS[split]} {index}".encode()).hexdigest()
    sizes = list(SIZES)
    share = np.array(list(SIZES.values())) / sum(SIZES.values())
    height, width = sizes[rng.choice(len(sizes), p=share)]
    body = make_body(rng)
    findings = [] if index % 2 else make_findings(body, rng)
    pixels = functools.partial(to_pixels, height=height, width=width)
    if findings:
        truth = [Annotation("truth", f.label, pixels(to_image(body, f.box))) for f in findings]
        readers = [
            Annotation(READERS[drawn.reader], drawn.label, pixels(drawn.box))
            for drawn in read_image(findings, body, rng)
        ]
    else:
        truth = [Annotation("truth", NO_FINDING_LABEL, None)]
        readers = [Annotation(name, NO_FINDING_LABEL, None) for name in READERS]
    return Plan(image_id, (seed, split, index), height, width, body, findings, truth, readers)


def to_pixels(box: Float64[np.ndarray, "4"], height: int, width: int) -> tuple[int, int, int, int]:
    """Shares of the picture as whole pixels of the original, inside and with an area."""
    out = []
    for low, high, extent in ((box[0], box[2], width), (box[1], box[3], height)):
        middle, half = (low + high) / 2 * extent, max((high - low) / 2 * extent, 8)
        low = int(np.clip(middle - half, 1, extent - 18))
        high = int(np.clip(middle + half, low + 16, extent - 1))
        out.append((low, high))
    (x1, x2), (y1, y2) = out
    return x1, y1, x2, y2
