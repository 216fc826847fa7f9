"""The reasons for a study's answer, each with its numbers. All of it is about accuracy.

They say what one part does alone and what is left without it, whether the same is added for every image, and what a
constant does in a method's place. Shares of effects, which are means over orders of adding them, stand in the table
below.
"""

from collections.abc import Callable, Iterable, Sequence

from clipbias.explain.conclusions import HALF, LEVEL_WORDS, NO_GAIN
from clipbias.explain.headline import FEW_IMAGES, MOST_NAMED, OUTCOME, MethodTest
from clipbias.explain.replacement_names import PLAIN
from clipbias.explain.results import Reason
from clipbias.explain.uncertainty import Estimate, excludes
from clipbias.explain.wording import amount, change, in_points, percent
from clipbias.sentences import join_words

LOOKS = "Where CLIP looks"
ADDED = "What is added to CLIP's tokens"
BIAS = "A fixed bias in its place"

_ADVICE = "Train at another learning rate or longer; with more images a smaller gain can be seen."

Share = Callable[[MethodTest], Estimate | None]


def reasons(tests: Sequence[MethodTest], missing: Sequence[str] = ()) -> tuple[Reason, ...]:
    """The reasons for the answer, each with its numbers: where CLIP looks, what is added, what a fixed bias does.

    Args:
      tests: of all methods.
      missing: why methods were not taken apart.
    """
    apart = [test for test in tests if test.effects is not None and test.verdict not in (NO_GAIN, FEW_IMAGES)]
    if not apart:
        return _reasons_without_a_test(tests, missing)
    few = len(apart) <= MOST_NAMED
    shares = _one_by_one if few else _in_ranges
    looks = (
        f"With CLIP's attention frozen, what is added to tokens has {shares(apart, _tokens_alone, ' of the gain')}."
        f" The new attention alone has {shares(apart, _attention_alone, '')}."
    )
    added = _of_levels(apart, shares)
    bias = Reason(BIAS, (" ".join(map(_of_bias, apart)) if few else _of_many_biases(apart)) + _other_constants(apart))
    return (Reason(LOOKS, looks), *([Reason(ADDED, added)] if added else []), bias)


def _tokens_alone(test: MethodTest) -> Estimate | None:
    return None if test.effects is None else test.effects.tokens_alone.share


def _attention_alone(test: MethodTest) -> Estimate | None:
    return None if test.effects is None else test.effects.attention_alone.share


def _mean_added(test: MethodTest) -> Estimate | None:
    return None if test.added is None else test.added[1].steps["constant"].share


def _best_added(test: MethodTest) -> Estimate | None:
    return None if test.added is None or test.added[1].fitted is None else test.added[1].fitted.share


def _of_levels(apart: Sequence[MethodTest], shares: Callable[[Sequence[MethodTest], Share, str], str]) -> str:
    """Whether the same is added for every image; "" where that was not measured."""
    sentences = []
    for tower, (tokens, over, _) in LEVEL_WORDS.items():
        tests = [test for test in apart if test.added is not None and test.added[0] == tower and _mean_added(test)]
        if tests:
            all_of_it = f" of all that is added to {tokens}"
            sentences.append(f"The mean over {over} is worth {shares(tests, _mean_added, all_of_it)}.")
        if fitted := [test for test in tests if _best_added(test)]:
            sentences.append(f"The best constant is worth {shares(fitted, _best_added, '')}.")
    return " ".join(sentences)


def _one_by_one(tests: Sequence[MethodTest], share: Share, of: str) -> str:
    """Shares method by method; what they are of is said once."""
    return ", ".join(
        f"{percent(share(test))}{'' if place else of} with {test.facts.label}" for place, test in enumerate(tests)
    )


def _in_ranges(tests: Sequence[MethodTest], share: Share, of: str) -> str:
    """The range of shares of more methods than can be read one by one."""
    above = [test.facts.name for test in tests if excludes(share(test), HALF) > 0]
    surely = f"surely more than half with {join_words(above)}" if above else "with no method surely more than half"
    return f"{_range(share(test) for test in tests)}{of}; {surely}"


def _range(shares: Iterable[Estimate | None]) -> str:
    values = [100 * share.value for share in shares if share is not None]
    return f"{min(values):.0f} to {max(values):.0f} %" if values else "an unknown part"


def _of_bias(test: MethodTest) -> str:
    label = test.facts.label
    if test.facts.learns_constant:
        return f"{label} is a fixed bias itself."
    fitted = _of_fit(test)
    if test.replaced is None:
        return fitted or f"It was not measured with {label}."
    mean = f"The mean of what {label} adds keeps {percent(test.replaced.kept[PLAIN].share)} of its gain"
    if PLAIN in test.replaced.lost and not fitted:
        mean += f"; without it {percent(test.replaced.lost[PLAIN].share)} is lost"
    return f"{fitted} {mean}.".lstrip()


def _other_constants(tests: Sequence[MethodTest]) -> str:
    """That the mean is one constant of many, where no other one was fitted."""
    means = any(test.replaced is not None for test in tests)
    return " Another constant than the mean may keep more." if means and not any(test.fitted for test in tests) else ""


def _of_fit(test: MethodTest) -> str:
    """What a form does that was fitted to the method's predictions; "" without one."""
    if test.fitted is None or test.fitted.difference is None:
        return ""
    moved = test.fitted.moved
    same = "" if moved is None else f", and {percent(moved)} of the moved decisions are the same"
    return (
        f"With {test.fitted.student.words} in the place of {test.facts.label}, fitted to its predictions, accuracy"
        f" changes by {amount(in_points(test.fitted.difference), OUTCOME)}{same}."
    )


def _of_many_biases(tests: Sequence[MethodTest]) -> str:
    sentences = []
    if fitted := [test.fitted for test in tests if test.fitted is not None]:
        changes = sorted(100 * form.difference.value for form in fitted if form.difference is not None)
        least, most = (change(Estimate(end), OUTCOME) for end in (changes[0], changes[-1]))
        sentences.append(
            f"With {fitted[0].student.words} in a method's place, fitted to its predictions, accuracy changes by"
            f" {least} to {most} points."
        )
    means = [test.replaced.kept[PLAIN].share for test in tests if test.replaced is not None]
    if means:
        sentences.append(f"The mean of what a method adds keeps {_range(means)} of its gain.")
    return " ".join(sentences) or "It was not measured."


def _reasons_without_a_test(tests: Sequence[MethodTest], missing: Sequence[str]) -> tuple[Reason, ...]:
    """What there is to say where no gain was taken apart: changes of accuracy, fitted forms, why, and what to do."""
    gains = [(test.facts.label, test.facts.gain) for test in tests[:MOST_NAMED]]
    changes = [f"{amount(gain, OUTCOME)} with {label}" for label, gain in gains if gain is not None]
    found = [Reason("Change of accuracy", f"{join_words(changes)}.")] if changes else []
    if fitted := " ".join(filter(None, map(_of_fit, tests[:MOST_NAMED]))):
        found.append(Reason(BIAS, fitted))
    found += [Reason("Not taken apart", reason) for reason in missing]
    if any(test.verdict == NO_GAIN for test in tests):
        found.append(Reason("What to do", _ADVICE))
    return tuple(found)
