"""What a study says of each method: of its only adapter, or of all its seeds together."""

from collections.abc import Sequence

import numpy as np

from clipbias.constants import ZERO_SHOT
from clipbias.explain.replacement_names import CONSTANT_METHODS
from clipbias.explain.results import MethodResult, ModelFacts, StudyResults, same_but_for_seed
from clipbias.explain.uncertainty import Estimate, cross, estimate, resample

# Points by which the accuracy that training starts from differs from zero-shot's.
_OTHER_START = 0.05


def summarize_methods(results: StudyResults) -> tuple[MethodResult, ...]:
    """One per method, in the order in which the study names them."""
    return tuple(_summarize(results, models) for models in same_but_for_seed(results.tuned))


def method_label(models: Sequence[ModelFacts]) -> str:
    """The label of a method's only adapter, or its name with the number of seeds."""
    return models[0].label if len(models) == 1 else f"{models[0].name}, {len(models)} seeds"


def _summarize(results: StudyResults, models: Sequence[ModelFacts]) -> MethodResult:
    first = models[0]
    keys = tuple(model.key for model in models)
    return MethodResult(
        label=method_label(models),
        name=first.name if len(models) > 1 else first.label,
        method=first.method,
        models=keys,
        prompts=first.has_prompts,
        learns_constant=first.method in CONSTANT_METHODS,
        accuracy=float(np.mean([model.accuracy for model in models])),
        standard_error=float(np.mean([model.standard_error for model in models])),
        gain=_gain(results, keys),
        start=_other_start(results, keys),
    )


def _gain(results: StudyResults, keys: Sequence[str]) -> Estimate | None:
    """In accuracy, over the frozen model with the text that training starts from; without a test over zero-shot."""
    effects = results.effects(keys)
    if effects is not None:
        return effects.towers["both"].accuracy.gain
    replacements = results.replacements(keys)
    if replacements is not None:
        return replacements.accuracy.gain
    return _over_zero_shot(results, keys)


def _over_zero_shot(results: StudyResults, keys: Sequence[str]) -> Estimate | None:
    """The change of accuracy from zero-shot in points, of a method without a causal test."""
    predictions = results.predictions
    models = [predictions.zero_shot, *(predictions.models[key] for key in keys)]
    read = np.logical_and.reduce([predicted >= 0 for predicted in models])
    if not read.any():
        return None
    right = 1.0 * predictions.right(ZERO_SHOT)
    changes = [100.0 * (predictions.right(key) - right)[read] for key in keys]
    means = [of_seed.mean(keepdims=True) for of_seed in changes]
    draws = cross(means, [resample(of_seed[:, None]) for of_seed in changes])[:, 0]
    return estimate(float(np.mean(means)), draws)


def _other_start(results: StudyResults, keys: Sequence[str]) -> float | None:
    """The accuracy that training starts from, where the same images have another one under zero-shot."""
    effects = results.effects(keys)
    test = results.causal_test(keys[0])
    if effects is None or test is None:
        return None
    start = effects.towers["both"].accuracy.reference.value
    zero_shot = 100 * results.predictions.right(ZERO_SHOT)[test.outcomes.images].mean()
    return start if abs(start - zero_shot) > _OTHER_START else None
