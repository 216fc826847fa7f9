"""Simple drawings of everyday things, by name."""

from collections.abc import Mapping
from functools import cache

import numpy as np

from tools.demo.geometry import (
    ACCENT,
    DETAIL,
    Drawing,
    Part,
    arc,
    box,
    disc,
    line,
    polygon,
    regular,
    segment,
)
from tools.demo.goods import clothes_and_food, household, vehicles_and_toys


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


@cache
def things() -> Mapping[str, Drawing]:
    """About fifty things, each a drawing of a few parts."""
    return {**_outdoors(), **_animals(), **household(), **clothes_and_food(), **vehicles_and_toys()}
