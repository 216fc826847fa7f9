"""The answer of a study in one sentence, and its reasons, each with its numbers. All of it is about accuracy.

The sentence follows from verdicts (`conclusions`). *Beats* is a gain whose interval lies above 0, *mainly* more than
half of it, *not* less than a quarter, each by the whole interval of the effect's share.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from clipbias.explain.conclusions import (
    CARRIES_MOST,
    DOES_NOT,
    FEWEST_IMAGES,
    HALF,
    NO_GAIN,
    SHARED,
    STANDS_FOR,
    UNDECIDED,
    effects_above_quarter,
    effects_below_quarter,
)
from clipbias.explain.effects import OUTCOMES
from clipbias.explain.replacement_names import PLAIN
from clipbias.explain.results import Effects, MethodResult, Reason, Replacements, StudyResults, Verdict
from clipbias.explain.uncertainty import Estimate, excludes
from clipbias.explain.wording import NOTHING_INSIDE, amount, percent
from clipbias.sentences import capitalize, join_words

OUTCOME = OUTCOMES[0]
# So many methods have their numbers one by one.
MOST_NAMED = 3
ADDED = "What is added to CLIP's tokens"
LOOKS = "Where CLIP looks"
BIAS = "A fixed bias in its place"
# Verdicts besides those of `conclusions`.
FEW_IMAGES = "few images"
OUTSIDE = "outside"
UNTESTED = "untested"

_SO = {
    STANDS_FOR: "So a fixed bias does what the method does",
    CARRIES_MOST: "So a fixed bias does most of what the method does",
    DOES_NOT: "So this bias does not do what the method does; whether another one does is open",
    UNDECIDED: "So whether this bias does what the method does is undecided",
}
_DOES = {
    STANDS_FOR: "does what {} does",
    CARRIES_MOST: "does most of what {} does",
    DOES_NOT: "does not do what {} does, where another bias may",
    UNDECIDED: "may do what {} does or not, which is undecided",
    NO_GAIN: "has nothing to do with {}",
}
_ADVICE = "Train at another learning rate or longer; with more images a smaller gain can be seen."


@dataclasses.dataclass(frozen=True)
class MethodTest:
    """What the answer takes of a method, in accuracy.

    Attributes:
      verdict: an effect, or a name above.
      effects: of the causal test.
      replaced: of the test of constants; `None` of a method that learns a constant.
      constant: the verdict on the mean as a constant.
      images: how many were tested.
    """

    facts: MethodResult
    verdict: str
    effects: Effects | None
    replaced: Replacements | None
    constant: str | None
    images: int

    @property
    def loses(self) -> bool:
        return excludes(self.facts.gain) < 0

    @property
    def sharing_effects(self) -> tuple[str, ...]:
        """The effects that share the gain, where that is the verdict."""
        return tuple(effects_above_quarter(self.effects)) if self.effects and self.verdict == SHARED else ()

    @property
    def excluded_effect(self) -> str | None:
        """Of attention and values the other one than the verdict, where it surely takes no part."""
        rival = {"values": "attention", "attention": "values"}.get(self.verdict)
        return rival if self.effects and rival in effects_below_quarter(self.effects) else None


def method_tests(results: StudyResults) -> list[MethodTest]:
    """One per method, in the study's order."""
    tests = []
    for facts in results.methods:
        verdict = results.verdict_on(facts.models)
        summary = results.effects(facts.models)
        replaced = None if facts.learns_constant else results.replacements(facts.models)
        tests.append(
            MethodTest(
                facts=facts,
                verdict=_verdict(facts, verdict),
                effects=None if summary is None else summary.towers["both"].accuracy,
                replaced=None if replaced is None else replaced.accuracy,
                constant=None if verdict is None or verdict.constant is None else verdict.constant.accuracy,
                images=0 if verdict is None else verdict.images,
            )
        )
    return tests


def _verdict(facts: MethodResult, verdict: Verdict | None) -> str:
    if verdict is not None and 0 < verdict.images < FEWEST_IMAGES:
        return FEW_IMAGES
    if facts.gain is None:
        return UNTESTED
    if excludes(facts.gain) <= 0:
        return NO_GAIN
    if verdict is None or verdict.carrier is None:
        return OUTSIDE if verdict is not None and verdict.missing == NOTHING_INSIDE else UNTESTED
    return verdict.carrier.accuracy


def headline(tests: Sequence[MethodTest]) -> str:
    """The answer in one sentence, methods of the same verdict together."""
    if not tests:
        return "There is no tuned model here to explain."
    alike: dict[tuple[object, ...], list[MethodTest]] = {}
    for test in tests:
        alike.setdefault((test.verdict, test.sharing_effects, test.loses), []).append(test)
    clauses = [_clause(group, of=len(tests)) for group in alike.values()]
    return f"{capitalize('; '.join(clauses))}."


def _clause(group: Sequence[MethodTest], *, of: int) -> str:
    """What is said of methods of the same verdict, of so many methods."""
    first = group[0]
    single = len(group) == 1
    names = join_words([_named(test, of=of) for test in group])
    beat = f"{names} {'beats' if single else 'beat'} CLIP"
    classifiers = "its classifier" if single else "their classifiers"
    how = {
        "attention": "by changing where CLIP looks",
        "scale": "because prompts draw attention away from the image and the text",
        "values": f"through what {'it adds' if single else 'they add'} to CLIP's tokens",
    }
    if first.verdict in how:
        excluded = first.excluded_effect if len({test.excluded_effect for test in group}) == 1 else None
        return f"{beat} mainly {how[first.verdict]}" + (f", not {how[excluded]}" if excluded else "")
    shared = join_words([how[name] for name in first.sharing_effects])
    texts = {
        SHARED: f"{beat} {shared}, each surely more than a quarter of the gain",
        UNDECIDED: f"{beat}; through which effect is undecided",
        NO_GAIN: f"{names} {'does' if single else 'do'} not surely beat CLIP, so there is no gain to explain",
        FEW_IMAGES: f"there are too few images, {first.images}, to explain {names}",
        OUTSIDE: f"{beat} by {classifiers} alone, and nothing changes inside CLIP",
        UNTESTED: f"why {names} {'differs' if single else 'differ'} from CLIP was not tested",
    }
    if first.verdict == NO_GAIN and first.loses:
        return f"{names} {'is' if single else 'are'} worse than CLIP, so there is no gain to explain"
    return texts[first.verdict]


def _named(test: MethodTest, *, of: int) -> str:
    """A method by name, with its gain where there are few of them, and with the gain's interval where it is alone."""
    gain = test.facts.gain
    if gain is None or of > MOST_NAMED:
        return test.facts.name if of > MOST_NAMED else test.facts.label
    text = amount(gain if of == 1 else Estimate(gain.value), OUTCOME)
    return f"{test.facts.label} ({text.replace(' (', ', ').removesuffix(')')})"


def reasons(tests: Sequence[MethodTest], missing: Sequence[str] = ()) -> tuple[Reason, ...]:
    """The reasons for the answer, each with its numbers: what is added, where CLIP looks, what a fixed bias does.

    Args:
      tests: of all methods.
      missing: why methods were not taken apart.
    """
    apart = [test for test in tests if test.effects is not None and test.verdict not in (NO_GAIN, FEW_IMAGES)]
    if not apart:
        return _reasons_without_a_test(tests, missing)
    if len(apart) > MOST_NAMED:
        return _reasons_of_many(apart)
    drawn = _of_effect(apart, "scale")
    looks = f"{_of_effect(apart, 'attention')}."
    if drawn:
        looks += f" That prompts draw attention to themselves: {drawn}."
    return (
        Reason(ADDED, f"{_of_effect(apart, 'values')}."),
        Reason(LOOKS, looks),
        Reason(BIAS, " ".join(_of_bias(test) for test in apart)),
    )


def _of_effect(tests: Sequence[MethodTest], effect: str) -> str:
    """The shares of the gain that an effect carries, method by method; "" where no method has it."""
    shares = [
        f"{percent(test.effects.effects[effect].share)} of the gain with {test.facts.label}"
        for test in tests
        if test.effects is not None and effect in test.effects.effects
    ]
    return ", ".join([*shares[:1], *(share.replace(" of the gain", "") for share in shares[1:])])


def _of_bias(test: MethodTest) -> str:
    label = test.facts.label
    if test.facts.learns_constant:
        return f"{label} is a fixed bias itself."
    if test.replaced is None or test.constant is None:
        return f"It was not measured with {label}."
    keeps = f"The mean of what {label} adds keeps {percent(test.replaced.kept[PLAIN].share)} of its gain"
    if PLAIN not in test.replaced.lost:
        return f"{keeps}; what is lost without it was not measured."
    return f"{keeps}; without it {percent(test.replaced.lost[PLAIN].share)} is lost. {_SO[test.constant]}."


def _reasons_of_many(tests: Sequence[MethodTest]) -> tuple[Reason, ...]:
    """The same of more methods than can be read one by one: the range of their shares, and methods by verdict."""
    reasons = []
    for about, effect in ((ADDED, "values"), (LOOKS, "attention")):
        shares = {test.facts.name: _share(test.effects, effect) for test in tests}
        above = [name for name, share in shares.items() if excludes(share, HALF) > 0]
        surely = f"surely more than half with {join_words(above)}" if above else "with no method surely more than half"
        reasons.append(Reason(about, f"{_range(shares.values())} of the gain; {surely}."))
    judged = [test for test in tests if test.replaced is not None and test.constant is not None]
    if not judged:
        return (*reasons, Reason(BIAS, "It was not measured."))
    share = _range(test.replaced.kept[PLAIN].share for test in judged if test.replaced is not None)
    alike = {verdict: [test.facts.name for test in judged if test.constant == verdict] for verdict in _DOES}
    does = "; ".join(_DOES[verdict].format(join_words(names)) for verdict, names in alike.items() if names)
    return (*reasons, Reason(BIAS, f"The mean of what a method adds keeps {share} of its gain; it {does}."))


def _share(effects: Effects | None, effect: str) -> Estimate | None:
    return effects.effects[effect].share if effects is not None and effect in effects.effects else None


def _range(shares: Iterable[Estimate | None]) -> str:
    values = [100 * share.value for share in shares if share is not None]
    return f"{min(values):.0f} to {max(values):.0f} %" if values else "an unknown part"


def _reasons_without_a_test(tests: Sequence[MethodTest], missing: Sequence[str]) -> tuple[Reason, ...]:
    """What there is to say where no gain was taken apart: the changes of accuracy, why, and what to do."""
    gains = [(test.facts.label, test.facts.gain) for test in tests[:MOST_NAMED]]
    changes = [f"{amount(gain, OUTCOME)} with {label}" for label, gain in gains if gain is not None]
    reasons = [Reason("Change of accuracy", f"{join_words(changes)}.")] if changes else []
    reasons += [Reason("Not taken apart", reason) for reason in missing]
    if any(test.verdict == NO_GAIN for test in tests):
        reasons.append(Reason("What to do", _ADVICE))
    return tuple(reasons)
