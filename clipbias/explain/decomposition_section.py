"""The section of a study about Eq. 12 and Fig. 1: what prompts add to attention's output, and how constant that is."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import TextTokens, encode_image
from clipbias.clip.params import Params
from clipbias.clip.tower import Observe
from clipbias.explain.attention_sections import PARTS, observe_texts, over_texts, vision_totals
from clipbias.explain.decomposition import constancy, observe_parts
from clipbias.explain.jackknife import left_out, observe_products, standard_error
from clipbias.explain.model import Model
from clipbias.explain.requests import Batch, RowRequest, Section, Step
from clipbias.explain.results import (
    BiasErrors,
    Decomposition,
    DepthMeans,
    Missing,
    SampledAverage,
    TowerDecomposition,
)
from clipbias.explain.scope import why_no_text_attention, why_no_vision_attention
from clipbias.explain.statistics import Moments, Totals, merge
from clipbias.explain.study import Study
from clipbias.explain.targets import by_pass
from clipbias.explain.tokens import Roles, text_roles, vision_roles
from clipbias.tuning import Learnables

_PER_SAMPLE = ("prompt_mass", "pooled_mass", "mass_by_query", "norm_share")
_COSINE = "bias_cosine/"


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
    single = {place: of_tower[0] for place, of_tower in runs.items() if len(of_tower) == 1}
    without = yield from _left_out(study, single)
    for model in study.tuned:
        of_model = {}
        for tower in towers[model.key]:
            place = model.key, tower
            means = totals[model.key] if tower == "vision" else _over_runs(runs[place])
            of_model[tower] = _decompose(study, model, tower, means, runs[place], without.get(place))
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
    without: Mapping[str, np.ndarray] | None,
) -> TowerDecomposition:
    """One tower of a model.

    Args:
      means: averages over samples.
      runs: of each text of a class, or pass over an image.
      without: from `_left_out`, of a single run.
    """
    depth = model.depths[tower == "text"]
    constancies = [constancy(sums, learned_biases(study, tower)) for sums in runs]
    by_token = np.mean([each["constancy"] for each in constancies], axis=0)
    by_vector = np.mean([each["bias_likeness"] for each in constancies], axis=0)
    biases = constancies[0]["bias_cosine"]
    masses = [run["prompt_mass/each"].values for run in ([means] if tower == "vision" else runs)]
    mass = means["prompt_mass"].average
    return TowerDecomposition(
        count=means["norm_share"].samples,
        depth=depth,
        runs=len(runs),
        prompt_mass=SampledAverage(mass.mean, mass.standard_error, np.mean(masses, axis=0)),
        pooled_mass=means["pooled_mass"].average if "pooled_mass" in means else None,
        mass_by_query=means["mass_by_query"].average,
        norm_share=means["norm_share"].average,
        constancy=by_token,
        bias_likeness=by_vector,
        bias_cosine={bias: np.mean([each["bias_cosine"][bias] for each in constancies], axis=0) for bias in biases},
        mean_constancy=by_depth(by_token, depth),
        mean_bias_likeness=by_depth(by_vector, depth),
        error=None if without is None else _layer_errors(without),
        mean_error=None if without is None else _mean_errors(without, depth),
    )


def _layer_errors(without: Mapping[str, np.ndarray]) -> BiasErrors[np.ndarray]:
    return BiasErrors(
        constancy=standard_error(without["constancy"]),
        bias_likeness=standard_error(without["bias_likeness"]),
        bias_cosine={
            name.removeprefix(_COSINE): standard_error(values)
            for name, values in without.items()
            if name.startswith(_COSINE)
        },
    )


def _mean_errors(without: Mapping[str, np.ndarray], depth: int) -> BiasErrors[float]:
    return BiasErrors(
        constancy=float(standard_error(without["constancy"][:, :depth].mean(1))),
        bias_likeness=float(standard_error(without["bias_likeness"][:, :depth].mean(1))),
        bias_cosine={
            name.removeprefix(_COSINE): float(standard_error(values.mean(1)))
            for name, values in without.items()
            if name.startswith(_COSINE)
        },
    )


def _left_out(
    study: Study, totals: Mapping[tuple[str, str], Totals]
) -> Section[dict[tuple[str, str], dict[str, np.ndarray]]]:
    """The statistics of `constancy` without each image, or class, in turn; of models with one text and one pass.

    Args:
      totals: by model and tower.
    """
    models = {model.key: model for model in study.tuned}
    without: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    requests: dict[tuple[str, str], RowRequest] = {}
    for (key, tower), sums in totals.items():
        model = models[key]
        bias = learned_biases(study, tower)
        if tower == "text":
            without[key, tower] = left_out(sums, _text_products(study, model, sums, bias), bias)
        else:
            title = f"{model.label}: errors of its constancy"
            step = _products_step(study, model, sums, bias)
            requests[key, tower] = RowRequest(f"constancy-{key}", title, study.images, step)
    results = yield list(requests.values())
    for (key, tower), request in requests.items():
        rows = results[request.name]
        without[key, tower] = left_out(totals[key, tower], rows, learned_biases(study, tower))
    return without


def _text_products(study: Study, model: Model, totals: Totals, bias: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    def observe(tokens: TextTokens, roles: Roles) -> Observe:
        return observe_products(roles, totals, bias)

    (seen,) = observe_texts(study, model, observe, text_roles(model.task))
    return {name: np.moveaxis(value, 0, 1) for name, value in seen.items()}


def _products_step(study: Study, model: Model, totals: Totals, bias: Mapping[str, np.ndarray]) -> Step:
    observe = observe_products(vision_roles(study.clip.config.vision, model.prompts[0]), totals, bias)
    dtype = model.task.classifier.dtype

    @jax.jit
    def step(params: Params, learnables: Learnables, batch: Batch) -> dict[str, jax.Array]:
        pixels = study.normalize(batch["images"])
        adaptation = by_pass(model.task.method.adapt(learnables))[0]
        seen = encode_image(params, study.clip.config, pixels, adaptation, observe=observe, dtype=dtype)[1]
        return {name: jnp.moveaxis(value, 0, 1) for name, value in seen.items()}

    return lambda batch: step(study.params, study.learnables[model.key], batch)


def by_depth(layers: np.ndarray, depth: int) -> DepthMeans:
    """Means over the layers with prompts of their own, and over those beyond, whose slots carry what they saw."""
    return DepthMeans(up_to_depth=_mean(layers[:depth]), beyond=_mean(layers[depth:]))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


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
