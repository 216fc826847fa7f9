"""What the cells and captions of Table 1 say, whatever they are rendered as."""

from collections.abc import Iterable, Sequence

from clipbias.report.cells import MISSING, Entry, Table, accuracy_entry, ranked, value_range
from clipbias.report.names import method_name
from clipbias.report.published import (
    Published,
    are_the_eleven,
    dataset_name,
    eleven_datasets,
    published_averages,
    published_sixteen_shots,
)
from clipbias.report.summary import ACCURACY, Failure, Summary


def tables(summary: Summary) -> tuple[Table, ...]:
    """All tables of a summary: the averages by shots, one table per number of shots, the methods' sizes, and, for
    the eleven datasets, what papers report."""
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
    made.append(_sizes(summary))
    if are_the_eleven(summary.datasets):
        made.extend(_published(table) for table in published_sixteen_shots())
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


def _measure(measure: str) -> str:
    return {ACCURACY: "accuracy", "H": "harmonic mean of base and new accuracy"}.get(measure, f"accuracy, {measure}")


def _title(words: str, measure: str) -> str:
    return words if measure == ACCURACY else f"{words}: {measure}"


def _by_dataset(summary: Summary, shots: int, measure: str) -> Table:
    columns = ["Method", *map(dataset_name, summary.datasets)]
    with_average = len(summary.datasets) > 1
    seeds = summary.seeds(shots, measure)
    rows = []
    for method in summary.methods:
        cells = [summary.cell(method, dataset, shots, measure) for dataset in summary.datasets]
        entries = [accuracy_entry(cell, expected=len(seeds)) for cell in cells]
        if with_average:
            entries.append(accuracy_entry(summary.average(method, shots, measure), expected=0))
        rows.append((Entry(method_name(method)), *entries, Entry(value_range(summary.facts[method].parameters))))
    if with_average:
        columns.append("Average")
    columns.append("Parameters")
    caption = [
        f"Top-1 {_measure(measure)} on the test set in percent.",
        _seeds_sentence(seeds),
        _rank_sentence(),
    ]
    if with_average:
        caption.extend(_average_sentences(summary, [row[-2] for row in rows]))
    caption.extend(_rate_sentence(summary))
    title = _title(_training(shots, seeds), measure)
    return Table(title, " ".join(filter(None, caption)), tuple(columns), ranked(rows, skip_last=1))


def _by_measure(summary: Summary, shots: int) -> Table:
    """Several numbers from training on one dataset, such as base and new classes, or other datasets."""
    (dataset,) = summary.datasets
    columns = ("Method", *map(dataset_name, summary.measures), "Parameters")
    rows = []
    for method in summary.methods:
        cells = [summary.cell(method, dataset, shots, measure) for measure in summary.measures]
        entries = [accuracy_entry(cell, expected=len(summary.seeds(shots, summary.measures[0]))) for cell in cells]
        rows.append((Entry(method_name(method)), *entries, Entry(value_range(summary.facts[method].parameters))))
    seeds = summary.seeds(shots, summary.measures[0])
    caption = [
        f"Top-1 accuracy in percent after training on {dataset_name(dataset)}, one column per set of test images.",
        "H is the harmonic mean of base and new, taken for each seed." if "H" in summary.measures else "",
        _seeds_sentence(seeds),
        _rank_sentence(),
        *_rate_sentence(summary),
    ]
    title = f"{_training(shots, seeds)} of {dataset_name(dataset)}"
    return Table(title, " ".join(filter(None, caption)), columns, ranked(rows, skip_last=1))


def _training(shots: int, seeds: Sequence[int]) -> str:
    return _shots(shots) if shots else "All training images" if seeds else "Without training"


def _averages(summary: Summary, measure: str) -> Table:
    columns = ["Method", *map(_shots, summary.shots)]
    rows = []
    for method in summary.methods:
        cells = [summary.average(method, shots, measure) for shots in summary.shots]
        rows.append((Entry(method_name(method)), *(accuracy_entry(cell, expected=0) for cell in cells)))
    caption = [
        f"Top-1 {_measure(measure)} in percent, averaged over {len(summary.datasets)} datasets; ± is the sample"
        " standard deviation, over the seeds, of that average.",
        _rank_sentence(),
        *_average_sentences(summary, [entry for row in rows for entry in row[1:]]),
        *_rate_sentence(summary),
    ]
    table = Table(_title("Average over datasets", measure), " ".join(caption), tuple(columns), ranked(rows))
    with_published = measure == ACCURACY and are_the_eleven(summary.datasets)
    return _beside_published(table, summary) if with_published else table


def _beside_published(table: Table, summary: Summary) -> Table:
    """Puts the paper's average to the right of each number of shots that it reports."""
    published = published_averages()
    reported = {shots for values in published.averages.values() for shots in values}
    columns: list[str] = [table.columns[0]]
    rows = [[row[0]] for row in table.rows]
    for position, shots in enumerate(summary.shots, start=1):
        columns.append(table.columns[position])
        for row, own in zip(rows, table.rows, strict=True):
            row.append(own[position])
        if shots not in reported:
            continue
        columns.append("published")
        for row, method in zip(rows, summary.methods, strict=True):
            value = published.averages.get(method, {}).get(shots)
            row.append(Entry(MISSING if value is None else f"{value:.1f}", published=True))
    caption = (
        f"{table.caption} Published: {published.source} ({published.setting}); not results of this run, and"
        f" {published.caution}."
    )
    return Table(table.title, caption, tuple(columns), tuple(map(tuple, rows)))


def _sizes(summary: Summary) -> Table:
    rows = []
    for method in summary.methods:
        facts = summary.facts[method]
        rows.append(
            (
                Entry(method_name(method)),
                Entry(value_range(facts.parameters)),
                Entry(value_range(facts.parameters_vision)),
                Entry(value_range(facts.parameters_text)),
                Entry(value_range(facts.learning_rates, "g")),
            )
        )
    return Table(
        "Size",
        "Learned parameters in all and per tower; a range where it depends on the number of classes.",
        ("Method", "Parameters", "Vision", "Text", "Learning rate"),
        tuple(rows),
    )


def _published(published: Published) -> Table:
    datasets = eleven_datasets()
    rows = tuple(
        (
            Entry(method, published=True),
            *(Entry(f"{values[name]:.1f}", published=True) for name in (*datasets, "average")),
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


def _seeds_sentence(seeds: Sequence[int]) -> str:
    if not seeds:
        return ""
    listed = ", ".join(map(str, seeds))
    if len(seeds) == 1:
        return f"One run, with seed {listed}."
    return f"Mean ± sample standard deviation (divided by n − 1) over n = {len(seeds)} seeds ({listed})."


def _rank_sentence() -> str:
    return "The best of each column is bold, the second best underlined."


def _average_sentences(summary: Summary, averages: Iterable[Entry]) -> list[str]:
    sentences = []
    if any(entry.text == MISSING for entry in averages):
        sentences.append(f"An average is given only where all {len(summary.datasets)} datasets have a result.")
    if any(failure.shots for failure in summary.failures):
        sentences.append("An average over runs whose seeds differ between datasets has no spread.")
    return sentences


def _rate_sentence(summary: Summary) -> list[str]:
    rates = {dataset: values for dataset, values in summary.learning_rates.items() if values}
    if not rates:
        return []
    distinct = sorted(set(rates.values()))
    if len(distinct) == 1:
        return [f"Learning rate {value_range(distinct[0], 'g')}."]
    parts = [
        f"{value_range(values, 'g')} on {', '.join(dataset_name(name) for name, own in rates.items() if own == values)}"
        for values in distinct
    ]
    return [f"Learning rate {'; '.join(parts)}."]
