"""Pencil sketches in an exercise book: shaky strokes, hatching, squared paper. The style of `demo/shapes` alone."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tools.demo.geometry import Drawing, Part, densify, random_matrix, transform, wobble
from tools.demo.patterns import plane, smooth_noise

SIZE = 64  # pixels of a finished picture
OVERSAMPLING = 2
CANVAS = SIZE * OVERSAMPLING

PAPERS = ((247, 243, 232), (238, 228, 205), (226, 232, 236), (240, 236, 240))
INKS = ((120, 150, 190), (150, 175, 160), (190, 140, 140))
PENCILS = ((60, 58, 62), (45, 60, 105), (110, 62, 48), (40, 84, 66))


def _shaky(points: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Points pushed off their line by a hand that drifts: a smoothed random walk."""
    noise = rng.normal(0, 1, (len(points) + 6, 2))
    drift = np.stack([np.convolve(noise[:, i], np.ones(7) / 7**0.5, "valid") for i in range(2)], -1)
    return points + amount * drift


def _stroke(pen: ImageDraw.ImageDraw, points: np.ndarray, darkness: int, width: int) -> None:
    pen.line([tuple(point) for point in points], fill=darkness, width=width, joint="curve")


def _edges(part: Part) -> np.ndarray:
    """`[n, 2]` close points along the whole edge."""
    points = densify(part, 4.0).points
    return np.concatenate([points, points[:1]]) if part.closed else points


def _hatching(part: Part, rng: np.random.Generator) -> Image.Image:
    """Parallel pencil lines inside a closed part."""
    lines = Image.new("L", (CANVAS, CANVAS), 0)
    pen = ImageDraw.Draw(lines)
    slope, gap = rng.uniform(-1.2, 1.2), rng.uniform(5, 9)
    for start in np.arange(-CANVAS * 1.5, CANVAS * 2.5, gap):
        ends = np.array([[0, start], [CANVAS, start + slope * CANVAS]]) + rng.normal(0, 1.5, (2, 2))
        _stroke(pen, ends, int(rng.uniform(50, 110)), 1)
    inside = Image.new("L", (CANVAS, CANVAS), 0)
    ImageDraw.Draw(inside).polygon([tuple(point) for point in part.points], fill=255)
    return Image.composite(lines, Image.new("L", lines.size, 0), inside)


def _printed_lines(rng: np.random.Generator) -> np.ndarray:
    """How much of the book's printed lines each pixel has, `[SIZE, SIZE, 1]`: ruled or squared, a little askew."""
    gap, turn = rng.uniform(5, 10), rng.normal(0, 4)
    x, y = plane(SIZE, rng, repeats=SIZE / gap, turn=turn)
    distances = [np.abs(y - np.round(y))] if rng.random() < 0.3 else [np.abs(v - np.round(v)) for v in (x, y)]
    return np.clip(1.2 - gap * np.min(distances, axis=0), 0, 1)[..., None]


def sketch(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """A pencil sketch of `drawing` on paper: uint8 `[SIZE, SIZE, 3]`."""
    size = CANVAS * rng.uniform(0.3, 0.43)
    bent = wobble(drawing, rng, rng.uniform(0.02, 0.07))
    matrix = random_matrix(rng, turn=12, shear=0.2, stretch=0.15) * size
    if rng.random() < 0.5:
        matrix = matrix @ np.diag([-1.0, 1.0])
    placed = transform(bent, matrix, CANVAS * rng.uniform(0.42, 0.58, 2))
    graphite = Image.new("L", (CANVAS, CANVAS), 0)
    hatched = rng.random() < 0.5
    for part in placed:
        if hatched and part.closed:
            graphite.paste(255, mask=_hatching(part, rng))
        for _ in range(rng.integers(2, 4)):
            layer = Image.new("L", graphite.size, 0)
            points = _shaky(_edges(part), rng, rng.uniform(0.6, 1.6))
            _stroke(ImageDraw.Draw(layer), points, int(rng.uniform(110, 220)), int(rng.integers(1, 4)))
            graphite.paste(255, mask=layer)
    graphite = graphite.filter(ImageFilter.GaussianBlur(0.6)).reduce(OVERSAMPLING)
    x, y = plane(SIZE, rng, repeats=rng.uniform(15, 30), turn=rng.uniform(0, 90))
    grain = smooth_noise(x, y, rng)[..., None]
    paper = np.array(PAPERS[rng.integers(len(PAPERS))], float) - 22 * grain
    paper += (np.array(INKS[rng.integers(len(INKS))]) - paper) * rng.uniform(0.4, 0.9) * _printed_lines(rng)
    pencil = np.array(PENCILS[rng.integers(len(PENCILS))], float)
    amount = np.asarray(graphite, float)[..., None] / 255 * (1.1 - 0.5 * grain)
    return np.clip(paper + (pencil - paper) * np.clip(amount, 0, 1), 0, 255).astype(np.uint8)
