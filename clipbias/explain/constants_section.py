"""What the mean of what a method's blocks add keeps of its gain: added to the frozen model, and taken away."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.explain.block_changes import reference_adaptation, text_moments
from clipbias.explain.effects import TUNED, Measured, measure, over_seeds, summarize_replacements
from clipbias.explain.equivalent_bias import (
    changed_towers,
    equivalent_biases,
    image_moments,
    needs_images,
    random_constants,
    why_no_equivalent_bias,
)
from clipbias.explain.factorial_section import seeds_of
from clipbias.explain.intervention_classifier import Constants, InterventionClassifier
from clipbias.explain.model import Model
from clipbias.explain.passes import predictor
from clipbias.explain.replacement_names import ANOTHER_DATASET, PLAIN, RANDOM, REPLACEMENT_FORMS
from clipbias.explain.requests import Batch, RowRequest, Section, Step, SumRequest
from clipbias.explain.results import (
    ConstantTest,
    ConstantTests,
    EquivalentBias,
    Missing,
    SeedGroup,
)
from clipbias.explain.statistics import Moments, Totals
from clipbias.explain.study import Study

_moments = jax.jit(Moments.of)


@dataclasses.dataclass(frozen=True)
class MeasuredBiases:
    """The equivalent bias of a model in each tower that it changes, and on how many training images it was measured."""

    towers: dict[str, EquivalentBias]
    training_images: int

    def constants(self, form: str) -> dict[str, np.ndarray]:
        """By tower, in one form."""
        return {tower: bias.constants(form) for tower, bias in self.towers.items()}


def compute_constants(study: Study) -> Section[ConstantTests]:
    """Every image with the mean in the method's place and taken from the method, and with controls.

    Controls are a random constant of the same norms, and where the study has it that of the same method trained on
    another dataset.
    """
    reasons = {model.key: missing(study, model) for model in study.tuned}
    results: dict[str, ConstantTest | Missing] = {key: Missing(reason) for key, reason in reasons.items() if reason}
    models = [model for model in study.tuned if not reasons[model.key]]
    biases = yield from measure_equivalent_biases(study, models)
    classifiers = {model.key: _classifier(study, model, _constants(study, model, models, biases)) for model in models}
    requests = {model.key: _classifications(study, model, classifiers[model.key]) for model in models}
    rows = yield list(requests.values())
    forms = {model.key: (*classifiers[model.key].forms, TUNED) for model in models}
    measured: dict[str, Measured] = {}
    for key, request in requests.items():
        of_model = rows[request.name]
        towers = biases[key].towers
        measured[key] = measure(of_model["logits"], study.split.labels[of_model["images"]])
        results[key] = ConstantTest(
            forms=forms[key],
            outcomes=measured[key].outcomes(of_model["images"]),
            biases=towers,
            training_images=biases[key].training_images,
            stored={form: sum(bias.stored(form) for bias in towers.values()) for form in REPLACEMENT_FORMS},
            summary=summarize_replacements(measured[key], forms[key]),
        )
    seeds = []
    for keys in seeds_of(models):
        crossed = over_seeds([measured[key] for key in keys])
        seeds.append(SeedGroup(models=keys, summary=summarize_replacements(crossed, forms[keys[0]])))
    return ConstantTests(models=results, seeds=tuple(seeds))


def _constants(study: Study, model: Model, models: Sequence[Model], biases: Mapping[str, MeasuredBiases]) -> Constants:
    """By name: the forms of the model's equivalent bias, then controls."""
    constants = {form: biases[model.key].constants(form) for form in REPLACEMENT_FORMS}
    constants[RANDOM] = random_constants(biases[model.key].towers, seed=study.options.seed)
    if elsewhere := _trained_elsewhere(model, models):
        constants[ANOTHER_DATASET] = biases[elsewhere.key].constants(PLAIN)
    return constants


def _trained_elsewhere(model: Model, models: Sequence[Model]) -> Model | None:
    """The same method with the same options after training on another dataset, of the same seed where there is one."""
    same = [other for other in models if (other.method, other.options) == (model.method, model.options)]
    others = [other for other in same if other.trained_on != model.trained_on]
    return min(others, key=lambda other: other.seed != model.seed, default=None)


def missing(study: Study, model: Model) -> str | None:
    """One sentence why there is nothing to measure of a model, or `None`."""
    if reason := why_no_equivalent_bias(model.task, model.learnables):
        return reason
    if not study.training and needs_images(model.task, model.learnables):
        return "The equivalent bias is measured on training images, and there are none."
    return None


def measure_equivalent_biases(study: Study, models: Sequence[Model]) -> Section[dict[str, MeasuredBiases]]:
    """By model the equivalent bias."""
    totals: dict[str, Totals] = {}
    requests: dict[str, SumRequest] = {}
    for model in models:
        task = model.task
        totals[model.key] = {}
        if "text" in changed_towers(task, model.learnables) and not task.method.conditional:
            learnables = study.learnables[model.key]
            totals[model.key] = text_moments(task, study.params, learnables, task.init(model.seed))
        if needs_images(task, model.learnables):
            requests[model.key] = SumRequest(
                f"constants-measured-{model.key}",
                f"{model.label}: equivalent bias",
                study.training_images,
                _measuring_step(study, model),
                split=study.training,
                crops=model.crops,
            )
    sums = yield list(requests.values())
    measured = {}
    for model in models:
        of_images = sums[requests[model.key].name] if model.key in requests else {}
        count = of_images["images"].samples if of_images else 0
        towers = equivalent_biases(totals[model.key] | of_images)
        measured[model.key] = MeasuredBiases(towers=towers, training_images=count)
    return measured


def _measuring_step(study: Study, model: Model) -> Step:
    learnables = study.learnables[model.key]
    initial = model.task.init(model.seed)

    def step(batch: Batch) -> dict[str, Any]:
        pixels = study.normalize(batch["images"])
        moments = image_moments(model.task, study.params, learnables, initial, pixels, batch["mask"])
        return moments | {"images": _moments(batch["mask"], batch["mask"])}

    return step


def _classifier(study: Study, model: Model, constants: Constants) -> InterventionClassifier:
    reference = reference_adaptation(model.task, model.task.init(model.seed))
    learnables = study.learnables[model.key]
    return InterventionClassifier(model.task, study.params, learnables, reference, constants, study.replicate)


def _classifications(study: Study, model: Model, classifier: InterventionClassifier) -> RowRequest:
    """For "logits" `[n, F, C]` in every form, and as tuned."""

    def step(batch: Batch) -> dict[str, jax.Array]:
        tuned = predictor(study, model).logits(batch["images"], batch["mask"])
        return {"logits": _together(classifier(study.normalize(batch["images"]), batch["mask"]), tuned)}

    title = f"{model.label}: its blocks' mean in its place"
    return RowRequest(f"constants-{model.key}", title, study.images, step, crops=model.crops)


@jax.jit
def _together(logits: jax.Array, tuned: jax.Array) -> jax.Array:
    return jnp.moveaxis(jnp.concatenate([logits, tuned[None]]), 0, 1)
