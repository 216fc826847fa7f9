"""The section of a study about Eq. 12 and Fig. 1: what prompts add to attention's output, and how constant that is."""

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import TextTokens
from clipbias.clip.tower import Observe
from clipbias.explain.attention import Roles, text_roles
from clipbias.explain.attention_sections import PARTS, observe_texts, over_texts, vision_totals
from clipbias.explain.decomposition import constancy, observe_parts
from clipbias.explain.model import Model, why_no_text_attention, why_no_vision_attention
from clipbias.explain.results import (
    Decomposition,
    Missing,
    SampledAverage,
    TowerDecomposition,
)
from clipbias.explain.statistics import Moments, Totals, merge
from clipbias.explain.study import Section, Study

_PER_SAMPLE = ("prompt_mass", "pooled_mass", "norm_share")


def compute_decomposition(study: Study) -> Section[dict[str, Decomposition | Missing]]:
    """Eq. 12 and Fig. 1, for the towers in which a model has prompts."""
    results: dict[str, Decomposition | Missing] = {}
    towers: dict[str, list[str]] = {}
    for model in study.tuned:
        reasons = {"vision": why_no_vision_attention(model.task), "text": why_no_text_attention(model.task)}
        counts = dict(zip(reasons, model.prompts, strict=True))
        towers[model.key] = [tower for tower, reason in reasons.items() if counts[tower] and not reason]
        if not towers[model.key]:
            reason = next(filter(None, reasons.values()), "There are no prompts that attention could go to.")
            results[model.key] = Missing(reason)
    totals = yield from vision_totals(study, [model for model in study.tuned if "vision" in towers[model.key]])
    runs: dict[tuple[str, str], list[Totals]] = {}
    for model in study.tuned:
        if "vision" in towers[model.key]:
            runs[model.key, "vision"] = vision_parts(model, totals[model.key])
        if "text" in towers[model.key]:
            runs[model.key, "text"] = text_parts(study, model)
    for model in study.tuned:
        of_model = {}
        for tower in towers[model.key]:
            place = model.key, tower
            means = totals[model.key] if tower == "vision" else _over_runs(runs[place])
            of_model[tower] = _decompose(study, model, tower, means, runs[place])
        if of_model:
            results[model.key] = Decomposition(vision=of_model.get("vision"), text=of_model.get("text"))
    return results


def vision_parts(model: Model, totals: Totals) -> list[Totals]:
    """What `constancy` and the causal test need of each pass over the images, of `vision_totals` of a model."""
    return [{name: totals[f"{name}/{number}"] for name in PARTS} for number in range(model.passes)]


def text_parts(study: Study, model: Model) -> list[Totals]:
    """Eq. 12 in the text tower, with classes for samples: of each of the `S` texts that a class has."""

    def observe(tokens: TextTokens, roles: Roles) -> Observe:
        return observe_parts(roles, jnp.asarray(tokens.eos))

    runs = []
    for seen in observe_texts(study, model, observe, text_roles(model.task)):
        classes = jnp.arange(seen["prompt_mass"].shape[1])
        each = Moments.each(jnp.asarray(seen["prompt_mass"]).mean((0, 2)), classes, len(classes), classes >= 0)
        moments = {name: jax.device_get(over_texts(value)) for name, value in seen.items()}
        runs.append(moments | {"prompt_mass/each": each})
    return runs


def _over_runs(runs: list[Totals]) -> Totals:
    """Averages over the samples of all runs together."""
    means: Totals = {}
    for run in runs:
        means = merge(means, {quantity: run[quantity] for quantity in _PER_SAMPLE})
    return means


def _decompose(
    study: Study,
    model: Model,
    tower: str,
    means: Totals,
    runs: list[Totals],
) -> TowerDecomposition:
    """One tower of a model.

    Args:
      means: averages over samples.
      runs: of each text of a class, or pass over an image.
    """
    constancies = [constancy(sums, learned_biases(study, tower)) for sums in runs]
    by_token = np.mean([each["constancy"] for each in constancies], axis=0)
    by_vector = np.mean([each["bias_likeness"] for each in constancies], axis=0)
    biases = constancies[0]["bias_cosine"]
    masses = [run["prompt_mass/each"].values for run in ([means] if tower == "vision" else runs)]
    mass = means["prompt_mass"].average
    return TowerDecomposition(
        count=means["norm_share"].samples,
        depth=model.depths[tower == "text"],
        prompt_mass=SampledAverage(mass.mean, mass.standard_error, np.mean(masses, axis=0)),
        pooled_mass=means["pooled_mass"].average if "pooled_mass" in means else None,
        norm_share=means["norm_share"].average,
        constancy=by_token,
        bias_likeness=by_vector,
        bias_cosine={bias: np.mean([each["bias_cosine"][bias] for each in constancies], axis=0) for bias in biases},
    )


def learned_biases(study: Study, tower: str) -> dict[str, np.ndarray]:
    """The biases `[L, D]` of the models that learned any in this tower, by model.

    Of a bias by kind it is the vector of all tokens but the pooled one, of one by token the mean: what is compared with
    them is a mean over tokens too.
    """
    biases = {}
    for model in study.tuned:
        bias = getattr(model.task.method.adapt(model.learnables), f"{tower}_bias")
        if bias is not None:
            biases[model.key] = _of_all_tokens(np.asarray(bias))
    return biases


def _of_all_tokens(bias: np.ndarray) -> np.ndarray:
    if bias.ndim == 2:
        return bias
    return bias[:, 1] if bias.shape[1] == 2 else bias.mean(1)
