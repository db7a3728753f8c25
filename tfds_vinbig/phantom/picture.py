"""The picture of a plan: the layers drawn, and developed as a film."""

import functools

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from tfds_vinbig.phantom.anatomy import draw_anatomy
from tfds_vinbig.phantom.appearance import DRAW
from tfds_vinbig.phantom.body import Body
from tfds_vinbig.phantom.plan import Plan
from tfds_vinbig.phantom.scene import Layer, Scene, noise, ramp, resize


def develop(
    attenuation: Layer, body: Body, size: int, pad: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "size size"]:
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
    film = film + 0.5 * extras(size, rng)
    x = (np.arange(size, dtype=np.float32) + 0.5) / size
    if rng.random() < 0.35:  # collimated
        left, right, top, bottom = rng.uniform(-0.03, 0.035, 4)
        open_ = (ramp(x - left, 0.004) * ramp(1 - right - x, 0.004))[None] * (
            ramp(x - top, 0.004) * ramp(1 - bottom - x, 0.004)
        )[:, None]
        film = film * open_
    gain, black, gamma = rng.uniform(0.7, 1.0), rng.uniform(-0.08, 0.06), rng.uniform(0.75, 1.25)
    film = np.clip(film * gain + black, 0, 1.6)
    film = film / (1 + film**5) ** 0.2  # the shoulder: dense parts saturate
    film = np.clip(film, 0.001, 1) ** gamma
    grain = rng.standard_normal((size, size), np.float32)
    grain += 1.3 * noise(rng, (size, size), 2.2)
    film += rng.uniform(0.003, 0.011) * grain * (0.4 + film)
    return np.clip(film * 255, 0, 255).astype(np.uint8)


def extras(size: int, rng: np.random.Generator) -> Layer:
    """A side marker, at times a lead."""
    picture = Image.new("L", (2 * size, 2 * size))
    pen = ImageDraw.Draw(picture)
    if rng.random() < 0.6:
        letter, x = ("R", rng.uniform(0.02, 0.08)) if rng.random() < 0.5 else ("L", 0.9)
        font = load_font(round(size * rng.uniform(0.08, 0.13)))
        corner = (2 * size * x, 2 * size * rng.uniform(0.01, 0.12))
        pen.text(corner, letter, fill=255, font=font)
    if rng.random() < 0.12:
        t = np.linspace(0, 1, 24)
        a, b = rng.uniform(0.1, 0.9, 2), rng.uniform(0.1, 0.9, 2)
        bow = rng.normal(0, 0.15) * np.sin(np.pi * t)
        points = 2 * size * np.stack([a[0] + (b[0] - a[0]) * t + bow, a[1] + (b[1] - a[1]) * t], 1)
        pen.line([tuple(p) for p in points.tolist()], fill=110, width=max(2, size // 100))
    return np.asarray(picture.reduce(2), np.float32) / 255


@functools.cache
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font; it takes longer to load than to write with."""
    return ImageFont.load_default(size)


def draw_image(plan: Plan, size: int = 256) -> UInt8[np.ndarray, "size size"]:
    """The picture of a plan, squashed to a square of `size` x `size` pixels.

    A finding left out of `plan.findings` changes nothing but what it had drawn.
    """
    scene = Scene(plan.body, size)
    fixed = draw_anatomy(scene, plan.findings, np.random.default_rng((*plan.key, 1)))
    for finding in plan.findings:
        DRAW[finding.label](scene, finding, np.random.default_rng(finding.seed))
    attenuation = fixed + scene.more + scene.marks - scene.air
    rng = np.random.default_rng((*plan.key, 2))
    return develop(attenuation.astype(np.float32), plan.body, size, scene.pad, rng)
