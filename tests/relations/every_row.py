"""All rows of the table, in its order, and what trying them gives."""

import collections
import dataclasses
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.relations import command_rows, model_rows, picture_rows, verdict_rows  # noqa: F401 (they add their rows)
from tests.relations.cases import Case
from tests.relations.choose import cases, names
from tests.relations.table import ROWS, Relation, outcome


@dataclasses.dataclass(frozen=True)
class Trial:
    """A row that was tried on a case: it held, was refused with a sentence, or failed with what was wrong."""

    row: Relation
    case: Case
    refused: str = ""
    failed: str = ""


def try_row(row: Relation, tried: Iterable[Case]) -> Iterator[Trial]:
    """Tries a row on cases that it says something of, each in a folder of its own."""
    for case in tried:
        if not row.applies(case):
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield Trial(row, case, refused=outcome(row, case, Path(folder)))
            except Exception as error:  # what a table shows beside the others
                yield Trial(row, case, failed=described(error))


def described(error: Exception) -> str:
    """What was wrong, on a line; of a comparison without words the comparison."""
    words = " ".join(str(error).split()) or traceback.extract_tb(error.__traceback__)[-1].line or "it does not hold"
    return words if isinstance(error, AssertionError) else f"{type(error).__name__}: {words}"


def markdown(trials: Iterable[Trial]) -> Iterator[str]:
    """The table: for each row the cases that were tried, held and refused, with the sentences and their methods."""
    by_row: dict[str, list[Trial]] = {row.sentence: [] for row in ROWS}
    for trial in trials:
        by_row[trial.row.sentence].append(trial)
    yield "| relation | methods | tried | held | refused | failed | sentences |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for sentence, found in by_row.items():
        refused = [trial for trial in found if trial.refused]
        failed = [trial for trial in found if trial.failed]
        words = collections.defaultdict(list)
        for trial in (*refused, *failed):
            words[trial.refused or f"**{trial.failed}**"].append(str(trial.case))
        texts = "; ".join(f"{', '.join(named(of))}: {text}" for text, of in words.items())
        counts = (len({trial.case.method for trial in found}), len(found), len(found) - len(refused) - len(failed))
        cells = (sentence, *counts, len(refused), len(failed), texts)
        yield f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def named(cases_of: list[str], most: int = 4) -> list[str]:
    """A few of these cases, and how many more there are."""
    return cases_of if len(cases_of) <= most else [*cases_of[:most], f"{len(cases_of) - most} more"]


__all__ = ["ROWS", "Trial", "cases", "markdown", "names", "try_row"]
