"""The confusion matrices of all explainers as a picture, and the counts behind it."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clipbias.report import style
from tools.mechanisms.models import LABELS
from tools.mechanisms.rules import RULES, UNDECIDED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATES = ("right", "wrong")


def answering(scores: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Of `scores.json` each axis with each explainer that ever answers there, and its confusion matrix."""
    for axis in LABELS:
        for explainer in RULES:
            confusion = scores["confusion"][axis][explainer]
            if any(confusion["counts"][truth][label] for truth in LABELS[axis] for label in LABELS[axis]):
                yield axis, explainer, confusion


def counts(scores: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each axis, explainer that answers, true label and answer, with the number of models."""
    return pd.DataFrame(
        {"axis": axis, "explainer": explainer, "truth": truth, "answer": answer, "models": models}
        for axis, explainer, confusion in answering(scores)
        for truth, answers in confusion["counts"].items()
        for answer, models in answers.items()
    )


def rates(scores: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each axis and explainer that answers: how many percent of the models are right and wrong."""
    return pd.DataFrame(
        {"axis": axis, "explainer": explainer, "models": confusion["models"]}
        | {f"{name}{end}": x for name in RATES for end, x in zip(("", "_low", "_high"), confusion[name], strict=True)}
        for axis, explainer, confusion in answering(scores)
    )


def draw(scores: Mapping[str, Any]) -> "Figure":
    """A row of matrices for each axis: true labels down, answers across, coloured by their share of the true label."""
    confusions = {(axis, explainer): confusion for axis, explainer, confusion in answering(scores)}
    explainers = list(dict.fromkeys(explainer for _, explainer in confusions))
    with style.styled():
        figure = style.new_figure(2.1 * len(explainers), 2.5 * len(LABELS))
        panels = figure.subplots(len(LABELS), len(explainers), squeeze=False)
        for row, axis in zip(panels, LABELS, strict=True):
            for panel, explainer in zip(row, explainers, strict=True):
                if (axis, explainer) not in confusions:
                    panel.axis("off")
                    continue
                confusion = confusions[axis, explainer]
                right, wrong = (confusion[name][0] for name in RATES)
                matrix = pd.DataFrame(confusion["counts"]).T
                title = f"{explainer}\n{right:.0f} % right, {wrong:.0f} % wrong"
                _draw_matrix(panel, matrix.loc[list(LABELS[axis]), [*LABELS[axis], UNDECIDED]], title)
                if panel is row[0]:
                    panel.set_ylabel(f"{axis}: truth")
        return figure


def _draw_matrix(axes: "Axes", matrix: pd.DataFrame, title: str) -> None:
    values = matrix.to_numpy()
    shares = values / np.maximum(values.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (down, across), models in np.ndenumerate(values):
        colour = "white" if shares[down, across] > 0.6 else "black"
        axes.text(across, down, str(models), ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(values.shape[1]), list(matrix.columns), rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(values)), list(matrix.index), fontsize=7)
    axes.set_title(title, fontsize=7.5)
    axes.grid(visible=False)
