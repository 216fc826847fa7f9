"""A training in stages: it is continued in the stage that it was stopped in, and counts its steps on."""

import dataclasses
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.hosts import Stopped
from clipbias.io import read_json_lines
from clipbias.training import loop
from clipbias.training import mesh as meshes
from clipbias.training.forecast import forecast
from clipbias.training.grid import Grid
from clipbias.training.packs import Pack, make_packs
from clipbias.training.settings import GridSettings
from clipbias.tuning import Recipe
from clipbias.tuning.adapter import load_adapter

OPTIONS = {"two_stage": {"recipe": "common"}}


def make_grid(clip: Clip, dataset: Dataset, recipe: Recipe, folder: Path, protocol: str = "few_shot") -> Grid:
    settings = GridSettings(OPTIONS, "float32", 8, 0.0, "raise", protocol=protocol)
    return Grid(clip, recipe, settings, lambda name: dataset, folder, mesh=meshes.single_device())


def adapter_of(grid: Grid, pack: Pack, seed: int) -> dict[str, np.ndarray]:
    return dict(load_adapter(grid.trainer.adapter_path(pack, None, seed)).learnables)


def test_a_run_stopped_in_either_stage_ends_with_the_same_bits(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs = make_packs(["two_stage"], ["colours"], [2], [1, 2])
    recipe = dataclasses.replace(recipe, epochs=5)  # of one step, 3 and 2
    whole = make_grid(clip, colours, recipe, tmp_path / "whole")
    rows = whole.run(packs)
    expected = [adapter_of(whole, packs[0], seed) for seed in (1, 2)]
    assert all(row["status"] == "ok" for row in rows) and rows[0]["steps"] == 5
    assert any(leaf.any() for leaf in jax.tree.leaves(expected[0]["text_weights"]))
    original, stops = loop.train_step, {2: "step 2 of 5", 3: "step 5 of 5"}

    def train_until(calls: int):
        def step(*arguments, **options):
            nonlocal calls
            calls -= 1
            if calls == 0:
                signal.raise_signal(signal.SIGTERM)
            return original(*arguments, **options)

        return step

    def attempt() -> list:
        return make_grid(clip, colours, recipe, tmp_path / "stopped").run(packs)

    for calls, where in stops.items():
        monkeypatch.setattr(loop, "train_step", train_until(calls))
        with pytest.raises(Stopped, match=f"stopped at {where}"):
            attempt()
        monkeypatch.undo()
    again = attempt()
    assert [row["steps"] for row in again] == [5, 5]
    for name in ("correct", "loss"):  # of the last step, which was done before the last stop
        assert [row[name] for row in again] == [row[name] for row in rows]
    for seed, one in zip((1, 2), expected, strict=True):
        found = adapter_of(make_grid(clip, colours, recipe, tmp_path / "stopped"), packs[0], seed)
        jax.tree.map(np.testing.assert_array_equal, found, one)
    (metrics,) = (tmp_path / "stopped" / "runs").glob("*/metrics.jsonl")
    lines = list(read_json_lines(metrics))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert {line["steps"] for line in lines} == {5}
    assert not list((tmp_path / "stopped" / "checkpoints").glob("*"))


def test_a_forecast_counts_every_stage(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    (pack,) = make_packs(["two_stage"], ["colours"], [2], [1])
    grid = make_grid(clip, colours, recipe, tmp_path)
    text, _ = forecast(grid.trainer, pack, 1e9)
    steps = sum(own.total_steps(6) for _, own in grid.trainer.stages(pack))
    assert len(grid.trainer.stages(pack)) == 2 and f" {steps} steps" in text
