"""The verdict on methods as pages show it: one table and one picture, and the same of several datasets."""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from clipbias.explain.results import (
    PLAIN,
    CausalNumbers,
    Kind,
    Labels,
    MethodReplacements,
    MethodResult,
    StudyResults,
    What,
)
from clipbias.explain.uncertainty import Estimate, excludes
from clipbias.explain.wording import OUTCOMES, UNITS, by_reason, change, percent
from clipbias.report import style
from clipbias.report.captions import CaptionedFigure, captioned
from clipbias.report.names import dataset_name, ordered_datasets, ordered_methods
from clipbias.report.panels import Layout, panels, points
from clipbias.report.table import MISSING, Table, cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_METHODS = 7  # of the first table and picture; those that gain most
GAIN = "gain"
ATTENTION = "attention alone"
TOKENS = "tokens alone"
ADDED = "all that is added"
KIND = "mean by kind"
POSITION = "mean by position"
OTHER = "another image's"
EXCHANGE = "exchange"
# What is drawn, in the order of the table's columns: colour and marker.
_LOOKS: dict[str, dict[str, Any]] = {
    name: {"label": name, "color": colour, "marker": marker, "ms": 5, "elinewidth": 1.4, "capsize": 0}
    for name, colour, marker in (
        (ATTENTION, style.SKY, "o"),
        (TOKENS, style.GREEN, "^"),
        (ADDED, style.ORANGE, "s"),
        (KIND, style.PURPLE, "o"),
        (POSITION, style.PURPLE, "D"),
        (OTHER, style.BLUE, "v"),
        (EXCHANGE, style.RED, "s"),
    )
}
# What labels are decided by, in percent.
_THRESHOLDS = (25.0, 50.0)
# Percent: what lies outside is cut off.
_LIMITS = (-60.0, 160.0)
_ROW_HEIGHT = 0.2  # inches
_TOWERS = ("vision", "text")
COLUMNS = (
    *("Model", "In", "Gain", "Attention alone", "Tokens alone"),
    *("All added", "Mean by kind", "By position", "Another image's", "Exchange"),
    *("Two vectors", "Ceiling"),
)
NOTE = (
    "Each method twice: in points of accuracy, and in calibrated log-likelihood, which decides: its gain in nats, the"
    " next three as shares of it, then of all that is added to image tokens. Two vectors per layer, and the method"
    " itself (ceiling), fitted to its predictions: above, moved decisions that they share; below, their share of the"
    " gain. In brackets 95 %. A dash: not measured, or the whole is not surely above 0."
)


def quantities(numbers: CausalNumbers, labels: Labels | None) -> dict[str, Estimate]:
    """Those of the table, by name; shares of the gain, from `KIND` on of all that is added to image tokens.

    Where hardly anything is added there is nothing to share out.
    """
    named: dict[str, Estimate | None] = {GAIN: numbers.gain, ATTENTION: numbers.attention, TOKENS: numbers.tokens}
    if numbers.image is not None:
        levels = numbers.image
        named |= {ADDED: levels.all, KIND: levels.kind, POSITION: levels.position}
        named |= {OTHER: levels.other, EXCHANGE: levels.exchange}
    if labels is not None and labels.what is What.NOTHING:
        for name in (KIND, POSITION, OTHER, EXCHANGE):
            if (part := named.get(name)) is not None:
                named[name] = dataclasses.replace(part, share=None)
    return {name: number for name, number in named.items() if number is not None}


def shown_methods(study: StudyResults) -> list[MethodResult]:
    """Those with numbers, in the study's order; of too many those that gain most in calibrated log-likelihood."""
    methods = [method for method in study.methods if method.numbers is not None]

    def gain(method: MethodResult) -> float:
        return 0.0 if method.numbers is None else method.numbers.calibrated.gain.value

    largest = sorted(methods, key=gain)[-MOST_METHODS:]
    return [method for method in methods if any(method is each for each in largest)]


def replaced(study: StudyResults, method: MethodResult) -> MethodReplacements | None:
    """What was fitted to a method, or to the first of its seeds; `None` where nothing was."""
    fitted = study.replacement.methods if study.replacement else ()
    return next((each for each in fitted if set(each.models) <= set(method.models)), None)


def verdict_table(study: StudyResults, methods: Sequence[MethodResult], title: str = "") -> Table | None:
    """Two rows for each method with numbers, of `COLUMNS` but for those that have nothing but dashes."""
    rows = []
    for method in methods:
        if method.numbers is None:
            continue
        fitted = replaced(study, method)
        stand_ins = {
            row.student.kind: row
            for row in (fitted.rows if fitted else ())
            if row.student.kind is Kind.CEILING or row.student.form == PLAIN
        }
        for outcome, numbers in method.numbers.items():
            decides = outcome != "accuracy"
            named = quantities(numbers, method.labels)
            texts = [method.label, "nats, %" if decides else "points", change(numbers.gain, outcome)]
            for number in map(named.get, _LOOKS):
                if decides:
                    texts.append(share_text(number.share if number and excludes(numbers.gain) > 0 else None))
                else:
                    texts.append(change(number, outcome) if number else MISSING)
            shown = [stand_ins.get(kind) for kind in (Kind.FITTED, Kind.CEILING)]
            rows.append(
                [*texts, *(share_text((row.share if decides else row.moved) if row else None) for row in shown)]
            )
    measured = [place for place, texts in enumerate(zip(*rows, strict=True)) if set(texts) != {MISSING}]
    heads = [COLUMNS[place] for place in measured]
    return Table(title, NOTE, heads, [[row[place] for place in measured] for row in rows], words={1}) if rows else None


def seed_table(study: StudyResults) -> Table | None:
    """The same of each seed of methods that have several."""
    seeds = []
    labels = {model.key: model.label for model in study.tuned}
    for method in study.methods:
        for key in method.models if len(method.models) > 1 else ():
            numbers = None if study.causal is None else study.causal.of((key,))
            seeds.append(dataclasses.replace(method, label=labels[key], models=(key,), numbers=numbers))
    return verdict_table(study, seeds, "Seed by seed")


def share_text(share: Estimate | None) -> str:
    """A share with its interval, or a dash where there is nothing to share out."""
    return MISSING if share is None else percent(share)


def other_levels(methods: Sequence[MethodResult]) -> Table | None:
    """What each tower gains alone, and what is added to text tokens, in calibrated log-likelihood."""
    rows = []
    for method in methods:
        if method.numbers is None or excludes(method.numbers.calibrated.gain) <= 0:
            continue
        numbers = method.numbers.calibrated
        towers = [share_text(numbers.towers[name].share if name in numbers.towers else None) for name in _TOWERS]
        text = numbers.text
        levels = [MISSING, MISSING] if text is None else [share_text(text.all.share), share_text(text.kind.share)]
        rows.append(cells(method.label, *towers, *levels))
    caption = (
        "Shares of the gain in calibrated log-likelihood: of the tuned model in one tower and CLIP in the other, and of"
        " all that is added to text tokens, with CLIP's images; of that, the share of its mean over classes, by layer"
        " and kind of token."
    )
    heads = ("Model", "Vision tower alone", "Text tower alone", "All added to texts", "Its mean over classes")
    return Table("Towers apart, and texts", caption, heads, tuple(rows)) if rows else None


def why_not_mixed(study: StudyResults) -> list[str]:
    """One sentence for each reason why the causal test lacks methods, or levels of what they add."""
    if study.causal is None:
        return []
    labels = {model.key: model.label for model in study.tuned}
    reasons = [(labels[key], test.why) for key, test in study.causal.models.items()]
    reasons += [(labels[key], why) for key, test in study.causal.models.items() for why in test.why_no_levels.values()]
    return by_reason(reasons)


def verdict_frame(studies: Sequence[StudyResults]) -> pd.DataFrame:
    """All numbers: a row for each dataset, method, outcome and quantity, with its share of the whole and the labels."""
    rows = []
    for study in studies:
        for method in study.methods:
            for outcome, numbers in () if method.numbers is None else method.numbers.items():
                labels = method.labels
                place = {
                    "dataset": study.dataset.name,
                    "method": method.name,
                    "seeds": len(method.models),
                    "where": "" if labels is None else labels.where.value,
                    "what": "" if labels is None or labels.what is None else labels.what.value,
                    "outcome": outcome,
                    "unit": UNITS[outcome][0],
                }
                for name, number in quantities(numbers, labels).items():
                    columns = {"quantity": name, "value": number.value, "low": number.low, "high": number.high}
                    if share := number.share:
                        columns |= {"share": share.value, "share_low": share.low, "share_high": share.high}
                    rows.append({**place, **columns})
    ends = ["value", "low", "high", "share", "share_low", "share_high"]
    heads = ["dataset", "method", "seeds", "where", "what", "outcome", "unit", "quantity", *ends]
    return pd.DataFrame(rows, columns=heads)


def _drawn(numbers: pd.DataFrame) -> pd.DataFrame:
    """Of a `verdict_frame` the shares in calibrated log-likelihood, in percent."""
    is_drawn = (numbers["outcome"] == OUTCOMES[1]) & numbers["quantity"].isin(list(_LOOKS)) & numbers["share"].notna()
    drawn = numbers[is_drawn]
    low, high, value = (100 * drawn[f"share{end}"].astype(float) for end in ("_low", "_high", ""))
    return drawn.assign(value=value, low=low, high=high)


def verdict_figure(study: StudyResults) -> CaptionedFigure | None:
    """Of each method the shares that labels are decided by; narrow enough for a phone. `None` without a sure gain."""
    names = [method.name for method in shown_methods(study)]
    numbers = verdict_frame([study])
    drawn = _drawn(numbers[numbers["method"].isin(names)])
    if drawn.empty:
        return None
    drawn = drawn.assign(row=drawn["method"] + "\n" + drawn["quantity"])
    rows: list[str] = []
    for method, of_method in drawn.groupby("method", sort=False):
        rows += [str(method), *of_method["row"]]
    with style.styled():
        figure = style.new_figure(3.9, 0.6 + _ROW_HEIGHT * len(rows))
        axes = figure.subplots()
        points(axes, drawn, category="row", hue="quantity", looks=_LOOKS, places=rows, step=0.0)
        axes.set_yticks(range(len(rows)), [row.rpartition("\n")[2] for row in rows])
        for row, label in zip(rows, axes.get_yticklabels(), strict=True):
            label.set_fontweight("normal" if "\n" in row else "bold")
        _scale(axes)
        axes.set_xlabel("%, from “mean by kind” on of all that is added")
    return captioned("verdict", figure, numbers)


def _scale(axes: "Axes") -> None:
    axes.axvline(0, color="#4B5563", linewidth=0.8)
    for threshold in _THRESHOLDS:
        axes.axvline(threshold, color=style.GREY, linewidth=0.8, linestyle=style.DASHED)
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, _LIMITS[0]), min(high, _LIMITS[1]))


def overview_figure(studies: Sequence[StudyResults]) -> CaptionedFigure | None:
    """The same of every dataset, side by side."""
    numbers = verdict_frame(studies)
    drawn = _drawn(numbers)
    if drawn.empty:
        return None
    of_method = {method.name: method.method for study in studies for method in study.methods}
    order = ordered_methods(of_method.values())
    methods = sorted(dict.fromkeys(drawn["method"]), key=lambda name: order.index(of_method[name]))
    datasets = ordered_datasets(study.dataset.name for study in studies)
    drawn = drawn.sort_values("dataset", key=lambda column: column.map(list(datasets).index), kind="stable")
    lines = [textwrap.fill(name, 16) for name in methods]

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        points(axes, part, category="method", hue="quantity", looks=_LOOKS, places=methods, step=0.12)
        axes.set_yticks(range(len(lines)), lines)
        for line in range(1, len(lines)):
            axes.axhline(line - 0.5, color="#E5E7EB", linewidth=0.6)
        _scale(axes)

    figure: Figure = panels(
        drawn,
        draw,
        by=("", "dataset"),
        layout=Layout(
            names={name: dataset_name(name) for name in datasets},
            size=(2.1, 0.9 * len(lines) + 0.4),
            x_label="% of the gain, or of what is added",
            share_y=True,
            wrap=4,
        ),
    )
    return captioned("verdict_overview", figure, numbers, datasets=", ".join(map(dataset_name, datasets)))
