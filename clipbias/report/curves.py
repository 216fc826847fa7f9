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
from clipbias.report.captioned import file_name
from clipbias.report.names import method_name
from clipbias.report.panels import Layout, Look, lines, panels
from clipbias.report.published import dataset_name
from clipbias.report.run_tables import in_words
from clipbias.report.runs import RunRecord, is_number, metric_lines
from clipbias.sentences import counted

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
    """One run's metrics, or those of a sweep's runs that were trained side by side.

    Attributes:
      facts: what it is, by name; labels are made of those that differ.
      method: of the run.
      steps: `[S]`.
      values: by name of `PANELS`, `[S, R]` for `R` runs.
    """

    facts: Mapping[str, str]
    method: str
    steps: np.ndarray
    values: Mapping[str, np.ndarray]

    @property
    def runs(self) -> int:
        return next(iter(self.values.values())).shape[1]


def read_curves(run: RunRecord) -> list[Curve]:
    """The training curves in a run's folder: its own, and those of a sweep. Empty where it has none."""
    folder = user_path(run.name)
    curves = [_curve(folder, _facts(run), str(run.method))]
    for inside in sorted(folder.glob("runs/*/")):
        # METHOD-DATASET-16shots-HASH
        name, shots, _ = f"--{inside.name}".rsplit("-", 2)
        method, _, dataset = name.removeprefix("--").partition("-")
        facts = {"method": method_name(method), "dataset": _dataset(run, dataset), "shots": shots, "folder": run.name}
        curves.append(_curve(inside, facts, method))
    return [curve for curve in curves if curve is not None]


def _facts(run: RunRecord) -> dict[str, str]:
    """What a run was asked for, in words."""
    return {
        "method": method_name(str(run.method)),
        "dataset": dataset_name(str(run.dataset)),
        "shots": f"{in_words(run.shots, 'values')}shots",
        "rate": f"rate {in_words(run.learning_rate, 'values', '{:g}')}",
        "seed": f"seed {in_words(run.seed, 'seeds')}",
        "folder": run.name,
    }


def _dataset(run: RunRecord, name: str) -> str:
    """The dataset of a sweep that the name in a file stands for."""
    datasets = run.dataset if isinstance(run.dataset, list) else [run.dataset]
    return next((dataset_name(str(each)) for each in datasets if file_name(str(each)) == name), name)


def curve_labels(curves: Sequence[Curve]) -> list[str]:
    """A label for each curve: what differs between them; where that is the same, how many runs, or a number."""
    names = [name for name in curves[0].facts if all(name in curve.facts for curve in curves)]
    differing = [name for name in names if len({curve.facts[name] for curve in curves}) > 1]
    named = [name for name in differing if name != "folder"] or differing or ["method"]
    labels = [", ".join(curve.facts[name] for name in named) for curve in curves]
    for more in (
        [curve.facts["folder"] for curve in curves],
        [counted(curve.runs, "run") for curve in curves],
        [f"number {number}" for number in range(1, len(curves) + 1)],
    ):
        if len(set(more)) > 1:
            labels = [
                f"{label}, {text}" if labels.count(label) > 1 and label != text else label
                for label, text in zip(labels, more, strict=True)
            ]
    return labels


def _curve(folder: Path, facts: Mapping[str, str], method: str) -> Curve | None:
    lines = [line for line in metric_lines(folder) if "loss" in line and is_number(line.get("step"))]
    if not lines:
        return None
    names = [name for name in PANELS if all(name in line for line in lines)]
    try:
        values = {name: np.array([np.atleast_1d(line[name]) for line in lines], float) for name in names}
    except (TypeError, ValueError) as error:
        raise ClipbiasError(f"{folder / 'metrics.jsonl'} is damaged: {error}.") from error
    return Curve(facts, method, np.array([line["step"] for line in lines]), values)


def curves_figure(curves: Sequence[Curve]) -> "Figure":
    """A panel per quantity; of several seeds the mean, and a band from the smallest to the largest.

    Up to eight curves have a colour and a name each; more are coloured by method.
    """
    few = len(curves) <= len(style.COLOURS)
    frames: list[pd.DataFrame] = []
    line_looks: dict[int, Look] = {}
    labels = curve_labels(curves)
    for number, curve in enumerate(curves):
        if few:
            colour = style.COLOURS[number]
            dashes = style.LINES[number % len(style.LINES)]
            label = labels[number]
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
        raise ClipbiasError("none of the runs has a training curve to draw; leave --config.output out.")
    if path.suffix != ".png":
        raise ClipbiasError(
            f"the curves are drawn as PNG; give --config.output a name that ends with .png, not {path.name!r}."
        )
    style.save_png(curves_figure(curves), path)
    return path
