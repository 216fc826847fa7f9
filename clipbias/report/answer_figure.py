"""The first page's figure and table, and the same figure over datasets: attention and tokens, and what is added."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clipbias.explain.effects import OUTCOMES, UNITS
from clipbias.explain.endpoint import TOKENS_ALONE
from clipbias.explain.results import StudyResults
from clipbias.explain.uncertainty import mean_over_datasets
from clipbias.explain.wording import change
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure, captioned
from clipbias.report.methods import (
    ALL_ADDED,
    ATTENTION_ALONE,
    BEST_ADDED,
    MEAN_ADDED,
    MethodResults,
    MethodSummary,
)
from clipbias.report.names import ordered_methods
from clipbias.report.panels import Layout, panels, points
from clipbias.report.published import dataset_name
from clipbias.report.table import MISSING
from clipbias.report.verdict_figures import interval_columns
from clipbias.sentences import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 8  # of the table, zero-shot's among them
COLUMNS = (
    "Model",
    "Accuracy (%)",
    "Gain (points)",
    "Attention alone",
    "Tokens alone",
    "All that is added",
    "Mean of what is added",
    "Best constant",
)
MEAN = "mean"
OUTCOME = OUTCOMES[0]
_ROW_HEIGHT = 0.2  # inches
# What is drawn, in the order of the table's columns: its name, what a row is called, colour and marker.
_MARKS = (
    ("gain", "whole gain", style.BLACK, "D"),
    (ATTENTION_ALONE, "attention alone", style.SKY, "o"),
    (TOKENS_ALONE, "tokens alone", style.GREEN, "^"),
    (ALL_ADDED, "all that is added", style.ORANGE, "s"),
    (MEAN_ADDED, "mean of what is added", style.PURPLE, "o"),
    (BEST_ADDED, "best constant", style.RED, "v"),
)
_NAMES = tuple(name for name, *_ in _MARKS)
_LOOKS: dict[str, dict[str, Any]] = {
    name: {"label": label, "color": colour, "marker": marker, "ms": 5, "elinewidth": 1.4, "capsize": 0}
    for name, label, colour, marker in _MARKS
}


def answer_rows(study: StudyResults, methods: Sequence[MethodResults]) -> list[tuple[str, ...]]:
    """Rows of `COLUMNS`, zero-shot first; of too many methods those that gain most."""
    zero_shot = study.zero_shot
    accuracy = f"{zero_shot.accuracy:.1f} ± {zero_shot.standard_error:.1f}"
    rows = [(zero_shot.label, accuracy) + (MISSING,) * len(COLUMNS[2:])]
    return rows + [_answer_row(method) for method in _shown(methods)]


def _answer_row(method: MethodResults) -> tuple[str, ...]:
    facts = method.facts
    numbers = method.named(OUTCOME) | ({} if facts.gain is None else {"gain": facts.gain})
    accuracy = f"{facts.accuracy:.1f} ± {facts.standard_error:.1f}"
    return (facts.label, accuracy, *(change(numbers[name], OUTCOME) if name in numbers else MISSING for name in _NAMES))


def answer_note(study: StudyResults, methods: Sequence[MethodResults]) -> str:
    """What the numbers of `answer_rows` are."""
    sentences = [
        f"Accuracy over {counted(study.zero_shot.images, 'image')} ± one standard error; all else in points, against"
        " the frozen model, or, what is added, against nothing in its place. A dash: not measured, or a method that"
        " learns a constant."
    ]
    shown = _shown(methods)
    starts = [f"{each.facts.name} {each.facts.start:.1f} %" for each in shown if each.facts.start is not None]
    if starts:
        sentences.append(f"Gains are over the text that training starts from; its accuracy: {', '.join(starts)}.")
    if len(shown) < len(methods):
        sentences.append(f"Not here: {counted(len(methods) - len(shown), 'method')} of smaller gain.")
    return " ".join(sentences)


def _shown(methods: Sequence[MethodResults]) -> list[MethodResults]:
    def gain(method: MethodResults) -> float:
        return -np.inf if method.facts.gain is None else method.facts.gain.value

    largest = sorted(methods, key=gain)[-(MOST_ROWS - 1) :]
    return [method for method in methods if any(method is each for each in largest)]


def answer_figure(study: StudyResults, methods: Sequence[MethodResults]) -> CaptionedFigure | None:
    """Per method the gain in accuracy, what attention and tokens give alone, and of what is added its mean."""
    numbers = pd.DataFrame([row for method in methods for row in _marks(method, study.dataset.name)])
    if numbers.empty:
        return None
    return captioned("answer", _draw_rows(numbers), numbers)


def _draw_rows(numbers: pd.DataFrame) -> "Figure":
    """A row for each number, below the name of its method; narrow enough for a phone."""
    numbers = numbers.assign(row=numbers["method"] + "\n" + numbers["quantity"])
    rows: list[str] = []
    for method, of_method in numbers.groupby("method", sort=False):
        rows += [str(method), *of_method["row"]]
    with style.styled():
        figure = style.new_figure(3.9, 0.6 + _ROW_HEIGHT * len(rows))
        axes = figure.subplots()
        points(axes, numbers, category="row", hue="quantity", looks=_LOOKS, places=rows, step=0.0)
        axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
        for row, label in zip(rows, axes.get_yticklabels(), strict=True):
            label.set_fontweight("normal" if "\n" in row else "bold")
        axes.axvline(0, color="#4B5563", linewidth=0.8)
        axes.set_xlabel("points of accuracy")
    return figure


def _label(row: str) -> str:
    """A method's name, or below it what a row shows."""
    quantity = row.rpartition("\n")[2]
    return _LOOKS[quantity]["label"] if quantity in _LOOKS else quantity


def overview_figure(summaries: Sequence[MethodSummary], left_out: Sequence[str] = ()) -> CaptionedFigure | None:
    """The same of every dataset, side by side; from five datasets on, their mean.

    Args:
      summaries: of methods.
      left_out: which methods are not in it, and why; for the caption.
    """
    order = ordered_methods(summary.method for summary in summaries)
    ordered = sorted(summaries, key=lambda each: order.index(each.method))
    rows = [row for each in ordered for dataset, method in each.by_dataset.items() for row in _marks(method, dataset)]
    datasets = list(dict.fromkeys(dataset for each in summaries for dataset in each.by_dataset))
    rows += [row for each in ordered for row in _means(each, len(datasets))]
    if not rows:
        return None
    drawn = pd.DataFrame(rows)
    # Panels are laid out as their names come.
    places = {name: number for number, name in enumerate([*datasets, MEAN])}
    drawn = drawn.sort_values("dataset", key=lambda column: column.map(places), kind="stable")
    figure = _draw(drawn, {dataset: dataset_name(dataset) for dataset in datasets} | {MEAN: "Mean"})
    return captioned(
        "verdict_overview",
        figure,
        pd.concat([_all_numbers(each) for each in ordered], ignore_index=True),
        datasets=", ".join(map(dataset_name, datasets)),
        left_out=" ".join(["Not in it:", *left_out] if left_out else []),
    )


def _draw(numbers: pd.DataFrame, names: Mapping[Any, str]) -> "Figure":
    """A panel for each dataset and a line for each method, with a mark and an interval for each number."""
    methods = list(dict.fromkeys(numbers["method"]))
    lines = [textwrap.fill(label, 16) for label in methods]

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        points(axes, part, category="method", hue="quantity", looks=_LOOKS, places=methods, step=0.16)
        axes.set_yticks(range(len(lines)), lines)
        axes.axvline(0, color="#4B5563", linewidth=0.8)
        for line in range(1, len(lines)):
            axes.axhline(line - 0.5, color="#E5E7EB", linewidth=0.6)

    return panels(
        numbers,
        draw,
        by=("", "dataset"),
        layout=Layout(
            names=names, size=(2.1, 0.66 * len(lines) + 0.4), x_label="points of accuracy", share_y=True, wrap=4
        ),
    )


def _marks(method: MethodResults, dataset: str) -> list[dict[str, Any]]:
    """What is drawn of a method, all in points of accuracy."""
    place = {"dataset": dataset, "method": method.facts.name, "seeds": len(method.facts.models)}
    numbers = method.named(OUTCOME)
    return [
        {**place, "quantity": name, "value": number.value, "low": number.low, "high": number.high}
        for name, number in ((name, numbers[name]) for name in _NAMES if name in numbers)
    ]


def _means(summary: MethodSummary, datasets: int) -> list[dict[str, Any]]:
    """Means over datasets, of a method that all of them have, where there are enough for an interval."""
    if len(summary.by_dataset) < datasets:
        return []
    marks = pd.DataFrame([row for name, method in summary.by_dataset.items() for row in _marks(method, name)])
    rows = []
    for name, of_datasets in marks.groupby("quantity", sort=False):
        mean = mean_over_datasets(of_datasets["value"].to_list())
        if len(of_datasets) == datasets and mean.low is not None:
            place = {"dataset": MEAN, "method": summary.name, "seeds": 0}
            rows.append({**place, "quantity": name, "value": mean.value, "low": mean.low, "high": mean.high})
    return rows


def _all_numbers(summary: MethodSummary) -> pd.DataFrame:
    """All numbers of a method, drawn or not: by dataset, and their means."""
    rows: list[dict[str, Any]] = []
    for outcome in OUTCOMES:
        values: dict[str, list[float]] = {}
        common = {"method": summary.name, "outcome": outcome, "unit": UNITS[outcome][0]}
        for dataset, method in summary.by_dataset.items():
            place = {**common, "dataset": dataset, "seeds": len(method.facts.models)}
            for name, number in method.numbers(outcome).items():
                rows.append({**place, "quantity": name, **interval_columns(number)})
                values.setdefault(name, []).append(number.value)
        rows += [
            {**common, "dataset": MEAN, "quantity": name, **interval_columns(mean_over_datasets(of_datasets))}
            for name, of_datasets in values.items()
            if 1 < len(of_datasets) == len(summary.by_dataset)
        ]
    ends = ["value", "low", "high", "share", "share_low", "share_high"]
    return pd.DataFrame(rows, columns=["method", "quantity", "outcome", "unit", "dataset", "seeds", *ends])
