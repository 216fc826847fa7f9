"""What a study's numbers allow to say of each tuned model, and of all seeds of a method together.

The paper's hypotheses (Sec. 4.2.1): (a) prompts change which input tokens attend to which; (b) prompts add a bias, the
same for every image. Accuracy comes first; the calibrated log-likelihood stands beside it. A sentence names its
outcome, and takes a side only where a whole 95 % interval lies on one side of the margin that it names (`conclusions`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from clipbias.explain.conclusions import FEWEST_IMAGES, alone, constant_part, mean_has, through
from clipbias.explain.methods import method_label
from clipbias.explain.power import Power, power, spread
from clipbias.explain.replacement_names import CONSTANT_METHODS
from clipbias.explain.results import (
    ByOutcome,
    CausalTest,
    Effects,
    EffectSummary,
    Levels,
    Missing,
    ModelFacts,
    StudyResults,
    Verdict,
    same_but_for_seed,
)
from clipbias.explain.wording import amount, percent
from clipbias.sentences import counted


def verdicts(results: StudyResults) -> tuple[Verdict, ...]:
    """One for each tuned model, and one for each method of which there are several seeds."""
    single = [[model] for model in results.tuned]
    together = [models for models in same_but_for_seed(results.tuned) if len(models) > 1]
    return tuple(verdict(results, models) for models in single + together)


def verdict(results: StudyResults, models: Sequence[ModelFacts]) -> Verdict:
    """The verdict on one tuned model, or on several that differ in their seed alone."""
    first = models[0]
    keys = tuple(model.key for model in models)
    images = _images(results, first.key)
    summary = results.effects(keys)
    missing = None if summary else _why_no_test(results, first.key)
    effects = None if summary is None else summary.towers["both"]
    levels = {} if summary is None or first.method in CONSTANT_METHODS else summary.levels
    sentences = [missing or ""] if effects is None else _conclusions(effects, levels, images)
    conclusion = " ".join(sentences[: 1 + len(levels)])
    replaced = results.replacements(keys)
    if replaced is not None and replaced.accuracy.outside and first.method not in CONSTANT_METHODS:
        outside = amount(replaced.accuracy.outside, "accuracy")
        sentences.append(f"Its own head changes accuracy by {outside} besides.")
    if summary is not None:
        sentences += _controls(results, keys, summary)
        sentences.append(_power(results, keys).sentence())
    added = next(iter(levels.values()), None)
    return Verdict(
        label=method_label(models),
        models=keys,
        missing=missing,
        images=images,
        through=None if effects is None else ByOutcome(through(effects.accuracy), through(effects.calibrated)),
        mean=None if added is None else ByOutcome(_mean_has(added.accuracy), _mean_has(added.calibrated)),
        sentences=tuple(sentences),
        conclusion=conclusion,
    )


def _mean_has(levels: Levels) -> str:
    return mean_has(levels.steps["constant"], levels.all)


def _conclusions(effects: ByOutcome[Effects], levels: Mapping[str, ByOutcome[Levels]], images: int) -> list[str]:
    """What the gain in accuracy comes through, what constants give in each tower, and the same of the other outcome."""
    if images < FEWEST_IMAGES:
        return [f"Undecided, because there are too few images, {images}; {FEWEST_IMAGES} are the least."]
    constants = [constant_part(of_tower, tower) for tower, of_tower in levels.items()]
    first, second = (alone(of_outcome, outcome) for outcome, of_outcome in effects.items())
    return [first, *constants, second]


def _why_no_test(results: StudyResults, key: str) -> str:
    test = results.factorial.models.get(key) if results.factorial else None
    return test.reason if isinstance(test, Missing) else "The causal test was not run."


def _images(results: StudyResults, key: str) -> int:
    """How many images a model was tested on."""
    test = results.causal_test(key) or results.constant_test(key)
    return 0 if test is None else len(test.outcomes.images)


def _controls(results: StudyResults, keys: Sequence[str], summary: EffectSummary) -> list[str]:
    """What a temperature alone gives, and of a single model images that both models get right, and random prompts."""
    sentences = []
    if summary.temperature_alone.share is not None:
        sentences.append(
            "A temperature alone, which moves no decision, gives the frozen model"
            f" {percent(summary.temperature_alone.share)} of the gain in raw log-likelihood."
        )
    test = results.causal_test(keys[0])
    if len(keys) > 1 or test is None:
        return sentences
    if test.both_right is not None:
        gain = test.both_right.summary.towers["both"].calibrated.gain
        sentences.append(
            f"Over {counted(test.both_right.images, 'image')} that both models get right, calibrated log-likelihood"
            f" changes by {amount(gain, 'calibrated')}."
        )
    if test.random is not None:
        gain = test.random.summary.towers["both"].accuracy.gain
        sentences.append(f"Random prompts of the trained ones' norms change accuracy by {amount(gain, 'accuracy')}.")
    return sentences


def _power(results: StudyResults, keys: Sequence[str]) -> Power:
    """Which difference in accuracy between the tuned and the frozen model could have been seen."""
    differences = np.stack([_differences(test) for key in keys if (test := results.causal_test(key)) is not None])
    return power(spread(differences), differences.shape[1], len(keys))


def _differences(test: CausalTest) -> np.ndarray:
    """What tuning changes of each image's accuracy in both towers, in points."""
    correct = np.asarray(test.outcomes.correct, np.float64)[:, 0]
    return 100 * (correct[:, 2 ** len(test.effects) - 1] - correct[:, 0])
