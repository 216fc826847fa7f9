"""Methods of one's own with heads, constants and features in the grid: their rows, adapters, plans and devices."""

import dataclasses
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.data.few_shot import few_shot
from clipbias.hosts import Stopped
from clipbias.training import loop
from clipbias.training import mesh as meshes
from clipbias.training.cache import Cache
from clipbias.training.evaluate import evaluate
from clipbias.training.features import frozen_features
from clipbias.training.forecast import forecast
from clipbias.training.grid import Grid
from clipbias.training.packs import make_packs
from clipbias.training.plan import flop, needed_bytes, step_arguments
from clipbias.training.step import train_step
from clipbias.tuning import CONSTANTS, Task
from clipbias.tuning.adapter import load_adapter
from clipbias.tuning.recipe import Recipe
from tests.own_methods import Probe, Projection
from tests.training.test_grid import make_grid

PROBE, CACHE, PROJECTION = (f"tests.own_methods:{name}" for name in ("Probe", "Cache", "Projection"))
OWN = ["tests.own_methods"]


def packs(*methods: str, seeds: tuple[int, ...] = (1, 2), **options) -> list:
    return make_packs(list(methods), ["colours"], [4], list(seeds), **options)


def give_options(grid: Grid, method: str, **options) -> None:
    """Options of a method; and every step is saved."""
    trainer = grid.trainer
    trainer.settings = dataclasses.replace(trainer.settings, method_options={method: options}, checkpoint_seconds=0.0)
    trainer.cache = Cache(trainer.clip, trainer.params, trainer.settings, trainer.cache._load, trainer.mesh)


def learnables(grid, pack, seeds: tuple[int, ...]) -> list:
    return [load_adapter(grid.trainer.adapter_path(pack, None, seed)).learnables for seed in seeds]


@pytest.mark.parametrize("method", [PROBE, CACHE, PROJECTION])
def test_a_cell_and_its_adapter(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, method: str) -> None:
    """The adapter gives the row's accuracy; what is constant is no parameter."""
    grid = make_grid(clip, colours, recipe, tmp_path)
    (pack,) = packs(method)
    rows = grid.run([pack])
    assert [(row["status"], row["shots"], row["seed"]) for row in rows] == [("ok", 4, 1), ("ok", 4, 2)]
    width, tower = clip.config.projection_width, clip.config.vision.width
    counts = {PROBE: (3 * width, 0, 3 * width), CACHE: (0, 0, 0), PROJECTION: (tower * width, tower * width, 0)}
    names = "parameters", "parameters_vision", "parameters_shared"
    assert tuple(rows[0][name] for name in names) == counts[method]
    assert (rows[0]["learning_rate"] is None) == (method == CACHE) == (rows[0]["loss"] is None)
    assert "recipe" not in rows[0]
    for row, seed in zip(rows, (1, 2), strict=True):
        adapter = load_adapter(grid.trainer.adapter_path(pack, None, seed))
        task, own = adapter.bind(clip, own_methods=OWN)
        mesh = meshes.single_device()
        score = evaluate(task, own, colours.split("test"), mesh=mesh, eval_batch_size=8, on_image_error="raise")
        assert score["correct"] == row["correct"]
    again = make_grid(clip, colours, recipe, tmp_path)
    again.trainer.cache._load = lambda name: 1 / 0  # nothing is opened for what is finished
    assert again.run([pack]) == rows


def test_a_cache_is_of_the_picked_images(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    grid = make_grid(clip, colours, recipe, tmp_path)
    (pack,) = packs(CACHE)
    grid.run([pack])
    train = colours.split("train")
    for seed, found in zip((1, 2), learnables(grid, pack, (1, 2)), strict=True):
        picked = train.labels[few_shot(train, None, shots=4, seed=seed)[0]]
        np.testing.assert_array_equal(found[CONSTANTS]["labels"], picked)
        np.testing.assert_allclose(np.linalg.norm(found[CONSTANTS]["keys"], axis=1), 1, rtol=1e-6)
    first, second = learnables(grid, pack, (1, 2))
    assert not np.allclose(first[CONSTANTS]["keys"], second[CONSTANTS]["keys"], atol=1e-3)


def test_only_what_differs_from_the_common_recipe_is_in_a_row(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path
) -> None:
    grid = make_grid(clip, colours, recipe, tmp_path)
    give_options(grid, PROBE, steps=4, keep_last=True)
    own, common = grid.run(packs(PROBE, "bias", seeds=(1,)))
    assert own["recipe"] == {"steps": 4, "keep_last": True} and own["steps"] == 4
    assert "recipe" not in common and common["steps"] == 3
    assert load_adapter(grid.trainer.adapter_path(packs(PROBE)[0], None, 1)).notes["recipe"] == own["recipe"]


@pytest.mark.parametrize("method", [PROBE, CACHE])
def test_other_classes_get_what_the_method_makes_of_it(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, method: str
) -> None:
    grid = make_grid(clip, colours, recipe, tmp_path, protocol="base_to_new")
    rows = grid.run(packs(method))
    if method == CACHE:
        assert {row["status"] for row in rows} == {"failed"}
        assert rows[0]["error"].startswith("the cache holds images of the classes of training")
        return
    assert [set(row["accuracies"]) for row in rows] == [{"base", "new"}] * 2


@pytest.mark.parametrize("method", [PROBE, CACHE, PROJECTION])
def test_eight_devices_give_the_cells_of_one(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, method: str
) -> None:
    """Batches of eight rows on four devices, of which twelve images of a run make one and a half."""
    recipe, found = dataclasses.replace(recipe, keep_last=True), []
    (pack,) = packs(method)
    for name, mesh in (("one", meshes.single_device()), ("eight", meshes.make_mesh(run=2, data=4))):
        grid = make_grid(clip, colours, recipe, tmp_path / name, mesh=mesh)
        rows = grid.run([pack])
        found.append(([row["accuracy"] for row in rows], learnables(grid, pack, (1, 2))))
    assert found[0][0] == found[1][0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), found[0][1], found[1][1])


@pytest.mark.parametrize("training", ["fresh", "pooled"])
def test_a_stopped_training_on_features_ends_with_the_same_bits(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: str
) -> None:
    recipe = dataclasses.replace(recipe, batch_size=5, epochs=4, keep_last=True)
    (pack,) = packs(PROBE)

    def grid(name: str):
        made = make_grid(clip, colours, recipe, tmp_path / name)
        give_options(made, PROBE, training=training, keep_last=True)
        return made

    whole = grid("whole")
    rows = whole.run([pack])
    original, calls = loop.train_step, 0

    def stop_at_five(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 5:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", stop_at_five)
    with pytest.raises(Stopped, match="stopped at step 5 of 12"):
        grid("cut").run([pack])
    monkeypatch.undo()
    assert list((tmp_path / "cut" / "checkpoints").iterdir())
    continued = grid("cut")
    again = continued.run([pack])
    assert [(row["accuracy"], row["loss"]) for row in again] == [(row["accuracy"], row["loss"]) for row in rows]
    jax.tree.map(np.testing.assert_array_equal, learnables(continued, pack, (1, 2)), learnables(whole, pack, (1, 2)))
    assert not list((tmp_path / "cut" / "checkpoints").iterdir())


def tower_flop(clip: Clip, images: int) -> int:
    """Multiplications and additions of the vision tower over so many images."""
    size = clip.config.vision.image_size
    batch = jax.ShapeDtypeStruct((images, size, size, 3), np.uint8)
    arguments = clip.config, clip.preprocessing, meshes.shapes(clip.params), batch
    return flop(frozen_features, *arguments, dtype="float32", projected=True)


def test_a_forecast_tells_what_is_computed_once(clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    grid = make_grid(clip, colours, recipe, tmp_path)
    text, seconds = forecast(grid.trainer, packs(CACHE)[0], 1e9)
    assert "made at once of 12 training images, 3 classes, 15 test images" in text
    assert (
        "features, computed once: 2 passes of 12 training images and of 6 validation images for each of 2 seeds; "
        "60 images through the vision tower"
    ) in text
    once, tested = tower_flop(clip, 60), tower_flop(clip, 15)
    assert seconds == pytest.approx((once + tested) / (1e9 * 0.65), rel=0.01)
    text, _ = forecast(grid.trainer, packs(PROBE, seeds=(1,))[0], 1e9)
    # One pass for `support`, and a fresh one for each of three epochs.
    assert "computed once: 4 passes of 12 training images; 48 images through the vision tower" in text
    assert f"a step: features [1, 8, {clip.config.projection_width}]" in text
    assert "memory: about" in text and "parameters per run: 36 (36 shared)" in text
    text, _ = forecast(grid.trainer, packs(PROJECTION, seeds=(1,))[0], 1e9)
    assert "computed once: 1 pass of 12 training images; 12 images" in text
    assert f"a step: features [1, 8, {clip.config.vision.width}]" in text
    give_options(grid, CACHE, passes=0, validation=False)
    text, _ = forecast(grid.trainer, packs(CACHE, seeds=(1,))[0], 1e9)  # the images as they are evaluated
    assert "computed once: 1 pass of 12 training images; 12 images" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("method", "width"), [(Probe(), 12), (Projection(), 24)])
def test_a_step_on_features_is_planned_without_a_tower(clip: Clip, recipe: Recipe, method, width: int) -> None:
    mesh = meshes.single_device()
    task = Task(clip, method, ("a", "b", "c"))
    arguments = step_arguments(task, recipe, rows=8, runs=2, mesh=mesh, images=12)
    assert arguments[6]["images"].shape == (2, 8, width)
    images = step_arguments(Task(clip, "vpt", ("a", "b", "c")), recipe, rows=8, runs=2, mesh=mesh)
    assert flop(train_step, *arguments) < flop(train_step, *images) / 20
    assert 0 < needed_bytes(train_step, *arguments) < needed_bytes(train_step, *images)
