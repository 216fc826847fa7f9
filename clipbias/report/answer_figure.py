"""The one figure and the one table of a report's first page: gains in accuracy, and what carries them."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clipbias.explain.results import EFFECTS
from clipbias.report import style
from clipbias.report.answer import OUTCOME, MethodAnswer
from clipbias.report.captioned import CaptionedFigure, captioned
from clipbias.report.panels import panels, points
from clipbias.report.study_results import StudyResults, accuracy_and_error, counted, label_of
from clipbias.report.table import MISSING
from clipbias.report.verdict_figures import EFFECT_COLOURS
from clipbias.report.verdict_tables import change_text, share_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 8  # of the table, zero-shot's among them


COLUMNS = ("Model", "Accuracy (%)", "Gain (points)", "Attention", "Scale", "Values", "One vector", "Two vectors")


def answer_rows(study: StudyResults, methods: Sequence[MethodAnswer]) -> list[tuple[str, ...]]:
    """Rows of `COLUMNS`, zero-shot first; of too many methods those that gain most."""
    accuracy, error = accuracy_and_error(study.zero_shot)
    rows = [(label_of(study.zero_shot), f"{accuracy:.1f} ± {error:.1f}", *[MISSING] * 6)]
    for each in _shown(methods):
        gain = MISSING if each.gain is None else change_text(each.gain, OUTCOME)
        if each.starts_elsewhere:
            gain += f", own start {change_text(each.numbers['gain'], OUTCOME)}"
        rows.append(
            (
                f"{each.label} ({each.seeds} seeds)" if each.seeds > 1 else each.label,
                f"{each.accuracy:.1f} ± {each.error:.1f}",
                gain,
                *(share_text(each.numbers[name]) if each.has(name) else MISSING for name in _SHARES),
            )
        )
    return rows


def answer_note(study: StudyResults, methods: Sequence[MethodAnswer]) -> str:
    """What the numbers of `answer_rows` are."""
    said = [
        f"Accuracy over {counted(study.zero_shot['images'], 'image')} ± one standard error; gain over zero-shot. Then"
        " shares of the gain: what attention, scale and values carry, as in the figure, and what is kept if one or two"
        " vectors per layer, the same for every image, replace the method. A dash: not measured, or no sure gain."
    ]
    shown = _shown(methods)
    if any(each.starts_elsewhere for each in shown):
        said.append("“Own start”: the gain over the text that training started from, which the shares are of.")
    if len(shown) < len(methods):
        said.append(f"Not here: {counted(len(methods) - len(shown), 'method')} of smaller gain.")
    return " ".join(said)


_SHARES = (*EFFECTS, "vector", "kind")


def _shown(methods: Sequence[MethodAnswer]) -> list[MethodAnswer]:
    known = sorted(methods, key=lambda each: each.gain["value"] or 0.0 if each.gain else -np.inf)
    return [each for each in methods if each in known[-(MOST_ROWS - 1) :]]


_LOOKS: dict[str, dict[str, Any]] = {
    name: {"label": label, "color": colour, "marker": marker, "ms": 5, "elinewidth": 1.4, "capsize": 0}
    for name, label, colour, marker in (
        ("gain", "whole gain", style.BLACK, "D"),
        *((name, name, EFFECT_COLOURS[name], marker) for name, marker in zip(EFFECTS, "os^", strict=True)),
    )
}


def answer_figure(methods: Sequence[MethodAnswer]) -> CaptionedFigure | None:
    """Per method the gain in accuracy and what attention, scale and values carry of it; small enough for a phone."""
    numbers = pd.DataFrame(
        [
            {"method": each.label, "effect": name, "seeds": each.seeds}
            | {end: each.numbers[name][end] for end in ("value", "low", "high")}
            for each in methods
            for name in _LOOKS
            if name in each.numbers
        ]
    )
    if numbers.empty:
        return None
    lines = [textwrap.fill(label, 16) for label in dict.fromkeys(numbers["method"])]

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        points(axes, part, category="method", hue="effect", looks=_LOOKS)
        axes.set_yticks(range(len(lines)), lines)
        axes.axvline(0, color="#4B5563", linewidth=0.8)
        for line in range(1, len(lines)):
            axes.axhline(line - 0.5, color="#E5E7EB", linewidth=0.6)

    figure = panels(numbers, draw, by=("", ""), size=(3.9, 0.74 * len(lines) + 0.4), x_label="points of accuracy")
    return captioned("answer", figure, numbers)
