"""`clipbias.fit`, `predict` and `evaluate`: the numbers of `clipbias train`, from datasets, arrays and files."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import clipbias
from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.prediction import Prediction
from clipbias.training import mesh as meshes
from clipbias.tuning import Recipe, Task
from tests.training.sweeps import TinySweep

OPTIONS: dict[str, dict[str, Any]] = {"bias": {}, "clap": {"recipe": "common"}}


def pictures(dataset: Dataset, name: str) -> tuple[list[np.ndarray], np.ndarray]:
    split = dataset.split(name)
    return [split.image(index) for index in range(len(split))], split.labels


def make_task(clip: Clip, dataset: Dataset, method: str) -> Task:
    return clipbias.Task(clip, method, dataset.class_names, template=dataset.template, **OPTIONS[method])


@pytest.fixture(scope="module")
def fitted(clip: Clip, colours: Dataset, recipe: Recipe) -> dict[str, Any]:
    """What `fit` learns of a few images of the dataset."""
    given: dict[str, Any] = dict(shots=2, seed=3, progress=False, mesh=meshes.single_device())
    given["recipe"] = dataclasses.replace(recipe, learning_rate=1.0, epochs=1, batch_size=1)
    given |= {name: getattr(recipe, name) for name in ("learning_rate", "epochs", "batch_size")}
    return {method: clipbias.fit(make_task(clip, colours, method), colours, **given) for method in OPTIONS}


def test_it_learns_what_the_driver_learns(
    clip: Clip, colours: Dataset, recipe: Recipe, fitted: dict[str, Any], tmp_path: Path
) -> None:
    tiny = TinySweep(clip, colours, recipe, tmp_path, options=OPTIONS)
    specs = tiny.specs(*OPTIONS, seeds=(3,))
    assert [row["status"] for row in tiny.run(specs)] == ["ok"] * 2
    for spec in specs:
        jax.tree.map(np.testing.assert_array_equal, fitted[spec.method], dict(tiny.adapter(spec).learnables))
    assert float(np.abs(fitted["bias"]["vision_bias"]).max()) > 0


def test_arrays_with_names_for_labels_are_a_dataset_too(
    clip: Clip, colours: Dataset, recipe: Recipe, capsys: pytest.CaptureFixture
) -> None:
    task, (images, labels) = make_task(clip, colours, "bias"), pictures(colours, "train")
    given: dict[str, Any] = dict(recipe=recipe, mesh=meshes.single_device())
    names = [colours.class_names[label] for label in labels]
    found = clipbias.fit(task, images, names, **given)
    assert "bias on own images 9/9" in capsys.readouterr().err
    wanted = clipbias.fit(task, colours.split("train"), progress=False, **given)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_predictions_are_the_softmax_of_the_logits(clip: Clip, colours: Dataset, fitted: dict[str, Any]) -> None:
    task, (images, _) = make_task(clip, colours, "bias"), pictures(colours, "test")
    ready = clip.preprocess(images)
    logits = np.asarray(jax.jit(task.logits)(clip.params, fitted["bias"], ready), np.float64)
    wanted = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = clipbias.predict(task, fitted["bias"], images, batch_size=4)
    np.testing.assert_allclose(found.probabilities, wanted, atol=1e-5)
    again = clipbias.predict(task, fitted["bias"], ready, batch_size=4)
    np.testing.assert_allclose(again.probabilities, wanted, atol=1e-5)
    assert found.classes == [colours.class_names[label] for label in wanted.argmax(-1)] and len(found) == 15
    lines = repr(found).splitlines()
    assert len(lines) == 11 and lines[-1] == "… and 5 more pictures"
    assert lines[0].startswith(f"{found.classes[0]} {100 * wanted[0].max():.1f} %")


def test_accuracy_counts_what_is_taken_for_what(clip: Clip, colours: Dataset, fitted: dict[str, Any]) -> None:
    task, (images, labels) = make_task(clip, colours, "bias"), pictures(colours, "test")
    predicted = clipbias.predict(task, fitted["bias"], images, batch_size=4).labels
    found = clipbias.evaluate(task, fitted["bias"], colours, mesh=meshes.single_device(), batch_size=8)
    np.testing.assert_array_equal(found.predicted, predicted)
    wanted = np.zeros((3, 3), int)
    for label, guess in zip(labels, predicted, strict=True):
        wanted[label, guess] += 1
    np.testing.assert_array_equal(found.confusion, wanted)
    assert found.accuracy == pytest.approx(100 * np.trace(wanted) / 15)
    np.testing.assert_allclose(found.per_class, [100 * wanted[c, c] / 5 for c in range(3)])
    assert repr(found).startswith(f"{found.accuracy:.2f} % (± {found.standard_error:.2f}) of 15 images")
    same = clipbias.evaluate(task, fitted["bias"], images, labels, mesh=meshes.single_device(), batch_size=8)
    np.testing.assert_array_equal(same.confusion, wanted)
    none = dataclasses.replace(found, labels=found.labels[:5], predicted=found.predicted[:5])
    assert np.isnan(none.per_class[1:]).all() and not np.isnan(none.per_class[0])


def test_a_method_that_learns_nothing_needs_nothing(clip: Clip, colours: Dataset) -> None:
    task, (images, labels) = clipbias.Task(clip, "zero_shot", colours.class_names), pictures(colours, "test")
    assert clipbias.fit(task, images, labels) == {}
    assert isinstance(clipbias.predict(task, {}, images), Prediction) and len(clipbias.predict(task, {}, [])) == 0
