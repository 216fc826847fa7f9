import json

import numpy as np
import pytest

from clipbias.explain.results import INTERVENTIONS
from clipbias.explain.verdict import verdict
from tests.report.synthetic import synthetic_results

# Accuracies of INTERVENTIONS: full, values_only, frozen, reweighting_only, mean_per_token, mean, none.
BIAS = (80.0, 79.0, 78.0, 45.0, 79.0, 78.0, 44.0)
NOT_CONSTANT = (80.0, 79.0, 78.0, 45.0, 60.0, 50.0, 44.0)
REWEIGHTING = (80.0, 46.0, 46.0, 78.0, 60.0, 50.0, 44.0)
EITHER = (80.0, 79.0, 78.0, 78.0, 60.0, 50.0, 44.0)
NEITHER = (80.0, 50.0, 50.0, 49.0, 60.0, 50.0, 44.0)
NO_GAIN = (80.0, 79.0, 78.0, 80.0, 80.0, 80.0, 79.0)


def with_accuracies(accuracies, error=1.0, images=1000):
    results = synthetic_results(images=images)
    none = accuracies[-1]
    results.scalars["interventions"]["ivlp"]["both"] = {
        name: {
            "accuracy": value,
            "correct": round(value * images / 100),
            "images": images,
            "gain": value - none,
            "gain_error": error,
        }
        for name, value in zip(INTERVENTIONS, accuracies, strict=True)
    }
    gain = dict(zip(INTERVENTIONS, (value - none for value in accuracies), strict=True))
    together = gain["full"] - gain["values_only"] - gain["reweighting_only"]
    results.scalars["interventions"]["ivlp"]["both"]["interaction"] = {"gain": together, "gain_error": error}
    return results


@pytest.mark.parametrize(
    "accuracies, conclusion",
    [
        (BIAS, "This favours (b): what prompts add, and it may be a constant."),
        (NOT_CONSTANT, "This favours (b), though not as a mere constant."),
        (REWEIGHTING, "This favours (a)"),
        (EITHER, "does not decide between (a) and (b)"),
        (NEITHER, "this favours (c), both are needed"),
        (NO_GAIN, "cannot tell the hypotheses apart"),
    ],
)
def test_conclusion_follows_the_accuracies(accuracies, conclusion):
    assert conclusion in verdict(with_accuracies(accuracies), "ivlp")["conclusion"]


@pytest.mark.parametrize("accuracies, meaning", [(BIAS, "add up"), (EITHER, "overlap"), (NEITHER, "need each other")])
def test_the_interaction_in_words(accuracies, meaning):
    rows = verdict(with_accuracies(accuracies), "ivlp")["hypotheses"]["both"]["rows"]
    assert meaning in next(row["sentence"] for row in rows if row["name"] == "interaction")


def test_numbers_are_those_of_the_results():
    results = with_accuracies(BIAS)
    found = verdict(results, "ivlp")
    numbers = found["numbers"]
    assert numbers["rank_correlation"] == pytest.approx(0.71)
    mass = results.arrays["decomposition/ivlp/vision/prompt_mass/mean"]
    assert numbers["prompt_mass_vision"] == pytest.approx(float(mass.mean()), rel=1e-6)
    before = results.arrays["vision_attention/zero_shot/clip/distance/mean"]
    after = results.arrays["vision_attention/ivlp/without_prompt/distance/mean"]
    assert numbers["distance_change"] == pytest.approx(float((after - before).mean()), rel=1e-5)
    assert numbers["accuracy_values_only"] == 79
    assert numbers["interaction"] == pytest.approx(36 - 35 - 1)
    right = [
        results.arrays[f"predictions/{key}"] == results.arrays["predictions/labels"] for key in ("ivlp", "zero_shot")
    ]
    assert numbers["gain"] == pytest.approx(100 * (right[0].mean() - right[1].mean()))
    json.dumps(found, allow_nan=False)


def test_the_error_of_a_gain_is_that_of_paired_images():
    results = with_accuracies(BIAS)
    rows = verdict(results, "ivlp")["hypotheses"]["both"]["rows"]
    labels = results.arrays["predictions/labels"]
    a, b = (results.arrays[f"predictions/{key}"] == labels for key in ("ivlp", "zero_shot"))
    won, lost, n = (a & ~b).sum(), (b & ~a).sum(), len(labels)
    expected = 100 * np.sqrt((won + lost - (won - lost) ** 2 / n) / n / (n - 1))
    assert next(row for row in rows if row["name"] == "gain")["standard_error"] == pytest.approx(expected)


def test_a_method_without_prompts_is_compared_with_those_that_have_some():
    found = verdict(with_accuracies(BIAS), "bias")
    assert "adds no tokens" in found["conclusion"] and "(IVLP)" in found["conclusion"]
    assert "bias" not in found["hypotheses"]  # nothing of a prompt part to report


def test_missing_sections_leave_rows_out():
    results = with_accuracies(BIAS)
    results.arrays = {name: value for name, value in results.arrays.items() if name.startswith("predictions")}
    for section in ("interventions", "relevancy", "decomposition"):
        del results.scalars[section]
    found = verdict(results, "ivlp")
    assert list(found["numbers"]) == ["gain"]
    assert "interventions were not run" in found["conclusion"]
