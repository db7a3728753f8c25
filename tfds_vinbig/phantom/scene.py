"""The layers of a picture that is being drawn, and the shapes that are drawn into them."""

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image, ImageDraw

from tfds_vinbig.phantom.body import Body, Box, diaphragm, lung_walls

Layer = Float32[np.ndarray, "height width"]
Window = tuple[slice, slice]  # rows and columns of a layer


def ramp(x: np.ndarray, soft: float) -> np.ndarray:
    """0 to 1 as x goes from -soft to soft, smoothly; no exponential, for speed."""
    t = x * (0.5 / soft)
    t += 0.5
    np.clip(t, 0, 1, out=t)
    return t * t * (3 - 2 * t)


def resize(values: np.ndarray, shape: tuple[int, int]) -> Layer:
    """Bicubic, to (height, width)."""
    image = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(image.resize(shape[::-1], Image.Resampling.BICUBIC))


def soften(layer: Layer) -> Layer:
    """Lines without the pen's hard edges."""
    half = resize(layer, tuple(max(1, n // 2) for n in layer.shape))
    return 0.4 * layer + 0.8 * resize(half, layer.shape)


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> Layer:
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

    def cut(
        self, box: Box, margin: float = 0.0
    ) -> tuple[Window, Float32[np.ndarray, "width"], Float32[np.ndarray, "height 1"]]:
        """The window round a box, with its u and v; the margin in widths and heights of the box."""
        mu, mv = margin * (box[2] - box[0]), margin * (box[3] - box[1])
        px = 1.5 / self.size
        i = np.searchsorted(self.v[:, 0], (box[1] - mv - px, box[3] + mv + px))
        j = np.searchsorted(self.u, (box[0] - mu - px, box[2] + mu + px))
        window = np.s_[i[0] : i[1], j[0] : j[1]]
        return window, self.u[window[1]], self.v[window[0]]

    def blob(
        self, box: Box, rng: np.random.Generator, rough: float, edge: float
    ) -> tuple[Window, Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
        """Window, soft irregular mask and the distance from the centre (1 at the box's edge)."""
        window, u, v = self.cut(box, 0.25)
        x = (2 * u - box[0] - box[2]) / (box[2] - box[0])
        y = (2 * v - box[1] - box[3]) / (box[3] - box[1])
        r = np.sqrt(x * x + y * y)
        if rough:
            bumps = np.clip(noise(rng, r.shape, max(r.shape) / 6), -1, 1)
            r = r + rough * (0.15 + bumps)
        return window, ramp(1 - 0.5 * edge - r, 0.5 * edge + 0.02), r

    def lines(self, box: Box, points, widths, strengths) -> tuple[Window, Layer]:
        """Window and a layer 0..1 with lines in it, later ones over earlier ones.

        `points` is (lines, points of a line, 2) with u and v; the others a number for each line.
        """
        window, u, v = self.cut(box, 0.1)
        h, w = len(v), len(u)
        picture = Image.new("L", (3 * w, 3 * h))
        pen = ImageDraw.Draw(picture)
        scale = 3 * self.size
        points = np.array(points, np.float32) - (u[0], v[0, 0])
        points = points * np.float32(self.body.scale) * np.float32(scale) + np.float32(1.5)
        paths = points.reshape(len(points), -1).tolist()
        widths = np.maximum(2, np.rint(np.multiply(widths, scale))).astype(int).tolist()
        fills = np.rint(np.multiply(strengths, 255)).astype(int).tolist()
        for path, width, fill in zip(paths, widths, fills, strict=True):
            pen.line(path, fill=fill, width=width)
        return window, np.asarray(picture.reduce(3), np.float32) / 255

    def lung_mask(self, side: int, lateral: float = 0.0, top: float = 0.0) -> Layer:
        """1 in the lung, 0 outside; shrunk as in `lung_walls`."""
        sign = 2 * side - 1
        near, far = sorted((0.5, 0.5 + 0.5 * sign))
        box = (near, self.body.apex[side], far, self.body.angle[side] + 0.12)
        window, u, v = self.cut(box)  # nothing of the lung lies outside
        d = (u - 0.5) * sign
        inner, outer = lung_walls(self.body, side, v, lateral, top)
        floor = diaphragm(self.body, side, d)
        mask = np.zeros(self.shape, np.float32)
        mask[window] = ramp(d - inner, 0.01) * ramp(outer - d, 0.008) * ramp(floor - v, 0.007)
        return mask


def box_at(u: float, v: float, w: float, h: float) -> Box:
    """A box by its centre and size."""
    return (u - w / 2, v - h / 2, u + w / 2, v + h / 2)
