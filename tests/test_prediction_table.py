"""The table of `predict`: continued after any cut, and never with what another program wrote."""

import csv
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clipbias.errors import ClipbiasError
from experiments.prediction_table import key, open_table

COLUMNS = ("image", "class")
FACTS = {"adapter": "a", "sets": {"coverage": 0.9}}
ROWS = [
    {"image": "a.png", "class": "cat"},
    {"image": key('two\nlines, "quoted".png'), "class": "dog"},
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


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


ODD_NAMES = st.text(st.sampled_from("=+-@'\t\r\n\",; ab") | st.characters(exclude_categories=()), max_size=6)


@given(st.lists(ODD_NAMES, min_size=1, max_size=4, unique_by=key), st.integers(0))
@example(["image", "a\rb", "=1+1", "'=1", "''-a", "-a", "@a", "+a", "\ta", "", " ", "'a"], 0)
def test_every_picture_keeps_its_only_line(names: list[str], cut: int) -> None:
    """Whatever its name, and wherever the table was cut. No spreadsheet takes a cell for a formula."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        for length in (None, None, cut):
            if length is not None:
                path.write_bytes(path.read_bytes()[: length % (path.stat().st_size + 1)])
            with open_table(str(path), COLUMNS, FACTS) as table:
                table.append([{"image": name, "class": name} for name in map(key, names) if name not in table.images])
            rows = lines_of(path)
            assert [row["image"].replace("'", "") for row in rows] == [key(name).replace("'", "") for name in names]
            assert all(row["class"] == row["image"] and None not in row for row in rows)
            assert not any(row["image"].startswith(("=", "+", "-", "@", "\t")) for row in rows)
            assert len({row["image"] for row in rows}) == len(names)


def test_a_cell_may_hold_all_classes_of_a_large_set(tmp_path: Path) -> None:
    for seen in (set(), {"a.png"}):
        with open_table(str(tmp_path / "a.csv"), COLUMNS, FACTS) as table:
            assert set(table.images) == seen
            table.append([{"image": "a.png", "class": "maine coon | " * 20_000}] if not seen else [])


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (1, lambda text: b"\xef\xbb\xbf" + text),
        (1, lambda text: text.replace(b"\n", b"\r\n")),
        (2, lambda text: text.replace(b"cat", b"cat,0")),
        (5, lambda text: text + b"\n"),
    ],
)
def test_a_table_that_another_program_saved_is_refused(
    line: int, change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    write(path)
    before = change(path.read_bytes())
    path.write_bytes(before)
    with pytest.raises(
        ClipbiasError, match=rf"a\.csv has a line {line} that predict .*; choose another --config\.output"
    ):
        write(path)
    assert path.read_bytes() == before
