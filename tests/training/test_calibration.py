"""Calibration and detection against the definitions and scikit-learn; which images calibrate a model, and its sets."""

import dataclasses
import math
import warnings
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import optimize
from scipy.special import softmax
from sklearn import metrics

import clipbias
from clipbias import TunedModel
from clipbias.clip import Clip
from clipbias.data import Dataset, Split
from clipbias.data.held_out import hold_out
from clipbias.errors import ClipbiasError, ClipbiasWarning
from clipbias.training import calibration, placement
from clipbias.training.calibration import Outcome
from clipbias.training.progress import Progress
from clipbias.training.run import run_group
from clipbias.training.spec import run_names
from clipbias.training.workdir import SweepPaths
from clipbias.tuning import Recipe, Task
from tests.training.conftest import TinySweep, colour_split

pytestmark = pytest.mark.filterwarnings("ignore:the (tuned model|training loss)")
rng = np.random.default_rng(0)
LOGITS = rng.normal(0, 3, (403, 6))
LABELS = np.where(rng.random(403) < 0.6, LOGITS.argmax(1), rng.integers(0, 6, 403))
PROBABILITIES = softmax(LOGITS, axis=1)
SURE = PROBABILITIES.max(1)
CORRECT = PROBABILITIES.argmax(1) == LABELS


def test_error_in_bins_of_equal_width():
    bins = [[] for _ in range(15)]
    for sure, correct in zip(SURE, CORRECT, strict=True):
        (number,) = [b for b in range(15) if b / 15 < sure <= (b + 1) / 15]
        bins[number].append((sure, correct))
    gaps = [len(b) * abs(np.mean([c for _, c in b]) - np.mean([s for s, _ in b])) for b in bins if b]
    assert calibration.expected_calibration_error(SURE, CORRECT) == pytest.approx(sum(gaps) / len(SURE), rel=1e-12)
    # The ends belong to the first and the last bin.
    assert calibration.expected_calibration_error([0.0, 1.0], [True, True]) == 0.5
    # An edge between two bins belongs to the lower one.
    assert calibration.expected_calibration_error([0.5, 0.4], [True, False], bins=2) == pytest.approx(0.05)


def test_error_in_bins_of_equally_many():
    order = sorted(range(403), key=lambda i: SURE[i])
    sizes = [27] * 13 + [26] * 2  # 403 = 15 · 26 + 13
    total = 0.0
    start = 0
    for size in sizes:
        members = order[start : start + size]
        total += size * abs(np.mean(CORRECT[members]) - np.mean(SURE[members]))
        start += size
    assert calibration.adaptive_calibration_error(SURE, CORRECT) == pytest.approx(total / 403, rel=1e-12)
    shuffled = rng.permutation(40)
    ties = np.repeat([0.3, 0.7], 20)
    right = np.tile([True, False], 20)
    error = calibration.adaptive_calibration_error(ties, right)
    assert calibration.adaptive_calibration_error(ties[shuffled], right[shuffled]) == pytest.approx(error, abs=1e-15)


def test_temperatures_are_those_of_a_search_for_the_root(monkeypatch):
    """Of each form by itself, and of images that are worked on a few at a time."""
    forms = np.stack([LOGITS, 0.2 * LOGITS, 30 * LOGITS, np.flip(LOGITS, 1)], axis=1).astype(np.float32)

    def slope(inverse, logits):
        return (softmax(logits * inverse, axis=1) * logits).sum() - logits[np.arange(len(LABELS)), LABELS].sum()

    monkeypatch.setattr(calibration, "_AT_ONCE", 5 * 4 * 6)
    fitted = calibration.fit_temperatures(forms, LABELS)
    for k in range(3):
        root = optimize.brentq(slope, 0.01, 100, args=(forms[:, k].astype(np.float64),), xtol=1e-12)
        assert fitted[k] == pytest.approx(1 / root, rel=1e-7)
    assert fitted[3] == calibration.HOTTEST and calibration.fit_temperature(forms[:, 3], LABELS) is None
    # No minimum within the range: the cross-entropy falls as far as one looks.
    assert calibration.fit_temperature(LOGITS, LOGITS.argmax(1)) is None
    # The fewest images that fit a temperature, one of which is wrong.
    logits, labels = np.eye(6)[np.arange(10) % 6], np.arange(10) % 6
    labels[9] = 0
    assert calibration.fit_temperature(logits, labels) is not None
    assert calibration.fit_temperature(logits[1:], labels[1:]) is None


def outcome(logits, labels=None, temperature=1.0):
    """From the definitions, in float64."""
    rest = np.sort(logits - logits.max(1, keepdims=True), axis=1)[:, :-1]
    correct = logits.argmax(1) == (0 if labels is None else labels)
    return Outcome(correct, np.exp(rest).sum(1), logits.max(1), np.exp(rest / temperature).sum(1))


def test_a_fitted_temperature_calibrates():
    """Labels that are drawn from the probabilities at temperature 2 ask for that one."""
    logits = rng.normal(0, 3, (5000, 6))
    labels = (softmax(logits / 2, axis=1).cumsum(1) > rng.random((5000, 1))).argmax(1)
    temperature = calibration.fit_temperature(logits, labels)
    assert temperature == pytest.approx(2, rel=0.05)
    measured = calibration.calibration(outcome(logits, labels, temperature), temperature)
    correct = logits.argmax(1) == labels
    expected = {"temperature": temperature}
    for suffix, scale in (("", 1), ("_at_temperature", temperature)):
        sure = softmax(logits / scale, axis=1).max(1)
        expected[f"ece{suffix}"] = 100 * calibration.expected_calibration_error(sure, correct)
        expected[f"adaptive_ece{suffix}"] = 100 * calibration.adaptive_calibration_error(sure, correct)
    assert measured == pytest.approx(expected)
    assert measured["ece_at_temperature"] < 0.2 * measured["ece"]
    assert set(calibration.calibration(outcome(logits, labels))) == {"ece", "adaptive_ece"}


@pytest.mark.parametrize("step", [0, 0.5], ids=["no ties", "ties"])
def test_detection_equals_scikit_learn(step):
    inside = LOGITS
    outside = rng.normal(0, 2.4, (211, 6))
    if step:
        inside, outside = (step * np.round(x / step) for x in (inside, outside))
    detected = calibration.detection(outcome(inside), outcome(outside))
    labels = np.repeat([1, 0], [len(inside), len(outside)])
    for name, score in (
        ("max_logit", lambda z: z.max(1)),
        ("max_softmax", lambda z: np.round(softmax(z, axis=1).max(1), 12)),
    ):
        scores = np.concatenate([score(inside), score(outside)])
        if name == "max_softmax":  # equal but for rounding
            both = map(outcome, (inside, outside))
            rounded = [dataclasses.replace(each, other_odds=np.round(each.other_odds, 12)) for each in both]
            detected[name] = calibration.detection(*rounded)[name]
        rates, recalls, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
        assert detected[name]["auroc"] == pytest.approx(100 * metrics.roc_auc_score(labels, scores), abs=1e-9)
        assert detected[name]["fpr95"] == pytest.approx(100 * rates[np.argmax(recalls >= 0.95)], abs=1e-9)


def test_odds_of_other_classes_tell_what_rounding_hides():
    """Two images whose float32 probability is 1 both are ordered all the same."""
    sure, surer = np.float32(1e-9), np.float32(1e-12)
    assert np.float32(1) / (1 + sure) == np.float32(1) / (1 + surer)
    surest, other = (Outcome(np.array([True]), np.array([d]), np.array([1.0])) for d in (surer, sure))
    assert calibration.detection(surest, other)["max_softmax"] == {"auroc": 100.0, "fpr95": 0.0}


SETTINGS: dict[str, Any] = {"seed": 3, "progress": False, "mesh": placement.single_device()}


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


@pytest.mark.ci
def test_a_run_says_that_its_search_replaced_a_given_option(clip, validated, recipe, tmp_path, capsys):
    tiny = TinySweep(clip, validated, recipe, tmp_path, options={"gda": {"alpha": 7.0}})
    specs = tiny.specs("gda", seeds=(1,))
    run_group(specs, tiny.context, SweepPaths(tmp_path, run_names(specs)), recipe, Progress())
    assert "the best on the validation images, and not 7 as given" in " ".join(capsys.readouterr().err.split())


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


def test_calibration_labels_in_another_order_are_said(fitted, validated):
    validation = validated.split("val")
    pictures = [Image.fromarray(validation.image(number)) for number in range(len(validation))]
    names = [fitted.class_names[label] for label in validation.labels]
    numbers = (fitted.predict(pictures).labels + 1) % len(fitted.class_names)
    with pytest.warns(ClipbiasWarning, match="0.0 % of .* calibration images .* fewer than by chance"):
        fitted.calibrate(pictures, numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.calibrate(pictures, names)


@pytest.mark.ci
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


@pytest.mark.ci
@pytest.mark.parametrize("method", ["tip_adapter", "tpt_coop"])
def test_every_kind_of_method_has_sets(clip, colours, method):
    """The true class of as many of the calibration images as the quantile says, and as many accepted."""
    task = Task(clip, method, colours, template=colours.template)
    model = TunedModel(task, task.init(0))
    if method == "tip_adapter":
        model = clipbias.fit(clip, method, colours, calibrate=False, **SETTINGS)
    test = colours.split("test")
    calibrated = model.calibrate(colours, split="test", mesh=placement.single_device())
    assert calibrated.calibration is not None and model.calibration is None
    prediction = calibrated.predict([test.image(index) for index in range(15)], coverage=0.7, accepted=0.8)
    names = [colours.class_names[label] for label in test.labels]
    held = [name in members for name, members in zip(names, prediction.sets, strict=True)]
    assert sum(held) == math.ceil(16 * 0.7) and sum(~prediction.rejected) == 12
    for members, row in zip(prediction.sets, prediction.probabilities, strict=True):
        order = [row[colours.class_names.index(name)] for name in members]
        assert order == sorted(order, reverse=True) and (not members or order[0] == row.max())


@pytest.mark.ci
def test_an_evaluation_says_how_sets_do(validated, fitted):
    test = validated.split("test")
    prediction = fitted.predict([test.image(index) for index in range(len(test))], coverage=0.8, rejection="mcm")
    accuracy = fitted.evaluate(validated, coverage=0.8, rejection="mcm", mesh=placement.single_device())
    names = [validated.class_names[label] for label in test.labels]
    held = [name in members for name, members in zip(names, prediction.sets, strict=True)]
    numbers = {"images": 15, "calibration_images": 24, "target_coverage": 80.0, "coverage": 100 * sum(held) / 15}
    numbers |= {"mean_size": sum(map(len, prediction.sets)) / 15, "rejected": 100 * sum(prediction.rejected) / 15}
    numbers |= {"empty": 100 * sum(not members for members in prediction.sets) / 15}
    assert accuracy.answers == pytest.approx(numbers)
    uncalibrated = dataclasses.replace(fitted, calibration=None)
    assert uncalibrated.evaluate(validated, mesh=placement.single_device()).answers is None
