"""What the captions of accuracy tables say of errors, seeds and learning rates."""

import statistics
from collections.abc import Iterable, Sequence

from clipbias.report.errors import WITHIN, Measured, difference
from clipbias.report.names import method_name
from clipbias.report.published import dataset_name
from clipbias.report.summary import Cell, Summary
from clipbias.report.table import MISSING, TableCell

# Of more datasets than this the caption tells what is within the error on the average alone.
_MOST_TOLD = 4


def range_of(values: Sequence[float], form: str = ",") -> str:
    """One value, or the smallest and largest: `2,048`, `5,120–16,384`."""
    return "–".join(dict.fromkeys(f"{value:{form}}" for value in (*values[:1], *values[-1:]))) or MISSING


def seeds_sentence(seeds: Sequence[int]) -> list[str]:
    """Of which seeds a mean and a sample standard deviation are."""
    if not seeds:
        return []
    listed = ", ".join(map(str, seeds))
    if len(seeds) == 1:
        return [f"One run, with seed {listed}."]
    return [f"Mean ± sample standard deviation (divided by n − 1) over n = {len(seeds)} seeds ({listed})."]


def error_sentences(seeds: Sequence[int], cells: Iterable[Cell | None]) -> list[str]:
    """Of which seeds a mean is, and what the ± behind it is.

    Args:
      seeds: of the table.
      cells: its cells.
    """
    there = [cell for cell in cells if cell is not None and cell.values]
    known = [cell for cell in there if cell.images_error is not None]
    listed, images = ", ".join(map(str, seeds)), "√(p (1 − p) / images)"
    several = len(seeds) > 1
    if several:
        told = [f"Mean over n = {len(seeds)} seeds ({listed})"]
    else:
        told = [f"One run, with seed {listed}"] if seeds else []
    if known and several:
        told[0] += f" ± its standard error, of the test images, {images}, and of the seeds, s / √n, added in squares."
    elif known:
        told = [
            *(f"{one}." for one in told),
            f"± is the standard error that the choice of test images makes, {images}.",
        ]
        told += ["What other seeds would give is not in it."] if seeds else []
    elif several:
        told[0] += " ± its standard error over them, s / √n."
    else:
        return [f"{one}." for one in told]
    if known and len(known) < len(there):
        told.append("Where the number of test images was not recorded, ± is of the seeds alone.")
    return told


def within_sentences(summary: Summary, shots: int, measure: str) -> list[str]:
    """Which methods are so close to the best of a column that the error may be all that tells them apart."""
    columns: dict[str, tuple[str, ...]] = {dataset_name(name): (name,) for name in summary.datasets}
    if len(columns) > 1:
        columns = {**(columns if len(columns) <= _MOST_TOLD else {}), "average": summary.datasets}
    told, paired = [], True
    for column, datasets in columns.items():
        found = _close_to_the_best(summary, shots, measure, datasets)
        if found is None:
            continue
        close, is_paired = found
        paired &= is_paired
        names = ", ".join(map(method_name, close)) or "no other"
        told.append(names if len(summary.datasets) == 1 else f"on {'the ' * (column == 'average')}{column} {names}")
    if not told:
        return []
    how = (
        "taken image by image and seed by seed"
        if paired
        else "of which test images are counted as if each method had its own, which is rather too much"
    )
    return [
        f"Not further from the best than {WITHIN} standard errors of the difference ({how}): {'; '.join(told)}. Of many"
        " comparisons some are beyond that by chance."
    ]


def _close_to_the_best(
    summary: Summary, shots: int, measure: str, datasets: Sequence[str]
) -> tuple[list[str], bool] | None:
    """The methods within the error of the best, and whether all were compared in pairs; `None` if fewer than two."""
    measured: dict[str, list[Measured]] = {}
    for method in summary.methods:
        cells = [summary.cell(method, dataset, shots, measure) for dataset in datasets]
        if all(cell is not None and cell.values for cell in cells):
            measured[method] = [Measured(one.values, one.images_error, one.correct) for one in cells if one is not None]

    if len(measured) < 2:
        return None
    best = max(measured, key=lambda method: statistics.fmean(one.mean for one in measured[method]))
    found = {method: difference(measured[best], own) for method, own in measured.items() if method != best}
    known = {method: one for method, one in found.items() if one is not None}
    if not known:
        return None
    return [method for method, one in known.items() if one.is_within], all(one.paired for one in known.values())


def average_sentences(summary: Summary, averages: Iterable[TableCell]) -> list[str]:
    """Which averages are left out, or have no error."""
    sentences = []
    if any(cell.text == MISSING for cell in averages):
        sentences.append(f"An average is given only where all {len(summary.datasets)} datasets have a result.")
    if any(failure.shots for failure in summary.failures):
        sentences.append("An average over runs whose seeds differ between datasets has no error.")
    return sentences


def rate_sentence(summary: Summary) -> list[str]:
    """The learning rates: the common one, or those of the datasets, or of the methods."""
    chosen = any(facts.choices for facts in summary.facts.values())
    by_method = {
        method: facts.learning_rates
        for method, facts in summary.facts.items()
        if facts.learning_rates and not facts.recipe and ", rate " not in method
    }
    if chosen or (len(set(by_method.values())) > 1 and all(len(rates) == 1 for rates in by_method.values())):
        named: dict[tuple[float, ...], list[str]] = {}
        for method, rates in sorted(by_method.items(), key=lambda one: one[1]):
            named.setdefault(rates, []).append(method_name(method))
        parts = [f"{range_of(rates, 'g')} of {', '.join(names)}" for rates, names in named.items()]
        return [f"Learning rate{', chosen on validation images' * chosen}: {'; '.join(parts)}."]
    by_dataset = {dataset: values for dataset, values in summary.learning_rates.items() if values}
    if not by_dataset:
        return []
    distinct = sorted(set(by_dataset.values()))
    if len(distinct) == 1:
        return [f"Learning rate {range_of(distinct[0], 'g')}."]
    names_at = {
        values: [dataset_name(name) for name, own in by_dataset.items() if own == values] for values in distinct
    }
    parts = [f"{range_of(values, 'g')} on {', '.join(names)}" for values, names in names_at.items()]
    return [f"Learning rate {'; '.join(parts)}."]
