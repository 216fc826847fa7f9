"""Texture patterns: functions of the plane to heights between 0 and 1.

Every pattern takes `x`, `y` (`[h, w]`, one unit is about one repeat) and a random generator for its own
proportions, and returns `[h, w]` heights. Scale, rotation and perspective are the caller's: they act on x and y.
"""

from collections.abc import Callable, Mapping

import numpy as np

Pattern = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def _edge(distance: np.ndarray, softness: float = 0.08) -> np.ndarray:
    """1 where `distance` is well above 0, 0 well below, a ramp of width `softness` between."""
    return np.clip(0.5 + distance / softness, 0, 1)


def _triangle_wave(value: np.ndarray) -> np.ndarray:
    """Period 1, from -1 to 1."""
    return 4 * np.abs(value - np.floor(value + 0.5)) - 1


def _random_table(rng: np.random.Generator, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The same random number for the same integer cell."""
    return rng.random((31, 37))[rows.astype(int) % 31, columns.astype(int) % 37]


def smooth_noise(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random values at integer points, smoothly interpolated: value noise between 0 and 1."""
    table = rng.random((31, 37))
    column = np.floor(x).astype(int)
    row = np.floor(y).astype(int)
    right, down = x - column, y - row
    right, down = right * right * (3 - 2 * right), down * down * (3 - 2 * down)
    upper = table[row % 31, column % 37] * (1 - right) + table[row % 31, (column + 1) % 37] * right
    lower = table[(row + 1) % 31, column % 37] * (1 - right) + table[(row + 1) % 31, (column + 1) % 37] * right
    return upper * (1 - down) + lower * down


def _nearest_points(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the nearest and second nearest of random points, one in every unit cell."""
    shift = rng.random((31, 37, 2))
    column = np.floor(x).astype(int)
    row = np.floor(y).astype(int)
    distances = []
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            dx, dy = np.moveaxis(shift[(row + i) % 31, (column + j) % 37], -1, 0)
            distances.append(np.hypot(column + j + dx - x, row + i + dy - y))
    nearest = np.partition(np.stack(distances), 1, axis=0)
    return nearest[0], nearest[1]


def striped(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _edge(_triangle_wave(x) + rng.uniform(-0.4, 0.4), 0.4)


def dotted(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x = x + 0.5 * (np.floor(y) % 2) * rng.integers(2)
    return _edge(rng.uniform(0.22, 0.36) - np.hypot(x - np.floor(x) - 0.5, y - np.floor(y) - 0.5))


def checkered(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _edge(_triangle_wave(x / 2) * _triangle_wave(y / 2), 0.15)


def zigzag(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _edge(_triangle_wave(y + rng.uniform(0.3, 0.5) * _triangle_wave(0.7 * x)) + rng.uniform(-0.3, 0.3), 0.4)


def wavy(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    bend = rng.uniform(0.3, 0.5) * np.sin(rng.uniform(2.0, 3.5) * x)
    return _edge(_triangle_wave(y + bend) + rng.uniform(-0.3, 0.3), 0.5)


def grid(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _edge(np.maximum(_triangle_wave(x), _triangle_wave(y)) - rng.uniform(0.6, 0.8), 0.3)


def brick(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x = 0.5 * x + 0.5 * (np.floor(y) % 2)
    joint = rng.uniform(0.06, 0.14)
    inside = np.minimum(0.5 - np.abs(y - np.floor(y) - 0.5) - joint, 1 - 2 * np.abs(x - np.floor(x) - 0.5) - joint)
    return _edge(inside, 0.1) * (0.75 + 0.25 * _random_table(rng, np.floor(x), np.floor(y)))


def honeycomb(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    distances = []
    for shift in (0.0, 0.5):  # a hexagonal lattice is two rectangular ones
        dx = x - np.floor(x + shift + 0.5) + shift
        dy = y / np.sqrt(3) - np.floor(y / np.sqrt(3) + shift + 0.5) + shift
        dx = np.abs(dx)
        dy = np.abs(dy) * np.sqrt(3)
        distances.append(np.maximum(dx, 0.5 * dx + 0.866 * dy))
    return _edge(0.5 - rng.uniform(0.06, 0.12) - np.minimum(*distances), 0.08)


def scaly(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height = np.zeros_like(x)
    for step in (0, 1):  # a scale of the row above lies over the row below
        row = np.floor(2 * y) - step
        shifted = x + 0.5 * (row % 2)
        distance = np.hypot(shifted - np.floor(shifted) - 0.5, y - 0.5 * row)
        height = np.where(distance < 0.55, np.clip(1.6 * (0.55 - distance) + 0.1, 0, 1), height)
    return height


def cracked(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    nearest, second = _nearest_points(x, y, rng)
    return _edge(second - nearest - rng.uniform(0.08, 0.16), 0.15)


def ringed(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _edge(_triangle_wave(np.hypot(x - x.mean(), y - y.mean())), 0.5)


def plaid(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    width = rng.uniform(-0.3, 0.3)
    return 0.5 * _edge(_triangle_wave(0.7 * x) + width, 0.2) + 0.5 * _edge(_triangle_wave(0.7 * y) + width, 0.2)


def woven(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    over = (np.floor(x) + np.floor(y)) % 2
    thread = np.where(over > 0, np.abs(_triangle_wave(x / 1.0)), np.abs(_triangle_wave(y / 1.0)))
    return np.clip(1.1 - thread, 0, 1)


def speckled(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _edge(rng.uniform(0.15, 0.3) - _nearest_points(x, y, rng)[0])


def blotchy(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _edge(smooth_noise(0.8 * x, 0.8 * y, rng) - 0.5, 0.3)


def spiralled(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x, y = x - x.mean(), y - y.mean()
    return _edge(_triangle_wave(0.7 * np.hypot(x, y) + np.arctan2(y, x) / (2 * np.pi)), 0.5)


def gradient(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (x - x.min()) / (np.ptp(x) or 1.0)


PATTERNS: Mapping[str, Pattern] = {
    pattern.__name__: pattern
    for pattern in (
        *(striped, dotted, checkered, zigzag, wavy, grid, brick, honeycomb, scaly, cracked),
        *(ringed, plaid, woven, speckled, blotchy, spiralled, gradient),
    )
}


def plane(size: int, rng: np.random.Generator, *, repeats: float, turn: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates `[size, size]` x and y for `repeats` units across, turned by `turn` degrees, shifted at random."""
    side = (np.arange(size) + 0.5) / size * repeats
    x, y = np.meshgrid(side, side)
    angle = np.radians(turn)
    shift = rng.uniform(0, 8, 2)
    return (
        np.cos(angle) * x + np.sin(angle) * y + shift[0],
        np.cos(angle) * y - np.sin(angle) * x + shift[1],
    )
