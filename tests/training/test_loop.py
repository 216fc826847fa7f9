"""Training against itself: devices, side-by-side runs, interruption, bad losses; and checkpoints on disk."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.errors import ClipbiasError
from clipbias.hosts import Stopped, stoppable
from clipbias.io import read_json_lines
from clipbias.training import loop, placement
from clipbias.training.checkpoints import Checkpoints
from clipbias.training.loop import TrainResult
from clipbias.training.step import train_step
from clipbias.tuning.recipe import Recipe
from tests.forks import ROOT
from tests.helpers import signal_at
from tests.training.conftest import group, train_runs


def assert_close(first: TrainResult, second: TrainResult, index: slice = slice(None)) -> None:
    """Equal losses and learnables; of the first, the runs at `index`."""
    np.testing.assert_allclose(first.losses[index], second.losses, rtol=2e-5)
    for a, b in zip(jax.tree.leaves(first.learnables), jax.tree.leaves(second.learnables), strict=True):
        # Of sums in another order: small numbers differ by as much as large ones do.
        np.testing.assert_allclose(a[index], b, rtol=0, atol=2e-5 * np.abs(b).max())


@pytest.fixture(scope="module")
def whole(clip: Clip, colours: Dataset, recipe: Recipe) -> TrainResult:
    """Two undisturbed runs on one device, of six steps each."""
    return train_runs(*group(clip, colours, "bias", (1, 2)), recipe)


@pytest.mark.ci
def test_runs_side_by_side_are_the_runs_one_by_one(clip, colours, recipe, whole):
    for index, seed in enumerate((1, 2)):
        assert_close(whole, train_runs(*group(clip, colours, "bias", (seed,)), recipe), slice(index, index + 1))
    assert whole.losses[0] != whole.losses[1]


def test_an_interrupted_run_ends_with_the_same_bits(clip, colours, recipe, whole, tmp_path):
    where = {"checkpoints": tmp_path / "checkpoints", "metrics": tmp_path}
    stops = signal_at(loop, "train_step", 2)
    with stops, stoppable(), pytest.raises(Stopped, match="stopped at step 2 of 6"):
        train_runs(*group(clip, colours, "bias", (1, 2)), recipe, **where)
    continued = train_runs(*group(clip, colours, "bias", (1, 2)), recipe, **where)
    jax.tree.map(np.testing.assert_array_equal, continued.learnables, whole.learnables)
    assert [line["step"] for line in read_json_lines(tmp_path / "metrics.jsonl")] == [*range(1, 7)]


@pytest.mark.long
def test_runs_that_do_not_divide_are_filled_up(clip, colours, recipe, tmp_path):
    """Three runs on an axis of four, continued on one of two; one program serves all steps."""
    runs = group(clip, colours, "bias", (1, 2, 3))
    three = train_runs(*runs, recipe)
    compiled = train_step._cache_size()
    stops = signal_at(loop, "train_step", 2)
    with stops, stoppable(), pytest.raises(Stopped):
        train_runs(*runs, recipe, placement.make_mesh(run=4, data=1), checkpoints=tmp_path)
    assert train_step._cache_size() == compiled + 1
    assert_close(train_runs(*runs, recipe, placement.make_mesh(run=2, data=1), checkpoints=tmp_path), three)


def test_a_loss_that_is_not_finite_stops_and_names_the_step(clip, colours, recipe):
    task, (run,) = group(clip, colours, "bias", (1,))
    with pytest.raises(ClipbiasError, match=r"seed 1\) is (nan|inf) at step 4"):  # the warm-up takes two
        train_runs(task, [dataclasses.replace(run, learning_rate=1e38)], recipe)


def state(value: float) -> dict[str, Any]:
    return {"a": jnp.full((2, 3), value), "b": [jnp.arange(4)]}


def save(folder: Path, steps: tuple[int, ...]) -> None:
    """Of states that are split over a mesh; they come back on the host."""
    checkpoints = Checkpoints(folder)
    for step in steps:
        placed = placement.device_put(placement.make_mesh(run=2, data=4), state(step), placement.RUN)
        checkpoints.save(step, placed, [step / 7, float("nan")])
    checkpoints.close()


def restore(folder: Path, like: Any = None) -> Any:
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(like or state(0))
    finally:
        checkpoints.close()


def test_the_latest_of_two_comes_back(tmp_path):
    assert restore(tmp_path / "new") is None
    tmp_path = tmp_path / "run"
    save(tmp_path, (1, 2, 3))
    step, restored, losses = restore(tmp_path)
    assert step == 3 and losses[0] == 3 / 7 and np.isnan(losses[1])
    np.testing.assert_array_equal(restored["a"], state(3)["a"])
    np.testing.assert_array_equal(restored["b"][0], np.arange(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    save(tmp_path, (1,))
    for like in ({"a": jnp.zeros((2, 4)), "b": [jnp.arange(4)]}, {"c": jnp.zeros(3)}):
        with pytest.raises(ClipbiasError, match=r"cannot read the checkpoint of step 1 .*remove that folder to start"):
            restore(tmp_path, like)
    for path in tmp_path.rglob("*METADATA*"):
        path.write_text("{")
    with pytest.raises(ClipbiasError, match=r"cannot (open|read) the checkpoint.*remove that folder to start anew"):
        restore(tmp_path)


@pytest.mark.ci
def test_a_kill_within_a_save_leaves_the_step_before_it(tmp_path):
    program = """
import sys
import numpy as np
from clipbias.training.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
for step in range(1, 10**6):
    checkpoints.save(step, {"a": np.full(10**6, step)}, [])
    if step > 1:
        print("said", step - 1, flush=True)  # which is on disk: the next one is being saved
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        before = next(int(line[5:]) for line in run.stdout if line == "said 3\n")
        run.send_signal(signal.SIGKILL)
    step, restored, _ = restore(tmp_path, {"a": np.zeros(10**6, np.int64)})
    assert step >= before
    np.testing.assert_array_equal(restored["a"], step)
    save(tmp_path / "on", (step + 1,))
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]
