"""The rule on numbers at and around its thresholds, against the rule written out, and its sentences."""

import dataclasses
import itertools

import numpy as np
import pytest

from clipbias.analysis.causal_section import (
    CausalTest,
    CausalTests,
    ImageScores,
    Way,
    outcomes,
    summarize,
)
from clipbias.analysis.model import NOTHING_INSIDE
from clipbias.analysis.results import (
    ByMetric,
    CausalNumbers,
    ClipFacts,
    DatasetFacts,
    ImageAblations,
    MethodResult,
    Predictions,
    StudyResults,
    VerdictLabels,
    What,
    Where,
)
from clipbias.analysis.verdict import FEWEST_IMAGES, judge, label
from clipbias.analysis.verdict_sentences import CLASS, sentence
from clipbias.intervals import Estimate
from tests.report.synthetic import model_facts

IMAGES = 300
CLASSES = 4
WAYS = tuple(Way)
SURE = Estimate(0.3, 0.2, 0.4)
UNSURE = Estimate(0.1, -0.1, 0.3)


def number(low, high, share=True):
    """A part whose share has this interval."""
    of_gain = Estimate((low + high) / 2, low, high)
    return dataclasses.replace(SURE, share=of_gain if share else None)


def numbers(attention=None, added=None, exchange=None, gain=SURE):
    part = number(0.4, 0.6)
    ablations = None
    if added is not None:
        ablations = ImageAblations(all=added, other=part, exchange=exchange, means={}, explained={CLASS: part})
    return CausalNumbers(
        reference=SURE, gain=gain, attention=attention, tokens=part, towers={}, image=ablations, text=None
    )


ENDS = (-0.9, -0.501, -0.499, -0.251, -0.249, 0.1, 0.249, 0.251, 0.499, 0.501, 1.4)
INTERVALS = [(low, high) for low, high in itertools.combinations(ENDS, 2)]


@pytest.mark.parametrize(("low", "high"), INTERVALS)
def test_where_is_decided_by_the_whole_interval(low, high):
    expected = Where.ATTENTION if low > 0.5 else Where.NOT_ATTENTION if high < 0.25 else Where.UNDECIDED
    assert label(numbers(number(low, high), number(0.5, 1), number(0.6, 0.9))).where is expected


@pytest.mark.parametrize("added", INTERVALS)
def test_what_is_decided_by_all_of_it_and_by_the_exchange(added):
    for exchange in INTERVALS:
        expected = What.UNDECIDED
        if exchange[0] > -0.25 and exchange[1] < 0.25:
            expected = What.SAME
        if exchange[0] > 0.5 or exchange[1] < -0.5:
            expected = What.DEPENDS
        if added[0] > -0.25 and added[1] < 0.25:
            expected = What.NOTHING
        labels = label(numbers(number(0, 0.1), number(*added), number(*exchange)))
        assert labels == VerdictLabels(Where.NOT_ATTENTION, expected), (added, exchange)


def test_without_a_sure_gain_there_is_no_other_label():
    for gain in (UNSURE, Estimate(-0.3, -0.4, -0.2)):
        labels = label(numbers(number(0.8, 0.9), number(0.5, 1), number(0.6, 0.9), gain=gain))
        assert labels == VerdictLabels(Where.NO_GAIN, None)


def test_without_shares_it_is_undecided():
    nothing = number(0, 0, share=False)
    assert label(numbers(nothing, nothing, nothing)) == VerdictLabels(Where.UNDECIDED, What.UNDECIDED)
    assert label(numbers(number(0.8, 0.9))) == VerdictLabels(Where.ATTENTION, What.UNDECIDED)


def test_a_head_is_outside_and_texts_add_nothing_to_images():
    assert label(numbers(), outside=True, images_changed=False) == VerdictLabels(Where.OUTSIDE, What.NOTHING)
    assert label(numbers(number(0, 0.1)), images_changed=False) == VerdictLabels(Where.NOT_ATTENTION, What.NOTHING)


# How far each way moves the true class's logit.
ATTENTION = {Way.ATTENTION: 2.0, Way.TOKENS: 0.1, Way.IMAGE_NOTHING: 2.0}
SAME = {Way.ATTENTION: 0.1, Way.TOKENS: 2.0, Way.IMAGE_NOTHING: 0.2, Way.IMAGE_OTHER: 2.1, Way.IMAGE_CLASS: 1.0}
DEPENDS = {**SAME, Way.IMAGE_OTHER: -0.3}


def study(moves, *, images=IMAGES, keys=("ivlp",), why=""):
    """A study of models that move the true class's logit so far under each way; the tuned one by 2.1."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, CLASSES, images)
    strengths = np.array([2.1 * (way is Way.TUNED) + moves.get(way, 0.0) for way in WAYS])
    shared = draw.normal(size=(images, 1, CLASSES))
    tests = {}
    for key in keys:
        logits = shared + 0.1 * draw.normal(size=(images, len(WAYS), CLASSES))
        logits[np.arange(images), :, labels] += strengths
        values = outcomes(logits, labels)
        right = shared[:, 0].argmax(-1) == labels
        of_images = ImageScores(np.arange(images), values.accuracy > 0, values.log_likelihood, right)
        tests[key] = CausalTest(tuple(way.value for way in WAYS), of_images, why, {})
    models = [model_facts(key, key.upper(), "ivlp", name="IVLP") for key in keys]
    by_keys = {key: summarize([each]) for key, each in tests.items()}
    by_keys[" ".join(keys)] = summarize(list(tests.values()))
    return StudyResults(
        dataset=DatasetFacts("noise", "test", images, ("a",) * CLASSES, "{}"),
        clip=ClipFacts("tiny", "f", 16, 4, 16, 17, 2),
        models=(model_facts("zero_shot", "Zero-shot", "zero_shot"), *models),
        sections={
            "predictions": Predictions(labels, dict.fromkeys(("zero_shot", *keys), labels)),
            "causal": CausalTests(tests, by_keys),
        },
        config={},
        seconds=0.0,
    )


@pytest.mark.parametrize(
    ("moves", "where", "what", "words"),
    [
        (ATTENTION, Where.ATTENTION, What.NOTHING, "changes where CLIP looks, and the gain comes from there"),
        (SAME, Where.NOT_ATTENTION, What.SAME, "What it adds to image tokens has the same effect for every image."),
        (DEPENDS, Where.NOT_ATTENTION, What.DEPENDS, "class that CLIP alone predicts explains {} % of this dependence"),
    ],
)
def test_a_study_has_labels_and_a_sentence_for_each_method(moves, where, what, words):
    results = judge(study(moves))
    (method,) = results.methods
    assert method.labels == VerdictLabels(where, what) and (method.images, method.models) == (IMAGES, ("ivlp",))
    nats = results.sections["causal"].models["ivlp"].outcomes.log_likelihood.mean(0)
    mean = dict(zip(WAYS, nats, strict=True))
    lost = mean[Way.TUNED] - mean[Way.IMAGE_OTHER]
    explained = round(100 * (mean[Way.IMAGE_CLASS] - mean[Way.IMAGE_OTHER]) / lost)
    gain = method.numbers.accuracy.gain
    assert method.sentence.startswith(f"IVLP gains {gain.value:.1f} points on noise. ")
    assert words.format(explained) in method.sentence and method.sentence == results.sentence


def said(accuracy, log_likelihood):
    """The verdict on a method with these numbers."""
    facts = {"label": "VPT", "name": "VPT", "method": "vpt", "models": ("vpt",), "accuracy": 50.0, "images": 100}
    both, labels = ByMetric(accuracy, log_likelihood), label(log_likelihood)
    method = MethodResult(**facts, numbers=both, labels=labels, sentence="")
    return sentence(method, "d", fewest_images=FEWEST_IMAGES)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"exchange": (-0.4, -0.3)}, "Another image's addition would do better than the image's own."),
        ({"attention": (-0.9, -0.2)}, "Attention alone, with all else frozen, does harm."),
    ],
)
def test_a_sure_effect_of_the_wrong_sign_is_said(parts, words):
    shares = {"attention": (0, 0.1), "added": (0.8, 1), "exchange": (0.6, 0.9)} | parts
    measured = numbers(*(dataclasses.replace(number(*ends), low=ends[0], high=ends[1]) for ends in shares.values()))
    assert words in said(measured, measured)
    plain = numbers(number(0, 0.1), number(0.8, 1), number(0.6, 0.9))
    assert words not in said(plain, plain)


def test_seeds_have_one_sentence_together():
    results = judge(study(DEPENDS, keys=("ivlp", "ivlp_seed2")))
    (method,) = results.methods
    assert (method.models, method.label, method.name) == (("ivlp", "ivlp_seed2"), "IVLP, 2 seeds", "IVLP")
    assert method.numbers == results.sections["causal"].of(method.models)
    assert results.sentence.count("IVLP gains") == 1


@pytest.mark.parametrize(("images", "judged"), [(FEWEST_IMAGES - 1, False), (FEWEST_IMAGES, True)])
def test_few_images_are_refused(images, judged):
    (method,) = judge(study(ATTENTION, images=images)).methods
    assert (method.labels is not None) == judged
    assert judged or "19 images" in method.sentence


def test_what_was_not_tested_or_is_outside_says_so():
    results = dataclasses.replace(study(SAME), sections={})
    (method,) = judge(results).methods
    assert method.labels is None and "was not tested" in method.sentence
    (method,) = judge(study(SAME, why=NOTHING_INSIDE)).methods
    assert method.labels == VerdictLabels(Where.OUTSIDE, What.NOTHING)
    assert method.sentence.endswith("on noise. It changes nothing inside CLIP's towers.")


def test_a_gain_in_one_outcome_alone_is_said_in_its_unit():
    log_likelihood = numbers(number(0, 0.1), number(0.8, 1), number(0.6, 0.9))
    accuracy = dataclasses.replace(log_likelihood, gain=Estimate(1.0, -0.5, 2.5))
    text = said(accuracy, log_likelihood)
    assert text == "VPT has a sure gain in log-likelihood on d (+0.300 nats), but none in accuracy (+1.0 points)."
    none = dataclasses.replace(log_likelihood, gain=UNSURE)
    text = said(accuracy, none)
    assert text == "VPT has no sure gain on d (+1.0 points of accuracy, +0.100 nats of log-likelihood)."
    sure = dataclasses.replace(log_likelihood, gain=Estimate(33.3, 20.0, 45.0))
    text = said(sure, none)
    assert text.startswith("VPT gains 33.3 points on d, but its log-likelihood has no sure gain (+0.100 nats)")


def test_the_labels_are_those_of_log_likelihood_whatever_accuracy_says():
    results = study(SAME)
    (method,) = judge(results).methods
    causal = results.sections["causal"]
    for key, each in causal.numbers.items():
        unsure = dataclasses.replace(each.accuracy, gain=UNSURE)
        causal.numbers[key] = dataclasses.replace(each, accuracy=unsure)
    assert judge(results).methods[0].labels == method.labels
