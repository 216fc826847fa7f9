"""Calibration and detection against the definitions, image by image, and against scikit-learn."""

import numpy as np
import pytest
from scipy import optimize
from scipy.special import softmax
from sklearn import metrics

from clipbias.training import calibration
from clipbias.training.calibration import Outcome

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
    plain = softmax(logits, axis=1).max(1)
    correct = logits.argmax(1) == labels
    cooled = softmax(logits / temperature, axis=1).max(1)
    assert measured == pytest.approx(
        {
            "ece": 100 * calibration.expected_calibration_error(plain, correct),
            "adaptive_ece": 100 * calibration.adaptive_calibration_error(plain, correct),
            "temperature": temperature,
            "ece_at_temperature": 100 * calibration.expected_calibration_error(cooled, correct),
            "adaptive_ece_at_temperature": 100 * calibration.adaptive_calibration_error(cooled, correct),
        }
    )
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
            rounded = [
                Outcome(o.correct, np.round(o.other_odds, 12), o.highest) for o in map(outcome, (inside, outside))
            ]
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
