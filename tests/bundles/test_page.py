"""The page of bundles: what may share a table, tiers, and how it looks in a browser."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from clipbias.bundles.files import INDEX
from clipbias.bundles.page import (
    RECOMPUTED,
    REPORTED,
    REPRODUCED,
    UNCLEAR,
    make_grids,
    pair_table,
    read_submissions,
    show,
)
from clipbias.bundles.page import write_page as write
from clipbias.bundles.write import write_bundle
from tests.browser import Browser
from tests.bundles.synthetic import alter, make_workdir

ALL = ("zero_shot", "bias", "ivlp", "taskres")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles with other seeds, one of them of all methods; a third whose predictions are incomplete."""
    folder = tmp_path_factory.mktemp("bundles")
    runs, results = folder / "runs", folder / "results"
    write_bundle([make_workdir(runs / "a", methods=ALL, seeds=(1, 2))], results / "a")
    write_bundle([make_workdir(runs / "b", seeds=(2, 3), noise=1)], results / "b")
    third = make_workdir(runs / "c", methods=("bias",), dataset="demo/digits", validation="validation split")
    write_bundle([third], results / "c")

    def remove(members: dict[str, bytes]) -> None:
        members.pop(next(name for name in members if name.startswith("predicted/")))

    alter(results / "c", remove, "demo_digits.npz")
    return results


def test_what_shares_a_table_and_how_far_it_is_trusted(root: Path) -> None:
    submissions, failures = read_submissions(root, hub=lambda name, revision: None)
    assert not failures and [each.bundle.name for each in submissions] == ["a", "b", "c"]
    first, second = make_grids(submissions)
    assert (first.policy, second.policy) == ("none", "validation split")  # never in one column
    bias = first.rows["Bias tuning"]["demo/fashion"]
    assert bias.number.seeds == 3 and bias.tier == REPRODUCED and "seeds 1, 2, 3; a, b; a less b: " in bias.note
    assert first.rows["TaskRes"]["demo/fashion"].tier == RECOMPUTED
    assert second.rows["Bias tuning"]["demo/digits"].tier == REPORTED
    assert second.rows["Bias tuning"]["demo/digits"].number.seeds == 3


def test_a_bundle_with_a_difference_is_not_pooled_with_others(root: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(root / name, tmp_path / name)
    (tmp_path / "b" / "photo.jpg").write_text("")
    (grid,) = make_grids(read_submissions(tmp_path)[0])
    cell = grid.rows["Bias tuning"]["demo/fashion"]
    assert cell.number.seeds == 2 and cell.tier == RECOMPUTED and "; a; " in cell.note


def test_a_copy_reproduces_nothing(root: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(root / "a", tmp_path / name)
    (grid,) = make_grids(read_submissions(tmp_path)[0])
    assert {cell.tier for row in grid.rows.values() for cell in row.values()} == {RECOMPUTED}
    index = json.loads((tmp_path / "two" / INDEX).read_text())
    (tmp_path / "two" / INDEX).write_text(json.dumps(index | {"format": 0}))
    submissions, failures = read_submissions(tmp_path)
    assert len(submissions) == 1 and "has format 0" in failures[0]


def test_paired_tests(root: Path) -> None:
    grid, _ = make_grids(read_submissions(root)[0])
    rows = {name: cells[0] for name, cells in show(grid)}
    assert rows["TaskRes"].best and rows["TaskRes"].difference == ""
    one, other = (grid.rows[name]["demo/fashion"].number for name in ("Bias tuning", "IVLP"))
    assert grid.difference("Bias tuning", "IVLP", "demo/fashion").error < (one.error**2 + other.error**2) ** 0.5
    assert rows["Zero-shot"].difference.startswith("-")
    assert rows["Bias tuning"].difference not in ("", UNCLEAR)
    assert rows["Bias tuning"].note == grid.rows["Bias tuning"]["demo/fashion"].note


def test_all_pairs_are_rows_less_columns(root: Path) -> None:
    grid, few = make_grids(read_submissions(root)[0])
    assert pair_table(few) is None  # of one method
    table = pair_table(grid)
    assert table is not None and table.columns[1:] == tuple(row[0] for row in table.rows)
    assert "Row less column on demo/fashion" in table.caption
    for one, *cells in table.rows:
        for other, cell in zip(table.columns[1:], cells, strict=True):
            if one == other:
                assert cell == ""
                continue
            first, second = (grid.rows[name]["demo/fashion"].number.value for name in (one, other))
            if abs(first - second) > 1.96 * grid.difference(one, other, "demo/fashion").error:
                assert float(cell.split()[0]) == pytest.approx(first - second, abs=0.051)
            else:
                assert cell == UNCLEAR


def test_an_average_is_as_far_trusted_as_its_least_part(tmp_path: Path) -> None:
    workdirs = [make_workdir(tmp_path / name, dataset=f"demo/{name}") for name in ("fashion", "digits")]
    write_bundle(workdirs, tmp_path / "results" / "a")
    (grid,) = make_grids(read_submissions(tmp_path / "results")[0])
    *parts, mean = dict(show(grid))["Bias tuning"]
    cells = grid.rows["Bias tuning"]
    assert [part.note for part in parts] == [cell.note for cell in cells.values()] and len(parts) == 2
    assert mean.note == f"mean of 2 datasets; {mean.tier}" and mean.tier == parts[0].tier
    assert float(mean.number) == pytest.approx(np.mean([cell.number.value for cell in cells.values()]), abs=0.05)


def test_in_a_browser(root: Path, tmp_path: Path) -> None:
    page = write(read_submissions(root)[0], tmp_path / "results.html", ["<b>broken</b>"])
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(page)
        visible = "[...document.querySelectorAll('section.grid')].filter(x => !x.hidden).length"
        assert browser.evaluate(visible) == 2
        browser.evaluate(
            "(() => { const f = document.forms[0]; f.policy.value = 'none'; f.dispatchEvent(new Event('change')); })()"
        )
        assert browser.evaluate(visible) == 1
        assert browser.evaluate("document.querySelectorAll('.tier.reproduced').length") > 2
        assert "<b>broken</b>" in browser.evaluate("document.querySelector('ul.failed').textContent")
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        browser.open(page, width=400)
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        browser.open(page, scripts=False)
        assert not browser.complaints and not [url for url in browser.requests if url.startswith("http")]
    finally:
        browser.close()
