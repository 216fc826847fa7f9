"""Training against itself: devices, side-by-side runs, interruption, bad losses."""

import dataclasses
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from clipbias import hosts
from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.errors import ClipbiasError
from clipbias.io import read_json_lines
from clipbias.training import loop
from clipbias.training import mesh as meshes
from clipbias.tuning import Task
from clipbias.tuning.recipe import Recipe
from tests.training.conftest import few_shot_runs, train_runs


def group(
    clip: Clip, dataset: Dataset, method: str, seeds: tuple[int, ...], *, groups: int = 1
) -> tuple[Task, list[loop.Run]]:
    task = Task(clip, method, dataset.class_names, template=dataset.template, groups=groups)
    return task, few_shot_runs(dataset, seeds)


def assert_close(first, second, index=None) -> None:
    first, second = meshes.fetch((first, second))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        # Of sums in another order: small numbers differ by as much as large ones do.
        found = a if index is None else a[index : index + 1]
        np.testing.assert_allclose(found, b, rtol=0, atol=2e-5 * np.abs(b).max())


@pytest.mark.parametrize("method", ["ivlp"])
def test_eight_devices_give_the_numbers_of_one(clip: Clip, colours: Dataset, recipe: Recipe, method: str) -> None:
    one = train_runs(*group(clip, colours, method, (1, 2)), recipe)
    mesh = meshes.make_mesh(run=2, data=4)
    eight = train_runs(*group(clip, colours, method, (1, 2), groups=4), recipe, mesh)
    np.testing.assert_allclose(one.losses, eight.losses, rtol=2e-5)
    assert_close(one.learnables, eight.learnables)


def test_runs_side_by_side_are_the_runs_one_by_one(clip: Clip, colours: Dataset, recipe: Recipe) -> None:
    together = train_runs(*group(clip, colours, "bias", (1, 2)), recipe)
    for index, seed in enumerate((1, 2)):
        alone = train_runs(*group(clip, colours, "bias", (seed,)), recipe)
        np.testing.assert_allclose(together.losses[index], alone.losses[0], rtol=2e-5)
        assert_close(together.learnables, alone.learnables, index)
    assert together.losses[0] != together.losses[1]


@pytest.mark.long
def test_runs_that_do_not_divide_are_filled_up(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three runs on an axis of four: each device computes one, one program serves all steps, and any mesh continues."""
    recipe = dataclasses.replace(recipe, epochs=3)
    original, states = loop.train_step, []

    def watched(*arguments, **options):
        states.append([leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(arguments[5].learnables)])
        new = original(*arguments, **options)
        assert all(value.is_fully_replicated for value in new[1].values())
        if len(states) == 2:
            signal.raise_signal(signal.SIGTERM)
        return new

    runs = group(clip, colours, "bias", (1, 2, 3))
    whole = train_runs(*runs, recipe)
    compiled = original._cache_size()
    monkeypatch.setattr(loop, "train_step", watched)
    with hosts.stoppable(), pytest.raises(hosts.Stopped):
        train_runs(
            *group(clip, colours, "bias", (1, 2, 3)), recipe, meshes.make_mesh(run=4, data=1), checkpoints=tmp_path
        )
    assert original._cache_size() == compiled + 1
    assert {shape[0] for shapes in states for shape in shapes} == {1}
    moved = train_runs(
        *group(clip, colours, "bias", (1, 2, 3)), recipe, meshes.make_mesh(run=2, data=1), checkpoints=tmp_path
    )
    assert {shape[0] for shapes in states[2:] for shape in shapes} == {2}
    np.testing.assert_allclose(moved.losses, whole.losses, rtol=2e-5)
    assert len(moved.losses) == 3
    assert_close(moved.learnables, whole.learnables)


def test_a_batch_that_does_not_divide_is_padded_and_masked(clip: Clip, colours: Dataset, recipe: Recipe) -> None:
    recipe = dataclasses.replace(recipe, batch_size=6)
    mesh = meshes.make_mesh(run=1, data=8)
    one = train_runs(*group(clip, colours, "vpt", (1,)), recipe)
    eight = train_runs(*group(clip, colours, "vpt", (1,), groups=8), recipe, mesh)
    np.testing.assert_allclose(one.losses, eight.losses, rtol=2e-5)
    assert_close(one.learnables, eight.learnables)


def test_an_interrupted_run_ends_with_the_same_bits(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = group(clip, colours, "bias", (1, 2))
    whole = train_runs(*runs, recipe)
    original, calls = loop.train_step, 0

    def step_and_signal(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", step_and_signal)
    where = {"checkpoints": tmp_path / "checkpoints", "metrics": tmp_path}
    with hosts.stoppable(), pytest.raises(hosts.Stopped, match="stopped at step 2 of 3"):
        train_runs(*runs, recipe, **where)
    monkeypatch.undo()
    continued = train_runs(*runs, recipe, **where)
    for a, b in zip(jax.tree.leaves(whole.learnables), jax.tree.leaves(continued.learnables), strict=True):
        np.testing.assert_array_equal(meshes.fetch(a), meshes.fetch(b))
    assert [line["step"] for line in read_json_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_a_loss_that_is_not_finite_stops_and_names_the_step(clip: Clip, colours: Dataset, recipe: Recipe) -> None:
    recipe = dataclasses.replace(recipe, warmup_learning_rate=1e38)
    with pytest.raises(ClipbiasError, match=r"seed 1\) is (nan|inf) at step [23]"):
        train_runs(*group(clip, colours, "bias", (1,)), recipe)


def test_runs_of_different_sizes_are_refused(clip: Clip, colours: Dataset, recipe: Recipe) -> None:
    task, runs = group(clip, colours, "bias", (1,))
    fewer = dataclasses.replace(runs[0], train=colours.split("val"))
    with pytest.raises(ClipbiasError, match="different numbers of steps"):
        train_runs(task, [*runs, fewer], recipe)
