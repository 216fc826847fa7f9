"""The first page's figure and table, and the same figure over datasets: what carries the gain, what is kept."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clipbias.explain.effects import KEPT, LOST, OUTCOMES, UNITS
from clipbias.explain.results import EFFECTS
from clipbias.explain.rungs import PLAIN
from clipbias.explain.uncertainty import mean_over_datasets
from clipbias.report import style
from clipbias.report.answer import OUTCOME
from clipbias.report.captioned import CaptionedFigure, captioned
from clipbias.report.methods import MethodResults, MethodSummary
from clipbias.report.names import ordered_methods
from clipbias.report.panels import panels, points
from clipbias.report.published import dataset_name
from clipbias.report.study_results import StudyResults, accuracy_and_error, counted, label_of
from clipbias.report.table import MISSING
from clipbias.report.verdict_figures import EFFECT_COLOURS
from clipbias.report.verdict_tables import change_text, share_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 8  # of the table, zero-shot's among them
COLUMNS = (
    "Model",
    "Accuracy (%)",
    "Gain (points)",
    "Attention",
    "Scale",
    "Values",
    "Kept by two vectors",
    "Lost without",
)
MEAN = "mean"
_LOOKS: dict[str, dict[str, Any]] = {
    name: {"label": label, "color": colour, "marker": marker, "ms": 5, "elinewidth": 1.4, "capsize": 0}
    for name, label, colour, marker in (
        ("gain", "whole gain", style.BLACK, "D"),
        *((name, name, EFFECT_COLOURS[name], marker) for name, marker in zip(EFFECTS, "os^", strict=True)),
        (KEPT, "kept by two vectors", style.PURPLE, "o"),
        (LOST, "lost without them", style.RED, "v"),
    )
}


def answer_rows(study: StudyResults, methods: Sequence[MethodResults]) -> list[tuple[str, ...]]:
    """Rows of `COLUMNS`, zero-shot first; of too many methods those that gain most."""
    accuracy, error = accuracy_and_error(study.zero_shot)
    rows = [(label_of(study.zero_shot), f"{accuracy:.1f} ± {error:.1f}", *[MISSING] * 6)]
    for each in _shown(methods):
        effects = each.effects(OUTCOME).get("effects", {})
        rows.append(
            (
                each.label,
                f"{each.accuracy:.1f} ± {each.error:.1f}",
                MISSING if each.gain is None else change_text(each.gain, OUTCOME),
                *(change_text(effects[name], OUTCOME) if name in effects else MISSING for name in EFFECTS),
                *(share_text(each.share(OUTCOME, kind)) for kind in (KEPT, LOST)),
            )
        )
    return rows


def answer_note(study: StudyResults, methods: Sequence[MethodResults]) -> str:
    """What the numbers of `answer_rows` are."""
    said = [
        f"Accuracy over {counted(study.zero_shot['images'], 'image')} ± one standard error. The three effects add up to"
        " the gain. Kept and lost: shares of the gain in accuracy. A dash: not measured, no sure gain, or a"
        " method that learns such vectors."
    ]
    shown = _shown(methods)
    starts = [f"{each.name} {each.start:.1f} %" for each in shown if each.start is not None]
    if starts:
        said.append(f"Gains are over the text that training starts from; its accuracy: {', '.join(starts)}.")
    if len(shown) < len(methods):
        said.append(f"Not here: {counted(len(methods) - len(shown), 'method')} of smaller gain.")
    return " ".join(said)


def _shown(methods: Sequence[MethodResults]) -> list[MethodResults]:
    known = sorted(methods, key=lambda each: each.gain["value"] or 0.0 if each.gain else -np.inf)
    return [each for each in methods if each in known[-(MOST_ROWS - 1) :]]


def answer_figure(study: StudyResults, methods: Sequence[MethodResults]) -> CaptionedFigure | None:
    """Per method what carries the gain in accuracy, and what of it two vectors keep and take away."""
    numbers = pd.DataFrame([row for each in methods for row in _marks(each, study.dataset)])
    if numbers.empty:
        return None
    return captioned("answer", _draw(numbers, {study.dataset: dataset_name(study.dataset)}, size=4.6), numbers)


def overview_figure(summaries: Sequence[MethodSummary], left_out: Sequence[str] = ()) -> CaptionedFigure | None:
    """The same of every dataset, side by side; from five datasets on, their mean.

    Args:
      summaries: of methods.
      left_out: which methods are not in it, and why; for the caption.
    """
    ordered = sorted(summaries, key=lambda each: ordered_methods(s.method for s in summaries).index(each.method))
    rows = [row for each in ordered for dataset, own in each.by_dataset.items() for row in _marks(own, dataset)]
    datasets = list(dict.fromkeys(dataset for each in summaries for dataset in each.by_dataset))
    rows += [row for each in ordered for row in _means(each, len(datasets))]
    if not rows:
        return None
    drawn = pd.DataFrame(rows)
    # Panels are laid out as their names come.
    order = {name: number for number, name in enumerate([*datasets, MEAN])}
    drawn = drawn.sort_values("dataset", key=lambda column: column.map(order), kind="stable")
    figure = _draw(drawn, {dataset: dataset_name(dataset) for dataset in datasets} | {MEAN: "Mean"}, size=2.1)
    numbers = pd.concat([_all_numbers(each) for each in ordered], ignore_index=True)
    return captioned(
        "verdict_overview",
        figure,
        numbers,
        datasets=", ".join(map(dataset_name, datasets)),
        left_out=" ".join(["Not in it:", *left_out] if left_out else []),
    )


def _draw(numbers: pd.DataFrame, names: Mapping[Any, str], size: float) -> Any:
    """A panel for each dataset and a line for each method, with a mark and an interval for each number."""
    methods = list(dict.fromkeys(numbers["method"]))
    lines = [textwrap.fill(label, 16) for label in methods]

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        points(axes, part, category="method", hue="quantity", looks=_LOOKS, places=methods, step=0.14)
        axes.set_yticks(range(len(lines)), lines)
        axes.axvline(0, color="#4B5563", linewidth=0.8)
        for line in range(1, len(lines)):
            axes.axhline(line - 0.5, color="#E5E7EB", linewidth=0.6)

    return panels(
        numbers,
        draw,
        by=("", "dataset"),
        names=names,
        size=(size, 0.56 * len(lines) + 0.4),
        x_label="points of accuracy",
        share_y=True,
        wrap=4,
    )


def _marks(method: MethodResults, dataset: str) -> list[dict[str, Any]]:
    """What is drawn of a method, all in points of accuracy."""
    own, replaced = method.effects(OUTCOME), method.replaced(OUTCOME)
    found = {"gain": own["gain"], **own["effects"]} if own else {}
    found |= {kind: replaced[kind][PLAIN] for kind in (KEPT, LOST) if PLAIN in replaced.get(kind, {})}
    place = {"dataset": dataset, "method": method.name, "seeds": len(method.keys)}
    return [
        {**place, "quantity": name, **{end: number[end] for end in ("value", "low", "high")}}
        for name, number in found.items()
    ]


def _means(summary: MethodSummary, datasets: int) -> list[dict[str, Any]]:
    """Means over datasets, of a method that all of them have, where there are enough for an interval."""
    if len(summary.by_dataset) < datasets:
        return []
    marks = pd.DataFrame([row for name, own in summary.by_dataset.items() for row in _marks(own, name)])
    found = []
    for name, own in marks.groupby("quantity", sort=False):
        mean = mean_over_datasets(own["value"].to_list())
        if len(own) == datasets and mean["low"] is not None:
            place = {"dataset": MEAN, "method": summary.name, "seeds": 0}
            found.append({**place, "quantity": name, **mean})
    return found


def _all_numbers(summary: MethodSummary) -> pd.DataFrame:
    """All numbers of a method, drawn or not: by dataset, and their means."""
    rows: list[dict[str, Any]] = []
    for outcome in OUTCOMES:
        by_name: dict[str, list[float]] = {}
        for dataset, own in summary.by_dataset.items():
            for name, number in own.numbers(outcome).items():
                place = {"method": summary.name, "quantity": name, "outcome": outcome, "unit": UNITS[outcome][0]}
                rows.append({**place, "dataset": dataset, "seeds": len(own.keys), **number})
                by_name.setdefault(name, []).append(float(number["value"] or 0.0))
        rows += [
            {"method": summary.name, "quantity": name, "outcome": outcome, "unit": UNITS[outcome][0], "dataset": MEAN}
            | mean_over_datasets(values)
            for name, values in by_name.items()
            if 1 < len(values) == len(summary.by_dataset)
        ]
    ends = ["value", "low", "high", "share", "share_low", "share_high"]
    return pd.DataFrame(rows, columns=["method", "quantity", "outcome", "unit", "dataset", "seeds", *ends])
