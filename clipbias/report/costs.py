"""What methods cost beside what they reach: a table grouped by kind, and accuracy against parameters and time."""

from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from clipbias.report.captioned import CaptionedFigure
from clipbias.report.looks import KINDS
from clipbias.report.names import method_kind, method_name
from clipbias.report.published import dataset_name
from clipbias.report.scatter import cost_scatter
from clipbias.report.summary import ACCURACY, PARAMETERS, PER_IMAGE, TRAINING, Summary
from clipbias.report.table import MISSING, Table, TableCell, cells, ranked

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
    columns = ["method", "label", "kind", cost, measure, "spread over seeds"]
    frame = pd.DataFrame(rows, columns=columns)
    y_label = "accuracy (%)" if measure == ACCURACY else f"{measure} (%)"
    figure = cost_scatter(frame, x=cost, y=measure, x_label=label, y_label=y_label)
    return CaptionedFigure(name, title, caption, figure, frame)


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
