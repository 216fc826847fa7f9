"""Named points: markers that do not hide each other, with names that cover neither markers nor other names."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clipbias.report import style
from clipbias.report.looks import KINDS, STANDS_OUT
from clipbias.report.names import base_name
from clipbias.report.panels import panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

MARKER = 5.5  # points, with its edge
# Where a name may stand, the best place first: at so many points from its marker, in these directions.
_REACHES = (4, 7, 11, 16, 22, 30, 40, 52, 66, 82, 100)
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), *itertools.product((0.7, -0.7), repeat=2))
_DIRECTIONS += (*itertools.product((0.9, -0.9), (0.4, -0.4)), *itertools.product((0.4, -0.4), (0.9, -0.9)))

Box = tuple[float, float, float, float]


def cost_scatter(frame: pd.DataFrame, *, x: str, y: str, x_label: str, y_label: str) -> "Figure":
    """Accuracy against a cost on a logarithmic axis, a named point per method; what costs nothing has its own panel.

    Args:
      frame: columns `method`, `label`, `kind` (a title of `KINDS`), and those of x and y.
      x, y: the columns that are drawn.
    """
    ordered = frame.assign(panel=np.where(frame[x] > 0, "paid", "free")).sort_values("panel", kind="stable")

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        for title, colour, marker in KINDS.values():
            own = part[part["kind"] == title]
            if len(own):
                look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "", "mec": "white", "mew": 0.5}
                axes.plot(own[x], own[y], label=title, ms=5, **look)
        if (part["panel"] == "paid").all():
            axes.set_xlim(part[x].min() / 2, part[x].max() * 3)
            style.log_scale(axes, "x")
        else:
            axes.set_xlim(-1, 1)
            axes.set_xticks([0], ["0"])
        axes.margins(y=0.06)

    widths = {"free": 0.17, "paid": 1.0}
    figure = panels(
        ordered,
        draw,
        by=("", "panel"),
        names=dict.fromkeys(("", "free", "paid"), ""),
        size=(6.4, 4.6),
        y_label=y_label,
        x_label=x_label,
        share_x=False,
        share_y=True,
        widths=[widths[name] for name in dict.fromkeys(ordered["panel"])],
    )
    for axes in figure.axes[: len(figure.axes) - 1]:
        axes.set_xlabel("")
    colours = {title: colour for title, colour, _ in KINDS.values()}
    with style.styled():
        figure.draw_without_rendering()
        figure.set_layout_engine(None)
        for axes, (_, part) in zip(figure.axes, ordered.groupby("panel", sort=False), strict=True):
            spread_markers(axes)
            name_points(axes, list(part["label"]), part[[x, y]].to_numpy(float), [
                {"color": colours[kind], "fontweight": "bold" if base_name(method) == STANDS_OUT else "normal"}
                for kind, method in zip(part["kind"], part["method"], strict=True)
            ])  # fmt: skip
    return figure


def spread_markers(axes: "Axes") -> None:
    """Moves markers sideways by as many widths as it takes that none covers another."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    step, taken = MARKER * figure.dpi / 72, list[tuple[float, float]]()
    for line in axes.lines:
        moved = []
        for place in axes.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()])):
            shifts = (step * sign * count for count in itertools.count() for sign in (1, -1))
            x = next(
                x for x in (place[0] + shift for shift in shifts)
                if all(abs(x - a) >= step - 1e-6 or abs(place[1] - b) >= step for a, b in taken)
            )  # fmt: skip
            taken.append((x, place[1]))
            moved.append((x, place[1]))
        line.set_xdata(axes.transData.inverted().transform(moved)[:, 0])


@dataclasses.dataclass
class _Taken:
    """What is there already: boxes in pixels, and points along lines to markers."""

    boxes: list[Box] = dataclasses.field(default_factory=list)
    leaders: list[tuple[float, float]] = dataclasses.field(default_factory=list)

    def covers(self, box: Box) -> float:
        """How much of it a box would cover."""
        return sum(_common(box, other) for other in self.boxes) + sum(10.0 * _within(box, *p) for p in self.leaders)


def name_points(axes: "Axes", names: Sequence[str], points: np.ndarray, looks: Sequence[dict[str, Any]]) -> None:
    """Writes a name at each point, in the first place where it covers nothing; from afar with a line to its marker.

    Args:
      axes: already laid out, and with its markers.
      names: N of them.
      points: [N, 2], in the axes' units.
      looks: of the names.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    scale = figure.dpi / 72
    places = _marker_places(axes, points)
    half = MARKER * scale / 2
    taken = _Taken([(x - half, y - half, x + half, y + half) for x, y in places])
    crowd = [sum(math.dist(a, b) < 60 * scale for b in places) for a in places]
    for index in sorted(range(len(names)), key=lambda i: (-crowd[i] * len(names[i]), -places[i][1], names[i])):
        x, y = places[index]
        label: Annotation = axes.annotate(
            names[index],
            xy=axes.transData.inverted().transform((x, y)),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=6.5,
            ha="center",
            va="center",
            annotation_clip=False,
            **looks[index],
        )
        extent = label.get_window_extent()
        width, height = extent.width + 2 * scale, extent.height + scale
        best: tuple[float, float, float, Box] | None = None
        for reach, (right, up) in itertools.product(_REACHES, _DIRECTIONS):
            dx, dy = (
                (reach * scale + half) * right + width / 2 * np.sign(right),
                (reach * scale + half) * up + height / 2 * np.sign(up),
            )
            box = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            others = _Taken([other for i, other in enumerate(taken.boxes) if i != index], taken.leaders)
            leader = _leader((x, y), box) if reach > 7 else []
            inside = (
                axes.bbox.x0 <= box[0] and box[2] <= axes.bbox.x1 and axes.bbox.y0 <= box[1] <= box[3] <= axes.bbox.y1
            )
            cost = taken.covers(box) + sum(100.0 * _within(other, *p) for other in others.boxes for p in leader)
            cost += 0.0 if inside else 1e6
            if not leader:  # nearest to its own marker, or a reader takes it for another's
                near = _away(places[index], box)
                cost += sum(50.0 for i, place in enumerate(places) if i != index and _away(place, box) <= near + scale)
            if best is None or cost < best[0]:
                best = (cost, dx, dy, box)
            if cost == 0:
                break
        assert best is not None
        _, dx, dy, box = best
        label.set_position((dx / scale, dy / scale))
        taken.boxes.append(box)
        if max(abs(dx) - width / 2, abs(dy) - height / 2) > 8 * scale + half:
            line = _leader((x, y), box)
            taken.leaders += line
            ends = axes.transData.inverted().transform([line[0], line[-1]])
            axes.plot(*ends.T, color=style.GREY, lw=0.4, zorder=1, gid="leader")


def _marker_places(axes: "Axes", points: np.ndarray) -> list[tuple[float, float]]:
    """Where the markers of points stand in pixels: those of their height that are nearest."""
    drawn = np.concatenate([axes.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]))
                            for line in axes.lines])  # fmt: skip
    left = [tuple(map(float, place)) for place in drawn]
    found = []
    for x, y in axes.transData.transform(points):
        nearest = min(left, key=lambda place: (abs(place[1] - y) > 0.01, abs(place[0] - x)))
        left.remove(nearest)
        found.append((nearest[0], nearest[1]))
    return found


def _leader(point: tuple[float, float], box: Box) -> list[tuple[float, float]]:
    """Points along the line from a marker to the nearest place of a name's box."""
    end = (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3]))
    return [
        (point[0] + t * (end[0] - point[0]), point[1] + t * (end[1] - point[1])) for t in np.linspace(0.1, 0.98, 12)
    ]


def _away(point: tuple[float, float], box: Box) -> float:
    """How far a point is from a box."""
    return math.dist(point, (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])))


def _within(box: Box, x: float, y: float) -> bool:
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def _common(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)
