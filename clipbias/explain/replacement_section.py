"""Fits forms to each tuned model's predictions on unlabelled images, and compares them on the study's."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.data import Split
from clipbias.data.held_out import divide_unlabelled
from clipbias.data.images import Images
from clipbias.explain.agreement import divergences
from clipbias.explain.bias_adapter import METHODS as MEANS
from clipbias.explain.constants_section import MeasuredBiases, measure_equivalent_biases, missing
from clipbias.explain.model import Model
from clipbias.explain.passes import predictor
from clipbias.explain.replacement import Candidates, Fit, Outputs, summarize
from clipbias.explain.requests import Batch, RowRequest, Section
from clipbias.explain.results import FittedReplacements, Missing
from clipbias.explain.study import Study
from clipbias.training.context import SweepContext, make_context
from clipbias.training.evaluate import Predictor
from clipbias.training.job import Logging
from clipbias.training.progress import say
from clipbias.training.spec import stable_hash
from clipbias.training.students import FORMS, fit_recipe, fit_student
from clipbias.training.teacher import Teacher, split_logits
from clipbias.tuning import Task
from clipbias.tuning.method import parameter_count
from clipbias.tuning.registry import make_method, method_options

FEWEST = 10


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A fitted form of a model.

    Attributes:
      student: the form with its learnables.
      fit: how it was fitted.
    """

    student: Teacher
    fit: Fit


@dataclasses.dataclass(frozen=True)
class Beside:
    """What stands beside a tuned model.

    Attributes:
      fitted: forms by name.
      means: by form, the mean of what the model's blocks add.
      retrainings: other models of the study.
      untaught: by form's name, other models of the study.
    """

    fitted: Mapping[str, Fitted]
    means: Mapping[str, Teacher]
    retrainings: list[Model]
    untaught: Mapping[str, list[Model]]

    @property
    def models(self) -> list[Model]:
        """Those of the study, each once."""
        others = [*self.retrainings, *(model for models in self.untaught.values() for model in models)]
        return list({other.key: other for other in others}.values())


def compute_replacement(study: Study) -> Section[dict[str, FittedReplacements | Missing]]:
    """By model what it can be exchanged for.

    Beside each fitted form stand the models of the study that are its controls: the same method trained again on the
    same few-shot split with another start, and the form's own method trained on the labels of that split. Nothing is
    fitted to these. The mean of what the model's blocks add stands there too.
    """
    if study.unlabelled is None or len(study.unlabelled) < FEWEST:
        reason = "Replacements are fitted on training and validation images, and there are none, or too few."
        return {model.key: Missing(reason) for model in study.tuned}
    fitted, held_back, _ = divide_unlabelled(study.unlabelled)
    reasons = {model.key: why_not_fitted(study, model) for model in study.tuned}
    teachers = [model for model in study.tuned if not reasons[model.key]]
    biases = yield from measure_equivalent_biases(study, [model for model in teachers if not missing(study, model)])
    dtype = study.zero_shot.task.classifier.dtype
    context = make_context(
        study.clip,
        study.mesh,
        dtype=dtype,
        on_image_error=study.options.on_image_error,
        workers=study.options.workers,
    )
    beside: dict[str, Beside] = {}
    for model in teachers:
        beside[model.key] = Beside(
            fitted=_fit_forms(study, model, fitted, held_back, context),
            means=_means(study, model, biases[model.key]) if model.key in biases else {},
            retrainings=retrainings(study, model),
            untaught={form: untaught(study, model, form) for form in study.options.replacement_forms},
        )
    requests = {model.key: _classifications(study, model, beside[model.key], fitted) for model in teachers}
    rows = yield list(requests.values())
    results: dict[str, FittedReplacements | Missing] = {}
    for model in study.tuned:
        if model.key not in beside:
            results[model.key] = Missing(reasons[model.key])
            continue
        of_model = rows[requests[model.key].name]
        results[model.key] = summarize(
            model.label,
            _candidates(study, model, beside[model.key], of_model),
            study.split.labels[of_model["images"]],
            {name: each.fit for name, each in beside[model.key].fitted.items()},
            images=of_model["images"],
            counts=(len(fitted), len(held_back)),
        )
    return results


def why_not_fitted(study: Study, model: Model) -> str:
    """One sentence why nothing is fitted to a model, or ""."""
    if model.crops:
        return "The method learns from crops of each image, which a form cannot."
    if any(_is_of_form(model, form) for form in study.options.replacement_forms):
        return "It is one of the forms, trained on labels."
    earlier = study.tuned[: study.tuned.index(model)]
    if any(other in retrainings(study, model) for other in earlier):
        return "It is another start of a model that forms are fitted to, and stands beside these."
    return ""


def retrainings(study: Study, model: Model) -> list[Model]:
    """The method trained again on the same images with another start and order."""
    return [
        other
        for other in _same_images(study, model)
        if (other.method, other.options) == (model.method, model.options) and other.seed != model.seed
    ]


def untaught(study: Study, model: Model, form: str) -> list[Model]:
    """The form's method, with the form's options, trained on the labels of the same images."""
    return [other for other in _same_images(study, model) if _is_of_form(other, form)]


def _is_of_form(model: Model, form: str) -> bool:
    method = make_method(FORMS[form].method)
    return model.options == method_options(method) and type(model.task.method) is type(method)


def _same_images(study: Study, model: Model) -> list[Model]:
    if model.few_shot_split is None:
        return []
    others = [other for other in study.tuned if other.few_shot_split == model.few_shot_split]
    return [other for other in others if other.key != model.key]


def _fit_forms(study: Study, model: Model, fitted: Split, held_back: Split, context: SweepContext) -> dict[str, Fitted]:
    teacher = Teacher(model.task, model.learnables)  # which computes its logits of a list of images once
    forms = {}
    for name in study.options.replacement_forms:
        form = FORMS[name]
        task = form.task(study.clip, model.task, context.dtype)
        recipe = fit_recipe(learning_rate=form.learning_rate, steps=study.options.replacement_steps)
        # What a fit depends on. A study with other models beside this one continues from its fits.
        facts = [model.digest, study.clip.fingerprint, fitted.stored_digest, name, recipe.facts(), study.options.seed]
        folder = study.parts / "replacement" / f"{name}-{stable_hash(facts)}"
        learnables = fit_student(
            task, teacher, fitted, recipe, context, seed=study.options.seed, logging=Logging(checkpoints=folder)
        )
        student = Teacher(task, learnables)
        of_fitted, of_held_back = (_divergence(teacher, student, split, context) for split in (fitted, held_back))
        forms[name] = Fitted(student, Fit(form.words, of_fitted, of_held_back))
        say(f"{model.label}: {form.words} fitted, KL {of_fitted:.3g} nats; on held-back images {of_held_back:.3g}")
    return forms


def _divergence(teacher: Teacher, student: Teacher, split: Split, context: SweepContext) -> float:
    images = Images(split)
    expected, read = split_logits(teacher, images, context)
    actual, _ = split_logits(student, images, context)
    return float(divergences(expected[read], actual[read]).mean())


def _means(study: Study, model: Model, measured: MeasuredBiases) -> dict[str, Teacher]:
    """The mean of what a model's blocks add, in place of what forms of the same shapes learn."""
    towers = measured.towers
    means = {}
    for form, name in MEANS.items():
        method = make_method(name, vision_tower="vision" in towers, text_tower="text" in towers)
        task = Task(study.clip, method, model.task, dtype=model.task.classifier.dtype)
        means[form] = Teacher(task, {f"{tower}_bias": getattr(bias, form) for tower, bias in towers.items()})
    return means


def _classifications(study: Study, model: Model, beside: Beside, fitted: Split) -> RowRequest:
    """For "logits" `[n, K, C]` and "features" `[n, K, d]`, in the order of `_candidates`.

    What is kept of it is named by the images that forms were fitted on, which the study's fingerprint does not cover.
    """
    students = [*(each.student for each in beside.fitted.values()), *beside.means.values()]
    predictors = [Predictor.of(each.task, each.learnables, study.params) for each in students]

    def step(batch: Batch) -> dict[str, jax.Array]:
        frozen, tuned, *others = (predictor(study, each) for each in (study.worded, model, *beside.models))
        outputs = [
            each.logits_and_features(batch["images"], batch["mask"]) for each in (frozen, tuned, *predictors, *others)
        ]
        return {
            "logits": jnp.stack([logits for logits, _ in outputs], axis=1),
            "features": jnp.stack([features for _, features in outputs], axis=1),
        }

    return RowRequest(
        f"replacement-{model.key}-{fitted.stored_digest}", f"{model.label}: fitted replacements", study.images, step
    )


def _candidates(study: Study, model: Model, beside: Beside, rows: Mapping[str, np.ndarray]) -> Candidates:
    learnables = [
        study.worded.learnables,
        model.learnables,
        *(each.student.learnables for each in beside.fitted.values()),
        *(each.learnables for each in beside.means.values()),
        *(each.learnables for each in beside.models),
    ]
    outputs = iter(
        Outputs(logits, features, parameter_count(each)["total"])
        for each, logits, features in zip(
            learnables, np.moveaxis(rows["logits"], 1, 0), np.moveaxis(rows["features"], 1, 0), strict=True
        )
    )
    frozen = next(outputs)
    tuned = next(outputs)
    fitted = {name: next(outputs) for name in beside.fitted}
    means = {name: next(outputs) for name in beside.means}
    others = {each.key: next(outputs) for each in beside.models}
    return Candidates(
        frozen=frozen,
        tuned=tuned,
        fitted=fitted,
        means=means,
        retrainings={each.key: others[each.key] for each in beside.retrainings},
        untaught={form: {each.key: others[each.key] for each in models} for form, models in beside.untaught.items()},
    )
