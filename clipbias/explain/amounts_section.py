"""What every method amounts to: measured on training images, and put in the method's place on the study's."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.explain.amounts import (
    Amount,
    amounts_from,
    changed_towers,
    image_moments,
    needs_images,
    reference_adaptation,
    refusal,
    text_moments,
)
from clipbias.explain.model import Model
from clipbias.explain.outcomes import outcomes
from clipbias.explain.passes import classify
from clipbias.explain.replacement import REFERENCE, TUNED, Constants
from clipbias.explain.results import FORMS
from clipbias.explain.statistics import Moments, Totals
from clipbias.explain.study import Batch, Section, Study

_moments = jax.jit(Moments.of)
ALL = (REFERENCE, *FORMS, TUNED)


def compute_amounts(study: Study) -> Section:
    """Every image as the reference, each constant in the method's place, and the tuned model classify it."""
    arrays: dict[str, np.ndarray] = {}
    scalars: dict[str, Any] = {}
    for model in study.tuned:
        reason = missing(study, model)
        if reason:
            scalars[model.key] = {"missing": reason}
            continue
        amounts, images = measure_model(study, model)
        rows = outcomes_of(study, model, amounts, ALL)
        arrays |= {f"amounts/{model.key}/{name}": value for name, value in rows.items()}
        for tower, amount in amounts.items():
            for form in ("vector", "kind"):
                arrays[f"amounts/{model.key}/{tower}/{form}"] = getattr(amount, form)
        scalars[model.key] = {"forms": ALL, "images": len(rows["images"]), "training_images": images}
    return arrays, scalars


def missing(study: Study, model: Model) -> str | None:
    """One sentence why there is nothing to measure of a model, or `None`."""
    if reason := refusal(model.task, model.learnables):
        return reason
    if not study.training and needs_images(model.task, model.learnables):
        return "What a method amounts to is measured on training images, and there are none."
    return None


def measure_model(study: Study, model: Model) -> tuple[dict[str, Amount], int]:
    """What a model's method amounts to by tower, and on how many training images that was measured."""
    task, learnables, images = model.task, study.learnables[model.key], 0
    initial = task.init(model.seed)
    totals: Totals = {}
    if "text" in changed_towers(task, model.learnables) and not task.method.conditional:
        totals |= text_moments(task, study.params, learnables, initial)
    if needs_images(task, model.learnables):

        def step(batch: Batch) -> Mapping[str, Moments]:
            pixels = study.normalize(batch["images"])
            seen = image_moments(task, study.params, learnables, initial, pixels, batch["mask"])
            return seen | {"images": _moments(batch["mask"], batch["mask"])}

        name, title = f"amounts-measured-{model.key}", f"{model.label}: what it amounts to"
        given: dict[str, Any] = {"split": study.training, "crops": model.crops}
        totals |= study.accumulate(name, title, study.training_images, step, **given)
        images = totals["images"].samples
    return amounts_from(totals, study.clip.config), images


def outcomes_of(
    study: Study, model: Model, amounts: Mapping[str, Amount], forms: Sequence[str]
) -> dict[str, np.ndarray]:
    """Per image "correct" and "log_likelihood" `[n, F]` of each form, and the numbers of the "images"."""
    task, replicate = model.task, study.devices.replicate
    reference = replicate(reference_adaptation(task, task.init(model.seed)))
    constants = Constants(task, study.params, reference, amounts, [form for form in forms if form != TUNED], replicate)

    def step(batch: Batch) -> dict[str, jax.Array]:
        images = batch["images"]
        logits = [constants(study.normalize(images[:, 0] if model.crops else images))]
        if TUNED in forms:
            logits.append(classify(study, model, images, batch["mask"])[None])
        return _outcomes(logits, batch["labels"])

    name, title = f"amounts-{model.key}", f"{model.label}: a constant in its place"
    return study.collect(name, title, study.spread(study.options.images), step, crops=model.crops)


@jax.jit
def _outcomes(logits: Sequence[jax.Array], labels: jax.Array) -> dict[str, jax.Array]:
    found = outcomes(jnp.concatenate(logits), labels)
    return {
        "correct": found["correct"].astype(jnp.uint8).T,
        "log_likelihood": found["log_likelihood"].astype(jnp.float32).T,
    }
