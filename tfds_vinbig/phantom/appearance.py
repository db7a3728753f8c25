"""What each class of findings looks like: a function each, which adds its layer to the scene."""

import math

import numpy as np

from tfds_vinbig.phantom.body import diaphragm, lung_walls
from tfds_vinbig.phantom.findings import Finding
from tfds_vinbig.phantom.scene import box_at, noise, ramp, soften


def contrast(finding: Finding, subtle: float, obvious: float) -> float:
    """The attenuation of a finding by its severity."""
    return subtle + (obvious - subtle) * finding.severity


def side_of(finding: Finding) -> int:
    """0 for the patient's right lung, 1 for the left."""
    return int(finding.box[0] + finding.box[2] > 1)


def draw_aorta(scene, finding, rng):
    """The knob itself is part of the mediastinum; here its density, and a rim of chalk at times."""
    window, mask, r = scene.blob(finding.box, rng, 0.0, 0.25)
    scene.more[window] += contrast(finding, 0.04, 0.11) * mask
    if rng.random() < 0.3:
        rim = ramp(0.06 - np.abs(r - 0.85), 0.05) * (scene.u[window[1]] > 0.55)
        scene.more[window] += 0.2 * rim * finding.severity


def draw_cardiomegaly(scene, finding, rng):
    """The heart's border is part of the mediastinum; here the density of a thicker heart."""
    window, mask, _ = scene.blob(finding.box, rng, 0.0, 0.6)
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
        mask = ramp(0.3 - np.abs(wave), 0.1)
    else:
        flip = rng.random() < 0.5
        y = 1 - y if flip else y
        mask = ramp(y - 0.08 - 0.5 * (1 - x), 0.05) * ramp(0.97 - y + 0.06 * x, 0.06)
    mask = mask * ramp(x, 0.05) * ramp(1 - x, 0.06)
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
        scene.more[window] += 0.6 * amount * ramp(0.1 - np.abs(r - 0.85), 0.06) + 0.1 * mask
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
        hub = (near, (v0 + v1) / 2)
        ends = [(0.35 * near + 0.65 * far, v0 + t * (v1 - v0)) for t in (0.25, 0.5, 0.8)]
        other, tubes = scene.lines(finding.box, [(hub, end) for end in ends], [0.008] * 3, [1] * 3)
        scene.more[other] -= 0.18 * contrast(finding, 0.28, 0.6) / 0.6 * tubes
    scene.more[window] += layer * (0.3 + 0.7 * scene.lung[window])


def mesh(rng, shape, cell):
    """Thin bright threads round dark cells: the zero lines of smooth noise."""
    threads = [np.abs(noise(rng, shape, cell)) for _ in range(2)]
    return ramp(0.25 - np.minimum(*threads), 0.25)


def draw_ild(scene, finding, rng):
    """A fine net with small nodules over a large part of the lung."""
    window, mask, r = scene.blob(finding.box, rng, 0.12, 0.4)
    net = mesh(rng, r.shape, scene.size * 0.016)
    grains = ramp(noise(rng, r.shape, scene.size * 0.011) - 1.0, 0.5)
    layer = 0.9 * net + 0.6 * grains + 0.15
    scene.more[window] += contrast(finding, 0.09, 0.28) * mask * layer * scene.lung[window]


def draw_infiltration(scene, finding, rng):
    """Patches of haze with aerated lung between them."""
    window, mask, r = scene.blob(finding.box, rng, 0.15, 0.5)
    patches = ramp(noise(rng, r.shape, scene.size * 0.035) + 0.1, 0.8)
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
        gas = ramp(0.85 - r, 0.05) * ramp(v - scene.v[window[0]], 0.01)
        scene.more[window] += contrast(finding, 0.15, 0.3) * mask - 0.35 * gas
    elif abs(u - 0.5) < 0.16:  # thick hilum or mediastinal mass
        window, mask, _ = scene.blob(finding.box, rng, 0.15, 0.25)
        scene.more[window] += contrast(finding, 0.15, 0.35) * mask
    elif v < 0.33 and w < 0.3 and rng.random() < 0.5:  # pacemaker with its lead
        can = (u0, v0, u0 + 0.75 * w, v0 + 0.6 * h)
        window, cu, cv = scene.cut(can)
        x, y = (2 * cu - can[0] - can[2]) / (0.75 * w), (2 * cv - can[1] - can[3]) / (0.6 * h)
        scene.more[window] += contrast(finding, 0.5, 1.1) * ramp(1 - x**4 - y**4, 0.15)
        lead = [(u0 + 0.6 * w, v0 + 0.3 * h), (u1, v0 + 0.5 * h), (u1 - 0.1 * w, v1)]
        window, wire = scene.lines(finding.box, [lead], [0.006], [1])
        scene.more[window] += 0.5 * wire
    elif max(w, h) > 2.5 * min(w, h):  # wire or tube
        ends = ((u0, v0), (u1, v1)) if rng.random() < 0.5 else ((u0, v1), (u1, v0))
        bow = (u + 0.2 * w * rng.normal(), v + 0.2 * h * rng.normal())
        window, wire = scene.lines(finding.box, [(ends[0], bow, ends[1])], [0.008], [1])
        scene.more[window] += contrast(finding, 0.2, 0.7) * wire
    else:  # a cyst: thin wall, nothing in it
        window, _, r = scene.blob(finding.box, rng, 0.05, 0.1)
        thin = 0.012 / max(min(w, h), 0.03)
        scene.more[window] += contrast(finding, 0.1, 0.25) * ramp(thin - np.abs(r - 0.95), thin)
        inside = ramp(0.92 - r, 0.05)
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
    fluid = ramp(scene.v - surface, 0.01) * ramp(x - 0.02, 0.05)
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
        rim = lung * ramp(0.85 * (u1 - u0) * np.clip(1 - y * y, 0, 1) - depth, 0.006)
    else:  # a cap
        rest = scene.lung_mask(side, lateral=0.02, top=max(0.75 * (v1 - v0), 0.012))[window]
        rim = np.clip(lung - rest, 0, 1)
        rim = rim * ramp(0.85 - np.abs(x), 0.3) * ramp(1.05 - np.abs(y), 0.15)
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
    gate = scene.lungs[side][window] * ramp(y - 0.02, 0.05) * ramp(x - 0.02, 0.05)
    gate = gate * ramp(1.0 - y, 0.02)
    free = ramp(r - 1, 0.03) * gate
    line = ramp(0.035 - np.abs(r - 0.97), 0.03) * gate
    scene.marks[window] *= 1 - free
    scene.more[window] += 0.1 * line - contrast(finding, 0.06, 0.17) * free
    scene.more[window] += contrast(finding, 0.02, 0.1) * gate * (1 - free)  # less air in the rest


def draw_fibrosis(scene, finding, rng):
    """Coarse strands that draw together."""
    u0, v0, u1, v1 = finding.box
    w, h = u1 - u0, v1 - v0
    hub = np.array((u0 + w * rng.uniform(0.3, 0.7), v0 + h * rng.uniform(0.3, 0.7)))
    count = int(np.clip(10 + 90 * math.sqrt(w * h), 10, 32))
    strands, widths, strengths = [], [], []
    for k in range(count):
        a = 2 * np.pi * k / count + rng.normal(0, 0.3)
        rim = np.array(((u0 + u1) / 2 + 0.5 * w * np.cos(a), (v0 + v1) / 2 + 0.5 * h * np.sin(a)))
        start = hub + rng.uniform(0, 0.7) * (rim - hub) + rng.normal(0, 0.08, 2) * (w, h)
        mid = (start + rim) / 2 + rng.normal(0, 0.07, 2) * (w, h)
        strands.append((start, mid, rim))
        widths.append(rng.uniform(0.003, 0.008))
        strengths.append(rng.uniform(0.3, 1))
    window, layer = scene.lines(finding.box, strands, widths, strengths)
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
)  # by label
