"""The tables of a sweep, each a short function of its frames."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

import pandas as pd

from clipbias.data.few_shot import SMALL, range_words, wilson_interval
from clipbias.report.errors import DETECTABLE, EXPLAINED, WITHIN, Answers, difference_error
from clipbias.report.frames import ACCURACY, AVERAGE, CellKey, Row, Sweep, cell_frame, cell_lines, run_frame
from clipbias.report.names import (
    Published,
    are_the_eleven,
    dataset_name,
    eleven_datasets,
    method_name,
    published_averages,
    published_sixteen_shots,
    shown_shots,
)
from clipbias.report.table import MISSING, Table
from clipbias.sentences import counted
from clipbias.terminal import printable

BOLD = f"Bold: the best of a column, and all that are within {WITHIN} standard errors of the difference to it."
_VALIDATION = "Validation: the images on which a learning rate, or something else, was selected."


def make_tables(sweep: Sweep) -> list[Table]:
    """Accuracies, selected learning rates, sizes, calibration, and what papers report of the same datasets."""
    if not sweep.rows:
        return []
    made = [*make_accuracy_tables(sweep), rate_table(sweep), size_table(sweep), calibration_table(sweep)]
    made += published_tables() if are_the_eleven(sweep.datasets) else []
    return [table for table in made if table is not None]


def make_accuracy_tables(sweep: Sweep) -> list[Table]:
    """For each measure the average over datasets by shots, and a table for each number of shots."""
    if len(sweep.datasets) == 1 and len(sweep.measures) > 1:
        return [_measure_table(sweep, shots) for shots in sweep.shots]
    made = []
    for measure in sweep.measures:
        made += [_average_table(sweep, measure)] if len(sweep.datasets) > 1 and len(sweep.shots) > 1 else []
        made += [_dataset_table(sweep, measure, shots) for shots in sweep.shots]
    return made


def _average_table(sweep: Sweep, measure: str) -> Table:
    columns = {shots_words(shots): (measure, AVERAGE, shots) for shots in sweep.shots}
    frame, bold = _accuracy_frame(sweep, columns)
    note = _note(sweep)
    if measure == ACCURACY and are_the_eleven(sweep.datasets):
        published = published_averages()
        note += [f"Published: {published.source} ({published.setting}); {published.caution}."]
        few = [shots for shots in sweep.shots if shots is not None]
        for place, shots in reversed(list(enumerate(few, start=1))):
            values = {method: by_shots.get(shots) for method, by_shots in published.averages.items()}
            if any(values.values()):
                texts = [_number(values.get(method)) for method in sweep.methods]
                frame.insert(place, f"{shots_words(shots)}, published", texts)
                bold = {(row, column + (column > place)) for row, column in bold}
    caption = (
        f"Top-1 {_measure_words(measure)} in percent ± one standard error, mean of {len(sweep.datasets)} datasets."
    )
    return Table.of(frame, _titled("Accuracy, average over datasets", measure), caption, note=" ".join(note), bold=bold)


def _dataset_table(sweep: Sweep, measure: str, shots: int | None) -> Table:
    columns = {name if name == AVERAGE else dataset_name(name): (measure, name, shots) for name in sweep.columns}
    caption = f"Top-1 {_measure_words(measure)} in percent ± one standard error, {training_words(sweep, shots)}."
    title = _titled(f"Accuracy, {shots_words(shots)}" if shots else "Accuracy", measure)
    table = _with_facts(sweep, columns, title, caption)
    seen = power_words(sweep, measure, sweep.columns[-1], shots)
    return dataclasses.replace(table, note=f"{table.note} {seen}".strip())


def _measure_table(sweep: Sweep, shots: int | None) -> Table:
    """Several numbers of training on one dataset, such as base and new classes, or other datasets."""
    (dataset,) = map(dataset_name, sweep.datasets)
    columns = {dataset_name(measure): (measure, sweep.datasets[0], shots) for measure in sweep.measures}
    what = "H is the harmonic mean of base and new, " if "H" in sweep.measures else ""
    caption = f"Top-1 accuracy in percent ± one standard error; {what}{training_words(sweep, shots)} of {dataset}."
    return _with_facts(sweep, columns, f"Accuracy, {f'{shots_words(shots)} of ' if shots else ''}{dataset}", caption)


def _with_facts(sweep: Sweep, columns: Mapping[str, tuple[str, str, int | None]], title: str, caption: str) -> Table:
    """A table whose last columns are the validation policy, where anything was selected, and parameters."""
    frame, bold = _accuracy_frame(sweep, columns)
    policies = [
        {str(row["validation"]) for row in sweep.by_method[name] if row.get("validation")} for name in sweep.methods
    ]
    words: set[int] = set()
    note = [*_note(sweep), *_test_images(sweep, columns)]
    if set().union(*policies) - {"none"}:
        frame["Validation"] = [", ".join(sorted(names)) or MISSING for names in policies]
        words = {len(frame.columns)}
        note.append(_VALIDATION)
    frame["Parameters"] = [_range(sweep, name, "parameters") for name in sweep.methods]
    return Table.of(frame, title, caption, words=words, note=" ".join(note), bold=bold)


def _test_images(sweep: Sweep, columns: Mapping[str, tuple[str, str, int | None]]) -> list[str]:
    """How many test images the columns are of, and what stands in parentheses where there are few."""
    counts: dict[str, int] = {}
    for head, (measure, dataset, shots) in columns.items():
        lines = (sweep.lines.get((measure, method, dataset, shots), {}) for method in sweep.methods)
        images = [line["images"] for line in lines if line.get("images", math.nan) >= 1]
        if images:
            counts[head] = int(min(images))
    if not counts:
        return []
    words = (
        [f"{head} {count:,}" for head, count in counts.items()] if len(columns) > 1 else [f"{min(counts.values()):,}"]
    )
    few = f"In parentheses: the 95 % interval, with fewer than {SMALL} test images."
    return [f"Test images: {', '.join(words)}.", *([few] if min(counts.values()) < SMALL else [])]


def _accuracy_frame(
    sweep: Sweep, columns: Mapping[str, tuple[str, str, int | None]]
) -> tuple[pd.DataFrame, set[tuple[int, int]]]:
    """Accuracies as texts, and the places of the best.

    Args:
      sweep: the runs.
      columns: measure, dataset and shots by head.
    """
    texts: dict[str, list[str]] = {}
    bold: set[tuple[int, int]] = set()
    for place, (head, (measure, dataset, shots)) in enumerate(columns.items(), start=1):
        expected = sweep.seeds(measure, shots)
        texts[head] = [_cell_text(sweep, (measure, name, dataset, shots), expected) for name in sweep.methods]
        best = best_methods(sweep, measure, dataset, shots)
        bold |= {(row, place) for row, name in enumerate(sweep.methods) if name in best}
    return pd.DataFrame(texts, index=list(map(method_name, sweep.methods))), bold


def _cell_text(sweep: Sweep, key: CellKey, expected: int) -> str:
    if key not in sweep.lines:
        _, method, dataset, shots = key
        lost = ((row["method"], row["dataset"], row.get("shots")) for row in sweep.failures)
        return "failed" if any(run in {(method, dataset, shots), (method, dataset, None)} for run in lost) else MISSING
    line = sweep.lines[key]
    fewer = f" (n = {line['seeds']})" if line["drawn"] and line["seeds"] < expected else ""
    if line.get("images", math.nan) < SMALL and line["mean"] >= 0:
        return f"{line['mean']:.1f} ({_interval(line)}){fewer}"
    return _number(line["mean"]) + (f" ± {line['error']:.1f}" if line["error"] >= 0 else "") + fewer


def _interval(line: Row) -> str:
    """Wilson's interval of few test images, widened by the error of seeds, whose squares add on each side."""
    mean = line["mean"]
    low, high = wilson_interval(mean, line["images"])
    seeds = WITHIN * line["seeds_error"]
    low = max(0.0, mean - math.hypot(mean - low, seeds))
    high = min(100.0, mean + math.hypot(high - mean, seeds))
    return f"{low:.0f} to {high:.0f}"


def best_methods(sweep: Sweep, measure: str, dataset: str, shots: int | None) -> set[str]:
    """The best method, and those that its standard error does not tell apart from it; empty for fewer than two.

    The error of a difference is that of test images, compared in pairs where all answers are known, and of seeds.
    """
    means = sweep.table(measure, shots)[dataset].dropna().astype(float)
    errors = _errors_to_best(sweep, measure, dataset, shots)
    best = means.max()
    return {
        str(name) for name in means.index if name in errors and best - means[name] <= max(0.0, WITHIN * errors[name])
    }


def _errors_to_best(sweep: Sweep, measure: str, dataset: str, shots: int | None) -> dict[str, float]:
    """The standard error of each method's difference to the best, 0 for that and where nothing is known.

    Empty for fewer than two methods.
    """
    means = sweep.table(measure, shots)[dataset].dropna().astype(float)
    if len(means) < 2:
        return {}
    first = str(means.idxmax())
    errors = {first: 0.0}
    for method in means.index.difference([first]):
        each = [
            difference_error(sweep.lines[measure, first, name, shots], sweep.lines[measure, method, name, shots])
            for name in (sweep.datasets if dataset == AVERAGE else (dataset,))
        ]
        error = math.hypot(*each) / len(each)  # datasets are independent
        errors[str(method)] = error if error >= 0 else 0.0
    return errors


def power_words(sweep: Sweep, measure: str, dataset: str, shots: int | None) -> str:
    """Which difference to the best method could have been seen, by the median of its errors; "" where none is known."""
    errors = [error for error in _errors_to_best(sweep, measure, dataset, shots).values() if error > 0]
    if not errors:
        return ""
    over = "on average" if dataset == AVERAGE else f"on {dataset_name(dataset)}"
    return f"A difference of {DETECTABLE * statistics.median(errors):.1f} points {over} could have been seen."


def rate_table(sweep: Sweep) -> Table | None:
    """Accuracies on validation images by learning rate, by which rates were selected; `None` if none was."""
    selected: dict[tuple[str, ...], float] = {}
    accuracies: dict[tuple[str, ...], dict[float, float | None]] = {}
    for row in sweep.rows:
        if choice := row.get("choice"):
            cell: tuple[str, ...] = (row["method"], "all", "all")
            if choice["for"] == "cell":
                cell = (row["method"], dataset_name(row["dataset"]), str(shown_shots(row)))
            selected[cell] = row["learning_rate"]
            accuracies[cell] = {line["learning_rate"]: line.get("accuracy") for line in choice["tried"]}
    if not selected:
        return None
    rates = sorted({rate for by_rate in accuracies.values() for rate in by_rate})
    texts: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for place, (cell, by_rate) in enumerate(accuracies.items()):
        shown = [_number(by_rate[rate], "failed") if rate in by_rate else MISSING for rate in rates]
        texts.append(list(cell[1:]) + shown)
        bold |= {(place, 3 + column) for column, rate in enumerate(rates) if rate == selected[cell]}
    frame = pd.DataFrame(texts, index=[method_name(name) for name, *_ in accuracies])
    frame.columns = pd.Index(["Dataset", "Shots"] + [f"{rate:g}" for rate in rates])
    caption = "Top-1 accuracy in percent on validation images by learning rate, of which the bold one was selected."
    note = "Means over seeds, datasets and shots. Of equal rates the one of the lower cross-entropy was selected."
    return Table.of(frame, "Learning rates", caption, words={1}, note=note, bold=bold)


def size_table(sweep: Sweep) -> Table:
    """Learned parameters, in all and by where they are, and how each method was trained."""
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


def calibration_table(sweep: Sweep) -> Table | None:
    """The expected calibration error of each method; `None` where none was measured."""
    names = {"ece": "ECE", "ece_at_temperature": "ECE at temperature"}

    def values(row: Row) -> dict[str, float]:
        calibrations = row.get("calibrations") or {"": row.get("calibration") or {}}
        return {
            f"{evaluation} {name}".strip(): numbers[key]
            for evaluation, numbers in calibrations.items()
            for key, name in names.items()
            if key in numbers
        }

    runs = run_frame(sweep.rows, values)
    if runs.empty:
        return None
    lines = cell_lines(cell_frame(runs, sweep.shots, sweep.datasets, Answers(None)))
    columns: dict[str, list[str]] = {}
    for measure in dict.fromkeys(runs["measure"]):
        for shots in sweep.shots:
            head = f"{measure}, {shots_words(shots)}" if shots else str(measure)
            keys = [(measure, method, sweep.columns[-1], shots) for method in sweep.methods]
            columns[head] = [_number(lines[key]["mean"] if key in lines else math.nan, digits=2) for key in keys]
    frame = pd.DataFrame(columns, index=list(map(method_name, sweep.methods)))
    caption = "Expected calibration error (ECE) in percent, 15 bins of equal width, mean over seeds and datasets."
    note = (
        "Temperature: after the logits were divided by the one that suits at most 4 validation images of a class best."
    )
    return Table.of(frame, "Calibration", caption, note=note)


def published_tables() -> list[Table]:
    """What papers report at 16 shots."""
    return [_published_table(published) for published in published_sixteen_shots()]


def _published_table(published: Published) -> Table:
    """A paper's accuracies at 16 shots, dataset by dataset."""
    names = [*eleven_datasets(), "average"]
    frame = pd.DataFrame(published.accuracies).T[names].map("{:.1f}".format).rename(columns={"average": AVERAGE})
    author = published.source.partition(",")[0]
    note = f"{published.source}: {published.setting}. The recipes differ from those used here: compare with care."
    return Table.of(frame, f"Published, {author}", "Top-1 accuracy in percent that others published.", note=note)


def _number(value: float | None, missing: str = MISSING, digits: int = 1) -> str:
    return missing if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _range(sweep: Sweep, method: str, field: str, form: str = ",") -> str:
    """A number of all runs of a method, or the smallest and largest: `5,120–16,384`."""
    values = sorted({row[field] for row in sweep.by_method[method] if row.get(field) is not None})
    return "–".join(dict.fromkeys(f"{value:{form}}" for value in values[:1] + values[-1:])) or MISSING


def shots_words(shots: int | None) -> str:
    """`16 shots`, or of `None` all training images."""
    return "all images" if shots is None else counted(shots, "shot")


def training_words(sweep: Sweep, shots: int | None) -> str:
    """How many images of a class runs were trained on, and how many seeds a number is the mean of."""
    trained = "all training images" if any(row.get("protocol") == "full" for row in sweep.rows) else "no training"
    counts = [
        row["images_per_class"] for row in sweep.rows if row.get("shots") == shots and row.get("images_per_class")
    ]
    if counts and (shots or trained == "all training images"):
        numbers = [number for pair in counts for number in pair]
        words = f"{range_words(numbers)} training image{'s' * (max(numbers) != 1)} a class"
        if not shots:
            words = f"all training images, {range_words(numbers)} a class"
    else:
        words = f"{shots} training image{'s' * (shots != 1)} a class" if shots else trained
    seeds = max(sweep.seeds(measure, shots) for measure in sweep.measures)
    return f"{words}, mean of {seeds} seeds" if seeds > 1 else words


def _measure_words(measure: str) -> str:
    return {ACCURACY: "accuracy", "H": "harmonic mean of base and new accuracy"}.get(measure, f"accuracy, {measure},")


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
    return sentences


def _recipe_words(rows: Sequence[Row]) -> str:
    """What a method's own recipe has otherwise than the common one."""
    from clipbias.tuning.recipe import MOST  # reading results alone loads no model

    settings: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, value in (row.get("own_recipe") or {}).items():
            full = name == "batch_size" and value >= MOST  # no set of images fills it
            settings.setdefault(name, {})[printable("of all images" if full else value)] = None
    return "; ".join(f"{name.replace('_', ' ')} {' or '.join(values)}" for name, values in settings.items())
