"""Every protocol through the grid, on drawn data."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from clipbias.training.grid import Grid
from clipbias.training.packs import make_packs
from clipbias.training.settings import GridSettings

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.tuning import Task
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.transfer import transfer


def run(clip: Clip, dataset: Dataset, recipe: Recipe, folder: Path, protocol: str, methods: list[str], **options):
    settings = GridSettings({}, "float32", 8, 60.0, "raise", protocol, **options)
    others = {"other": dataclasses.replace(dataset, name="other", class_names=("dark red", "dark green", "dark blue"))}
    others["part"] = dataclasses.replace(dataset.with_classes([2, 0]), name="part")

    def load(name: str) -> Dataset:
        return others.get(name, dataset)

    grid = Grid(clip, recipe, settings, load, folder, mesh=meshes.single_device())
    return grid.run(make_packs(methods, ["colours"], [2], [1, 2]))


def test_base_to_new(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    rows = run(clip, colours, recipe, tmp_path, "base_to_new", ["zero_shot", "vpt", "taskres"])
    assert [row["status"] for row in rows] == ["ok"] * 3 + ["failed"] * 2
    assert all(set(row["accuracies"]) == {"base", "new"} for row in rows[:3])
    assert rows[0]["accuracies"]["new"] == 100.0  # one new class is left to choose from
    assert "cannot be used with other classes" in rows[3]["error"]


def test_domain_generalization(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    rows = run(clip, colours, recipe, tmp_path, "domain_generalization", ["taskres"], targets=("part",))
    assert [set(row["accuracies"]) for row in rows] == [{"colours", "part"}] * 2


def test_cross_dataset(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    rows = run(clip, colours, recipe, tmp_path, "cross_dataset", ["vpt"], targets=("other",))
    assert [set(row["accuracies"]) for row in rows] == [{"colours", "other"}] * 2


def test_transfer_takes_the_rows_of_the_classes(clip: Clip) -> None:
    source, target = Task(clip, "taskres", ("a", "b", "c")), Task(clip, "taskres", ("c", "a"))
    learnables = {"text_residual": np.arange(3.0)[:, None] + np.zeros(clip.config.projection_width)}
    moved = transfer(source, target, learnables, (2, 0))
    np.testing.assert_array_equal(moved["text_residual"][:, 0], [2, 0])
    with pytest.raises(ClipbiasError, match="learned something for each class"):
        transfer(source, target, learnables)


def test_transfer_leaves_a_bias_alone_even_where_layers_and_classes_are_equally_many(clip: Clip) -> None:
    layers = clip.config.vision.layers
    source, target = (Task(clip, "bias", [f"{name}{i}" for i in range(layers)]) for name in "ab")
    learnables = source.init()
    assert transfer(source, target, learnables) is not None
    assert transfer(source, target, learnables)["vision_bias"] is learnables["vision_bias"]
