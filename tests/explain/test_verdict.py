"""The verdict's numbers against plain computations, and its words on outcomes whose answer is known."""

import itertools

import numpy as np
import pytest

from clipbias.explain.factorial import CONSTANTS, corners, effects_in_play
from clipbias.explain.results import Findings
from clipbias.explain.verdict import verdict, verdicts

IMAGES = 200
FORMS = ("reference", "vector", "kind", "token", "tuned")


def model(key, method="ivlp", prompts=4, **more):
    facts = {"key": key, "label": key.upper(), "method": method, "options": {}, "images": IMAGES, "accuracy": 50.0}
    return facts | {"vision_prompts": prompts, "text_prompts": prompts} | more


def study(effect, *, prompts=4, constant=1.0, noise=0.3, images=IMAGES, keys=("ivlp",), kept=None, seed=0):
    """A study whose log-likelihood gains `effect[name]` from each effect, `constant` of the values if they are one."""
    draw, arrays = np.random.default_rng(seed), {}
    effects = effects_in_play(prompts > 0)
    streams = (*corners(effects), *(CONSTANTS if prompts else ()))
    factorial = {}
    for place, key in enumerate(keys):
        gains = effect[place] if isinstance(effect, list) else effect
        own = draw.normal(-1, 1, (images, 1, 1)) + noise * draw.normal(size=(images, 3, len(streams)))
        for k, name in enumerate(streams):
            letters, _, form = name.partition(":")
            on = dict(zip(effects, letters, strict=False))
            own[:, :, k] += sum(gains[e] for e in effects if on.get(e) == "P")
            own[:, :, k] += constant * gains["values"] if form else 0
        arrays |= {
            f"factorial/{key}/images": np.arange(images),
            f"factorial/{key}/log_likelihood": own.astype(np.float32),
            f"factorial/{key}/correct": (own > -0.7).astype(np.uint8),
            f"predictions/{key}": (own[:, 0, len(corners(effects)) - 1] > -0.7).astype(int),
        }
        factorial[key] = {"effects": effects, "towers": ("both", "vision", "text"), "streams": streams}
    arrays |= {"predictions/labels": np.ones(images, int)}
    arrays["predictions/zero_shot"] = (arrays[f"factorial/{keys[0]}/correct"][:, 0, 0] > 0).astype(int)
    scalars = {"models": [model("zero_shot", "zero_shot", 0), *(model(key, prompts=prompts) for key in keys)]}
    scalars["factorial"] = factorial
    if kept:
        outcome = draw.normal(size=(images, 1)) + np.asarray([kept[form] for form in FORMS])
        arrays |= {"amounts/ivlp/log_likelihood": outcome, "amounts/ivlp/correct": outcome > 0.5}
        scalars["amounts"] = {"ivlp": {"forms": list(FORMS)}}
    return Findings(arrays, scalars)


ATTENTION = {"attention": 1.0, "scale": 0.0, "values": 0.1}
SCALE = {"attention": 0.0, "scale": 1.0, "values": 0.1}
VALUES = {"attention": 0.05, "scale": -0.1, "values": 1.0}
BOTH = {"attention": 0.45, "scale": 0.0, "values": 0.45}
NOTHING = {"attention": 0.0, "scale": 0.0, "values": 0.0}


@pytest.mark.parametrize(
    "given,start",
    [
        ({"effect": ATTENTION}, "This favours (a)"),
        ({"effect": SCALE}, "This favours neither (a) nor (b): the attention that prompts take away"),
        ({"effect": VALUES}, "This favours (b)"),
        ({"effect": VALUES, "constant": 0.1}, "This favours neither (a) nor (b): what prompts add"),
        ({"effect": VALUES, "constant": 0.5}, "This is against (a)"),
        ({"effect": BOTH}, "This favours (c)"),
        ({"effect": NOTHING}, "Undecided, because there is no sure gain"),
        ({"effect": VALUES, "images": 19}, "Undecided, because 19 images are too few"),
        ({"effect": {"attention": 0.5, "scale": 0.0, "values": 0.5}, "noise": 6.0}, "Undecided"),
        ({"effect": VALUES, "prompts": 0}, "This favours (b), what is added"),
        ({"effect": ATTENTION, "prompts": 0}, "This favours (a)"),
    ],
)
def test_known_answers(given, start):
    found = verdict(study(**given), "ivlp")
    assert found["conclusion"].startswith(start), found["conclusion"]


@pytest.mark.parametrize(
    "effect,reason",
    [
        ({"attention": 0.45, "scale": 0.45, "values": 0.1}, "no effect's interval lies above a half"),
        ({"attention": 1.0, "scale": 1.0, "values": -0.9}, "more than half each, which the other effect takes back"),
    ],
)
def test_undecided_says_what_the_intervals_show(effect, reason):
    found = verdict(study(effect), "ivlp")
    assert found["conclusion"].startswith("Undecided, because relative attention"), found["conclusion"]
    assert found["conclusion"].endswith(f"{reason}.")


def test_outcomes_that_contradict_each_other_decide_nothing():
    results = study(VALUES, noise=0.05)
    correct = results.arrays["factorial/ivlp/correct"]
    constant = [8 + CONSTANTS.index("RR:token")]
    correct[:, :, constant] = correct[:, :, [0]]  # by accuracy the constant keeps nothing
    assert "the two outcomes contradict each other" in verdict(results, "ivlp")["conclusion"]


def test_frozen_values_decide():
    """Values that only work through attention, full 80, frozen 45, none 44, are not read as values."""
    through_attention = study({"attention": 0.0, "scale": 0.0, "values": 0.0}, noise=0.01)
    array = through_attention.arrays["factorial/ivlp/log_likelihood"]
    array[:, :, 4:8] += 1.0  # whenever attention is the tuned run's
    array[:, :, list(CONSTANTS).index("PP:token") + 8] += 1.0
    assert verdict(through_attention, "ivlp")["conclusion"].startswith("This favours (a)")


def test_numbers_are_means_over_images_and_over_orders():
    results = study(VALUES, constant=0.6)
    found = verdict(results, "ivlp")
    names = list(itertools.product("RP", repeat=3))
    for outcome, array, scale in (("log_likelihood", "log_likelihood", 1), ("accuracy", "correct", 100)):
        values = np.asarray(results.arrays[f"factorial/ivlp/{array}"], np.float64) * scale
        for place, tower in enumerate(("both", "vision", "text")):
            mean = dict(zip(names, values[:, place].mean(0), strict=False))
            numbers = found["effects"][outcome][tower]
            gain = mean["P", "P", "P"] - mean["R", "R", "R"]
            assert numbers["gain"]["value"] == pytest.approx(gain)
            assert numbers["reference"]["value"] == pytest.approx(mean["R", "R", "R"])
            for position, effect in enumerate(("attention", "scale", "values")):
                total = 0.0
                for order in itertools.permutations(range(3)):
                    before = ["R"] * 3
                    for earlier in order[: order.index(position)]:
                        before[earlier] = "P"
                    after = [*before[:position], "P", *before[position + 1 :]]
                    total += (mean[tuple(after)] - mean[tuple(before)]) / 6
                assert numbers[effect]["value"] == pytest.approx(total)
                assert numbers[effect]["low"] < total < numbers[effect]["high"]
                if numbers[effect]["share"] is not None:
                    assert numbers[effect]["share"] == pytest.approx(total / gain)
            alone = found["corners"][outcome][tower]["RR:token"]
            assert alone["value"] == pytest.approx(values[:, place, 8].mean() - values[:, place, 0].mean())


def test_the_control_counts_images_that_both_get_right():
    results = study(VALUES)
    found = verdict(results, "ivlp")
    right = (results.arrays["predictions/zero_shot"] == 1) & (results.arrays["predictions/ivlp"] == 1)
    own = results.arrays["factorial/ivlp/log_likelihood"][right, 0]
    assert found["both_right_images"] == right.sum() > 20
    gain = found["both_right"]["log_likelihood"]["both"]["gain"]["value"]
    assert gain == pytest.approx((own[:, 7] - own[:, 0]).mean(), rel=1e-5)


def test_constants_are_told_by_what_they_keep():
    results = study(VALUES, kept={"reference": 0.0, "vector": 0.4, "kind": 0.95, "token": 1.0, "tuned": 1.0})
    found = verdict(results, "ivlp")
    array = results.arrays["amounts/ivlp/log_likelihood"]
    for form in ("vector", "kind", "token"):
        share = (array[:, FORMS.index(form)] - array[:, 0]).mean() / (array[:, 4] - array[:, 0]).mean()
        assert found["kept"]["log_likelihood"][form]["share"] == pytest.approx(share)
    (sentence,) = [s for s in found["sentences"] if s.startswith("Constants measured on training images")]
    assert "one vector per layer 40 % (40 to 40)" in sentence and "other tokens) 95 % (95 to 95)" in sentence


def test_seeds_that_contradict_each_other_decide_nothing():
    apart = study([VALUES, ATTENTION], keys=("ivlp", "ivlp_2"))
    found, pairs = verdicts(apart)
    assert pairs[0]["models"] == ["ivlp", "ivlp_2"] and not pairs[0]["agree"]
    assert pairs[0]["overlap"] == {"attention": False, "scale": False, "values": False}
    assert all("IVLP and IVLP_2 contradict each other" in one["conclusion"] for one in found.values())
    found, pairs = verdicts(study([VALUES, VALUES], keys=("ivlp", "ivlp_2")))
    assert pairs[0]["agree"] and found["ivlp_2"]["conclusion"].startswith("This favours (b)")


def test_a_method_without_a_second_run_says_why():
    results = study(VALUES)
    results.scalars["factorial"] = {"ivlp": {"missing": "It changes no token."}}
    found = verdict(results, "ivlp")
    assert found["conclusion"] == found["missing"] == "It changes no token." and "effects" not in found
    results.scalars.pop("factorial")
    assert verdict(results, "ivlp")["conclusion"] == "The causal test was not run."
