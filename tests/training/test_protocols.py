"""Every protocol through a sweep, on drawn data."""

import dataclasses

import numpy as np
import pytest
from sklearn import metrics

from clipbias.data import held_out, protocols
from clipbias.data.few_shot import imbalanced_counts
from clipbias.data.held_out import SHOT
from clipbias.training.loop import sample_features
from clipbias.training.run import make_job
from clipbias.training.select import METHOD, choose
from clipbias.training.spec import VALIDATION
from clipbias.tuning import Task
from clipbias.tuning.adapter import transfer
from tests.training.sweeps import TinySweep

PROBE = "tests.own_methods:Probe"
CACHE = "tests.own_methods:Cache"


@pytest.mark.ci
def test_base_to_new(clip, colours, recipe, tmp_path):
    """A method makes something of other classes; what one that refuses them says is in its row."""
    tiny = TinySweep(clip, colours, recipe, tmp_path, protocol="base_to_new")
    probe, cache = tiny.rows(PROBE, CACHE, seeds=(1,))
    assert probe["status"] == "ok" and set(probe["accuracies"]) == {"base", "new"}
    assert probe["accuracies"]["new"] == 100.0  # one new class is left to choose from
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
    rates = choose(rows, METHOD)
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


def test_transfer_takes_the_rows_of_the_classes(clip):
    source, target = Task(clip, "taskres", ("a", "b", "c")), Task(clip, "taskres", ("c", "a"))
    learnables = {"text_residual": np.arange(3.0)[:, None] + np.zeros(clip.config.projection_width)}
    moved = transfer(source, target, learnables, (2, 0))
    np.testing.assert_array_equal(moved["text_residual"][:, 0], [2, 0])


def test_transfer_leaves_a_bias_alone_even_where_layers_and_classes_are_equally_many(clip):
    layers = clip.config.vision.layers
    source, target = (Task(clip, "bias", [f"{name}{i}" for i in range(layers)]) for name in "ab")
    learnables = source.init()
    assert transfer(source, target, learnables) is not None
    assert transfer(source, target, learnables)["vision_bias"] is learnables["vision_bias"]
