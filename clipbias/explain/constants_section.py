"""Whether a constant stands for a method: measured on training images, added to the frozen model, and taken away."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.explain.effects import TUNED, Measured, measure, over_seeds, summarize_replacements
from clipbias.explain.equivalent_bias import (
    EquivalentBias,
    changed_towers,
    equivalent_biases,
    image_moments,
    needs_images,
    reference_adaptation,
    text_moments,
    why_no_equivalent_bias,
)
from clipbias.explain.factorial_section import by_image, seeds_of
from clipbias.explain.intervention_classifier import InterventionClassifier
from clipbias.explain.ladder import controls, numbers_stored, rungs
from clipbias.explain.model import Model
from clipbias.explain.passes import classify
from clipbias.explain.rungs import ANOTHER_DATASET, ANOTHER_SEED, PLAIN
from clipbias.explain.statistics import Moments, Totals
from clipbias.explain.stream import Batch, Reading, Rows, Step, Sums
from clipbias.explain.study import Section, Study

_moments = jax.jit(Moments.of)


def compute_constants(study: Study) -> Reading[Section]:
    """Every image with each rung of the ladder in the method's place and taken from the method, and with controls.

    Controls are a random constant of the same norms, the constants of other layers, and where the study has them those
    of another seed, and those of the same method trained on another dataset.
    """
    arrays: dict[str, np.ndarray] = {}
    reasons = {model.key: missing(study, model) for model in study.tuned}
    scalars: dict[str, Any] = {key: {"missing": reason} for key, reason in reasons.items() if reason}
    models = [model for model in study.tuned if not reasons[model.key]]
    biases = yield from measure_equivalent_biases(study, models)
    seeds = seeds_of(models)
    others = {ANOTHER_SEED: {key: keys[(i + 1) % len(keys)] for keys in seeds for i, key in enumerate(keys)}}
    others[ANOTHER_DATASET] = {model.key: other.key for model in models if (other := _trained_elsewhere(model, models))}
    asked = {}
    for model in models:
        own = biases[model.key][0]
        given = {rung: (own, rung) for rung in rungs(own)}
        given |= {name: (control, PLAIN) for name, control in controls(own, seed=study.options.seed).items()}
        given |= {name: (biases[other[model.key]][0], PLAIN) for name, other in others.items() if model.key in other}
        asked[model.key] = _classifications(study, model, given)
    found = yield [request for request, _ in asked.values()]
    measured: dict[str, Measured] = {}
    for key, (request, forms) in asked.items():
        rows, (own, images) = found[request.name], biases[key]
        measured[key] = measure(rows["logits"], study.split.labels[rows["images"]])
        values = {name: value[:, 0] for name, value in by_image([measured[key]]).items()}
        arrays |= {f"constants/{key}/{name}": value for name, value in (values | {"images": rows["images"]}).items()}
        for tower, bias in own.items():
            for form in ("vector", "kind"):
                arrays[f"constants/{key}/{tower}/{form}"] = getattr(bias, form)
        scalars[key] = {
            "forms": forms,
            "images": len(rows["images"]),
            "training_images": images,
            "stored": {rung: numbers_stored(own, rung) for rung in rungs(own)},
            "numbers": summarize_replacements(measured[key], forms),
        }
    scalars["seeds"] = []
    for keys in seeds:
        crossed = over_seeds([measured[key] for key in keys])
        numbers = summarize_replacements(crossed, asked[keys[0]][1])
        scalars["seeds"].append({"models": keys, "numbers": numbers})
    return arrays, scalars


def _trained_elsewhere(model: Model, models: Sequence[Model]) -> Model | None:
    """The same method with the same options after training on another dataset, of the same seed where there is one."""

    def settings(one: Model) -> tuple[str, Any]:
        return one.method, one.task.options()

    found = [one for one in models if settings(one) == settings(model) and one.dataset != model.dataset]
    return min(found, key=lambda one: one.seed != model.seed, default=None)


def missing(study: Study, model: Model) -> str | None:
    """One sentence why there is nothing to measure of a model, or `None`."""
    if reason := why_no_equivalent_bias(model.task, model.learnables):
        return reason
    if not study.training and needs_images(model.task, model.learnables):
        return "The equivalent bias is measured on training images, and there are none."
    return None


def measure_equivalent_biases(
    study: Study, models: Sequence[Model]
) -> Reading[dict[str, tuple[dict[str, EquivalentBias], int]]]:
    """By model the equivalent bias in each tower, and on how many training images that was measured."""
    totals: dict[str, Totals] = {}
    requests = {}
    for model in models:
        task, learnables, initial = model.task, study.learnables[model.key], model.task.init(model.seed)
        totals[model.key] = {}
        if "text" in changed_towers(task, model.learnables) and not task.method.conditional:
            totals[model.key] = text_moments(task, study.params, learnables, initial)
        if needs_images(task, model.learnables):
            name, title = f"constants-measured-{model.key}", f"{model.label}: equivalent bias"
            step = _measuring_step(study, model)
            images: dict[str, Any] = {"split": study.training, "crops": model.crops}
            requests[model.key] = Sums(name, title, study.training_images, step, **images)
    found = yield list(requests.values())
    measured = {}
    for model in models:
        of_images = found[requests[model.key].name] if model.key in requests else {}
        count = of_images["images"].samples if of_images else 0
        measured[model.key] = equivalent_biases(totals[model.key] | of_images, study.clip.config), count
    return measured


def _measuring_step(study: Study, model: Model) -> Step:
    task, learnables, initial = model.task, study.learnables[model.key], model.task.init(model.seed)

    def step(batch: Batch) -> dict[str, Moments]:
        pixels = study.normalize(batch["images"])
        seen = image_moments(task, study.params, learnables, initial, pixels, batch["mask"], every_form=True)
        return seen | {"images": _moments(batch["mask"], batch["mask"])}

    return step


def _classifications(
    study: Study, model: Model, given: Mapping[str, tuple[Mapping[str, EquivalentBias], str]]
) -> tuple[Rows, tuple[str, ...]]:
    """Asks for "logits" `[n, F, C]` in every form; and the forms."""
    task, learnables = model.task, study.learnables[model.key]
    reference = reference_adaptation(task, task.init(model.seed))
    classifier = InterventionClassifier(task, study.params, learnables, reference, given, study.replicate)

    def step(batch: Batch) -> dict[str, jax.Array]:
        images, mask = batch["images"], batch["mask"]
        tuned = classify(study, model, images, mask)
        return {"logits": _together(classifier(study.normalize(images), mask), tuned)}

    title = f"{model.label}: a constant in its place"
    request = Rows(f"constants-{model.key}", title, study.images, step, crops=model.crops)
    return request, (*classifier.forms, TUNED)


@jax.jit
def _together(logits: jax.Array, tuned: jax.Array) -> jax.Array:
    return jnp.moveaxis(jnp.concatenate([logits, tuned[None]]), 0, 1)
