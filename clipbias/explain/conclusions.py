"""What the numbers of effects and replacements allow to say. Every claim names its outcome and follows from intervals.

Margins were set before any result was seen. An effect carries the gain where its share lies above one half with its
whole interval, and takes part above a quarter. The constant that is judged is the mean of what the tuned blocks add,
one among many. It stands for a method where what it keeps and what is lost without it both lie above `STANDS`, for most
of it above `MOST`; it does not where either lies below `MOST`. Then another constant may.
"""

import dataclasses
from collections.abc import Mapping

from clipbias.explain.effects import OUTCOME_NAMES, OUTCOMES
from clipbias.explain.replacement_names import PLAIN, REPLACEMENT_FORM_NAMES
from clipbias.explain.results import ByOutcome, Effects, Levels, Replacements
from clipbias.explain.uncertainty import Estimate, excludes
from clipbias.explain.wording import amount, percent
from clipbias.sentences import capitalize, join_words

STANDS = 0.9
MOST = 0.5
HALF = 0.5
QUARTER = 0.25
# An interaction whose interval excludes 0 is named from this share of the gain on.
NOT_SMALL = 0.1
# Percentiles of a bootstrap say little below.
FEWEST_IMAGES = 20

NO_GAIN = "no gain"
UNDECIDED = "undecided"
SHARED = "shared"
STANDS_FOR = "stands"
CARRIES_MOST = "most"
DOES_NOT = "not"
MEAN = "the mean of what its blocks add"


# By tower: what is added to, what a mean is over, and what it lacks.
LEVEL_WORDS = {
    "vision": ("image tokens", "training images", "the image's own"),
    "text": ("text tokens", "classes", "each class's own"),
}
_HALVES = {
    1: "more than half is the same for all",
    -1: "less than half is the same for all",
    0: "it is undecided whether more than half is the same for all",
}


@dataclasses.dataclass(frozen=True)
class Claim:
    """What is claimed, as a word for programs, and the sentence that says so."""

    verdict: str
    sentence: str


def effect_names(prompts: bool) -> dict[str, str]:
    """What each effect is called, for methods with prompts or without."""
    return {
        "attention": "where CLIP looks",
        "scale": "the attention that prompts draw away",
        "values": "what prompts add to tokens" if prompts else "what the method adds to tokens",
    }


def no_gain(gain: Estimate, outcome: str) -> Claim | None:
    """That there is nothing to share out, or `None` where the gain's interval lies above 0."""
    if excludes(gain) > 0:
        return None
    return Claim(NO_GAIN, f"There is no sure gain in {OUTCOME_NAMES[outcome]} to share out: {amount(gain, outcome)}.")


def carrier(numbers: Effects, outcome: str, *, prompts: bool = True) -> Claim:
    """Which effect carries the gain in one outcome: its name, "shared", "undecided" or "no gain".

    Args:
      numbers: of this outcome.
      outcome: its name.
      prompts: whether the method has prompts.
    """
    if nothing := no_gain(numbers.gain, outcome):
        return nothing
    claim = _largest_effect(numbers, effect_names(prompts), f"the gain in {OUTCOME_NAMES[outcome]}")
    return Claim(claim.verdict, " ".join([claim.sentence, *_together(numbers, effect_names(prompts))]))


def effects_above_quarter(numbers: Effects) -> list[str]:
    """Effects that surely take part in a gain."""
    return [name for name, number in numbers.effects.items() if excludes(number.share, QUARTER) > 0]


def _together(numbers: Effects, names: Mapping[str, str]) -> list[str]:
    """What effects give together beyond what they give alone, in words, where it is not small."""
    return [
        f"{capitalize(join_words([names[effect] for effect in together.split(' × ')]))} together give"
        f" {percent(numbers.interactions[together].share)} of the gain beyond what their parts give; each share holds"
        " an equal part of that."
        for together in interacting(numbers)
    ]


def _largest_effect(numbers: Effects, names: Mapping[str, str], gain: str) -> Claim:
    effects = numbers.effects
    shown = {name: f"{names[name]} carries {percent(effects[name].share)} of {gain}" for name in effects}
    most = [name for name in effects if excludes(effects[name].share, HALF) > 0]
    part = effects_above_quarter(numbers)
    if len(most) == 1 and part == most:
        return Claim(most[0], f"{capitalize(shown[most[0]])}: more than half.")
    if len(part) > 1:
        parts = " and ".join(f"{names[name]} ({percent(effects[name].share)})" for name in part)
        return Claim(SHARED, f"Several effects share {gain}: {parts}.")
    largest = max(effects, key=lambda name: _share(effects[name]))
    return Claim(UNDECIDED, f"Undecided, because {shown[largest]}, and no interval lies above one half.")


def _share(number: Estimate) -> float:
    return 0.0 if number.share is None else number.share.value


def interacting(numbers: Effects) -> list[str]:
    """Interactions that are not small: their interval excludes 0, and they are a tenth of the gain or more."""
    interactions = numbers.interactions.items()
    return [name for name, number in interactions if excludes(number) and abs(_share(number)) >= NOT_SMALL]


def stands_for(numbers: Replacements, form: str, outcome: str, label: str) -> Claim:
    """Whether the mean of what blocks add stands for a method: "stands", "most", "not", "undecided" or "no gain".

    Args:
      numbers: of this outcome.
      form: the form of the mean.
      outcome: its name.
      label: the method's.
    """
    if nothing := no_gain(numbers.gain, outcome):
        return nothing
    kept_share = numbers.kept[form].share
    keeps = f"it keeps {percent(kept_share)} of the gain in {OUTCOME_NAMES[outcome]}"
    shown = f"added to the frozen model as {REPLACEMENT_FORM_NAMES[form]}, {keeps}"
    if form not in numbers.lost:
        undecided = f"Undecided whether {MEAN} stands for {label}: {shown}; what is lost without it was not measured."
        return Claim(UNDECIDED, undecided)
    lost = numbers.lost[form].share
    shown += f"; subtracted from {label}, {percent(lost)} of it is lost"
    named = {"what is kept": kept_share, "what is lost": lost}
    if all(excludes(share, STANDS) > 0 for share in named.values()):
        above = f"Both intervals lie above {100 * STANDS:.0f} %."
        return Claim(STANDS_FOR, f"{capitalize(MEAN)} stands for {label}: {shown}. {above}")
    if all(excludes(share, MOST) > 0 for share in named.values()):
        above = f"Both intervals lie above {100 * MOST:.0f} %."
        return Claim(CARRIES_MOST, f"{capitalize(MEAN)} stands for most of {label}: {shown}. {above}")
    below = [name for name, share in named.items() if excludes(share, MOST) < 0]
    if below:
        lies = f"{capitalize(' and '.join(below))} {'lie' if len(below) > 1 else 'lies'} below {100 * MOST:.0f} %."
        return Claim(DOES_NOT, f"{capitalize(MEAN)} does not stand for {label}: {shown}. {lies} Another constant may.")
    open_ends = [name for name, share in named.items() if not excludes(share, MOST)]
    reason = f"the interval of {' and that of '.join(open_ends)} includes {100 * MOST:.0f} %"
    return Claim(UNDECIDED, f"Undecided whether {MEAN} stands for {label}, because {reason}: {shown}.")


def constant_part(levels: ByOutcome[Levels], tower: str) -> str:
    """How much of what a method adds to a tower's tokens is a constant, and whether surely more than half, in words."""
    tokens, population, remainder = LEVEL_WORDS[tower]
    parts, rests = [], []
    alike: dict[str, list[str]] = {}
    for outcome, of_outcome in levels.items():
        if no_gain(of_outcome.all, outcome):
            continue
        name = OUTCOME_NAMES[outcome]
        constant = of_outcome.steps["constant"].share
        parts.append(f"{percent(constant)} in {name}")
        rests.append(percent(of_outcome.beyond.share))
        alike.setdefault(_HALVES[excludes(constant, HALF)], []).append(f"in {name}")
    if not parts:
        return f"What it adds to {tokens} gives no sure gain, so there is no share of it that a constant has."
    claims = [f"{join_words(outcomes)} {claim}" for claim, outcomes in alike.items()]
    return (
        f"Of what it adds to {tokens}, a constant (the mean over {population}) gives {join_words(parts)}, {remainder}"
        f" {join_words(rests)}: {join_words(claims)}."
    )


def keeps(numbers: ByOutcome[Replacements], form: str) -> str:
    """How much of a model's gain its equivalent bias keeps, with intervals."""
    parts = []
    for outcome, of_outcome in numbers.items():
        name = OUTCOME_NAMES[outcome]
        kept_gain = f"it keeps {percent(of_outcome.kept[form].share)} of the gain in {name}"
        parts.append(f"{name} has no sure gain" if no_gain(of_outcome.gain, outcome) else kept_gain)
    return "; ".join(parts)


def conclude(
    effects: ByOutcome[Effects] | None,
    replacements: ByOutcome[Replacements] | None,
    *,
    label: str,
    prompts: bool,
    images: int,
    learns_constant: bool = False,
) -> list[str]:
    """The conclusions, sentence by sentence, the headline's outcome first.

    Where accuracy has no sure gain, no hypothesis is favoured, whatever the log-likelihood does.

    Args:
      effects: `None` where the causal test was not run.
      replacements: likewise.
      label: the method's.
      prompts: whether it has prompts.
      images: how many there are.
      learns_constant: whether the method is a constant itself, of which nothing is to be judged.
    """
    if images < FEWEST_IMAGES:
        return [f"Undecided, because there are too few images, {images}; {FEWEST_IMAGES} are the least."]
    sentences = []
    for outcome in OUTCOMES:
        claim = carrier(effects[outcome], outcome, prompts=prompts) if effects else None
        constant = None
        if replacements and not learns_constant:
            constant = stands_for(replacements[outcome], PLAIN, outcome, label)
        if claim is not None:
            sentences.append(claim.sentence)
            if outcome == "accuracy" and not (learns_constant and claim.verdict == "values"):
                sentences += _favours(claim.verdict, constant, prompts)
        if constant is not None and not (constant.verdict == NO_GAIN and claim is not None):
            sentences.append(constant.sentence)
    return list(dict.fromkeys(sentences))


def _favours(carried: str, constant: Claim | None, prompts: bool) -> list[str]:
    """Which of the paper's hypotheses accuracy speaks for, if any: a change of where CLIP looks, or a bias."""
    if carried == "attention":
        return ["This speaks for a change of where CLIP looks, against a bias."]
    if carried == "scale" and prompts:
        return ["This speaks neither for a change of where CLIP looks nor for a bias."]
    if carried != "values":
        return []
    if constant is not None and constant.verdict in (STANDS_FOR, CARRIES_MOST):
        return ["This speaks for a bias, the same for every image, against a change of where CLIP looks."]
    open_end = ": another bias may." if constant is not None and constant.verdict == DOES_NOT else "."
    return [
        "This speaks against a change of where CLIP looks. Whether a bias, the same for every image, keeps the gain is"
        f" undecided{open_end}"
    ]
