"""A report's first page: numbers against plain loops over a study's arrays, and sentences that the verdict allows."""

import dataclasses
import re

import numpy as np
import pytest

from clipbias.report.answer import answer_sentences, certainty, question
from clipbias.report.answer_figure import COLUMNS, MOST_ROWS, answer_figure, answer_note, answer_rows
from clipbias.report.methods import MethodResults, study_methods
from clipbias.report.study_results import StudyResults
from tests.report import recomputed
from tests.report.recomputed import SHARES, drawn, ends, number
from tests.report.synthetic import synthetic_results

EFFECTS = ("attention", "scale", "values")
KEYS = {"IVLP, 2 seeds": ["ivlp", "ivlp_seed2"], "Bias tuning": ["bias"]}


@pytest.fixture(scope="module")
def results():
    return synthetic_results(pictures=1, twins=True)


@pytest.fixture(scope="module")
def study(results):
    return StudyResults(results)


def numbers_in(text):
    return [float(part) for part in re.findall(r"[+-]?\d+(?:\.\d+)?", text)]


def test_rows_are_what_the_arrays_say(results, study):
    zero_shot, *rows = (dict(zip(COLUMNS, row, strict=True)) for row in answer_rows(study, study_methods(study)))
    assert zero_shot["Model"] == "Zero-shot" and set(list(zero_shot.values())[2:]) == {"–"}
    models = {model["key"]: model for model in results.scalars["models"]}
    for row, (label, keys) in zip(rows, KEYS.items(), strict=True):
        assert row["Model"] == label
        shares = [models[key]["correct"] / 50 for key in keys]
        errors = [100 * (share * (1 - share) / 50) ** 0.5 for share in shares]
        np.testing.assert_allclose(
            numbers_in(row["Accuracy (%)"]), [100 * np.mean(shares), np.mean(errors)], atol=0.0501
        )
        own = recomputed.effects(results, keys, "accuracy")
        named = {"Gain (points)": "gain", **{name.capitalize(): name for name in EFFECTS}}
        for head, name in named.items():
            if name in own:
                np.testing.assert_allclose(numbers_in(row[head]), ends(own[name]), atol=0.0501)
            else:
                assert row[head] == "–"
        for head, kind in zip(COLUMNS[-2:], ("kept", "lost"), strict=True):
            if label == "Bias tuning":  # that a learned bias keeps itself is no finding
                assert row[head] == "–"
            else:
                found = recomputed.constants(results, keys, "accuracy")[f"{kind}:kind"]
                np.testing.assert_allclose(numbers_in(row[head]), ends(found, SHARES, 100), atol=0.501)


def test_the_figure_has_the_same_numbers(results, study):
    drawing = answer_figure(study, study_methods(study))
    found = {
        (row["method"], row["quantity"]): list(row[["value", "low", "high"]]) for _, row in drawing.numbers.iterrows()
    }
    for label, keys in KEYS.items():
        method, own = label.partition(",")[0], recomputed.effects(results, keys, "accuracy")
        for name in ("gain", *EFFECTS):
            if name in own:
                np.testing.assert_allclose(found.pop((method, name)), ends(own[name]), atol=1e-5)
    constants = recomputed.constants(results, KEYS["IVLP, 2 seeds"], "accuracy")
    for kind in ("kept", "lost"):
        np.testing.assert_allclose(found.pop(("IVLP", kind)), ends(constants[f"{kind}:kind"]), atol=1e-5)
    assert not found
    legend = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert legend == ["whole gain", *EFFECTS, "kept by two vectors", "lost without them"]
    (axes,) = drawing.figure.axes
    assert axes.get_xlabel() == "points of accuracy"


def test_a_start_elsewhere_is_told(results, study):
    labels, zero = results.arrays["predictions/labels"], results.arrays["predictions/zero_shot"]
    outcomes = [recomputed.mixture_outcomes(results, key, "accuracy", "both") for key in KEYS["IVLP, 2 seeds"]]
    start = np.mean([own["RRR"].mean() for own in outcomes])
    assert abs(start - 100 * (zero == labels).mean()) > 0.05
    assert f"over the text that training starts from; its accuracy: IVLP {start:.1f} %," in answer_note(
        study, study_methods(study)
    )


def test_a_model_that_cannot_be_taken_apart_has_its_gain(results):
    scalars = {k: v for k, v in results.scalars.items() if k not in ("factorial", "constants")}
    scalars["verdict"] = {"ivlp": {"missing": "A head has no second run."}}
    arrays = {name: array for name, array in results.arrays.items() if name.startswith("predictions/")}
    study = StudyResults(type(results)(arrays, scalars))
    methods = study_methods(study)
    _, row, _ = answer_rows(study, methods)
    labels, before = arrays["predictions/labels"], arrays["predictions/zero_shot"] == arrays["predictions/labels"]
    changes = [100.0 * ((arrays[f"predictions/{key}"] == labels) - 1.0 * before) for key in KEYS["IVLP, 2 seeds"]]
    np.testing.assert_allclose(numbers_in(row[2]), ends(number(drawn(np.stack(changes)))), atol=0.0501)
    assert set(row[3:]) == {"–"} and answer_figure(study, methods) is None
    assert len(answer_sentences(study, methods)) == 1


def test_few_methods_have_their_conclusion(results, study):
    said = answer_sentences(study, study_methods(study))
    verdict, bias = results.scalars["verdict"]["seeds"][0], results.scalars["verdict"]["bias"]
    assert said[1] == f"IVLP, 2 seeds: {verdict['conclusion']}"
    assert said[2] == f"Bias tuning: {bias['sentences'][0]}" and len(said) == 3
    assert re.match(r"Zero-shot CLIP gets 44.0 % of the images right; tuning changes that by \+\d+\.\d points", said[0])
    assert "over 50 images of the test split and over seeds" in certainty(study, study_methods(study))


def method(label="M", gain=20.0, carrier="values", constant="not"):
    def estimate(value):
        return {"value": value, "low": value - 5, "high": value + 5}

    effects = {"gain": estimate(gain), "effects": {}, "interactions": {}}
    constants = {"gain": estimate(gain), "kept": {}, "lost": {}}
    verdict = {"carrier": {"accuracy": carrier}, "constant": {"accuracy": constant}, "images": 50}
    return MethodResults(
        label=label,
        name=label,
        method="ivlp",
        keys=(label,),
        accuracy=60.0,
        error=2.0,
        gain=estimate(gain),
        start=None,
        prompts=True,
        verdict=verdict,
        test={"numbers": {"both": {"accuracy": effects}}},
        random={},
        constants={"numbers": {"accuracy": constants}},
    )


def test_many_methods_are_told_by_their_verdicts(study):
    words = ("values", "attention", "scale", "shared", "undecided", "no gain")
    methods = [method(f"M{place}", 30.0 - place, word) for place, word in enumerate(words)]
    constants = ("stands", "most", "not", "undecided", "not", "no gain")
    for each, word in zip(methods, constants, strict=True):
        each.verdict["constant"]["accuracy"] = word
    first, carried, constant = answer_sentences(study, methods)
    assert "6 of 6 methods surely gain, most of all M0: +30.0 points (+25.0 to +35.0)" in first
    for said in (
        "ttention among input tokens carries more than half of the gain in accuracy with M1",
        "what is added to tokens carries more than half of the gain in accuracy with M0",
        "several effects share the gain in accuracy with M3",
        "undecided with M4",
        "there is no sure gain in accuracy with M5",
    ):
        assert said in carried
    assert constant == (
        "Two vectors per layer, judged by accuracy, stand for M0; stand for most of M1; do not stand for M2 and M4;"
        " whether they stand for M3 is undecided."
    )


def test_of_many_methods_those_that_gain_most_are_shown(study):
    methods = [method(f"M{place}", gain=10.0 + 7 * place % 11) for place in range(11)]
    rows = answer_rows(study, methods)
    gains = {each.label: each.gain["value"] for each in methods}
    most = sorted(gains, key=gains.get)[-(MOST_ROWS - 1) :]
    assert len(rows) == MOST_ROWS == 8 and [row[0] for row in rows[1:]] == [name for name in gains if name in most]
    assert "4 methods of smaller gain" in answer_note(study, methods)
    unknown = [dataclasses.replace(each, gain=None) for each in methods]
    assert "no tuned model was tested" in answer_sentences(study, unknown)[0]


def test_the_question_is_for_who_read_nothing(results, study):
    assert "prompts, a few vectors that are learned" in question(study)
    scalars = {**results.scalars, "models": [results.scalars["models"][place] for place in (0, -1)]}
    assert "prompts" not in question(StudyResults(type(results)(results.arrays, scalars)))
