"""A grid in parts: which packs are whose, and the same results as of one job."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.errors import ClipbiasError
from clipbias.report.runs import read_workdir
from clipbias.training import mesh as meshes
from clipbias.training.dealing import Part
from clipbias.training.grid import Grid
from clipbias.training.packs import Pack, make_packs
from clipbias.training.trainer import VOLATILE, Trainer
from clipbias.training.workdir import open_part, open_workdir
from clipbias.tuning.recipe import Recipe
from tests.training.test_grid import SETTINGS


def test_names_of_parts() -> None:
    assert Part.named("") is None
    assert Part.named("2/4") == Part(2, 4) and str(Part(2, 4)) == "2/4"
    for wrong in ("0/4", "5/4", "1", "1/", "a/b", "1/4/2", "-1/4", "1.0/4"):
        with pytest.raises(ClipbiasError, match="give its number and that of all parts, such as 1/4"):
            Part.named(wrong)


def lasting(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in VOLATILE} for row in rows]


def work(folder: Path, part: Part | None, clip: Clip, colours: Dataset, recipe: Recipe, packs: list[Pack]) -> Grid:
    """One job, from opening its folder to its last row."""
    config = {"methods": ["zero_shot", "bias"], "datasets": ["colours"], "shots": [2, 4], "seeds": [1, 2]}
    config |= {"model": "", "mesh": {}, "workdir": "", "part": "" if part is None else str(part)}
    config |= {"learning_rates": [], "learning_rate": 0.1}
    opened = open_workdir(folder, config) if part is None else open_part(folder, config, part.folder(folder))
    with opened:
        grid = Grid(*(clip, recipe, SETTINGS, lambda name: colours, folder), mesh=meshes.single_device(), part=part)
        grid.run(packs)
        return grid


def test_parts_one_after_another_give_the_rows_of_one_job(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs = make_packs(["zero_shot", "bias"], ["colours"], [2, 4], [1, 2])
    expected = lasting(work(tmp_path / "one", None, clip, colours, recipe, packs).rows(packs))
    folder = tmp_path / "parts"
    for number in (2, 1):
        grid = work(folder, Part(number, 2), clip, colours, recipe, packs)
        assert (lasting(grid.rows(packs)) == expected) == (number == 1)
        (run,) = read_workdir(folder)
        said = "finished" if number == 1 else "part 2/2 finished after"
        assert run.state.startswith(said) and run.environment["processes"] == 1
    assert not (folder / "results.jsonl").exists()
    assert sorted(one.name for one in (folder / "parts").iterdir()) == ["1-of-2", "2-of-2"]
    assert sorted(one.name for one in (folder / "adapters").iterdir()) == sorted(
        one.name for one in (tmp_path / "one" / "adapters").iterdir()
    )
    assert run.accuracy == pytest.approx(
        [np.mean([row["accuracy"] for row in expected if row["method"] == method]) for method in ("zero_shot", "bias")]
    )
    # Started again, dealt to another number of jobs, or as one job: nothing is left to do.
    monkeypatch.setattr(Trainer, "train", lambda *_: pytest.fail("a finished cell is run again"))
    for part in (Part(1, 2), Part(2, 3), None):
        assert lasting(work(folder, part, clip, colours, recipe, packs).rows(packs)) == expected
    assert json.loads((folder / "config.json").read_text())["part"] == ""


def test_parts_work_side_by_side_but_not_twice_and_not_beside_the_whole(tmp_path: Path) -> None:
    first, second = (Part(number, 2).folder(tmp_path) for number in (1, 2))
    unfinished = tmp_path / "adapters" / ".clipbias-part-x"
    unfinished.parent.mkdir()
    with open_part(tmp_path, {}, first):
        unfinished.touch()  # this part may be writing it
        with open_part(tmp_path, {}, second):
            pass
        assert unfinished.exists()
        for opened in (open_part(tmp_path, {}, first), open_workdir(tmp_path, {})):
            with pytest.raises(ClipbiasError, match="another process works in"), opened:
                pass
    assert not unfinished.exists()


def test_of_a_cell_that_two_parts_ran_the_one_that_ended_well_counts(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    (pack,) = make_packs(["zero_shot"], ["colours"], [2], [1])
    grids = [
        Grid(*(clip, recipe, SETTINGS, lambda name: colours, tmp_path), mesh=meshes.single_device(), part=Part(n, 2))
        for n in (1, 2)
    ]
    named = grids[0].trainer.row(pack, None, 0)
    for grid, told in zip(grids, ({"status": "ok", "accuracy": 50.0}, {"status": "failed", "error": "x"}), strict=True):
        grid.trainer.own_folder.mkdir(parents=True)
        grid.results.append([named | told])
    for grid in grids:
        grid.results.read_others()
        (row,) = grid.rows([pack])
        assert row["status"] == "ok"
    pack = dataclasses.replace(pack, dataset="others")
    assert grids[0].rows([pack]) == []
