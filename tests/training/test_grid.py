import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.grid import Grid
from clipbias.training.programs import Pack, plan
from clipbias.training.settings import GridSettings, Recipe
from clipbias.tuning.adapter import load_adapter

SETTINGS = GridSettings(
    method_options={}, dtype="float32", eval_batch_size=8, checkpoint_seconds=60.0, on_image_error="raise"
)


def make_grid(
    clip: Clip, colours: Dataset, recipe: Recipe, folder: Path, *, mesh: Mesh | None = None, protocol: str = "few_shot"
) -> Grid:
    def load(name: str) -> Dataset:
        if name != "colours":
            raise ClipbiasError(f"there is no dataset {name!r}.")
        return colours

    settings = dataclasses.replace(SETTINGS, protocol=protocol)
    return Grid(clip, recipe, settings, load, folder, mesh=mesh or meshes.single_device())


def test_plan() -> None:
    packs = plan(["zero_shot", "bias"], ["a", "b"], [4, 16], [1, 2, 3], runs_per_program=2)
    assert [(p.method, p.dataset, p.shots, p.seeds) for p in packs[:5]] == [
        ("zero_shot", "a", 0, (0,)),
        ("bias", "a", 4, (1, 2)),
        ("bias", "a", 4, (3,)),
        ("bias", "a", 16, (1, 2)),
        ("bias", "a", 16, (3,)),
    ]
    assert len(packs) == 10
    assert plan(["bias"], ["a"], [4], [1, 2, 3], runs_per_program=0)[0].seeds == (1, 2, 3)


def test_every_cell_once_and_a_failing_one_costs_no_other(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    packs = plan(["zero_shot", "taskres"], ["nowhere", "colours"], [2], [1, 2], runs_per_program=0)
    rows = make_grid(clip, colours, recipe, tmp_path).run(packs)
    assert [row["status"] for row in rows] == ["failed"] * 3 + ["ok"] * 3
    assert rows[0]["error"] == "there is no dataset 'nowhere'."
    assert rows[-1]["parameters"] == 3 * clip.config.projection_width
    again = make_grid(clip, colours, recipe, tmp_path)
    again.shared._load_dataset = lambda name: (
        pytest.fail(f"finished work on {name} was done again") if name == "colours" else 1 / 0
    )
    repeated = again.run(packs)
    assert repeated[3:] == rows[3:]
    assert repeated[0]["error"] == "ZeroDivisionError: division by zero"
    assert not list((tmp_path / "checkpoints").iterdir())


def test_an_adapter_of_the_grid_gives_the_grids_accuracy(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    from clipbias.training import single

    grid = make_grid(clip, colours, recipe, tmp_path)
    packs = plan(["bias"], ["colours"], [2], [1, 2], runs_per_program=0)
    rows = grid.run(packs)
    for row, seed in zip(rows, (1, 2), strict=True):
        adapter = load_adapter(grid.adapter_path(packs[0], seed))
        assert adapter.notes["accuracy"] == row["accuracy"]
        assert np.any(adapter.learnables["vision_bias"])
        score = single.evaluate(
            adapter.task(clip),
            adapter.learnables,
            colours.split("test"),
            mesh=meshes.single_device(),
            eval_batch_size=8,
            on_image_error="raise",
        )
        assert score["correct"] == row["correct"]


# Three seeds do not divide by two: every device computes all of them.
@pytest.mark.parametrize(("protocol", "seeds"), [("few_shot", (1, 2, 3)), ("base_to_new", (1, 2))])
def test_seeds_split_over_devices_give_the_cells_of_one_device(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, protocol: str, seeds: tuple[int, ...]
) -> None:
    packs = plan(["bias"], ["colours"], [2], seeds, runs_per_program=0)
    cells, learnables = [], []
    for name, mesh in (("one", meshes.single_device()), ("four", meshes.make_mesh(run=2, data=2))):
        grid = make_grid(clip, colours, recipe, tmp_path / name, mesh=mesh, protocol=protocol)
        rows = grid.run(packs)
        assert [row["status"] for row in rows] == ["ok"] * len(seeds)
        cells.append([row.get("accuracies", row.get("accuracy")) for row in rows])
        learnables.append([load_adapter(grid.adapter_path(packs[0], seed)).learnables for seed in seeds])
    assert cells[0] == cells[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), *learnables)


def test_what_a_killed_run_no_longer_needs_is_removed(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    """Killed after its result was written and before its checkpoints were removed."""
    packs = plan(["zero_shot"], ["colours"], [2], [1], runs_per_program=0)
    grid = make_grid(clip, colours, recipe, tmp_path)
    rows = grid.run(packs)
    (grid._checkpoints(packs) / "3" / "state").mkdir(parents=True)
    grid._mark(grid._checkpoints(packs), packs)
    other = tmp_path / "checkpoints" / "another" / "3"  # of a run that is not finished, or not this one
    other.mkdir(parents=True)
    assert make_grid(clip, colours, recipe, tmp_path).run(packs) == rows
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["another"]
    assert other.exists()


def test_a_number_belongs_to_its_template_and_to_its_program(clip: Clip, recipe: Recipe, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("from clipbias.tuning.bias import BiasTuning as Own\n")

    def hashes(**inputs: str) -> list[str]:
        settings = dataclasses.replace(SETTINGS, inputs=inputs)
        grid = Grid(clip, recipe, settings, lambda name: None, tmp_path, mesh=meshes.single_device())
        return [grid.row(Pack(method, "colours", 2, (1,)), 1)["config_hash"] for method in ("bias", str(own))]

    plain = hashes()
    assert hashes() == plain
    assert not {*hashes(template="a {}.")} & {*plain}
    own.write_text("# changed\n" + own.read_text())
    assert [a == b for a, b in zip(hashes(), plain, strict=True)] == [True, False]
