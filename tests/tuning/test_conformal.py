"""Prediction sets and rejections against plain loops, and against what split conformal prediction promises."""

import math
from fractions import Fraction

import numpy as np
import pytest

from clipbias import TunedModel
from clipbias.errors import ClipbiasError
from clipbias.tuning import Task
from clipbias.tuning.adapter import read_adapter
from clipbias.tuning.conformal import SCORES, AnswerOptions, AnswerRule, Calibration, measure

rng = np.random.default_rng(5)
CLASSES = 7
SCALE = 20.0
LOGITS = rng.normal(0, 3, (500, CLASSES)).astype(np.float32)
LABELS = np.where(rng.random(500) < 0.6, LOGITS.argmax(1), rng.integers(0, CLASSES, 500))
CALIBRATION = Calibration.of(LOGITS[:203], LABELS[:203], SCALE)


def shares(row: np.ndarray, temperature: float = 1.0) -> list[float]:
    """Probabilities from the definition."""
    weights = [math.exp(float(value) / temperature) for value in row]
    return [weight / sum(weights) for weight in weights]


def rule(**options: float | str) -> AnswerRule:
    return CALIBRATION.rule(AnswerOptions(**options))


@pytest.mark.parametrize("coverage", ["0.5", "0.9", "0.95", "0.995"])
def test_sets_are_those_of_plain_loops(coverage):
    scores = sorted(1 - shares(row)[label] for row, label in zip(LOGITS[:203], LABELS[:203], strict=True))
    largest = scores[math.ceil(204 * Fraction(coverage)) - 1]
    expected = [[1 - share <= largest for share in shares(row)] for row in LOGITS[203:]]
    sets = rule(coverage=float(coverage)).sets(LOGITS[203:])
    np.testing.assert_array_equal(sets, expected)
    calibrated = rule(coverage=float(coverage)).sets(LOGITS[:203])[np.arange(203), LABELS[:203]]
    assert calibrated.sum() == math.ceil(204 * Fraction(coverage))  # the image of the threshold among them
    measured = measure(rule(coverage=float(coverage)), LOGITS[203:], LABELS[203:])
    held = [members[label] for members, label in zip(expected, LABELS[203:], strict=True)]
    assert measured["coverage"] == pytest.approx(100 * sum(held) / 297)
    assert measured["mean_size"] == pytest.approx(sum(map(sum, expected)) / 297)
    assert measured["empty"] == pytest.approx(100 * sum(not any(members) for members in expected) / 297)


@pytest.mark.parametrize("score", SCORES)
def test_an_image_is_rejected_below_what_most_calibration_images_reach(score):
    definition = {
        "max_logit": lambda row: float(max(row)),
        "mcm": lambda row: max(shares(row, SCALE)),
        "energy": lambda row: math.log(sum(math.exp(float(value)) for value in row)),
    }[score]
    inside = sorted((definition(row) for row in LOGITS[:203]), reverse=True)
    threshold = inside[193 - 1]  # 95 % of 203 images are 192.85
    expected = [definition(row) < threshold - 1e-9 for row in LOGITS]
    np.testing.assert_array_equal(rule(rejection=score).rejected(LOGITS), expected)
    assert sum(expected[:203]) == 203 - 193 and sum(expected[203:]) > 0
    assert not rule(rejection=score, accepted=1.0).rejected(LOGITS[:203]).any()


def test_what_could_not_be_read_has_an_empty_set_and_is_not_rejected():
    nothing = np.full((1, CLASSES), np.nan, np.float32)
    assert not rule().sets(nothing).any() and not rule().rejected(nothing).any()


@pytest.mark.parametrize(("accepted", "fewest"), [(0.5, 1), (0.9, 9), (0.95, 19), (0.99, 99), (1.0, 1)])
def test_too_few_images_are_named(accepted, fewest):
    """One in `n + 1` such images lies below the lowest score of `n`, and `1 - accepted` at most may."""
    if fewest > 1:  # a coverage takes as many
        assert Calibration.of(LOGITS[:fewest], LABELS[:fewest], SCALE).rule(AnswerOptions(coverage=accepted))
        few = Calibration.of(LOGITS[: fewest - 1], LABELS[: fewest - 1], SCALE)
        with pytest.raises(ClipbiasError, match=f"takes {fewest} calibration images, and this model has {fewest - 1}"):
            few.rule(AnswerOptions(coverage=accepted))
    for images in sorted({1, max(1, fewest - 1), fewest, fewest + 1}):
        made = Calibration.of(LOGITS[:images], LABELS[:images], SCALE).rule(
            AnswerOptions(coverage=0.5, accepted=accepted)
        )
        if Fraction(1, images + 1) <= 1 - Fraction(str(accepted)) or accepted == 1:
            assert images >= fewest and not made.caution
        else:
            assert images < fewest and made.lowest == LOGITS[:images].max(1).min()
            assert f"with {images} calibration image" in made.caution and f"takes {fewest}," in made.caution


def test_scores_are_kept_to_the_last_bit(tmp_path, clip):
    task = Task(clip, "bias", tuple("abcdefg"))
    TunedModel(task, task.init(), {"seed": 1}, CALIBRATION).save(tmp_path / "a.safetensors")
    stored = read_adapter(tmp_path / "a.safetensors")
    assert stored.calibration is not None
    for name, array in CALIBRATION.arrays().items():
        np.testing.assert_array_equal(stored.calibration.arrays()[name], array)
    again = TunedModel.of(stored.bind(clip))
    # What is calibrated for some classes says nothing of others, or of other texts for them.
    assert again.with_classes(task).rule(AnswerOptions()) == again.rule(AnswerOptions()) == rule()
    for other in (again.with_classes(("x", "y")), again.with_classes(task.class_names, free_text=True)):
        assert other.calibration is None
