"""What methods cost beside what they reach: a table grouped by kind, and accuracy against parameters and time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure
from clipbias.report.looks import STANDS_OUT
from clipbias.report.names import base_name, method_kind, method_name
from clipbias.report.published import dataset_name
from clipbias.report.summary import ACCURACY, PARAMETERS, PER_IMAGE, TRAINING, Summary
from clipbias.report.table import MISSING, Table, TableCell, cells, ranked

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
_TIMES = (
    "Training counts the features that are made of training images and all steps, without compiling; per image is from"
    " an image on the device to its answer, with the classes' features there already unless they depend on the image."
    " Runs that were trained or evaluated side by side have equal shares. Times are of the machine that ran this."
)


def grouped(methods: Iterable[str]) -> dict[str | None, list[str]]:
    """Methods by kind, in the order of `KINDS`; kinds without a method are left out."""
    found: dict[str | None, list[str]] = {kind: [] for kind in KINDS}
    for method in methods:
        found[method_kind(method)].append(method)
    return {kind: names for kind, names in found.items() if names}


def cost_tables(summary: Summary) -> tuple[Table, ...]:
    """Accuracy and cost of each method, grouped by kind, a table for each number of shots; none without costs."""
    return tuple(_table(summary, shots) for shots in summary.shots or (0,)) if summary.costs else ()


def _table(summary: Summary, shots: int) -> Table:
    costs, measure = summary.costs, _measure(summary)
    assert costs is not None
    several = len(summary.datasets) > 1

    def row(method: str) -> tuple[TableCell, ...]:
        found = [summary.cell(method, dataset, shots, measure) for dataset in summary.datasets]
        found += [summary.average(method, shots, measure)] if several else []
        numbers = [None if cell is None else cell.mean for cell in found]
        accuracies = [MISSING if number is None else f"{number:.1f}" for number in numbers]
        return cells(
            *(method_name(method), *accuracies),
            _shown(_cost(costs, method, shots, PARAMETERS), "{:,.0f}".format),
            _shown(_cost(costs, method, shots, TRAINING), duration_words),
            _shown(_cost(costs, method, shots, PER_IMAGE), duration_words),
        )

    groups = grouped(summary.methods)
    ends = ranked([row(method) for names in groups.values() for method in names], skip_last=3)
    columns = ("Method", *map(dataset_name, summary.datasets), *["Average"] * several)
    columns += ("Parameters", "Training", "Per image")
    rows: list[tuple[TableCell, ...]] = []
    left = iter(ends)
    for kind, names in groups.items():
        rows.append((TableCell(KINDS[kind][0], heading=True), *cells(*[""] * (len(columns) - 1))))
        rows += [next(left) for _ in names]
    over = " Parameters and times are means over datasets." if several else ""
    caption = f"Top-1 {measure if measure != ACCURACY else 'accuracy'} in percent, and what it costs.{over} {_TIMES}"
    title = f"Accuracy and cost, {shots} shot{'s' * (shots != 1)}" if shots else "Accuracy and cost"
    return Table(title, caption, columns, tuple(rows))


def cost_figures(summary: Summary) -> tuple[CaptionedFigure, ...]:
    """Accuracy against learned parameters, and against training time, with most shots; none without costs."""
    if summary.costs is None or len(summary.methods) < 2:
        return ()
    shots, measure = (summary.shots or (0,))[-1], _measure(summary)
    over = ", ".join(map(dataset_name, summary.datasets))
    about = f"Top-1 {measure} in percent with {shots} shots, mean over {over}, of each method. "
    free = " What is at the left of the break costs nothing."
    return (
        _figure(
            *(summary, shots, measure, PARAMETERS),
            name="accuracy_by_parameters",
            title="Accuracy against learned parameters",
            label="learned parameters",
            caption=about + "Parameters are the mean over datasets of what a run learns." + free,
        ),
        _figure(
            *(summary, shots, measure, TRAINING),
            name="accuracy_by_time",
            title="Accuracy against training time",
            label="training time (s)",
            caption=f"{about}{_TIMES}{free}",
        ),
    )


def _figure(
    summary: Summary, shots: int, measure: str, cost: str, *, name: str, title: str, label: str, caption: str
) -> CaptionedFigure:
    assert summary.costs is not None
    rows = []
    for kind, names in grouped(summary.methods).items():
        for method in names:
            accuracy, x = summary.average(method, shots, measure), _cost(summary.costs, method, shots, cost)
            if accuracy is not None and accuracy.mean is not None and x is not None:
                rows.append((method, method_name(method), KINDS[kind][0], x, accuracy.mean, accuracy.spread))
    with style.styled():
        figure = style.new_figure(7.6, 5.2)
        axes = figure.subplots()
        _scatter(axes, rows)
        axes.set_xlabel(label)
        axes.set_ylabel("accuracy (%)" if measure == ACCURACY else f"{measure} (%)")
        if rows:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(KINDS))
        figure.draw_without_rendering()
        _name_points(axes, rows)
    columns = ("method", "label", "kind", cost, measure, "spread over seeds")
    return CaptionedFigure(name, title, caption, figure, columns, tuple(rows))


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


def _measure(summary: Summary) -> str:
    """What is compared where runs have several accuracies: the plain one, else H, else the first."""
    preferred = [name for name in (ACCURACY, "H") if name in summary.measures]
    return (*preferred, *summary.measures)[0]


def _cost(costs: Summary, method: str, shots: int, which: str) -> float | None:
    cell = costs.average(method, shots, which)
    return None if cell is None else cell.mean


def _shown(value: float | None, words: Callable[[float], str]) -> str:
    return MISSING if value is None else words(value)


def duration_words(seconds: float) -> str:
    """Two digits and a unit: `0 s`, `3.1 ms`, `12 s`, `4.5 min`."""
    units: Mapping[str, float] = {"h": 3600, "min": 60, "s": 1, "ms": 1e-3, "µs": 1e-6}
    unit = next((name for name, length in units.items() if seconds >= length), "s" if seconds == 0 else "µs")
    value = seconds / units[unit]
    return f"{value:.1f} {unit}" if 0 < value < 10 else f"{value:.0f} {unit}"
