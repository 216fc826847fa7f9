"""A report's first page: numbers against plain loops over a study's arrays, and sentences that the verdict allows."""

import dataclasses
import re

import numpy as np
import pytest

from clipbias.explain.answer import answer_sentences, conclude_study, question
from clipbias.explain.results import ByOutcome, CausalTests, MethodResult, Missing, Verdict
from clipbias.explain.uncertainty import Estimate
from clipbias.report.answer_figure import COLUMNS, MOST_ROWS, answer_figure, answer_note, answer_rows
from clipbias.report.methods import MethodResults, study_methods
from tests.report import recomputed
from tests.report.recomputed import SHARES, drawn, ends, number
from tests.report.synthetic import only_sections, synthetic_results

EFFECTS = ("attention", "scale", "values")
KEYS = {"IVLP, 2 seeds": ["ivlp", "ivlp_seed2"], "Bias tuning": ["bias"]}


@pytest.fixture(scope="module")
def results():
    return synthetic_results(pictures=1, twins=True)


def numbers_in(text):
    return [float(part) for part in re.findall(r"[+-]?\d+(?:\.\d+)?", text)]


def test_rows_are_what_the_arrays_say(results):
    zero_shot, *rows = (dict(zip(COLUMNS, row, strict=True)) for row in answer_rows(results, study_methods(results)))
    assert zero_shot["Model"] == "Zero-shot" and set(list(zero_shot.values())[2:]) == {"–"}
    models = {model.key: model for model in results.models}
    for row, (label, keys) in zip(rows, KEYS.items(), strict=True):
        assert row["Model"] == label
        shares = [models[key].correct / 50 for key in keys]
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


def test_the_figure_has_the_same_numbers(results):
    drawing = answer_figure(results, study_methods(results))
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
    assert legend == ["whole gain", *EFFECTS, "kept by the mean", "lost without it"]
    (axes,) = drawing.figure.axes
    assert axes.get_xlabel() == "points of accuracy"


def test_a_start_elsewhere_is_told(results):
    labels, zero = results.predictions.labels, results.predictions.zero_shot
    outcomes = [recomputed.mixture_outcomes(results, key, "accuracy", "both") for key in KEYS["IVLP, 2 seeds"]]
    start = np.mean([own["RRR"].mean() for own in outcomes])
    assert abs(start - 100 * (zero == labels).mean()) > 0.05
    assert f"over the text that training starts from; its accuracy: IVLP {start:.1f} %," in answer_note(
        results, study_methods(results)
    )


def test_a_model_that_cannot_be_taken_apart_has_its_gain(results):
    missing = {key: Missing("A head has no second run.") for key in ("ivlp", "ivlp_seed2", "bias")}
    study = only_sections(results, "verdict", sections=("predictions", "factorial", "verdict"))
    study = conclude_study(dataclasses.replace(study, factorial=CausalTests(missing, ())))
    methods = study_methods(study)
    _, row, _ = answer_rows(study, methods)
    labels, models = study.predictions.labels, study.predictions.models
    before = models["zero_shot"] == labels
    changes = [100.0 * ((models[key] == labels) - 1.0 * before) for key in KEYS["IVLP, 2 seeds"]]
    np.testing.assert_allclose(numbers_in(row[2]), ends(number(drawn(np.stack(changes)))), atol=0.0501)
    assert set(row[3:]) == {"–"} and answer_figure(study, methods) is None
    assert len(study.answer.sentences) == 1


def test_few_methods_have_their_conclusion(results):
    said = results.answer.sentences
    verdict, bias = results.verdict_on(("ivlp", "ivlp_seed2")), results.verdict_on(("bias",))
    assert said[1] == f"IVLP, 2 seeds: {verdict.conclusion}"
    assert said[2] == f"Bias tuning: {bias.sentences[0]}" and len(said) == 3
    assert re.match(r"Zero-shot CLIP gets 44.0 % of the images right; tuning changes that by \+\d+\.\d points", said[0])
    assert "over 50 images of the test split and over seeds" in results.answer.certainty


def facts(label="M", gain=20.0):
    return MethodResult(
        label=label,
        name=label,
        method="ivlp",
        models=(label,),
        prompts=True,
        learns_constant=False,
        accuracy=60.0,
        standard_error=2.0,
        gain=Estimate(gain, gain - 5, gain + 5),
        start=None,
    )


def method(label="M", gain=20.0):
    return MethodResults(facts(label, gain), verdict=None, summary=None, replaced=None, test=None, constants=None)


def verdict(label, carrier, constant):
    said = ByOutcome(carrier, carrier), ByOutcome(constant, constant)
    return Verdict(label, (label,), None, 50, *said, ("Said.",), "Said.")


def test_many_methods_are_told_by_their_verdicts(results):
    words = ("values", "attention", "scale", "shared", "undecided", "no gain")
    constants = ("stands", "most", "not", "undecided", "not", "no gain")
    methods = [facts(f"M{place}", 30.0 - place) for place in range(len(words))]
    verdicts = [verdict(f"M{place}", *both) for place, both in enumerate(zip(words, constants, strict=True))]
    first, carried, constant = answer_sentences(results.zero_shot, methods, verdicts)
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
        "Judged by accuracy, the mean of what its blocks add, as two vectors per layer, stands for M0; stands for most"
        " of M1; does not stand for M2 and M4, for which another constant may; may stand for M3 or not, which is"
        " undecided."
    )


def test_of_many_methods_those_that_gain_most_are_shown(results):
    methods = [method(f"M{place}", gain=10.0 + 7 * place % 11) for place in range(11)]
    rows = answer_rows(results, methods)
    gains = {each.facts.label: each.facts.gain.value for each in methods}
    most = sorted(gains, key=gains.get)[-(MOST_ROWS - 1) :]
    assert len(rows) == MOST_ROWS == 8 and [row[0] for row in rows[1:]] == [name for name in gains if name in most]
    assert "4 methods of smaller gain" in answer_note(results, methods)
    unknown = [dataclasses.replace(each.facts, gain=None) for each in methods]
    assert "no tuned model was tested" in answer_sentences(results.zero_shot, unknown, ())[0]


def test_the_question_is_for_who_read_nothing(results):
    assert "prompts, a few vectors that are learned" in results.answer.question
    assert "prompts" not in question(results.tuned[-1:])
