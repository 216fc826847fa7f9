"""The confusion matrices of all explainers as a picture."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from clipbias.report import style
from tools.mechanisms.models import LABELS
from tools.mechanisms.rules import UNDECIDED
from tools.mechanisms.score import confusions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(answers: pd.DataFrame) -> "Figure":
    """A row of matrices for each axis: true labels down, answers across, coloured by their share of the true label.

    Args:
      answers: see `score`.
    """
    matrices = confusions(answers)
    explainers = list(dict.fromkeys(explainer for _, explainer in matrices))
    with style.styled():
        figure = style.new_figure(2.1 * len(explainers), 2.5 * len(LABELS))
        panels = figure.subplots(len(LABELS), len(explainers), squeeze=False)
        for row, axis in zip(panels, LABELS, strict=True):
            for panel, explainer in zip(row, explainers, strict=True):
                if (axis, explainer) not in matrices:
                    panel.axis("off")
                    continue
                confusion = matrices[axis, explainer]
                matrix = pd.DataFrame(confusion.counts).T
                title = f"{explainer}\n{confusion.right[0]:.0f} % right, {confusion.wrong[0]:.0f} % wrong"
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
