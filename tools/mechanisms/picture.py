"""The confusion matrices of all explainers as a picture."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from clipbias.report import style
from tools.mechanisms.score import AXES, confusion, rates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4


def draw(answers: pd.DataFrame) -> "Figure":
    """Matrices of one axis after the other: true labels down, answers across, coloured by shares of the true label.

    Args:
      answers: see `score`.
    """
    numbers = rates(answers).set_index(["axis", "explainer"])
    rows: list[list[str]] = []
    for axis in AXES:
        explainers = [explainer for of_axis, explainer in numbers.index if of_axis == axis]
        rows += [[axis, *explainers[start : start + COLUMNS]] for start in range(0, len(explainers), COLUMNS)]
    with style.styled():
        figure = style.new_figure(2.4 * COLUMNS, 2.7 * len(rows))
        for number, (axis, *explainers) in enumerate(rows):
            for column, explainer in enumerate(explainers, start=1):
                panel = figure.add_subplot(len(rows), COLUMNS, number * COLUMNS + column)
                rate = numbers.loc[(axis, explainer)]
                title = f"{explainer}\n{rate['right']:.0f} % right, {rate['wrong']:.0f} % wrong"
                _draw_matrix(panel, confusion(answers, explainer, axis), title)
                if column == 1:
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
