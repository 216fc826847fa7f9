"""A clock that is set back, again and again, stops nothing: time is measured by one that only goes forward."""

import itertools
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.training import loop
from clipbias.training import mesh as meshes
from clipbias.training.workdir import open_workdir
from clipbias.tuning import Task
from clipbias.tuning.recipe import Recipe
from tests.training.conftest import few_shot_runs


@pytest.fixture
def set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the wall clock is an hour before the last one."""
    later = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1.7e9 - 3600 * next(later))


def test_a_run_saves_continues_and_ends_alike(
    set_back: None, clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    task = Task(clip, "bias", colours.class_names, template=colours.template)
    mesh = meshes.single_device()

    def run(folder: Path, recipe: Recipe = recipe) -> loop.Trained:
        with open_workdir(folder, {}):
            return loop.train(
                task,
                meshes.replicate(mesh, clip.params),
                few_shot_runs(colours, (1,)),
                recipe,
                mesh=mesh,
                folder=folder / "checkpoints",
                checkpoint_seconds=0.0,
                metrics_folder=folder,
            )

    first, again = run(tmp_path / "a"), run(tmp_path / "a")
    other = run(tmp_path / "b")
    assert first.seconds >= 0 and again.steps == first.steps
    saved = sorted(int(path.name) for path in (tmp_path / "a" / "checkpoints").iterdir())
    assert saved == [first.steps - 2, first.steps - 1]
    for one, two, three in zip(*(jax.tree.leaves(t.learnables) for t in (first, again, other)), strict=True):
        np.testing.assert_array_equal(meshes.fetch(one), meshes.fetch(two))
        np.testing.assert_array_equal(meshes.fetch(one), meshes.fetch(three))
