"""Loss, accuracy and learning rate of training runs, step by step, in one picture."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from clipbias.errors import ClipbiasError
from clipbias.io import user_path
from clipbias.report import looks, style
from clipbias.report.names import method_name
from clipbias.report.panels import Layout, Look, lines, panels
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
    curves = [_curve(folder, run.name, str(run.method))]
    curves.extend(
        _curve(inside, f"{run.name}: {inside.name}", inside.name.partition("-")[0])
        for inside in sorted(folder.glob("runs/*/"))
    )
    return [curve for curve in curves if curve is not None]


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
    few = len(curves) <= len(style.COLOURS)
    frames: list[pd.DataFrame] = []
    line_looks: dict[int, Look] = {}
    for number, curve in enumerate(curves):
        if few:
            colour = style.COLOURS[number]
            dashes = style.LINES[number % len(style.LINES)]
            label = curve.label
        else:
            colour, _, dashes = looks.method_look(curve.method)
            label = method_name(curve.method)
        line_looks[number] = {"color": colour, "linestyle": dashes, "label": label}
        for name, values in curve.values.items():
            frame = pd.DataFrame({"value": values.mean(1), "low": values.min(1), "high": values.max(1)})
            frames.append(frame.assign(step=curve.steps, curve=number, panel=PANELS[name]))

    def draw(axes: "Axes", part: pd.DataFrame) -> None:
        lines(axes, part, x="step", hue="curve", looks=line_looks)

    return panels(
        pd.concat(frames),
        draw,
        by=("", "panel"),
        layout=Layout(x_label="step", size=(2.9, 2.4), share_x=False, share_y=False),
    )


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
