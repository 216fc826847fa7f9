"""Tables of a sweep, and their files."""

import dataclasses
import functools
import itertools
import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from clipbias.data import catalog
from clipbias.data.few_shot import range_words
from clipbias.errors import ClipbiasError
from clipbias.intervals import SMALL, Z_95, wilson_interval
from clipbias.io import read_json, write_text
from clipbias.report import pages
from clipbias.report.frames import (
    ACCURACY,
    AVERAGE,
    DETECTABLE,
    EXPLAINED,
    CellKey,
    Row,
    Sweep,
    difference_error,
    read_sweep,
    shots_words,
)
from clipbias.report.names import are_the_eleven, dataset_name, method_name, published, shown_shots
from clipbias.report.predictions import write_class_table
from clipbias.report.style import save_figure, svg_text
from clipbias.report.sweep_figures import (
    TRAINING,
    accuracy_figure,
    cost_figures,
    cost_frame,
    cost_tables,
    duration_words,
    gain_figure,
)
from clipbias.report.table import MISSING, Table, latex_text, markdown_text, render
from clipbias.sentences import counted
from clipbias.terminal import printable

BOLD = f"Bold: the best of a column, and all that are within {Z_95:.2f} standard errors of the difference to it."
PICTURES = ("gains", "accuracy", "accuracy_by_parameters", "accuracy_by_time")
FILES = {"markdown": "table.md", "latex": "table.tex", "html": "table.html"}
_EMPTY = "There are no results yet."
# Scores that weigh classes equally: title and definition.
_CLASS_MEASURES = {
    "balanced_accuracy": ("Balanced accuracy", "the mean over classes of their accuracies"),
    "macro_f1": ("Macro-F1", "the mean over classes of the harmonic mean of precision and recall"),
    "worst_accuracy": ("Accuracy of the worst class", "the lowest accuracy of a class"),
}
_Columns = Mapping[str, tuple[str, str, int | None]]  # measure, dataset and shots by head


def make_tables(sweep: Sweep) -> list[Table]:
    """Makes tables of accuracies, selected learning rates, sizes, calibration, and published numbers."""
    # A sweep whose first run is not done has no measure to show.
    if not sweep.rows:
        return []
    made = [*make_accuracy_tables(sweep), _rate_table(sweep), _size_table(sweep), _calibration_table(sweep)]
    for paper in published()["sixteen_shots"] if are_the_eleven(sweep.datasets) and sweep.measure == ACCURACY else ():
        names = [*published()["datasets"], "average"]
        frame = pd.DataFrame(paper["accuracy"]).T[names].map("{:.1f}".format).rename(columns={"average": AVERAGE})
        note = f"{paper['source']}: {paper['setting']}. The recipes differ from those used here: compare with care."
        title = f"Published, {paper['source'].partition(',')[0]}"
        made.append(Table.of(frame, title, "Top-1 accuracy in percent that others published.", note=note))
    return [table for table in made if table is not None]


def make_accuracy_tables(sweep: Sweep) -> list[Table]:
    """Makes for each measure the average over datasets by shots, and a table for each number of shots."""
    made = []
    if len(sweep.datasets) == 1 and len(sweep.measures) > 1:
        # Measures of one dataset, such as base and new classes, or other datasets, stand side by side.
        dataset = dataset_name(sweep.datasets[0])
        what = "H is the harmonic mean of base and new in each run, " if "H" in sweep.measures else ""
        for shots in sweep.shots:
            columns = {dataset_name(measure): (measure, sweep.datasets[0], shots) for measure in sweep.measures}
            words = f"{what}{training_words(sweep, shots)} of {dataset}"
            title = f"Accuracy, {f'{shots_words(shots)} of ' if shots else ''}{dataset}"
            made.append(_with_facts(sweep, columns, title, f"accuracy in percent ± one standard error; {words}."))
        return made
    for measure in sweep.measures:
        made += [_average_table(sweep, measure)] if len(sweep.datasets) > 1 and len(sweep.shots) > 1 else []
        for shots in sweep.shots:
            columns = {dataset_name(name): (measure, name, shots) for name in sweep.columns}
            title = _titled(f"Accuracy, {shots_words(shots)}" if shots else "Accuracy", measure)
            words = f"{_measure_words(measure)} in percent ± one standard error, {training_words(sweep, shots)}."
            table = _with_facts(sweep, columns, title, words)
            seen = power_words(sweep, measure, sweep.columns[-1], shots)
            made.append(dataclasses.replace(table, note=f"{table.note} {seen}".strip()))
    return made


def _average_table(sweep: Sweep, measure: str) -> Table:
    columns = {shots_words(shots): (measure, AVERAGE, shots) for shots in sweep.shots}
    frame, bold = _accuracy_frame(sweep, columns)
    note = _note(sweep)
    if measure == ACCURACY and are_the_eleven(sweep.datasets):
        paper = published()["averages"]
        note += [f"Published: {paper['source']} ({paper['setting']}); {paper['caution']}."]
        # From right to left: an inserted column shifts the places of all behind it.
        for place, shots in reversed(list(enumerate(sweep.shots, start=1))):
            if shots in paper["shots"]:
                column = paper["shots"].index(shots)
                theirs = {method: f"{values[column]:.1f}" for method, values in paper["accuracy"].items()}
                texts = [theirs.get(method, MISSING) for method in sweep.methods]
                frame.insert(place, f"{shots_words(shots)}, published", texts)
                bold = {(row, column + (column > place)) for row, column in bold}
    caption = (
        f"Top-1 {_measure_words(measure)} in percent ± one standard error, mean of {len(sweep.datasets)} datasets."
    )
    return Table.of(frame, _titled("Accuracy, average over datasets", measure), caption, note=" ".join(note), bold=bold)


def _with_facts(sweep: Sweep, columns: _Columns, title: str, caption: str) -> Table:
    """Makes a table whose last columns are the validation policy, if anything was selected, and parameters."""
    frame, bold = _accuracy_frame(sweep, columns)
    note = _note(sweep)
    image_counts: dict[str, int] = {}  # of the test, by head
    for head, (measure, dataset, shots) in columns.items():
        cells = (sweep.cells.get((measure, method, dataset, shots), {}) for method in sweep.methods)
        if counts := [cell["images"] for cell in cells if cell.get("images", math.nan) >= 1]:
            image_counts[head] = int(min(counts))
    if image_counts:
        several = ", ".join(f"{head} {count:,}" for head, count in image_counts.items())
        note.append(f"Test images: {several if len(columns) > 1 else f'{min(image_counts.values()):,}'}.")
        if min(image_counts.values()) < SMALL:
            note.append(f"In parentheses: the 95 % interval, with fewer than {SMALL} test images.")
    # Accuracies are comparable only where settings were selected on the same kind of images.
    policies = [
        {str(row["validation"]) for row in sweep.by_method[name] if row.get("validation")} for name in sweep.methods
    ]
    words: set[int] = set()
    if set().union(*policies) - {"none"}:
        frame["Validation"] = [", ".join(sorted(names)) or MISSING for names in policies]
        words = {len(frame.columns)}
        note.append("Validation: images on which a learning rate or another setting was selected.")
    frame["Parameters"] = [_range(sweep, name, "parameters") for name in sweep.methods]
    return Table.of(frame, title, f"Top-1 {caption}", words=words, note=" ".join(note), bold=bold)


def _accuracy_frame(sweep: Sweep, columns: _Columns) -> tuple[pd.DataFrame, set[tuple[int, int]]]:
    frame = _frame(sweep, columns, lambda key: _cell_text(sweep, key))
    bold: set[tuple[int, int]] = set()
    for place, (measure, dataset, shots) in enumerate(columns.values(), start=1):
        best = best_methods(sweep, measure, dataset, shots)
        bold |= {(row, place) for row, name in enumerate(sweep.methods) if name in best}
    return frame, bold


def _frame(sweep: Sweep, columns: _Columns, write: Callable[[CellKey], str]) -> pd.DataFrame:
    """Makes a frame of the texts of cells, methods x columns."""
    texts = {
        head: [write((measure, name, dataset, shots)) for name in sweep.methods]
        for head, (measure, dataset, shots) in columns.items()
    }
    return pd.DataFrame(texts, index=list(map(method_name, sweep.methods)))


def _cell_text(sweep: Sweep, key: CellKey) -> str:
    """Writes a mean with its error, or with an interval for few test images."""
    measure, method, dataset, shots = key
    if key not in sweep.cells:
        lost = ((row["method"], row["dataset"], row.get("shots")) for row in sweep.failures)
        return "failed" if any(run in {(method, dataset, shots), (method, dataset, None)} for run in lost) else MISSING
    cell = sweep.cells[key]
    mean = cell["mean"]
    # Cells with fewer seeds than others say so: their error is less certain.
    fewer = _fewer_seeds(cell, sweep.seeds(measure, shots))
    if cell.get("images", math.nan) < SMALL and mean >= 0:
        low, high = wilson_interval(mean, cell["images"])
        # Wilson's interval covers images alone; the seeds' part is added in squares on either side.
        seeds = Z_95 * cell["seeds_error"]
        low, high = max(0.0, mean - math.hypot(mean - low, seeds)), min(100.0, mean + math.hypot(high - mean, seeds))
        return f"{mean:.1f} ({low:.0f} to {high:.0f}){fewer}"
    return _number(mean) + (f" ± {cell['error']:.1f}" if cell["error"] >= 0 else "") + fewer


def _fewer_seeds(cell: Row, expected: int) -> str:
    return f" (n = {cell['seeds']})" if cell["drawn"] and cell["seeds"] < expected else ""


def best_methods(sweep: Sweep, measure: str, dataset: str, shots: int | None) -> set[str]:
    """Returns the best method and those not distinguishable from it; empty for fewer than two methods."""
    errors = _errors_to_best(sweep, measure, dataset, shots)
    means = {name: sweep.cells[measure, name, dataset, shots]["mean"] for name in errors}
    return {name for name, error in errors.items() if max(means.values()) - means[name] <= max(0.0, Z_95 * error)}


def _errors_to_best(sweep: Sweep, measure: str, dataset: str, shots: int | None) -> dict[str, float]:
    """Computes the standard error of each method's difference to the best, 0 for the best and where unknown."""
    means = sweep.table(measure, shots)[dataset].dropna().astype(float)
    if len(means) < 2:
        return {}
    # Every method is compared with the best of the column, image by image where answers are stored.
    first = str(means.idxmax())
    errors = {first: 0.0}
    for method in means.index.difference([first]):
        each = [
            difference_error(sweep.cells[measure, first, name, shots], sweep.cells[measure, method, name, shots])
            for name in (sweep.datasets if dataset == AVERAGE else (dataset,))
        ]
        error = math.hypot(*each) / len(each)  # datasets are independent
        errors[str(method)] = error if error >= 0 else 0.0
    return errors


def power_words(sweep: Sweep, measure: str, dataset: str, shots: int | None) -> str:
    """Writes the detectable difference to the best method, by the median of the errors; "" where unknown."""
    errors = [error for error in _errors_to_best(sweep, measure, dataset, shots).values() if error > 0]
    if not errors:
        return ""
    over = "on average" if dataset == AVERAGE else f"on {dataset_name(dataset)}"
    return f"A difference of {DETECTABLE * statistics.median(errors):.1f} points {over} is detectable."


def _rate_table(sweep: Sweep) -> Table | None:
    """Makes the table of validation accuracies by learning rate; `None` if no rate was selected."""
    selected: dict[tuple[str, ...], float] = {}
    accuracies: dict[tuple[str, ...], dict[float, float | None]] = {}
    for row in sweep.rows:
        if choice := row.get("choice"):
            # A rate is selected for each dataset and number of shots, or once for all.
            cell: tuple[str, ...] = (row["method"], "all", "all")
            if choice["for"] == "cell":
                cell = (row["method"], dataset_name(row["dataset"]), str(shown_shots(row)))
            selected[cell] = row["learning_rate"]
            accuracies[cell] = {line["learning_rate"]: line.get("accuracy") for line in choice["tried"]}
    if not selected:
        return None
    # Methods may try different rates: a column for each, and a dash where a method did not try it.
    rates = sorted({rate for by_rate in accuracies.values() for rate in by_rate})
    lines: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for place, ((method, *where), by_rate) in enumerate(accuracies.items()):
        texts = [_number(by_rate[rate], "failed") if rate in by_rate else MISSING for rate in rates]
        lines.append([method_name(method), *where, *texts])
        bold |= {(place, 3 + i) for i, rate in enumerate(rates) if rate == selected[method, *where]}
    caption = "Top-1 accuracy in percent on validation images by learning rate; bold: the selected rate."
    note = "Means over seeds, datasets and shots. Of equally accurate rates, that of lower cross-entropy was selected."
    heads = ["Method", "Dataset", "Shots", *(f"{rate:g}" for rate in rates)]
    return Table("Learning rates", caption, heads, lines, words={1}, note=note, bold=bold)


def _size_table(sweep: Sweep) -> Table:
    # Every recipe that differs is named below, since accuracies of different recipes stand in one table.
    fields = {"Parameters": "", "Vision": "_vision", "Text": "_text", "Shared": "_shared"}
    frame = pd.DataFrame(
        {head: [_range(sweep, name, f"parameters{part}") for name in sweep.methods] for head, part in fields.items()},
        index=list(map(method_name, sweep.methods)),
    )
    frame["Learning rate"] = [_range(sweep, name, "learning_rate", "g") for name in sweep.methods]
    note = [
        f"{method_name(name)} differs from the common recipe in: {words}."
        for name in sweep.methods
        if (words := _recipe_words(sweep.by_method[name]))
    ]
    caption = "Learned parameters: in all, of the vision tower, of the text tower, and shared between both."
    return Table.of(frame, "Size", caption, note=" ".join(note))


def _calibration_table(sweep: Sweep) -> Table | None:
    names = {"ece": "ECE", "ece_at_temperature": "ECE at temperature"}

    def values(row: Row) -> dict[str, float]:
        # A protocol with several evaluations has a calibration of each.
        calibrations = row.get("calibrations") or {"": row.get("calibration") or {}}
        return {
            f"{evaluation} {name}".strip(): numbers[key]
            for evaluation, numbers in calibrations.items()
            for key, name in names.items()
            if key in numbers
        }

    cells = sweep.means_of(values)
    columns = {
        f"{measure}, {shots_words(shots)}" if shots else measure: (measure, sweep.columns[-1], shots)
        for measure in dict.fromkeys(measure for measure, *_ in cells)
        for shots in sweep.shots
    }
    caption = "Expected calibration error (ECE) in percent, 15 bins of equal width, mean over seeds and datasets."
    note = (
        "At temperature: with logits divided by the temperature that fits at most 4 validation images of a class best."
    )
    # A run whose fit has no minimum has no temperature: a mean over fewer seeds says so.
    most = max((cell["seeds"] for cell in cells.values() if cell["drawn"]), default=1)

    def text(key: CellKey) -> str:
        return _number(cells[key]["mean"], digits=2) + _fewer_seeds(cells[key], most) if key in cells else MISSING

    return Table.of(_frame(sweep, columns, text), "Calibration", caption, note=note) if cells else None


def class_tables(sweep: Sweep, measures: Sequence[str]) -> list[Table]:
    """Makes a table for each measure of `data.confusion.CLASS_MEASURES` and number of shots, methods by datasets."""

    def summaries(row: Row) -> dict[str, Row]:
        return dict(row.get("class_summaries") or ({ACCURACY: row["class_summary"]} if "class_summary" in row else {}))

    def text(cells: Mapping[CellKey, Row], key: CellKey) -> str:
        if key not in cells:
            return MISSING
        cell = cells[key]
        return f"{cell['mean']:.1f}" + (f" ± {cell['seeds_error']:.1f}" if cell["drawn"] and cell["seeds"] > 1 else "")

    untested = {
        row["dataset"]: names
        for row in sweep.rows
        for summary in summaries(row).values()
        if (names := summary.get("untested_classes"))
    }
    left_out = [
        f"Left out of {dataset_name(name)}: {counted(len(classes), 'class')} without test images "
        f"({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''})."
        for name, classes in untested.items()
    ]
    made = []
    for measure in measures:
        title, meaning = _CLASS_MEASURES[measure]

        def values(row: Row, measure: str = measure) -> dict[str, float]:
            return {name: summary[measure] for name, summary in summaries(row).items()}

        cells = sweep.means_of(values)
        for shots in sweep.shots if cells else ():
            columns = {}
            for evaluation, name in itertools.product(dict.fromkeys(key[0] for key in cells), sweep.columns):
                head = dataset_name(name) + ("" if evaluation == ACCURACY else f", {dataset_name(evaluation)}")
                columns[head] = (evaluation, name, shots)
            made.append(
                Table.of(
                    _frame(sweep, columns, functools.partial(text, cells)),
                    f"{title}, {shots_words(shots)}" if shots else title,
                    f"{title} in percent, {meaning}; {training_words(sweep, shots)}.",
                    note=" ".join(["±: one standard error over seeds.", *left_out]),
                )
            )
    return made


def _number(value: float | None, missing: str = MISSING, digits: int = 1) -> str:
    return missing if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _range(sweep: Sweep, method: str, field: str, form: str = ",") -> str:
    """Writes a number of a method's runs, or the smallest and the largest: `5,120–16,384`."""
    values = sorted({row[field] for row in sweep.by_method[method] if row.get(field) is not None})
    return "–".join(dict.fromkeys(f"{value:{form}}" for value in values[:1] + values[-1:])) or MISSING


def training_words(sweep: Sweep, shots: int | None) -> str:
    """Writes the number of training images of a class, and of seeds."""
    of_shots = [row for row in sweep.rows if row.get("shots") == shots]
    # Small classes have fewer images than the shots asked for, so the true range is written.
    numbers = [number for row in of_shots for number in row.get("images_per_class") or ()]
    if shots:
        numbers = numbers or [shots]
        words = f"{range_words(numbers)} training image{'s' * (max(numbers) != 1)} a class"
    elif any(row.get("protocol") == "full" for row in sweep.rows):
        words = "all training images" + (f", {range_words(numbers)} a class" if numbers else "")
    else:
        words = "no training"
    seeds = max(sweep.seeds(measure, shots) for measure in sweep.measures)
    return f"{words}, mean of {seeds} seeds" if seeds > 1 else words


def _measure_words(measure: str) -> str:
    words = {ACCURACY: "accuracy", "H": "harmonic mean of base and new accuracy in each run"}
    return words.get(measure, f"accuracy, {measure},")


def _titled(words: str, measure: str) -> str:
    return words if measure == ACCURACY else f"{words}: {measure}"


def _note(sweep: Sweep) -> list[str]:
    rates = {row["learning_rate"] for row in sweep.rows if row.get("learning_rate") and not row.get("own_recipe")}
    sentences = [EXPLAINED, BOLD]
    if len(rates) == 1:
        sentences.append(f"Learning rate {min(rates):g}.")
    elif rates:
        sentences.append("Learning rates: see Size.")
    methods = [method_name(name) for name in sweep.methods if _recipe_words(sweep.by_method[name])]
    if methods:
        sentences.append(f"Not trained by the common recipe: {', '.join(methods)}; see Size.")
    unread = dict.fromkeys(method_name(row["method"]) for row in sweep.rows if row.get("descriptions"))
    if unread:
        sentences.append(
            f"Descriptions of classes are read by zero-shot and not by {', '.join(unread)}: gains over zero-shot are "
            "then not of tuning alone."
        )
    for skipped, images in (("skipped_training_images", "training image"), ("skipped_images", "test image")):
        if most := max((row.get(skipped, 0) for row in sweep.rows), default=0):
            sentences.append(f"Skipped as unreadable: {counted(most, images)} of a run.")
    return sentences


def _recipe_words(rows: Sequence[Row]) -> str:
    """Writes the differences of a method's recipe from the common recipe."""
    from clipbias.tuning.recipe import MOST  # not at import: reading results loads no model

    settings: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, value in (row.get("own_recipe") or {}).items():
            full = name == "batch_size" and value >= MOST  # no set of images fills it
            settings.setdefault(name, {})[printable("of all images" if full else value)] = None
    return "; ".join(f"{name.replace('_', ' ')} {' or '.join(values)}" for name, values in settings.items())


def render_tables(
    sweep: Sweep, form: str, *, tables: Sequence[Table] | None = None, figure_svg: str | None = None
) -> str:
    """Renders all tables and failed runs in one of `table.TABLE_FORMATS`; HTML shows the figure above its tables."""
    made = make_tables(sweep) if tables is None else tables
    failures = []
    for row in sweep.failures:
        where = [method_name(row["method"]), dataset_name(row["dataset"])]
        where += [shots_words(row["shots"])] if row.get("shots") else []
        where += [f"seed {row['seed']}"] if row.get("seed") is not None else []
        # An error may have several lines, and a failure has one.
        reason = " ".join(str(row.get("error") or "no reason was recorded").split())
        failures.append(f"{', '.join(where)}: {reason}")
    if form == "html":
        return pages.render("tables", title="Table 1", svg=figure_svg, tables=made, failures=failures, empty=_EMPTY)
    parts = [render(table, form) for table in made] or [_EMPTY]
    if form == "latex":
        parts = ["% Needs \\usepackage{booktabs}, and \\usepackage{graphicx} for wide tables.", *parts]
        failures = [f"% failed: {latex_text(line)}" for line in failures]
    elif failures:
        escaped = markdown_text if form == "markdown" else printable
        heading = "### Failed runs" if form == "markdown" else "Failed runs"
        failures = [heading] + [f"- {escaped(line)}" for line in failures]
    if form == "text" and any(table.bold for table in made):
        parts.append(f"* {BOLD.removeprefix('Bold: ')} ± is one standard error.")
    if failures:
        parts.append("\n".join(failures))
    return "\n\n".join(parts) + "\n"


def write_tables(rows: Sequence[Row], workdir: Path, measures: Sequence[str] = ()) -> list[str]:
    """Writes `table.md`, `.tex`, `.html`, figures, `costs.md` and `classes.csv`; returns lines to print.

    `measures` are scores of `class_tables`. Raises `ClipbiasError` if the rows follow two validation policies.
    """
    check_policies(rows)
    sweep = read_sweep(rows, workdir / "predictions")
    gains = gain_figure(sweep)
    tables = [*make_tables(sweep), *class_tables(sweep, measures)]
    # With one number of shots, accuracies are points above one place, and gains say more.
    figure = accuracy_figure(sweep) if gains is None or len(sweep.shots) > 1 else gains.figure
    # Pictures of an earlier request in this folder are of other rows.
    for name in (*PICTURES, "costs"):
        for end in ("pdf", "png", "csv", "md"):
            (workdir / f"{name}.{end}").unlink(missing_ok=True)
    for form, name in FILES.items():
        write_text(workdir / name, render_tables(sweep, form, tables=tables, figure_svg=svg_text(figure)))
    if gains is not None:
        gains.save(workdir)
    if gains is None or figure is not gains.figure:
        save_figure(figure, workdir / "accuracy")
    # The terminal shows what the files hold.
    lines = render_tables(sweep, "text", tables=tables).split("\n")
    # Times differ from run to run: a file of their own keeps the other tables the same when a sweep is run again.
    if costs := cost_tables(sweep):
        write_text(workdir / "costs.md", "\n\n".join(render(table, "markdown") for table in costs) + "\n")
        for picture in cost_figures(sweep):
            picture.save(workdir)
        for table in costs:
            lines += [*render(table, "text").split("\n"), ""]
    write_class_table(workdir)
    return [*lines, f"Tables and picture: {workdir / 'table.html'}", *advice(sweep, workdir)]


def advice(sweep: Sweep, workdir: Path) -> list[str]:
    """Writes which method to take, what may be as good, its cost, and the next command; nothing for one method."""
    from clipbias.tuning.registry import is_user_method  # not at import: reading results loads no model

    if len(sweep.methods) < 2:
        return []
    shots, column = sweep.shots[-1], sweep.columns[-1]
    near = best_methods(sweep, sweep.measure, column, shots)
    if not near:  # a single method has results there
        return []
    # With most shots, on all datasets: the setting that a user is most likely to keep.
    means = {name: sweep.cells[sweep.measure, name, column, shots]["mean"] for name in near}
    sizes = {name: max(row.get("parameters", 0) for row in sweep.by_method[name]) for name in near}
    # Of equally accurate methods that with fewest parameters.
    best, *others = sorted(near, key=lambda name: (-means[name], sizes[name], name))
    where = "on average over datasets" if column == AVERAGE else f"on {dataset_name(column)}"
    cost = f"{_range(sweep, best, 'parameters')} parameters"
    costs = cost_frame(sweep, shots)
    # Runs of a folder may lack measured costs.
    if best in costs.index:
        cost += f", {duration_words(costs.loc[best, TRAINING])} of training"
    rest = f"; {', '.join(map(method_name, others))} may be as good" if others else ", surely the best here"
    lines = [f"Take {method_name(best)}: {means[best]:.1f} % {where}, {cost}{rest}."]
    adapters = workdir / "adapters" / f"{best}-{pages.file_name(sweep.datasets[0])}-*"
    if any(adapters.parent.glob(adapters.name)):
        config = workdir / "config.json"
        given = {
            "data_dir": read_json(config, dict).get("data_dir") if config.exists() else None,
            "own_methods": best if is_user_method(best) else None,
        }
        options = "".join(f" --config.{name}={shlex.quote(value)}" for name, value in given.items() if value)
        lines.append(f"Next: clipbias explain --config.adapters='{adapters}'{options} --workdir={workdir / 'why'}")
    return lines


def check_policies(rows: Sequence[Row]) -> None:
    """Raises `ClipbiasError` if rows follow two validation policies: their accuracies are not comparable."""
    used = {str(row["validation"]): row for row in rows if row.get("validation") not in (None, "none")}
    if len(used) > 1:
        names = (f"{policy!r} ({row['method']} on {row['dataset']})" for policy, row in sorted(used.items()))
        raise ClipbiasError(
            f"the results follow two validation policies, {' and '.join(names)}; one table may not mix them. Give "
            "datasets of one policy, or leave --config.learning_rates and --config.rates_file empty."
        )


def check_published(rows: Sequence[Row], workdir: Path) -> None:
    """Raises `ClipbiasError` unless the rows are of the eleven datasets with published numbers."""
    datasets = {row["dataset"] for row in rows}
    protocols = {row["protocol"] for row in rows if row.get("accuracies")}
    if protocols:
        raise ClipbiasError(
            f"{workdir} has results of the protocol {', '.join(sorted(protocols))}; published numbers are of training "
            "and testing on all classes."
        )
    if not are_the_eleven(datasets):
        # A mean over other datasets stands beside no published mean.
        missing = sorted(name for name in catalog.ELEVEN if name not in datasets)
        raise ClipbiasError(
            f"{workdir} has no results for {', '.join(missing) or 'the eleven datasets alone'}; published numbers are "
            "for the eleven datasets of configs/table1.py."
        )
