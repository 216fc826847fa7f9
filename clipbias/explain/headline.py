"""The answer of a study in one sentence, about accuracy.

The sentence follows from what attention and tokens give alone. *Beats* is a gain whose interval lies above 0; *mainly*
is more than half of it alone, and *not* that more than three quarters are left without it, each by a whole interval.
"""

import dataclasses
from collections.abc import Sequence

from clipbias.explain.conclusions import (
    ATTENTION,
    EITHER,
    FEWEST_IMAGES,
    NO_GAIN,
    QUARTER,
    TOGETHER,
    TOKENS,
    UNDECIDED,
)
from clipbias.explain.effects import OUTCOMES
from clipbias.explain.replacement import plain_form
from clipbias.explain.results import Comparison, Effects, Levels, MethodResult, Replacements, StudyResults, Verdict
from clipbias.explain.uncertainty import Estimate, excludes
from clipbias.explain.wording import NOTHING_INSIDE, amount
from clipbias.sentences import capitalize, join_words

OUTCOME = OUTCOMES[0]
# So many methods have their numbers one by one.
MOST_NAMED = 3
# Verdicts besides those of `through`.
FEW_IMAGES = "few images"
OUTSIDE = "outside"
UNTESTED = "untested"


@dataclasses.dataclass(frozen=True)
class MethodTest:
    """What the answer takes of a method, in accuracy.

    Attributes:
      verdict: what the gain comes through (`conclusions.through`), or a name above.
      effects: of the causal test.
      replaced: of the test of constants; `None` of a method that learns a constant.
      images: how many were tested.
      added: a tower, and the levels of what is added there; `None` of a method that learns a constant.
      fitted: two vectors per layer, or the first form, fitted to the predictions of its models.
    """

    facts: MethodResult
    verdict: str
    effects: Effects | None
    replaced: Replacements | None
    images: int
    added: tuple[str, Levels] | None = None
    fitted: Comparison | None = None

    @property
    def loses(self) -> bool:
        return excludes(self.facts.gain) < 0

    @property
    def unneeded(self) -> bool:
        """Whether more than three quarters of the gain are surely left without the rival of the verdict."""
        if self.effects is None or self.verdict not in (ATTENTION, TOKENS):
            return False
        alone = self.effects.attention_alone if self.verdict == ATTENTION else self.effects.tokens_alone
        return excludes(alone.share, 1 - QUARTER) > 0


def method_tests(results: StudyResults) -> list[MethodTest]:
    """One per method, in the study's order."""
    tests = []
    methods = results.replacement.methods if results.replacement else ()
    forms = {method.models[0]: plain_form(method.rows) for method in methods}
    for facts in results.methods:
        verdict = results.verdict_on(facts.models)
        summary = results.effects(facts.models)
        effects = None if summary is None else summary.towers["both"].accuracy
        replaced = None if facts.learns_constant else results.replacements(facts.models)
        added = None if facts.learns_constant or summary is None else summary.added
        tests.append(
            MethodTest(
                facts=facts,
                verdict=_verdict(facts, verdict),
                effects=effects,
                replaced=None if replaced is None else replaced.accuracy,
                images=0 if verdict is None else verdict.images,
                added=None if added is None else (added[0], added[1].accuracy),
                fitted=next((forms[key] for key in facts.models if key in forms), None),
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
    if verdict is None or verdict.through is None:
        return OUTSIDE if verdict is not None and verdict.missing == NOTHING_INSIDE else UNTESTED
    return verdict.through.accuracy


def headline(tests: Sequence[MethodTest]) -> str:
    """The answer in one sentence, methods of the same verdict together."""
    if not tests:
        return "There is no tuned model here to explain."
    alike: dict[tuple[object, ...], list[MethodTest]] = {}
    for test in tests:
        alike.setdefault((test.verdict, test.loses), []).append(test)
    clauses = [_clause(group, of=len(tests)) for group in alike.values()]
    return f"{capitalize('; '.join(clauses))}."


def _clause(group: Sequence[MethodTest], *, of: int) -> str:
    """What is said of methods of the same verdict, of so many methods."""
    first = group[0]
    single = len(group) == 1
    names = join_words([_named(test, of=of) for test in group])
    beat = f"{names} {'beats' if single else 'beat'} CLIP"
    classifiers = "its classifier" if single else "their classifiers"
    adds = f"what {'it adds' if single else 'they add'} to CLIP's tokens"
    attention, tokens = "by changing where CLIP looks", f"through {adds}"
    if first.verdict in (ATTENTION, TOKENS):
        mainly, rival = (attention, tokens) if first.verdict == ATTENTION else (tokens, attention)
        return f"{beat} mainly {mainly}" + (f", not {rival}" if all(test.unneeded for test in group) else "")
    texts = {
        EITHER: f"{beat} {attention} and {tokens}, each of which alone gives more than half of the gain",
        TOGETHER: f"{beat} {attention} and {tokens}, neither of which alone gives half of the gain",
        UNDECIDED: f"{beat}, undecided whether {attention} or {tokens}",
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
