"""Small multiples: one way to lay out panels, and to draw lines, intervals and bars in them.

A figure's numbers are a data frame with one observation per row. `value` is drawn, and `low` and `high` are the ends of
its interval, NaN where there is none. The other columns say what the value is of, and two of them lay out the panels.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from clipbias.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# 95 % of a normal distribution lie within so many standard errors.
_ARMS = 1.96
# From so many points on, an interval is a band instead of whiskers.
_CROWDED = 24

Look = Mapping[str, Any]
Share = bool | Literal["none", "all", "row", "col"]


def tidy(
    values: np.ndarray, error: np.ndarray | None, axes: Sequence[str], labels: Mapping[str, object]
) -> pd.DataFrame:
    """An array as a frame: a row per number, its places counted from 1.

    Args:
      values: any array.
      error: the standard errors of its numbers; the interval is 1.96 of them to either side.
      axes: a column's name for each axis of the array.
      labels: columns that are the same for all rows.
    """
    places = np.indices(np.shape(values)).reshape(np.ndim(values), -1) + 1
    frame = pd.DataFrame({**labels, **dict(zip(axes, places, strict=True))}, index=range(np.size(values)))
    arms = _ARMS * (np.full(np.shape(values), np.nan) if error is None else np.asarray(error, float)).ravel()
    frame["value"] = np.asarray(values, float).ravel()
    return frame.assign(low=frame["value"] - arms, high=frame["value"] + arms)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes, names and axes of a grid of panels.

    Attributes:
      size: of a panel in inches.
      names: what the values of both columns are called, if not by themselves.
      x_label, y_label: of every column and row.
      share_x, share_y: which panels have one scale, as for `Figure.subplots`.
      wrap: without rows, start a new line of panels after so many.
      widths: of columns, relative to one another.
      bottom: where all y axes begin.
    """

    size: tuple[float, float] = (2.2, 1.9)
    names: Mapping[Any, str] = dataclasses.field(default_factory=dict)
    x_label: str = ""
    y_label: str = ""
    share_x: Share = True
    share_y: Share = "row"
    wrap: int | None = None
    widths: Sequence[float] | None = None
    bottom: float | None = None


LAYOUT = Layout()


def panels(
    frame: pd.DataFrame,
    draw: Callable[["Axes", pd.DataFrame], None],
    *,
    by: tuple[str, str],
    layout: Layout = LAYOUT,
    legend: bool | Mapping[str, Look] = True,
) -> "Figure":
    """Draws a grid of panels, one for each pair of values of two columns, and one legend for all of them below.

    Args:
      frame: the numbers.
      draw: draws one panel, given its axes and its part of the frame.
      by: the column whose values are rows of panels, and the one whose values are columns; "" where there is one only.
      layout: sizes, names and axes.
      legend: whether to name what panels label, or looks to name instead, by label.
    """
    rows, columns = (list(dict.fromkeys(frame[name])) if name else [""] for name in by)
    across = min(layout.wrap or len(columns), len(columns))
    down = len(rows) * -(-len(columns) // across)
    with style.styled():
        inches = (layout.size[0] * (sum(layout.widths) if layout.widths else across) + 0.5, layout.size[1] * down)
        figure = style.new_figure(inches[0], inches[1] + 0.5)
        grid = figure.subplots(
            down,
            across,
            squeeze=False,
            sharex=layout.share_x,
            sharey=layout.share_y,
            width_ratios=layout.widths,
        )
        cells = [(row, column) for row in rows for column in columns]
        for number, axes in enumerate(grid.ravel()):
            row, column = cells[number] if number < len(cells) else (None, None)
            part = frame[_is(frame, by[0], row) & _is(frame, by[1], column)]
            if column and (layout.wrap or number < across):
                axes.set_title(layout.names.get(column, str(column)), loc="left")
            if part.empty:
                axes.set_axis_off()
                continue
            draw(axes, part)
            below = number + across >= len(cells)
            axes.set_xlabel(layout.x_label if below else "")
            axes.tick_params(labelbottom=below or layout.share_x in (False, "none", "row"))
            if number % across == 0:
                axes.set_ylabel("\n".join(filter(None, (layout.names.get(row, str(row)), layout.y_label))))
        if layout.bottom is not None:
            for axes in grid.ravel():  # only now: until all is drawn, what shares an axis may still make it longer
                axes.set_ylim(bottom=layout.bottom)
        if legend:
            _legend(
                figure, _labelled(figure) if legend is True else {name: _handle(look) for name, look in legend.items()}
            )
    return figure


def _is(frame: pd.DataFrame, name: str, value: Any) -> "pd.Series[bool]":
    return frame[name] == value if name else pd.Series(value is not None, index=frame.index)


def _labelled(figure: "Figure") -> dict[str, Any]:
    legends = [axes.get_legend_handles_labels() for axes in figure.axes]
    return {label: handle for handles, labels in legends for handle, label in zip(handles, labels, strict=True)}


def _handle(look: Look) -> Any:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return Patch(**look) if "hatch" in look else Line2D([], [], **look)


def _legend(figure: "Figure", handles: Mapping[str, Any]) -> None:
    if handles:
        # As many names in a line as fit: letters are about half as wide as they are high, and a mark as wide as ten.
        fit = max(1, int(figure.get_figwidth() * 72 / (max(map(len, handles)) * 4.4 + 46)))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(fit, len(handles)))


def groups(part: pd.DataFrame, hue: str, looks: Mapping[Any, Look]) -> Iterator[tuple[pd.DataFrame, dict[str, Any]]]:
    """The parts of a frame with one value each of the column `hue`, and how each is drawn, in the order of `looks`."""
    if not hue:
        yield part, dict(looks.get("", {}))
        return
    for value in [value for value in looks if (part[hue] == value).any()]:
        yield part[part[hue] == value], {"label": str(value), **looks[value]}


def lines(
    axes: "Axes", part: pd.DataFrame, *, x: str, hue: str = "", looks: Mapping[Any, Look], dots: bool = False
) -> None:
    """A line for each value of the column `hue`, with its intervals.

    Where a line has several rows at one x, such as heads, it is their mean, and its interval the mean of theirs, which
    is never too narrow.

    Args:
      x: the column along the x axis.
      looks: by value of `hue`, in the order in which they are drawn: keywords of `Axes.plot`.
      dots: whether to draw each of these rows as a dot.
    """
    for of_hue, look in groups(part, hue, looks):
        if dots and of_hue[x].duplicated().any():
            axes.plot(of_hue[x], of_hue["value"], "o", color=look["color"], ms=3, alpha=0.45, mew=0)
        mean = of_hue.groupby(x)[["value", "low", "high"]].mean()
        if len(mean) > _CROWDED:
            axes.plot(mean.index, mean["value"], **{"linewidth": 1.0} | look)
            axes.fill_between(mean.index, mean["low"], mean["high"], color=look["color"], alpha=0.18, lw=0)
        else:
            _whiskers(axes, mean.index, mean["value"], mean["low"], mean["high"], **look)
    if x == "layer":
        style.layer_ticks(axes, int(part[x].max()))


def _whiskers(axes: "Axes", x: Any, y: Any, low: Any, high: Any, *, along: str = "y", **look: Any) -> None:
    """Points or a line with intervals along one axis; none where an end is not known."""
    if np.all(np.isnan(np.asarray(low, float))):
        if look.get("fmt") != "none":
            of_whiskers = ("elinewidth", "capsize")
            axes.plot(x, y, **{"linewidth": 1.2} | {name: v for name, v in look.items() if name not in of_whiskers})
        return
    middle = np.asarray(y if along == "y" else x, float)
    arms = np.nan_to_num([middle - np.asarray(low, float), np.asarray(high, float) - middle])
    error = {"yerr" if along == "y" else "xerr": arms}
    axes.errorbar(x, y, **error, **{"elinewidth": 0.8, "capsize": 1.6, "linewidth": 1.2} | look)


def bars(
    axes: "Axes",
    part: pd.DataFrame,
    *,
    category: str,
    looks: Mapping[Any, Look],
    hue: str = "",
    colours: Mapping[str, str] | None = None,
    text: Callable[[pd.Series], str] | None = None,
    loose: Sequence[str] = (),
) -> None:
    """Horizontal bars from 0 with intervals, the first category on top, their numbers to the right of the panel.

    Args:
      category: the column whose values have a place each on the y axis.
      hue: the column whose values have a bar each in every place; without it bars are coloured by category.
      looks: by value of `hue`, or of `category`: keywords of `Axes.barh`.
      colours: by category, where `hue` is not told apart by colour.
      text: writes a row's number.
      loose: categories that may be cut off where others do not reach: a bar gets a break, a whisker an arrow.
    """
    places = {name: place for place, name in enumerate(dict.fromkeys(part[category]))}
    present = [value for value in looks if not hue or (part[hue] == value).any()]
    height = 0.78 / (len(present) if hue else 1)
    low, high = _limits(part, part[category].isin(loose))
    for _, row in part.iterrows():
        values = [value for value in present if not hue or _has(part, category, row, hue, value)]
        y = places[row[category]] + (height * (values.index(row[hue]) - (len(values) - 1) / 2) if hue else 0.0)
        look = (
            {"linewidth": 0}
            | ({"color": colours[row[category]]} if colours else {})
            | dict(looks[row[hue or category]])
        )
        value, *ends = (min(max(row[end], low), high) for end in ("value", "low", "high"))
        axes.barh(y, value, 0.9 * height, **look)
        if value != row["value"]:
            x = value - np.sign(value) * 0.06 * (high - low)
            mark = axes.text(x, y, "//", fontsize=9, color="white", weight="bold", ha="center", va="center")
            mark.set_gid("break")
        else:
            _whiskers(axes, [value], [y], [ends[0]], [ends[1]], along="x", color="#374151", fmt="none")
            for end, name, marker in zip(ends, ("low", "high"), "<>", strict=True):
                if end != row[name] and not np.isnan(row[name]):
                    axes.plot(end, y, marker, color="#374151", ms=3, clip_on=False, gid="cut")
        if text:
            axes.text(1.02, y, text(row), transform=axes.get_yaxis_transform(), va="center", fontsize=6.5)
    axes.axvline(0, color="#4B5563", linewidth=0.8)
    axes.set_xlim(low, high)
    category_ticks(axes, list(places))


def _has(part: pd.DataFrame, category: str, row: pd.Series, hue: str, value: Any) -> bool:
    return bool(((part[category] == row[category]) & (part[hue] == value)).any())


def _limits(part: pd.DataFrame, loose: "pd.Series[bool]") -> tuple[float, float]:
    """What bars and intervals span but for loose ones, which get some room where they go beyond."""
    ends = part.loc[~loose, ["value", "low", "high"]].to_numpy(float)
    low = min(0.0, np.nanmin(ends, initial=0))
    high = max(0.0, np.nanmax(ends, initial=0))
    room = 0.08 * (high - low or 1.0)
    high += room * (high > 0 or low == 0)
    low -= room * (low < 0)
    beyond = part.loc[loose, "value"]
    span = 0.2 * (high - low)
    return min(low, -span) if (beyond < low).any() else low, max(high, span) if (beyond > high).any() else high


def points(
    axes: "Axes",
    part: pd.DataFrame,
    *,
    category: str,
    hue: str,
    looks: Mapping[Any, Look],
    places: Sequence[str] = (),
    step: float = 0.2,
) -> None:
    """A point with its interval for each value of `hue` in every place of the y axis, the first on top.

    Args:
      category: the column whose values have a place each.
      hue: the column whose values have a point each in every place.
      looks: by value of `hue`: keywords of `Axes.plot`.
      places: the categories; without it those of the part.
      step: between two points of one place, which is 1 high.
    """
    names = list(places or dict.fromkeys(part[category]))
    shown = list(groups(part, hue, looks))
    for number, (of_hue, look) in enumerate(shown):
        y = [names.index(name) + step * (number - (len(shown) - 1) / 2) for name in of_hue[category]]
        _whiskers(axes, of_hue["value"], y, of_hue["low"], of_hue["high"], along="x", **look | {"linestyle": ""})
    category_ticks(axes, names)


def category_ticks(axes: "Axes", names: Sequence[str]) -> None:
    """A name at each place of the y axis, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def level(axes: "Axes", value: float, axis: str = "y") -> None:
    """A dotted line at a value to compare with."""
    (axes.axhline if axis == "y" else axes.axvline)(value, color=style.GREY, linewidth=0.8, linestyle=":")
