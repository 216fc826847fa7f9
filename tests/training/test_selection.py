"""Settings that are selected on held-out images, against trainings one by one and losses in float64."""

import dataclasses
import math
import warnings
from typing import Any

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

import clipbias
from clipbias import TunedModel
from clipbias.clip import Clip
from clipbias.constants import ZERO_SHOT
from clipbias.data import Dataset, Split, protocols
from clipbias.data.held_out import hold_out
from clipbias.data.images import Images
from clipbias.training import mesh as meshes
from clipbias.training import selection
from clipbias.training.job import NotSideBySide, Run
from clipbias.tuning import Recipe, Task
from clipbias.tuning.learnables import select_run
from tests.training.conftest import train_runs

GIVEN: dict[str, Any] = {"seed": 3, "progress": False, "epochs": 9, "batch_size": 4}
RECIPE = Recipe(epochs=9, batch_size=4)


def without_validation(dataset: Dataset) -> Dataset:
    return dataclasses.replace(dataset, splits={name: dataset.split(name) for name in ("train", "test")})


def score(task: Task, learnables: Any, split: Split) -> tuple[float, float]:
    """Accuracy in percent and cross-entropy, from logits image by image in float64."""
    images = task.clip.preprocess([split.image(index) for index in range(len(split))])
    logits = np.asarray(jax.jit(task.logits)(task.clip.params, learnables, images), np.float64)
    losses = -log_softmax(logits, axis=1)[np.arange(len(split)), split.labels]
    return 100 * float((logits.argmax(1) == split.labels).mean()), float(losses.mean())


@pytest.fixture(scope="module")
def fitted(clip: Clip, colours: Dataset) -> TunedModel:
    """Of six training images of each colour, one of which is held out."""
    return clipbias.fit(clip, "bias", without_validation(colours), mesh=meshes.single_device(), **GIVEN)


def test_the_best_of_four_rates_trains_on_all_images(clip: Clip, colours: Dataset, fitted: TunedModel) -> None:
    choice: Any = fitted.notes["choice"]
    dataset = without_validation(colours)
    held = hold_out(dataset.split("train"), None, seed=3)
    assert held.choose is not None and choice["images"] == len(held.choose) == 3
    assert [line["learning_rate"] for line in choice["tried"]] == [0.0025, 0.02, 0.16, 1.28]
    # The candidates one by one: 9 epochs of four steps are 36, a third of which are 12, without warm-up.
    task = Task(clip, "bias", dataset, template=dataset.template)
    recipe = dataclasses.replace(RECIPE, epochs=None, steps=12, warmup_epochs=0)
    losses = []
    for line in choice["tried"]:
        run = Run(Images.of(held.train), 3, protocols.full(dataset), line["learning_rate"])
        learnables = select_run(train_runs(task, [run], recipe).learnables, 0)
        accuracy, loss = score(task, learnables, held.choose)
        assert line["accuracy"] == pytest.approx(accuracy) and line["loss"] == pytest.approx(loss, rel=1e-3)
        losses.append(loss)
    accuracy, loss = score(Task(clip, ZERO_SHOT, dataset, template=dataset.template), {}, held.choose)
    assert choice[ZERO_SHOT] == pytest.approx({"accuracy": accuracy, "loss": loss}, rel=1e-3)
    best = choice["tried"][int(np.argmin(losses))]["learning_rate"]
    assert fitted.notes["learning_rate"] == best and len({f"{loss:.3f}" for loss in losses}) == 4
    direct = clipbias.fit(clip, "bias", dataset, learning_rate=best, mesh=meshes.single_device(), **GIVEN)
    jax.tree.map(np.testing.assert_array_equal, direct.learnables, fitted.learnables)
    assert "choice" not in direct.notes and direct.notes["learning_rate"] == best


def test_candidates_that_fail_or_do_not_fit_together(
    clip: Clip, colours: Dataset, fitted: TunedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not finite is no reason to stop, and those that do not fit the memory are trained one by one."""
    sizes = []
    train_job = selection.train_job

    def train_alone(job: Any) -> Any:
        sizes.append(len(job.runs))
        if len(job.runs) > 1:
            raise NotSideBySide("too many")
        return train_job(job)

    monkeypatch.setattr(selection, "train_job", train_alone)
    monkeypatch.setattr(Recipe, "candidates", lambda recipe: (0.0025, 0.16, 1e38))
    model = clipbias.fit(clip, "bias", without_validation(colours), mesh=meshes.single_device(), **GIVEN)
    assert sizes == [3, 1, 1, 1]
    choice: Any = model.notes["choice"]
    known: Any = fitted.notes["choice"]
    assert choice["tried"][2]["loss"] is None and model.notes["learning_rate"] != 1e38
    assert choice["tried"][1] == pytest.approx(known["tried"][2], rel=1e-4)


def test_alpha_is_searched_on_images_that_are_held_out(clip: Clip, colours: Dataset) -> None:
    """The search sees the images that are not held out; the classifier is made of all of them."""
    dataset = without_validation(colours)
    held = hold_out(dataset.split("train"), None, seed=3)
    assert held.choose is not None
    settings: dict[str, Any] = {"seed": 3, "progress": False, "mesh": meshes.single_device()}
    for method, names in {"gda": ("alpha",), "tip_adapter": ("alpha", "beta")}.items():
        model = clipbias.fit(clip, method, dataset, **settings)
        trial = clipbias.fit(clip, method, held.train, class_names=dataset, validation=held.choose, **settings)
        choice: Any = model.notes["choice"]
        searched = {name: float(trial.learnables["constants"][name]) for name in names}
        assert choice["options"] == pytest.approx(searched, rel=1e-6) and "learning_rate" not in model.notes
        accuracy, loss = score(trial.task, trial.learnables, held.choose)
        (line,) = choice["tried"]
        assert line["learning_rate"] is None
        assert (line["accuracy"], line["loss"]) == pytest.approx((accuracy, loss), rel=1e-3)
        # Made of all images: another classifier at the same setting.
        for name in {"gda": ("weight",), "tip_adapter": ("keys",)}[method]:
            of_all, of_rest = (np.asarray(fit.learnables["constants"][name]) for fit in (model, trial))
            assert of_all.shape != of_rest.shape or not np.allclose(of_all, of_rest)
        assert {name: float(model.learnables["constants"][name]) for name in names} == searched


def test_sentences_of_fit(clip: Clip, colours: Dataset) -> None:
    train = colours.split("train")
    settings: dict[str, Any] = {"class_names": colours, "progress": False, "mesh": meshes.single_device(), "epochs": 1}
    two = train.subset([*range(2), *range(6, 12), *range(12, 18)])
    model, words = fit_and_listen(clip, "bias", two, **settings)
    assert words[0].startswith(
        "there are no validation images, and there is a class with 2 training images, so that nothing could be held "
        "out: the recipe's learning rate, 0.0025, was taken. Give validation images, or at least 3"
    )
    assert model.notes["learning_rate"] == 0.0025 and model.notes["warnings"] == words
    _, words = fit_and_listen(clip, "gda", two, **settings | {"epochs": None})
    assert "held out: gda kept the settings that it has without a search." in words[0]
    # A rate that destroys what the model knows: the loss ends above ln 3, and zero-shot is better.
    validation = colours.split("val")
    model, words = fit_and_listen(
        clip, "bias", train, validation=validation, learning_rate=100.0, **settings | {"epochs": 3}
    )
    assert any(f"above ln 3 = {math.log(3):.3g}" in line for line in words)
    frozen, _ = score(Task(clip, ZERO_SHOT, colours, template=colours.template), {}, validation)
    tuned, _ = score(model.task, model.learnables, validation)
    assert any(f"zero-shot on 6 validation images: {tuned:.1f} % after {frozen:.1f} %" in line for line in words)


def fit_and_listen(*arguments: Any, **options: Any) -> tuple[TunedModel, list[str]]:
    """What `fit` returns, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = clipbias.fit(*arguments, **options)
    return model, [str(warning.message) for warning in caught if warning.category is UserWarning]
