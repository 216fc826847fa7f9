"""The verdicts over several datasets and methods: one picture, and a table per method."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipbias.explain.uncertainty import LEVEL, Estimate
from clipbias.explain.verdict_words import UNITS
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure
from clipbias.report.published import dataset_name
from clipbias.report.table import MISSING, Table, cells
from clipbias.report.verdict_figures import EFFECT_COLOURS, change_text, share_text
from clipbias.report.verdict_summary import EFFECTS, MethodSummary, percent_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OUTCOME = "log_likelihood"  # whose gain is shared out: it has most power
_MARKERS = ("o", "s", "D")
_FORM_LOOK = {
    "vector": ("one vector", style.PURPLE),
    "kind": ("two, by kind of token", style.RED),
    "token": ("one per token", style.BLUE),
}
_LOOKS = {
    "gain": {"gain": ("gain", style.BLACK)},
    "effect": {name: (name, colour) for name, colour in EFFECT_COLOURS.items()},
    "form": _FORM_LOOK,
}
_WIDEST = (-0.6, 2.0)


def summary_figure(summaries: Sequence[MethodSummary]) -> CaptionedFigure | None:
    """Per method its gain, what attention, scale and values carry of it, and what constants keep."""
    if not summaries:
        return None
    rows: list[tuple[Any, ...]] = []
    names = [dataset_name(name) for name in dict.fromkeys(name for each in summaries for name in each.datasets)]
    with style.styled():
        figure = style.new_figure(9.2, 0.62 * len(summaries) + 1.05)
        panels = figure.subplots(1, 3, sharey=True, width_ratios=(0.8, 1, 1))
        titles = ("a  gain in accuracy", "b  what carries the gain", "c  what a constant keeps")
        for axes, title, (kind, looks) in zip(panels, titles, _LOOKS.items(), strict=True):
            for line, summary in enumerate(summaries):
                rows += _series(axes, line, summary, kind, looks)
            axes.set_title(title, loc="left")
            axes.axvline(0, color="#4B5563", linewidth=0.8)
            axes.grid(axis="y", visible=False)
            for line in range(1, len(summaries)):
                axes.axhline(line - 0.5, color="#E5E7EB", linewidth=0.6)
        panels[0].set_yticks(range(len(summaries)), [summary.label for summary in summaries])
        panels[0].set_ylim(len(summaries) - 0.5, -0.5)
        panels[0].set_xlabel("points")
        for axes in panels[1:]:
            _share_axis(axes)
            axes.legend(
                *_legend(axes), loc="upper center", bbox_to_anchor=(0.5, -0.42 / len(summaries) ** 0.5), ncols=3
            )
    several = len(names) > 1
    caption = (
        f"{', '.join(names)}. (a) Gain over the frozen model. (b) Shapley values of the three effects, as shares of the"
        " gain in the log-likelihood of the true class: which input tokens attend to which (attention), what prompts"
        " take away from the attention on input tokens (scale), and what is added to tokens (values). (c) Shares of"
        " that gain that stay if the method is replaced by constants, the same for every image: one vector per layer;"
        " two, one for [cls] or the end of the text and one for all other tokens; one per token. "
        + (
            "Large: the mean over datasets, each one observation (seeds averaged first), with Student's"
            f" {100 * LEVEL:.0f} % interval, cut off at the panel's edge; small: each dataset."
            if several
            else f"Whiskers are {100 * LEVEL:.0f} % bootstrap intervals over images, cut off at the panel's edge."
        )
        + " No share is shown where the gain itself is not surely above 0."
    )
    columns = ("method", "quantity", "outcome", "unit", "dataset", "seeds", "value", "low", "high")
    return CaptionedFigure("verdict_overview", "What carries the gain", caption, figure, columns, tuple(rows))


def _series(
    axes: "Axes", line: int, summary: MethodSummary, kind: str, looks: Mapping[str, tuple[str, str]]
) -> list[tuple[Any, ...]]:
    """One method's line of a panel: small marks for datasets, a large one with its interval for their mean."""
    rows: list[tuple[Any, ...]] = []
    share = kind != "gain"
    outcome, unit, scale = (_OUTCOME, "share", 100.0) if share else ("accuracy", "points", 1.0)
    for place, (name, (label, colour)) in enumerate(looks.items()):
        numbers = {dataset: _ends(number, share) for dataset, number in summary.of(outcome, name).items()}
        known = {dataset: number for dataset, number in numbers.items() if number["value"] is not None}
        if not known:
            continue
        y = line + (place - (len(looks) - 1) / 2) * 0.25
        look: dict[str, Any] = {"marker": _MARKERS[place], "color": colour, "linestyle": ""}
        if len(numbers) > 1:
            axes.plot([scale * (n["value"] or 0) for n in known.values()], [y] * len(known), ms=3, alpha=0.45, **look)
            mean = summary.mean_share(outcome, name) if share else summary.mean(outcome, name)
        else:
            mean = next(iter(known.values()))
        if mean is not None:
            value, low, high = (scale * float(mean[end] or 0.0) for end in ("value", "low", "high"))
            error = [[value - low], [high - value]]
            axes.errorbar(value, y, xerr=error, ms=6, elinewidth=1.3, capsize=2.5, label=label, **look)
        else:
            axes.plot([], [], ms=6, label=label, **look)
        if len(numbers) > 1:
            numbers = {**numbers, "mean": mean or {"value": None, "low": None, "high": None}}
        for dataset, number in numbers.items():
            seeds = summary.datasets.get(dataset, "")
            rows.append((summary.label, name, outcome, unit, dataset, seeds, *(number[e] for e in _ENDS)))
    return rows


_ENDS = ("value", "low", "high")


def _ends(number: Estimate, share: bool) -> Estimate:
    names = ("share", "share_low", "share_high") if share else _ENDS
    return dict(zip(_ENDS, (number.get(name) for name in names), strict=True))


def _share_axis(axes: "Axes") -> None:
    """Percent of the gain: as wide as the marks need, whatever the intervals."""
    marks = [x for line in axes.lines if line.get_marker() in _MARKERS for x in np.asarray(line.get_xdata(), float)]
    low, high = min([*marks, -15.0]) - 10, max([*marks, 110.0]) + 10
    axes.set_xlim(max(low, 100 * _WIDEST[0]), min(high, 100 * _WIDEST[1]))
    axes.axvline(100, color=style.GREY, linewidth=0.8, linestyle=":")
    axes.set_xlabel("% of the gain in log-likelihood")


def _legend(axes: "Axes") -> tuple[list[Any], list[str]]:
    handles, labels = axes.get_legend_handles_labels()
    found = dict(zip(labels, handles, strict=True))
    return list(found.values()), list(found)


def summary_table(summary: MethodSummary) -> Table:
    """One method: gains, effects and shares, datasets across, their mean last."""
    datasets = list(summary.datasets)
    rows = []
    for outcome in ("accuracy", _OUTCOME):
        for name in ("gain", *EFFECTS):
            numbers = summary.of(outcome, name)
            if numbers:
                texts = [change_text(numbers[dataset], outcome) for dataset in datasets]
                rows.append(cells(f"{name}, {UNITS[outcome][0]}", *texts, *_mean(summary.mean(outcome, name), outcome)))
    kept = {form: f"kept by {label}" for form, (label, _) in _FORM_LOOK.items()}
    for name, text in {**{name: f"share of {name}" for name in EFFECTS}, **kept}.items():
        numbers = summary.of(_OUTCOME, name)
        if numbers:
            mean = summary.mean_share(_OUTCOME, name)
            last = [MISSING if mean is None else percent_of(mean)]
            texts = [share_text(numbers[dataset]) for dataset in datasets]
            rows.append(cells(text, *texts, *(last if len(datasets) > 1 else [])))
    heads = [
        dataset_name(name) + (f" ({seeds} seeds)" if seeds > 1 else "") for name, seeds in summary.datasets.items()
    ]
    caption = (
        f"In brackets {100 * LEVEL:.0f} % intervals: of a dataset over its images, of the mean over datasets, where"
        " each is one observation. Shares are of the gain in log-likelihood; a dash where that is not surely above 0."
    )
    return Table("", caption, ("", *heads, *(["Mean"] if len(datasets) > 1 else [])), tuple(rows))


def _mean(number: Estimate | None, outcome: str) -> list[str]:
    """Nothing for one dataset, which has no mean over datasets."""
    if number is None:
        return [MISSING]
    return [change_text(number, outcome)] if number["low"] is not None else []
