"""The files of a sweep's tables and pictures."""

from collections.abc import Sequence
from pathlib import Path

from clipbias.data import catalog
from clipbias.errors import ClipbiasError
from clipbias.io import write_text
from clipbias.report import pages
from clipbias.report.accuracy_tables import BOLD, make_tables, shots_words
from clipbias.report.class_tables import class_tables
from clipbias.report.classes import write_class_table
from clipbias.report.costs import cost_figures, cost_tables
from clipbias.report.frames import Row, Sweep, read_sweep
from clipbias.report.names import are_the_eleven, dataset_name, method_name
from clipbias.report.style import save_figure, svg_text
from clipbias.report.sweep_figures import accuracy_figure, gain_figure
from clipbias.report.table import Table, latex_text, markdown_text, render
from clipbias.terminal import printable

FILES = {"markdown": "table.md", "latex": "table.tex", "html": "table.html"}
_EMPTY = "There are no results yet."


def failure_line(row: Row) -> str:
    """A failed run and its reason."""
    where = [method_name(row["method"]), dataset_name(row["dataset"])]
    where += [shots_words(row["shots"])] if row.get("shots") else []
    where += [f"seed {row['seed']}"] if row.get("seed") is not None else []
    return f"{', '.join(where)}: {' '.join(str(row.get('error') or 'no reason was recorded').split())}"


def render_tables(
    sweep: Sweep, form: str, *, tables: Sequence[Table] | None = None, figure_svg: str | None = None
) -> str:
    """All tables and failed runs in one of `table.FORMS`; an HTML page shows the figure above its tables."""
    made = make_tables(sweep) if tables is None else tables
    failures = list(map(failure_line, sweep.failures))
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
    """Writes `table.md`, `.tex`, `.html`, pictures, `costs.md` and `classes.csv`; returns lines to print.

    The pictures are `gains`, over zero-shot with most shots, and of several numbers of shots `accuracy` against them.
    Each of `measures`, scores that count classes alike (`class_tables`), has tables of its own.

    Raises:
      ClipbiasError: the rows follow two validation policies, which one table may not mix.
    """
    check_policies(rows)
    sweep = read_sweep(rows, workdir / "predictions")
    gains = gain_figure(sweep)
    tables = [*make_tables(sweep), *class_tables(sweep, measures)]
    figure = accuracy_figure(sweep) if gains is None or len(sweep.shots) > 1 else gains.figure
    for form, name in FILES.items():
        write_text(workdir / name, render_tables(sweep, form, tables=tables, figure_svg=svg_text(figure)))
    if gains is not None:
        gains.save(workdir)
    if gains is None or figure is not gains.figure:
        save_figure(figure, workdir / "accuracy")
    lines = render_tables(sweep, "text", tables=tables).split("\n")
    if costs := cost_tables(sweep):  # apart from tables that are the same whenever a sweep is run again
        write_text(workdir / "costs.md", "\n\n".join(render(table, "markdown") for table in costs) + "\n")
        for picture in cost_figures(sweep):
            picture.save(workdir)
        for table in costs:
            lines += render(table, "text").split("\n")
            lines.append("")
    write_class_table(workdir)
    return [*lines, f"Tables and picture: {workdir / 'table.html'}"]


def check_policies(rows: Sequence[Row]) -> None:
    """Refuses rows that selected something on validation images of two kinds: their accuracies are not comparable.

    Raises:
      ClipbiasError: naming the two policies.
    """
    used = {str(row["validation"]): row for row in rows if row.get("validation") not in (None, "none")}
    if len(used) > 1:
        names = (f"{policy!r} ({row['method']} on {row['dataset']})" for policy, row in sorted(used.items()))
        raise ClipbiasError(
            f"the results follow two validation policies, {' and '.join(names)}; one table may not mix them. Give "
            "datasets of one policy, or leave --config.learning_rates and --config.rates_file empty."
        )


def check_published(rows: Sequence[Row], workdir: Path) -> None:
    """Raises `ClipbiasError` unless the rows are of the eleven datasets that published numbers are of."""
    datasets = {row["dataset"] for row in rows}
    if not are_the_eleven(datasets):
        missing = sorted(name for name in catalog.ELEVEN if name not in datasets)
        raise ClipbiasError(
            f"{workdir} has no results for {', '.join(missing) or 'the eleven datasets alone'}; published numbers are "
            "for the eleven datasets of configs/table1.py."
        )
