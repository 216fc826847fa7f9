"""The same run on other devices: all of it, or a part of it on each of several meshes, stopped and continued."""

import dataclasses
import signal
from pathlib import Path

import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.hosts import Stopped, stoppable
from clipbias.io import read_json_lines
from clipbias.training import loop
from clipbias.training import mesh as meshes
from clipbias.tuning.recipe import Recipe
from tests.training.conftest import train_runs
from tests.training.test_loop import assert_close, group

STEPS = 4


@pytest.fixture
def four(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, epochs=STEPS)


def bias_on(devices: int, clip: Clip, colours: Dataset, recipe: Recipe, **where) -> loop.Trained:
    mesh = meshes.make_mesh(run=1, data=devices)
    return train_runs(*group(clip, colours, "bias", (1,), groups=devices), recipe, mesh, **where)


@pytest.fixture
def whole(clip: Clip, colours: Dataset, four: Recipe, tmp_path: Path) -> tuple[loop.Trained, list[float]]:
    """An undisturbed run on one device, and the loss of each of its steps."""
    trained = bias_on(1, clip, colours, four, metrics=tmp_path / "whole")
    return trained, [line["loss"] for line in read_json_lines(tmp_path / "whole" / "metrics.jsonl")]


def test_several_devices_give_the_numbers_of_one(clip: Clip, colours: Dataset, four: Recipe, whole) -> None:
    """Four of them; two and eight follow below."""
    several = bias_on(4, clip, colours, four)
    np.testing.assert_allclose(several.losses, whole[0].losses, rtol=2e-5)
    assert_close(several.learnables, whole[0].learnables)


@pytest.mark.long
def test_a_run_moves_between_devices_at_every_notice_to_stop(
    clip: Clip, colours: Dataset, four: Recipe, whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {"checkpoints": tmp_path / "checkpoints", "metrics": tmp_path}
    original = loop.train_step

    def step_and_signal(*arguments, **options):
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", step_and_signal)
    for step, devices in enumerate((8, 1, 8), start=1):
        with stoppable(), pytest.raises(Stopped, match=f"stopped at step {step} of {STEPS}"):
            bias_on(devices, clip, colours, four, **where)
    monkeypatch.undo()
    last = bias_on(2, clip, colours, four, **where)
    lines = read_json_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    np.testing.assert_allclose([line["loss"] for line in lines], whole[1], rtol=2e-5)
    assert_close(last.learnables, whole[0].learnables)
