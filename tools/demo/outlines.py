"""Plane shapes and pen-stroke digits, by name."""

from collections.abc import Mapping
from functools import cache

import numpy as np

from tools.demo.geometry import Drawing, Part, arc, arc_points, box, disc, line, polygon, regular


@cache
def shapes() -> Mapping[str, Drawing]:
    """Shapes of one filled outline each."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    heart = np.stack(
        [
            np.sin(angles) ** 3,
            -(13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)) / 16,
        ],
        -1,
    )
    ring = np.concatenate([arc_points(0, 0, (1, 1), 0, 360), arc_points(0, 0, (0.55, 0.55), 360, 0)])
    crescent = np.concatenate([arc_points(0, 0, (1, 1), 60, 300), arc_points(0.45, 0, (0.78, 0.87), 275, 85)])
    turns = np.linspace(0, 5 * np.pi, 60)
    spiral = np.stack([np.cos(turns), np.sin(turns)], -1) * turns[:, None] / turns[-1]
    drop = np.concatenate([[[0.0, -1.0]], arc_points(0, 0.35, (0.65, 0.65), -25, 205)])
    return {
        "circle": (disc(0, 0, 1),),
        "oval": (disc(0, 0, 1, 0.55),),
        "square": (box(-0.85, -0.85, 0.85, 0.85),),
        "rectangle": (box(-1, -0.5, 1, 0.5),),
        "triangle": (polygon("0,-0.9 1,0.8 -1,0.8"),),
        "diamond": (polygon("0,-1 0.7,0 0,1 -0.7,0"),),
        "pentagon": (regular(5),),
        "hexagon": (regular(6),),
        "star": (regular(5, inner=0.42),),
        "heart": (Part(heart),),
        "cross": (
            polygon("-0.3,-1 0.3,-1 0.3,-0.3 1,-0.3 1,0.3 0.3,0.3 0.3,1 -0.3,1 -0.3,0.3 -1,0.3 -1,-0.3 -0.3,-0.3"),
        ),
        "arrow": (polygon("-1,-0.25 0.1,-0.25 0.1,-0.7 1,0 0.1,0.7 0.1,0.25 -1,0.25"),),
        "ring": (Part(ring),),
        "crescent": (Part(crescent),),
        "spiral": (Part(spiral, closed=False),),
        "drop": (Part(drop),),
    }


def _joined(*parts: Part) -> Part:
    return Part(np.concatenate([part.points for part in parts]), closed=False)


@cache
def pen_digits() -> Mapping[str, tuple[Drawing, ...]]:
    """The ten digits as pen strokes, each in the ways people write it."""
    hook = arc(-0.02, -0.5, 0.5, 0.45, 190, 370)
    upper, lower = arc(0, -0.48, 0.48, 0.45, 200, 440), arc(0, 0.45, 0.55, 0.52, -85, 150)
    return {
        "zero": ((Part(arc_points(0, 0, (0.55, 0.95), -90, 270), closed=False),),),
        "one": (
            (line("0,-0.95 0,0.95"),),
            (line("-0.4,-0.55 0.05,-0.95 0.05,0.95"),),
            (line("-0.35,-0.55 0.05,-0.95 0.05,0.95"), line("-0.4,0.95 0.45,0.95")),
        ),
        "two": (
            (_joined(hook, line("0.4,-0.1 -0.5,0.9 0.6,0.9")),),
            (_joined(hook, line("0.3,0.1 -0.45,0.75 -0.3,0.95 0.2,0.8 0.6,0.9")),),
        ),
        "three": (
            (_joined(upper, lower),),
            (_joined(line("-0.5,-0.9 0.45,-0.9 -0.05,-0.15"), lower),),
        ),
        "four": (
            (line("0.3,0.95 0.3,-0.95 -0.6,0.3 0.65,0.3"),),
            (line("-0.45,-0.9 -0.5,0.1 0.5,0.1"), line("0.4,-0.8 0.35,0.95")),
            (line("0.0,-0.95 -0.6,0.2 0.6,0.15"), line("0.25,-0.3 0.1,0.95")),
        ),
        "five": (
            (_joined(line("0.5,-0.9 -0.4,-0.9 -0.45,-0.1"), arc(-0.02, 0.38, 0.55, 0.55, -125, 145)),),
            (_joined(line("-0.4,-0.9 -0.4,-0.1"), arc(-0.02, 0.4, 0.5, 0.52, -120, 150)), line("-0.4,-0.9 0.5,-0.9")),
        ),
        "six": (
            (_joined(line("0.35,-0.95 -0.2,-0.5"), arc(0, 0.42, 0.5, 0.5, 200, 560)),),
            (_joined(arc(0.35, 0.1, 0.85, 1.05, 265, 180), arc(0, 0.45, 0.5, 0.45, 190, 540)),),
        ),
        "seven": (
            (line("-0.55,-0.9 0.55,-0.9 -0.1,0.95"),),
            (line("-0.55,-0.9 0.55,-0.9 -0.1,0.95"), line("-0.3,0.05 0.5,0.0")),
        ),
        "eight": (
            (disc_stroke(0, -0.48, 0.42), disc_stroke(0, 0.46, 0.5)),
            (
                _joined(
                    arc(0, -0.48, 0.45, 0.45, 330, 90),
                    arc(0, 0.46, 0.48, 0.48, -90, 270),
                    arc(0, -0.48, 0.42, 0.45, 90, -40),
                ),
            ),
        ),
        "nine": (
            (_joined(arc(0, -0.42, 0.48, 0.5, 0, 360), line("0.48,-0.4 0.4,0.95")),),
            (_joined(arc(0, -0.45, 0.48, 0.48, -20, -380), arc(-0.35, -0.1, 0.85, 1.05, -10, 95)),),
        ),
    }


def disc_stroke(x: float, y: float, radius: float) -> Part:
    """A circle drawn with a pen: an open part that ends where it began."""
    return Part(arc_points(x, y, (radius, radius), -90, 270), closed=False)
