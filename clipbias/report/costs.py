"""What methods cost beside what they reach: a table, and accuracy against parameters and training time."""

import math

import pandas as pd

from clipbias.report.accuracy_tables import shots_words
from clipbias.report.captions import CaptionedFigure
from clipbias.report.errors import Answers
from clipbias.report.frames import ACCURACY, Sweep, cell_frame, cell_lines, run_frame
from clipbias.report.names import dataset_name, method_kind, method_name
from clipbias.report.scatter import cost_scatter
from clipbias.report.style import KINDS
from clipbias.report.table import Table

PARAMETERS = "parameters"
TRAINING = "training_seconds"
_TIMES = (
    "Training counts the features that are made of training images and all steps, without compiling. Runs that were"
    " trained side by side have equal shares. Times are of the machine that ran this."
)


def cost_frames(sweep: Sweep) -> dict[int | None, pd.DataFrame]:
    """By shots: kind, mean accuracy over datasets with its error, parameters and training seconds of each method.

    Methods come in the order of kinds; those whose costs were not measured are left out.
    """
    runs = run_frame(
        sweep.rows, lambda row: {name: row[name] for name in (PARAMETERS, TRAINING) if row.get(name) is not None}
    )
    last = sweep.columns[-1]
    order = [title for title, _, _ in KINDS.values()]
    costs = cell_lines(cell_frame(runs, sweep.shots, sweep.datasets, Answers(None)))

    def line(method: str, shots: int | None) -> list[str | float]:
        accuracy = sweep.lines.get((sweep.measure, method, last, shots), {})
        parameters = costs.get((PARAMETERS, method, last, shots), {}).get("mean", math.nan)
        seconds = costs.get((TRAINING, method, last, shots), {}).get("mean", math.nan)
        kind = KINDS[method_kind(method)][0]
        return [kind, accuracy.get("mean", math.nan), accuracy.get("error", math.nan), parameters, seconds]

    columns = ["kind", "accuracy", "error", PARAMETERS, TRAINING]
    made = {
        shots: pd.DataFrame([line(name, shots) for name in sweep.methods], index=list(sweep.methods), columns=columns)
        .dropna(subset=["accuracy", PARAMETERS, TRAINING])
        .sort_values("kind", key=lambda kinds: kinds.map(order.index), kind="stable")
        for shots in sweep.shots
    }
    return {shots: frame for shots, frame in made.items() if len(frame)}


def cost_tables(sweep: Sweep) -> tuple[Table, ...]:
    """Accuracy and cost of each method, grouped by kind, a table for each number of shots; none without costs."""
    return tuple(_table(sweep, frame, shots) for shots, frame in cost_frames(sweep).items())


def _table(sweep: Sweep, frame: pd.DataFrame, shots: int | None) -> Table:
    def accuracy(line: pd.Series) -> str:
        return f"{line['accuracy']:.1f}" + (f" ± {line['error']:.1f}" if not math.isnan(line["error"]) else "")

    shown = pd.DataFrame(
        {
            "Kind": frame["kind"],
            "Accuracy": [accuracy(line) for _, line in frame.iterrows()],
            "Parameters": frame[PARAMETERS].map("{:,.0f}".format),
            "Training": frame[TRAINING].map(duration_words),
        }
    ).set_axis(list(map(method_name, frame.index)))
    over = "mean over datasets, " if len(sweep.datasets) > 1 else ""
    what = "accuracy" if sweep.measure == ACCURACY else f"accuracy ({sweep.measure})"
    caption = f"Top-1 {what} in percent ± one standard error, {over}with learned parameters and training time."
    title = f"Accuracy and cost, {shots_words(shots)}" if shots else "Accuracy and cost"
    return Table.of(shown, title, caption, words={1}, note=_TIMES)


def cost_figures(sweep: Sweep) -> tuple[CaptionedFigure, ...]:
    """Accuracy against learned parameters, and against training time, with most shots; none without costs."""
    shots = sweep.shots[-1]
    frame = cost_frames(sweep).get(shots, pd.DataFrame())
    if len(frame) < 2:
        return ()
    over = ", ".join(map(dataset_name, sweep.datasets))
    trained = shots_words(shots)
    about = f"Top-1 {sweep.measure} in percent with {trained}, mean over {over}, of each method. "
    free = " What is at the left of the break costs nothing."
    by_parameters = f"{about}Parameters are the mean over datasets of what a run learns.{free}"
    return (
        _figure(sweep, frame, PARAMETERS, "accuracy_by_parameters", "learned parameters", by_parameters),
        _figure(sweep, frame, TRAINING, "accuracy_by_time", "training time", f"{about}{_TIMES}{free}"),
    )


def _figure(sweep: Sweep, frame: pd.DataFrame, cost: str, name: str, words: str, caption: str) -> CaptionedFigure:
    rows = [
        (method, method_name(str(method)), line["kind"], line[cost], line["accuracy"], line["error"])
        for method, line in frame.iterrows()
    ]
    shown = pd.DataFrame(rows, columns=["method", "label", "kind", cost, sweep.measure, "standard error"])
    x_label = f"{words} (s)" if cost == TRAINING else words
    y_label = "accuracy (%)" if sweep.measure == ACCURACY else f"{sweep.measure} (%)"
    figure = cost_scatter(shown, x=cost, y=sweep.measure, x_label=x_label, y_label=y_label)
    return CaptionedFigure(name, f"Accuracy against {words}", caption, figure, shown)


def duration_words(seconds: float) -> str:
    """Two digits and a unit: `0 s`, `3.1 ms`, `12 s`, `4.5 min`."""
    units = {"h": 3600, "min": 60, "s": 1, "ms": 1e-3, "µs": 1e-6}
    unit = next((name for name, length in units.items() if seconds >= length), "s" if seconds == 0 else "µs")
    value = seconds / units[unit]
    return f"{value:.1f} {unit}" if 0 < value < 10 else f"{value:.0f} {unit}"
