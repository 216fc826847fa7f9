"""Outlines as arrays of points: the pieces that shapes, things and digits are built from.

Coordinates run from -1 (left, top) to 1 (right, bottom). A drawing is a tuple of parts, painted in order.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np

# Which colour of a palette a part takes.
BODY = 0
DETAIL = 1
ACCENT = 2


@dataclass(frozen=True)
class Part:
    """One polygon (closed) or polyline (open).

    Attributes:
      points: `[n, 2]` x and y.
      tone: `BODY`, `DETAIL` or `ACCENT`.
      closed: whether the last point joins the first and the inside is filled.
    """

    points: np.ndarray
    tone: int = BODY
    closed: bool = True


Drawing = tuple[Part, ...]


def points(text: str) -> np.ndarray:
    """`[n, 2]` points written as in SVG: "x,y x,y …"."""
    return np.array([pair.split(",") for pair in text.split()], float)


def polygon(text: str, tone: int = BODY) -> Part:
    """A closed part through the points "x,y x,y …"."""
    return Part(points(text), tone)


def line(text: str, tone: int = BODY) -> Part:
    """An open part through the points "x,y x,y …"."""
    return Part(points(text), tone, closed=False)


def box(left: float, top: float, right: float, bottom: float, tone: int = BODY) -> Part:
    """An upright rectangle."""
    return Part(np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float), tone)


def arc_points(x: float, y: float, radii: tuple[float, float], start: float, stop: float) -> np.ndarray:
    """`[n, 2]` points of an ellipse around (x, y) from angle `start` to `stop`: degrees, 0 right, 90 down."""
    angles = np.radians(np.linspace(start, stop, max(4, int(abs(stop - start) / 12) + 1)))
    return np.stack([x + radii[0] * np.cos(angles), y + radii[1] * np.sin(angles)], -1)


def disc(x: float, y: float, width: float, height: float | None = None, tone: int = BODY) -> Part:
    """A filled ellipse with half-axes `width` and `height` (a circle when only one is given)."""
    return Part(arc_points(x, y, (width, height or width), 0, 348), tone)


def arc(x: float, y: float, width: float, height: float, start: float, stop: float, tone: int = BODY) -> Part:
    """An open piece of an ellipse."""
    return Part(arc_points(x, y, (width, height), start, stop), tone, closed=False)


def segment(x: float, y: float, width: float, height: float, start: float, stop: float, tone: int = BODY) -> Part:
    """A piece of an ellipse closed by its chord: a half moon, a dome, a bowl."""
    return Part(arc_points(x, y, (width, height), start, stop), tone)


def regular(corners: int, *, turn: float = -90.0, inner: float | None = None) -> Part:
    """A regular polygon, or a star with `corners` points when `inner`, the radius between them, is given."""
    count = corners if inner is None else 2 * corners
    angles = np.radians(turn + 360.0 * np.arange(count) / count)
    radii = np.ones(count)
    if inner is not None:
        radii[1::2] = inner
    return Part(np.stack([radii * np.cos(angles), radii * np.sin(angles)], -1))


def densify(part: Part, spacing: float = 0.12) -> Part:
    """The same part with extra points along its edges, so that a warp bends straight lines too."""
    corners = np.concatenate([part.points, part.points[:1]]) if part.closed else part.points
    pieces = []
    for start, stop in itertools.pairwise(corners):
        steps = max(1, int(np.hypot(*(stop - start)) / spacing))
        pieces.append(start + (stop - start) * np.arange(steps)[:, None] / steps)
    if not part.closed:
        pieces.append(corners[-1:])
    return replace(part, points=np.concatenate(pieces))


def transform(drawing: Drawing, matrix: np.ndarray, offset: np.ndarray) -> Drawing:
    """Every point p becomes `matrix @ p + offset`; `matrix` `[2, 2]`, `offset` `[2]`."""
    return tuple(replace(part, points=part.points @ matrix.T + offset) for part in drawing)


def random_matrix(rng: np.random.Generator, *, turn: float, shear: float, stretch: float) -> np.ndarray:
    """A random `[2, 2]` matrix near the identity: turn in degrees, shear and stretch as fractions."""
    angle = np.radians(rng.uniform(-turn, turn))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    skew = np.array([[1.0, rng.uniform(-shear, shear)], [0.0, 1.0]])
    return rotation @ skew @ np.diag(np.exp(rng.uniform(-stretch, stretch, 2)))


def wobble(drawing: Drawing, rng: np.random.Generator, amount: float) -> Drawing:
    """Bends a drawing by one smooth random displacement of about `amount`, the same for all its parts."""
    waves = rng.uniform(-2.5, 2.5, (2, 3, 2))
    phases = rng.uniform(0, 2 * np.pi, (2, 3))
    weights = rng.normal(0, amount, (2, 3))

    def bend(points: np.ndarray) -> np.ndarray:
        shift = [(weights[i] * np.sin(points @ waves[i].T + phases[i])).sum(-1) for i in range(2)]
        return points + np.stack(shift, -1)

    return tuple(replace(part, points=bend(part.points)) for part in map(densify, drawing))
