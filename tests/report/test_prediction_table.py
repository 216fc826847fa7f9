"""A table that is continued: whole lines stay, a line that was cut short is dropped, wherever it was cut."""

import csv
from pathlib import Path

import pytest

from clipbias.report.prediction_table import key, open_table

COLUMNS = ("image", "class")
FACTS = {"adapter": "a", "sets": {"coverage": 0.9}}
ROWS = [
    {"image": "a.png", "class": "cat"},
    {"image": 'two\nlines, "quoted".png', "class": "dog"},
    {"image": key("half \ud800.png"), "class": "café | maine coon"},
]


def write(path: Path) -> set[str]:
    """Adds the rows that have no line, each by itself; returns those that had one."""
    with open_table(str(path), COLUMNS, FACTS) as table:
        before = set(table.images)
        for row in ROWS:
            if key(row["image"]) not in before:
                table.append([row])
    return before


def test_a_table_that_was_cut_anywhere_ends_as_one_that_was_not(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "whole.csv"
    assert write(path) == set()
    whole = path.read_bytes()
    assert list(csv.DictReader(whole.decode().splitlines(keepends=True))) == ROWS
    assert write(path) == {row["image"] for row in ROWS} and path.read_bytes() == whole
    known = set()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        known.add(len(write(path)))
        assert path.read_bytes() == whole, length
    assert known == {0, 1, 2}


def test_nobody_else_writes_meanwhile(tmp_path: Path) -> None:
    path = str(tmp_path / "a.csv")
    with (
        open_table(path, COLUMNS, FACTS),
        pytest.raises(ValueError, match=r"another process writes .*a\.csv; wait"),
        open_table(path, COLUMNS, FACTS),
    ):
        pass
