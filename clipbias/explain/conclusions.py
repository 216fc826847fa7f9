"""What the numbers of a study allow to say of a method. Every claim names its outcome and follows from intervals.

A gain comes through what alone has more than half of it, with a whole interval: the tuned model's attention with all
else frozen, or what it adds to tokens with attention frozen. The mean of what is added, a constant, is judged likewise
by what it gives of all that is added; where it has less than half, another constant may still have more.
"""

from clipbias.explain.effects import OUTCOME_NAMES
from clipbias.explain.results import ByOutcome, Effects, Levels, Replacements
from clipbias.explain.uncertainty import Estimate, excludes
from clipbias.explain.wording import amount, percent
from clipbias.sentences import join_words

HALF = 0.5
QUARTER = 0.25
# Percentiles of a bootstrap say little below.
FEWEST_IMAGES = 20

# What a gain comes through: what alone has more than half of it, both of these, or neither.
ATTENTION = "attention"
TOKENS = "tokens"
EITHER = "either"
TOGETHER = "together"
# How much its mean gives of all that is added.
MORE = "more than half"
LESS = "less than half"
# Of both.
NO_GAIN = "no gain"
UNDECIDED = "undecided"

_MAINLY = {
    ATTENTION: "mainly where CLIP looks",
    TOKENS: "mainly what is added to tokens",
    EITHER: "each alone has more than half",
    TOGETHER: "neither alone has half",
    UNDECIDED: "undecided which alone has more than half",
}
# By tower: what is added to, what a mean is over, and what it lacks.
LEVEL_WORDS = {
    "vision": ("image tokens", "training images", "the image's own"),
    "text": ("text tokens", "classes", "each class's own"),
}
_MEAN_HAS = {
    MORE: "the mean has more than half",
    LESS: "the mean has less than half",
    UNDECIDED: "it is undecided whether the mean has more than half",
}


def effect_names(prompts: bool) -> dict[str, str]:
    """What each effect is called, for methods with prompts or without."""
    return {
        "attention": "where CLIP looks",
        "scale": "the attention that prompts draw away",
        "values": "what prompts add to tokens" if prompts else "what the method adds to tokens",
    }


def no_gain(gain: Estimate, outcome: str) -> str | None:
    """That there is nothing to share out, or `None` where the gain's interval lies above 0."""
    if excludes(gain) > 0:
        return None
    return f"There is no sure gain in {OUTCOME_NAMES[outcome]} to share out: {amount(gain, outcome)}."


def through(effects: Effects) -> str:
    """What a gain in one outcome comes through: `ATTENTION`, `TOKENS`, `EITHER`, `TOGETHER`, or neither is sure."""
    if excludes(effects.gain) <= 0:
        return NO_GAIN
    attention, tokens = (excludes(part.share, HALF) for part in (effects.attention_alone, effects.tokens_alone))
    if attention > 0 or tokens > 0:
        return EITHER if attention == tokens else TOKENS if tokens > 0 else ATTENTION
    return TOGETHER if attention < 0 and tokens < 0 else UNDECIDED


def mean_has(mean: Estimate, added: Estimate) -> str:
    """How much the mean gives of all that is added, in one outcome: `MORE`, `LESS`, `NO_GAIN` or undecided."""
    if excludes(added) <= 0:
        return NO_GAIN
    return {1: MORE, -1: LESS, 0: UNDECIDED}[excludes(mean.share, HALF)]


def alone(effects: Effects, outcome: str) -> str:
    """What attention and what is added to tokens give alone of a gain, in words."""
    if nothing := no_gain(effects.gain, outcome):
        return nothing
    return (
        f"Of the gain in {OUTCOME_NAMES[outcome]}, what is added to tokens has"
        f" {percent(effects.tokens_alone.share)} with attention frozen, and the new attention alone"
        f" {percent(effects.attention_alone.share)}: {_MAINLY[through(effects)]}."
    )


def constant_part(levels: ByOutcome[Levels], tower: str) -> str:
    """What constants give of all that a method adds to a tower's tokens, in words."""
    tokens, population, remainder = LEVEL_WORDS[tower]
    means, rests, best = [], [], []
    alike: dict[str, list[str]] = {}
    for outcome, of_outcome in levels.items():
        mean = of_outcome.steps["constant"]
        if (verdict := mean_has(mean, of_outcome.all)) == NO_GAIN:
            continue
        place = f"in {OUTCOME_NAMES[outcome]}"
        means.append(f"{percent(mean.share)} {place}")
        rests.append(percent(of_outcome.beyond.share))
        alike.setdefault(_MEAN_HAS[verdict], []).append(place)
        if of_outcome.fitted is not None:
            best.append(f"{percent(of_outcome.fitted.share)} {place}")
    if not means:
        return f"What it adds to {tokens} gives no sure gain, so there is no share of it that a constant has."
    claims = [f"{join_words(places)} {claim}" for claim, places in alike.items()]
    return (
        f"Of what it adds to {tokens}, the mean over {population} gives {join_words(means)}, {remainder}"
        f" {join_words(rests)}: {join_words(claims)}."
        + (f" The best constant in its place gives {join_words(best)}." if best else "")
    )


def keeps(numbers: ByOutcome[Replacements], form: str) -> str:
    """How much of a model's gain its equivalent bias keeps, with intervals."""
    parts = []
    for outcome, of_outcome in numbers.items():
        name = OUTCOME_NAMES[outcome]
        kept_gain = f"it keeps {percent(of_outcome.kept[form].share)} of the gain in {name}"
        parts.append(f"{name} has no sure gain" if no_gain(of_outcome.gain, outcome) else kept_gain)
    return "; ".join(parts)
