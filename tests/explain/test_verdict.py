"""The verdict on outcomes whose answer is known: claims, controls, seeds together, and what could have been seen."""

import copy
import dataclasses
import functools

import numpy as np
import pytest

from clipbias.explain.effects import measure, summarize_replacements
from clipbias.explain.factorial import corners, effects_in_play
from clipbias.explain.factorial_section import cross_seeds, image_outcomes, summarize
from clipbias.explain.mixtures import Mixtures
from clipbias.explain.results import (
    CausalTest,
    CausalTests,
    ClipFacts,
    ConstantTest,
    ConstantTests,
    DatasetFacts,
    Missing,
    ModelFacts,
    ParameterCount,
    Predictions,
    SeedGroup,
    StudyResults,
)
from clipbias.explain.verdict import verdict, verdicts

IMAGES = 300
CLASSES = 4
FORMS = ("reference", "kept:kind", "lost:kind", "tuned")
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
def made(effects, *, prompts=4, images=IMAGES, keys=("ivlp",), keep=None, lost=None):
    """A study in which each effect moves the true class' logit so far; constants keep and lose shares of all of it."""
    draw = np.random.default_rng(0)
    effects = dict(effects)
    labels = draw.integers(0, CLASSES, images)
    names = effects_in_play(prompts > 0)
    mixtures = Mixtures(names, ("both",), corners(names))
    every = np.arange(images)
    total = sum(effects[name] for name in names)
    tests = {}
    constants = {}
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
        if keep is not None:
            replaced = measure(logits([0, keep * total, (1 - lost) * total, total], labels, draw), labels)
            outcomes = replaced.outcomes(every)
            constants[key] = ConstantTest(FORMS, outcomes, {}, 64, {}, summarize_replacements(replaced, FORMS))
    seeds = ()
    if len(keys) > 1:
        together = cross_seeds([measured[key] for key in keys])
        seeds = (SeedGroup(keys, summarize(together, mixtures)),)
    return StudyResults(
        dataset=DatasetFacts("noise", "test", images, ("a",) * CLASSES, "{}"),
        clip=ClipFacts("tiny", "", 16, 4, 4, 16, 17, 2, 2, 2, 2),
        models=(model("zero_shot", 0, "zero_shot"), *(model(key, prompts) for key in keys)),
        sections=("predictions", "factorial", "constants", "verdict"),
        config={},
        seconds=0.0,
        predictions=Predictions(labels, dict.fromkeys(("zero_shot", *keys), labels)),
        factorial=CausalTests(tests, seeds),
        constants=ConstantTests(constants, ()),
    )


def of(results):
    """The verdict on the first tuned model."""
    return verdict(results, results.tuned[:1])


@pytest.mark.parametrize(
    ("options", "carried", "constant", "words"),
    [
        ({"effects": ATTENTION}, "attention", None, "This speaks for a change of where CLIP looks"),
        ({"effects": VALUES, "keep": 1.0, "lost": 1.0}, "values", "most", "This speaks for a bias"),
        ({"effects": VALUES, "keep": 0.1, "lost": 1.0}, "values", "not", "undecided: another bias may"),
        ({"effects": VALUES, "keep": 1.0, "lost": 0.1}, "values", "not", "undecided: another bias may"),
        ({"effects": VALUES}, "values", None, "This speaks against a change of where CLIP looks."),
        ({"effects": BOTH}, "shared", None, "Several effects share the gain in accuracy"),
        ({"effects": NOTHING}, "no gain", None, "There is no sure gain in accuracy"),
        ({"effects": VALUES, "images": 19}, None, None, "Undecided, because there are too few images, 19"),
        ({"effects": VALUES, "prompts": 0, "keep": 0.1, "lost": 0.1}, "values", "not", "what the method adds"),
    ],
)
def test_known_answers(options, carried, constant, words):
    judged = of(study(**options))
    text = " ".join(judged.sentences)
    assert words.lower() in text.lower(), text
    if carried is not None:
        assert judged.carrier.accuracy == carried
    if constant is not None:
        assert judged.constant.accuracy in ({"stands", "most"} if constant == "most" else {constant})
    # The conclusion is the headline's.
    assert judged.conclusion.startswith(judged.sentences[0])


def test_no_hypothesis_is_favoured_without_a_sure_gain_in_accuracy():
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
    assert judged.carrier.accuracy == judged.carrier.calibrated == "no gain"
    assert "speaks" not in " ".join(judged.sentences)
    assert summary.temperature_alone.share.value == pytest.approx(1.0, abs=0.06)  # 0.2 is not the best
    assert any(sentence.startswith("A temperature alone") for sentence in judged.sentences)


def test_seeds_have_one_verdict_together():
    results = study(VALUES, keys=("ivlp", "ivlp_seed2"))
    *single, together = verdicts(results)
    assert [judged.models for judged in single] == [("ivlp",), ("ivlp_seed2",)]
    assert together.models == ("ivlp", "ivlp_seed2") and together.label == "IVLP, 2 seeds"
    assert together.carrier.accuracy == "values"
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
    assert judged.conclusion == judged.missing == "It changes no token." and not judged.carrier
    assert of(dataclasses.replace(results, factorial=None)).conclusion == "The causal test was not run."


def test_that_a_constant_stands_for_bias_tuning_is_no_finding():
    results = study(VALUES, prompts=0, keep=1.0, lost=1.0)
    prompted = of(results)
    models = (results.models[0], dataclasses.replace(results.models[1], method="bias"))
    judged = of(dataclasses.replace(results, models=models))
    assert prompted.constant.accuracy in ("stands", "most") and judged.constant is None
    assert judged.carrier == prompted.carrier
    text = " ".join(judged.sentences)
    assert "speaks" not in text and "stands for" not in text
