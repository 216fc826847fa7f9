"""The verdict on outcomes whose answer is known: claims, controls, seeds together, and what could have been seen."""

import copy
import functools

import numpy as np
import pytest

from clipbias.explain.effects import measure, over_seeds, summarize_replacements
from clipbias.explain.factorial import corners, effects_in_play
from clipbias.explain.factorial_section import _numbers, by_image
from clipbias.explain.results import Findings
from clipbias.explain.verdict import verdict, verdicts

IMAGES, CLASSES = 300, 4
FORMS = ("reference", "kept:kind", "lost:kind", "tuned")
ATTENTION = {"attention": 2.0, "scale": 0.0, "values": 0.1}
VALUES = {"attention": 0.05, "scale": 0.0, "values": 2.0}
BOTH = {"attention": 1.2, "scale": 0.0, "values": 1.2}
NOTHING = dict.fromkeys(ATTENTION, 0.0)


def model(key, prompts, method="ivlp"):
    facts = {"key": key, "label": key.upper(), "name": key.upper(), "method": method, "options": {}}
    facts |= {"trained_on": "", "images": IMAGES, "accuracy": 50.0}
    return facts | {"vision_prompts": prompts, "text_prompts": prompts}


def logits(strengths, labels, draw):
    """`[n, K, C]` under which the true class is ahead by a strength of each form, beside noise that all forms share."""
    found = draw.normal(size=(len(labels), 1, CLASSES)) + np.zeros((1, len(strengths), 1))
    found[np.arange(len(labels)), :, labels] += np.asarray(strengths)
    return found + 0.1 * draw.normal(size=found.shape)


def study(effects, **options):
    """A study of its own, of what is computed once."""
    return copy.deepcopy(made(tuple(effects.items()), **options))


@functools.cache
def made(effects, *, prompts=4, images=IMAGES, keys=("ivlp",), kept=None, lost=None):
    """A study in which each effect moves the true class' logit so far; constants keep and lose shares of all of it."""
    draw, effects = np.random.default_rng(0), dict(effects)
    labels, names = draw.integers(0, CLASSES, images), effects_in_play(prompts > 0)
    facts = {"effects": names, "towers": ("both",), "streams": corners(names), "images": images}
    total = sum(effects[name] for name in names)
    arrays, scalars = {"predictions/labels": labels}, {"factorial": {}, "constants": {}}
    measured, constants = {}, {}
    for key in keys:
        moved = [sum(effects[n] for n, run in zip(names, c, strict=True) if run == "P") for c in facts["streams"]]
        measured[key] = {"both": measure(logits(moved, labels, draw), labels)}
        arrays |= {f"factorial/{key}/{name}": value for name, value in by_image(measured[key].values()).items()}
        scalars["factorial"][key] = facts | _numbers(measured[key], facts) | {"both_right": None}
        if kept is not None:
            strengths = [0, kept * total, (1 - lost) * total, total]
            constants[key] = measure(logits(strengths, labels, draw), labels)
            numbers = summarize_replacements(constants[key], FORMS)
            scalars["constants"][key] = {"forms": FORMS, "images": images, "numbers": numbers}
    if len(keys) > 1:
        together = {"both": over_seeds([measured[key]["both"] for key in keys])}
        scalars["factorial"]["seeds"] = [{"models": list(keys)} | facts | _numbers(together, facts)]
    scalars["models"] = [model("zero_shot", 0, "zero_shot"), *(model(key, prompts) for key in keys)]
    return Findings(arrays, scalars)


@pytest.mark.parametrize(
    "given,carried,constant,words",
    [
        ({"effects": ATTENTION}, "attention", None, "This favours (a)"),
        ({"effects": VALUES, "kept": 1.0, "lost": 1.0}, "values", "most", "This favours (b)"),
        ({"effects": VALUES, "kept": 0.1, "lost": 1.0}, "values", "not", "This favours neither (a)"),
        ({"effects": VALUES, "kept": 1.0, "lost": 0.1}, "values", "not", "This favours neither (a)"),
        ({"effects": VALUES}, "values", None, "This is against (a), attention."),
        ({"effects": BOTH}, "shared", None, "Several effects share the gain in accuracy"),
        ({"effects": NOTHING}, "no gain", None, "There is no sure gain in accuracy"),
        ({"effects": VALUES, "images": 19}, None, None, "Undecided, because 19 images are too few"),
        ({"effects": VALUES, "prompts": 0, "kept": 0.1, "lost": 0.1}, "values", "not", "what the method adds"),
    ],
)
def test_known_answers(given, carried, constant, words):
    found = verdict(study(**given), ["ivlp"])
    said = " ".join(found["sentences"])
    assert words.lower() in said.lower(), said
    if carried is not None:
        assert found["carrier"]["accuracy"] == carried
    if constant is not None:
        assert found["constant"]["accuracy"] in ({"stands", "most"} if constant == "most" else {constant})
    # The conclusion is the headline's.
    assert found["conclusion"].startswith(found["sentences"][0])


def test_no_hypothesis_is_favoured_without_a_sure_gain_in_accuracy():
    """A change of temperature alone moves no decision: raw log-likelihood calls it a gain, and nothing else does."""
    results, key = study(NOTHING), "ivlp"
    draw = np.random.default_rng(1)
    labels, streams = draw.integers(0, CLASSES, IMAGES), corners(effects_in_play(True))
    confident = 6 * (draw.normal(size=(IMAGES, 1, CLASSES)) + 0.5 * np.eye(CLASSES)[labels][:, None])
    scale = np.where([stream.endswith("P") for stream in streams], 0.2, 1.0)
    own = {"both": measure(confident * scale[:, None], labels)}
    facts = {"effects": effects_in_play(True), "towers": ("both",), "streams": streams}
    results.scalars["factorial"][key] |= _numbers(own, facts)
    found = verdict(results, [key])
    assert found["carrier"] == {"accuracy": "no gain", "calibrated": "no gain"}
    assert "favours" not in " ".join(found["sentences"])
    alone = results.scalars["factorial"][key]["temperature_alone"]
    assert alone["share"] == pytest.approx(1.0, abs=0.06)  # 0.2 is not the best
    assert any(sentence.startswith("A temperature alone") for sentence in found["sentences"])


def test_seeds_have_one_verdict_together():
    results = study(VALUES, keys=("ivlp", "ivlp_seed2"))
    found = verdicts(results)
    (together,) = found["seeds"]
    assert together["models"] == ["ivlp", "ivlp_seed2"] and together["label"] == "IVLP, 2 seeds"
    assert together["carrier"]["accuracy"] == "values"
    numbers = [results.scalars["factorial"][key]["numbers"]["both"]["accuracy"]["gain"] for key in together["models"]]
    crossed = results.scalars["factorial"]["seeds"][0]["numbers"]["both"]["accuracy"]["gain"]
    assert crossed["value"] == pytest.approx(np.mean([one["value"] for one in numbers]))
    assert any(s.startswith(f"With {IMAGES} images and 2 seeds") for s in together["sentences"])


def test_what_could_have_been_seen_is_of_the_images_themselves():
    results = study(VALUES)
    correct = results.arrays["factorial/ivlp/correct"][:, 0].astype(float)
    error = (100 * (correct[:, -1] - correct[:, 0])).std(ddof=1) / np.sqrt(IMAGES)
    (sentence,) = [s for s in verdict(results, ["ivlp"])["sentences"] if s.startswith("With ")]
    assert f"a difference of {(1.959964 + 0.841621) * error:.1f} points" in sentence


def test_a_method_without_a_second_run_says_why():
    results = study(VALUES)
    results.scalars["factorial"] = {"ivlp": {"missing": "It changes no token."}}
    found = verdict(results, ["ivlp"])
    assert found["conclusion"] == found["missing"] == "It changes no token." and not found["carrier"]
    results.scalars.pop("factorial")
    assert verdict(results, ["ivlp"])["conclusion"] == "The causal test was not run."


def test_that_a_constant_stands_for_bias_tuning_is_no_finding():
    results = study(VALUES, prompts=0, kept=1.0, lost=1.0)
    prompted = verdict(results, ["ivlp"])
    results.scalars["models"][1]["method"] = "bias"
    found = verdict(results, ["ivlp"])
    assert prompted["constant"]["accuracy"] in ("stands", "most") and found["constant"] == {}
    assert found["carrier"] == prompted["carrier"]
    said = " ".join(found["sentences"])
    assert "favours" not in said and "stands for" not in said and "against (a)" not in said
