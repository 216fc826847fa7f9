"""Accuracy against shots: one panel per dataset and one for their average."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from clipbias.report import looks, style
from clipbias.report.names import draws, method_name
from clipbias.report.published import dataset_name
from clipbias.report.summary import ACCURACY, Cell, Summary, summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AVERAGE = "Average"
# More names than this do not fit beside one panel.
MOST_NAMES = 12


def accuracy_figure(results: Summary | Iterable[Mapping[str, Any]], *, measure: str | None = None) -> "Figure":
    """Draws accuracy in percent against shots, one line per method, ± the standard error.

    Args:
      results: a summary, or the rows of a results file.
      measure: what to draw where runs have several accuracies; without it the plain one, else H, else the first.

    Returns:
      A figure whose last panel carries the methods' names beside their lines, or with many methods a legend below;
      zero-shot is a dashed level.
    """
    summary = results if isinstance(results, Summary) else summarize(results)
    preferred = [measure] if measure else [name for name in (ACCURACY, "H") if name in summary.measures]
    measure = (*preferred, *summary.measures)[0]
    panels = [*summary.datasets]
    if len(panels) > 1:
        panels.append(AVERAGE)
    columns = min(4, max(1, len(panels)))
    lines = max(1, math.ceil(len(panels) / columns))
    many = len(summary.methods) > MOST_NAMES
    with style.styled():
        width, below = 2.05 * columns + 1.5, columns + 1  # names in a line of the legend
        height = 2.3 * lines + (0.35 if lines == 1 else 0.0)
        figure = style.new_figure(width, height + many * 0.17 * math.ceil(len(summary.methods) / below))
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True)
        flat = grid.ravel()
        for axes, panel in zip(flat, panels, strict=False):
            _panel(axes, summary, panel, measure)
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
            shown_names = [method for method in summary.methods if method in named]
            legend = figure.legend(
                [named[method] for method in shown_names],
                [method_name(method) for method in shown_names],
                loc="outside lower center",
                ncols=below,
            )
            figure.draw_without_rendering()  # tells how wide the names are
            figure.set_figwidth(max(width, legend.get_window_extent().width / figure.dpi))
        elif panels:
            figure.draw_without_rendering()  # places the panels, so that the labels know how high they are
            _label(flat[len(panels) - 1], summary, panels[-1], measure)
    return figure


def _cells(summary: Summary, panel: str, method: str, measure: str) -> dict[int, Cell]:
    """The method's finished cells of a panel by shots."""
    shots = summary.shots or (0,)
    if panel == AVERAGE:
        found = {count: summary.average(method, count, measure) for count in shots}
    else:
        found = {count: summary.cell(method, panel, count, measure) for count in shots}
    return {count: cell for count, cell in found.items() if cell is not None and cell.values}


def _means(cells: Mapping[int, Cell]) -> dict[int, float]:
    return {count: cell.mean for count, cell in cells.items() if cell.mean is not None}


def _is_level(cells: Mapping[int, Cell]) -> bool:
    """The same number for any shots, as zero-shot has it."""
    return all(None in cell.values for cell in cells.values()) and len({cell.mean for cell in cells.values()}) == 1


def _panel(axes: "Axes", summary: Summary, panel: str, measure: str) -> None:
    axes.set_title(panel if panel == AVERAGE else dataset_name(panel))
    if summary.shots:
        # Every doubling is one step; the ticks are the shots that were run.
        axes.set_xscale("log", base=2)
        axes.set_xticks(summary.shots, [str(shots) for shots in summary.shots])
        axes.set_xlim(summary.shots[0] / 1.3, summary.shots[-1] * 1.3)
    else:
        axes.set_xticks([])
    axes.minorticks_off()
    axes.grid(axis="x", visible=False)
    for position, method in enumerate(summary.methods):
        colour, marker, line = looks.method_look(method)
        cells = _cells(summary, panel, method, measure)
        if not cells:
            continue
        if not draws(method) and _is_level(cells):
            axes.axhline(next(iter(_means(cells).values())), color=colour, linestyle=line, label=method, zorder=1)
            continue
        stands_out = method == looks.STANDS_OUT  # not at one of several rates
        # Methods stand side by side by a hair, so that error bars do not hide one another.
        aside = 1 + min(0.014, 0.17 / len(summary.methods)) * (position - len(summary.methods) / 2)
        axes.errorbar(
            [(shots or 1) * aside for shots in cells],
            list(_means(cells).values()),
            yerr=[cell.error or 0.0 for cell in cells.values()],
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


def _label(axes: "Axes", summary: Summary, panel: str, measure: str) -> None:
    ends = []
    for method in summary.methods:
        cells = _cells(summary, panel, method, measure)
        if cells:
            colour = looks.method_look(method)[0]
            ends.append((max(cells) or 1, _means(cells)[max(cells)], method_name(method), colour))
    style.label_ends(axes, ends)
