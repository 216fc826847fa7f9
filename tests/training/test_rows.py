"""Trained sweeps: rows, adapters and plans of methods that stand for all, and every protocol on drawn data.

What a method computes is tested in `tests/tuning`.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from sklearn import metrics

from clipbias import hosts
from clipbias.clip import Clip, encode_image
from clipbias.data import Dataset, held_out, protocols
from clipbias.data.few_shot import few_shot, imbalanced_counts
from clipbias.data.held_out import SHOT
from clipbias.io import read_json_lines
from clipbias.training import loop, placement
from clipbias.training.device import Compute
from clipbias.training.loop import sample_features
from clipbias.training.memory import StepShape, training_program
from clipbias.training.rates import PER_METHOD, select_learning_rates
from clipbias.training.run import make_job
from clipbias.training.spec import VALIDATION, run_names
from clipbias.training.sweep import RESULTS
from clipbias.training.workdir import SweepPaths
from clipbias.tuning import CONSTANTS, Task, make_method
from clipbias.tuning.recipe import Recipe
from tests import helpers
from tests.own_methods import Cache, Probe, Projection
from tests.training.conftest import TinySweep, damaged, score_of
from tools import benchmark as measure

PROBE, CACHE, PROJECTION = (f"tests.own_methods:{name}" for name in ("Probe", "Cache", "Projection"))
OWN = ["tests.own_methods"]
# One that caches images and trains, and those of a user, of which one is made at once and one changes weights.
FEW = ("tip_adapter_f", PROBE, CACHE, PROJECTION)


# Two epochs in place of twenty.
OPTIONS: dict[str, dict[str, Any]] = {"tip_adapter_f": {"epochs": 2}}


def sweep_of(clip: Clip, colours: Dataset, recipe: Recipe, folder: Path, **options: Any) -> TinySweep:
    """Every step is saved."""
    compute = Compute(trackers=(), eval_batch_size=8, checkpoint_seconds=0.0)
    return TinySweep(clip, colours, recipe, folder, compute=compute, **options)


@pytest.mark.ci
def test_a_row_and_its_adapter(clip, colours, recipe, tmp_path):
    """Parameters of three classes and eighteen images; what is constant is none."""
    tiny = sweep_of(clip, colours, recipe, tmp_path, options=OPTIONS)
    specs = tiny.specs(*FEW, shots=(6,), seeds=(1,))
    rows = tiny.run(specs)
    assert [row.get("error") for row in rows] == [None] * len(specs)
    width, tower = clip.config.projection_width, clip.config.vision.width
    expected = {"tip_adapter_f": (0, 18 * width), PROBE: (0, 3 * width), CACHE: (0, 0), PROJECTION: (tower * width, 0)}
    for spec, row in zip(specs, rows, strict=True):
        assert (row["parameters_vision"], row["parameters_shared"]) == expected[spec.method]
        is_trained = spec.method != CACHE
        assert ("steps" in row) == (row["learning_rate"] is not None) == (row["loss"] is not None) == is_trained
        assert score_of(tiny.adapter(spec, specs), clip, colours.split("test"), OWN)["correct"] == row["correct"]
        assert ("own_recipe" in row) == (spec.method == "tip_adapter_f") and bool(row["recipe"]) == is_trained
    again = sweep_of(clip, colours, recipe, tmp_path, options=OPTIONS)
    again.context.datasets = {}  # nothing is looked at for what is finished
    assert again.run(specs) == rows


def test_a_cache_is_of_the_picked_images(clip, colours, recipe, tmp_path, monkeypatch):
    support, later = Cache.support, [0.0]
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + later[0])

    def slow(*arguments: Any) -> Any:
        later[0] += 500.0
        return support(*arguments)

    monkeypatch.setattr(Cache, "support", slow)
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


@pytest.mark.ci
def test_a_stopped_sweep_continues_with_the_same_bits(clip, colours, recipe, tmp_path):
    recipe = dataclasses.replace(recipe, batch_size=5, epochs=4, keep_last=True)
    options = {PROBE: {"training": "pooled", "keep_last": True}}
    whole, cut = (sweep_of(clip, colours, recipe, tmp_path / name, options=options) for name in ("whole", "cut"))
    specs = whole.specs("zero_shot", PROBE, shots=(4,))
    rows = whole.run(specs)
    stops = helpers.signal_at(loop, "train_step", 5)
    with stops, hosts.stoppable(), pytest.raises(hosts.Stopped, match="stopped at step 5 of 12"):
        cut.run(specs)
    assert [row["method"] for row in read_json_lines(cut.folder / RESULTS)] == ["zero_shot"]
    assert list((cut.folder / "checkpoints").iterdir())
    again = cut.run(specs)
    assert [(row["accuracy"], row["loss"]) for row in again] == [(row["accuracy"], row["loss"]) for row in rows]
    assert [line["step"] for line in read_json_lines(next(cut.folder.rglob("metrics.jsonl")))] == [*range(1, 13)]
    for spec in specs[1:]:
        first, other = (SweepPaths(tiny.folder, run_names(specs)).adapter(spec).read_bytes() for tiny in (whole, cut))
        assert first == other
    assert not list((cut.folder / "checkpoints").iterdir())


@pytest.mark.ci
def test_skipped_images_are_counted_also_by_a_run_that_was_stopped(clip, colours, recipe, tmp_path):
    """By methods that learn without steps, by steps on features and on images; and the first batches hold them all."""
    splits = {**colours.splits, "train": damaged(colours.split("train"), 1, 8)}
    dataset = dataclasses.replace(colours, splits=splits)
    whole, cut = (sweep_of(clip, dataset, recipe, tmp_path / name, on_image_error="skip") for name in ("whole", "cut"))
    specs = whole.specs("gda", "tip_adapter_f", "bias", shots=(None,), seeds=(1,))
    rows = whole.run(specs)
    assert [(row["method"], row.get("skipped_training_images")) for row in rows] == [(spec.method, 2) for spec in specs]
    stops = helpers.signal_at(loop, "train_step", 8)
    with stops, hosts.stoppable(), pytest.raises(hosts.Stopped, match="stopped at step 8 of 9"):
        cut.run(specs[-1:])
    assert [row["skipped_training_images"] for row in cut.run(specs[-1:])] == [2]


def test_no_tower_runs_in_a_step_on_features(clip, colours, recipe):
    """All products of a step on eight images are fewer than those of a tower on one."""
    image = np.zeros((1, 16, 16, 3), np.float32)
    tower = jax.jit(lambda params, images: encode_image(params, clip.config, images)[0])
    most = measure.traced(tower, clip.params, image)
    on_features = [(make_method(name), 12) for name in ("clip_adapter", "tip_adapter_f", "clap")]
    for method, width in ((Probe(), 12), (Projection(), 24), *on_features):
        task = Task(clip, method, colours.class_names)
        step = training_program(task, recipe, StepShape(8, 1, placement.single_device(), images=12))
        assert step.arguments[3]["images"].shape == (1, 8, width)
        assert 0 < measure.traced(step.function, *step.arguments) < most


@pytest.mark.ci
def test_base_to_new(clip, colours, recipe, tmp_path):
    """A method makes something of other classes; what one that refuses them says is in its row."""
    tiny = TinySweep(clip, colours, recipe, tmp_path, protocol="base_to_new")
    probe, cache = tiny.rows(PROBE, CACHE, seeds=(1,))
    assert probe["status"] == "ok" and set(probe["accuracies"]) == {"base", "new"}
    assert probe["accuracies"]["new"] == 100.0  # one new class is left to select_learning_rates from
    assert cache["status"] == "failed"
    assert cache["error"].startswith("the cache holds images of the classes of training")


@pytest.mark.ci
def test_imbalanced_draws_and_scores_that_count_classes_alike(clip, colours, recipe, tmp_path):
    """The scores of a row are scikit-learn's of the predictions beside it; the parameter is in the spec."""
    tiny = TinySweep(clip, colours, recipe, tmp_path, protocol="imbalanced")
    specs = tiny.specs("zero_shot", "taskres", shots=(3,), concentration=0.3)
    assert [spec.concentration for spec in specs] == [None, 0.3, 0.3]
    for row, spec in zip(tiny.run(specs), specs, strict=True):
        with np.load(tmp_path / "predictions" / f"{row['predictions']['test']}.npz") as stored:
            labels, predicted = stored["labels"], stored["predicted"]
        summary = row["class_summary"]
        assert summary["macro_f1"] == pytest.approx(100 * metrics.f1_score(labels, predicted, average="macro"))
        assert summary["balanced_accuracy"] == pytest.approx(
            100 * metrics.recall_score(labels, predicted, average="macro")
        )
        if spec.method == "taskres":
            available = np.bincount(colours.split("train").labels)
            counts = imbalanced_counts(available, shots=3, seed=spec.seed, concentration=0.3)
            assert row["train_images"] == 9 and row["images_per_class"] == [counts.min(), counts.max()] != [3, 3]
    even = tiny.specs("taskres", shots=(3,), concentration=1e5)
    assert {spec.key for spec in even}.isdisjoint(spec.key for spec in specs)
    assert [row["images_per_class"] for row in tiny.run(even)] == [[3, 3]] * 2


@pytest.mark.ci
def test_a_held_out_shot_selects_and_never_trains(clip, colours, recipe, tmp_path):
    """A rate, and what a method searches for; nothing is held out where nothing is selected."""
    tiny = TinySweep(clip, colours, recipe, tmp_path)
    shots = {"shots": (3,), "seeds": (1,), "hold_out_shot": True}
    candidates = tiny.specs("taskres", learning_rates=(0.05, 0.01), score_on=VALIDATION, **shots)
    rows = tiny.run(candidates)
    assert {(row["validation"], row["validation_images"], row["train_images"]) for row in rows} == {(SHOT, 3, 6)}
    rates = select_learning_rates(rows, PER_METHOD)
    tuned = tiny.specs("taskres", "gda", rates=rates, **shots)
    for row in TinySweep(clip, colours, recipe, tmp_path / "test").run(tuned):
        assert (row["validation"], row["train_images"], row["images_per_class"]) == (SHOT, 6, [2, 2])
        assert "temperature" not in row["calibration"]
    protocol = held_out.hold_out_a_shot(protocols.few_shot(colours, shots=3, seed=1), 1)
    job = make_job(tuned[-1:], tiny.context)
    (samples,) = sample_features(job)
    assert protocol.validation().keys == job.protocol.validation().keys and len(samples.validation) == 3
    (given,) = tiny.specs("taskres", **shots)
    assert given.validation == "none"


@pytest.mark.ci
def test_targets_have_classes_of_their_own(clip, colours, recipe, tmp_path):
    part = dataclasses.replace(colours.with_classes([2, 0]), name="part")
    datasets = {"colours": colours, "part": part}
    tiny = TinySweep(clip, datasets, recipe, tmp_path, protocol="domain_generalization", targets=("part",))
    assert [set(row["accuracies"]) for row in tiny.rows("taskres")] == [{"colours", "part"}] * 2
