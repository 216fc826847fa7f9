"""Small multiples: a layout of panels, and lines, intervals and bars in them.

A figure's numbers are a data frame with one observation per row: `value`, and `low` and `high`, the ends of its
interval, NaN without one. The other columns identify the observation, and two of them lay out the panels.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from clipbias.analysis.results import Average
from clipbias.intervals import Z_95
from clipbias.report import style

# With more points, an interval is a band instead of whiskers.
_CROWDED = 24

Look = Mapping[str, Any]
Share = bool | Literal["none", "all", "row", "col"]


def tidy(array: Average | np.ndarray, *axes: str, **columns: object) -> pd.DataFrame:
    """Makes a frame with a row per number of an array, or of an average with its 95 % interval.

    A column for each of the array's `axes` counts from 1. The `columns` have one value in all rows.
    """
    values = np.asarray(array.mean if isinstance(array, Average) else array, float)
    error = array.standard_error if isinstance(array, Average) else np.full(values.shape, np.nan)
    places = np.indices(values.shape).reshape(values.ndim, -1) + 1
    frame = pd.DataFrame({**columns, **dict(zip(axes, places, strict=True))}, index=range(values.size))
    frame["value"] = values.ravel()
    # NaN stays NaN, as of a single sample: such a point is drawn without whiskers.
    arms = Z_95 * np.asarray(error, float).ravel()
    return frame.assign(low=frame["value"] - arms, high=frame["value"] + arms)


def joined(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Concatenates frames; empty frames may lack columns."""
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()


def panels(
    frame: pd.DataFrame,
    draw: Callable[[style.Axes, pd.DataFrame], None],
    *,
    by: tuple[str, str],
    size: tuple[float, float] = (2.2, 1.9),
    names: Mapping[Any, str] | None = None,
    x_label: str = "",
    y_label: str = "",
    share_x: Share = True,
    share_y: Share = "row",
    wrap: int | None = None,
    widths: Sequence[float] | None = None,
    bottom: float | None = None,
    legend: bool | Mapping[str, Look] = True,
) -> style.Figure:
    """Draws a grid of panels, one for each pair of values of two columns, with one legend below.

    `by` names the columns of the frame whose values are rows and columns of panels, "" for a single row or column;
    `size` is a panel's in inches, `names` are titles by value, `wrap` panels in a line without rows, `widths` relative
    ones of columns, `bottom` starts all y axes, and `legend` may be looks by label in place of the panels' labels.
    """
    from matplotlib.lines import Line2D

    names = names or {}
    # In the order of appearance, which the caller decides.
    rows, columns = (list(dict.fromkeys(frame[name])) if name else [""] for name in by)
    across = min(wrap or len(columns), len(columns))
    down = len(rows) * -(-len(columns) // across)
    with style.styled():
        figure = style.new_figure(size[0] * (sum(widths) if widths else across) + 0.5, size[1] * down + 0.5)
        grid = figure.subplots(down, across, squeeze=False, sharex=share_x, sharey=share_y, width_ratios=widths)
        cells = [(row, column) for row in rows for column in columns]
        for number, axes in enumerate(grid.ravel()):
            row, column = cells[number] if number < len(cells) else ("", "")
            # A grid may have more cells than panels; the rest stays blank.
            part = frame if number < len(cells) else frame[:0]
            for name, value in zip(by, (row, column), strict=True):
                part = part[part[name] == value] if name else part
            # Rows share the titles on top; panels that are wrapped have a title each.
            if column and (wrap or number < across):
                axes.set_title(names.get(column, str(column)), loc="left")
            if part.empty:
                axes.set_axis_off()
                continue
            draw(axes, part)
            below = number + across >= len(cells)
            axes.set_xlabel(x_label if below else "")
            axes.tick_params(labelbottom=below or share_x in (False, "none", "row"))
            if number % across == 0:
                axes.set_ylabel("\n".join(filter(None, (names.get(row, str(row)), y_label))))
        if bottom is not None:
            # At the end: until all is drawn, a panel that shares the axis may still extend it.
            for axes in grid.ravel():
                axes.set_ylim(bottom=bottom)
        # Panels repeat their labels, so one legend below all of them names each once.
        looks = legend if isinstance(legend, Mapping) else {}
        handles: dict[str, Any] = {name: Line2D([], [], **look) for name, look in looks.items()}
        for axes in figure.axes if legend is True else ():
            of_panel, labels = axes.get_legend_handles_labels()
            handles |= dict(zip(labels, of_panel, strict=True))
        if handles:
            # As many names in a line as fit: letters are about half as wide as high, and a mark is as wide as ten
            # letters.
            fit = max(1, int(figure.get_figwidth() * 72 / (max(map(len, handles)) * 4.4 + 46)))
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(fit, len(handles)))
    return figure


def groups(part: pd.DataFrame, hue: str, looks: Mapping[Any, Look]) -> Iterator[tuple[pd.DataFrame, dict[str, Any]]]:
    """Yields the part of a frame for each value of the column `hue`, with its look, in the order of `looks`."""
    if not hue:
        yield part, dict(looks.get("", {}))
        return
    for value in [value for value in looks if (part[hue] == value).any()]:
        yield part[part[hue] == value], {"label": str(value), **looks[value]}


def lines(
    axes: style.Axes, part: pd.DataFrame, *, x: str, hue: str = "", looks: Mapping[Any, Look], dots: bool = False
) -> None:
    """Draws a line along the column `x` for each value of the column `hue`, with intervals.

    Several rows at one x, such as heads, are averaged; `dots` draws each of them too. `looks` are keywords of
    `Axes.plot` by value of `hue`.
    """
    # The mean of several intervals stands for the interval of the mean: it is never too narrow.
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
        count = int(part[x].max())
        axes.set_xticks(range(1, count + 1, math.ceil(count / 7)))  # at most seven, from the first layer on
        axes.set_xlim(0.3, count + 0.7)
        axes.grid(axis="x", visible=False)


def _whiskers(axes: style.Axes, x: Any, y: Any, low: Any, high: Any, *, along: str = "y", **look: Any) -> None:
    # Without any known end, a plain line: `errorbar` would draw caps on the points.
    if np.all(np.isnan(np.asarray(low, float))):
        if look.get("fmt") != "none":
            of_whiskers = ("elinewidth", "capsize")
            axes.plot(x, y, **{"linewidth": 1.2} | {name: v for name, v in look.items() if name not in of_whiskers})
        return
    middle = np.asarray(y if along == "y" else x, float)
    # An end that is not known is an arm of length 0: matplotlib refuses NaN.
    arms = np.nan_to_num([middle - np.asarray(low, float), np.asarray(high, float) - middle])
    error = {"yerr" if along == "y" else "xerr": arms}
    axes.errorbar(x, y, **error, **{"elinewidth": 0.8, "capsize": 1.6, "linewidth": 1.2} | look)


def bars(axes: style.Axes, part: pd.DataFrame, *, category: str, hue: str, looks: Mapping[Any, Look]) -> None:
    """Draws horizontal bars from 0 with intervals, with their numbers to the right of the panel.

    Each value of the column `category` has a place on the y axis, the first on top, with a bar for each of `hue`.
    """
    places = {name: place for place, name in enumerate(dict.fromkeys(part[category]))}
    # Less than 1, so that a gap parts categories.
    height = 0.78 / sum((part[hue] == value).any() for value in looks)
    for _, row in part.iterrows():
        of_place = part.loc[part[category] == row[category], hue].to_list()
        values = [value for value in looks if value in of_place]
        y = places[row[category]] + height * (values.index(row[hue]) - (len(values) - 1) / 2)
        axes.barh(y, row["value"], 0.9 * height, **{"linewidth": 0} | dict(looks[row[hue]]))
        _whiskers(axes, [row["value"]], [y], [row["low"]], [row["high"]], along="x", color="#374151", fmt="none")
        # Numbers stand in a column at the right: beside the bars they would cover whiskers.
        axes.text(1.02, y, f"{row['value']:.2f}", transform=axes.get_yaxis_transform(), va="center", fontsize=6.5)
    axes.axvline(0, color="#4B5563", linewidth=0.8)
    ends = part[["value", "low", "high"]].to_numpy(float)
    low = min(0.0, np.nanmin(ends, initial=0))
    high = max(0.0, np.nanmax(ends, initial=0))
    room = 0.08 * (high - low or 1.0)
    axes.set_xlim(low - room * (low < 0), high + room * (high > 0 or low == 0))
    category_ticks(axes, list(places))


def points(
    axes: style.Axes,
    part: pd.DataFrame,
    *,
    category: str,
    hue: str,
    looks: Mapping[Any, Look],
    places: Sequence[str] = (),
    step: float = 0.2,
) -> None:
    """Draws a point with its interval for each value of `hue` in every place of the y axis, the first on top.

    Places, of height 1, are `places` or the values of the column `category`; `step` separates the points of a place.
    """
    names = list(places or dict.fromkeys(part[category]))
    shown = list(groups(part, hue, looks))
    for number, (of_hue, look) in enumerate(shown):
        y = [names.index(name) + step * (number - (len(shown) - 1) / 2) for name in of_hue[category]]
        # Points of different categories make no line.
        _whiskers(axes, of_hue["value"], y, of_hue["low"], of_hue["high"], along="x", **look | {"linestyle": ""})
    category_ticks(axes, names)


def category_ticks(axes: style.Axes, names: Sequence[str]) -> None:
    """Writes a name at each place of the y axis, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def level(axes: style.Axes, value: float, axis: str = "y") -> None:
    """Draws a dotted line at a reference value."""
    (axes.axhline if axis == "y" else axes.axvline)(value, color=style.GREY, linewidth=0.8, linestyle=":")
