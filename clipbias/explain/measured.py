"""What a study measured besides its causal test, as numbers with a sentence that says what each shows and no more.

None of these says what makes a model right or wrong: a map may move, and attention spread, without any effect.
"""

import dataclasses
import math

import numpy as np

from clipbias.explain.results import TEXT_KINDS, Findings

STRONG, WEAK = 0.8, 0.5  # above the one a rank correlation or share is called high, below the other low
NORMAL = 1.959964  # standard errors that a 95 % interval reaches


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One measured quantity, with a 95 % interval where it has an error."""

    name: str
    text: str
    value: float
    unit: str
    sentence: str
    low: float | None = None
    high: float | None = None


def measured(results: Findings, key: str) -> list[Quantity]:
    """Every quantity that there is for a tuned model."""
    facts = Facts(results, key)
    return [*_relevancy_change(facts), *_attention_change(facts), *_prompt_relevancy(facts), *_constancy(facts)]


def _around(value: float, error: float | None) -> dict[str, float | None]:
    if error is None or not math.isfinite(error):
        return {"low": None, "high": None}
    return {"low": value - NORMAL * error, "high": value + NORMAL * error}


class Facts:
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
    def towers(self) -> list[str]:
        return [tower for tower in ("vision", "text") if self.model[f"{tower}_prompts"]]


def _relevancy_change(facts: Facts) -> list[Quantity]:
    rows, about = [], facts.results.scalars.get("relevancy", {}).get(facts.key, {})
    order, variation = (facts.one(f"relevancy/{facts.key}/corrected/{name}") for name in ("order", "variation"))
    if order is not None:
        degree = "mostly kept" if order[0] >= STRONG else "largely changed" if order[0] < WEAK else "partly changed"
        sentence = (
            f"Over {about['corrected']['count']} images that tuning corrected, the order of the patches by relevancy "
            f"is {degree}: the rank correlation between zero-shot and {facts.label} is {order[0]:.2f}"
        )
        both = facts.one(f"relevancy/{facts.key}/both_right/order")
        if both is not None:
            sentence += f", and {both[0]:.2f} over {about['both_right']['count']} images that both get right"
        sentence += "."
        text = "rank correlation of patch relevancy"
        rows.append(Quantity("rank_correlation", text, order[0], "", sentence, **_around(*order)))
    if variation is not None:
        sentence = (
            f"{100 * variation[0]:.0f} % of the relevancy among the patches has moved from some patches to others."
        )
        text = "total variation of patch relevancy"
        rows.append(Quantity("total_variation", text, variation[0], "", sentence, **_around(*variation)))
    return rows


def _attention_change(facts: Facts) -> list[Quantity]:
    rows = []
    variant = "without_prompt" if facts.model["vision_prompts"] else "clip"
    units = {"distance": ("attention distance", "px"), "entropy": ("attention entropy", "nats")}
    for quantity, (text, unit) in units.items():
        before = facts.average(f"vision_attention/zero_shot/clip/{quantity}")
        after = facts.average(f"vision_attention/{facts.key}/{variant}/{quantity}")
        if before is None or after is None:
            continue
        change, of_heads = float((after[0] - before[0]).mean()), float(np.abs(after[0] - before[0]).mean())
        pair = (
            facts.array(f"vision_attention/{key}/{of}/{quantity}/each")
            for key, of in (("zero_shot", "clip"), (facts.key, variant))
        )
        sentence = (
            f"Among the input tokens the {text} changes by {change:+.3g} {unit} on average over layers and heads, from "
            f"{before[0].mean():.3g}; a single head changes by {of_heads:.2g} {unit} in the mean."
        )
        error = _error_of_mean(_difference(*pair))
        rows.append(
            Quantity(f"{quantity}_change", f"change of {text}", change, unit, sentence, **_around(change, error))
        )
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
        error = _error_of_mean(facts.array(f"decomposition/{facts.key}/{tower}/prompt_mass/each"))
        text = f"attention on prompts, {tower}"
        rows.append(Quantity(f"prompt_mass_{tower}", text, share, "", sentence, **_around(share, error)))
    return rows


def _difference(before: np.ndarray | None, after: np.ndarray | None) -> np.ndarray | None:
    """Of the same images under two models."""
    return None if before is None or after is None else after - before


def _error_of_mean(values: np.ndarray | None) -> float | None:
    """The standard error of the mean of one value per sample, of those that there are; `None` below two."""
    known = np.zeros(0) if values is None else values[np.isfinite(values)]
    return float(known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else None


def _prompt_relevancy(facts: Facts) -> list[Quantity]:
    rows = []
    for tower, index in (("vision", 1), ("text", TEXT_KINDS.index("prompt"))):
        name = f"relevancy/{facts.key}/corrected/{tower}_kinds/tuned"
        found, kinds = facts.one(name, index), facts.average(name)
        if tower not in facts.towers or found is None or kinds is None:
            continue
        total = kinds[0].sum()
        share = found[0] / total if total else 0.0
        error = found[1] / total if found[1] is not None and total else None
        sentence = f"{100 * share:.1f} % of the {tower} tower's relevancy lies on prompts."
        text = f"relevancy on prompts, {tower}"
        rows.append(Quantity(f"prompt_relevancy_{tower}", text, share, "", sentence, **_around(share, error)))
    return rows


def _constancy(facts: Facts) -> list[Quantity]:
    rows = []
    for tower in facts.towers:
        name, samples = f"decomposition/{facts.key}/{tower}", "images" if tower == "vision" else "classes"
        constant, bias = facts.array(f"{name}/constancy"), facts.array(f"{name}/bias_likeness")
        if constant is None or bias is None or not (np.isfinite(constant).all() and np.isfinite(bias).all()):
            continue
        depth = facts.model[f"{tower}_depth"]
        about = facts.results.scalars.get("decomposition", {}).get(facts.key, {}).get(tower, {})
        errors = about.get("error", {})
        (constant, beyond), bias = (constant[:depth], constant[depth:]), bias[:depth]
        sentence = (
            f"What prompts add in the {tower} tower is {_degree(constant.mean())} constant over {samples}: its "
            f"average, token by token, explains {100 * constant.mean():.0f} % of its mean square "
            f"({100 * constant.min():.0f} to {100 * constant.max():.0f} % by layer"
        )
        if len(beyond):
            sentence += (
                f"; {100 * beyond.mean():.0f} % in the {len(beyond)} layers beyond the prompts' depth, whose slots "
                "hold what the layers before made of them"
            )
        sentence += ")."
        text = f"constancy of the prompt part, {tower}"
        value = float(constant.mean())
        around = _around(value, errors.get("constancy"))
        rows.append(Quantity(f"constancy_{tower}", text, value, "", sentence, **around))
        sentence = f"One vector per layer, as bias tuning has, explains {100 * bias.mean():.0f} % of it."
        text, value = f"likeness to a bias, {tower}", float(bias.mean())
        around = _around(value, errors.get("bias_likeness"))
        rows.append(Quantity(f"bias_likeness_{tower}", text, value, "", sentence, **around))
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
            text, value = f"cosine with {name_of_other}, {tower}", float(cosine.mean())
            around = _around(value, errors.get(f"bias_cosine/{other}"))
            rows.append(Quantity(f"bias_cosine_{tower}_{other}", text, value, "", sentence, **around))
    return rows


def _degree(share: float) -> str:
    return "nearly" if share >= 0.9 else "largely" if share >= STRONG else "partly" if share >= WEAK else "hardly"
