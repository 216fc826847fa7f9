"""The paper's three hypotheses as numbers (Sec. 4.2.1), each with a sentence that says what it shows and no more.

(a) prompts re-weight attention among input tokens, (b) prompts add a dataset bias, (c) both.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipbias.explain.results import TEXT_KINDS, Findings

TITLES = {
    "reweighting": "(a) Prompts re-weight attention among the input tokens",
    "bias": "(b) Prompts add a bias of the dataset",
    "both": "(c) Both together",
}
STRONG, WEAK = 0.8, 0.5  # above the one a rank correlation or share is called high, below the other low


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One measured quantity; `value` is `None` where it could not be measured."""

    name: str
    text: str
    value: float | None
    standard_error: float | None
    sentence: str


def verdict(results: Findings, key: str) -> dict[str, Any]:
    """The verdict on one tuned model, from a study's other sections; in the form that `results.py` describes."""
    facts = _Facts(results, key)
    hypotheses = {
        "reweighting": [*_relevancy_change(facts), *_attention_change(facts), *_kept(facts, "reweighting_only")],
        "bias": [
            *_prompt_relevancy(facts),
            *_constancy(facts),
            *_kept(facts, "values_only"),
            *_kept(facts, "frozen"),
            *_kept(facts, "mean_per_token"),
            *_kept(facts, "mean"),
        ],
        "both": [*_gain(facts), *_interaction(facts)],
    }
    rows = [row for group in hypotheses.values() for row in group]
    return {
        "numbers": {row.name: row.value for row in rows},
        "hypotheses": {
            name: {"title": TITLES[name], "rows": [dataclasses.asdict(row) for row in group]}
            for name, group in hypotheses.items()
            if group
        },
        "conclusion": _conclusion(facts),
    }


class _Facts:
    """Short ways to a study's numbers about one tuned model."""

    def __init__(self, results: Findings, key: str) -> None:
        self.results, self.key = results, key
        by_key = {model["key"]: model for model in results.scalars["models"]}
        self.model, self.zero_shot = by_key[key], by_key["zero_shot"]
        self.label = self.model["label"]

    def average(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        arrays = self.results.arrays
        if f"{name}/mean" not in arrays:
            return None
        mean, error = arrays[f"{name}/mean"], arrays[f"{name}/standard_error"]
        return np.asarray(mean, np.float64), np.asarray(error, np.float64)

    def one(self, name: str, index: int = 0) -> tuple[float, float | None] | None:
        found = self.average(name)
        if found is None:
            return None
        error = float(found[1].reshape(-1)[index])
        return float(found[0].reshape(-1)[index]), error if math.isfinite(error) else None

    def array(self, name: str) -> np.ndarray | None:
        found = self.results.arrays.get(name)
        return None if found is None else np.asarray(found, np.float64)

    @property
    def interventions(self) -> Mapping[str, Mapping[str, Any]]:
        return self.results.scalars.get("interventions", {}).get(self.key, {}).get("both", {})

    @property
    def towers(self) -> list[str]:
        return [tower for tower in ("vision", "text") if self.model[f"{tower}_prompts"]]


def _relevancy_change(facts: _Facts) -> list[Quantity]:
    rows, count = [], facts.results.scalars.get("relevancy", {}).get(facts.key, {}).get("count", 0)
    order, variation = (facts.one(f"relevancy/{facts.key}/{name}") for name in ("order", "variation"))
    if order is not None:
        degree = "mostly kept" if order[0] >= STRONG else "largely changed" if order[0] < WEAK else "partly changed"
        sentence = (
            f"Over {count} images that tuning corrected, the order of the patches by relevancy is {degree}: the rank "
            f"correlation between zero-shot and {facts.label} is {order[0]:.2f}."
        )
        rows.append(Quantity("rank_correlation", "rank correlation of patch relevancy", *order, sentence))
    if variation is not None:
        sentence = (
            f"{100 * variation[0]:.0f} % of the relevancy among the patches has moved from some patches to others."
        )
        rows.append(Quantity("total_variation", "total variation of patch relevancy", *variation, sentence))
    return rows


def _attention_change(facts: _Facts) -> list[Quantity]:
    rows = []
    variant = "without_prompt" if facts.model["vision_prompts"] else "clip"
    units = {"distance": ("attention distance", "px"), "entropy": ("attention entropy", "nats")}
    for quantity, (text, unit) in units.items():
        before = facts.average(f"vision_attention/zero_shot/clip/{quantity}")
        after = facts.average(f"vision_attention/{facts.key}/{variant}/{quantity}")
        if before is None or after is None:
            continue
        change, of_heads = float((after[0] - before[0]).mean()), float(np.abs(after[0] - before[0]).mean())
        sentence = (
            f"Among the input tokens the {text} changes by {change:+.3g} {unit} on average over layers and heads, from "
            f"{before[0].mean():.3g}; a single head changes by {of_heads:.2g} {unit} in the mean."
        )
        rows.append(Quantity(f"{quantity}_change", f"change of {text} ({unit})", change, None, sentence))
    for tower in facts.towers:
        mass = facts.average(f"decomposition/{facts.key}/{tower}/prompt_mass")
        if mass is None:
            continue
        share, heaviest = float(mass[0].mean()), np.unravel_index(mass[0].argmax(), mass[0].shape)
        sentence = (
            f"In the {tower} tower queries spend {100 * share:.1f} % of their attention on prompts, so what they take "
            f"from input tokens is scaled by {1 - share:.2f} on average, and by {1 - mass[0].max():.2f} in the head "
            f"that attends most to them (layer {heaviest[0] + 1}, head {heaviest[1] + 1})."
        )
        rows.append(Quantity(f"prompt_mass_{tower}", f"attention on prompts, {tower}", share, None, sentence))
    return rows


def _prompt_relevancy(facts: _Facts) -> list[Quantity]:
    rows = []
    for tower, index in (("vision", 1), ("text", TEXT_KINDS.index("prompt"))):
        name = f"relevancy/{facts.key}/{tower}_kinds/tuned"
        found, kinds = facts.one(name, index), facts.average(name)
        if tower not in facts.towers or found is None or kinds is None:
            continue
        total = kinds[0].sum()
        share = found[0] / total if total else 0.0
        error = found[1] / total if found[1] is not None and total else None
        sentence = (
            f"{100 * share:.1f} % of the {tower} tower's relevancy lies on prompts, which are the same for every image."
        )
        rows.append(Quantity(f"prompt_relevancy_{tower}", f"relevancy on prompts, {tower}", share, error, sentence))
    return rows


def _constancy(facts: _Facts) -> list[Quantity]:
    rows = []
    for tower in facts.towers:
        name, samples = f"decomposition/{facts.key}/{tower}", "images" if tower == "vision" else "classes"
        constant, bias = facts.array(f"{name}/constancy"), facts.array(f"{name}/bias_likeness")
        if constant is None or bias is None:
            continue
        sentence = (
            f"What prompts add in the {tower} tower is {_degree(constant.mean())} constant over {samples}: its "
            f"average, token by token, explains {100 * constant.mean():.0f} % of its mean square "
            f"({100 * constant.min():.0f} to {100 * constant.max():.0f} % by layer)."
        )
        rows.append(
            Quantity(
                f"constancy_{tower}", f"constancy of the prompt part, {tower}", float(constant.mean()), None, sentence
            )
        )
        sentence = f"One vector per layer, as bias tuning has, explains {100 * bias.mean():.0f} % of it."
        rows.append(
            Quantity(f"bias_likeness_{tower}", f"likeness to a bias, {tower}", float(bias.mean()), None, sentence)
        )
        prefix = f"{name}/bias_cosine/"
        for path in facts.results.under(prefix):
            cosine = np.asarray(facts.results.arrays[path], np.float64)
            other = path.removeprefix(prefix)
            models = facts.results.scalars["models"]
            name_of_other = next((one["label"] for one in models if one["key"] == other), other)
            sentence = (
                f"This vector and the bias that {name_of_other} learned for the same layer have a cosine of "
                f"{cosine.mean():+.2f} on average, {cosine.min():+.2f} to {cosine.max():+.2f} by layer."
            )
            text = f"cosine with {name_of_other}, {tower}"
            rows.append(Quantity(f"bias_cosine_{tower}_{other}", text, float(cosine.mean()), None, sentence))
    return rows


def _degree(share: float) -> str:
    return "nearly" if share >= 0.9 else "largely" if share >= STRONG else "partly" if share >= WEAK else "hardly"


WHAT_STAYS = {
    "reweighting_only": "only the prompts' pull on attention is kept and their values are zero",
    "values_only": "only the prompts' values are kept and attention among the inputs is what it is without prompts",
    "frozen": "the prompts' values are kept and attention among the inputs is that of the unprompted model throughout",
    "mean_per_token": "the prompt part is replaced by its dataset mean, token by token",
    "mean": "the prompt part is replaced by one vector per layer, its dataset mean",
}


def accuracy_error(part: Mapping[str, Any]) -> float:
    """Binomial standard error of an accuracy, in percent."""
    share = part["correct"] / part["images"]
    return 100 * math.sqrt(share * (1 - share) / part["images"])


def kept_share(facts: _Facts, name: str) -> float | None:
    """How much of the gain of `full` over `none` an intervention keeps; `None` without a gain of twice its error."""
    parts = facts.interventions
    if name not in parts or "full" not in parts:
        return None
    gain, error = parts["full"]["gain"], parts["full"]["gain_error"] or 0.0
    return parts[name]["gain"] / gain if gain > 2 * error else None


def _percent(share: float) -> str:
    """A share in whole percent, without a negative zero."""
    return f"{round(100 * share) + 0} %"


def _kept(facts: _Facts, name: str) -> list[Quantity]:
    part = facts.interventions.get(name)
    if part is None:
        return []
    full, none = (facts.interventions[other]["accuracy"] for other in ("full", "none"))
    kept = kept_share(facts, name)
    tail = f", {_percent(kept)} of the gain over no prompts" if kept is not None else ""
    sentence = (
        f"Where {WHAT_STAYS[name]}, accuracy is {part['accuracy']:.1f} %{tail} (everything: {full:.1f} %, "
        f"nothing: {none:.1f} %)."
    )
    text = f"accuracy, {name.replace('_', ' ')} (%)"
    return [Quantity(f"accuracy_{name}", text, part["accuracy"], accuracy_error(part), sentence)]


def _gain(facts: _Facts) -> list[Quantity]:
    arrays, tuned, before = facts.results.arrays, facts.model, facts.zero_shot
    labels = arrays["predictions/labels"]
    read = arrays["predictions/zero_shot"] >= 0
    differences = [(arrays[f"predictions/{key}"] == labels)[read].astype(float) for key in (facts.key, "zero_shot")]
    difference = 100 * (differences[0] - differences[1])
    error = float(difference.std(ddof=1) / math.sqrt(len(difference))) if len(difference) > 1 else None
    sentence = (
        f"{facts.label} classifies {tuned['accuracy']:.1f} % of {tuned['images']} images correctly, zero-shot "
        f"{before['accuracy']:.1f} %."
    )
    return [Quantity("gain", "gain over zero-shot (points)", float(difference.mean()), error, sentence)]


def _interaction(facts: _Facts) -> list[Quantity]:
    parts = facts.interventions
    if "interaction" not in parts:
        return []
    value, error = parts["interaction"]["gain"], parts["interaction"]["gain_error"]
    full, values, weights = (parts[name]["gain"] for name in ("full", "values_only", "reweighting_only"))
    if abs(value) <= 2 * (error or 0.0):
        meaning = "the two effects add up within twice the error"
    else:
        meaning = "the two effects need each other" if value > 0 else "the two effects overlap"
    sentence = (
        f"Values alone and re-weighting alone gain {values:+.1f} and {weights:+.1f} points over no prompts, together "
        f"{full:+.1f}: {meaning}."
    )
    return [Quantity("interaction", "gain beyond the sum of both (points)", value, error, sentence)]


def _conclusion(facts: _Facts) -> str:
    if not facts.towers:
        prompted = [m for m in facts.results.scalars["models"] if m["vision_prompts"] or m["text_prompts"]]
        compared = [f"zero-shot {facts.zero_shot['accuracy']:.1f} %"]
        if prompted:
            best = max(prompted, key=lambda m: m["accuracy"])
            compared.insert(0, f"the best prompted model ({best['label']}) {best['accuracy']:.1f} %")
        return (
            f"{facts.label} adds no tokens, so nothing can attend to it; it reaches {facts.model['accuracy']:.1f} %, "
            f"{', '.join(compared)}."
        )
    if not facts.interventions:
        return "The interventions were not run, so nothing is concluded about causes."
    values, weights = (kept_share(facts, name) for name in ("values_only", "reweighting_only"))
    if values is None or weights is None:
        return "What the prompts gain is less than twice its error, so this dataset cannot tell the hypotheses apart."
    constant = kept_share(facts, "mean") or 0.0
    measured = (
        f"Values alone keep {_percent(values)} of what the prompts gain, re-weighting alone {_percent(weights)}, one "
        f"constant vector per layer in place of the values {_percent(constant)}."
    )
    if values > 1 and weights < WEAK:
        measured += " The re-weighting that comes with the values does not help here."
    if values >= STRONG and weights < WEAK:
        favoured = "This favours (b)" + (
            ": what prompts add, and it may be a constant."
            if constant >= STRONG
            else ", though not as a mere constant."
        )
    elif weights >= STRONG and values < WEAK:
        favoured = "This favours (a): attention taken away from input tokens, not what the prompts add."
    elif values >= STRONG and weights >= STRONG:
        favoured = "Either effect alone does nearly all of it, so accuracy does not decide between (a) and (b)."
    elif values < WEAK and weights < WEAK:
        favoured = "Neither effect alone does half of it: this favours (c), both are needed."
    else:
        stronger = "values" if values > weights else "re-weighting"
        favoured = f"Both take part, {stronger} more: this is closest to (c)."
    return f"{measured} {favoured}"
