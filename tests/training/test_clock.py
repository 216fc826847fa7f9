"""A clock that is set back, again and again, stops nothing: time is measured by one that only goes forward."""

import io
import itertools
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.training import mesh as meshes
from clipbias.training.loop import Trained
from clipbias.training.progress import Progress
from clipbias.training.workdir import open_workdir
from clipbias.tuning import Task
from clipbias.tuning.recipe import Recipe
from tests.training.conftest import few_shot_runs, train_runs


@pytest.fixture
def set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the wall clock is an hour before the last one."""
    later = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1.7e9 - 3600 * next(later))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_moves_on(set_back: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(step=10.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    bar = Progress(3, title="runs")
    for _ in range(3):
        bar.at_work("bias on demo/digits, 4 shots")
        bar.advance(1, {"lr": 0.0025, "images/s": 133512.4})
    bar.close()
    assert "bias on demo/digits, 4 shots" in terminal.getvalue()
    assert "images/s=133,512" in terminal.getvalue() and "lr=0.0025" in terminal.getvalue()
    assert all(f" {done}/3 " in terminal.getvalue() for done in (1, 2, 3))
    assert "-" not in terminal.getvalue().replace("\x1b", "")  # no negative duration


@pytest.mark.long
def test_a_run_saves_continues_and_ends_alike(
    set_back: None, clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    task = Task(clip, "bias", colours.class_names, template=colours.template)

    def run(folder: Path) -> Trained:
        with open_workdir(folder, {}):
            logging = {"checkpoints": folder / "checkpoints", "checkpoint_seconds": 0.0, "metrics": folder}
            return train_runs(task, few_shot_runs(colours, (1,)), recipe, **logging)

    first, again = run(tmp_path / "a"), run(tmp_path / "a")
    other = run(tmp_path / "b")
    assert first.seconds >= 0 and again.steps == first.steps
    saved = sorted(int(path.name) for path in (tmp_path / "a" / "checkpoints").iterdir())
    assert saved == [first.steps - 1, first.steps]
    for one, two, three in zip(*(jax.tree.leaves(t.learnables) for t in (first, again, other)), strict=True):
        np.testing.assert_array_equal(meshes.fetch(one), meshes.fetch(two))
        np.testing.assert_array_equal(meshes.fetch(one), meshes.fetch(three))
