"""The verdict on a method: two labels, by one rule, and one sentence.

The paper's hypotheses (Sec. 4.2.1): (a) prompts change where input tokens look; (b) prompts add a bias, the same for
every image. The labels are decided in log-likelihood at fitted temperatures (`causal_section`), on whole
95 % intervals:

    gain      not surely above 0: *no gain*
    where     attention alone (PR), as a share of the gain: surely above ½ *attention*, surely below ¼ *not attention*;
              a method that changes nothing inside the towers *outside*; else *undecided*
    what      everything added to image tokens, as a share of the gain: surely below ¼ *nothing*. The *exchange*, the
              effect of resample ablation, as a share of everything added: surely below ¼ *the same for every image*,
              surely above ½ *depends on the image*; else *undecided*

"Both" is no label: an addition that is partly constant depends on the image. The exchange says whether the addition is
the same for every image, not whether a constant can replace it; the shares of the mean ablations say that. The two
labels are independent: a bias of the queries is a constant that acts through attention alone.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from clipbias.analysis.causal_section import CAUSAL
from clipbias.analysis.model import NOTHING_INSIDE
from clipbias.analysis.results import (
    ByMetric,
    CausalNumbers,
    MethodResult,
    ModelFacts,
    StudyResults,
    VerdictLabels,
    What,
    Where,
    same_but_for_seed,
)
from clipbias.intervals import Estimate, amount, excludes, percent
from clipbias.sentences import counted

# Limits of the rule: a share surely above the first is the main part of the whole, surely below the second a minor one.
MAIN_SHARE = 0.5
MINOR_SHARE = 0.25
# Below so many images the percentiles of a bootstrap say little.
FEWEST_IMAGES = 20
_WHERE = {
    Where.ATTENTION: "by changing where CLIP looks",
    Where.NOT_ATTENTION: "not by changing where CLIP looks",
    Where.OUTSIDE: "outside CLIP's towers, in which nothing changes",
    Where.UNDECIDED: "undecided whether by changing where CLIP looks",
}
_WHAT = {
    What.NOTHING: "what it adds to image tokens, if anything, matters little",
    What.SAME: "what it adds to image tokens is the same for every image",
    What.DEPENDS: "what it adds to image tokens depends on the image",
    What.UNDECIDED: "whether what it adds to image tokens depends on the image is undecided",
}


def label(numbers: CausalNumbers, *, outside: bool = False, images_changed: bool = True) -> VerdictLabels:
    """Returns the labels of a method by its numbers in log-likelihood.

    `outside`: it changes nothing inside the towers. `images_changed`: it changes the vision tower.
    """
    # Shares of a gain that may be 0 mean nothing, so the gain is decided first.
    if excludes(numbers.gain) <= 0:
        return VerdictLabels(Where.NO_GAIN, None)
    what = What.NOTHING if not images_changed else What.UNDECIDED
    if images_changed and numbers.image is not None:
        what = _what(numbers.image.all.share, numbers.image.exchange.share if numbers.image.exchange else None)
    return VerdictLabels(Where.OUTSIDE if outside else _where(numbers.attention), what)


def _where(attention: Estimate | None) -> Where:
    share = None if attention is None else attention.share
    if excludes(share, MAIN_SHARE) > 0:
        return Where.ATTENTION
    return Where.NOT_ATTENTION if excludes(share, MINOR_SHARE) < 0 else Where.UNDECIDED


def _what(added: Estimate | None, exchange: Estimate | None) -> What:
    # An addition that hardly matters cannot be told from the same for every image: its own share is decided first.
    if excludes(added, MINOR_SHARE) < 0:
        return What.NOTHING
    if excludes(exchange, MINOR_SHARE) < 0:
        return What.SAME
    return What.DEPENDS if excludes(exchange, MAIN_SHARE) > 0 else What.UNDECIDED


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
    return MethodResult(
        label=f"{name}, {counted(len(models), 'seed')}" if several else name,
        name=name,
        method=first.method,
        models=keys,
        accuracy=float(np.mean([model.accuracy for model in models])),
        images=images,
        numbers=numbers,
        labels=labels,
        sentence=sentence(name, results.dataset.name, labels, numbers, images),
    )


def sentence(
    name: str, dataset: str, labels: VerdictLabels | None, numbers: ByMetric[CausalNumbers] | None, images: int
) -> str:
    """Writes the verdict; without `labels` there are too few images, without `numbers` there is no causal test."""
    if numbers is None:
        return f"Why {name} differs from CLIP on {dataset} was not tested; --config.sections=causal does."
    if labels is None:
        return f"{counted(images, 'image')} of {dataset} are too few to judge {name}; give {FEWEST_IMAGES} at least."
    accuracy, log_likelihood = (amount(numbers[outcome].gain, outcome) for outcome in ("accuracy", "log_likelihood"))
    if labels.where is Where.NO_GAIN:
        return (
            f"{name} has no sure gain on {dataset}: log-likelihood changes by {log_likelihood}, accuracy by {accuracy}."
        )
    # The sentence names the accuracy only where its gain is sure; the label is decided in log-likelihood.
    gains = f"{name} gains {accuracy.removeprefix('+')} on {dataset}"
    if excludes(numbers.accuracy.gain) <= 0:
        nats = log_likelihood.removeprefix("+")
        gains = f"{name} gains {nats} of log-likelihood on {dataset}, with {accuracy} of accuracy"
    text = f"{gains}, {_WHERE[labels.where]}"
    if labels.where is Where.OUTSIDE or labels.what is None:
        return f"{text}."
    text += f"; {_WHAT[labels.what]}"
    image = None if labels.what is What.NOTHING else numbers.log_likelihood.image
    if image is not None and image.other is not None and image.position is not None and image.other.share:
        text += (
            f" (of all of it, another image's is worth {percent(image.other.share)}, the mean by kind"
            f" {percent(image.kind.share)}, by position {percent(image.position.share)})"
        )
    return f"{text}."
