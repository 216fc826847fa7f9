"""Everything that is said about one method on one dataset, from the logits of its models: one, or several seeds.

A section collects the logits per image, float32. This turns them into numbers with intervals and into sentences.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipbias.explain.conclusions import conclude, percent
from clipbias.explain.effects import (
    REFERENCE,
    TUNED,
    Measured,
    measure,
    over_seeds,
    summarize_effects,
    summarize_replacements,
    temperature_alone,
)
from clipbias.explain.power import power, spread


def judge(
    labels: np.ndarray,
    mixtures: Sequence[np.ndarray],
    streams: Sequence[str],
    effects: Sequence[str],
    replaced: Sequence[np.ndarray] = (),
    forms: Sequence[str] = (),
    *,
    label: str,
    prompts: bool,
    seed: int = 0,
) -> dict[str, Any]:
    """The judgement on one method.

    Args:
      labels: `[n]`, of the images that all logits are of.
      mixtures: by seed, logits `[n, K, C]` of the causal test's mixtures; none where it was not run.
      streams: their names, all corners first.
      effects: of which corners are mixtures.
      replaced: by seed, logits `[n, F, C]` of the reference, the tuned model and of constants in both directions.
      forms: their names, as `summarize_replacements` takes them.
      label: the method's.
      prompts: whether it has prompts.
      seed: draws the resamples.

    Returns:
      For JSON: "images", "seeds", "refitted" (whether every resample has temperatures of its own), "temperatures" by
      name, "effects" and "replacements" by outcome (`None` where not measured), "temperature_alone" (a share of the raw
      gain), "power", and "sentences".
    """
    measured = _measure(mixtures, labels, seed)
    constants = _measure(replaced, labels, seed)
    found: dict[str, Any] = {
        "effects": summarize_effects(measured, streams, effects) if measured else None,
        "replacements": summarize_replacements(constants, forms) if constants else None,
    }
    both = [one for one in (constants, measured) if one]
    if not both:
        raise ValueError("there are no logits to judge")
    last = 2 ** len(effects) - 1
    ends = (forms.index(REFERENCE), forms.index(TUNED)) if constants else (0, last)
    rows = replaced if constants else mixtures
    right = [np.asarray(logits).argmax(-1) == np.asarray(labels)[:, None] for logits in rows]
    differences = np.stack([100.0 * (own[:, ends[1]].astype(float) - own[:, ends[0]]) for own in right])
    could = power(spread(differences), *reversed(differences.shape))
    alone = temperature_alone(both[0], *ends)
    temperatures: dict[str, float] = {}
    for names, one in ((streams, measured), (forms, constants)):
        if one:
            temperatures |= dict(zip(names, map(float, one.temperatures), strict=True))
    found |= {
        "images": both[0].images,
        "seeds": both[0].seeds,
        "refitted": all(one.refitted for one in both),
        "temperatures": temperatures,
        "temperature_alone": alone,
        "power": vars(could),
    }
    found["sentences"] = conclude(
        found["effects"], found["replacements"], label=label, prompts=prompts, images=found["images"]
    )
    if alone["share"] is not None:
        found["sentences"].append(
            f"Of the gain in raw log-likelihood the frozen model gets {percent(alone)} from a temperature alone."
        )
    found["sentences"].append(could.sentence())
    if not found["refitted"]:
        found["sentences"].append("Temperatures were not fitted anew in every resample, as there are too many logits.")
    return found


def _measure(logits: Sequence[np.ndarray], labels: np.ndarray, seed: int) -> Measured | None:
    return over_seeds([measure(own, labels, seed=seed) for own in logits], seed=seed) if len(logits) else None
