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
    over_seeds,
    sample,
    summarize,
)
from clipbias.analysis.model import NOTHING_INSIDE
from clipbias.analysis.results import (
    Ablations,
    ByMetric,
    CausalNumbers,
    ClipFacts,
    DatasetFacts,
    ModelFacts,
    ParameterCount,
    Predictions,
    StudyResults,
    VerdictLabels,
    What,
    Where,
)
from clipbias.analysis.verdict import FEWEST_IMAGES, judge, label, sentence
from clipbias.intervals import Estimate

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
        ablations = Ablations(all=added, kind=part, position=part, other=part, exchange=exchange)
    return CausalNumbers(
        reference=SURE, gain=gain, attention=attention, tokens=part, towers={}, image=ablations, text=None
    )


ENDS = (-0.2, 0.1, 0.249, 0.251, 0.4, 0.499, 0.501, 0.9, 1.4)
INTERVALS = [(low, high) for low, high in itertools.combinations(ENDS, 2)]


@pytest.mark.parametrize(("low", "high"), INTERVALS)
def test_where_is_decided_by_the_whole_interval(low, high):
    expected = Where.ATTENTION if low > 0.5 else Where.NOT_ATTENTION if high < 0.25 else Where.UNDECIDED
    assert label(numbers(number(low, high), number(0.5, 1), number(0.6, 0.9))).where is expected


@pytest.mark.parametrize("added", INTERVALS)
def test_what_is_decided_by_all_of_it_and_by_the_exchange(added):
    for exchange in INTERVALS:
        expected = What.UNDECIDED
        if exchange[1] < 0.25:
            expected = What.SAME
        if exchange[0] > 0.5:
            expected = What.DEPENDS
        if added[1] < 0.25:
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


def model(key, method="ivlp"):
    return ModelFacts(
        key=key,
        label=key.upper(),
        name=key.upper() if key == "zero_shot" else "IVLP",
        method=method,
        options={},
        training="",
        parameters=ParameterCount(0, 0, 0, 0),
        vision_prompts=4,
        text_prompts=4,
        vision_depth=1,
        changes_vision=True,
        accuracy=50.0,
        images=IMAGES,
        source="",
    )


# How far each way moves the true class's logit.
ATTENTION = {Way.ATTENTION: 2.0, Way.TOKENS: 0.1, Way.IMAGE_NOTHING: 2.0}
SAME = {Way.ATTENTION: 0.1, Way.TOKENS: 2.0, Way.IMAGE_NOTHING: 0.2, Way.IMAGE_OTHER: 2.1, Way.IMAGE_KIND: 1.0}
DEPENDS = {**SAME, Way.IMAGE_OTHER: -0.3}


def study(moves, *, images=IMAGES, keys=("ivlp",), why="", noise=1.0):
    """A study of models that move the true class's logit so far under each way; the tuned one by 2.1."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, CLASSES, images)
    strengths = np.array([2.1 * (way is Way.TUNED) + moves.get(way, 0.0) for way in WAYS])
    shared = draw.normal(size=(images, 1, CLASSES))
    tests, measured = {}, {}
    for key in keys:
        logits = shared + noise * 0.1 * draw.normal(size=(images, len(WAYS), CLASSES))
        logits[np.arange(images), :, labels] += strengths
        values = outcomes(logits, labels)
        measured[key] = sample(values)
        of_images = ImageScores(np.arange(images), values.accuracy > 0, values.log_likelihood)
        tests[key] = CausalTest(tuple(way.value for way in WAYS), of_images, why, {})
    ways = tests[keys[0]].ways
    by_keys = {key: summarize(each, ways) for key, each in measured.items()}
    by_keys[" ".join(keys)] = summarize(over_seeds(list(measured.values())), ways)
    return StudyResults(
        dataset=DatasetFacts("noise", "test", images, ("a",) * CLASSES, "{}"),
        clip=ClipFacts("tiny", "f", 16, 4, 16, 17, 2),
        models=(model("zero_shot", "zero_shot"), *map(model, keys)),
        sections={
            "predictions": Predictions(labels, dict.fromkeys(("zero_shot", *keys), labels)),
            "causal": CausalTests(tests, by_keys),
        },
        config={},
        seconds=0.0,
    )


@pytest.mark.parametrize(
    ("moves", "expected", "words"),
    [
        (ATTENTION, VerdictLabels(Where.ATTENTION, What.NOTHING), ["by changing where CLIP looks; what it adds"]),
        (
            SAME,
            VerdictLabels(Where.NOT_ATTENTION, What.SAME),
            ["not by changing where CLIP looks", "same for every image"],
        ),
        (
            DEPENDS,
            VerdictLabels(Where.NOT_ATTENTION, What.DEPENDS),
            ["depends on the image (of all of it, another image's"],
        ),
    ],
)
def test_a_study_has_labels_and_a_sentence_for_each_method(moves, expected, words):
    results = judge(study(moves))
    (method,) = results.methods
    assert method.labels == expected and method.images == IMAGES and method.models == ("ivlp",)
    assert method.sentence == results.sentence and method.sentence.startswith("IVLP gains ")
    gain = method.numbers.accuracy.gain
    assert f"gains {gain.value:.1f} points ({gain.low:+.1f} to {gain.high:+.1f}) on noise" in method.sentence
    for each in words:
        assert each in method.sentence
    share = method.numbers.log_likelihood.image.kind.share
    if expected.what is not What.NOTHING:
        assert f"the mean by kind {round(100 * share.value)} % (" in method.sentence


def test_seeds_have_one_sentence_together():
    results = judge(study(DEPENDS, keys=("ivlp", "ivlp_seed2")))
    (method,) = results.methods
    assert method.models == ("ivlp", "ivlp_seed2") and method.label == "IVLP, 2 seeds" and method.name == "IVLP"
    assert method.numbers == results.sections["causal"].of(("ivlp", "ivlp_seed2"))
    single = [results.sections["causal"].of((key,)).log_likelihood.gain.value for key in method.models]
    assert method.numbers.log_likelihood.gain.value == pytest.approx(np.mean(single))
    assert results.sentence.count("IVLP gains") == 1


@pytest.mark.parametrize(("images", "judged"), [(FEWEST_IMAGES - 1, False), (FEWEST_IMAGES, True)])
def test_few_images_are_refused(images, judged):
    (method,) = judge(study(ATTENTION, images=images)).methods
    assert (method.labels is not None) == judged
    if not judged:
        assert all(word in method.sentence for word in ("19 images", "noise", "IVLP", "20"))


def test_what_was_not_tested_or_is_outside_says_so():
    results = dataclasses.replace(study(SAME), sections={})
    (method,) = judge(results).methods
    assert method.labels is None and "was not tested" in method.sentence
    (method,) = judge(study(SAME, why=NOTHING_INSIDE)).methods
    assert method.labels == VerdictLabels(Where.OUTSIDE, What.NOTHING)
    assert method.sentence.endswith("on noise, outside CLIP's towers, in which nothing changes.")


def test_a_gain_in_one_outcome_alone_is_said_in_its_unit():
    log_likelihood = numbers(number(0, 0.1), number(0.8, 1), number(0.6, 0.9))
    accuracy = dataclasses.replace(log_likelihood, gain=Estimate(1.0, -0.5, 2.5))
    text = sentence("VPT", "d", label(log_likelihood), ByMetric(accuracy, log_likelihood), 100)
    expected = "VPT gains 0.300 nats (+0.200 to +0.400) of log-likelihood on d, with +1.0 points"
    assert text.startswith(expected)
    none = dataclasses.replace(log_likelihood, gain=UNSURE)
    text = sentence("VPT", "d", label(none), ByMetric(accuracy, none), 100)
    assert text.startswith("VPT has no sure gain on d: log-likelihood changes by +0.100 nats (-0.100 to")


def test_outcomes_of_images_are_not_what_decides():
    """Labels are those of log-likelihood, whatever accuracy says."""
    results = study(SAME)
    (method,) = judge(results).methods
    swapped = {
        key: ByMetric(accuracy=dataclasses.replace(each.accuracy, gain=UNSURE), log_likelihood=each.log_likelihood)
        for key, each in results.sections["causal"].numbers.items()
    }
    again = judge(
        dataclasses.replace(
            results, sections=results.sections | {"causal": CausalTests(results.sections["causal"].models, swapped)}
        )
    )
    assert again.methods[0].labels == method.labels
