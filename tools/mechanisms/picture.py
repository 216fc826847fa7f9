"""The confusion matrices of all explainers as a picture, and the counts behind it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clipbias.data.counts import wilson_interval
from clipbias.report import style
from tools.mechanisms.models import LABELS
from tools.mechanisms.rules import RULES, UNDECIDED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG = "right", "wrong"


def counts(scores: Mapping[str, Any]) -> pd.DataFrame:
    """Of `scores.json` a row for each axis, explainer, true label and answer, with the number of models.

    Explainers that never answer on an axis are left out there.
    """
    rows = [
        {"axis": axis, "explainer": explainer, "truth": truth, "answer": answer, "models": models}
        for axis in LABELS
        for explainer in RULES
        for truth, answers in scores["confusion"][axis][explainer]["counts"].items()
        for answer, models in answers.items()
    ]
    table = pd.DataFrame(rows)
    decided = table[table["answer"] != UNDECIDED].groupby(["axis", "explainer"])["models"].transform("sum") > 0
    answering = table.loc[decided[decided].index, ["axis", "explainer"]].drop_duplicates()
    return table.merge(answering, on=["axis", "explainer"])


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each axis and explainer: how many models, and how many percent are right and wrong, with intervals."""
    rows = []
    for (axis, explainer), of_explainer in table.groupby(["axis", "explainer"], sort=False):
        models = int(of_explainer["models"].sum())
        row: dict[str, Any] = {"axis": axis, "explainer": explainer, "models": models}
        right = of_explainer["truth"] == of_explainer["answer"]
        for name, cells in ((RIGHT, right), (WRONG, ~right & (of_explainer["answer"] != UNDECIDED))):
            percent = 100 * of_explainer.loc[cells, "models"].sum() / models
            row |= dict(
                zip((name, f"{name}_low", f"{name}_high"), (percent, *wilson_interval(percent, models)), strict=True)
            )
        rows.append(row)
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> "Figure":
    """A row of matrices for each axis: true labels down, answers across, coloured by their share of the true label."""
    of_explainers = rates(table)
    explainers = list(dict.fromkeys(of_explainers["explainer"]))
    with style.styled():
        figure = style.new_figure(2.1 * len(explainers), 2.5 * len(LABELS))
        panels = figure.subplots(len(LABELS), len(explainers), squeeze=False)
        for row, axis in zip(panels, LABELS, strict=True):
            for panel, explainer in zip(row, explainers, strict=True):
                here = (of_explainers["axis"] == axis) & (of_explainers["explainer"] == explainer)
                if not here.any():
                    panel.axis("off")
                    continue
                cells = table[(table["axis"] == axis) & (table["explainer"] == explainer)]
                matrix = cells.pivot(index="truth", columns="answer", values="models")
                (rate,) = of_explainers[here].to_dict("records")
                title = f"{explainer}\n{rate[RIGHT]:.0f} % right, {rate[WRONG]:.0f} % wrong"
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
