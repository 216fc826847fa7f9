"""Training against itself: devices, side-by-side runs, interruption, bad losses."""

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.errors import ClipbiasError
from clipbias.hosts import Stopped, stoppable
from clipbias.io import read_json_lines
from clipbias.training import loop
from clipbias.training import mesh as meshes
from clipbias.training.job import TrainResult
from clipbias.tuning.recipe import Recipe
from tests.training.conftest import group, train_runs


def assert_close(first: TrainResult, second: TrainResult, index: slice = slice(None)) -> None:
    """Equal losses and learnables; of the first, the runs at `index`."""
    np.testing.assert_allclose(first.losses[index], second.losses, rtol=2e-5)
    for a, b in zip(jax.tree.leaves(first.learnables), jax.tree.leaves(second.learnables), strict=True):
        # Of sums in another order: small numbers differ by as much as large ones do.
        np.testing.assert_allclose(a[index], b, rtol=0, atol=2e-5 * np.abs(b).max())


def stop_at(steps: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Raises a notice to stop at these calls of a step; returns what ends this."""
    original = loop.train_step
    calls = 0

    def step_and_signal(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls in steps:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", step_and_signal)
    return lambda: monkeypatch.setattr(loop, "train_step", original)


@pytest.fixture(scope="module")
def whole(clip: Clip, colours: Dataset, recipe: Recipe) -> TrainResult:
    """Two undisturbed runs on one device, of six steps each."""
    return train_runs(*group(clip, colours, "bias", (1, 2)), recipe)


@pytest.mark.long
def test_eight_devices_give_the_numbers_of_one(
    clip: Clip, colours: Dataset, recipe: Recipe, whole: TrainResult, tmp_path: Path
) -> None:
    """Batches of six images and three classes do not divide by four devices: they are padded and masked."""
    mesh = meshes.make_mesh(run=2, data=4)
    assert_close(train_runs(*group(clip, colours, "bias", (1, 2), groups=4), recipe, mesh), whole)


@pytest.mark.ci
def test_runs_side_by_side_are_the_runs_one_by_one(
    clip: Clip, colours: Dataset, recipe: Recipe, whole: TrainResult
) -> None:
    for index, seed in enumerate((1, 2)):
        assert_close(whole, train_runs(*group(clip, colours, "bias", (seed,)), recipe), slice(index, index + 1))
    assert whole.losses[0] != whole.losses[1]


def test_an_interrupted_run_ends_with_the_same_bits(
    clip: Clip, colours: Dataset, recipe: Recipe, whole: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {"checkpoints": tmp_path / "checkpoints", "metrics": tmp_path}
    goes_on = stop_at((2,), monkeypatch)
    with stoppable(), pytest.raises(Stopped, match="stopped at step 2 of 6"):
        train_runs(*group(clip, colours, "bias", (1, 2)), recipe, **where)
    goes_on()
    continued = train_runs(*group(clip, colours, "bias", (1, 2)), recipe, **where)
    jax.tree.map(np.testing.assert_array_equal, continued.learnables, whole.learnables)
    assert [line["step"] for line in read_json_lines(tmp_path / "metrics.jsonl")] == [*range(1, 7)]


@pytest.mark.long
def test_a_run_moves_between_devices_at_every_notice_to_stop(
    clip: Clip, colours: Dataset, recipe: Recipe, whole: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {"checkpoints": tmp_path / "checkpoints", "metrics": tmp_path}

    def on(devices: int) -> TrainResult:
        task, runs = group(clip, colours, "bias", (1, 2), groups=devices)
        return train_runs(task, runs, recipe, meshes.make_mesh(run=1, data=devices), **where)

    goes_on = stop_at((1, 2, 3), monkeypatch)
    for step, devices in enumerate((8, 1, 8), start=1):
        with stoppable(), pytest.raises(Stopped, match=f"stopped at step {step} of 6"):
            on(devices)
    goes_on()
    assert_close(on(2), whole)
    assert [line["step"] for line in read_json_lines(tmp_path / "metrics.jsonl")] == [*range(1, 7)]


@pytest.mark.long
def test_runs_that_do_not_divide_are_filled_up(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three runs on an axis of four: each device computes one, one program serves all steps, and any mesh continues."""
    original = loop.train_step
    states = []

    def watched(*arguments, **options):
        states.append([leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(arguments[2].learnables)])
        new = original(*arguments, **options)
        assert all(value.is_fully_replicated for value in new[1].values())
        if len(states) == 2:
            signal.raise_signal(signal.SIGTERM)
        return new

    runs = group(clip, colours, "bias", (1, 2, 3))
    three = train_runs(*runs, recipe)
    compiled = original._cache_size()
    monkeypatch.setattr(loop, "train_step", watched)
    with stoppable(), pytest.raises(Stopped):
        train_runs(*runs, recipe, meshes.make_mesh(run=4, data=1), checkpoints=tmp_path)
    assert original._cache_size() == compiled + 1
    assert {shape[0] for shapes in states for shape in shapes} == {1}
    moved = train_runs(*runs, recipe, meshes.make_mesh(run=2, data=1), checkpoints=tmp_path)
    assert {shape[0] for shapes in states[2:] for shape in shapes} == {2}
    assert len(moved.losses) == 3
    assert_close(moved, three)


def test_a_loss_that_is_not_finite_stops_and_names_the_step(clip: Clip, colours: Dataset, recipe: Recipe) -> None:
    task, (run,) = group(clip, colours, "bias", (1,))
    with pytest.raises(ClipbiasError, match=r"seed 1\) is (nan|inf) at step 4"):  # the warm-up takes two
        train_runs(task, [dataclasses.replace(run, learning_rate=1e38)], recipe)
