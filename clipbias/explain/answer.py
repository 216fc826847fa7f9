"""What a report says first: the question, and the answer, which is the verdict's; its headline is accuracy."""

import dataclasses
from collections.abc import Mapping, Sequence

from clipbias.explain.conclusions import CARRIES_MOST, DOES_NOT, MEAN, NO_GAIN, SHARED, STANDS_FOR, UNDECIDED
from clipbias.explain.effects import OUTCOME_NAMES, OUTCOMES
from clipbias.explain.methods import summarize_methods
from clipbias.explain.results import Answer, MethodResult, ModelFacts, StudyResults, Verdict
from clipbias.explain.uncertainty import FEWEST_DATASETS, LEVEL, Estimate, excludes, mean_over_datasets
from clipbias.explain.verdict import verdicts
from clipbias.explain.wording import amount, capitalize, counted, join_words

_FEW = 3  # methods whose conclusions are given in full
_CARRIED = {
    "attention": "attention among input tokens carries more than half of the gain in accuracy with {}",
    "scale": "attention that prompts take away carries more than half of the gain in accuracy with {}",
    "values": "what is added to tokens carries more than half of the gain in accuracy with {}",
    SHARED: "several effects share the gain in accuracy with {}",
    UNDECIDED: "which effect carries the gain in accuracy is undecided with {}",
    NO_GAIN: "there is no sure gain in accuracy with {}",
}
_CONSTANT = {
    STANDS_FOR: "stands for {}",
    CARRIES_MOST: "stands for most of {}",
    DOES_NOT: "does not stand for {}, for which another constant may",
    UNDECIDED: "may stand for {} or not, which is undecided",
}


def conclude_study(results: StudyResults) -> StudyResults:
    """The results with all that follows from them: methods, verdicts if they are requested, and the answer."""
    results = dataclasses.replace(results, methods=summarize_methods(results))
    if "verdict" in results.sections:
        results = dataclasses.replace(results, verdict=verdicts(results))
    return dataclasses.replace(results, answer=_answer(results))


def _answer(results: StudyResults) -> Answer:
    """The first sentences of a study's report."""
    return Answer(
        question=question(results.tuned),
        sentences=answer_sentences(results.zero_shot, results.methods, results.verdict or ()),
        certainty=certainty(results),
    )


def question(tuned: Sequence[ModelFacts]) -> str:
    """What the study asks, for a reader who has read nothing else."""
    prompts = any(model.has_prompts for model in tuned)
    learned = "prompts, a few vectors that are learned and join its input" if prompts else "a few learned numbers"
    return (
        f"CLIP stays as it is and gets {learned}. Why does it then recognise more images? Two answers are possible:"
        " (a) they change where CLIP looks, that is, which tokens attend to which; (b) they add a bias to its tokens,"
        " the same for every image. To decide, frozen and tuned CLIP run side by side, and one effect after the other"
        " is exchanged between them. The mean of what the tuned blocks add also takes the place of what was learned."
    )


def answer_sentences(
    zero_shot: ModelFacts, methods: Sequence[MethodResult], verdicts: Sequence[Verdict]
) -> tuple[str, ...]:
    """The results: of few methods each one's conclusion, of many the methods by their verdicts."""
    sentences = [f"Zero-shot CLIP gets {zero_shot.accuracy:.1f} % of the images right; {_gained(methods)}."]
    by_models = {each.models: each for each in verdicts}
    tested = {method.label: by_models[method.models] for method in methods if _is_tested(by_models.get(method.models))}
    if len(tested) <= _FEW:
        return (*sentences, *(f"{label}: {verdict.conclusion}" for label, verdict in tested.items()))
    names = {method.label: method.name for method in methods}
    carried = {names[label]: each.carrier.accuracy for label, each in tested.items() if each.carrier}
    constant = {names[label]: each.constant.accuracy for label, each in tested.items() if each.constant}
    if text := _by_verdict(carried, _CARRIED):
        sentences.append(f"{capitalize(text)}.")
    if text := _by_verdict(constant, _CONSTANT):
        sentences.append(f"Judged by accuracy, {MEAN}, as two vectors per layer, {text}.")
    return tuple(sentences)


def _is_tested(verdict: Verdict | None) -> bool:
    return verdict is not None and (verdict.carrier is not None or verdict.constant is not None)


def _by_verdict(verdicts: Mapping[str, str], words: Mapping[str, str]) -> str:
    """What is said of the methods of each verdict.

    Args:
      verdicts: by method.
      words: by verdict.
    """
    parts = []
    for verdict, text in words.items():
        methods = [method for method, each in verdicts.items() if each == verdict]
        if methods:
            parts.append(text.format(join_words(methods)))
    return "; ".join(parts)


def _gained(methods: Sequence[MethodResult]) -> str:
    gains = {method.label: method.gain for method in methods if method.gain is not None}
    if not gains:
        return "no tuned model was tested"
    if len(gains) <= _FEW:
        changes = [f"{amount(gain, OUTCOMES[0])} with {label}" for label, gain in gains.items()]
        return f"tuning changes that by {join_words(changes)}"
    sure = sum(excludes(gain) > 0 for gain in gains.values())
    best = max(gains, key=lambda label: gains[label].value)
    return f"{sure} of {len(gains)} methods surely gain, most of all {best}: {amount(gains[best], OUTCOMES[0])}"


def certainty(results: StudyResults) -> str:
    """How sure the answer is, and what it says nothing about."""
    verdicts = [results.verdict_on(method.models) for method in results.methods]
    counts = dict.fromkeys(each.images for each in verdicts if each is not None and each.images)
    images = list(counts) or [results.zero_shot.images]
    tested = " or ".join(counted(count, "image") for count in images)
    several_seeds = any(len(method.models) > 1 for method in results.methods)
    seeds = " and over seeds" if several_seeds else ""
    other = "other datasets" if several_seeds else "other training runs or datasets"
    return (
        f"How sure: in brackets {100 * LEVEL:.0f} % intervals, over {tested} of the {results.dataset.split} split"
        f"{seeds}. “More than half” needs a whole interval above 50 %; “stands for”, kept and lost above 90 %, “most”"
        f" above 50 %. Nothing here tells of {other}."
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
