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
from clipbias.explain.stream import Batch, Reading, Rows, Step, Sums
from clipbias.explain.study import Section, Study

_moments = jax.jit(Moments.of)
ALL = (REFERENCE, *FORMS, TUNED)


def compute_amounts(study: Study) -> Reading[Section]:
    """Every image as the reference, each constant in the method's place, and the tuned model classify it."""
    arrays: dict[str, np.ndarray] = {}
    reasons = {model.key: missing(study, model) for model in study.tuned}
    scalars: dict[str, Any] = {key: {"missing": reason} for key, reason in reasons.items() if reason}
    models = [model for model in study.tuned if not reasons[model.key]]
    measured = yield from measure(study, models)
    requests = {model.key: _outcomes_of(study, model, measured[model.key][0]) for model in models}
    found = yield list(requests.values())
    for key, (amounts, images) in measured.items():
        rows = found[requests[key].name]
        arrays |= {f"amounts/{key}/{name}": value for name, value in rows.items()}
        for tower, amount in amounts.items():
            for form in ("vector", "kind"):
                arrays[f"amounts/{key}/{tower}/{form}"] = getattr(amount, form)
        scalars[key] = {"forms": ALL, "images": len(rows["images"]), "training_images": images}
    return arrays, scalars


def missing(study: Study, model: Model) -> str | None:
    """One sentence why there is nothing to measure of a model, or `None`."""
    if reason := refusal(model.task, model.learnables):
        return reason
    if not study.training and needs_images(model.task, model.learnables):
        return "What a method amounts to is measured on training images, and there are none."
    return None


def measure(study: Study, models: Sequence[Model]) -> Reading[dict[str, tuple[dict[str, Amount], int]]]:
    """By model what its method amounts to in each tower, and on how many training images that was measured."""
    totals: dict[str, Totals] = {}
    requests = {}
    for model in models:
        task, learnables, initial = model.task, study.learnables[model.key], model.task.init(model.seed)
        totals[model.key] = {}
        if "text" in changed_towers(task, model.learnables) and not task.method.conditional:
            totals[model.key] = text_moments(task, study.params, learnables, initial)
        if needs_images(task, model.learnables):
            name, title = f"amounts-measured-{model.key}", f"{model.label}: what it amounts to"
            step = _measuring_step(study, model)
            images: dict[str, Any] = {"split": study.training, "crops": model.crops}
            requests[model.key] = Sums(name, title, study.training_images, step, **images)
    found = yield list(requests.values())
    measured = {}
    for model in models:
        of_images = found[requests[model.key].name] if model.key in requests else {}
        count = of_images["images"].samples if of_images else 0
        measured[model.key] = amounts_from(totals[model.key] | of_images, study.clip.config), count
    return measured


def _measuring_step(study: Study, model: Model) -> Step:
    task, learnables, initial = model.task, study.learnables[model.key], model.task.init(model.seed)

    def step(batch: Batch) -> dict[str, Moments]:
        pixels = study.normalize(batch["images"])
        seen = image_moments(task, study.params, learnables, initial, pixels, batch["mask"])
        return seen | {"images": _moments(batch["mask"], batch["mask"])}

    return step


def _outcomes_of(study: Study, model: Model, amounts: Mapping[str, Amount]) -> Rows:
    """Asks for "correct" and "log_likelihood" `[n, F]` of every image in every form."""
    task = model.task
    reference = study.replicate(reference_adaptation(task, task.init(model.seed)))
    constants = Constants(task, study.params, reference, amounts, ALL[:-1], study.replicate)

    def step(batch: Batch) -> dict[str, jax.Array]:
        images = batch["images"]
        logits = [constants(study.normalize(images[:, 0] if model.crops else images))]
        logits.append(classify(study, model, images, batch["mask"])[None])
        return _outcomes(logits, batch["labels"])

    title = f"{model.label}: a constant in its place"
    return Rows(f"amounts-{model.key}", title, study.images, step, crops=model.crops)


@jax.jit
def _outcomes(logits: Sequence[jax.Array], labels: jax.Array) -> dict[str, jax.Array]:
    found = outcomes(jnp.concatenate(logits), labels)
    return {
        "correct": found["correct"].astype(jnp.uint8).T,
        "log_likelihood": found["log_likelihood"].astype(jnp.float32).T,
    }
