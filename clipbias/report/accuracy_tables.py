"""Table 1: what its cells and captions say, and all its tables as Markdown, LaTeX, HTML or plain text."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from clipbias.report import pages
from clipbias.report.captions import (
    average_sentences,
    error_sentences,
    range_of,
    rate_sentence,
    seeds_sentence,
    within_sentences,
)
from clipbias.report.chosen import chosen_table
from clipbias.report.names import method_name
from clipbias.report.published import (
    are_the_eleven,
    dataset_name,
    published_sixteen_shots,
)
from clipbias.report.published_tables import beside_published, published_table
from clipbias.report.summary import ACCURACY, Cell, Facts, Failure, Summary
from clipbias.report.table import (
    MISSING,
    Table,
    TableCell,
    cells,
    latex_table,
    latex_text,
    markdown_table,
    markdown_text,
    ranked,
    text_table,
)
from clipbias.terminal import printable

_EMPTY = "There are no results yet."
_RANKS = "The best of each column is bold, the second best underlined."


def to_markdown(summary: Summary) -> str:
    """All tables in GitHub's Markdown."""
    parts = [markdown_table(table) for table in tables(summary)]
    if summary.failures:
        lines = [f"- {markdown_text(failure_line(failure))}" for failure in summary.failures]
        parts.append("\n".join(["### Failed runs", "", *lines]))
    return "\n\n".join(parts or [_EMPTY]) + "\n"


def to_latex(summary: Summary) -> str:
    """All tables as LaTeX `table` environments; the document needs the packages `booktabs` and `graphicx`."""
    parts = ["% Needs \\usepackage{booktabs} and \\usepackage{graphicx}."]
    parts += [latex_table(table) for table in tables(summary)] or [_EMPTY]
    if summary.failures:
        lines = [rf"\item {latex_text(failure_line(failure))}" for failure in summary.failures]
        parts.append("\n".join(["Failed runs:", r"\begin{itemize}", *lines, r"\end{itemize}"]))
    return "\n\n".join(parts) + "\n"


def to_text(summary: Summary) -> str:
    """All tables in aligned plain text for a terminal; `*` marks the best of a column, `'` the second best."""
    made = tables(summary)
    parts = [text_table(table) for table in made]
    if any(cell.rank for table in made for row in table.rows for cell in row):
        parts.append("* best of the column, ' second best; ± behind an accuracy is its standard error, see table.md.")
    if summary.failures:
        lines = [f"  {printable(failure_line(failure))}" for failure in summary.failures]
        parts.append("\n".join(["Failed runs", *lines]))
    return "\n\n".join(parts or [_EMPTY]) + "\n"


def to_html(summary: Summary, *, title: str = "Table 1", figure_svg: str | None = None) -> str:
    """One self-contained page with all tables.

    Args:
      summary: what to show.
      title: of the page.
      figure_svg: an SVG picture to show above the tables, for example `style.svg_text(accuracy_figure(summary))`.
    """
    return pages.render(
        "tables",
        title=title,
        svg=figure_svg,
        tables=tables(summary),
        failures=list(map(failure_line, summary.failures)),
        empty=_EMPTY,
    )


def tables(summary: Summary) -> tuple[Table, ...]:
    """The averages by shots, one table per number of shots, calibration, learning rates, sizes, and what papers report.

    Learning rates only where they were chosen on validation images, and the last only where the datasets are the eleven
    of the papers. Empty for an empty summary.
    """
    if not summary.methods:
        return ()
    made: list[Table] = []
    if len(summary.datasets) == 1 and len(summary.measures) > 1:
        made.extend(_by_measure(summary, shots) for shots in summary.shots or (0,))
    for measure in summary.measures if not made else ():
        if len(summary.datasets) > 1 and summary.shots:
            made.append(_averages(summary, measure))
        # Zero-shot alone still deserves its table.
        made.extend(_by_dataset(summary, shots, measure) for shots in summary.shots or (0,))
    if summary.calibration is not None:
        made.extend(_calibration(summary.calibration, shots) for shots in summary.calibration.shots or (0,))
    if (rates := chosen_table({method: facts.choices for method, facts in summary.facts.items()})) is not None:
        made.append(rates)
    made.append(_sizes(summary))
    if are_the_eleven(summary.datasets):
        made.extend(published_table(table) for table in published_sixteen_shots())
    return tuple(made)


def failure_line(failure: Failure) -> str:
    """A failed run and its reason, in one line."""
    where = [method_name(failure.method), dataset_name(failure.dataset)]
    if failure.shots:
        where.append(_shots(failure.shots))
    if failure.seed is not None:
        where.append(f"seed {failure.seed}")
    return f"{', '.join(where)}: {' '.join(failure.error.split())}"


def _shots(shots: int) -> str:
    return f"{shots} shot" if shots == 1 else f"{shots} shots"


def _training(shots: int, seeds: Sequence[int]) -> str:
    return _shots(shots) if shots else "All training images" if seeds else "Without training"


def _measure(measure: str) -> str:
    return {ACCURACY: "accuracy", "H": "harmonic mean of base and new accuracy"}.get(measure, f"accuracy, {measure}")


def _titled(words: str, measure: str) -> str:
    return words if measure == ACCURACY else f"{words}: {measure}"


def _accuracy(cell: Cell | None, *, expected: int) -> TableCell:
    """A mean with its standard error; `expected` seeds go without saying, any other number is noted."""
    if cell is None:
        return TableCell(MISSING)
    if cell.mean is None:
        return TableCell("failed", failed=True)
    spread = f"± {cell.error:.1f}" if cell.error is not None else ""
    count = len(cell.values)
    drawn = None not in cell.values  # zero-shot has no seeds to count
    note = f"n = {count}" if drawn and expected and count != expected else ""
    return TableCell(f"{cell.mean:.1f}", spread, note, failed=bool(cell.failures))


def _shown_cells(summary: Summary, shots: int, measure: str) -> list[Cell | None]:
    return [summary.cell(method, dataset, shots, measure) for method in summary.methods for dataset in summary.datasets]


def _named_rows(summary: Summary, row: Callable[[str], Iterable[TableCell]]) -> list[tuple[TableCell, ...]]:
    return [(TableCell(method_name(method)), *row(method)) for method in summary.methods]


def _facts(summary: Summary, method: str) -> Iterable[TableCell]:
    """The last columns of a row, `_fact_columns`."""
    facts = summary.facts[method]
    yield from cells(*[", ".join(facts.validation) or MISSING] * _validates(summary), range_of(facts.parameters))


def _fact_columns(summary: Summary) -> tuple[str, ...]:
    return (*["Validation"] * _validates(summary), "Parameters")


def _validates(summary: Summary) -> bool:
    """Whether anything was selected on validation images."""
    return any(set(facts.validation) - {"none"} for facts in summary.facts.values())


def _validation_sentence(summary: Summary) -> list[str]:
    told = "Validation: the images on which a learning rate, or something else, was selected."
    return [told] if _validates(summary) else []


def _with_facts(summary: Summary, title: str, caption: list[str], columns: tuple[str, ...], rows: list) -> Table:
    """A table whose last columns are facts, which are not ranked."""
    facts = _fact_columns(summary)
    words = {len(columns)} if _validates(summary) else ()
    caption = [*caption, *_validation_sentence(summary)]
    return Table(title, " ".join(caption), (*columns, *facts), ranked(rows, skip_last=len(facts)), words=words)


def _by_dataset(summary: Summary, shots: int, measure: str) -> Table:
    seeds = summary.seeds(shots, measure)
    with_average = len(summary.datasets) > 1

    def row(method: str) -> Iterable[TableCell]:
        for dataset in summary.datasets:
            yield _accuracy(summary.cell(method, dataset, shots, measure), expected=len(seeds))
        if with_average:
            yield _accuracy(summary.average(method, shots, measure), expected=0)
        yield from _facts(summary, method)

    rows = _named_rows(summary, row)
    caption = [
        f"Top-1 {_measure(measure)} on the test set in percent.",
        *error_sentences(seeds, _shown_cells(summary, shots, measure)),
        _RANKS,
        *within_sentences(summary, shots, measure),
        *(average_sentences(summary, [row[-1 - len(_fact_columns(summary))] for row in rows]) if with_average else ()),
        *rate_sentence(summary),
        *_recipe_sentence(summary),
    ]
    columns = ("Method", *map(dataset_name, summary.datasets), *["Average"] * with_average)
    return _with_facts(summary, _titled(_training(shots, seeds), measure), caption, columns, rows)


def _by_measure(summary: Summary, shots: int) -> Table:
    """Several numbers from training on one dataset, such as base and new classes, or other datasets."""
    (dataset,) = summary.datasets
    seeds = summary.seeds(shots, summary.measures[0])

    def row(method: str) -> Iterable[TableCell]:
        for measure in summary.measures:
            yield _accuracy(summary.cell(method, dataset, shots, measure), expected=len(seeds))
        yield from _facts(summary, method)

    caption = [
        f"Top-1 accuracy in percent after training on {dataset_name(dataset)}, one column per set of test images.",
        *["H is the harmonic mean of base and new, taken for each seed."] * ("H" in summary.measures),
        *error_sentences(seeds, [one for name in summary.measures for one in _shown_cells(summary, shots, name)]),
        _RANKS,
        *rate_sentence(summary),
        *_recipe_sentence(summary),
    ]
    title = f"{_training(shots, seeds)} of {dataset_name(dataset)}"
    columns = ("Method", *map(dataset_name, summary.measures))
    return _with_facts(summary, title, caption, columns, _named_rows(summary, row))


def _averages(summary: Summary, measure: str) -> Table:
    rows = ranked(
        _named_rows(
            summary,
            lambda method: (_accuracy(summary.average(method, n, measure), expected=0) for n in summary.shots),
        )
    )
    caption = [
        f"Top-1 {_measure(measure)} in percent, averaged over {len(summary.datasets)} datasets; ± is the standard error"
        " of that average, of the datasets' test images and of the seeds.",
        _RANKS,
        *average_sentences(summary, [cell for row in rows for cell in row[1:]]),
        *rate_sentence(summary),
        *_recipe_sentence(summary),
    ]
    columns = ("Method", *map(_shots, summary.shots))
    table = Table(_titled("Average over datasets", measure), " ".join(caption), columns, rows)
    with_published = measure == ACCURACY and are_the_eleven(summary.datasets)
    return beside_published(table, summary) if with_published else table


def _calibration(summary: Summary, shots: int) -> Table:
    """How well calibrated the methods are with so many shots, averaged over the datasets."""
    seeds = sorted({seed for measure in summary.measures for seed in summary.seeds(shots, measure)})

    def row(method: str) -> Iterable[TableCell]:
        for measure in summary.measures:
            yield _number(summary.average(method, shots, measure), digits=2)

    count, (first, *more) = len(summary.datasets), summary.datasets
    over = f"averaged over {count} datasets" if more else f"on {dataset_name(first)}"
    caption = [
        f"Expected calibration error (ECE) of the largest probability in percent, {over}: 15 bins of equal width, and"
        " for the adaptive one of equally many images; the smaller the better.",
        *["The temperature has the smallest cross-entropy on validation images, at most 4 of a class."]
        * ("temperature" in summary.measures),
        *seeds_sentence(seeds),
    ]
    title = _titled(_training(shots, seeds), "calibration")
    return Table(title, " ".join(caption), ("Method", *summary.measures), tuple(_named_rows(summary, row)))


def _number(cell: Cell | None, *, digits: int) -> TableCell:
    if cell is None or cell.mean is None:
        return TableCell(MISSING)
    spread = f"± {cell.spread:.{digits}f}" if cell.spread is not None else ""
    return TableCell(f"{cell.mean:.{digits}f}", spread)


def _sizes(summary: Summary) -> Table:
    def row(method: str) -> tuple[TableCell, ...]:
        facts: Facts = summary.facts[method]
        counts = map(range_of, (facts.parameters, facts.parameters_vision, facts.parameters_text))
        return cells(*counts, range_of(facts.learning_rates, "g"))

    recipes = {
        method_name(method): "; ".join(
            f"{name.replace('_', ' ')} {_recipe_values(name, own)}" for name, own in facts.recipe.items()
        )
        for method, facts in summary.facts.items()
        if facts.recipe
    }
    caption = [
        "Learned parameters in all and per tower; a range where it depends on the number of classes or of images.",
        *(f"{method} differs from the common recipe in: {recipe}." for method, recipe in recipes.items()),
    ]
    return Table(
        "Size",
        " ".join(caption),
        ("Method", "Parameters", "Vision", "Text", "Learning rate"),
        tuple(_named_rows(summary, row)),
    )


def _values(values: Sequence[Any]) -> str:
    """What a field of a recipe was: a number, a range of numbers, or words."""
    numbers = all(isinstance(value, int | float) for value in values) and bool not in set(map(type, values))
    return range_of(values, "g") if numbers else " or ".join(map(str, values))


def _recipe_values(name: str, values: Sequence[Any]) -> str:
    """What a recipe says of one field; a batch that no set of images fills holds all of them."""
    from clipbias.tuning.recipe import MOST  # reading results alone loads no model

    return "of all images" if name == "batch_size" and min(values) >= MOST else printable(_values(values))


def _recipe_sentence(summary: Summary) -> list[str]:
    own = [method_name(method) for method in summary.methods if summary.facts[method].recipe]
    return [f"Not trained by the common recipe: {', '.join(own)}; see the table of sizes."] if own else []
