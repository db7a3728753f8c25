"""Who stands before the film: the lungs' walls, the diaphragm, and the chest's coordinates.

Coordinates are those of a standard chest: u to the right and v downwards, 0..1 over the average
picture, midline at u = 0.5, the patient's right at low u. `Body` tells how the chest lies in the
picture.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

Box = tuple[float, float, float, float]  # (u0, v0, u1, v1)


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


def to_image(body: Body, box: Box) -> Float64[np.ndarray, "4"]:
    """A box of the chest as (x1, y1, x2, y2) in shares of the picture."""
    u0, v0, u1, v1 = box
    (sx, sy), (tx, ty) = body.scale, body.shift
    x, y = ((u0 + u1) / 2 - 0.5) * sx + tx, ((v0 + v1) / 2 - 0.5) * sy + ty
    x, y = 0.5 + x - body.turn * y, 0.5 + y + body.turn * x
    w, h = (u1 - u0) * sx / 2, (v1 - v0) * sy / 2
    return np.array([x - w, y - h, x + w, y + h])


def lung_walls(body: Body, side: int, v, lateral=0.0, top=0.0):
    """Distances from the midline of a lung's inner and outer wall at v (a number or an array).

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
    """v of the dome at distance d from the midline (a number or an array)."""
    peak = 0.19
    drop = body.angle[side] - body.dome[side]
    t = np.where(d > peak, (d - peak) / 0.225, (peak - d) / 0.26)
    return body.dome[side] + np.where(d > peak, drop, 0.55 * drop) * np.abs(t) ** 2.2
