"""Drawings of made things: household goods, clothes, food, vehicles and toys."""

from tools.demo.geometry import ACCENT, DETAIL, Drawing, arc, box, disc, line, polygon, segment


def household() -> dict[str, Drawing]:
    """Things found in a house."""
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


def clothes_and_food() -> dict[str, Drawing]:
    """Things to wear and to eat."""
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


def vehicles_and_toys() -> dict[str, Drawing]:
    """Things to ride and to play with."""
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
