"""Trainings of prompts over devices, of two stages in a sweep, and PromptSRC's average over epochs."""

import dataclasses
import json
import signal
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from clipbias import hosts
from clipbias.data import Dataset
from clipbias.training import loop
from clipbias.training import mesh as meshes
from clipbias.training.job import TrainResult
from clipbias.tuning import Learnables, Method, Recipe, Task, make_method
from clipbias.tuning.methods.promptsrc import PromptSRC
from clipbias.tuning.methods.taskres import TaskRes
from clipbias.tuning.registry import resolve_method
from tests.reference import teachers
from tests.training.conftest import few_shot_runs, train_runs
from tests.training.sweeps import TinySweep
from tests.tuning.heads_common import COMMON

RECIPE = dataclasses.replace(COMMON, epochs=2, batch_size=6)


@dataclasses.dataclass(frozen=True)
class Twice(TaskRes):
    """Two trainings whose steps are quickly compiled; its end is told by numbers of its own."""

    def stages(self, recipe: Recipe) -> Sequence[tuple[Method, Recipe]]:
        return [(self, recipe)] * 2

    def next_stage(self, stage: int, learnables: Learnables, text: np.ndarray | None) -> Learnables:
        assert (text is not None) == (stage == 1)
        return jax.tree.map(lambda leaf: np.full_like(leaf, stage), learnables) if stage == 2 else learnables


@pytest.mark.ci
def test_a_sweep_of_two_trainings(pair, colours, tmp_path):
    tiny = TinySweep(pair[0], colours, RECIPE, tmp_path)
    (spec,) = tiny.specs(f"{__name__}:Twice", seeds=(1,))
    (row,) = tiny.run([spec])
    assert row["status"] == "ok", row.get("error")
    assert (tiny.adapter(spec).learnables["text_residual"] == 2).all()
    (metrics,) = (tmp_path / "runs").glob("*Twice*/metrics.jsonl")
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == 4  # two epochs of a step each


# PromptSRC's average.


@pytest.mark.parametrize(
    ("name", "dataset", "epochs", "mean", "deviation"),
    [
        ("promptsrc", "imagenet", 50, 30, 30),
        ("promptsrc", "eurosat", 50, 45, 5),
        ("promptsrc", "stanford_cars", 10, 9, 1),
        ("promptsrc_base_to_new", "eurosat", 20, 15, 1),
        ("promptsrc_cross_dataset", "imagenet", 20, 6, 10),
        ("promptsrc_base_to_new", "eurosat", 10, 7.5, 0.5),
    ],
)
def test_the_gaussian_of_the_average(name, dataset, epochs, mean, deviation):
    weights = resolve_method(name, {}, dataset=dataset, shots=16).average(epochs)
    np.testing.assert_allclose(weights, teachers.gaussian_weights(epochs, mean, deviation), rtol=1e-9)
    assert make_method("promptsrc", mean=0.0, deviation=1e-3).average(1) == [1.0]


class Averaged(TaskRes):
    """A method whose steps are quickly compiled, with PromptSRC's average."""

    def average(self, epochs: int) -> Sequence[float] | None:
        return PromptSRC().average(epochs)


def train(task: Task, dataset: Dataset, recipe: Recipe, mesh=None, **logging) -> TrainResult:
    return train_runs(task, few_shot_runs(dataset, (1, 2)), recipe, mesh, **logging)


@pytest.mark.ci
def test_the_average_over_epochs_survives_a_kill_in_the_middle(pair, colours, tmp_path, monkeypatch):
    task = Task(pair[0], Averaged(), colours.class_names)
    recipe = dataclasses.replace(RECIPE, epochs=4)  # two steps in each
    original = loop.train_step
    states = []

    def watched(*arguments, **options):
        state, values = original(*arguments, **options)
        states.append(jax.tree.map(np.array, meshes.device_get(state.learnables)))
        return state, values

    monkeypatch.setattr(loop, "train_step", watched)
    whole = train(task, colours, recipe).learnables
    epochs = states[1::2]
    assert len(epochs) == 4
    expected = teachers.average(epochs, PromptSRC().average(4))
    for name, value in expected.items():
        np.testing.assert_allclose(whole[name], value, atol=1e-6 * np.abs(value).max())
        assert np.abs(whole[name] - epochs[-1][name]).max() > 1e-4 * np.abs(value).max()

    for stop in (3, 4):  # in an epoch, and at its end

        def stopped(*arguments, stop=stop, **options):
            if len(states) == stop - 1:
                signal.raise_signal(signal.SIGTERM)
            return watched(*arguments, **options)

        states.clear()
        monkeypatch.setattr(loop, "train_step", stopped)
        where = {"checkpoints": tmp_path / str(stop), "checkpoint_seconds": 3600.0}
        with hosts.stoppable(), pytest.raises(hosts.Stopped, match=f"stopped at step {stop} of 8"):
            train(task, colours, recipe, **where)
        monkeypatch.setattr(loop, "train_step", original)
        continued = train(task, colours, recipe, **where).learnables
        for name, value in whole.items():
            np.testing.assert_array_equal(continued[name], value)
