"""Eq. 12 and Fig. 1 over a dataset: what prompts add to attention's output, and how constant that is.

If prompts are a bias, the prompt part is the same for every sample.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import TextTokens
from clipbias.clip.tower import Observe
from clipbias.explain.attention import PARTS, Roles, observe_parts, observe_texts, over_texts, text_roles, vision_totals
from clipbias.explain.model import Model, why_no_text_attention, why_no_vision_attention
from clipbias.explain.results import Decomposition, Missing, TowerDecomposition
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
    for model in study.tuned:
        of_model = {}
        for tower in towers[model.key]:
            if tower == "vision":
                means = totals[model.key]
                runs = [{name: means[f"{name}/{number}"] for name in PARTS} for number in range(model.passes)]
            else:
                runs = text_parts(study, model)
                means = {}
                for run in runs:  # averages over the samples of all runs together
                    means = merge(means, {quantity: run[quantity] for quantity in _PER_SAMPLE})
            of_model[tower] = _decompose(study, model, tower, means, runs)
        if of_model:
            results[model.key] = Decomposition(of_model)
    return results


def text_parts(study: Study, model: Model) -> list[Totals]:
    """Eq. 12 in the text tower, with classes for samples: of each of the `S` texts that a class has."""

    def observe(tokens: TextTokens, roles: Roles) -> Observe:
        return observe_parts(roles, jnp.asarray(tokens.eos))

    return [
        {name: jax.device_get(over_texts(value)) for name, value in seen.items()}
        for seen in observe_texts(study, model, observe, text_roles(model.task))
    ]


def _decompose(study: Study, model: Model, tower: str, means: Totals, runs: list[Totals]) -> TowerDecomposition:
    """One tower of a model, of averages over samples, and of each text of a class, or pass over an image."""
    biases = learned_biases(study, tower)
    constancies = [constancy(sums, biases) for sums in runs]
    return TowerDecomposition(
        count=means["norm_share"].samples,
        depth=model.depths[tower == "text"],
        prompt_mass=means["prompt_mass"].average,
        pooled_mass=means["pooled_mass"].average if "pooled_mass" in means else None,
        norm_share=means["norm_share"].average,
        constancy=np.mean([each["constancy"] for each in constancies], axis=0),
        bias_likeness=np.mean([each["bias_likeness"] for each in constancies], axis=0),
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
            values = np.asarray(bias)
            if values.ndim == 3:
                values = values[:, 1] if values.shape[1] == 2 else values.mean(1)
            biases[model.key] = values
    return biases


def constancy(totals: Mapping[str, Moments], bias: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How much of a bias the prompt part is, per layer, without the share that chance adds.

    A mean of few samples is longer than the true one: `n` samples of pure noise have a mean whose square is `1/n` of
    theirs. So squares of means are estimated from products of two different samples, which chance does not lengthen.
    For a token `j` that counts in `n_j` samples `x_ij` with mean `x̄_j`,

        |μ_j|² ≈ |x̄_j|² − Σ_i |x_ij − x̄_j|² / (n_j (n_j − 1)),

    and for one vector for all tokens, from each sample's sum `u_i` over its `m_i` tokens, because tokens of one sample
    vary together,

        |v|² ≈ (|Σ_i u_i|² − Σ_i |u_i|²) / ((Σ_i m_i)² − Σ_i m_i²).

    Both are divided by the mean square of the part. An estimate can fall a little below 0, and the second a little
    above the first. `totals` are what `observe_parts` saw, `bias` has learned biases `[L, D]` of that tower by name.

    Returns:
      - `constancy [L]`: the share of its mean square that its mean over samples, token by token, explains, over the
        tokens that count in two samples or more; NaN without any;
      - `bias_likeness [L]`: the share that one vector for all tokens explains; NaN below two samples;
      - `bias_cosine {name: [L]}`: the cosine between this vector and a learned bias.
    """
    part = totals["part"]
    count = np.asarray(part.count, np.float64)
    mean = np.asarray(part.mean, np.float64)
    length = np.square(mean).sum(-1)
    spread = np.asarray(part.squares, np.float64).sum(-1)
    square = count * length + spread  # `Σ_i |x_ij|²` of each token
    repeated = count > 1
    of_mean = np.where(repeated, count * length - spread / np.maximum(count - 1, 1), 0).sum(-1)
    tiny = np.finfo(np.float64).tiny
    of_repeated = np.maximum((repeated * square).sum(-1), tiny)
    vector = (count[..., None] * mean).sum(1) / np.maximum(count.sum(1), 1)[:, None]
    pairs = _product_of_two(totals["tokens"])
    one_vector = _product_of_two(totals["total"]) / np.where(pairs > 0, pairs, np.nan)
    return {
        "constancy": of_mean / np.where(repeated.any(-1), of_repeated, np.nan),
        "bias_likeness": one_vector * count.sum(-1) / np.maximum(square.sum(-1), tiny),
        "bias_cosine": {name: _cosine(vector, np.asarray(value, np.float64)) for name, value in bias.items()},
    }


def _product_of_two(sums: Moments) -> np.ndarray:
    """`|Σ_i x_i|² − Σ_i |x_i|²` of samples `x [L, …]`, which is the sum over pairs of different ones: `[L]`."""
    count = np.asarray(sums.count, np.float64)
    squares = [np.square(np.asarray(sums.mean, np.float64)), np.asarray(sums.squares, np.float64)]
    length, spread = (x.reshape(len(x), -1).sum(-1) for x in squares)
    return count * (count - 1) * length - spread


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    scale = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / np.maximum(scale, np.finfo(np.float64).tiny)
