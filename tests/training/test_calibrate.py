"""Which images calibrate a model, and that its sets are those of their logits."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest
from scipy.special import softmax

import clipbias
from clipbias import TunedModel
from clipbias.clip import Clip
from clipbias.data import Dataset, Split
from clipbias.data.held_out import hold_out
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.tuning import Recipe, Task
from tests.training.conftest import colour_split

pytestmark = [pytest.mark.ci, pytest.mark.filterwarnings("ignore:the (tuned model|training loss)")]
SETTINGS: dict[str, Any] = {"seed": 3, "progress": False, "mesh": meshes.single_device()}


@pytest.fixture(scope="module")
def validated(colours: Dataset) -> Dataset:
    """With eight validation images of each colour."""
    return dataclasses.replace(colours, splits={**colours.splits, "val": colour_split(8, 7)})


@pytest.fixture(scope="module")
def fitted(clip: Clip, validated: Dataset, recipe: Recipe) -> TunedModel:
    return clipbias.fit(clip, "bias", validated, recipe=recipe, **SETTINGS)


def logits_of(model: TunedModel, split: Split) -> np.ndarray:
    """One image at a time."""
    logits = jax.jit(model.task.logits)
    images = model.clip.preprocess([split.image(index) for index in range(len(split))])
    rows = [np.asarray(logits(model.clip.params, model.learnables, image[None]), np.float64) for image in images]
    return np.concatenate(rows)


def assert_calibrated_on(model: TunedModel, images: Split) -> None:
    expected = 1 - softmax(logits_of(model, images), axis=1)[np.arange(len(images)), images.labels]
    assert model.calibration is not None and len(model.calibration) == len(images)
    np.testing.assert_allclose(np.sort(model.calibration.nonconformity), np.sort(expected), atol=1e-5)


def test_what_chose_a_setting_does_not_calibrate(clip, validated, recipe, fitted):
    """Of a search on validation images one half chooses; where nothing is selected all calibrate."""
    train, validation = validated.split("train"), validated.split("val")
    held = hold_out(train, validation, seed=3, calibrates=True)
    assert held.choose is not None and held.calibrate is not None
    searched = clipbias.fit(clip, "gda", validated, **SETTINGS)
    assert_calibrated_on(searched, held.calibrate)
    trial = clipbias.fit(clip, "gda", train, class_names=validated, validation=held.choose, calibrate=False, **SETTINGS)
    assert trial.calibration is None
    jax.tree.map(np.testing.assert_array_equal, searched.learnables, trial.learnables)
    assert_calibrated_on(fitted, validation)
    plain = clipbias.fit(clip, "bias", validated, recipe=recipe, calibrate=False, **SETTINGS)
    jax.tree.map(np.testing.assert_array_equal, plain.learnables, fitted.learnables)


def test_images_that_train_never_calibrate(clip, colours, recipe):
    """Six validation images are too few; of a method that learns from no image the training images are free."""
    model = clipbias.fit(clip, "bias", colours, recipe=recipe, **SETTINGS)
    assert model.calibration is None
    with pytest.raises(ClipbiasError, match=r"no prediction sets: there are no scores .* take model\.calibrate"):
        _ = model.predict(np.zeros((1, 20, 20, 3), np.uint8)).sets
    with pytest.raises(ClipbiasError, match="fewer than 10 images neither train nor select a setting"):
        clipbias.fit(clip, "bias", colours, recipe=recipe, calibrate=True, **SETTINGS)
    train = colours.split("train")
    for calibrate in (None, True):
        untrained = clipbias.fit(clip, "zero_shot", train, class_names=colours, calibrate=calibrate, **SETTINGS)
        assert_calibrated_on(untrained, train)


@pytest.mark.parametrize("method", ["cocoop", "tip_adapter", "tpt_coop"])
def test_every_kind_of_method_has_sets(clip, colours, method):
    """The true class of as many of the calibration images as the quantile says, and as many accepted."""
    task = Task(clip, method, colours, template=colours.template)
    model = TunedModel(task, task.init(0))
    if method == "tip_adapter":
        model = clipbias.fit(clip, method, colours, calibrate=False, **SETTINGS)
    test = colours.split("test")
    calibrated = model.calibrate(colours, split="test", mesh=meshes.single_device())
    assert calibrated.calibration is not None and model.calibration is None
    prediction = calibrated.predict([test.image(index) for index in range(15)], coverage=0.7, accepted=0.8)
    names = [colours.class_names[label] for label in test.labels]
    held = [name in members for name, members in zip(names, prediction.sets, strict=True)]
    assert sum(held) == math.ceil(16 * 0.7) and sum(~prediction.rejected) == 12
    for members, row in zip(prediction.sets, prediction.probabilities, strict=True):
        order = [row[colours.class_names.index(name)] for name in members]
        assert order == sorted(order, reverse=True) and (not members or order[0] == row.max())
    lines = repr(prediction).splitlines()
    words = [
        "none of these" if prediction.rejected[number] else f"70 % set: {', '.join(prediction.sets[number]) or 'empty'}"
        for number in range(10)
    ]
    assert all(line.endswith(f"; {word}") for line, word in zip(lines[:10], words, strict=True)) and len(lines) == 11
    few = repr(calibrated.predict(test.image(0))).splitlines()  # 95 % are accepted
    assert len(few) == 2 and few[1].startswith('"none of these" means little with 15 calibration images: ')


def test_an_evaluation_says_how_sets_do(validated, fitted):
    test = validated.split("test")
    prediction = fitted.predict([test.image(index) for index in range(len(test))], coverage=0.8, rejection="mcm")
    accuracy = fitted.evaluate(validated, coverage=0.8, rejection="mcm", mesh=meshes.single_device())
    sets = prediction.sets
    names = [validated.class_names[label] for label in test.labels]
    assert accuracy.answers is not None
    assert accuracy.answers == pytest.approx(
        {
            "images": 15,
            "calibration_images": 24,
            "target_coverage": 80.0,
            "coverage": 100 * sum(name in members for name, members in zip(names, sets, strict=True)) / 15,
            "mean_size": sum(map(len, sets)) / 15,
            "empty": 100 * sum(not members for members in sets) / 15,
            "rejected": 100 * sum(prediction.rejected) / 15,
        }
    )
    assert repr(accuracy).splitlines()[-1].startswith("prediction sets for 80 % from 24 calibration images: ")
    uncalibrated = dataclasses.replace(fitted, calibration=None)
    assert uncalibrated.evaluate(validated, mesh=meshes.single_device()).answers is None
