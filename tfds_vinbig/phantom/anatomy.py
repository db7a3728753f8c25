"""A healthy chest: soft tissue, heart and great vessels, bones, the lungs and their vessels."""

import math

import numpy as np

from tfds_vinbig.phantom.findings import AORTA, CARDIOMEGALY, Finding
from tfds_vinbig.phantom.scene import Layer, Scene, box_at, noise, ramp, soften


def draw_trunk(scene: Scene) -> Layer:
    """Thickness of soft tissue, 0 in the air round the body."""
    body, u, v = scene.body, scene.u, scene.v
    d = np.abs(u - 0.5)
    # The line of the shoulders: neck, trapezius, shoulder.
    top = np.interp(d, (0, 0.09, 0.2, 0.3, 0.45, 0.6), (-0.4, -0.3, 0.0, 0.05, 0.1, 0.2))
    top = (top - 0.02 * body.fat).astype(np.float32)
    half = 0.475 + 0.045 * body.fat + 0.02 * np.sin(6 * v) + 0.09 * ramp(0.3 - v, 0.15)
    inside = ramp(half - d, 0.012) * ramp(v - top, 0.02)
    round_off = np.sqrt(np.clip(1 - (d / (half + 0.03)) ** 4, 0.05, 1))
    arms = ramp(d - half - 0.015, 0.015) * ramp(0.55 - v + 0.2 * body.fat, 0.3) * 0.6
    thick = 0.86 + 0.14 * ramp(v - 0.6, 0.25) - 0.12 * ramp(0.1 - v, 0.15) + 0.1 * body.fat
    return (inside * round_off * thick + arms).astype(np.float32)


def draw_mediastinum(scene: Scene, findings: list[Finding]) -> Layer:
    """Mask of heart and great vessels; enlarged where a finding says so."""
    body, v = scene.body, scene.v[:, 0]
    heart_right, heart_left, heart_v = body.heart
    knob_u, knob_v, knob_h = body.knob
    bulge = 0.0
    for finding in findings:
        u1, v1, u2, v2 = finding.box
        if finding.label == CARDIOMEGALY:
            heart_right, heart_left, heart_v = u1 + 0.005, u2 - 0.005, (v1 + v2) / 2
        if finding.label == AORTA:
            knob_u, knob_v, knob_h = u2 - 0.008, (v1 + v2) / 2, (v2 - v1) / 2
            bulge = max(0.0, 0.49 - u1)

    def arc(middle, above, below, power=2.0):
        t = np.where(v < middle, (middle - v) / above, (v - middle) / below)
        return np.sqrt(np.clip(1 - np.abs(t) ** power, 0, 1))

    def slope(middle, length):
        return 1 - np.clip((middle - v) / length, 0, 1) ** 1.5

    low = heart_v + 0.02
    flare = 0.035 * ramp(0.2 - v, 0.1)  # great vessels to neck and arms
    chamber = np.where(v < low, slope(low, 0.2), arc(low, 1, max(0.16, 0.15 + body.dome[1] - low)))
    left = np.maximum.reduce(
        [
            0.05 + flare,
            0.02 + (knob_u - 0.52) * arc(knob_v, 1.15 * knob_h, 1.15 * knob_h) ** 1.5,
            0.08 * arc(0.42, 0.06, 0.1),
            0.05 + 0.025 * ramp(v - 0.37, 0.05) + (heart_left - 0.575) * chamber,
        ]
    )
    right = np.maximum.reduce(
        [
            0.045 + flare + 0.01 * ramp(v - 0.3, 0.1),
            bulge * arc(knob_v + 0.02, 0.1, 0.12),
            (0.5 - heart_right) * arc(heart_v, 0.17, max(0.2, 0.15 + body.dome[0] - heart_v)),
        ]
    )
    k = round(0.012 * scene.size)  # no corners where one arc meets the next
    kernel = np.hanning(2 * k + 3)[1:-1] / (k + 1)
    left, right = (np.convolve(np.pad(x, k, "edge"), kernel, "valid") for x in (left, right))
    left, right = left[:, None].astype(np.float32), right[:, None].astype(np.float32)
    x = scene.u - 0.5
    return ramp(left - x, 0.009) * ramp(x + right, 0.009)


def draw_bones(scene: Scene, rng: np.random.Generator) -> Layer:
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
        out[rows, columns] += strength * gate * (0.65 + 0.5 * t2) * ramp(1.1 - t2, 0.5)

    for i in range(10):  # posterior ribs: up a little from the spine, then down to the side
        steep = slope * (3.0, 1.6, 1.2, *(1.0,) * 7)[i] * (0.8 + 0.06 * i)
        line = first + gap * i + side_shift + steep * s**2.2 - 0.045 * np.sin(np.pi * s)
        edge = min(1.0, 0.5 + 0.2 * i)
        gate = ramp(edge - s, 0.08 if i < 3 else 0.03) * ramp(s - 0.08, 0.05)
        band(line, 0.0105, rng.uniform(0.12, 0.18) * (1 if i < 8 else 0.6), gate)
    for i in range(6):  # anterior ribs: from the side down to the middle, fading into cartilage
        line = first + 0.13 + gap * 1.25 * i + 0.14 * np.clip(1 - s, 0, 1) ** 1.3 + 0.5 * side_shift
        gate = ramp(1.0 - s, 0.04) * ramp(s - 0.42, 0.12)
        band(line, 0.0125, rng.uniform(0.06, 0.1), gate)
    tilt = rng.normal(0, 0.012)  # clavicles
    x = (u - 0.5) / 0.42
    line = 0.185 - 0.085 * np.abs(x) + 0.02 * np.sin(5.5 * np.abs(x)) + tilt * x
    band(line, 0.0125, 0.2, ramp(d - 0.03, 0.012) * ramp(0.46 - d, 0.02))
    for sign in (-1, 1):
        window, u, v = scene.cut(box_at(0.5 + sign * 0.43, 0.29, 0.26, 0.5))  # shoulder blade
        d = np.abs(u - 0.5)
        blade = ramp(d - (0.365 + 0.16 * (v - 0.2) ** 2 + 0.05 * body.fat), 0.008)
        blade = blade * ramp(0.42 - v, 0.12) * ramp(v - 0.12, 0.08) * ramp(0.47 - d, 0.06)
        out[window] += 0.09 * blade
        head = box_at(0.5 + sign * 0.53, 0.2, 0.2, 0.25)  # of the humerus, mostly out of sight
        window, u, v = scene.cut(head)
        r = np.hypot((u - 0.5 - sign * 0.53) / 0.08, (v - 0.2) / 0.1)
        out[window] += 0.12 * ramp(1 - r, 0.25)
    # Spine: vertebral bodies with discs between them.
    window, u, v = scene.cut((0.44, -1.0, 0.56, 2.0))
    d = np.abs(u - 0.5)
    period = 0.062
    phase = (v[:, 0] - rng.uniform(0, period)) / period
    discs = (0.5 + 0.5 * np.cos(2 * np.pi * phase)).astype(np.float32)[:, None] ** 3
    column = ramp(0.04 - d - 0.004 * discs, 0.011) * (0.6 + 0.4 * ramp(v - 0.12, 0.12))
    out[window] += column * (0.11 - 0.07 * discs)
    out[window] += 0.04 * ramp(0.007 - d, 0.007) * (1 - discs)  # spinous processes
    return out


def draw_vessels(scene: Scene, rng: np.random.Generator) -> Layer:
    """Branching markings that thin out from the hila to the periphery."""
    points, widths, strengths = [], [], []
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
        for branching in range(5):
            length = rng.uniform(0.03, 0.075, len(p))
            q = p + (length * np.stack([sign * np.cos(heading), np.sin(heading)], 0)).T
            mid = (p + q) / 2 + rng.normal(0, 0.005, p.shape)
            points.append(np.stack([p, mid, q], 1))
            widths.append(width)
            strengths.append(np.full(len(p), 0.8 * 0.8**branching))
            spread = rng.uniform(0.1, 0.6, len(p))
            p = np.concatenate([q, q])
            heading = np.concatenate([heading + spread, heading - spread])
            width = np.concatenate([0.78 * width, 0.62 * width])
    # The thick ones over the thin ones.
    lines = (np.concatenate(parts)[::-1] for parts in (points, widths, strengths))
    window, layer = scene.lines((0.05, 0.1, 0.95, 0.85), *lines)
    out = np.zeros(scene.shape, np.float32)
    out[window] = soften(layer)
    return 0.2 * out + 0.015 * noise(rng, scene.shape, 0.012 * scene.size)


def draw_anatomy(scene: Scene, findings: list[Finding], rng: np.random.Generator) -> Layer:
    """A healthy chest but for heart and aorta. Returns what no finding changes."""
    body, u, v = scene.body, scene.u, scene.v
    trunk = draw_trunk(scene)
    middle = draw_mediastinum(scene, findings)
    depth = 0.6 - 0.12 * np.abs(v - 0.42) / 0.3 - 0.05 * body.fat
    scene.air = scene.lung * depth * (1 - 0.86 * middle) * np.minimum(trunk / 0.8, 1)
    scene.marks = draw_vessels(scene, rng) * scene.lung * (1 - 0.7 * middle)
    visible = 1 - 0.85 * ramp(v - body.dome[0] - 0.03, 0.05)  # not below the diaphragm
    fixed = trunk + 0.09 * middle * visible + draw_bones(scene, rng) * (0.55 + 0.45 * trunk)
    # Hila, left higher than right.
    for side, sign in ((0, -1), (1, 1)):
        window, mask, _ = scene.blob(
            box_at(0.5 + sign * 0.085, 0.445 - 0.025 * side, 0.085, 0.15), rng, 0.25, 0.9
        )
        fixed[window] += 0.17 * mask * scene.lung[window]
    # Trachea and main bronchi.
    window, u, v = scene.cut((0.4, -1.0, 0.6, 0.46))
    bend = 0.5 - 0.006 + 0.01 * np.clip(v - 0.2, 0, 1)
    tube = ramp(0.018 - np.abs(u - bend), 0.008) * ramp(0.375 - v, 0.02)
    x = np.abs(u - 0.496)
    bronchi = ramp(0.011 - np.abs(v - 0.365 - 0.75 * x), 0.008) * ramp(0.075 - x, 0.02)
    fixed[window] -= 0.17 * np.maximum(tube, 0.5 * bronchi)
    # Below the diaphragm: liver, and gas in the stomach.
    window, u, v = scene.cut((-1.0, body.dome[0] - 0.06, 0.75, 2.0))
    liver = 0.1 * ramp(v - body.dome[0], 0.06) * ramp(0.55 - u, 0.2)
    fixed[window] += liver * (trunk[window] > 0.3)
    if rng.random() < 0.6:
        gas = box_at(rng.uniform(0.62, 0.74), body.dome[1] + rng.uniform(0.045, 0.07), 0.13, 0.07)
        window, mask, _ = scene.blob(gas, rng, 0.1, 0.35)
        fixed[window] -= 0.3 * mask * (1 - scene.lung[window])
    if body.breasts > 0:
        for sign in (-1, 1):
            low = 0.68 + 0.1 * body.breasts
            window, u, v = scene.cut(box_at(0.5 + sign * 0.235, low - 0.15, 0.38, 0.35))
            r = np.hypot((u - 0.5 - sign * 0.235) / 0.175, (v - low + 0.15) / 0.16)
            breast = (0.05 + 0.13 * body.breasts) * ramp(1 - r, 0.06)
            fixed[window] += breast * ramp(v - low + 0.25, 0.2)
    fixed += 0.03 * noise(rng, scene.shape, scene.size / 9) * (trunk > 0.2)
    return fixed
