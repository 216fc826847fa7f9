"""What tuning does, from the causal test: numbers with intervals, and sentences that follow from them alone.

The paper's hypotheses (Sec. 4.2.1): (a) prompts change which input tokens attend to which; (b) prompts add a bias, the
same for every image. A sentence takes a side only where a whole 95 % interval lies on one side of the threshold that it
names; where it does not, it says "undecided" and why.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipbias.explain.measured import measured
from clipbias.explain.results import RANDOM, Findings
from clipbias.explain.uncertainty import Estimate, estimate, kept, resample, shapley, share
from clipbias.explain.verdict_words import conclude, sentences

# Units, and what one image's outcome is multiplied by.
OUTCOMES = {"log_likelihood": 1.0, "accuracy": 100.0}
_ARRAYS = {"log_likelihood": "log_likelihood", "accuracy": "correct"}


def verdicts(results: Findings) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The verdict on every tuned model, and whether models of one method agree.

    Where two of them contradict each other, neither decides anything.
    """
    tuned = [model for model in results.scalars["models"] if model["key"] != "zero_shot"]
    found = {model["key"]: verdict(results, model["key"]) for model in tuned}
    pairs = agreement(found, tuned)
    labels = {model["key"]: model["label"] for model in tuned}
    for pair in pairs:
        if not pair["agree"]:
            names = " and ".join(labels[key] for key in pair["models"])
            apart = ", ".join(name for name, meets in pair["overlap"].items() if not meets)
            for key in pair["models"]:
                found[key]["conclusion"] = f"Undecided, because {names} contradict each other about {apart}."
    return found, pairs


def verdict(results: Findings, key: str) -> dict[str, Any]:
    """The verdict on one tuned model, from a study's other sections; in the form that `results.py` describes."""
    facts = results.scalars.get("factorial", {}).get(key, {"missing": "The causal test was not run."})
    found: dict[str, Any] = {"missing": facts.get("missing", "")}
    if not found["missing"]:
        found |= _effects(results, key, facts)
        control = results.scalars["factorial"].get(f"{key}{RANDOM}")
        found["random"] = _effects(results, f"{key}{RANDOM}", control)["effects"] if control else None
        right = _both_right(results, key)
        found["both_right"] = _effects(results, key, facts, right)["effects"] if right.sum() > 1 else None
        found["both_right_images"] = int(right.sum())
    found["kept"] = _kept(results, key)
    found["rows"] = [dataclasses.asdict(row) for row in measured(results, key)]
    models = {model["key"]: model for model in results.scalars["models"]}
    found["sentences"] = sentences(found, models[key], models["zero_shot"])
    found["conclusion"] = conclude(found, models[key])
    return found


def _both_right(results: Findings, key: str) -> np.ndarray:
    """Which of the test's images both models get right: nothing was selected because its decision flipped."""
    images, arrays = results.arrays[f"factorial/{key}/images"], results.arrays
    labels = arrays["predictions/labels"][images]
    return (arrays["predictions/zero_shot"][images] == labels) & (arrays[f"predictions/{key}"][images] == labels)


def _effects(
    results: Findings, key: str, facts: Mapping[str, Any], chosen: np.ndarray | slice = slice(None)
) -> dict[str, Any]:
    """Gain, Shapley values and single mixtures by outcome and tower, all from the same resamples of the images."""
    effects, streams = facts["effects"], facts["streams"]
    count, columns = 2 ** len(effects), []
    for outcome, scale in OUTCOMES.items():
        array = np.asarray(results.arrays[f"factorial/{key}/{_ARRAYS[outcome]}"], np.float64)[chosen] * scale
        for place in range(len(facts["towers"])):
            own = array[:, place]
            gain = own[:, count - 1] - own[:, 0]
            columns.append(np.column_stack([own[:, 0], gain, shapley(own[:, :count]), own[:, 1:] - own[:, :1]]))
    values = np.stack(columns, axis=1)
    means, draws = values.mean(0), resample(values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])
    by_effect: dict[str, Any] = {outcome: {} for outcome in OUTCOMES}
    by_corner: dict[str, Any] = {outcome: {} for outcome in OUTCOMES}
    places = [(outcome, tower) for outcome in OUTCOMES for tower in facts["towers"]]
    for (outcome, tower), mean, draw in zip(places, means, draws.swapaxes(0, 1), strict=True):
        shares = [share(mean[i], draw[:, i], mean[1], draw[:, 1]) for i in range(2, len(mean))]
        start = estimate(mean[0], draw[:, 0])
        by_effect[outcome][tower] = {"reference": start, "gain": estimate(mean[1], draw[:, 1])}
        by_effect[outcome][tower] |= dict(zip(effects, shares, strict=False))
        by_corner[outcome][tower] = dict(zip(streams[1:], shares[len(effects) :], strict=True))
    return {"images": len(values), "effects": by_effect, "corners": by_corner}


def _kept(results: Findings, key: str) -> dict[str, dict[str, Estimate]]:
    """What constants in the method's place keep of its gain, by outcome and form; empty where none were measured."""
    forms = results.scalars.get("amounts", {}).get(key, {}).get("forms")
    if not forms:
        return {}
    return kept({name: results.arrays[f"amounts/{key}/{name}"] for name in ("log_likelihood", "correct")}, forms)


def agreement(verdicts: Mapping[str, Mapping[str, Any]], models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pairs of models of one method, such as two seeds: whether each effect's intervals overlap.

    Two seeds whose intervals lie apart contradict each other, and neither decides anything.
    """
    found = []
    for i, one in enumerate(models):
        for other in models[i + 1 :]:
            both = [verdicts.get(model["key"], {}).get("effects") for model in (one, other)]
            if one["method"] != other["method"] or None in both or one["options"] != other["options"]:
                continue
            first, second = (parts["log_likelihood"]["both"] for parts in both if parts)
            overlap = {name: _overlap(first[name], second[name]) for name in first if name not in ("reference", "gain")}
            found.append({"models": [one["key"], other["key"]], "overlap": overlap, "agree": all(overlap.values())})
    return found


def _overlap(one: Estimate, other: Estimate) -> bool:
    """Whether two shares' intervals meet; without shares, as without a gain, nothing is contradicted."""
    ends = [number.get(f"share_{end}") for number in (one, other) for end in ("low", "high")]
    if any(end is None for end in ends):
        return True
    low, high, other_low, other_high = (float(end) for end in ends if end is not None)
    return low <= other_high and other_low <= high
