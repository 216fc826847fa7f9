"""Settings that are selected on held-out images, against trainings one by one and losses in float64."""

import dataclasses
import json
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
from clipbias.training import placement, select
from clipbias.training.loop import NotSideBySide, Run, TrainJob, TrainResult, train_job
from clipbias.tuning import Recipe, Task, make_method
from clipbias.tuning.method import select_run
from tests.training.conftest import damaged, make_job, train_runs

pytestmark = pytest.mark.ci

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
    return fit_and_listen(clip, "bias", without_validation(colours), mesh=placement.single_device(), **GIVEN)[0]


def test_the_best_of_four_rates_trains_on_all_images(clip, colours, fitted):
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
        run = Run(Images(held.train), 3, protocols.full(dataset), line["learning_rate"])
        learnables = select_run(train_runs(task, [run], recipe).learnables, 0)
        accuracy, loss = score(task, learnables, held.choose)
        assert line["accuracy"] == pytest.approx(accuracy) and line["loss"] == pytest.approx(loss, rel=1e-3)
        losses.append(loss)
    accuracy, loss = score(Task(clip, ZERO_SHOT, dataset, template=dataset.template), {}, held.choose)
    assert choice[ZERO_SHOT] == pytest.approx({"accuracy": accuracy, "loss": loss}, rel=1e-3)
    best = choice["tried"][int(np.argmin(losses))]["learning_rate"]
    assert fitted.notes["learning_rate"] == best and len({f"{loss:.3f}" for loss in losses}) == 4
    direct, _ = fit_and_listen(clip, "bias", dataset, learning_rate=best, mesh=placement.single_device(), **GIVEN)
    jax.tree.map(np.testing.assert_array_equal, direct.learnables, fitted.learnables)
    assert "choice" not in direct.notes and direct.notes["learning_rate"] == best


def test_candidates_that_fail_or_do_not_fit_together(clip, colours, fitted, monkeypatch):
    """One that is not finite is no reason to stop, and those that do not fit the memory are trained one by one."""
    sizes = []

    def train_alone(job: TrainJob) -> TrainResult:
        sizes.append(len(job.runs))
        if len(job.runs) > 1:
            raise NotSideBySide("too many")
        return train_job(job)

    monkeypatch.setattr(select, "train_job", train_alone)
    monkeypatch.setattr(Recipe, "candidates", lambda recipe: (0.16, 1e38))
    dataset = without_validation(colours)
    task = Task(clip, "bias", dataset, template=dataset.template)
    train = dataset.split("train")
    job = make_job(task, [Run(Images(train), 3, protocols.full(dataset))], RECIPE)
    held = hold_out(train, None, seed=3)
    selected = select.select_settings(job, held, compares_rates=True)
    assert selected is not None and sizes == [2, 1, 1]
    known: Any = fitted.notes["choice"]
    good, failed = selected.candidates
    assert good.loss == pytest.approx(known["tried"][2]["loss"], rel=1e-4) and failed.loss is None
    assert selected.best.learning_rate == 0.16
    applied = selected.of_job(job)
    assert select.Selection.of_note(json.loads(json.dumps(selected.note))) == selected
    assert applied.training.learning_rate == applied.runs[0].learning_rate == 0.16
    # Without images to compare on the recipe's rate is kept, with a sentence.
    nothing = hold_out(train.subset([*range(2), *range(6, 18)]), None, seed=3)
    assert select.select_settings(job, nothing, compares_rates=True) is None
    assert "a class with 2 training images" in select.nothing_held_out(job, nothing, compares_rates=True)
    assert select.nothing_held_out(job, nothing, compares_rates=False) == ""
    monkeypatch.setattr(Recipe, "candidates", lambda recipe: (1e37, 1e38))
    with pytest.raises(clipbias.ClipbiasError, match=r"bias fails at every learning rate from 1e.37 to 1e.38"):
        select.select_settings(job, held, compares_rates=True)


def test_alpha_is_searched_on_images_that_are_held_out(clip, colours):
    """The search sees the images that are not held out; the classifier is made of all of them."""
    dataset = without_validation(colours)
    held = hold_out(dataset.split("train"), None, seed=3)
    assert held.choose is not None
    settings: dict[str, Any] = {"seed": 3, "progress": False, "mesh": placement.single_device()}
    model, _ = fit_and_listen(clip, "gda", dataset, **settings)
    trial, words = fit_and_listen(clip, "gda", held.train, class_names=dataset, validation=held.choose, **settings)
    choice: Any = model.notes["choice"]
    alpha = float(trial.learnables["constants"]["alpha"])
    assert choice["options"] == pytest.approx({"alpha": alpha}, rel=1e-6) and "learning_rate" not in model.notes
    assert model.task.options()["alpha"] == pytest.approx(float(model.learnables["constants"]["alpha"])) == alpha
    assert not np.allclose(model.learnables["constants"]["weight"], trial.learnables["constants"]["weight"])
    accuracy, loss = score(trial.task, trial.learnables, held.choose)
    (line,) = choice["tried"]
    assert (line["learning_rate"], line["accuracy"]) == (None, pytest.approx(accuracy))
    assert line["loss"] == pytest.approx(loss, rel=1e-3, abs=1e-6)
    frozen = choice[ZERO_SHOT]
    worse = (accuracy, -loss) <= (frozen["accuracy"], -frozen["loss"])
    assert any("no better than zero-shot on 3 validation images" in line for line in words) == worse
    assert any(line.startswith("3 validation images cannot tell whether tuning helped") for line in words) != worse
    learnables = {"constants": {"alpha": np.float32(0.1), "beta": np.float32(5.3)}}
    assert make_method("tip_adapter").searched_options(learnables) == {"alpha": 0.1, "beta": 5.3}


def test_held_out_images_that_cannot_be_read_do_not_count(clip, colours):
    """Neither those that select a setting, nor those that tell whether the tuned model is better."""
    train = colours.split("train")
    held = hold_out(train, None, seed=3)
    assert held.choose is not None
    broken = damaged(train, train.keys.index(held.choose.keys[1]))
    task = Task(clip, "gda", colours, template=colours.template)
    job = make_job(task, [Run(Images(broken), 3, protocols.full(colours))], None)
    job.context.reading = dataclasses.replace(job.context.reading, on_error="skip")
    selected = select.select_settings(job, hold_out(broken, None, seed=3), compares_rates=False)
    assert selected is not None and selected.images == len(held.choose) - 1 == 2
    learnables = train_job(job).learnables
    held = hold_out(broken, damaged(colours.split("val"), 4), seed=3)
    assert held.choose is not None
    (row,) = select.score_images(job, learnables, [held.choose], finite=False)
    assert row["validation_images"] == 5


def test_a_model_that_got_worse_says_so(clip, colours):
    """Of images that zero-shot classifies rightly, after a rate that destroys what the model knows."""
    task = Task(clip, ZERO_SHOT, colours, template=colours.template)
    right = TunedModel(task, {}).evaluate(colours, mesh=placement.single_device())
    validation = colours.split("test").subset(np.flatnonzero(right.predicted == right.labels))
    settings = GIVEN | {"epochs": 3, "learning_rate": 100.0, "mesh": placement.single_device()}
    data = {"class_names": colours, "validation": validation}
    model, words = fit_and_listen(clip, "bias", colours.split("train"), **data, **settings)
    tuned, _ = score(model.task, model.learnables, validation)
    assert words == model.notes["warnings"] and len(words) == 2
    assert words[0].startswith("the training loss ended at ") and f", above ln 3 = {math.log(3):.3g}, " in words[0]
    assert f"no better than zero-shot on {len(validation)} validation images: {tuned:.1f} % after 100.0 %" in words[1]


def fit_and_listen(*arguments: Any, **options: Any) -> tuple[TunedModel, list[str]]:
    """What `fit` returns, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = clipbias.fit(*arguments, **options)
    return model, [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
