"""Figures of a sweep: accuracy against shots and costs, and each method's gain over zero-shot."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clipbias.constants import ZERO_SHOT
from clipbias.intervals import Z_95
from clipbias.report import style
from clipbias.report.frames import ACCURACY, AVERAGE, Row, Sweep, difference_error, read_sweep, shots_words
from clipbias.report.names import base_name, dataset_name, draws, method_kind, method_name
from clipbias.report.pages import CaptionedFigure, captioned
from clipbias.report.panels import category_ticks, lines, panels
from clipbias.report.style import KINDS, STANDS_OUT
from clipbias.report.table import Table
from clipbias.sentences import counted


def accuracy_figure(results: Sweep | Iterable[Row], *, measure: str | None = None) -> style.Figure:
    """Draws accuracy in percent against shots, a line per method, ± the standard error; zero-shot is a dashed level.

    `measure` is one of several accuracies. Default: the plain accuracy, else H, else the first.
    """
    sweep = results if isinstance(results, Sweep) else read_sweep(results)
    measure = measure or sweep.measure
    few = [shots for shots in sweep.shots if shots is not None]
    looks: dict[str, dict[str, Any]] = {}
    rows = []
    for position, method in enumerate(sweep.methods):
        colour, marker, line = style.method_look(method)
        looks[method] = {"label": method_name(method), "color": colour, "marker": marker, "linestyle": line}
        # White edges keep markers apart that overlap.
        looks[method] |= {"markeredgecolor": "white", "markeredgewidth": 0.5}
        if method == STANDS_OUT:  # at a single rate
            looks[method] |= {"linewidth": 2.0, "zorder": 4}
        # Methods are shifted a little from each other, so that error bars do not hide one another.
        aside = 1 + min(0.014, 0.17 / len(sweep.methods)) * (position - len(sweep.methods) / 2)
        for panel, shots in itertools.product(sweep.columns, sweep.shots):
            cell = sweep.cells.get((measure, method, panel, shots))
            if cell is not None and not math.isnan(cell["mean"]):
                ends = {"low": cell["mean"] - cell["error"], "high": cell["mean"] + cell["error"]}
                x = (1 if shots is None else shots) * aside
                rows.append({"panel": panel, "method": method, "x": x, "value": cell["mean"], **ends})
    if not rows:
        # A sweep that has just begun is drawn too, as an empty figure.
        return style.new_figure(4, 3)

    def draw(axes: style.Axes, part: pd.DataFrame) -> None:
        # A method that uses no training images has one accuracy for all shots: a level, unless runs differ.
        is_level = ~part["method"].map(draws) & (part.groupby("method")["value"].transform("nunique") == 1)
        for method, level in part[is_level].groupby("method", sort=False)["value"].first().items():
            look = {name: value for name, value in looks[str(method)].items() if not name.startswith("marker")}
            axes.axhline(level, **look)
        lines(axes, part[~is_level], x="x", hue="method", looks=looks)
        axes.set_xticks([])
        if few:
            axes.set_xscale("log", base=2)
            axes.set_xticks(few, [str(shots) for shots in few])
            axes.set_xlim(few[0] / 1.3, few[-1] * 1.3)
        axes.minorticks_off()
        axes.grid(axis="x", visible=False)

    across = min(4, len(sweep.columns))
    width = max(2.3, 5.0 / across)
    legend = 0.18 * math.ceil(2.2 * len(looks) / (width * across))  # inches, of which a name takes two
    return panels(
        pd.DataFrame(rows),
        draw,
        by=("", "panel"),
        size=(width, 2.3 + legend / math.ceil(len(sweep.columns) / across)),
        names={panel: dataset_name(panel) for panel in sweep.columns},
        x_label="shots per class",
        y_label="accuracy (%)" if measure == ACCURACY else f"{measure} (%)",
        share_y="none",
        wrap=4,
    )


def gain_frame(sweep: Sweep) -> pd.DataFrame:
    """Computes each method's gain in accuracy over zero-shot in points, with most shots, in the order of the figure.

    Columns: `method`, `label`, `kind`, `parameters`, `varies` (whether parameters differ by dataset), `value`, `low`
    and `high` (95 % over test images, compared in pairs, and seeds), and the gain on each dataset. Empty without
    zero-shot or without another method.
    """
    rows = []
    for method in sweep.methods:
        tuned, plain = (
            [sweep.cells.get((ACCURACY, name, dataset, sweep.shots[-1])) for dataset in sweep.datasets]
            for name in (method, ZERO_SHOT)
        )
        pairs = [(after, before) for after, before in zip(tuned, plain, strict=True) if after and before]
        gains = [after["mean"] - before["mean"] for after, before in pairs]
        # A mean over datasets needs all of them, and a method without training images has no gain by training.
        if method == ZERO_SHOT or not draws(method) or len(pairs) < len(tuned) or any(map(math.isnan, gains)):
            continue
        value = sum(gains) / len(gains)
        half = Z_95 * math.hypot(*(difference_error(*pair) for pair in pairs)) / len(pairs)  # independent datasets
        counts = [row["parameters"] for row in sweep.by_method[method] if row.get("parameters") is not None]
        rows.append(
            {
                "method": method,
                "label": method_name(method),
                "kind": KINDS[method_kind(method)][0],
                "parameters": round(sum(counts) / len(counts)) if counts else 0,
                "varies": len(set(counts)) > 1,
                "value": value,
                "low": value - half,
                "high": value + half,
                **dict(zip(sweep.datasets, gains, strict=True)),
            }
        )
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows)
    # Methods with the same number of parameters are neighbours, in the place of the best of them.
    best = frame.groupby("parameters")["value"].transform("max")
    places = sorted(frame.index, key=lambda i: (-best[i], frame["parameters"][i], -frame["value"][i]))
    return frame.loc[places].reset_index(drop=True)


def gain_figure(sweep: Sweep) -> CaptionedFigure | None:
    """Draws a row for each method; `None` without gains."""
    frame = gain_frame(sweep)
    if frame.empty:
        return None
    with style.styled():
        figure = style.new_figure(6.6, 0.9 + 0.29 * len(frame))
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0, 0, 0.92, 1))  # leaves room for the columns
        axes = figure.subplots()

        def write(x: float, y: float, text: str, **look: Any) -> None:
            axes.text(x, y, text, transform=axes.get_yaxis_transform(), va="center", ha="right", fontsize=8, **look)

        columns = (1.13, 1.42)  # where numbers end, in widths of the panel
        for place, row in frame.iterrows():
            colour, marker, _ = style.method_look(str(row["method"]))
            stands_out = row["method"] == STANDS_OUT
            axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2.4 if stands_out else 1.6)
            axes.plot(row["value"], place, marker, color=colour, markersize=7 if stands_out else 6)
            write(columns[0], place, f"{row['value']:+.1f}")
            write(columns[1], place, f"{'mean ' if row['varies'] else ''}{row['parameters']:,}")
        write(columns[0], -0.85, "gain", weight="bold")
        write(columns[1], -0.85, "parameters", weight="bold")
        for _, same in frame.groupby("parameters"):
            if len(same) > 1:
                axes.axhspan(same.index[0] - 0.44, same.index[-1] + 0.44, color="#F1F5F9", zorder=0)
        axes.axvline(0, color=style.UNTUNED, linestyle="--", linewidth=1.0)
        category_ticks(axes, list(frame["label"]))
        axes.set_xlabel("points of accuracy over zero-shot CLIP")
    shots = sweep.shots[-1]
    place = sweep.columns[-1]
    return captioned(
        "gains",
        figure,
        frame,
        zero_shot=f"{sweep.cells[ACCURACY, ZERO_SHOT, place, shots]['mean']:.1f}",
        over=f"mean of {len(sweep.datasets)} datasets" if place == AVERAGE else dataset_name(place),
        seeds=counted(sweep.seeds(ACCURACY, shots), "seed"),
        shots=f"{counted(shots, 'image')} per class" if shots else "all training images",
    )


PARAMETERS = "parameters"
TRAINING = "training_seconds"
_TIMES = (
    "Training time includes features of training images and all steps, without compiling. Runs that were trained"
    " together have equal shares. Times are of the machine that ran this."
)


def cost_frame(sweep: Sweep, shots: int | None) -> pd.DataFrame:
    """Makes a row for each method with measured costs, in the order of kinds.

    Columns: kind, mean accuracy over datasets with its error, parameters, training seconds.
    """

    def costs(row: Row) -> dict[str, float]:
        return {name: row[name] for name in (PARAMETERS, TRAINING) if row.get(name) is not None}

    means = sweep.means_of(costs)
    rows = {}
    for kind, (title, *_) in KINDS.items():
        for method in [name for name in sweep.methods if method_kind(name) == kind]:
            key = (method, sweep.columns[-1], shots)
            accuracy = sweep.cells.get((sweep.measure, *key), {})
            numbers = [accuracy.get("mean", math.nan)]
            numbers += [means.get((cost, *key), {}).get("mean", math.nan) for cost in (PARAMETERS, TRAINING)]
            # A method whose costs were not measured has no place in the figure.
            if not any(map(math.isnan, numbers)):
                rows[method] = (title, numbers[0], accuracy["error"], *numbers[1:])
    return pd.DataFrame(list(rows.values()), list(rows), ["kind", "accuracy", "error", PARAMETERS, TRAINING])


def cost_tables(sweep: Sweep) -> tuple[Table, ...]:
    """Makes a table of accuracy and cost for each number of shots, with methods grouped by kind."""
    over = "mean over datasets, " if len(sweep.datasets) > 1 else ""
    what = "accuracy" if sweep.measure == ACCURACY else f"accuracy ({sweep.measure})"
    caption = f"Top-1 {what} in percent ± one standard error, {over}with learned parameters and training time."
    made = []
    for shots in sweep.shots:
        rows = [
            (
                method_name(line.Index),
                line.kind,
                f"{line.accuracy:.1f}" + ("" if math.isnan(line.error) else f" ± {line.error:.1f}"),
                f"{line.parameters:,.0f}",
                duration_words(line.training_seconds),
            )
            for line in cost_frame(sweep, shots).itertuples()
        ]
        title = f"Accuracy and cost, {shots_words(shots)}" if shots else "Accuracy and cost"
        heads = ("Method", "Kind", "Accuracy", "Parameters", "Training")
        made += [Table(title, caption, heads, rows, words={1}, note=_TIMES)] if rows else []
    return tuple(made)


def cost_figures(sweep: Sweep) -> tuple[CaptionedFigure, ...]:
    """Draws accuracy against learned parameters, and against training time, with most shots."""
    frame = cost_frame(sweep, sweep.shots[-1])
    # A single point compares nothing.
    if len(frame) < 2:
        return ()
    facts = {"measure": sweep.measure, "shots": shots_words(sweep.shots[-1])}
    facts["datasets"] = ", ".join(map(dataset_name, sweep.datasets))
    y_label = "accuracy (%)" if sweep.measure == ACCURACY else f"{sweep.measure} (%)"
    made = []
    for cost, kind, x_label in (
        (PARAMETERS, "accuracy_by_parameters", "learned parameters"),
        (TRAINING, "accuracy_by_time", "training time (s)"),
    ):
        columns = {"method": frame.index, "label": map(method_name, frame.index), "kind": frame["kind"]}
        columns |= {cost: frame[cost], sweep.measure: frame["accuracy"], "standard error": frame["error"]}
        shown = pd.DataFrame({head: list(values) for head, values in columns.items()})
        figure = cost_scatter(shown, x=cost, y=sweep.measure, x_label=x_label, y_label=y_label)
        made.append(captioned(kind, figure, shown, times=_TIMES, **facts))
    return tuple(made)


def duration_words(seconds: float) -> str:
    """Writes two digits and a unit: `0 s`, `3.1 ms`, `12 s`, `4.5 min`."""
    units = {"h": 3600, "min": 60, "s": 1, "ms": 1e-3, "µs": 1e-6}
    unit = next((name for name, length in units.items() if seconds >= length), "s" if seconds == 0 else "µs")
    value = seconds / units[unit]
    return f"{value:.1f} {unit}" if 0 < value < 10 else f"{value:.0f} {unit}"


MARKER = 5.5  # points, with its edge
# Places of a name, the best first: points from its marker, in these directions.
_REACHES = (4, 7, 11, 16, 22, 30, 40, 52, 66, 82, 100, 125, 150)
_BESIDE = 7  # a name farther away has a line to its marker
_AROUND = np.linspace(0, 2 * np.pi, 32, endpoint=False)
_DIRECTIONS = np.vstack([[(1, 0), (-1, 0), (0, 1), (0, -1)], np.stack([np.cos(_AROUND), np.sin(_AROUND)], axis=1)])


def cost_scatter(frame: pd.DataFrame, *, x: str, y: str, x_label: str, y_label: str) -> style.Figure:
    """Draws accuracy against a cost on a logarithmic axis, a named point per method.

    The frame has columns `method`, `label`, `kind` (a title of `KINDS`), and those of x and y.
    """
    # A logarithmic axis has no 0: methods without a cost have a panel of their own.
    ordered = frame.assign(panel=np.where(frame[x] > 0, "paid", "free")).sort_values("panel", kind="stable")
    looks: dict[str, dict[str, Any]] = {
        title: {"color": colour, "marker": marker, "linestyle": "", "ms": 5, "mec": "white", "mew": 0.5}
        for title, colour, marker in KINDS.values()
    }

    def draw(axes: style.Axes, part: pd.DataFrame) -> None:
        for at, height, kind in zip(part[x], part[y], part["kind"], strict=True):
            axes.plot(at, height, **looks[kind])
        if (part["panel"] == "paid").all():
            axes.set_xlim(part[x].min() / 2, part[x].max() * 3)
            style.log_scale(axes)
        else:
            axes.set_xlim(-1, 1)
            axes.set_xticks([0], ["0"])
        axes.margins(y=0.06)

    widths = {"free": 0.17, "paid": 1.0}
    figure = panels(
        ordered,
        draw,
        by=("", "panel"),
        names=dict.fromkeys(("", "free", "paid"), ""),
        size=(6.4, 4.6),
        y_label=y_label,
        x_label=x_label,
        share_x=False,
        share_y=True,
        widths=[widths[name] for name in dict.fromkeys(ordered["panel"])],
        legend={title: look for title, look in looks.items() if title in set(frame["kind"])},
    )
    # The free panel stands at 0 of the same axis.
    for axes in figure.axes[:-1]:
        axes.set_xlabel("")
    with style.styled():
        # Names are placed in pixels: the layout may not move afterwards.
        figure.draw_without_rendering()
        figure.set_layout_engine(None)
        for axes, (_, part) in zip(figure.axes, ordered.groupby("panel", sort=False), strict=True):
            name_points(axes, list(part["label"]), [base_name(method) == STANDS_OUT for method in part["method"]])
    return figure


def name_points(axes: style.Axes, names: Sequence[str], stand_out: Sequence[bool]) -> None:
    """Moves markers sideways until none covers another, and writes a name at each, where it covers nothing.

    The axes are already laid out, and have a line for each marker. A name from afar has a line to its marker.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    scale = figure.dpi / 72  # pixels of a point
    step = MARKER * scale
    to_axes = axes.transData.inverted()
    places = np.empty((0, 2))  # of markers, in pixels
    labels = []
    for name, is_bold, line in zip(names, stand_out, list(axes.lines), strict=True):
        ((x, y),) = axes.transData.transform(line.get_xydata())
        # Only markers at about the same height can cover each other, so a shift along x suffices; y is the accuracy and
        # stays.
        beside = places[np.abs(places[:, 1] - y) < step, 0]
        shifts = (x + step * sign * count for count in itertools.count() for sign in (1, -1))
        places = np.vstack([places, (next(at for at in shifts if (np.abs(beside - at) >= step - 1e-6).all()), y)])
        at = tuple(to_axes.transform(places[-1]).tolist())
        line.set_xdata([at[0]])
        label = axes.annotate(name, at, (0, 0), textcoords="offset points", annotation_clip=False)
        label.set(ha="center", va="center", fontsize=6.5, color=line.get_color())
        label.set_fontweight("bold" if is_bold else "normal")
        labels.append(label)
    sizes = np.array([label.get_window_extent().size for label in labels]) + np.array([2 * scale, scale])
    reaches = np.repeat(_REACHES, len(_DIRECTIONS))
    directions = np.tile(_DIRECTIONS, (len(_REACHES), 1))
    # Boxes are [left, bottom, right, top] in pixels.
    markers = np.hstack([places - step / 2, places + step / 2])
    taken = np.empty((0, 4))
    # What is named first has the better place: a name among many others can go to few places.
    crowds = (np.linalg.norm(places[:, None] - places, axis=-1) < 60 * scale).sum(1)
    for index in np.argsort(-crowds, kind="stable"):
        place, size = places[index], sizes[index]
        middles = place + (reaches[:, None] * scale + step / 2) * directions + size / 2 * np.sign(directions)
        boxes = np.hstack([middles - size / 2, middles + size / 2])
        ends = np.clip(place, boxes[:, :2], boxes[:, 2:])
        # The line to the marker but for its ends, in small pieces.
        along = place + np.linspace(0.1, 0.9, 12)[:, None, None] * (ends - place)
        lines_to = np.concatenate([along - scale / 2, along + scale / 2], axis=-1)
        others = np.vstack([taken, np.delete(markers, index, axis=0)])
        is_far = reaches > _BESIDE
        covered = _meetings(boxes, others) + is_far * _meetings(lines_to, others).sum(0)
        # Beside a marker, a name clearly nearest to its own, or a reader takes it for another's.
        apart = np.linalg.norm(places - np.clip(places, boxes[:, None, :2], boxes[:, None, 2:]), axis=-1)
        covered += ~is_far * ((apart < apart[:, [index]] + 4 * scale).sum(1) - 1)
        outside = (boxes[:, :2] < axes.bbox.min).any(1) * 1 + (boxes[:, 2:] > axes.bbox.max).any(1)
        # Outside the panel is worse than on another name, and both are worse than any distance from the marker.
        best = np.argmin(1e6 * outside + 1e5 * covered + reaches)
        labels[index].set_position(tuple((middles[best] - place) / scale))
        # Names and lines that are placed already are obstacles for those that follow.
        taken = np.vstack([taken, boxes[best]])
        if is_far[best]:
            taken = np.vstack([taken, lines_to[:, best]])
            axes.plot(*to_axes.transform([place, ends[best]]).T, color=style.GREY, lw=0.4, zorder=1, gid="leader")


def _meetings(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Counts the others that each box `[…, 4]` meets."""
    boxes = boxes[..., None, :]
    return ((boxes[..., :2] < others[:, 2:]) & (others[:, :2] < boxes[..., 2:])).all(-1).sum(-1)
