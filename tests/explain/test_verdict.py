"""The verdict on outcomes whose answer is known: claims, controls, seeds together, and what could have been seen."""

import copy
import dataclasses
import functools

import numpy as np
import pytest

from clipbias.explain.effects import measure
from clipbias.explain.factorial import corners, effects_in_play
from clipbias.explain.factorial_section import cross_seeds, image_outcomes, summarize
from clipbias.explain.mixtures import Mixtures
from clipbias.explain.results import (
    ByOutcome,
    CausalTest,
    CausalTests,
    ClipFacts,
    ConstantTest,
    ConstantTests,
    DatasetFacts,
    Levels,
    Missing,
    ModelFacts,
    ParameterCount,
    Predictions,
    Replacements,
    SeedGroup,
    StudyResults,
)
from clipbias.explain.uncertainty import Estimate
from clipbias.explain.verdict import verdict, verdicts

IMAGES = 300
CLASSES = 4
ATTENTION = {"attention": 2.0, "scale": 0.0, "values": 0.1}
VALUES = {"attention": 0.05, "scale": 0.0, "values": 2.0}
BOTH = {"attention": 1.2, "scale": 0.0, "values": 1.2}
NOTHING = dict.fromkeys(ATTENTION, 0.0)


def model(key, prompts, method="ivlp"):
    return ModelFacts(
        key=key,
        label=key.upper(),
        name=key.upper() if key == "zero_shot" else "IVLP",
        method=method,
        options={},
        trained_on=None,
        parameters=ParameterCount(0, 0, 0, 0),
        vision_prompts=prompts,
        text_prompts=prompts,
        vision_depth=1,
        text_depth=1,
        accuracy=50.0,
        correct=IMAGES // 2,
        images=IMAGES,
        source="",
    )


def logits(strengths, labels, draw):
    """`[n, K, C]` under which the true class is ahead by a strength of each form, beside noise that all forms share."""
    values = draw.normal(size=(len(labels), 1, CLASSES)) + np.zeros((1, len(strengths), 1))
    values[np.arange(len(labels)), :, labels] += np.asarray(strengths)
    return values + 0.1 * draw.normal(size=values.shape)


def study(effects, **options):
    """A study of its own, of what is computed once."""
    return copy.deepcopy(made(tuple(effects.items()), **options))


@functools.cache
def made(effects, *, prompts=4, images=IMAGES, keys=("ivlp",)):
    """A study in which each effect moves the true class' logit so far."""
    draw = np.random.default_rng(0)
    effects = dict(effects)
    labels = draw.integers(0, CLASSES, images)
    names = effects_in_play(prompts > 0)
    mixtures = Mixtures(names, ("both",), corners(names))
    every = np.arange(images)
    tests = {}
    measured = {}
    for key in keys:
        moved = [sum(effects[n] for n, run in zip(names, c, strict=True) if run == "P") for c in mixtures.streams]
        measured[key] = {"both": measure(logits(moved, labels, draw), labels)}
        tests[key] = CausalTest(
            effects=names,
            towers=("both",),
            streams=mixtures.streams,
            outcomes=image_outcomes(every, measured[key].values()),
            summary=summarize(measured[key], mixtures),
            levels={},
            both_right=None,
            random=None,
        )
    seeds = ()
    if len(keys) > 1:
        together = cross_seeds([measured[key] for key in keys])
        seeds = (SeedGroup(keys, summarize(together, mixtures)),)
    return StudyResults(
        dataset=DatasetFacts("noise", "test", images, ("a",) * CLASSES, "{}"),
        clip=ClipFacts("tiny", "", 16, 4, 4, 16, 17, 2, 2, 2, 2),
        models=(model("zero_shot", 0, "zero_shot"), *(model(key, prompts) for key in keys)),
        sections=("predictions", "factorial", "verdict"),
        config={},
        seconds=0.0,
        predictions=Predictions(labels, dict.fromkeys(("zero_shot", *keys), labels)),
        factorial=CausalTests(tests, seeds),
    )


def of(results):
    """The verdict on the first tuned model."""
    return verdict(results, results.tuned[:1])


@pytest.mark.parametrize(
    ("options", "expected", "words"),
    [
        ({"effects": ATTENTION}, "attention", "mainly where CLIP looks"),
        ({"effects": VALUES}, "tokens", "mainly what is added to tokens"),
        ({"effects": BOTH}, "either", "each alone has more than half"),
        ({"effects": NOTHING}, "no gain", "There is no sure gain in accuracy"),
        ({"effects": VALUES, "images": 19}, None, "Undecided, because there are too few images, 19"),
        ({"effects": VALUES, "prompts": 0}, "tokens", "mainly what is added to tokens"),
    ],
)
def test_known_answers(options, expected, words):
    judged = of(study(**options))
    assert words in judged.sentences[0], judged.sentences
    assert judged.conclusion == judged.sentences[0]  # without levels
    if expected is not None:
        assert judged.through.accuracy == expected


def level(constant, *, sure=True):
    """Levels of which the mean gives a share."""
    number = Estimate(constant, constant - 0.1, constant + 0.1, Estimate(constant, constant - 0.1, constant + 0.1))
    everything = Estimate(1.0, 0.5 if sure else -0.5, 1.5)
    return Levels(everything, {"constant": number}, number, None, {})


def with_levels(results, towers):
    test = results.factorial.models["ivlp"]
    test = dataclasses.replace(test, summary=dataclasses.replace(test.summary, levels=towers))
    return dataclasses.replace(results, factorial=CausalTests({"ivlp": test}, ()))


def test_what_the_mean_has_is_said_behind_the_first_sentence():
    towers = {"vision": ByOutcome(level(0.3), level(0.8)), "text": ByOutcome(level(0.9), level(0.9, sure=False))}
    judged = of(with_levels(study(VALUES), towers))
    assert judged.mean == ByOutcome("less than half", "more than half")
    of_images, of_texts = judged.sentences[1:3]
    assert of_images.startswith("Of what it adds to image tokens") and of_texts.startswith("Of what it adds to text")
    assert judged.conclusion == " ".join(judged.sentences[:3])
    assert judged.sentences[3].startswith("Of the gain in calibrated log-likelihood")


def test_nothing_carries_what_a_temperature_gains():
    """A change of temperature alone moves no decision: raw log-likelihood calls it a gain, and nothing else does."""
    results = study(NOTHING)
    draw = np.random.default_rng(1)
    labels = draw.integers(0, CLASSES, IMAGES)
    streams = corners(effects_in_play(True))
    confident = 6 * (draw.normal(size=(IMAGES, 1, CLASSES)) + 0.5 * np.eye(CLASSES)[labels][:, None])
    scale = np.where([stream.endswith("P") for stream in streams], 0.2, 1.0)
    measured = {"both": measure(confident * scale[:, None], labels)}
    summary = summarize(measured, Mixtures(effects_in_play(True), ("both",), streams))
    results.factorial.models["ivlp"] = dataclasses.replace(results.factorial.models["ivlp"], summary=summary)
    judged = of(results)
    assert judged.through == ByOutcome("no gain", "no gain")
    assert summary.temperature_alone.share.value == pytest.approx(1.0, abs=0.06)  # 0.2 is not the best
    assert any(sentence.startswith("A temperature alone") for sentence in judged.sentences)


def test_seeds_have_one_verdict_together():
    results = study(VALUES, keys=("ivlp", "ivlp_seed2"))
    *single, together = verdicts(results)
    assert [judged.models for judged in single] == [("ivlp",), ("ivlp_seed2",)]
    assert together.models == ("ivlp", "ivlp_seed2") and together.label == "IVLP, 2 seeds"
    assert together.through.accuracy == "tokens"
    numbers = [results.factorial.models[key].summary.towers["both"].accuracy.gain for key in together.models]
    crossed = results.factorial.seeds[0].summary.towers["both"].accuracy.gain
    assert crossed.value == pytest.approx(np.mean([estimate.value for estimate in numbers]))
    assert any(s.startswith(f"With {IMAGES} images and 2 seeds") for s in together.sentences)


def test_what_could_have_been_seen_is_of_the_images_themselves():
    results = study(VALUES)
    correct = results.factorial.models["ivlp"].outcomes.correct[:, 0].astype(float)
    error = (100 * (correct[:, -1] - correct[:, 0])).std(ddof=1) / np.sqrt(IMAGES)
    (sentence,) = [s for s in of(results).sentences if s.startswith("With ")]
    assert f"a difference of {(1.959964 + 0.841621) * error:.1f} points" in sentence


def test_a_method_without_a_second_run_says_why():
    results = study(VALUES)
    results.factorial.models["ivlp"] = Missing("It changes no token.")
    judged = of(results)
    assert judged.conclusion == judged.missing == "It changes no token." and not judged.through
    assert of(dataclasses.replace(results, factorial=None)).conclusion == "The causal test was not run."


def test_that_bias_tuning_adds_a_constant_is_no_finding():
    results = with_levels(study(VALUES, prompts=0), {"vision": ByOutcome(level(0.9), level(0.9))})
    prompted = of(results)
    models = (results.models[0], dataclasses.replace(results.models[1], method="bias"))
    judged = of(dataclasses.replace(results, models=models))
    assert prompted.mean.accuracy == "more than half" and judged.mean is None
    assert judged.through == prompted.through and "the mean" not in " ".join(judged.sentences)


def test_what_a_head_of_its_own_changes_is_said_apart():
    results = study(VALUES)
    gain = Estimate(10.0, 8.0, 12.0)
    replaced = Replacements(gain, {"kind": gain}, {"kind": gain}, Estimate(2.5, 1.0, 4.0))
    outcomes = results.factorial.models["ivlp"].outcomes
    test = ConstantTest(("reference", "tuned"), outcomes, {}, 64, {}, ByOutcome(replaced, replaced))
    sentences = of(dataclasses.replace(results, constants=ConstantTests({"ivlp": test}, ()))).sentences
    assert "Its own head changes accuracy by +2.5 points (+1.0 to +4.0) besides." in sentences
    assert not any("own head" in sentence for sentence in of(results).sentences)
