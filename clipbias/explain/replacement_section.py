"""Fits forms to each tuned model's predictions on training images without labels, and compares them on the study's."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.data import Split
from clipbias.data.folder import divide
from clipbias.data.images import Images
from clipbias.explain.agreement import divergences
from clipbias.explain.model import Model
from clipbias.explain.passes import predictor
from clipbias.explain.replacement import Fit, Logits, summarize
from clipbias.explain.results import FittedReplacements, Missing
from clipbias.explain.stream import Batch, RowRequest, Section
from clipbias.explain.study import Study
from clipbias.training.compute import Compute
from clipbias.training.job import Logging
from clipbias.training.predictor import Predictor
from clipbias.training.students import FORMS, fit_recipe, fit_student
from clipbias.training.sweep_context import SweepContext
from clipbias.training.teacher import Teacher, split_logits
from clipbias.tuning.learnables import parameter_count
from clipbias.tuning.registry import make_method, method_options

# Share of the training images that no form is fitted on.
HELD_BACK = 0.2
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


def compute_replacement(study: Study) -> Section[dict[str, FittedReplacements | Missing]]:
    """By model what it can be exchanged for.

    Beside each fitted form stand the models of the study that are its controls: the same method trained again on the
    same few-shot split with another start, and the form's own method trained on the labels of that split.
    """
    results: dict[str, FittedReplacements | Missing] = {}
    fits: dict[str, dict[str, Fitted]] = {}
    requests: dict[str, RowRequest] = {}
    if study.training is None or len(study.training) < FEWEST:
        reason = "Replacements are fitted on training images, and there are none, or too few."
        return {model.key: Missing(reason) for model in study.tuned}
    unlabelled = dataclasses.replace(study.training, labels=np.zeros(len(study.training), np.int32))
    fitted, held_back, _ = (unlabelled.subset(part) for part in divide(unlabelled, (HELD_BACK, 0.0)))
    for model in study.tuned:
        if model.crops:
            results[model.key] = Missing("The method learns from crops of each image, which a form cannot.")
            continue
        fits[model.key] = _fit_forms(study, model, fitted, held_back)
        requests[model.key] = _classifications(study, model, fits[model.key])
    rows = yield list(requests.values())
    for model in study.tuned:
        if model.key in requests:
            of_model = rows[requests[model.key].name]
            logits = _by_name(study, model, fits[model.key], of_model["logits"])
            labels = study.split.labels[of_model["images"]]
            described = {name: each.fit for name, each in fits[model.key].items()}
            counts = (len(fitted), len(held_back))
            results[model.key] = summarize(model.label, logits, labels, described, counts)
    return {model.key: results[model.key] for model in study.tuned}


def retrainings(study: Study, model: Model) -> list[Model]:
    """The method trained again on the same images with another start and order."""
    return [
        other
        for other in _same_images(study, model)
        if (other.method, other.options) == (model.method, model.options) and other.seed != model.seed
    ]


def untaught(study: Study, model: Model, form: str) -> list[Model]:
    """The form's method, with the form's options, trained on the labels of the same images."""
    method = make_method(FORMS[form].method)
    return [
        other
        for other in _same_images(study, model)
        if other.options == method_options(method) and type(other.task.method) is type(method)
    ]


def _same_images(study: Study, model: Model) -> list[Model]:
    if model.split_seed is None:
        return []
    place = model.trained_on, model.split_seed
    others = [other for other in study.tuned if (other.trained_on, other.split_seed) == place]
    return [other for other in others if other.key != model.key]


def _fit_forms(study: Study, model: Model, fitted: Split, held_back: Split) -> dict[str, Fitted]:
    dtype = model.task.classifier.dtype
    context = SweepContext(
        study.clip,
        {},
        Compute(workers=study.options.workers),
        study.mesh,
        dtype=dtype,
        on_image_error=study.options.on_image_error,
    )
    teacher = Teacher(model.task, model.learnables)
    forms = {}
    for name, form in FORMS.items():
        task = form.task(study.clip, model.task, dtype)
        recipe = fit_recipe(learning_rate=form.learning_rate, steps=study.options.replacement_steps)
        folder = study.parts / "replacement" / study.fingerprint[:12] / f"{model.key}-{name}"
        learnables = fit_student(
            task, teacher, fitted, recipe, context, seed=study.options.seed, logging=Logging(checkpoints=folder)
        )
        student = Teacher(task, learnables)
        of_fitted, of_held_back = (_divergence(teacher, student, split, context) for split in (fitted, held_back))
        numbers = parameter_count(learnables)["total"]
        forms[name] = Fitted(student, Fit(form.words, numbers, of_fitted, of_held_back))
    return forms


def _divergence(teacher: Teacher, student: Teacher, split: Split, context: SweepContext) -> float:
    images = Images(split)
    expected, read = split_logits(teacher, images, context)
    actual, _ = split_logits(student, images, context)
    return float(divergences(expected[read], actual[read]).mean())


def _others(study: Study, model: Model, fits: dict[str, Fitted]) -> list[Model]:
    """All models of the study that stand beside the forms, each once."""
    others = retrainings(study, model)
    for form in fits:
        others = [*others, *untaught(study, model, form)]
    return list({other.key: other for other in others}.values())


def _classifications(study: Study, model: Model, fits: dict[str, Fitted]) -> RowRequest:
    """For "logits" `[n, K, C]`: of the frozen model, the tuned one, the forms, and the models beside them."""
    students = [Predictor.of(each.student.task, each.student.learnables, study.params) for each in fits.values()]

    def predictors() -> Sequence[Predictor]:
        models = [study.worded, model, *_others(study, model, fits)]
        frozen, tuned, *others = (predictor(study, each) for each in models)
        return [frozen, tuned, *students, *others]

    def step(batch: Batch) -> dict[str, jax.Array]:
        logits = [each.logits(batch["images"], batch["mask"]) for each in predictors()]
        return {"logits": jnp.stack(logits, axis=1)}

    return RowRequest(f"replacement-{model.key}", f"{model.label}: fitted replacements", study.images, step)


def _by_name(study: Study, model: Model, fits: dict[str, Fitted], logits: np.ndarray) -> Logits:
    frozen, tuned, *rest = np.moveaxis(logits, 1, 0)
    forms = dict(zip(fits, rest, strict=False))
    others = dict(zip([each.key for each in _others(study, model, fits)], rest[len(fits) :], strict=True))
    return Logits(
        frozen=frozen,
        tuned=tuned,
        forms=forms,
        retrainings={each.key: others[each.key] for each in retrainings(study, model)},
        untaught={form: {each.key: others[each.key] for each in untaught(study, model, form)} for form in fits},
    )
