"""The tables and pictures of a sweep, from its rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipbias.data import catalog
from clipbias.errors import ClipbiasError
from clipbias.io import write_text
from clipbias.report.accuracy import accuracy_figure
from clipbias.report.accuracy_tables import to_html, to_latex, to_markdown, to_text
from clipbias.report.classes import write_class_table
from clipbias.report.costs import cost_figures, cost_tables
from clipbias.report.published import are_the_eleven
from clipbias.report.style import save_figure, svg_text
from clipbias.report.summary import Summary, summarize
from clipbias.report.table import markdown_table, text_table


def write_tables(rows: Sequence[Mapping[str, Any]], workdir: Path) -> list[str]:
    """Writes `table.md`, `.tex`, `.html`, the picture `accuracy`, `costs.md` and `classes.csv`; returns lines to print.

    Raises:
      ClipbiasError: the rows follow two validation policies, which one table may not mix.
    """
    check_policies(rows)
    summary = summarize(rows, predictions=workdir / "predictions")
    write_text(workdir / "table.md", to_markdown(summary))
    write_text(workdir / "table.tex", to_latex(summary))
    figure = accuracy_figure(summary)
    write_text(workdir / "table.html", to_html(summary, figure_svg=svg_text(figure)))
    save_figure(figure, workdir / "accuracy")
    lines = [*to_text(summary).split("\n"), *_write_costs(summary, workdir)]
    write_class_table(workdir)
    return [*lines, f"Tables and picture: {workdir / 'table.html'}"]


def check_policies(rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuses rows that selected something on validation images of two kinds: their accuracies are not comparable.

    Raises:
      ClipbiasError: naming the two policies.
    """
    used = {str(row["validation"]): row for row in rows if row.get("validation") not in (None, "none")}
    if len(used) > 1:
        told = " and ".join(f"{policy!r} ({row['method']} on {row['dataset']})" for policy, row in sorted(used.items()))
        raise ClipbiasError(
            f"the results follow two validation policies, {told}; one table may not mix them. Give datasets of one "
            "policy, or leave --config.learning_rates and --config.rates_file empty."
        )


def check_published(rows: Sequence[Mapping[str, Any]], workdir: Path) -> None:
    """Raises `ClipbiasError` unless the rows are of the eleven datasets that published numbers are of."""
    datasets = {row["dataset"] for row in rows}
    if not are_the_eleven(datasets):
        missing = sorted(name for name in catalog.ELEVEN if name not in datasets)
        raise ClipbiasError(
            f"{workdir} has no results for {', '.join(missing) or 'the eleven datasets alone'}; published numbers are "
            "for the eleven datasets of configs/table1.py."
        )


def _write_costs(summary: Summary, workdir: Path) -> list[str]:
    """Costs stand apart from the tables that are the same whenever a sweep is run again."""
    tables = cost_tables(summary)
    if tables:
        write_text(workdir / "costs.md", "\n\n".join(map(markdown_table, tables)) + "\n")
        for figure in cost_figures(summary):
            figure.save(workdir)
    return [line for table in tables for line in text_table(table).split("\n")]
