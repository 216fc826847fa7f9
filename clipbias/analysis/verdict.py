"""The verdict on a method: two labels, by one rule.

The paper's hypotheses (Sec. 4.2.1): (a) prompts change where input tokens look; (b) prompts add a bias, the same for
every image. The labels are decided in log-likelihood at fitted temperatures (`causal_section`), on whole
95 % intervals:

    gain      not surely above 0: *no gain*
    where     attention alone (PR), as a share of the gain: surely above ½ *attention*, surely below ¼ *not attention*;
              a method that changes nothing inside the towers *outside*; else *undecided*
    what      everything added to image tokens, as a share of the gain: surely within ± ¼ *nothing*. The *exchange*, the
              effect of resample ablation, as a share of everything added: surely within ± ¼ *the same for every image*,
              surely outside ± ½ *depends on the image*; else *undecided*

Labels are about effects: what no later part of the model reads is the same for every image in its effect. Beside
*depends on the image* stands how much of that the class explains: the share of the exchange that is gone with the mean
over the images of zero-shot's class.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from clipbias.analysis.causal_section import CAUSAL
from clipbias.analysis.model import NOTHING_INSIDE
from clipbias.analysis.results import (
    CausalNumbers,
    MethodResult,
    ModelFacts,
    StudyResults,
    VerdictLabels,
    What,
    Where,
    same_but_for_seed,
)
from clipbias.analysis.verdict_sentences import sentence
from clipbias.intervals import Estimate, excludes
from clipbias.sentences import counted

# Limits of the rule: a share surely above the first is the main part of the whole, surely below the second a minor one.
MAIN_SHARE = 0.5
MINOR_SHARE = 0.25
# Below so many images the percentiles of a bootstrap say little.
FEWEST_IMAGES = 20


def label(numbers: CausalNumbers, *, outside: bool = False, images_changed: bool = True) -> VerdictLabels:
    """Returns the labels of a method by its numbers in log-likelihood.

    `outside`: it changes nothing inside the towers. `images_changed`: it changes the vision tower.
    """
    # Shares of a gain that may be 0 mean nothing, so the gain is decided first.
    if excludes(numbers.gain) <= 0:
        return VerdictLabels(Where.NO_GAIN, None)
    # The two labels are independent: a bias of the queries is a constant that acts through attention alone.
    what = What.NOTHING if not images_changed else What.UNDECIDED
    if images_changed and numbers.image is not None:
        what = _what(numbers.image.all.share, numbers.image.exchange.share)
    attention = None if numbers.attention is None else numbers.attention.share
    where = Where.UNDECIDED
    if outside:
        where = Where.OUTSIDE
    elif excludes(attention, MAIN_SHARE) > 0:
        where = Where.ATTENTION
    elif excludes(attention, MINOR_SHARE) < 0:
        where = Where.NOT_ATTENTION
    return VerdictLabels(where, what)


def _what(added: Estimate | None, exchange: Estimate | None) -> What:
    def is_within(share: Estimate | None, limit: float) -> bool:
        return excludes(share, limit) < 0 < excludes(share, -limit)

    # An addition that hardly matters cannot be told from the same for every image: its own share is decided first.
    if is_within(added, MINOR_SHARE):
        return What.NOTHING
    if is_within(exchange, MINOR_SHARE):
        return What.SAME
    # "Both" is no label: an addition that is partly constant depends on the image.
    is_beyond = excludes(exchange, MAIN_SHARE) > 0 or excludes(exchange, -MAIN_SHARE) < 0
    return What.DEPENDS if is_beyond else What.UNDECIDED


def judge(results: StudyResults) -> StudyResults:
    """Adds the verdict on each method to the results, in the order of the study."""
    groups = same_but_for_seed(results.tuned)
    return dataclasses.replace(results, methods=tuple(judge_method(results, models) for models in groups))


def judge_method(results: StudyResults, models: Sequence[ModelFacts]) -> MethodResult:
    """Judges one tuned model, or all seeds of a method."""
    first = models[0]
    keys = tuple(model.key for model in models)
    several = len(models) > 1
    name = first.name if several else first.label
    causal = CAUSAL.of(results)
    test = None if causal is None else causal.models[first.key]
    numbers = None if causal is None else causal.of(keys)
    images = first.images if test is None else len(test.outcomes.images)
    labels = None
    if test is not None and numbers is not None and images >= FEWEST_IMAGES:
        changed = first.changes_vision and test.why != NOTHING_INSIDE
        labels = label(numbers.log_likelihood, outside=test.why == NOTHING_INSIDE, images_changed=changed)
    result = MethodResult(
        label=f"{name}, {counted(len(models), 'seed')}" if several else name,
        name=name,
        method=first.method,
        models=keys,
        accuracy=float(np.mean([model.accuracy for model in models])),
        images=images,
        numbers=numbers,
        labels=labels,
        sentence="",
    )
    return dataclasses.replace(result, sentence=sentence(result, results.dataset.name, fewest_images=FEWEST_IMAGES))
