"""Methods of a user's own with heads, constants and features: their rows, adapters, plans and devices."""

import dataclasses
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from clipbias import hosts
from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.data.few_shot import few_shot
from clipbias.training import loop
from clipbias.training import mesh as meshes
from clipbias.training.evaluate import evaluate
from clipbias.training.memory import needed_bytes
from clipbias.training.programs import training_program
from clipbias.training.shared import Compute
from clipbias.tuning import CONSTANTS, Task
from clipbias.tuning.recipe import Recipe
from tests.own_methods import Probe, Projection
from tests.training.sweeps import TinySweep

PROBE, CACHE, PROJECTION = (f"tests.own_methods:{name}" for name in ("Probe", "Cache", "Projection"))
OWN = ["tests.own_methods"]


def sweep_of(clip: Clip, colours: Dataset, recipe: Recipe, folder: Path, **options: Any) -> TinySweep:
    """Every step is saved."""
    compute = Compute(eval_batch_size=8, checkpoint_seconds=0.0)
    return TinySweep(clip, colours, recipe, folder, compute=compute, **options)


@pytest.mark.parametrize("method", [PROBE, CACHE, PROJECTION])
def test_a_row_and_its_adapter(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, method: str) -> None:
    """The adapter gives the row's accuracy; what is constant is no parameter."""
    tiny = sweep_of(clip, colours, recipe, tmp_path)
    specs = tiny.specs(method, shots=(4,))
    rows = tiny.run(specs)
    assert [(row["status"], row["shots"], row["seed"]) for row in rows] == [("ok", 4, 1), ("ok", 4, 2)]
    width, tower = clip.config.projection_width, clip.config.vision.width
    counts = {PROBE: (3 * width, 0, 3 * width), CACHE: (0, 0, 0), PROJECTION: (tower * width, tower * width, 0)}
    names = "parameters", "parameters_vision", "parameters_shared"
    assert tuple(rows[0][name] for name in names) == counts[method]
    assert (rows[0]["learning_rate"] is None) == (method == CACHE) == (rows[0]["loss"] is None)
    assert "own_recipe" not in rows[0] and bool(rows[0]["recipe"]) == (method != CACHE)
    for row, spec in zip(rows, specs, strict=True):
        task, own = tiny.adapter(spec).bind(clip, own_methods=OWN)
        mesh = meshes.single_device()
        score = evaluate(task, own, colours.split("test"), mesh=mesh, eval_batch_size=8, on_image_error="raise")
        assert score["correct"] == row["correct"]
    again = sweep_of(clip, colours, recipe, tmp_path)
    again.shared.datasets = {}  # nothing is looked at for what is finished
    assert again.run(specs) == rows


def test_a_cache_is_of_the_picked_images(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    tiny = sweep_of(clip, colours, recipe, tmp_path)
    specs = tiny.specs(CACHE, shots=(4,))
    tiny.run(specs)
    train, first, second = colours.split("train"), *(tiny.adapter(spec).learnables[CONSTANTS] for spec in specs)
    for spec, found in zip(specs, (first, second), strict=True):
        picked = train.labels[few_shot(train, None, shots=4, seed=spec.seed)[0]]
        np.testing.assert_array_equal(found["labels"], picked)
        np.testing.assert_allclose(np.linalg.norm(found["keys"], axis=1), 1, rtol=1e-6)
    assert not np.allclose(first["keys"], second["keys"], atol=1e-3)


def test_what_differs_from_the_common_recipe_is_told_in_a_row(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    tiny = sweep_of(clip, colours, recipe, tmp_path, options={PROBE: {"steps": 4, "keep_last": True}})
    specs = tiny.specs(PROBE, "bias", shots=(4,), seeds=(1,))
    own, common = tiny.run(specs)
    assert own["own_recipe"] == {"steps": 4, "keep_last": True} and own["steps"] == 4
    assert "own_recipe" not in common and common["steps"] == 3
    for row, steps in ((own, 4), (common, 0)):
        assert row["recipe"]["learning_rate"] == row["learning_rate"] == recipe.learning_rate
        assert (row["recipe"].get("steps", 0), row["recipe"]["batch_size"]) == (steps, recipe.batch_size)
    notes = tiny.adapter(specs[0], specs).notes
    assert (notes["own_recipe"], notes["recipe"]) == (own["own_recipe"], own["recipe"])


@pytest.mark.parametrize("method", [PROBE, CACHE])
def test_other_classes_get_what_the_method_makes_of_it(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, method: str
) -> None:
    rows = sweep_of(clip, colours, recipe, tmp_path, protocol="base_to_new").rows(method, shots=(4,))
    if method == CACHE:
        assert {row["status"] for row in rows} == {"failed"}
        assert rows[0]["error"].startswith("the cache holds images of the classes of training")
        return
    assert [set(row["accuracies"]) for row in rows] == [{"base", "new"}] * 2


@pytest.mark.parametrize("method", [PROBE, CACHE])
def test_eight_devices_give_the_rows_of_one(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, method: str
) -> None:
    """Batches of eight rows on four devices, of which twelve images of a run make one and a half."""
    recipe, found = dataclasses.replace(recipe, keep_last=True), []
    for name, mesh in (("one", meshes.single_device()), ("eight", meshes.make_mesh(run=2, data=4))):
        tiny = sweep_of(clip, colours, recipe, tmp_path / name, mesh=mesh)
        specs = tiny.specs(method, shots=(4,))
        rows = tiny.run(specs)
        found.append(([row["accuracy"] for row in rows], [tiny.adapter(spec).learnables for spec in specs]))
    assert found[0][0] == found[1][0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), found[0][1], found[1][1])


@pytest.mark.parametrize("training", ["fresh", "pooled"])
def test_a_stopped_training_on_features_ends_with_the_same_bits(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: str
) -> None:
    recipe = dataclasses.replace(recipe, batch_size=5, epochs=4, keep_last=True)
    options = {PROBE: {"training": training, "keep_last": True}}
    whole, cut = (sweep_of(clip, colours, recipe, tmp_path / name, options=options) for name in ("whole", "cut"))
    specs = whole.specs(PROBE, shots=(4,))
    rows = whole.run(specs)
    original, calls = loop.train_step, 0

    def stop_at_five(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 5:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", stop_at_five)
    with hosts.stoppable(), pytest.raises(hosts.Stopped, match="stopped at step 5 of 12"):
        cut.run(specs)
    monkeypatch.undo()
    assert list((tmp_path / "cut" / "checkpoints").iterdir())
    again = cut.run(specs)
    assert [(row["accuracy"], row["loss"]) for row in again] == [(row["accuracy"], row["loss"]) for row in rows]
    for spec in specs:
        jax.tree.map(np.testing.assert_array_equal, cut.adapter(spec).learnables, whole.adapter(spec).learnables)
    assert not list((tmp_path / "cut" / "checkpoints").iterdir())


@pytest.mark.parametrize(("method", "width"), [(Probe(), 12), (Projection(), 24)])
def test_a_step_on_features_is_planned_without_a_tower(clip: Clip, recipe: Recipe, method, width: int) -> None:
    mesh = meshes.single_device()
    task = Task(clip, method, ("a", "b", "c"))
    step = training_program(task, recipe, rows=8, runs=2, mesh=mesh, images=12)
    assert step.arguments[6]["images"].shape == (2, 8, width)
    of_images = training_program(Task(clip, "vpt", ("a", "b", "c")), recipe, rows=8, runs=2, mesh=mesh)
    assert 0 < needed_bytes(step.lower()) < needed_bytes(of_images.lower())
