"""Loss, accuracy and learning rate of training runs, step by step, in one picture."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.io import user_path
from clipbias.report import looks, style
from clipbias.report.names import method_name, ordered_methods
from clipbias.report.runs import RunRecord, is_number, metric_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {
    "loss": "training loss",
    "accuracy": "training accuracy (%)",
    "learning_rate": "learning rate",
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """One run's metrics, or those of a grid's seeds trained side by side.

    Attributes:
      label: what it is.
      method: of the run.
      steps: `[S]`.
      values: by name of `PANELS`, `[S, R]` for `R` seeds.
    """

    label: str
    method: str
    steps: np.ndarray
    values: Mapping[str, np.ndarray]


def read_curves(run: RunRecord) -> list[Curve]:
    """The training curves in a run's folder: its own, and those of a sweep. Empty where it has none."""
    folder = user_path(run.name)
    found = [_curve(folder, run.name, str(run.method))]
    for inside in sorted(folder.glob("runs/*/")):
        found.append(_curve(inside, f"{run.name}: {inside.name}", inside.name.partition("-")[0]))
    return [curve for curve in found if curve is not None]


def _curve(folder: Path, label: str, method: str) -> Curve | None:
    lines = [line for line in metric_lines(folder) if "loss" in line and is_number(line.get("step"))]
    if not lines:
        return None
    names = [name for name in PANELS if all(name in line for line in lines)]
    try:
        values = {name: np.array([np.atleast_1d(line[name]) for line in lines], float) for name in names}
    except (TypeError, ValueError) as error:
        raise ClipbiasError(f"{folder / 'metrics.jsonl'} is damaged: {error}.") from error
    return Curve(label, method, np.array([line["step"] for line in lines]), values)


def curves_figure(curves: Sequence[Curve]) -> "Figure":
    """A panel per quantity; of several seeds the mean, and a band from the smallest to the largest.

    Up to eight curves have a colour and a name each; more are coloured by method.
    """
    panels = [name for name in PANELS if any(name in curve.values for curve in curves)]
    methods = ordered_methods(curve.method for curve in curves)
    few = len(curves) <= len(style.COLOURS)
    with style.styled():
        figure = style.new_figure(2.9 * len(panels) + 0.3, 2.6 + 0.16 * (len(curves) if few else len(methods) / 4 + 1))
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, name in zip(row, panels, strict=True):
            axes.set(xlabel="step", title=PANELS[name])
            for number, curve in enumerate(curves):
                look: tuple[str, str, Any]
                if few:
                    look = (curve.label, style.COLOURS[number], style.LINES[number % len(style.LINES)])
                else:
                    colour, _, dashes = looks.method_look(curve.method)
                    look = (method_name(curve.method), colour, dashes)
                if name in curve.values:
                    _draw(axes, curve.steps, curve.values[name] * (100 if name == "accuracy" else 1), *look)
        handles, labels = row[0].get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))  # one of each method
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=1 if few else 4)
    return figure


def _draw(axes: "Axes", steps: np.ndarray, values: np.ndarray, label: str, colour: str, dashes: Any) -> None:
    """`steps` [S], `values` [S, R]."""
    axes.plot(steps, values.mean(1), label=label, color=colour, linestyle=dashes, linewidth=1.1)
    if values.shape[1] > 1:
        axes.fill_between(steps, values.min(1), values.max(1), color=colour, alpha=0.15, linewidth=0)


def save_curves(curves: Sequence[Curve], path: Path) -> Path:
    """Draws the curves to a PNG file, atomically. Raises `ClipbiasError` where there are none, or it cannot."""
    if not curves:
        raise ClipbiasError("none of the runs has a training curve to draw; leave --output out.")
    if path.suffix != ".png":
        raise ClipbiasError(
            f"the curves are drawn as PNG; give --output a name that ends with .png, not {path.name!r}."
        )
    style.save_png(curves_figure(curves), path)
    return path
