"""The verdicts over several datasets and methods as one picture."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure, captioned
from clipbias.report.gains import OVER_ZERO_SHOT
from clipbias.report.looks import KINDS
from clipbias.report.names import method_kind, ordered_methods
from clipbias.report.panels import Look, panels, points
from clipbias.report.published import dataset_name
from clipbias.report.verdict_figures import BIASES, EFFECT_COLOURS, FORMS
from clipbias.report.verdict_summary import MethodSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ENDS, _SHARES = ("value", "low", "high"), ("share", "share_low", "share_high")
_TITLES = {"a": "a  gain in accuracy", "b": "b  what adds up to it", "c": "c  what constants gain"}
_WHOLE = "whole gain"
# By panel, what is drawn in it: the outcome and the quantity of a summary, and its look.
_PANELS: dict[str, dict[tuple[str, str], dict[str, Any]]] = {
    "a": {(OVER_ZERO_SHOT, "gain"): {"color": style.BLACK, "marker": "o", "label": None}},
    "b": {
        (OVER_ZERO_SHOT, "start"): {"color": style.GREY, "marker": "v", "label": "start"},
        **{
            ("accuracy", name): {"color": colour, "marker": marker, "label": name}
            for (name, colour), marker in zip(EFFECT_COLOURS.items(), "osD", strict=True)
        },
    },
    "c": {
        (OVER_ZERO_SHOT, form): {"color": colour, "marker": marker, "label": FORMS[form]}
        for form, colour, marker in zip(FORMS, (style.PURPLE, style.RED, style.BLUE), "osD", strict=True)
    },
}
# From more methods on, they are grouped.
_FEW = 8
_ONE = "Whiskers are 95 % bootstrap intervals over images."
_SEVERAL = (
    "Large: the mean over datasets, seeds averaged first; small: each dataset. Whiskers: the 95 % interval over the"
    " images of these datasets; the numbers beside the picture have Student's too, where a dataset is one observation."
)


def summary_figure(summaries: Sequence[MethodSummary], left_out: Sequence[str] = ()) -> CaptionedFigure | None:
    """Per method its gain over zero-shot, what adds up to it, and what constants gain.

    Many methods stand in groups by their kind, closer together.

    Args:
      left_out: which methods are not in it, and why; for the caption.
    """
    if not summaries:
        return None
    entries = _lines(summaries)
    many = len(summaries) > _FEW
    numbers = pd.concat([_numbers(each) for each in entries if isinstance(each, MethodSummary)], ignore_index=True)
    drawn = pd.concat([_drawn(each, panel) for panel in _PANELS for each in entries], ignore_index=True)
    several = len({name for each in summaries for name in each.datasets}) > 1
    height = (0.36 if many else 0.52) * len(entries)

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        _panel(axes, part, 0.72 if many else 1.0)

    figure = panels(
        drawn,
        draw,
        by=("", "panel"),
        names={"": "", **_TITLES},
        size=(2.7, height),
        x_label="points of accuracy",
        share_y=True,
        legend=_legend(drawn),
    )
    names = dict.fromkeys(dataset_name(name) for each in summaries for name in each.datasets)
    return captioned(
        "verdict_overview",
        figure,
        numbers,
        datasets=", ".join(names),
        marks=_SEVERAL if several else _ONE,
        left_out=" ".join(["Not in it:", *left_out] if left_out else []),
    )


def _lines(summaries: Sequence[MethodSummary]) -> list[MethodSummary | str]:
    """What stands on each line: methods in a table's order, where there are many a kind's name above its methods."""
    place = {method: number for number, method in enumerate(ordered_methods(each.method for each in summaries))}
    ordered = sorted(summaries, key=lambda each: place[each.method])
    kinds = {summary.method: method_kind(summary.method) for summary in summaries}
    if len(summaries) <= _FEW or len(set(kinds.values())) == 1:
        return list(ordered)
    found: list[MethodSummary | str] = []
    for kind, (title, _, _) in KINDS.items():
        own = [summary for summary in ordered if kinds[summary.method] == kind]
        found += [title, *own] if own else []
    return found


def _drawn(entry: MethodSummary | str, panel: str) -> pd.DataFrame:
    """What one line of a panel shows: `series` are its marks, `size` "mean" or "dataset"; a kind's name is empty."""
    if isinstance(entry, str):
        return pd.DataFrame([{"panel": panel, "line": entry, "series": "", "size": "heading"}])
    rows: list[dict[str, Any]] = []
    wanted = {**_PANELS[panel], **({} if panel == "a" else {(OVER_ZERO_SHOT, "gain"): {"label": _WHOLE}})}
    for (outcome, quantity), look in wanted.items():
        numbers, these = entry.of(outcome, quantity), entry.mean_of_these(outcome, quantity)
        elsewhere = quantity != "start" or any(number["value"] for number in numbers.values())
        if these is None or quantity in BIASES.get(entry.method, ()) or not elsewhere:
            continue
        place = {"panel": panel, "line": entry.label, "series": look["label"] or "gain"}
        rows.append({**place, "size": "mean", **these})
        if len(numbers) > 1 and look["label"] != _WHOLE:
            rows += [{**place, "size": "dataset", "value": number["value"]} for number in numbers.values()]
    return pd.DataFrame(rows or [{"panel": panel, "line": entry.label, "series": "", "size": "missing"}])


def _panel(axes: "Axes", part: pd.DataFrame, scale: float) -> None:
    lines, panel = list(dict.fromkeys(part["line"])), part["panel"].iloc[0]
    looks = {look["label"] or "gain": look for look in _PANELS[panel].values()}
    for size, marker in (("dataset", 2.6), ("mean", 6.0)):
        sized: dict[Any, Look] = {
            name: {**look, "ms": marker * scale, "alpha": 0.55 if size == "dataset" else 1.0, "capsize": 0}
            for name, look in looks.items()
        }
        points(axes, part[part["size"] == size], category="line", places=lines, hue="series", looks=sized)
    whole = part[part["series"] == _WHOLE]
    axes.plot(
        whole["value"], [lines.index(name) for name in whole["line"]], "|", color=style.GREY, ms=16 * scale, mew=1
    )
    for y in range(1, len(lines)):
        axes.axhline(y - 0.5, color="#E5E7EB", linewidth=0.6)
    axes.axvline(0, color="#4B5563", linewidth=0.8)
    kinds = {title: colour for title, colour, _ in KINDS.values()}
    for y, tick in enumerate(axes.get_yticklabels()):
        if (part["size"] == "heading")[part["line"] == lines[y]].any():
            axes.axhspan(y - 0.5, y + 0.5, color="#F3F4F6", lw=0, zorder=0)
            tick.set(color=kinds[lines[y]], fontweight="bold")


def _legend(drawn: pd.DataFrame) -> dict[str, Look]:
    looks = {look["label"]: {**look, "linestyle": ""} for panel in "bc" for look in _PANELS[panel].values()}
    looks[_WHOLE] = {"color": style.GREY, "marker": "|", "ms": 10, "linestyle": ""}
    return {label: look for label, look in looks.items() if (drawn["series"] == label).any()}


def _numbers(summary: MethodSummary) -> pd.DataFrame:
    """All numbers of a method, drawn or not: by dataset, and of changes in accuracy their means."""
    rows: list[dict[str, Any]] = []
    for (outcome, quantity), numbers in summary.numbers.items():
        if quantity == "reference":  # a level, and no gain
            continue
        place = {"method": summary.label, "quantity": quantity, "outcome": outcome}
        place["unit"] = "nats" if outcome == "log_likelihood" else "points"
        for dataset, number in numbers.items():
            found: Mapping[str, Any] = {name: number.get(name) for name in (*_ENDS, *_SHARES)}
            rows.append({**place, "dataset": dataset, "seeds": summary.datasets[dataset], **found})
        mean, these = summary.mean(outcome, quantity), summary.mean_of_these(outcome, quantity)
        if len(numbers) > 1 and mean and these and outcome != "log_likelihood":
            images = {"images_low": these["low"], "images_high": these["high"]}
            rows.append({**place, "dataset": "mean", **{end: mean[end] for end in _ENDS}, **images})
    columns = ["method", "quantity", "outcome", "unit", "dataset", "seeds", *_ENDS, "images_low", "images_high"]
    return pd.DataFrame(rows, columns=[*columns, *_SHARES])
