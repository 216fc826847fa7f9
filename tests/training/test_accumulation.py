"""A step over parts of its batch against the step over the whole."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.errors import ClipbiasError
from clipbias.training import loop, memory
from clipbias.training import mesh as meshes
from clipbias.training.compute import Compute
from clipbias.training.memory import MemoryPlan, plan_step
from clipbias.training.programs import StepShape
from clipbias.training.step import train_step
from clipbias.training.step_inputs import StepScalars, StepStatic, init_state, place_inputs
from clipbias.tuning import Task, make_method
from clipbias.tuning.features import Features
from clipbias.tuning.learnables import stack_runs
from clipbias.tuning.method import Learnables, Method
from clipbias.tuning.methods.bias import BiasTuning
from clipbias.tuning.recipe import Recipe
from tests.training.conftest import few_shot_runs, make_job
from tools.benchmarks import model

NAMES = ["red", "a green one", "blue"]
RECIPE = Recipe(1.0, 1, 0, 1.0, 10, 0.0, 0.0)  # a step is the gradient itself
ROWS = 10
MASKED = (2, 7, 9)


@pytest.fixture(scope="module")
def clip() -> Clip:
    """With room for the texts of all methods."""
    return model.random_clip(model.geometry("tiny"))


@dataclasses.dataclass(frozen=True)
class Short(BiasTuning):
    """With a term of the loss that is a number, not one of each image."""

    def losses(self, learnables: Learnables, features: Features, logits: jax.Array, labels: jax.Array) -> Any:
        length = sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(learnables))
        return {**super().losses(learnables, features, logits, labels), "length": 0.1 * length}


def step(
    clip: Clip, name: str | Method, parts: int, *, mesh=None, runs: int = 1, taught: bool = False, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """The learnables' change in one step on random images, three of which are masked, and the metrics."""
    mesh = mesh or meshes.single_device()
    method = make_method(name, **options) if isinstance(name, str) else name
    task = Task(clip, method, NAMES).with_memory(class_shards=mesh.shape[meshes.DATA])
    start = stack_runs([jax.device_get(task.init(seed)) for seed in range(1, runs + 1)])
    rng = np.random.default_rng(0)
    params = meshes.replicate(mesh, clip.params)
    # Away from where a method starts as plain CLIP, or its loss at its smallest.
    start = jax.tree.map(
        lambda x: (x + 0.05 * rng.normal(size=x.shape)).astype(x.dtype) if x.dtype.kind == "f" else x, start
    )
    mask = ~np.isin(np.arange(ROWS), MASKED)
    batch = {
        "images": rng.integers(0, 256, (runs, ROWS, *[clip.config.vision.image_size] * 2, 3)).astype(np.uint8),
        "labels": rng.integers(0, 3, (runs, ROWS)).astype(np.int32),
        "mask": np.stack([mask] * runs),
    }
    if taught:
        batch["teacher"] = rng.normal(0, 3, (runs, ROWS, 3)).astype(np.float32)
        batch["labels"] = np.full_like(batch["labels"], 99)  # none is read
    state = init_state(method, RECIPE, start)
    before = jax.device_get(state.learnables)
    after, metrics = train_step(
        StepStatic(task.classifier, clip.preprocessing, RECIPE, mesh, parts),
        place_inputs(mesh, task, params, start, np.arange(runs)),
        meshes.device_put(mesh, state, meshes.RUN),
        meshes.device_put(mesh, batch, meshes.RUN, meshes.DATA),
        StepScalars(meshes.device_put(mesh, np.ones(runs, np.float32), meshes.RUN)),
    )
    return jax.tree.map(np.subtract, jax.device_get(after.learnables), before), jax.device_get(metrics)


def assert_same(actual: Any, expected: Any) -> None:
    for (change, metrics), (whole, expected_metrics) in [(actual, expected)]:
        assert expected_metrics["gradient_norm"].min() > 1e-3
        for name, value in expected_metrics.items():
            np.testing.assert_allclose(metrics[name], value, rtol=3e-5, err_msg=name)
        for leaf, other in zip(jax.tree.leaves(change), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(leaf, other, rtol=0, atol=3e-5 * np.abs(other).max())


@pytest.mark.parametrize(
    ("name", "parts", "options"),
    [
        pytest.param("taskres", 5, {}, marks=pytest.mark.long),
        # Texts of each image; a gradient for each term and a frozen teacher; texts without a class name.
        pytest.param("cocoop", 2, {}, marks=pytest.mark.long),
        pytest.param("prograd", 5, {}, marks=pytest.mark.long),
        pytest.param("proda", 3, {"sets": 4, "sets_per_step": 2}, marks=pytest.mark.long),
    ],
)
def test_parts_give_the_gradient_of_the_whole(clip: Clip, name: str, parts: int, options: dict) -> None:
    assert_same(step(clip, name, parts, **options), step(clip, name, 1, **options))


@pytest.mark.ci
@pytest.mark.parametrize("name", ["taskres", pytest.param("prograd", marks=pytest.mark.long)])
def test_parts_of_a_students_batch(clip: Clip, name: str) -> None:
    """Also of a method that else makes its gradient from those of its own terms."""
    assert_same(step(clip, name, 5, taught=True), step(clip, name, 1, taught=True))


@pytest.mark.ci
def test_runs_and_devices_take_parts_of_their_own(clip: Clip) -> None:
    """Two runs on two rows of devices, whose two columns have five images each: three parts of two."""
    mesh = meshes.make_mesh(run=2, data=2, devices=jax.devices()[:4])
    assert_same(step(clip, Short(), 3, mesh=mesh, runs=2), step(clip, Short(), 1, runs=2))


@pytest.mark.long
def test_transport_does_depend_on_the_batch(clip: Clip) -> None:
    """What is refused would be wrong: with parts of one, rounds of transport end earlier or later."""
    change, _ = step(clip, "plot", 10)
    whole, _ = step(clip, "plot", 1)
    assert any(
        np.abs(a - b).max() > 1e-4 * np.abs(b).max()
        for a, b in zip(*map(jax.tree.leaves, (change, whole)), strict=True)
    )


def test_what_is_given_is_taken_and_else_what_fits(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of steps that need 100 bytes for all their images, or half where things are computed again; none is compiled."""

    def needing(task: Task, *_: Any, micro_batches: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(lower=lambda: (50 if task.classifier.remat else 100) // micro_batches)

    monkeypatch.setattr(memory, "training_program", needing)
    monkeypatch.setattr(memory, "needed_bytes", int)
    size = StepShape(10, 1, meshes.make_mesh(run=1, data=2))
    taskres = Task(clip, "taskres", NAMES).with_memory(class_shards=2)
    counts = {n: plan_step(taskres, RECIPE, size, Compute(micro_batch=n)).micro_batches for n in (None, 1, 4, 10)}
    assert counts == {None: 1, 1: 5, 4: 3, 10: 1}
    # Images are taken in parts before anything is computed again, and a plan says so.
    vpt = Task(clip, "vpt", NAMES)
    plan = plan_step(vpt, RECIPE, StepShape(64, 1, meshes.single_device()), limit=60)
    assert (plan.remat, plan.class_chunks, plan.micro_batches) == ("products", 1, 4)
    assert plan.fits and not plan.is_fastest
    assert "(keeping products, 4 micro-batches)" in str(plan)


def test_a_training_takes_what_was_planned(
    clip: Clip, colours: Dataset, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched(static: StepStatic, *_: Any) -> None:
        raise ClipbiasError(f"in {static.micro_batches} parts")

    monkeypatch.setattr(loop, "train_step", watched)
    task = Task(clip, "taskres", NAMES)
    plan = MemoryPlan("products", 1, 3)
    with pytest.raises(ClipbiasError, match="in 3 parts"):
        start = stack_runs([jax.device_get(task.init(1))])
        job = make_job(task, few_shot_runs(colours, (1,)), recipe)
        loop.train(dataclasses.replace(job, plan=plan), start)


@pytest.mark.long
def test_parts_need_less_memory() -> None:
    """Where the images of a step are what does not fit."""
    clip = model.random_clip(model.geometry("tiny", layers=6))
    task = Task(clip, "vpt", NAMES)
    size = StepShape(64, 1, meshes.single_device())
    needed = {n: plan_step(task, RECIPE, size, Compute(micro_batch=64 // n)).bytes for n in (1, 4)}
    assert needed[4] < 0.6 * needed[1]
    plan = plan_step(task, RECIPE, size, limit=int((needed[1] + needed[4]) / 2 / 0.85))
    assert (plan.remat, plan.class_chunks, plan.micro_batches) == ("products", 1, 4)
    assert plan.fits and not plan.is_fastest
