"""What a dry run says."""

from pathlib import Path

import pytest

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.training import flops
from clipbias.training import mesh as meshes
from clipbias.training.forecast import SHARES, device_rate
from clipbias.training.grid import Grid
from clipbias.training.programs import plan
from clipbias.training.settings import GridSettings, Recipe


def test_a_grids_forecast(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    grid = Grid(
        *(clip, recipe, GridSettings({}, "float32", 8, 60.0, "raise"), lambda name: colours, tmp_path),
        mesh=meshes.single_device(),
    )
    zero_shot, bias = grid.forecast(plan(["zero_shot", "bias"], ["colours"], [4], [1, 2], runs_per_program=0))
    # 12 training images in batches of 8, the rest left out: one step in each of three epochs.
    assert (bias.images, bias.steps, len(bias.tasks), bias.test_images) == (12, 3, 2, 15)
    features = flops.vision(clip.config, 15)
    assert bias.step.flop == 2 * flops.step(bias.tasks[0], 8)
    assert bias.flop == 3 * bias.step.flop + 2 * features  # a bias changes the image features of each run
    assert zero_shot.flop == features
    assert bias.seconds(1e9) == pytest.approx(bias.flop / 1e9 / SHARES["cpu"])
    text = bias.describe(1e9)
    for part in ("2 runs side by side", "3 steps", "3 classes", "15 test images", "vision_bias [", "memory: about"):
        assert part in text
    assert "nothing to train" in zero_shot.describe(1e9)
    assert not list(tmp_path.iterdir())


def test_a_forecast_has_the_programs_of_the_run(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    packs = plan(["bias"], ["colours", "again"], [4], [1], runs_per_program=0)

    def sizes(side_by_side: bool) -> list[int]:
        settings = GridSettings({}, "float32", 8, 60.0, "raise", side_by_side=side_by_side)
        grid = Grid(clip, recipe, settings, lambda name: colours, tmp_path, mesh=meshes.single_device())
        return [len(forecast.tasks) for forecast in grid.forecast(packs)]

    assert (sizes(True), sizes(False)) == ([2], [1, 1])


def test_the_device_has_a_rate() -> None:
    assert 1e6 < device_rate() < 1e16
