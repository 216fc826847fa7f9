"""Named points: markers that do not hide each other, with names that cover neither markers nor other names."""

import itertools
import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from clipbias.report import style
from clipbias.report.names import base_name
from clipbias.report.panels import Layout, Look, panels
from clipbias.report.style import KINDS, STANDS_OUT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKER = 5.5  # points, with its edge
# Where a name may stand, the best place first: at so many points from its marker, in these directions.
_REACHES = (4, 7, 11, 16, 22, 30, 40, 52, 66, 82, 100, 125, 150)
_BESIDE = 7  # from farther away it has a line to its marker
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), *itertools.product((0.7, -0.7), repeat=2))
_DIRECTIONS += tuple(
    (math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 33)[1:] if a % (math.pi / 4) > 1e-6
)

Place = tuple[float, float]
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
            of_kind = part[part["kind"] == title]
            if len(of_kind):
                axes.plot(
                    of_kind[x],
                    of_kind[y],
                    label=title,
                    color=colour,
                    marker=marker,
                    linestyle="",
                    ms=5,
                    mec="white",
                    mew=0.5,
                )
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
        layout=Layout(
            names=dict.fromkeys(("", "free", "paid"), ""),
            size=(6.4, 4.6),
            y_label=y_label,
            x_label=x_label,
            share_x=False,
            share_y=True,
            widths=[widths[name] for name in dict.fromkeys(ordered["panel"])],
        ),
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
    step = MARKER * figure.dpi / 72
    taken: list[Place] = []
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


def name_points(axes: "Axes", names: Sequence[str], points: np.ndarray, looks: Sequence[Look]) -> None:
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
    to_axes = axes.transData.inverted()
    places = _marker_places(axes, points)
    labels = []
    for name, place, look in zip(names, places, looks, strict=True):
        x, y = to_axes.transform(place)
        label = axes.annotate(name, (x, y), (0, 0), textcoords="offset points", annotation_clip=False)
        label.set(ha="center", va="center", fontsize=6.5, **look)
        labels.append(label)
    extents = [label.get_window_extent() for label in labels]
    sizes = [(extent.width + 2 * scale, extent.height + scale) for extent in extents]
    frame = (axes.bbox.x0, axes.bbox.y0, axes.bbox.x1, axes.bbox.y1)
    # What is named first has the better place: several orders are tried.
    keys = (lambda i: places[i], lambda i: places[i][::-1], lambda i: sizes[i], lambda i: _crowd(places, i, 60 * scale))
    orders = [sorted(range(len(names)), key=key, reverse=back) for key in keys for back in (True, False)]
    _, arranged = min((_arranged(order, places, sizes, frame, scale) for order in orders), key=operator.itemgetter(0))
    for index, (dx, dy, boxes) in arranged.items():
        labels[index].set_position((dx / scale, dy / scale))
        if len(boxes) > 1:
            ends = to_axes.transform([places[index], _nearest(places[index], boxes[0])])
            axes.plot(*ends.T, color=style.GREY, lw=0.4, zorder=1, gid="leader")


def _crowd(places: Sequence[Place], index: int, reach: float) -> int:
    return sum(math.dist(places[index], place) < reach for place in places)


def _arranged(
    order: Sequence[int], places: Sequence[Place], sizes: Sequence[Place], frame: Box, scale: float
) -> tuple[float, dict[int, tuple[float, float, list[Box]]]]:
    """Finds a place for each name in turn.

    Returns:
      How bad it is: what is covered, and how far names are from their markers; and by name the shift of its middle
      from its marker in pixels, its box, and small pieces of the line to the marker, if it has one.
    """
    half = MARKER * scale / 2
    total = 0.0
    markers = [(x - half, y - half, x + half, y + half) for x, y in places]
    taken: list[Box] = []
    arranged: dict[int, tuple[float, float, list[Box]]] = {}
    for index in order:
        x, y = places[index]
        width, height = sizes[index]
        others = np.array([*taken, *markers[:index], *markers[index + 1 :], (0, 0, 0, 0)])
        best: tuple[float, float, float, list[Box]] | None = None
        for reach, (right, up) in itertools.product(_REACHES, _DIRECTIONS):
            dx = (reach * scale + half) * right + width / 2 * np.sign(right)
            dy = (reach * scale + half) * up + height / 2 * np.sign(up)
            box = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            line = _line((x, y), box, scale) if reach > _BESIDE else []
            covered = 1e5 * _meetings(np.array([box, *line]), others)
            covered += 1e6 * (box[0] < frame[0] or box[1] < frame[1])
            covered += 1e6 * (box[2] > frame[2] or box[3] > frame[3])
            if not line:  # clearly nearest to its own marker, or a reader takes it for another's
                clear = math.dist((x, y), _nearest((x, y), box)) + 4 * scale
                covered += 1e5 * (sum(math.dist(other, _nearest(other, box)) < clear for other in places) - 1)
            if best is None or covered + reach**1.5 < best[0]:
                best = (covered + reach**1.5, dx, dy, [box, *line])
            if covered == 0:
                break
        assert best is not None
        total += best[0]
        arranged[index] = best[1:]
        taken += best[3]
    return total, arranged


def _marker_places(axes: "Axes", points: np.ndarray) -> list[Place]:
    """Where the markers of points stand in pixels: those of their height that are nearest."""
    drawn = [axes.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()])) for line in axes.lines]
    left = [(float(x), float(y)) for x, y in np.concatenate(drawn)]
    places = []
    for x, y in axes.transData.transform(points):
        places.append(min(left, key=lambda place: (abs(place[1] - y) > 0.01, abs(place[0] - x))))
        left.remove(places[-1])
    return places


def _nearest(point: Place, box: Box) -> Place:
    """The place of a box that is nearest to a point."""
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _line(point: Place, box: Box, width: float) -> list[Box]:
    """The line from a marker to a name's box, but for its ends, in small pieces."""
    end = _nearest(point, box)
    half = width / 2
    steps = [
        (point[0] + t * (end[0] - point[0]), point[1] + t * (end[1] - point[1])) for t in np.linspace(0.1, 0.9, 12)
    ]
    return [(x - half, y - half, x + half, y + half) for x, y in steps]


def _meetings(some: np.ndarray, others: np.ndarray) -> int:
    """How many pairs of boxes overlap."""
    low = some[:, None, :2] < others[:, 2:]
    high = others[:, :2] < some[:, None, 2:]
    return int((low & high).all(-1).sum())
