"""What the numbers of effects and constants allow to say. Every claim names its outcome and follows from intervals.

Margins were set before any result was seen. An effect carries the gain where its share lies above one half with its
whole interval, and takes part above a quarter. A constant stands for a method where what it keeps and what is lost
without it both lie above `STANDS`, for most of it above `MOST`; it does not where either lies below `MOST`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from clipbias.explain.effects import OUTCOME_NAMES, OUTCOMES, UNITS
from clipbias.explain.rungs import RUNG_NAMES
from clipbias.explain.uncertainty import Estimate, excludes

STANDS, MOST = 0.9, 0.5
HALF, QUARTER = 0.5, 0.25
# An interaction whose interval excludes 0 is named from this share of the gain on.
NOT_SMALL = 0.1
# Percentiles of a bootstrap say little below.
FEWEST_IMAGES = 20

NO_GAIN, UNDECIDED, SHARED = "no gain", "undecided", "shared"
STANDS_FOR, CARRIES_MOST, DOES_NOT = "stands", "most", "not"


@dataclasses.dataclass(frozen=True)
class Claim:
    """What is claimed, as a word for programs, and the sentence that says so."""

    verdict: str
    sentence: str


def amount(number: Estimate, outcome: str) -> str:
    """A change with its unit and interval."""
    unit, digits = UNITS[outcome]
    value, low, high = (round(float(number[name] or 0.0), digits) + 0.0 for name in ("value", "low", "high"))
    return f"{value:+.{digits}f} {unit} ({low:+.{digits}f} to {high:+.{digits}f})"


def percent(number: Estimate) -> str:
    """A share of the gain with its interval, in whole percent."""
    value, low, high = (round(100 * float(number[name] or 0.0)) for name in ("share", "share_low", "share_high"))
    return f"{value} % ({low} to {high})"


def effect_names(prompts: bool) -> dict[str, str]:
    """What each effect is called, for methods with prompts or without."""
    return {
        "attention": "relative attention among input tokens",
        "scale": "the attention that prompts take away from input tokens",
        "values": "what prompts add" if prompts else "what the method adds to tokens",
    }


def no_gain(gain: Estimate, outcome: str) -> Claim | None:
    """That there is nothing to share out, or `None` where the gain's interval lies above 0."""
    if excludes(gain) > 0:
        return None
    return Claim(NO_GAIN, f"There is no sure gain in {OUTCOME_NAMES[outcome]} to share out: {amount(gain, outcome)}.")


def carrier(numbers: Mapping[str, Any], outcome: str, *, prompts: bool = True) -> Claim:
    """Which effect carries the gain in one outcome: its name, "shared", "undecided" or "no gain".

    Args:
      numbers: of this outcome, from `summarize_effects`.
      outcome: its name.
      prompts: whether the method has prompts.
    """
    if nothing := no_gain(numbers["gain"], outcome):
        return nothing
    effects, names, gain = numbers["effects"], effect_names(prompts), f"the gain in {OUTCOME_NAMES[outcome]}"
    shown = {name: f"{names[name]} carries {percent(effects[name])} of {gain}" for name in effects}
    most = [name for name in effects if excludes(effects[name], HALF, of="share") > 0]
    part = [name for name in effects if excludes(effects[name], QUARTER, of="share") > 0]
    if len(most) == 1 and part == most:
        verdict, sentence = most[0], f"{_capital(shown[most[0]])}: more than half."
    elif len(part) > 1:
        parts = " and ".join(f"{names[name]} ({percent(effects[name])})" for name in part)
        verdict, sentence = SHARED, f"Several effects share {gain}: {parts}."
    else:
        largest = max(effects, key=lambda name: effects[name]["share"])
        verdict, sentence = UNDECIDED, f"Undecided, because {shown[largest]}, and no interval lies above one half."
    if together := interacting(numbers):
        listed = ", ".join(f"{name} {percent(numbers['interactions'][name])}" for name in together)
        sentence += f" Effects depend on each other ({listed}), so that these shares are means over their orders."
    return Claim(verdict, sentence)


def interacting(numbers: Mapping[str, Any]) -> list[str]:
    """Interactions that are not small: their interval excludes 0, and they are a tenth of the gain or more."""
    found = numbers["interactions"].items()
    return [name for name, number in found if excludes(number) and abs(number["share"] or 0.0) >= NOT_SMALL]


def stands_for(numbers: Mapping[str, Any], rung: str, outcome: str, label: str) -> Claim:
    """Whether a constant stands for a method in one outcome: "stands", "most", "not", "undecided" or "no gain".

    Args:
      numbers: of this outcome, from `summarize_replacements`.
      rung: the constant's name there.
      outcome: its name.
      label: the method's.
    """
    if nothing := no_gain(numbers["gain"], outcome):
        return nothing
    called, gain = RUNG_NAMES.get(rung, rung), f"the gain in {OUTCOME_NAMES[outcome]}"
    kept = numbers["kept"][rung]
    lost = numbers["lost"].get(rung)
    shown = f"added to the frozen model, {called} keep {percent(kept)} of {gain}"
    if called.startswith(("one", "an ")):
        shown = shown.replace(" keep ", " keeps ")
    if lost is None:
        return Claim(UNDECIDED, f"Undecided for {label}: {shown}, and what is lost without was not measured.")
    shown += f"; subtracted from {label}, {percent(lost)} of it is lost"
    for margin, verdict, words in (
        (STANDS, STANDS_FOR, f"A constant stands for {label}"),
        (MOST, CARRIES_MOST, f"A constant stands for most of {label}"),
    ):
        if all(excludes(number, margin, of="share") > 0 for number in (kept, lost)):
            return Claim(verdict, f"{words}: {shown}. Both intervals lie above {100 * margin:.0f} %.")
    below = [
        name
        for name, number in (("what is kept", kept), ("what is lost", lost))
        if excludes(number, MOST, of="share") < 0
    ]
    if below:
        lies = f"{_capital(' and '.join(below))} {'lie' if len(below) > 1 else 'lies'} below {100 * MOST:.0f} %."
        return Claim(DOES_NOT, f"No constant of this form stands for {label}: {shown}. {lies}")
    open_ends = [
        name
        for name, number in (("what is kept", kept), ("what is lost", lost))
        if not excludes(number, MOST, of="share")
    ]
    reason = f"the interval of {' and that of '.join(open_ends)} includes {100 * MOST:.0f} %"
    return Claim(UNDECIDED, f"Undecided for {label}, because {reason}: {shown}.")


def conclude(
    effects: Mapping[str, Any] | None,
    replacements: Mapping[str, Any] | None,
    *,
    label: str,
    prompts: bool,
    images: int,
    rung: str = "kind",
    learns_constant: bool = False,
) -> list[str]:
    """What was found, sentence by sentence, the headline's outcome first.

    Where accuracy has no sure gain, no hypothesis is favoured, whatever the log-likelihood does.

    Args:
      effects: from `summarize_effects`, or `None` where the causal test was not run.
      replacements: from `summarize_replacements`, likewise.
      label: the method's.
      prompts: whether it has prompts.
      images: how many there are.
      rung: the constant that is judged.
      learns_constant: whether the method is a constant itself, of which nothing is to be judged.
    """
    if images < FEWEST_IMAGES:
        return [f"Undecided, because {images} images are too few; {FEWEST_IMAGES} are the least."]
    said = []
    for outcome in OUTCOMES:
        claim = carrier(effects[outcome], outcome, prompts=prompts) if effects else None
        constant = None
        if replacements and not learns_constant:
            constant = stands_for(replacements[outcome], rung, outcome, label)
        if claim is not None:
            said.append(claim.sentence)
            if outcome == "accuracy" and not (learns_constant and claim.verdict == "values"):
                said += _favours(claim.verdict, constant, prompts)
        if constant is not None and not (constant.verdict == NO_GAIN and claim is not None):
            said.append(constant.sentence)
    return list(dict.fromkeys(said))


def _favours(carried: str, constant: Claim | None, prompts: bool) -> list[str]:
    """The paper's hypothesis that the headline favours, if any."""
    if carried == "attention":
        return ["This favours (a), attention, over (b), a bias."]
    if carried == "values":
        if constant is not None and constant.verdict in (STANDS_FOR, CARRIES_MOST):
            return ["This favours (b), a bias, over (a), attention."]
        if constant is not None and constant.verdict == DOES_NOT:
            return ["This favours neither (a), attention, nor (b), a bias that is the same for every image."]
        return ["This is against (a), attention. Whether (b), a bias, holds is undecided."]
    if carried == "scale" and prompts:
        return ["This favours neither (a), attention among input tokens, nor (b), a bias."]
    return []


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
