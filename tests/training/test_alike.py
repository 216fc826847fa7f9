"""Runs on datasets with different classes, side by side, give what each gives alone."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.alike import crop, fill_up
from clipbias.training.grid import Grid
from clipbias.training.loop import Run, train
from clipbias.training.memory import REMATS
from clipbias.training.programs import Pack, Program, make_programs, plan
from clipbias.training.settings import GridSettings, Recipe
from clipbias.tuning import Task

KEPT = ("correct", "images", "accuracy", "config_hash")

# The second dataset has fewer classes and images of the first.
NAMES = {"colours": ("red", "green", "blue"), "long": ("dark red", "grass")}


def other(colours: Dataset) -> Dataset:
    """Two classes with as many training images as `colours` has."""
    two = colours.with_classes([0, 1])
    train = colours.split("train")
    relabelled = dataclasses.replace(train, labels=np.minimum(train.labels, 1))
    splits = {"train": relabelled, "test": two.split("test")}
    return Dataset("long", NAMES["long"], "a photo of a {}, a colour.", splits)


@pytest.mark.parametrize(
    ("method", "options", "devices"),
    [
        ("ivlp", {}, 2),
        ("coop", {"class_specific": True}, 1),
        ("vpt", {}, 1),
        ("taskres", {}, 1),
        ("bias", {"chunks": 2, "remat": REMATS["half"].policy}, 1),
    ],
)
def test_side_by_side_equals_alone(
    clip: Clip, colours: Dataset, recipe: Recipe, method: str, options: dict, devices: int
) -> None:
    mesh = meshes.make_mesh(data=devices, devices=jax.devices()[:devices])
    params = meshes.replicate(mesh, clip.params)
    runs = []
    for dataset, seed, rate in ((colours, 1, None), (other(colours), 2, 0.01)):
        task = Task(clip, method, dataset.class_names, template=dataset.template, groups=devices, **options)
        runs.append(Run(task, dataset.split("train"), seed, rate))
    together = train(clip, params, runs, recipe, mesh=mesh)
    for index, run in enumerate(runs):
        alone = train(clip, params, [run], recipe, mesh=mesh)
        assert together.losses[index] == pytest.approx(alone.losses[0], rel=2e-5, abs=1e-6)
        mine = jax.tree.map(lambda leaf, i=index: np.asarray(leaf)[i : i + 1], together.learnables)
        for name, expected in meshes.fetch(alone.learnables).items():
            found = crop(mine, run.task)[name]
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=2e-6 * max(1, np.abs(expected).max()), err_msg=name)
            start = np.asarray(run.task.init(run.seed)[name])
            assert not expected.size or np.any(expected[0] != start)


def test_what_is_filled_up_stays_zero(clip: Clip, colours: Dataset, recipe: Recipe) -> None:
    tasks = [Task(clip, "taskres", names) for names in NAMES.values()]
    runs = [Run(task, one.split("train"), 1) for task, one in zip(tasks, (colours, other(colours)), strict=True)]
    trained = train(clip, clip.params, runs, recipe, mesh=meshes.single_device())
    residual = np.asarray(trained.learnables["text_residual"])
    assert residual.shape[:2] == (2, 3) and np.any(residual[1, :2])
    np.testing.assert_array_equal(residual[1, 2], 0)


def test_fill_up_keeps_what_is_there() -> None:
    short, long = fill_up([{"a": np.ones((2, 3)), "b": np.ones(4)}, {"a": np.ones((5, 3)), "b": np.ones(4)}])
    assert short["a"].shape == long["a"].shape == (5, 3) and short["a"].sum() == 6 and short["b"].shape == (4,)


def test_methods_with_other_options_are_no_program(clip: Clip, colours: Dataset, recipe: Recipe) -> None:
    runs = [Run(Task(clip, "taskres", NAMES["colours"], alpha=a), colours.split("train"), 1) for a in (0.5, 1.0)]
    with pytest.raises(ClipbiasError, match="differ in more than their classes"):
        train(clip, clip.params, runs, recipe, mesh=meshes.single_device())


def test_programs_keep_the_order_and_the_datasets_together() -> None:
    packs = [Pack("bias", dataset, shots, (1, 2)) for dataset in "abc" for shots in (4, 8)]
    steps = {"a": 1, "b": 2, "c": 1}
    programs = make_programs(packs, lambda pack: (steps[pack.dataset], pack.shots), lambda group: True)
    assert [[pack.dataset + str(pack.shots) for pack in program.packs] for program in programs] == [
        ["a4", "c4"],
        ["a8", "c8"],
        ["b4"],
        ["b8"],
    ]
    assert programs[0].sources == programs[1].sources == {"a", "c"}
    small = make_programs(packs, lambda pack: "all", lambda group: len(group) <= 4)
    assert [len(program.packs) for program in small] == [4, 2]
    assert make_programs(packs[:1], lambda pack: None, lambda group: True)[0] == Program((packs[0],), frozenset("a"))


def test_a_grid_puts_datasets_and_rates_together_and_gives_the_numbers_of_each(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipbias.training import grid as grids

    # Other test images and other classes: what is kept of one dataset must not serve the other.
    splits = {**colours.splits, "test": colours.split("val")}
    again = dataclasses.replace(colours, name="again", class_names=("x", "y y", "z"), splits=splits)
    datasets = {"colours": colours, "again": again}
    packs = plan(["bias"], list(datasets), [2], [1], runs_per_program=0, learning_rates=(0.05, 0.01))
    sizes = []

    def run(folder: Path, side_by_side: bool) -> list[dict]:
        settings = GridSettings({}, "float32", 8, 60.0, "raise", side_by_side=side_by_side)
        grid = Grid(clip, recipe, settings, datasets.__getitem__, folder, mesh=meshes.single_device())
        return grid.run(packs)

    def counted(clip, params, runs, *arguments, **options):
        sizes.append(len(runs))
        return train(clip, params, runs, *arguments, **options)

    monkeypatch.setattr(grids, "train", counted)
    together, alone = run(tmp_path / "a", True), run(tmp_path / "b", False)
    assert sizes == [4, 1, 1, 1, 1]
    assert [row["learning_rate"] for row in together] == [0.05, 0.01, 0.05, 0.01]
    assert len({row["config_hash"] for row in together}) == 4
    for one, other_one in zip(together, alone, strict=True):
        assert one["loss"] == pytest.approx(other_one["loss"], rel=2e-5, abs=1e-6)
        assert {k: one[k] for k in KEPT} == {k: other_one[k] for k in KEPT}
    assert len(list((tmp_path / "a" / "adapters").iterdir())) == 4
    run(tmp_path / "a", True)  # finished work is not done again
    assert len(sizes) == 5


def test_options_of_one_dataset_are_its_own_even_where_classes_are_the_same(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    options = {"taskres": {"alpha": 0.5}, "taskres@again": {"alpha": 1.0}}
    settings = GridSettings(options, "float32", 8, 60.0, "raise")
    grid = Grid(clip, recipe, settings, lambda name: colours, tmp_path, mesh=meshes.single_device())
    forecasts = grid.forecast(plan(["taskres"], ["colours", "again"], [2], [1], runs_per_program=0))
    assert [[task.method.alpha for task in forecast.tasks] for forecast in forecasts] == [[0.5], [1.0]]
