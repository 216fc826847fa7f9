"""The one figure and the one table of a report's first page: gains in accuracy, and what carries them."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipbias.explain.results import EFFECTS
from clipbias.explain.uncertainty import LEVEL
from clipbias.report import style
from clipbias.report.answer import OUTCOME, MethodAnswer
from clipbias.report.captioned import CaptionedFigure
from clipbias.report.study_results import StudyResults, accuracy_and_error, counted, label_of
from clipbias.report.table import MISSING
from clipbias.report.verdict_figures import EFFECT_COLOURS, change_text, share_text

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


_LOOKS: dict[str, tuple[str, str, str]] = {
    "gain": ("the whole gain", style.BLACK, "D"),
    "attention": ("attention", EFFECT_COLOURS["attention"], "o"),
    "scale": ("scale", EFFECT_COLOURS["scale"], "s"),
    "values": ("values", EFFECT_COLOURS["values"], "^"),
}


def answer_figure(methods: Sequence[MethodAnswer]) -> CaptionedFigure | None:
    """Per method the gain in accuracy and what attention, scale and values carry of it; small enough for a phone."""
    shown = [each for each in methods if "gain" in each.numbers]
    if not shown:
        return None
    rows: list[tuple[Any, ...]] = []
    with style.styled():
        figure = style.new_figure(4.4, 0.74 * len(shown) + 0.95)
        axes = figure.subplots()
        for line, each in enumerate(shown):
            names = [name for name in _LOOKS if name in each.numbers]
            for place, name in enumerate(names):
                label, colour, marker = _LOOKS[name]
                value, low, high = (float(each.numbers[name][end] or 0.0) for end in ("value", "low", "high"))
                y = line + (place - (len(names) - 1) / 2) * 0.2
                look: dict[str, Any] = {"fmt": marker, "color": colour, "ms": 5, "elinewidth": 1.4}
                axes.errorbar(value, y, xerr=[[value - low], [high - value]], label=label, **look)
                rows.append((each.label, name, each.seeds, value, low, high))
            if line:
                axes.axhline(line - 0.5, color="#E5E7EB", linewidth=0.6)
        axes.axvline(0, color="#4B5563", linewidth=0.8)
        axes.set_yticks(range(len(shown)), [textwrap.fill(each.label, 16) for each in shown], fontsize=9)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("points of accuracy", fontsize=9)
        labelled = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        handles = {label: labelled[label] for label, _, _ in _LOOKS.values() if label in labelled}
        look = {"ncols": len(handles), "fontsize": 9, "handletextpad": 0.2, "columnspacing": 1.0}
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", **look)
    caption = (
        "Three effects add up to the whole gain. Attention: which tokens attend to which. Scale: the attention that"
        f" prompts take away from all others. Values: what is added to tokens. Lines: {100 * LEVEL:.0f} % intervals."
    )
    columns = ("method", "effect", "seeds", "value", "low", "high")
    return CaptionedFigure("answer", "What carries the gain in accuracy", caption, figure, columns, tuple(rows))
