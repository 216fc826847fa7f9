"""Accuracy against shots: one panel per dataset and one for their average."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd

from clipbias.report import looks, style
from clipbias.report.frames import ACCURACY, AVERAGE, Row, Sweep, read_sweep
from clipbias.report.names import draws, method_name
from clipbias.report.published import dataset_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More names than this do not fit beside one panel.
MOST_NAMES = 12


def accuracy_figure(results: Sweep | Iterable[Row], *, measure: str | None = None) -> "Figure":
    """Draws accuracy in percent against shots, one line per method, ± the standard error.

    Args:
      results: frames, or the rows of a results file.
      measure: what to draw where runs have several accuracies; without it the plain one, else H, else the first.

    Returns:
      A figure whose last panel carries the methods' names beside their lines, or with many methods a legend below;
      zero-shot is a dashed level.
    """
    sweep = results if isinstance(results, Sweep) else read_sweep(results)
    measure = measure or sweep.measure
    panels = list(sweep.columns)
    columns = min(4, max(1, len(panels)))
    lines = max(1, math.ceil(len(panels) / columns))
    many = len(sweep.methods) > MOST_NAMES
    with style.styled():
        width = 2.05 * columns + 1.5
        names_per_line = columns + 1
        height = 2.3 * lines + (0.35 if lines == 1 else 0.0)
        figure = style.new_figure(width, height + many * 0.17 * math.ceil(len(sweep.methods) / names_per_line))
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True)
        flat = grid.ravel()
        for axes, panel in zip(flat, panels, strict=False):
            _panel(axes, sweep, panel, measure)
        for axes in flat[len(panels) :]:
            axes.set_visible(False)
        for row in grid:
            row[0].set_ylabel("accuracy (%)" if measure == ACCURACY else f"{measure} (%)")
        for column in range(columns):
            shown = [axes for axes in grid[:, column] if axes.get_visible()]
            if shown:
                shown[-1].set_xlabel("shots per class")
                shown[-1].tick_params(labelbottom=True)
        if many:
            drawn = [axes.get_legend_handles_labels() for axes in flat[: len(panels)]]
            named = {label: handle for handles, labels in drawn for handle, label in zip(handles, labels, strict=True)}
            shown_names = [method for method in sweep.methods if method in named]
            legend = figure.legend(
                [named[method] for method in shown_names],
                [method_name(method) for method in shown_names],
                loc="outside lower center",
                ncols=names_per_line,
            )
            figure.draw_without_rendering()  # tells how wide the names are
            figure.set_figwidth(max(width, legend.get_window_extent().width / figure.dpi))
        elif panels:
            figure.draw_without_rendering()  # places the panels, so that the labels know how high they are
            _label(flat[len(panels) - 1], sweep, panels[-1], measure)
    return figure


def _cells(sweep: Sweep, panel: str, method: str, measure: str) -> pd.DataFrame:
    """The method's finished cells of a panel by shots."""
    lines = {shots: sweep.lines.get((measure, method, panel, shots)) for shots in sweep.shots}
    finished = {shots: line for shots, line in lines.items() if line is not None and not math.isnan(line["mean"])}
    return pd.DataFrame(list(finished.values()), index=pd.Index(list(finished), dtype=object))


def _panel(axes: "Axes", sweep: Sweep, panel: str, measure: str) -> None:
    axes.set_title(panel if panel == AVERAGE else dataset_name(panel))
    few = [shots for shots in sweep.shots if shots is not None]
    if few:
        # Every doubling is one step; the ticks are the shots that were run.
        axes.set_xscale("log", base=2)
        axes.set_xticks(few, [str(shots) for shots in few])
        axes.set_xlim(few[0] / 1.3, few[-1] * 1.3)
    else:
        axes.set_xticks([])
    axes.minorticks_off()
    axes.grid(axis="x", visible=False)
    for position, method in enumerate(sweep.methods):
        colour, marker, line = looks.method_look(method)
        cells = _cells(sweep, panel, method, measure)
        if cells.empty:
            continue
        if not draws(method) and cells["mean"].nunique() == 1:
            axes.axhline(cells["mean"].iloc[0], color=colour, linestyle=line, label=method, zorder=1)
            continue
        stands_out = method == looks.STANDS_OUT  # not at one of several rates
        # Methods stand side by side by a hair, so that error bars do not hide one another.
        aside = 1 + min(0.014, 0.17 / len(sweep.methods)) * (position - len(sweep.methods) / 2)
        axes.errorbar(
            [(1 if shots is None else shots) * aside for shots in cells.index],
            cells["mean"].tolist(),
            yerr=cells["error"].fillna(0.0).tolist(),
            color=colour,
            marker=marker,
            linestyle=line,
            markeredgecolor="white",
            markeredgewidth=0.5,
            elinewidth=0.8,
            capsize=1.8,
            capthick=0.8,
            linewidth=2.0 if stands_out else 1.3,
            zorder=4 if stands_out else 2,
            label=method,
        )


def _label(axes: "Axes", sweep: Sweep, panel: str, measure: str) -> None:
    ends = []
    for method in sweep.methods:
        cells = _cells(sweep, panel, method, measure)
        if not cells.empty:
            colour = looks.method_look(method)[0]
            ends.append((cells.index[-1] or 1, cells["mean"].iloc[-1], method_name(method), colour))
    style.label_ends(axes, ends)
