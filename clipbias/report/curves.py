"""Loss, accuracy and learning rate of training runs, step by step, in one picture."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.files import atomic_path
from clipbias.report import style
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
COLOURS = (style.BLUE, style.RED, style.GREEN, style.ORANGE, style.PURPLE, style.SKY, style.GREY, style.BLACK)
DASHES = ("-", (0, (4, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)))


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
    """The training curves in a run's folder: its own, and those below `runs/` of a grid. Empty where it has none."""
    folder = Path(run.name).expanduser()
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
    few = len(curves) <= len(COLOURS)
    with style.styled():
        figure = style.new_figure(2.9 * len(panels) + 0.3, 2.6 + 0.16 * (len(curves) if few else len(methods) / 4 + 1))
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, name in zip(row, panels, strict=True):
            axes.set(xlabel="step", title=PANELS[name])
            for number, curve in enumerate(curves):
                if name in curve.values:
                    look = (COLOURS[number], DASHES[number % len(DASHES)]) if few else _look(curve.method, methods)
                    _draw(axes, curve, 100 * curve.values[name] if name == "accuracy" else curve.values[name], *look)
        handles = {
            (curve.label if few else method_name(curve.method)): line
            for curve, line in zip([c for c in curves if panels[0] in c.values], row[0].get_lines(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=1 if few else 4)
    return figure


def _draw(axes: "Axes", curve: Curve, values: np.ndarray, colour: str, dashes: object) -> None:
    axes.plot(curve.steps, values.mean(1), color=colour, linestyle=dashes, linewidth=1.1)
    if values.shape[1] > 1:
        axes.fill_between(curve.steps, values.min(1), values.max(1), color=colour, alpha=0.15, linewidth=0)


def _look(method: str, methods: Sequence[str]) -> tuple[str, object]:
    colour, _, dashes = style.METHOD_LOOK.get(method, style.OTHER_LOOK)
    return colour, dashes


def save_curves(curves: Sequence[Curve], path: Path) -> Path:
    """Draws the curves to a PNG file, atomically. Raises `ClipbiasError` where there are none, or it cannot."""
    if not curves:
        raise ClipbiasError("none of the runs has a training curve to draw; leave --output out.")
    if path.suffix != ".png":
        raise ClipbiasError(
            f"the curves are drawn as PNG; give --output a name that ends with .png, not {path.name!r}."
        )
    picture = style.png_bytes(curves_figure(curves))
    with atomic_path(path) as temporary:
        temporary.write_bytes(picture)
    return path
