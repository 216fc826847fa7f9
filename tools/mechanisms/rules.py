"""From a study's published numbers to a label of `models.py`: one rule for each explainer.

A rule reads results and nothing else. It says "undecided" wherever an interval includes its threshold, or where its
numbers do not exist for a method. Gains and shares are those of calibrated log-likelihood. All rules begin alike:
without a sure gain the label is "no gain" on both axes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from clipbias.explain.conclusions import HALF, QUARTER
from clipbias.explain.replacement import MARGIN
from clipbias.explain.results import Comparison, Kind, MethodReplacements, Missing, StudyResults
from clipbias.explain.uncertainty import Estimate, estimate, excludes, resample
from clipbias.explain.wording import NOTHING_INSIDE
from tools.mechanisms.models import ATTENTION, BOTH, CONSTANT, IMAGE, NO_ATTENTION, NO_GAIN

UNDECIDED = "undecided"
# Attention that "does not change": rank correlation of relevancy over patches, and relative change of its distance and
# entropy, mean over the heads of the layer that changes most.
SAME_ORDER = 0.9
SAME_ATTENTION = 0.05
# Constancy of Eq. 12's prompt part: a constant is 1.
CONSTANT_PART = 0.9
# Half the width of a 95 % interval, in standard errors.
ERRORS = 1.96
FORMS = ("vector", "kind")


@dataclasses.dataclass(frozen=True)
class Answer:
    """The labels that an explainer gives a model."""

    where: str = UNDECIDED
    what: str = UNDECIDED


def paper(results: StudyResults, key: str) -> Answer:
    """Relevancy of patches, attention's distance and its entropy are unchanged, "so prompts act as a bias"."""
    relevancy = (results.relevancy or {}).get(key, Missing(""))
    attention = attention_change(results, key)
    if isinstance(relevancy, Missing) or relevancy.all is None or attention is None:
        return Answer()
    order = float(relevancy.all.order.mean.item())
    error = ERRORS * float(relevancy.all.order.standard_error.item())
    if order - error > SAME_ORDER and attention < SAME_ATTENTION:
        return Answer(NO_ATTENTION, CONSTANT)
    changes = order + error < SAME_ORDER or attention > SAME_ATTENTION
    return Answer(where=ATTENTION) if changes else Answer()


def attention_change(results: StudyResults, key: str) -> float | None:
    """The largest relative change over layers of attention's distance or entropy, prompts left out."""
    measured = {name: (results.vision_attention or {}).get(name) for name in (results.zero_shot.key, key)}
    variants = []
    for attention in measured.values():
        if attention is None or isinstance(attention, Missing):
            return None
        variants.append(attention.without_prompt or attention.clip)
    before, after = variants
    if before is None or after is None:
        return None
    changes = []
    for quantity in ("distance", "entropy"):
        frozen, tuned = (getattr(variant, quantity).mean.mean(-1) for variant in (before, after))
        changes.append(np.abs(tuned - frozen) / frozen)
    return float(np.max(changes))


def constancy(results: StudyResults, key: str) -> Answer:
    """Of what prompts add within a layer, the share that its mean over images explains."""
    decomposition = (results.decomposition or {}).get(key, Missing(""))
    if isinstance(decomposition, Missing):
        return Answer()
    labels = set()
    for tower in decomposition.towers.values():
        value = tower.mean_constancy.up_to_depth
        if value is None or tower.mean_error is None:
            return Answer()
        error = ERRORS * tower.mean_error.constancy
        number = Estimate(value, value - error, value + error)
        label = CONSTANT if excludes(number, CONSTANT_PART) > 0 else UNDECIDED
        labels.add(IMAGE if excludes(number, HALF) < 0 else label)
    return Answer(what=labels.pop()) if len(labels) == 1 else Answer()


def shapley(results: StudyResults, key: str) -> Answer:
    """The share of attention, averaged over the orders in which effects are added."""
    effects = results.effects((key,))
    if effects is None:
        return Answer(where=outside_towers(results, key))
    return Answer(where=by_share(effects.towers["both"].calibrated.effects["attention"].share))


def corners_and_levels(results: StudyResults, key: str) -> Answer:
    """Attention alone for *where*; nothing, the mean and the image's own values for *what*."""
    effects = results.effects((key,))
    if effects is None:
        return Answer(where=outside_towers(results, key))
    alone = [corner for corner in effects.towers["both"].calibrated.corners if set(corner[1:]) == {"R"}]
    (attention_alone,) = (effects.towers["both"].calibrated.corners[corner] for corner in alone if corner[0] == "P")
    return Answer(by_share(attention_alone.share), by_levels(level_shares(results, key)))


def optimal_ablation(results: StudyResults, key: str) -> Answer:
    """The best constant in the place of what is added to images keeps most of what that gives, or does not."""
    share = level_shares(results, key).get("fitted")
    if excludes(share, HALF) > 0:
        return Answer(what=CONSTANT)
    return Answer(what=IMAGE if excludes(share, HALF) < 0 else UNDECIDED)


def replacement_share(results: StudyResults, key: str) -> Answer:
    """A constant that is fitted to the model's predictions keeps most of its gain, or does not."""
    forms = fitted_forms(results, key)
    shares = [form.share for form in forms]
    if any(excludes(share, HALF) > 0 for share in shares):
        return Answer(what=CONSTANT)
    return Answer(what=IMAGE if forms and all(excludes(share, HALF) < 0 for share in shares) else UNDECIDED)


def replacement(results: StudyResults, key: str) -> Answer:
    """Likewise, and makes the decisions that tuning moved as often as the method that is fitted to itself, or not."""
    forms = fitted_forms(results, key)
    sides = []
    for form in forms:
        decides = excludes(form.less_ceiling, -MARGIN)
        sides.append(0 if form.less_ceiling is None else min(excludes(form.share, HALF), decides))
    if any(side > 0 for side in sides):
        return Answer(what=CONSTANT)
    return Answer(what=IMAGE if forms and all(side < 0 for side in sides) else UNDECIDED)


def fitted_forms(results: StudyResults, key: str) -> list[Comparison]:
    """The constants that were fitted to a model's predictions."""
    method = _replaced(results, key)
    rows = method.rows if method else ()
    return [row for row in rows if row.student.kind is Kind.FITTED and row.student.form in FORMS]


def _replaced(results: StudyResults, key: str) -> MethodReplacements | None:
    methods = results.replacement.methods if results.replacement else ()
    return next((method for method in methods if key in method.models), None)


def levels_and_replacement(results: StudyResults, key: str) -> Answer:
    """Corners with levels, unless the best replacement contradicts; that tells a constant from all else."""
    first = corners_and_levels(results, key)
    replaced = replacement(results, key).what
    if first.what == UNDECIDED:
        return Answer(first.where, CONSTANT if replaced == CONSTANT else UNDECIDED)
    agree = replaced == UNDECIDED or (replaced == CONSTANT) == (first.what == CONSTANT)
    return Answer(first.where, first.what if agree else UNDECIDED)


def by_share(share: Estimate | None) -> str:
    """*Where*, of attention's share of the gain."""
    if excludes(share, HALF) > 0:
        return ATTENTION
    return NO_ATTENTION if excludes(share, QUARTER) < 0 else UNDECIDED


def by_levels(shares: Mapping[str, Estimate]) -> str:
    """*What*, of the shares of "constant" and "image" in what values give at the tuned run's attention."""
    constant, image = shares.get("constant"), shares.get("image")
    if matters(constant) and matters(image):
        return BOTH
    if excludes(constant, HALF) > 0 and is_small(image):
        return CONSTANT
    return IMAGE if excludes(image, HALF) > 0 and is_small(constant) else UNDECIDED


def matters(share: Estimate | None) -> bool:
    """Whether it surely lies beyond a quarter on either side: a mean can harm what only works with the rest."""
    return excludes(share, QUARTER) > 0 or excludes(share, -QUARTER) < 0


def is_small(share: Estimate | None) -> bool:
    """Whether it surely lies within a quarter on either side."""
    return excludes(share, QUARTER) < 0 and excludes(share, -QUARTER) > 0


def level_shares(results: StudyResults, key: str) -> Mapping[str, Estimate]:
    """Shares of what values give image tokens: "constant" (the mean), "image" (the rest), "fitted" (the best constant).

    Empty where a model adds nothing that surely helps, or nothing to image tokens.
    """
    effects = results.effects((key,))
    if effects is None or "vision" not in effects.levels:
        return {}
    levels = effects.levels["vision"].calibrated
    numbers = {"constant": levels.steps["constant"], "image": levels.beyond, "fitted": levels.fitted}
    return {name: number.share for name, number in numbers.items() if number is not None and number.share is not None}


def outside_towers(results: StudyResults, key: str) -> str:
    """*Where*, of a model without a causal test: a head changes no token, and then attention has no part."""
    return NO_ATTENTION if results.why_missing("factorial").get(key) == NOTHING_INSIDE else UNDECIDED


def gain_of(results: StudyResults, key: str) -> Estimate:
    """In calibrated log-likelihood; of a head, which has no causal test, in accuracy unless forms were fitted to it."""
    if effects := results.effects((key,)):
        return effects.towers["both"].calibrated.gain
    if fitted := _replaced(results, key):
        return fitted.gain.calibrated
    predictions = results.predictions
    rows = predictions.right(key).astype(float) - predictions.right(results.zero_shot.key)
    return estimate(rows.mean(), resample(rows[:, None])[:, 0])


RULES: Mapping[str, Callable[[StudyResults, str], Answer]] = MappingProxyType(
    {
        "relevancy and attention unchanged": paper,
        "constancy of the prompt part": constancy,
        "Shapley values": shapley,
        "corners with levels": corners_and_levels,
        "optimal ablation": optimal_ablation,
        "best replacement: share": replacement_share,
        "best replacement": replacement,
        "levels and replacement": levels_and_replacement,
    }
)


def explain(results: StudyResults, key: str) -> dict[str, Answer]:
    """By explainer its labels of one model."""
    if excludes(gain_of(results, key)) <= 0:
        return dict.fromkeys(RULES, Answer(NO_GAIN, NO_GAIN))
    return {name: rule(results, key) for name, rule in RULES.items()}
