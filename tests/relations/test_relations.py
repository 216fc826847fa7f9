"""Each row of the table of relations on each method: it holds, or is refused in a sentence that the row names."""

from collections.abc import Iterator
from typing import Any

import pytest

from clipbias.training.device import drop_many_programs
from tests.relations import choose
from tests.relations.every_row import ROWS, try_row
from tests.relations.table import Relation

MARKS = {"quick": (), "ci": (pytest.mark.ci,), "all": (pytest.mark.long,)}


def parameters() -> Iterator[Any]:
    """Method by method, since rows share its programs; each level has what the ones before left out."""
    for level, marks in MARKS.items():
        for method in choose.names(level):
            for row in ROWS:
                if choose.tried(row, method, level):
                    yield pytest.param(row, method, level, marks=marks, id=f"{level}: {method}: {row.sentence}")


@pytest.fixture(autouse=True)
def programs_of_few_methods() -> None:
    drop_many_programs()


@pytest.mark.filterwarnings("ignore:the (tuned model|training loss)", "ignore:.*cannot tell whether tuning helped")
@pytest.mark.parametrize(("row", "method", "level"), [*parameters()])
def test_relation(row: Relation, method: str, level: str) -> None:
    levels = [*MARKS][: [*MARKS].index(level)]
    known = {case for earlier in levels for case in choose.cases(row, method, earlier)}
    trials = try_row(row, (case for case in choose.cases(row, method, level) if case not in known))
    failed = [f"{trial.case}: {trial.failed}" for trial in trials if trial.failed]
    assert not failed, "\n".join([row.sentence, *failed])
