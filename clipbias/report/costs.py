"""What methods cost beside what they reach: a table, and accuracy against parameters and training time."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure
from clipbias.report.errors import Answers
from clipbias.report.frames import ACCURACY, Sweep, cell_frame, run_frame
from clipbias.report.looks import STANDS_OUT
from clipbias.report.names import base_name, method_kind, method_name
from clipbias.report.published import dataset_name
from clipbias.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# In the order in which they are shown, with a colour and a marker.
KINDS = {
    "training-free": ("Training-free", style.BLACK, "o"),
    "head": ("Heads", style.BLUE, "s"),
    "prompts": ("Prompts", style.GREEN, "^"),
    "weights": ("Weights", style.RED, "D"),
    "test-time": ("Test-time", style.PURPLE, "P"),
    None: ("Others", style.GREY, "X"),
}
PARAMETERS, TRAINING = "parameters", "training_seconds"
_TIMES = (
    "Training counts the features that are made of training images and all steps, without compiling. Runs that were"
    " trained side by side have equal shares. Times are of the machine that ran this."
)


def cost_frames(sweep: Sweep) -> dict[int, pd.DataFrame]:
    """By shots: kind, mean accuracy over datasets with its error, parameters and training seconds of each method.

    Methods come in the order of kinds; those whose costs were not measured are left out.
    """
    runs = run_frame(
        sweep.rows, lambda row: {name: row[name] for name in (PARAMETERS, TRAINING) if row.get(name) is not None}
    )
    last, order = sweep.columns[-1], [title for title, _, _ in KINDS.values()]
    costs = cell_frame(runs, sweep.shots, sweep.datasets, Answers(None))["mean"].to_dict()

    def line(method: str, shots: int) -> list[Any]:
        found = sweep.lines.get((sweep.measure, method, last, shots), {})
        own = [costs.get((name, method, last, shots), math.nan) for name in (PARAMETERS, TRAINING)]
        return [KINDS[method_kind(method)][0], found.get("mean", math.nan), found.get("error", math.nan), *own]

    columns = ["kind", "accuracy", "error", PARAMETERS, TRAINING]
    made = {
        shots: pd.DataFrame([line(name, shots) for name in sweep.methods], index=[*sweep.methods], columns=columns)
        .dropna(subset=["accuracy", PARAMETERS, TRAINING])
        .sort_values("kind", key=lambda kinds: kinds.map(order.index), kind="stable")
        for shots in sweep.shots
    }
    return {shots: frame for shots, frame in made.items() if len(frame)}


def cost_tables(sweep: Sweep) -> tuple[Table, ...]:
    """Accuracy and cost of each method, grouped by kind, a table for each number of shots; none without costs."""
    return tuple(_table(sweep, frame, shots) for shots, frame in cost_frames(sweep).items())


def _table(sweep: Sweep, frame: pd.DataFrame, shots: int) -> Table:
    def accuracy(line: pd.Series) -> str:
        return f"{line['accuracy']:.1f}" + (f" ± {line['error']:.1f}" if not math.isnan(line["error"]) else "")

    shown = pd.DataFrame(
        {
            "Kind": frame["kind"],
            "Accuracy": [accuracy(line) for _, line in frame.iterrows()],
            "Parameters": frame[PARAMETERS].map("{:,.0f}".format),
            "Training": frame[TRAINING].map(duration_words),
        }
    ).set_axis([*map(method_name, frame.index)])
    over = "mean over datasets, " if len(sweep.datasets) > 1 else ""
    what = "accuracy" if sweep.measure == ACCURACY else f"accuracy ({sweep.measure})"
    caption = f"Top-1 {what} in percent ± one standard error, {over}with learned parameters and training time."
    title = f"Accuracy and cost, {shots} shot{'s' * (shots != 1)}" if shots else "Accuracy and cost"
    return Table.of(shown, title, caption, words={1}, note=_TIMES)


def cost_figures(sweep: Sweep) -> tuple[CaptionedFigure, ...]:
    """Accuracy against learned parameters, and against training time, with most shots; none without costs."""
    shots = sweep.shots[-1]
    frame = cost_frames(sweep).get(shots, pd.DataFrame())
    if len(frame) < 2:
        return ()
    over = ", ".join(map(dataset_name, sweep.datasets))
    about = f"Top-1 {sweep.measure} in percent with {shots} shots, mean over {over}, of each method. "
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
    with style.styled():
        figure = style.new_figure(7.6, 5.2)
        axes = figure.subplots()
        _scatter(axes, rows)
        axes.set_xlabel(f"{words} (s)" if cost == TRAINING else words)
        axes.set_ylabel("accuracy (%)" if sweep.measure == ACCURACY else f"{sweep.measure} (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(KINDS))
        figure.draw_without_rendering()
        _name_points(axes, rows)
    columns = ("method", "label", "kind", cost, sweep.measure, "standard error")
    return CaptionedFigure(name, f"Accuracy against {words}", caption, figure, columns, tuple(rows))


def _scatter(axes: "Axes", rows: Sequence[tuple[Any, ...]]) -> None:
    """Points by kind on a logarithmic axis; those at 0 stand by themselves at its left, behind a break."""
    paid = [row[3] for row in rows if row[3] > 0]
    low, high = (min(paid), max(paid)) if paid else (1.0, 10.0)
    zero = low * 0.35
    for title, colour, marker in KINDS.values():
        own = [row for row in rows if row[2] == title]
        if own:
            xs = [row[3] or zero for row in own]
            axes.plot(xs, [row[4] for row in own], marker, color=colour, label=title, ms=5, mec="white", mew=0.5)
    free = len(paid) < len(rows)
    axes.set_xlim(zero * 0.6 if free else low * 0.7, high * 4.0)
    style.log_scale(axes, "x")
    if free:
        below: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center"}
        axes.axvline(low * 0.6, color=style.GREY, linewidth=0.8, linestyle=":")
        axes.annotate("0", (zero, 0), (0, -9), **below)


def _name_points(axes: "Axes", rows: Sequence[tuple[Any, ...]]) -> None:
    """Writes each point's name where it covers the least of what is there: points, and names before it."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    scale, size = figure.dpi / 72, 6.5
    zero = axes.get_xlim()[0] / 0.6
    points = [tuple(axes.transData.transform((row[3] or zero, row[4]))) for row in rows]
    taken = [(x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale) for x, y in points]
    by_title = {title: colour for title, colour, _ in KINDS.values()}
    height = size * 1.15 * scale
    for row, (x, y) in sorted(zip(rows, points, strict=True), key=lambda one: one[1]):
        width = 0.62 * size * scale * len(row[1])
        places = []
        for reach in (5, 9, 15, 22, 30):
            gap = reach * scale
            for left, bottom in (
                (x + gap, y - height / 2),
                (x + 0.7 * gap, y + 0.7 * gap),
                (x + 0.7 * gap, y - 0.7 * gap - height),
                (x - gap - width, y - height / 2),
                (x - width / 2, y + gap),
                (x - width / 2, y - gap - height),
            ):
                box = (left, bottom, left + width, bottom + height)
                inside = axes.bbox.x0 <= box[0] and box[2] <= axes.bbox.x1 and axes.bbox.y0 <= box[1]
                places.append((sum(_common(box, other) for other in taken) + (not inside) * 1e6, reach, box))
        _, reach, box = min(places)
        taken.append(box)
        axes.annotate(
            row[1],
            xy=(row[3] or zero, row[4]),
            xytext=((box[0] - x) / scale, (box[1] + 0.2 * height - y) / scale),  # whatever resolution it is drawn at
            textcoords="offset points",
            color=by_title[row[2]],
            fontsize=size,
            fontweight="bold" if base_name(row[0]) == STANDS_OUT else "normal",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": style.GREY, "lw": 0.4, "shrinkA": 0, "shrinkB": 3}
            if reach > 9
            else None,
        )


def _common(one: Sequence[float], other: Sequence[float]) -> float:
    """The area that two boxes share."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)


def duration_words(seconds: float) -> str:
    """Two digits and a unit: `0 s`, `3.1 ms`, `12 s`, `4.5 min`."""
    units = {"h": 3600, "min": 60, "s": 1, "ms": 1e-3, "µs": 1e-6}
    unit = next((name for name, length in units.items() if seconds >= length), "s" if seconds == 0 else "µs")
    value = seconds / units[unit]
    return f"{value:.1f} {unit}" if 0 < value < 10 else f"{value:.0f} {unit}"
