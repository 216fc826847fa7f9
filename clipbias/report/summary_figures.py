"""The verdicts over several datasets and methods: one picture, and a table per method."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clipbias.explain.results import EFFECTS
from clipbias.explain.uncertainty import LEVEL, Estimate
from clipbias.explain.verdict_words import UNITS
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure
from clipbias.report.costs import KINDS
from clipbias.report.names import method_kind, ordered_methods
from clipbias.report.published import dataset_name
from clipbias.report.table import MISSING, Table, cells
from clipbias.report.verdict_figures import EFFECT_COLOURS, change_text, share_text
from clipbias.report.verdict_summary import MethodSummary, percent_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OUTCOME = "log_likelihood"  # whose gain is shared out: it has most power
_DRAWN = "accuracy"  # which is there for every method and dataset, and what readers compare methods by
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
_WHOLE = {"gain": "gain", "effect": "gain", "form": "tuned"}  # what each panel's numbers are parts of


def summary_figure(summaries: Sequence[MethodSummary], left_out: Sequence[str] = ()) -> CaptionedFigure | None:
    """Per method its gain, what attention, scale and values carry of it, and what constants keep.

    Many methods stand in groups by their kind, closer together.

    Args:
      left_out: which methods are not in it, and why.
    """
    if not summaries:
        return None
    rows: list[tuple[Any, ...]] = []
    names = [dataset_name(name) for name in dict.fromkeys(name for each in summaries for name in each.datasets)]
    lines = _lines(summaries)
    many = len(summaries) > _FEW
    height, scale = (0.4, 0.72) if many else (0.62, 1.0)
    below = sum(_wrapped(each).count("\n") + 1 for each in left_out) * 0.135
    with style.styled():
        figure = style.new_figure(9.2, height * len(lines) + 1.4 + below)
        panels = figure.subplots(1, 3, sharey=True, sharex=True)
        titles = ("a  gain in accuracy", "b  what carries the gain", "c  what a constant keeps")
        low, high = _limits(summaries)
        for axes, title, (kind, looks) in zip(panels, titles, _LOOKS.items(), strict=True):
            for line, entry in enumerate(lines):
                if isinstance(entry, str):
                    axes.axhspan(line - 0.5, line + 0.5, color="#F3F4F6", lw=0, zorder=0)
                    continue
                whole = entry.mean(_DRAWN, _WHOLE[kind])
                if whole is not None and kind != "gain":
                    axes.plot([whole["value"]] * 2, [line - 0.42, line + 0.42], color=style.GREY, lw=1, ls=":")
                drawn = _series(axes, line, entry, looks, scale)
                if not drawn and whole is None and any(container for container in axes.containers):
                    axes.text(low, line, "  not measured", va="center", fontsize=6, color=style.GREY)
                rows += drawn
            if not axes.containers:
                axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes, color=style.GREY)
            axes.set_title(title, loc="left")
            axes.axvline(0, color="#4B5563", linewidth=0.8)
            axes.grid(axis="y", visible=False)
            for line in range(1, len(lines)):
                axes.axhline(line - 0.5, color="#E5E7EB", linewidth=0.6)
            axes.set_xlabel("points of accuracy")
        panels[0].set_ylim(len(lines) - 0.5, -0.5)
        panels[0].set_xlim(low, high)
        for axes in panels:
            axes.tick_params(axis="y", length=0)
        _name_lines(panels[0], lines)
        for axes in panels[1:]:
            if not axes.containers:
                continue
            under = -0.52 / (height * len(lines))
            look: dict[str, Any] = {"ncols": 1, "handletextpad": 0.3, "labelspacing": 0.3}
            axes.legend(*_legend(axes), loc="upper center", bbox_to_anchor=(0.5, under), **look)
        if left_out:
            figure.supxlabel("\n".join(map(_wrapped, left_out)), x=0.01, ha="left", fontsize=7, color="#4B5563")
    several = len(names) > 1
    caption = (
        f"{', '.join(names)}. (a) Gain in accuracy over the frozen model. (b) The parts of it that three effects carry,"
        " Shapley values that add up to the gain (dotted): which input tokens attend to which (attention), what prompts"
        " take away from the attention on input tokens (scale), and what is added to tokens (values). (c) Gains if the"
        " method (dotted) is replaced by constants, the same for every image: one vector per layer; two, one for [cls]"
        " or the end of the text and one for all other tokens; one per token. "
        + (
            "Large: the mean over datasets, seeds averaged first; small: each dataset. Thick whiskers: the"
            f" {100 * LEVEL:.0f} % interval over the images of these datasets. Thin whiskers: Student's"
            f" {100 * LEVEL:.0f} % interval where a dataset is one observation, cut off at the panel's edge."
            if several
            else f"Whiskers are {100 * LEVEL:.0f} % bootstrap intervals over images."
        )
        + (f" Not in it: {' '.join(left_out)}" if left_out else "")
    )
    for entry in lines:
        if isinstance(entry, MethodSummary):
            rows += _shared_out(entry)
    columns: tuple[str, ...] = ("method", "quantity", "outcome", "unit", "dataset", "seeds", *_ENDS)
    columns += ("images_low", "images_high", *_SHARES)
    return CaptionedFigure("verdict_overview", "What carries the gain", caption, figure, columns, tuple(rows))


# From more methods on, they are grouped.
_FEW = 8


def _lines(summaries: Sequence[MethodSummary]) -> list[MethodSummary | str]:
    """What stands on each line: methods in a table's order, where there are many a kind's name above its methods."""
    place = {method: number for number, method in enumerate(ordered_methods(each.method for each in summaries))}
    ordered = sorted(summaries, key=lambda each: place[each.method])
    by_method = {summary.method: method_kind(summary.method) for summary in summaries}
    if len(summaries) <= _FEW or len(set(by_method.values())) == 1:
        return list(ordered)
    found: list[MethodSummary | str] = []
    for kind, (title, _, _) in KINDS.items():
        own = [summary for summary in ordered if by_method[summary.method] == kind]
        found += [title, *own] if own else []
    return found


def _name_lines(axes: "Axes", lines: Sequence[MethodSummary | str]) -> None:
    """Methods' names beside their lines, and kinds in their colours."""
    names = [entry if isinstance(entry, str) else entry.label for entry in lines]
    axes.set_yticks(range(len(lines)), names)
    colours = {title: colour for title, colour, _ in KINDS.values()}
    for tick, entry in zip(axes.get_yticklabels(), lines, strict=True):
        if isinstance(entry, str):
            tick.set(color=colours[entry], fontweight="bold")


def _wrapped(sentence: str) -> str:
    return textwrap.fill(sentence, 170, subsequent_indent="    ")


def _series(
    axes: "Axes", line: int, summary: MethodSummary, looks: Mapping[str, tuple[str, str]], scale: float
) -> list[tuple[Any, ...]]:
    """One method's line of a panel: small marks for datasets, a large one with its intervals for their mean."""
    rows: list[tuple[Any, ...]] = []
    for place, (name, (label, colour)) in enumerate(looks.items()):
        # Without a causal test the gain is what the constants are held against.
        name = "tuned" if name == "gain" and not summary.of(_DRAWN, name) else name
        numbers = summary.of(_DRAWN, name)
        mean, these = summary.mean(_DRAWN, name), summary.mean_of_these(_DRAWN, name)
        if mean is None or these is None:
            continue
        y = line + (place - (len(looks) - 1) / 2) * 0.25
        look: dict[str, Any] = {"marker": _MARKERS[place], "color": colour, "linestyle": ""}
        width = scale * (2.2 if len(numbers) > 1 else 1.3)
        _whisker(axes, y, these, elinewidth=width, capsize=0, ms=6 * scale, label=label, **look)
        if len(numbers) > 1:
            _whisker(axes, y, mean, elinewidth=0.7, capsize=2.5 * scale, ms=0, **look)
            values = [number["value"] or 0.0 for number in numbers.values()]
            axes.plot(values, [y] * len(values), ms=2.6 * scale, alpha=0.55, zorder=3, mec="white", mew=0.3, **look)
        place_of = (summary.label, name, _DRAWN, UNITS[_DRAWN][0])
        for dataset, number in numbers.items():
            ends = (number[end] for end in _ENDS)
            rows.append((*place_of, dataset, summary.datasets[dataset], *ends, *_UNKNOWN))
        if len(numbers) > 1:
            ends = (mean[end] for end in _ENDS)
            rows.append((*place_of, "mean", None, *ends, these["low"], these["high"], *_UNKNOWN[2:]))
    return rows


def _shared_out(summary: MethodSummary) -> list[tuple[Any, ...]]:
    """The numbers that are not drawn: changes of the log-likelihood, and what share of its gain each is."""
    rows: list[tuple[Any, ...]] = []
    for name in (name for looks in _LOOKS.values() for name in looks):
        for dataset, number in summary.of(_OUTCOME, name).items():
            changes, shares = ([number.get(end) for end in ends] for ends in (_ENDS, _SHARES))
            place = (summary.label, name, _OUTCOME, UNITS[_OUTCOME][0], dataset, summary.datasets[dataset])
            rows.append((*place, *changes, *_UNKNOWN[:2], *shares))
    return rows


_ENDS = ("value", "low", "high")
_SHARES = ("share", "share_low", "share_high")
_UNKNOWN = (None,) * (2 + len(_SHARES))  # no interval over images apart, and no shares


def _whisker(axes: "Axes", y: float, number: Estimate, **look: Any) -> None:
    value, low, high = (float(number[end] or 0.0) for end in _ENDS)
    axes.errorbar(value, y, xerr=[[value - low], [high - value]], **look)


def _limits(summaries: Sequence[MethodSummary]) -> tuple[float, float]:
    """As wide as datasets and the intervals over their images need, whatever the intervals over datasets."""
    ends = [0.0]
    for summary in summaries:
        for name in (name for looks in _LOOKS.values() for name in looks):
            ends += [number["value"] or 0.0 for number in summary.of(_DRAWN, name).values()]
            these = summary.mean_of_these(_DRAWN, name)
            ends += [end for end in (these["low"], these["high"]) if end is not None] if these else []
    room = 0.06 * (max(ends) - min(ends) or 1.0)
    return min(ends) - room, max(ends) + room


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
