"""The verdict on a method: two labels, by one rule, and a few sentences.

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
from clipbias.intervals import Estimate, excludes
from clipbias.sentences import counted

# Limits of the rule: a share surely above the first is the main part of the whole, surely below the second a minor one.
MAIN_SHARE = 0.5
MINOR_SHARE = 0.25
# Below so many images the percentiles of a bootstrap say little.
FEWEST_IMAGES = 20
CLASS = "zero-shot's class"  # the group that sentences name
_WHERE = {
    Where.ATTENTION: "It changes where CLIP looks, and the gain comes from there.",
    Where.NOT_ATTENTION: "The gain does not come from changing where CLIP looks.",
    Where.OUTSIDE: "It changes nothing inside CLIP's towers.",
    Where.UNDECIDED: "Whether the gain comes from changing where CLIP looks is undecided.",
}
_WHAT = {
    What.NOTHING: "What it adds to image tokens, if anything, matters little.",
    What.SAME: "What it adds to image tokens has the same effect for every image.",
    What.DEPENDS: "What it adds to image tokens depends on the image.",
    What.UNDECIDED: "Whether what it adds to image tokens depends on the image is undecided.",
}


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
    return dataclasses.replace(result, sentence=sentence(result, results.dataset.name))


# Clauses of the headline.
_HEAD_WHERE = {
    Where.ATTENTION: ", by looking elsewhere",
    Where.NOT_ATTENTION: ", not by looking elsewhere",
    Where.OUTSIDE: ", with CLIP itself unchanged",
}
_HEAD_WHAT = {What.SAME: "the same correction to all pictures", What.DEPENDS: "a different correction to each picture"}


def headline(method: MethodResult) -> str:
    """Writes the verdict on a method in at most 20 words and one number; a method's name counts as one word."""
    numbers, labels, name = method.numbers, method.labels, method.name
    if numbers is None:
        return f"Why {name} differs from CLIP was not tested."
    if labels is None:
        return f"{counted(method.images, 'picture')} are too few to judge {name}."
    gain = numbers.accuracy.gain
    if not method.is_better:
        return f"{name} makes no surely larger share of the pictures right ({gain.value:+.1f} points)."
    where = _HEAD_WHERE.get(labels.where, "")
    what = _HEAD_WHAT.get(labels.what, "") if labels.what and labels.where is not Where.OUTSIDE else ""
    if what:
        what = (", but by adding " if labels.where is Where.NOT_ATTENTION else "; it adds ") + what
    return f"{name} raises accuracy by {gain.value:.1f} points{where}{what}."


def sentence(method: MethodResult, dataset: str) -> str:
    """Writes the verdict in short sentences with one number each; their intervals are in the table."""
    numbers, labels, name = method.numbers, method.labels, method.name
    if numbers is None:
        return f"Why {name} differs from CLIP on {dataset} was not tested; --config.sections=causal does."
    if labels is None:
        images = counted(method.images, "image")
        return f"{images} of {dataset} are too few to judge {name}; give {FEWEST_IMAGES} at least."
    accuracy, nats = numbers.accuracy.gain, numbers.log_likelihood.gain
    points = f"{accuracy.value:+.1f} points"
    if labels.where is Where.NO_GAIN:
        return f"{name} has no sure gain on {dataset} ({points} of accuracy, {nats.value:+.3f} nats of log-likelihood)."
    if not method.is_better:
        # Labels are of log-likelihood; without more right predictions nobody asks for the reason.
        return (
            f"{name} has a sure gain in log-likelihood on {dataset} ({nats.value:+.3f} nats), but none in accuracy "
            f"({points})."
        )
    sentences = [f"{name} gains {accuracy.value:.1f} points on {dataset}.", _WHERE[labels.where]]
    image, attention = numbers.log_likelihood.image, numbers.log_likelihood.attention
    if excludes(attention) < 0:
        sentences.append("Attention alone, with all else frozen, does harm.")
    if labels.where is not Where.OUTSIDE and labels.what is not None:
        sentences.append(_WHAT[labels.what])
        explained = image.explained.get(CLASS) if image else None
        if labels.what is What.DEPENDS and explained is not None and explained.share is not None:
            share = 100 * explained.share.value
            sentences.append(f"The class that CLIP alone predicts explains {share:.0f} % of this dependence.")
    if image is not None and labels.what is not What.NOTHING:
        if excludes(image.all) < 0:
            sentences.append("All in all, what it adds to image tokens does harm.")
        elif excludes(image.exchange) < 0:
            sentences.append("Another image's addition would do better than the image's own.")
    return " ".join(sentences)
