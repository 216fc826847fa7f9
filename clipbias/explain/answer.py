"""What a report says first: the answer, its reasons, how it was found, and how sure it is."""

import dataclasses
from collections.abc import Mapping, Sequence

from clipbias.explain.conclusions import HALF, QUARTER
from clipbias.explain.effects import OUTCOME_NAMES
from clipbias.explain.headline import MethodTest, headline, method_tests
from clipbias.explain.methods import summarize_methods
from clipbias.explain.reasons import reasons
from clipbias.explain.results import Answer, MethodResult, ModelFacts, StudyResults
from clipbias.explain.uncertainty import FEWEST_DATASETS, LEVEL, Estimate, mean_over_datasets
from clipbias.explain.verdict import verdicts
from clipbias.explain.wording import amount, by_reason
from clipbias.sentences import counted


def conclude_study(results: StudyResults) -> StudyResults:
    """The results with all that follows from them: methods, verdicts if they are requested, and the answer."""
    results = dataclasses.replace(results, methods=summarize_methods(results))
    if "verdict" in results.sections:
        results = dataclasses.replace(results, verdict=verdicts(results))
    return dataclasses.replace(results, answer=_answer(results))


def _answer(results: StudyResults) -> Answer:
    """The first sentences of a study's report."""
    tests = method_tests(results)
    missing = by_reason((method.label, _why_missing(results, method)) for method in results.methods)
    return Answer(
        headline=headline(tests),
        reasons=reasons(tests, missing),
        approach=approach(results.tuned),
        certainty=certainty(results, tests),
    )


def _why_missing(results: StudyResults, method: MethodResult) -> str | None:
    verdict = results.verdict_on(method.models)
    if verdict is None:
        return "The causal test was not computed; --config.sections=factorial,constants,verdict has it."
    return verdict.missing


def approach(tuned: Sequence[ModelFacts]) -> str:
    """How a study finds its answer, for a reader who has read nothing else."""
    prompts = any(model.has_prompts for model in tuned)
    learned = "prompts, a few learned vectors that join its input" if prompts else "a few learned numbers"
    return (
        f"How it was found: CLIP stays as it is and gets {learned}. Frozen and tuned CLIP run side by side, and each"
        " effect is taken from the tuned run, alone and with the others. Where CLIP looks: which tokens attend to"
        " which. A fixed bias: the same is added for every image."
    )


def certainty(results: StudyResults, tests: Sequence[MethodTest]) -> str:
    """How sure the answer is, and what it says nothing about."""
    counts = dict.fromkeys(test.images for test in tests if test.images)
    images = list(counts) or [results.zero_shot.images]
    tested = " or ".join(counted(count, "image") for count in images)
    several_seeds = any(len(test.facts.models) > 1 for test in tests)
    seeds = " and over seeds" if several_seeds else ""
    other = "other datasets" if several_seeds else "other training runs or datasets"
    return (
        f"How sure: in brackets {100 * LEVEL:.0f} % intervals, over {tested} of the {results.dataset.split} split"
        f"{seeds}. All of it is about accuracy. “Mainly”: surely more than {100 * HALF:.0f} % of the gain alone; “not”:"
        f" surely more than {100 * (1 - QUARTER):.0f} % without it. Nothing here tells of {other}."
    )


def dataset_sentences(conclusions: Mapping[str, str], gains: Mapping[str, Sequence[Estimate]]) -> list[str]:
    """What a method's verdicts on several datasets say together.

    Args:
      conclusions: by dataset.
      gains: by outcome, of the datasets with a causal test.
    """
    sentences = [f"{dataset}: {conclusion}" for dataset, conclusion in conclusions.items()]
    count = len(sentences)
    if count < FEWEST_DATASETS:
        few = f"Nothing follows for other datasets from {counted(count, 'dataset')}; from {FEWEST_DATASETS} on"
        return [*sentences, f"{few}, their mean has an interval."]
    for outcome, of_outcome in gains.items():
        if len(of_outcome) == count:
            mean = amount(mean_over_datasets([gain.value for gain in of_outcome]), outcome)
            sentences.append(f"Over {count} datasets {OUTCOME_NAMES[outcome]} changes by {mean} on average.")
    return sentences
