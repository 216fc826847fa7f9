"""Drawings by name: plane shapes, pen-stroke digits, everyday things and garments."""

from collections.abc import Mapping
from functools import cache

import numpy as np

from tools.demo.geometry import (
    ACCENT,
    DETAIL,
    Drawing,
    Part,
    arc,
    arc_points,
    box,
    disc,
    line,
    polygon,
    regular,
    segment,
)


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


def _outdoors() -> dict[str, Drawing]:
    rays = tuple(Part(np.stack([0.68 * p, p]), closed=False) for p in regular(10).points)
    petals = tuple(disc(0.45 * x, 0.45 * y - 0.35, 0.3) for x, y in regular(6).points)
    return {
        "house": (
            box(-0.75, -0.15, 0.75, 0.95),
            polygon("-1,-0.15 0,-0.95 1,-0.15", ACCENT),
            box(-0.2, 0.35, 0.2, 0.95, DETAIL),
        ),
        "tree": (box(-0.15, 0.2, 0.15, 1, ACCENT), disc(0, -0.4, 0.6), disc(-0.4, 0, 0.4), disc(0.4, 0, 0.4)),
        "pine": (
            box(-0.12, 0.6, 0.12, 1, ACCENT),
            polygon("0,-1 0.45,-0.35 -0.45,-0.35"),
            polygon("0,-0.65 0.6,0.1 -0.6,0.1"),
            polygon("0,-0.25 0.75,0.65 -0.75,0.65"),
        ),
        "sun": (disc(0, 0, 0.55), *rays),
        "cloud": (disc(-0.5, 0.15, 0.4), disc(0, -0.15, 0.55), disc(0.55, 0.15, 0.4), box(-0.5, 0.1, 0.55, 0.55)),
        "flower": (
            line("0,0 0,1", ACCENT),
            disc(0.25, 0.65, 0.25, 0.12, ACCENT),
            *petals,
            disc(0, -0.35, 0.24, tone=DETAIL),
        ),
        "mountain": (
            polygon("-1,0.8 -0.25,-0.8 0.2,0.1 0.5,-0.3 1,0.8"),
            polygon("-0.25,-0.8 -0.02,-0.33 -0.25,-0.2 -0.47,-0.33", DETAIL),
        ),
        "mushroom": (
            box(-0.22, 0, 0.22, 0.9, ACCENT),
            segment(0, 0.05, 0.9, 0.9, 180, 360),
            disc(-0.3, -0.35, 0.14, tone=DETAIL),
            disc(0.3, -0.3, 0.14, tone=DETAIL),
        ),
        "leaf": (
            polygon("0,-1 0.4,-0.55 0.55,0 0.35,0.45 0,0.7 -0.35,0.45 -0.55,0 -0.4,-0.55"),
            line("0,-0.7 0,1", DETAIL),
        ),
        "cactus": (
            box(-0.2, -0.9, 0.2, 1),
            box(-0.7, -0.3, -0.45, 0.3),
            box(-0.5, 0.1, -0.1, 0.3),
            box(0.45, -0.5, 0.7, 0.1),
            box(0.1, -0.1, 0.6, 0.1),
        ),
    }


def _animals() -> dict[str, Drawing]:
    return {
        "fish": (disc(-0.2, 0, 0.75, 0.45), polygon("0.4,0 1,-0.5 1,0.5", ACCENT), disc(-0.6, -0.1, 0.09, tone=DETAIL)),
        "bird": (
            disc(0, 0.1, 0.6, 0.38),
            disc(-0.6, -0.3, 0.28),
            polygon("-0.85,-0.35 -1.1,-0.2 -0.83,-0.15", ACCENT),
            polygon("0.4,0 1,-0.35 0.85,0.25"),
            line("0,0.4 0,0.85", ACCENT),
            disc(-0.65, -0.38, 0.06, tone=DETAIL),
        ),
        "cat": (
            disc(0, 0.15, 0.75, 0.65),
            polygon("-0.7,0 -0.65,-0.85 -0.15,-0.4"),
            polygon("0.7,0 0.65,-0.85 0.15,-0.4"),
            disc(-0.3, 0, 0.1, tone=DETAIL),
            disc(0.3, 0, 0.1, tone=DETAIL),
            polygon("-0.1,0.25 0.1,0.25 0,0.38", ACCENT),
        ),
        "rabbit": (
            disc(0, 0.35, 0.6, 0.55),
            disc(-0.28, -0.5, 0.16, 0.5),
            disc(0.28, -0.5, 0.16, 0.5),
            disc(-0.22, 0.2, 0.08, tone=DETAIL),
            disc(0.22, 0.2, 0.08, tone=DETAIL),
            disc(0, 0.45, 0.1, 0.07, ACCENT),
        ),
        "butterfly": (
            disc(-0.5, -0.35, 0.45),
            disc(0.5, -0.35, 0.45),
            disc(-0.42, 0.4, 0.35),
            disc(0.42, 0.4, 0.35),
            disc(0, 0, 0.1, 0.75, ACCENT),
        ),
        "snail": (
            segment(0, 0.85, 1, 0.35, 180, 360, ACCENT),
            disc(0.15, 0.1, 0.6),
            disc(-0.85, 0.4, 0.2, tone=ACCENT),
            disc(0.15, 0.1, 0.28, tone=DETAIL),
        ),
        "face": (
            disc(0, 0, 0.9),
            disc(-0.33, -0.25, 0.12, tone=DETAIL),
            disc(0.33, -0.25, 0.12, tone=DETAIL),
            arc(0, 0.1, 0.45, 0.42, 15, 165, DETAIL),
        ),
        "eye": (
            polygon("-1,0 -0.5,-0.42 0,-0.55 0.5,-0.42 1,0 0.5,0.42 0,0.55 -0.5,0.42"),
            disc(0, 0, 0.4, tone=ACCENT),
            disc(0, 0, 0.18, tone=DETAIL),
        ),
    }


def _household() -> dict[str, Drawing]:
    return {
        "cup": (
            polygon("-0.75,-0.6 0.45,-0.6 0.35,0.75 -0.65,0.75"),
            arc(0.42, 0, 0.42, 0.38, -90, 90),
            disc(-0.15, -0.6, 0.58, 0.13, DETAIL),
        ),
        "bottle": (
            polygon("-0.18,-1 0.18,-1 0.18,-0.5 0.42,-0.15 0.42,1 -0.42,1 -0.42,-0.15 -0.18,-0.5"),
            box(-0.42, 0.15, 0.42, 0.6, ACCENT),
        ),
        "lamp": (
            polygon("-0.35,-0.9 0.35,-0.9 0.75,0 -0.75,0"),
            box(-0.07, 0, 0.07, 0.8, ACCENT),
            box(-0.45, 0.8, 0.45, 0.95, ACCENT),
        ),
        "chair": (box(-0.6, -1, -0.42, 1), box(-0.6, 0.1, 0.6, 0.3), box(0.42, 0.2, 0.6, 1), box(-0.6, -1, -0.2, -0.3)),
        "table": (box(-1, -0.45, 1, -0.22), box(-0.85, -0.3, -0.68, 0.8), box(0.68, -0.3, 0.85, 0.8)),
        "ladder": (
            box(-0.45, -1, -0.3, 1),
            box(0.3, -1, 0.45, 1),
            *(box(-0.4, y, 0.4, y + 0.12) for y in (-0.75, -0.3, 0.15, 0.6)),
        ),
        "key": (
            disc(-0.6, 0, 0.4),
            disc(-0.6, 0, 0.16, tone=DETAIL),
            box(-0.3, -0.1, 1, 0.1),
            box(0.55, 0, 0.7, 0.4),
            box(0.82, 0, 0.97, 0.35),
        ),
        "book": (polygon("-1,-0.6 0,-0.4 0,0.7 -1,0.5"), polygon("1,-0.6 0,-0.4 0,0.7 1,0.5", ACCENT)),
        "clock": (
            disc(0, 0, 0.95),
            disc(0, 0, 0.75, tone=ACCENT),
            line("0,0.05 0,-0.55", DETAIL),
            line("0,0 0.4,0.2", DETAIL),
        ),
        "bell": (
            polygon("0,-0.9 0.35,-0.7 0.5,0.1 0.85,0.6 -0.85,0.6 -0.5,0.1 -0.35,-0.7"),
            disc(0, 0.75, 0.18, tone=ACCENT),
        ),
        "candle": (
            box(-0.25, -0.3, 0.25, 0.95),
            line("0,-0.3 0,-0.5", DETAIL),
            polygon("0,-1 0.18,-0.6 0,-0.42 -0.18,-0.6", ACCENT),
        ),
        "envelope": (box(-1, -0.65, 1, 0.65), line("-1,-0.65 0,0.15 1,-0.65", DETAIL)),
        "scissors": (
            line("-0.6,-1 0.35,0.5", ACCENT),
            line("0.6,-1 -0.35,0.5", ACCENT),
            disc(-0.45, 0.7, 0.3),
            disc(0.45, 0.7, 0.3),
            disc(-0.45, 0.7, 0.13, tone=DETAIL),
            disc(0.45, 0.7, 0.13, tone=DETAIL),
        ),
    }


def _clothes_and_food() -> dict[str, Drawing]:
    return {
        "hat": (
            disc(0, 0.5, 1, 0.22),
            polygon("-0.5,0.45 -0.42,-0.6 0.42,-0.6 0.5,0.45"),
            box(-0.5, 0.15, 0.5, 0.38, ACCENT),
        ),
        "umbrella": (
            segment(0, 0, 1, 0.9, 180, 360),
            line("0,0 0,0.75", ACCENT),
            arc(0.18, 0.75, 0.18, 0.2, 180, 0, ACCENT),
        ),
        "glasses": (
            disc(-0.5, 0, 0.42),
            disc(0.5, 0, 0.42),
            disc(-0.5, 0, 0.28, tone=DETAIL),
            disc(0.5, 0, 0.28, tone=DETAIL),
            line("-0.12,-0.1 0.12,-0.1"),
            line("-0.9,-0.1 -1,-0.3"),
            line("0.9,-0.1 1,-0.3"),
        ),
        "apple": (
            disc(-0.28, 0.15, 0.5, 0.65),
            disc(0.28, 0.15, 0.5, 0.65),
            line("0,-0.35 0.08,-0.85", DETAIL),
            disc(0.32, -0.7, 0.25, 0.12, ACCENT),
        ),
        "cherry": (
            disc(-0.45, 0.5, 0.42),
            disc(0.5, 0.6, 0.38),
            line("-0.45,0.2 0.1,-0.9", ACCENT),
            line("0.5,0.3 0.1,-0.9", ACCENT),
        ),
        "carrot": (
            polygon("-0.35,-0.4 0.35,-0.4 0,1"),
            polygon("-0.1,-0.4 -0.45,-0.95 -0.2,-1 0,-0.5 0.2,-1 0.45,-0.95 0.1,-0.4", ACCENT),
        ),
        "cake": (
            box(-0.8, 0.05, 0.8, 0.85),
            box(-0.8, -0.1, 0.8, 0.2, ACCENT),
            box(-0.06, -0.55, 0.06, -0.1, ACCENT),
            disc(0, -0.7, 0.1, 0.16, DETAIL),
        ),
    }


def _vehicles_and_toys() -> dict[str, Drawing]:
    return {
        "car": (
            polygon("-1,0.35 -1,0 -0.6,-0.1 -0.35,-0.5 0.35,-0.5 0.6,-0.1 1,0 1,0.35"),
            polygon("-0.42,-0.1 -0.25,-0.38 0.25,-0.38 0.42,-0.1", DETAIL),
            disc(-0.5, 0.4, 0.25, tone=ACCENT),
            disc(0.5, 0.4, 0.25, tone=ACCENT),
        ),
        "boat": (
            polygon("-1,0.35 1,0.35 0.6,0.85 -0.6,0.85"),
            line("0,0.35 0,-0.95", DETAIL),
            polygon("0.08,-0.9 0.8,0.2 0.08,0.2", ACCENT),
        ),
        "rocket": (
            polygon("0,-1 0.32,-0.5 0.32,0.5 -0.32,0.5 -0.32,-0.5"),
            polygon("-0.32,0.1 -0.75,0.75 -0.32,0.5", ACCENT),
            polygon("0.32,0.1 0.75,0.75 0.32,0.5", ACCENT),
            disc(0, -0.3, 0.15, tone=DETAIL),
        ),
        "airplane": (
            disc(0, 0, 0.16, 0.95),
            polygon("-1,0.2 0,-0.35 1,0.2 1,0.35 0,0.1 -1,0.35"),
            polygon("-0.4,0.95 0,0.6 0.4,0.95", ACCENT),
        ),
        "truck": (
            box(-1, -0.55, 0.3, 0.4),
            polygon("0.35,-0.2 0.75,-0.2 1,0.1 1,0.4 0.35,0.4", ACCENT),
            disc(-0.6, 0.45, 0.22, tone=DETAIL),
            disc(0.6, 0.45, 0.22, tone=DETAIL),
        ),
        "bicycle": (
            arc(-0.55, 0.35, 0.42, 0.42, 0, 360),
            arc(0.55, 0.35, 0.42, 0.42, 0, 360),
            line("-0.55,0.35 -0.2,-0.3 0.4,-0.3 0,0.35 -0.55,0.35"),
            line("0.55,0.35 0.3,-0.55 0.55,-0.6"),
        ),
        "balloon": (
            disc(0, -0.35, 0.6, 0.65),
            polygon("0,0.28 0.12,0.42 -0.12,0.42"),
            line("0,0.4 0.1,0.65 -0.05,1", DETAIL),
        ),
        "kite": (
            polygon("0,-1 0.6,-0.3 0,0.5 -0.6,-0.3"),
            line("0,-1 0,0.5", DETAIL),
            line("-0.6,-0.3 0.6,-0.3", DETAIL),
            line("0,0.5 0.2,0.75 0,1", ACCENT),
        ),
        "flag": (box(-0.75, -1, -0.62, 1, ACCENT), polygon("-0.62,-0.95 0.85,-0.8 0.85,0.05 -0.62,0")),
        "ball": (disc(0, 0, 0.9), arc(-0.9, 0, 0.7, 0.9, -52, 52, DETAIL), arc(0.9, 0, 0.7, 0.9, 128, 232, DETAIL)),
    }


@cache
def things() -> Mapping[str, Drawing]:
    """About fifty things, each a drawing of a few parts."""
    return {**_outdoors(), **_animals(), **_household(), **_clothes_and_food(), **_vehicles_and_toys()}


def wardrobe() -> dict[str, Drawing]:
    """Ten garments as a shop photographs them: from the front, shoes from the side."""
    long_sleeves = (
        "-0.3,-0.85 0.3,-0.85 0.62,-0.65 0.95,0.75 0.7,0.82 0.45,-0.15 0.45,0.85 -0.45,0.85 -0.45,-0.15 -0.7,0.82"
    )
    sleeves = f"{long_sleeves} -0.95,0.75 -0.62,-0.65"
    return {
        "t-shirt": (
            polygon(
                "-0.3,-0.8 0.3,-0.8 0.9,-0.5 0.75,-0.05 0.48,-0.15 "
                "0.48,0.85 -0.48,0.85 -0.48,-0.15 -0.75,-0.05 -0.9,-0.5"
            ),
            segment(0, -0.8, 0.22, 0.2, 0, 180, DETAIL),
        ),
        "trousers": (
            polygon("-0.4,-0.95 0.4,-0.95 0.5,0.95 0.14,0.95 0,-0.3 -0.14,0.95 -0.5,0.95"),
            line("-0.38,-0.82 0.38,-0.82", DETAIL),
        ),
        "pullover": (
            polygon(sleeves),
            segment(0, -0.85, 0.26, 0.14, 0, 180, ACCENT),
            box(-0.45, 0.7, 0.45, 0.85, ACCENT),
        ),
        "dress": (
            polygon(
                "-0.28,-0.95 -0.12,-0.7 0.12,-0.7 0.28,-0.95 0.3,-0.5 0.24,-0.1 0.6,0.95 -0.6,0.95 -0.24,-0.1 -0.3,-0.5"
            ),
            line("-0.24,-0.1 0.24,-0.1", DETAIL),
        ),
        "coat": (
            polygon(
                "-0.32,-0.9 0.32,-0.9 0.66,-0.65 0.9,0.5 0.68,0.6 0.48,-0.1 "
                "0.55,0.95 -0.55,0.95 -0.48,-0.1 -0.68,0.6 -0.9,0.5 -0.66,-0.65"
            ),
            line("0,-0.55 0,0.95", DETAIL),
            polygon("-0.3,-0.9 0,-0.45 0.3,-0.9 0.12,-0.9 0,-0.7 -0.12,-0.9", ACCENT),
        ),
        "sandal": (
            polygon("-0.95,0.45 0.95,0.3 0.95,0.5 -0.95,0.62"),
            line("-0.8,0.45 -0.5,0.05 -0.2,0.42"),
            line("0.1,0.36 0.4,-0.2 0.85,0.3"),
            line("0.4,-0.2 0.9,-0.35", ACCENT),
        ),
        "shirt": (
            polygon(sleeves),
            line("0,-0.7 0,0.85", DETAIL),
            polygon("-0.28,-0.9 0,-0.6 0.28,-0.9 0.2,-0.6 0,-0.55 -0.2,-0.6", ACCENT),
        ),
        "sneaker": (
            polygon("-0.95,0.3 -0.85,-0.1 -0.3,-0.15 0.2,-0.5 0.45,-0.4 0.85,-0.5 0.95,0.3"),
            box(-0.98, 0.3, 0.98, 0.48, ACCENT),
            line("-0.2,-0.1 0.1,0.1", DETAIL),
            line("0,-0.25 0.3,-0.05", DETAIL),
        ),
        "bag": (
            box(-0.8, -0.25, 0.8, 0.75),
            arc(0, -0.25, 0.45, 0.55, 180, 360),
            line("-0.8,0.05 0.8,0.05", DETAIL),
            disc(0, 0.08, 0.1, tone=ACCENT),
        ),
        "ankle boot": (
            polygon("-0.95,0.65 -0.9,0.3 -0.35,0.1 0.1,-0.2 0.15,-0.85 0.85,-0.85 0.9,0.65"),
            polygon("-0.95,0.65 0.4,0.65 0.45,0.8 -0.95,0.8", ACCENT),
            box(0.5, 0.65, 0.9, 0.9, ACCENT),
        ),
    }
