"""Sweeps of methods with a head, features or changed weights, the built-in ones and a user's: rows, adapters, plans.

What a method computes is tested in `tests/tuning`. Here a few of them stand for all in what a sweep has to do for them.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from clipbias import hosts
from clipbias.clip import Clip, encode_image
from clipbias.data import Dataset
from clipbias.data.few_shot import few_shot
from clipbias.io import read_json_lines
from clipbias.training import mesh as meshes
from clipbias.training.device import Compute
from clipbias.training.memory import StepShape, training_program
from clipbias.training.progress import Stopwatch
from clipbias.training.spec import RunSpec, run_names
from clipbias.training.sweep import RESULTS
from clipbias.training.workdir import SweepPaths
from clipbias.tuning import CONSTANTS, Task, make_method
from clipbias.tuning.recipe import Recipe
from tests.own_methods import Probe, Projection
from tests.training.sweeps import TinySweep, score_of
from tests.training.test_loop import stop_at
from tools.benchmarks import measure

PROBE, CACHE, PROJECTION = (f"tests.own_methods:{name}" for name in ("Probe", "Cache", "Projection"))
OWN = ["tests.own_methods"]
# Short ones of what takes hundreds of epochs or steps.
OPTIONS: dict[str, dict[str, Any]] = {
    "tip_adapter_f": {"epochs": 2},
    "clap": {"recipe": "common"},
    "lp_plus_plus": {"steps": 20},
    "gda": {"covariance": "classes", "keep_rows": True},
    "clip_lora": {"recipe": "common", "first_block": 2, "rank": 3},
    "prolip": {"recipe": "common", "passes": 2, "strength": 0.0},
    "layer_norm": {"towers": ("vision",)},
}
# One that caches images and trains, and those of a user, of which one is made at once and one changes weights.
FEW = ("tip_adapter_f", PROBE, CACHE, PROJECTION)
WEIGHTS = ("clip_lora", "prolip", "layer_norm")
HEADS = ("gda", "lp_plus_plus", "clip_adapter", "clap", "linear_probe", "tip_adapter")
AT_ONCE = ("linear_probe", "tip_adapter", "gda", "lp_plus_plus", CACHE)  # nothing is trained in steps


def parameters(clip: Clip) -> dict[str, int]:
    """Of three classes and eighteen images; what is constant is none."""
    width = clip.config.projection_width
    vision = clip.config.vision
    text = clip.config.text
    classes = 3
    images = 18
    return {
        "clip_lora": sum(2 * 3 * 2 * 3 * tower.width for tower in (vision, text)),
        "tip_adapter_f": images * width,
        "gda": 0,
        "lp_plus_plus": classes * (width + 2),
        PROBE: classes * width,
        CACHE: 0,
        PROJECTION: vision.width * width,
        "prolip": vision.width * width,
        "layer_norm": 4 * vision.layers * vision.width,
        "clip_adapter": 2 * width * (width // 4),
        "clap": classes * width,
        "linear_probe": classes * (width + 1),
        "tip_adapter": 0,
    }


def sweep_of(clip: Clip, colours: Dataset, recipe: Recipe, folder: Path, **options: Any) -> TinySweep:
    """Every step is saved."""
    compute = Compute(trackers=(), eval_batch_size=8, checkpoint_seconds=0.0)
    return TinySweep(clip, colours, recipe, folder, compute=compute, **options)


Swept = tuple[TinySweep, list[RunSpec], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def swept(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Swept]:
    """A sweep over some methods on six images of each class, or six steps on two of each; it runs once."""
    done: dict[tuple[str, ...], Swept] = {}

    def sweep(*methods: str) -> Swept:
        is_weights = methods == WEIGHTS
        if methods not in done:
            longer = dataclasses.replace(recipe, epochs=6 if is_weights else 3)
            tiny = sweep_of(clip, colours, longer, tmp_path_factory.mktemp("swept"), options=OPTIONS)
            specs = tiny.specs(*methods, shots=(2 if is_weights else 6,), seeds=(1,))
            done[methods] = tiny, specs, tiny.run(specs)
        return done[methods]

    return sweep


@pytest.mark.ci
@pytest.mark.parametrize(
    "methods",
    [FEW, *(pytest.param(x, marks=pytest.mark.long) for x in (HEADS, WEIGHTS))],
    ids=["few", "heads", "weights"],
)
def test_a_row_and_its_adapter(
    clip: Clip, colours: Dataset, swept: Callable[..., Swept], methods: tuple[str, ...]
) -> None:
    tiny, specs, rows = swept(*methods)
    assert [row.get("error") for row in rows] == [None] * len(specs)
    assert {row["method"]: row["parameters"] for row in rows} == {name: parameters(clip)[name] for name in methods}
    for spec, row in zip(specs, rows, strict=True):
        trains = spec.method not in AT_ONCE
        assert (row["shots"], row["seed"]) == (2 if methods == WEIGHTS else 6, 1)
        assert ("steps" in row) == (row["learning_rate"] is not None) == (row["loss"] is not None) == trains
        assert bool(row["recipe"]) == trains
        score = score_of(tiny.adapter(spec, specs), clip, colours.split("test"), OWN)
        assert score["correct"] == row["correct"]
        # Colours are easily told apart by whatever looks at images.
        if spec.method in ("linear_probe", "gda", "clap", "lp_plus_plus"):
            assert row["accuracy"] > 90, spec.method
        elif spec.method in WEIGHTS:
            assert row["steps"] == 6 and row["accuracy"] > 50, spec.method
    again = sweep_of(clip, colours, tiny.recipe, tiny.folder, options=OPTIONS)
    again.context.datasets = {}  # nothing is looked at for what is finished
    assert again.run(specs) == rows


@pytest.mark.ci
def test_parameters_and_recipes_are_told_in_a_row(clip: Clip, swept: Callable[..., Swept]) -> None:
    tiny, specs, rows = swept(*FEW)
    of = {row["method"]: row for row in rows}
    width = clip.config.projection_width
    tower = clip.config.vision.width
    assert [of[PROBE][f"parameters_{part}"] for part in ("vision", "shared")] == [0, 3 * width]
    assert [of[PROJECTION][f"parameters_{part}"] for part in ("vision", "shared")] == [tower * width, 0]
    assert "own_recipe" not in of[PROBE]
    trained_row = of["tip_adapter_f"]
    assert trained_row["own_recipe"]["epochs"] == trained_row["recipe"]["epochs"] == 2
    spec = next(spec for spec in specs if spec.method == "tip_adapter_f")
    notes = tiny.adapter(spec, specs).notes
    assert (notes["own_recipe"], notes["recipe"]) == (trained_row["own_recipe"], trained_row["recipe"])


def test_a_cache_is_of_the_picked_images(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stopwatch, "__exit__", lambda watch, *_: setattr(watch, "seconds", 1000.0))
    tiny = sweep_of(clip, colours, recipe, tmp_path)
    specs = tiny.specs(CACHE, shots=(4,))
    # Its features take milliseconds; what the host makes of them takes long here, for both runs together.
    assert all(500 < row["training_seconds"] < 600 for row in tiny.run(specs))
    train, first, second = colours.split("train"), *(tiny.adapter(spec).learnables[CONSTANTS] for spec in specs)
    for spec, constants in zip(specs, (first, second), strict=True):
        picked = train.labels[few_shot(train, None, shots=4, seed=spec.seed)[0]]
        np.testing.assert_array_equal(constants["labels"], picked)
        np.testing.assert_allclose(np.linalg.norm(constants["keys"], axis=1), 1, rtol=1e-6)
    assert not np.allclose(first["keys"], second["keys"], atol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("method", [PROBE, pytest.param(CACHE, marks=pytest.mark.long)])
def test_eight_devices_give_the_rows_of_one(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, method: str
) -> None:
    """Three runs do not divide by two, and batches of eight not the twelve images of a run."""
    recipe = dataclasses.replace(recipe, batch_size=8, keep_last=True)
    results = []
    for name, mesh in (("one", meshes.single_device()), ("eight", meshes.make_mesh(run=2, data=4))):
        tiny = sweep_of(clip, colours, recipe, tmp_path / name, mesh=mesh)
        specs = tiny.specs(method, shots=(4,), seeds=(1, 2, 3))
        rows = tiny.run(specs)
        errors = [row["calibration"]["ece"] for row in rows]  # tell runs of equal accuracy apart
        results.append(([row["accuracy"] for row in rows], errors, [tiny.adapter(spec).learnables for spec in specs]))
    assert results[0][0] == results[1][0]
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), results[0][2], results[1][2])


@pytest.mark.ci
@pytest.mark.parametrize("training", ["pooled", pytest.param("fresh", marks=pytest.mark.long)])
def test_a_stopped_sweep_continues_with_the_same_bits(
    clip: Clip, colours: Dataset, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: str
) -> None:
    recipe = dataclasses.replace(recipe, batch_size=5, epochs=4, keep_last=True)
    options = {PROBE: {"training": training, "keep_last": True}}
    whole, cut = (sweep_of(clip, colours, recipe, tmp_path / name, options=options) for name in ("whole", "cut"))
    specs = whole.specs("zero_shot", PROBE, shots=(4,))
    rows = whole.run(specs)
    goes_on = stop_at((5,), monkeypatch)
    with hosts.stoppable(), pytest.raises(hosts.Stopped, match="stopped at step 5 of 12"):
        cut.run(specs)
    goes_on()
    assert [row["method"] for row in read_json_lines(cut.folder / RESULTS)] == ["zero_shot"]
    assert list((cut.folder / "checkpoints").iterdir())
    again = cut.run(specs)
    assert [(row["accuracy"], row["loss"]) for row in again] == [(row["accuracy"], row["loss"]) for row in rows]
    assert [line["step"] for line in read_json_lines(next(cut.folder.rglob("metrics.jsonl")))] == [*range(1, 13)]
    for spec in specs[1:]:
        first, other = (SweepPaths(tiny.folder, run_names(specs)).adapter(spec).read_bytes() for tiny in (whole, cut))
        assert first == other
    assert not list((cut.folder / "checkpoints").iterdir())


def test_no_tower_runs_in_a_step_on_features(clip: Clip, colours: Dataset, recipe: Recipe) -> None:
    """All products of a step on eight images are fewer than those of a tower on one."""
    image = np.zeros((1, 16, 16, 3), np.float32)
    tower = jax.jit(lambda params, images: encode_image(params, clip.config, images)[0])
    most = measure.traced(tower, clip.params, image)
    on_features = [(make_method(name), 12) for name in ("clip_adapter", "tip_adapter_f", "clap")]
    for method, width in ((Probe(), 12), (Projection(), 24), *on_features):
        task = Task(clip, method, colours.class_names)
        step = training_program(task, recipe, StepShape(8, 1, meshes.single_device(), images=12))
        assert step.arguments[3]["images"].shape == (1, 8, width)
        assert 0 < measure.traced(step.function, *step.arguments) < most
