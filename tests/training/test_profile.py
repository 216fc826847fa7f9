"""Traces of a few steps of a training."""

from pathlib import Path

import jax
import pytest

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.training import progress
from clipbias.tuning.recipe import Recipe
from tests.training.conftest import group, train_runs


@pytest.mark.parametrize(
    ("first", "total", "traced"),
    [(0, 100, range(2, 7)), (40, 100, range(42, 47)), (0, 4, range(4)), (97, 100, range(97, 100))],
)
def test_which_steps_are_traced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: int, total: int, traced: range
) -> None:
    running: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **_: running.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", running.clear)
    steps = progress.StepProfile(tmp_path, first=first, total=total)
    steps_traced = []
    for step in range(first, total):
        steps.before(step)
        steps_traced += [step] * len(running)
        steps.after(step, {})
    assert steps_traced == list(traced) and not running
    again = progress.StepProfile(tmp_path, first=0, total=50)  # a training that ends early ends its trace
    for step in range(3):
        again.before(step)
    assert running == [str(tmp_path / "profile")]
    again.close()
    assert not running


@pytest.mark.ci  # the profiler takes 300 MB for good
def test_the_trace_of_a_training_lies_beside_its_metrics(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    train_runs(*group(clip, colours, "bias", (1,)), recipe, metrics=tmp_path, profile=True)
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert b"train_step" in trace.read_bytes()
