"""From a study's results to labels: the verdict that the package gives, and what other evidence would say.

A rule reads results and nothing else. It says "undecided" wherever an interval includes its threshold, or where its
numbers do not exist for a method. All begin alike: without a sure gain the label is "no gain".
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from clipbias.explain.replacement import MARGIN
from clipbias.explain.results import Comparison, Kind, Missing, StudyResults, What, Where
from clipbias.explain.uncertainty import excludes
from clipbias.explain.verdict import HALF

UNDECIDED = "undecided"
# Attention that "does not change": rank correlation of relevancy over patches, and relative change of its distance and
# entropy, mean over the heads of the layer that changes most. Both are ours; the paper names no threshold.
SAME_ORDER = 0.9
SAME_ATTENTION = 0.05
# Half the width of a 95 % interval, in standard errors.
ERRORS = 1.96
FORMS = ("vector", "kind")


@dataclasses.dataclass(frozen=True)
class Answer:
    """The labels that an explainer gives a model, as values of `Where` and `What`."""

    where: str = UNDECIDED
    what: str = UNDECIDED


def verdict(results: StudyResults, key: str) -> Answer:
    """The package's own."""
    labels = next(method.labels for method in results.methods if key in method.models)
    if labels is None:
        return Answer()
    return Answer(labels.where.value, UNDECIDED if labels.what is None else labels.what.value)


def fitted_share(results: StudyResults, key: str) -> Answer:
    """A constant that is fitted to the model's predictions keeps most of its gain, or does not."""
    forms = fitted_forms(results, key)
    shares = [form.share for form in forms]
    if any(excludes(share, HALF) > 0 for share in shares):
        return Answer(what=What.SAME.value)
    depends = forms and all(excludes(share, HALF) < 0 for share in shares)
    return Answer(what=What.DEPENDS.value if depends else UNDECIDED)


def against_ceiling(results: StudyResults, key: str) -> Answer:
    """Likewise, and makes the decisions that tuning moved as often as the method that is fitted to itself, or not."""
    forms = fitted_forms(results, key)
    sides = []
    for form in forms:
        decides = excludes(form.less_ceiling, -MARGIN)
        sides.append(0 if form.less_ceiling is None else min(excludes(form.share, HALF), decides))
    if any(side > 0 for side in sides):
        return Answer(what=What.SAME.value)
    depends = forms and all(side < 0 for side in sides)
    return Answer(what=What.DEPENDS.value if depends else UNDECIDED)


def fitted_forms(results: StudyResults, key: str) -> list[Comparison]:
    """The constants that were fitted to a model's predictions."""
    methods = results.replacement.methods if results.replacement else ()
    rows = next((method.rows for method in methods if key in method.models), ())
    return [row for row in rows if row.student.kind is Kind.FITTED and row.student.form in FORMS]


def patch_relevancy(results: StudyResults, key: str) -> Answer:
    """Fig. 3: over corrected images, patches keep their relative relevancy; of models with prompts alone."""
    relevancy = (results.relevancy or {}).get(key, Missing(""))
    if isinstance(relevancy, Missing) or relevancy.corrected is None or not _has_prompts(results, key):
        return Answer()
    order = float(relevancy.corrected.order.mean.item())
    error = ERRORS * float(relevancy.corrected.order.standard_error.item())
    if order - error > SAME_ORDER:
        return Answer(where=Where.NOT_ATTENTION.value)
    return Answer(where=Where.ATTENTION.value) if order + error < SAME_ORDER else Answer()


def attention_statistics(results: StudyResults, key: str) -> Answer:
    """Fig. 5: attention's distance and entropy among input tokens stay; of models with prompts alone."""
    measured = [(results.vision_attention or {}).get(name, Missing("")) for name in (results.zero_shot.key, key)]
    if not _has_prompts(results, key) or any(isinstance(each, Missing) for each in measured):
        return Answer()
    changes = []
    for quantity in ("distance", "entropy"):
        variants = [each.without_prompt or each.clip for each in measured if not isinstance(each, Missing)]
        frozen, tuned = (getattr(variant, quantity).mean.mean(-1) for variant in variants)
        changes.append(np.abs(tuned - frozen) / frozen)
    same = np.max(changes) < SAME_ATTENTION
    return Answer(where=(Where.NOT_ATTENTION if same else Where.ATTENTION).value)


def _has_prompts(results: StudyResults, key: str) -> bool:
    return next(model.has_prompts for model in results.tuned if model.key == key)


RULES: Mapping[str, Callable[[StudyResults, str], Answer]] = MappingProxyType(
    {
        "verdict": verdict,
        "fitted constant: share": fitted_share,
        "fitted constant: against the ceiling": against_ceiling,
        "relevancy of patches (Fig. 3)": patch_relevancy,
        "distance and entropy (Fig. 5)": attention_statistics,
    }
)


def gains(results: StudyResults, key: str) -> bool:
    """Whether the verdict finds a sure gain."""
    return verdict(results, key).where != Where.NO_GAIN.value


def explain(results: StudyResults, key: str) -> dict[str, Answer]:
    """By explainer its labels of one model."""
    if not gains(results, key):
        return dict.fromkeys(RULES, Answer(where=Where.NO_GAIN.value))
    return {name: rule(results, key) for name, rule in RULES.items()}
