"""What papers report, beside and below the tables of one's own runs."""

from clipbias.report.published import Published, eleven_datasets, published_averages
from clipbias.report.summary import Summary
from clipbias.report.table import MISSING, Table, TableCell


def beside_published(table: Table, summary: Summary) -> Table:
    """Puts the paper's average to the right of each number of shots that it reports."""
    published = published_averages()
    reported = {shots for values in published.averages.values() for shots in values}
    columns: list[str] = [table.columns[0]]
    rows = [[row[0]] for row in table.rows]
    for position, shots in enumerate(summary.shots, start=1):
        columns += [table.columns[position], *["published"] * (shots in reported)]
        for row, own, method in zip(rows, table.rows, summary.methods, strict=True):
            row.append(own[position])
            if shots in reported:
                value = published.averages.get(method, {}).get(shots)
                row.append(TableCell(MISSING if value is None else f"{value:.1f}", published=True))
    caption = (
        f"{table.caption} Published: {published.source} ({published.setting}); not results of this run, and"
        f" {published.caution}."
    )
    return Table(table.title, caption, tuple(columns), tuple(map(tuple, rows)))


def published_table(published: Published) -> Table:
    """A paper's accuracies at 16 shots, dataset by dataset."""
    datasets = eleven_datasets()
    rows = tuple(
        tuple(
            TableCell(text, published=True)
            for text in (method, *(f"{values[name]:.1f}" for name in (*datasets, "average")))
        )
        for method, values in published.accuracies.items()
    )
    return Table(
        "Published, 16 shots",
        f"{published.source}: {published.setting}. Not results of this run; the authors' training recipes differ from"
        " the one used here, so compare with care.",
        ("Method", *datasets, "Average"),
        rows,
    )
