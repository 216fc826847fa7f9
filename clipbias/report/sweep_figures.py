"""Accuracy against shots: one panel per dataset and one for their average.

What each method gains over zero-shot: a dot and an interval, the largest on top, equal budgets side by side.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pandas as pd

from clipbias.constants import ZERO_SHOT
from clipbias.report import style
from clipbias.report.captions import CaptionedFigure, captioned
from clipbias.report.errors import WITHIN, difference_error
from clipbias.report.frames import ACCURACY, AVERAGE, Row, Sweep, read_sweep
from clipbias.report.names import dataset_name, draws, method_kind, method_name
from clipbias.report.panels import category_ticks
from clipbias.sentences import counted

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
        colour, marker, line = style.method_look(method)
        cells = _cells(sweep, panel, method, measure)
        if cells.empty:
            continue
        if not draws(method) and cells["mean"].nunique() == 1:
            axes.axhline(cells["mean"].iloc[0], color=colour, linestyle=line, label=method, zorder=1)
            continue
        stands_out = method == style.STANDS_OUT  # not at one of several rates
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
            colour = style.method_look(method)[0]
            ends.append((cells.index[-1] or 1, cells["mean"].iloc[-1], method_name(method), colour))
    style.label_ends(axes, ends)


# Where the columns of numbers end, in widths of the panel.
_COLUMNS = (1.13, 1.42)


def gain_frame(sweep: Sweep) -> pd.DataFrame:
    """Each method's gain in accuracy over zero-shot in points, with most shots, as it is drawn from the top.

    Methods with the same number of parameters are neighbours; they stand where the best of them does.

    Returns:
      Columns `method`, `label`, `kind`, `parameters`, `varies` (whether these are a mean over datasets that differ),
      `value`, `low` and `high` (95 % over test images, compared in pairs, and seeds), and each dataset's own gain.
      Empty without zero-shot or without another method.
    """
    rows = []
    for method in sweep.methods:
        each = {dataset: _gain(sweep, method, dataset) for dataset in sweep.datasets}
        if method == ZERO_SHOT or not draws(method) or any(math.isnan(value) for value, _ in each.values()):
            continue
        value = sum(value for value, _ in each.values()) / len(each)
        half = WITHIN * math.hypot(*(error for _, error in each.values())) / len(each)  # datasets are independent
        counts = [row["parameters"] for row in sweep.by_method[method] if row.get("parameters") is not None]
        parameters = round(sum(counts) / len(counts)) if counts else 0
        varies = len(set(counts)) > 1
        numbers = {"value": value, "low": value - half, "high": value + half}
        gains = {dataset: gain for dataset, (gain, _) in each.items()}
        place = {"method": method, "label": method_name(method), "kind": style.KINDS[method_kind(method)][0]}
        rows.append({**place, "parameters": parameters, "varies": varies, **numbers, **gains})
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows)
    best = frame.groupby("parameters")["value"].transform("max")
    places = sorted(frame.index, key=lambda i: (-best[i], frame["parameters"][i], -frame["value"][i]))
    return frame.loc[places].reset_index(drop=True)


def _gain(sweep: Sweep, method: str, dataset: str) -> tuple[float, float]:
    """The gain and its standard error; NaN where a run is missing."""
    shots = sweep.shots[-1]
    tuned = sweep.lines.get((ACCURACY, method, dataset, shots))
    plain = sweep.lines.get((ACCURACY, ZERO_SHOT, dataset, shots))
    if tuned is None or plain is None:
        return math.nan, math.nan
    return tuned["mean"] - plain["mean"], difference_error(tuned, plain)


def gain_figure(sweep: Sweep) -> CaptionedFigure | None:
    """A row for each method; `None` where there is no gain to show."""
    frame = gain_frame(sweep)
    if frame.empty:
        return None
    shots = sweep.shots[-1]
    with style.styled():
        figure = style.new_figure(6.6, 0.9 + 0.29 * len(frame))
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0, 0, 0.92, 1))  # leaves room for the columns
        axes = figure.subplots()
        _draw(axes, frame)
    place = AVERAGE if len(sweep.datasets) > 1 else sweep.datasets[0]
    seeds = sweep.seeds(ACCURACY, shots)
    return captioned(
        "gains",
        figure,
        frame,
        zero_shot=f"{sweep.lines[ACCURACY, ZERO_SHOT, place, shots]['mean']:.1f}",
        over=f"mean of {len(sweep.datasets)} datasets" if place == AVERAGE else dataset_name(place),
        seeds=counted(seeds, "seed"),
        shots=f"{counted(shots, 'image')} per class" if shots else "all training images",
    )


def _draw(axes: "Axes", frame: pd.DataFrame) -> None:
    for place, row in frame.iterrows():
        colour, marker, _ = style.method_look(str(row["method"]))
        stands_out = row["method"] == style.STANDS_OUT
        axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2.4 if stands_out else 1.6)
        axes.plot(row["value"], place, marker, color=colour, markersize=7 if stands_out else 6)
        texts = f"{row['value']:+.1f}", f"{'mean ' if row['varies'] else ''}{row['parameters']:,}"
        for x, text in zip(_COLUMNS, texts, strict=True):
            axes.text(x, place, text, transform=axes.get_yaxis_transform(), va="center", ha="right", fontsize=8)
    for x, head in zip(_COLUMNS, ("gain", "parameters"), strict=True):
        transform = axes.get_yaxis_transform()
        axes.text(x, -0.85, head, transform=transform, va="center", ha="right", fontsize=8, weight="bold")
    for _, same in frame.groupby("parameters"):
        if len(same) > 1:
            axes.axhspan(same.index[0] - 0.44, same.index[-1] + 0.44, color="#F1F5F9", zorder=0)
    axes.axvline(0, color=style.ZERO_SHOT, linestyle="--", linewidth=1.0)
    category_ticks(axes, list(frame["label"]))
    axes.set_xlabel("points of accuracy over zero-shot CLIP")
