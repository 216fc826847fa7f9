"""What a study's numbers allow to say of each tuned model, and of all seeds of a method together.

The paper's hypotheses (Sec. 4.2.1): (a) prompts change which input tokens attend to which; (b) prompts add a bias, the
same for every image. Accuracy is the headline; the calibrated log-likelihood stands beside it. A sentence names its
outcome, and takes a side only where a whole 95 % interval lies on one side of the margin that it names (`conclusions`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipbias.explain.conclusions import amount, carrier, conclude, percent, stands_for
from clipbias.explain.effects import OUTCOMES, OUTSIDE
from clipbias.explain.power import power, spread
from clipbias.explain.results import RANDOM, Findings
from clipbias.explain.rungs import CONSTANT_METHODS, PLAIN


def verdicts(results: Findings) -> dict[str, Any]:
    """By tuned model its verdict, and "seeds": one for each method of which there are several seeds."""
    models = {model["key"]: model for model in results.scalars["models"] if model["key"] != "zero_shot"}
    found: dict[str, Any] = {key: verdict(results, [key]) for key in models}
    several = {tuple(one["models"]) for name in ("factorial", "constants") for one in _section(results, name, "seeds")}
    found["seeds"] = [{"models": list(keys)} | verdict(results, keys) for keys in sorted(several)]
    return found


def verdict(results: Findings, keys: Sequence[str]) -> dict[str, Any]:
    """The verdict on one tuned model, or on several that differ in their seed alone; as `results.py` describes it."""
    models = [model for model in results.scalars["models"] if model["key"] in keys]
    test, constants = (_facts(results, name, keys) for name in ("factorial", "constants"))
    effects, replaced = (facts and facts.get("numbers") for facts in (test, constants))
    first, label = models[0], _common_label(models)
    prompts = bool(first["vision_prompts"] or first["text_prompts"])
    is_constant = first["method"] in CONSTANT_METHODS
    missing = "" if effects else _why(results, "factorial", keys[0], "The causal test was not run.")
    found: dict[str, Any] = {"label": label, "missing": missing, "seeds": len(keys), "carrier": {}, "constant": {}}
    if not effects and not replaced:
        return found | {"images": 0, "sentences": [missing], "conclusion": missing}
    both = effects and effects["both"]
    images = int(_facts(results, "factorial" if effects else "constants", keys[:1])["images"])
    for outcome in OUTCOMES:
        if both:
            found["carrier"][outcome] = carrier(both[outcome], outcome, prompts=prompts).verdict
        if replaced and not is_constant:
            found["constant"][outcome] = stands_for(replaced[outcome], PLAIN, outcome, label).verdict
    said = conclude(both, replaced, label=label, prompts=prompts, images=images, learns_constant=is_constant)
    if not is_constant and replaced and (outside := replaced["accuracy"].get(OUTSIDE)):
        said.append(f"Its own head changes accuracy by {amount(outside, 'accuracy')} besides.")
    more = [missing] if missing else []
    if both:
        more += _controls(test, _facts(results, "factorial", [f"{key}{RANDOM}" for key in keys]), prompts)
        more.append(_power(results, keys).sentence())
    return found | {
        "images": images,
        "sentences": [*said, *more],
        "conclusion": " ".join(said[: 1 if is_constant else 2]),
    }


def _section(results: Findings, name: str, key: str) -> Any:
    return results.scalars.get(name, {}).get(key, {})


def _facts(results: Findings, name: str, keys: Sequence[str]) -> Any:
    """What a section says of one model, or of several seeds; `{}` where it says nothing."""
    if len(keys) == 1:
        return _section(results, name, keys[0])
    return next((one for one in _section(results, name, "seeds") if one["models"] == list(keys)), {})


def _why(results: Findings, name: str, key: str, otherwise: str) -> str:
    return _section(results, name, key).get("missing") or otherwise


def _common_label(models: Sequence[Mapping[str, Any]]) -> str:
    return models[0]["label"] if len(models) == 1 else f"{models[0]['name']}, {len(models)} seeds"


def _controls(test: Mapping[str, Any], random: Mapping[str, Any], prompts: bool) -> list[str]:
    """What a temperature alone gives, images that both models get right, and random prompts."""
    said = []
    alone = test["temperature_alone"]
    if alone["share"] is not None:
        said.append(
            f"A temperature alone, which moves no decision, gives the frozen model {percent(alone)} of the gain in raw "
            "log-likelihood."
        )
    if right := test.get("both_right"):
        gain = right["numbers"]["both"]["calibrated"]["gain"]
        said.append(
            f"Over the {right['images']} images that both models get right, calibrated log-likelihood changes by "
            f"{amount(gain, 'calibrated')}."
        )
    if prompts and random:
        gain = random["numbers"]["both"]["accuracy"]["gain"]
        said.append(f"Random prompts of the trained ones' norms change accuracy by {amount(gain, 'accuracy')}.")
    return said


def _power(results: Findings, keys: Sequence[str]) -> Any:
    """Which difference in accuracy between the tuned and the frozen model could have been seen."""
    correct = [np.asarray(results.arrays[f"factorial/{key}/correct"], np.float64)[:, 0] for key in keys]
    corner = 2 ** len(_section(results, "factorial", keys[0])["effects"]) - 1
    differences = np.stack([100 * (own[:, corner] - own[:, 0]) for own in correct])
    return power(spread(differences), differences.shape[1], len(keys))
