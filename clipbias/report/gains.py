"""What each method gains over zero-shot: a dot and an interval, the largest on top, equal budgets side by side."""

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from clipbias.constants import ZERO_SHOT
from clipbias.report import looks, style
from clipbias.report.captioned import CaptionedFigure, captioned
from clipbias.report.errors import WITHIN, difference_error
from clipbias.report.frames import ACCURACY, AVERAGE, Sweep
from clipbias.report.names import draws, method_kind, method_name
from clipbias.report.panels import category_ticks
from clipbias.report.published import dataset_name
from clipbias.sentences import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
        place = {"method": method, "label": method_name(method), "kind": looks.KINDS[method_kind(method)][0]}
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
        colour, marker, _ = looks.method_look(str(row["method"]))
        stands_out = row["method"] == looks.STANDS_OUT
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
