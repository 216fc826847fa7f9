"""Fits forms, and the method itself, to each tuned model's outputs on unlabelled images; compares them on others."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.data import Split
from clipbias.data.held_out import divide_unlabelled
from clipbias.errors import ClipbiasError
from clipbias.explain.bias_adapter import METHODS as MEANS
from clipbias.explain.equivalent_bias import MeasuredBiases, measure_equivalent_biases, missing
from clipbias.explain.model import Model
from clipbias.explain.passes import predictor
from clipbias.explain.replacement import Outputs, by_image, compare, sentence
from clipbias.explain.requests import Batch, RowRequest, Section
from clipbias.explain.results import (
    Kind,
    MethodReplacements,
    Missing,
    ModelReplacements,
    ReplacementResults,
    Student,
    present,
    same_but_for_seed,
)
from clipbias.explain.study import Study
from clipbias.sentences import counted
from clipbias.training.context import SweepContext, make_context
from clipbias.training.evaluate import Predictor
from clipbias.training.job import Logging
from clipbias.training.progress import Progress, say
from clipbias.training.spec import stable_hash
from clipbias.training.students import (
    CONSTANTS,
    FORMS,
    TRIAL_STEPS,
    fit_recipe,
    fit_student,
    mean_divergence,
    select_rate,
)
from clipbias.training.teacher import Teacher, why_no_student
from clipbias.tuning import Task
from clipbias.tuning.method import parameter_count
from clipbias.tuning.registry import make_method, method_options

FEWEST = 10
# Steps that a forecast leaves out, while programs are compiled, and steps that it measures.
_FIRST, _MEASURED = 3, 10

# A student's description and the model itself.
Candidate = tuple[Student, Teacher]


def compute_replacement(study: Study) -> Section[ReplacementResults]:
    """What each tuned model can be exchanged for, and each method over its seeds.

    For every model these are fitted to its outputs on the same images, with as many steps and the same loss: each form,
    and the model's own method from another start, the ceiling. Beside them stand the mean of what the model's blocks
    add, and models of the study to which nothing is fitted: the same method trained again on the same few-shot split,
    and the form's own method trained on the labels of that split.
    """
    reasons = {model.key: why_not_fitted(study, model) for model in study.tuned}
    teachers = [model for model in study.tuned if not reasons[model.key]]
    models: dict[str, ModelReplacements | Missing] = {key: Missing(reason) for key, reason in reasons.items() if reason}
    if not teachers:
        return ReplacementResults(models, ())
    assert study.unlabelled is not None, "without images nothing is fitted"
    fitted, held_back, _ = divide_unlabelled(study.unlabelled)
    biases = yield from measure_equivalent_biases(study, [model for model in teachers if not missing(study, model)])
    fits = _Fits(study, fitted, held_back, teachers)
    beside: dict[str, list[Candidate]] = {}
    for model in teachers:
        beside[model.key] = fits.fit(model)
        if model.key in biases:
            beside[model.key] += _means(study, model, biases[model.key])
    requests = {model.key: _classifications(study, model, beside[model.key], fitted) for model in teachers}
    rows = yield list(requests.values())
    for model in teachers:
        of_model = rows[requests[model.key].name]
        outputs = [
            Outputs(logits, features)
            for logits, features in zip(
                np.moveaxis(of_model["logits"], 1, 0), np.moveaxis(of_model["features"], 1, 0), strict=True
            )
        ]
        students = [student for student, _ in (*beside[model.key], *_controls(study, model))]
        labels = study.split.labels[of_model["images"]]
        models[model.key] = ModelReplacements(
            steps=study.options.replacement_steps,
            fitted_images=len(fitted),
            held_back_images=len(held_back),
            images=of_model["images"],
            by_image=by_image(outputs[0], outputs[1], outputs[2:], students, labels),
            no_ceiling=no_ceiling(model),
        )
    ordered = {model.key: models[model.key] for model in study.tuned}
    return ReplacementResults(ordered, _by_method(study, present(ordered)))


def why_not_fitted(study: Study, model: Model) -> str:
    """One sentence why nothing is fitted to a model, or ""."""
    if not study.options.replacement_steps:
        return "Nothing is fitted: --config.replacement_steps is 0."
    if study.unlabelled is None or len(study.unlabelled) < FEWEST:
        return "Replacements are fitted on training and validation images, and there are none, or too few."
    if model.crops:
        return "The method learns from crops of each image, which a form cannot."
    if any(_is_of_form(model, form) for form in (*CONSTANTS, *study.options.replacement_forms)):
        return "It is one of the forms that others are replaced by, trained on labels."
    earlier = study.tuned[: study.tuned.index(model)]
    if any(other in retrainings(study, model) for other in earlier):
        return "It is another start of a model that forms are fitted to, and stands beside these."
    return ""


def no_ceiling(model: Model) -> str:
    """One sentence why a model's method cannot be fitted to its outputs, or ""."""
    reason = why_no_student(model.task.method)
    name = model.name or model.label
    return f"{name} cannot be fitted to outputs, so there is no ceiling: {reason}." if reason else ""


def retrainings(study: Study, model: Model) -> list[Model]:
    """The method trained again on the same images with another start and order."""
    return [
        other
        for other in _same_images(study, model)
        if (other.method, other.options) == (model.method, model.options) and other.seed != model.seed
    ]


def on_labels(study: Study, model: Model, form: str) -> list[Model]:
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


class _Fits:
    """The fits of a study, with their time said after the first steps."""

    def __init__(self, study: Study, fitted: Split, held_back: Split, teachers: Sequence[Model]) -> None:
        self._study = study
        self._fitted, self._held_back = fitted, held_back
        self._steps = study.options.replacement_steps
        self._context: SweepContext = make_context(
            study.clip,
            study.mesh,
            dtype=study.zero_shot.task.classifier.dtype,
            on_image_error=study.options.on_image_error,
            workers=study.options.workers,
        )
        ceiling = 3 * min(self._steps, TRIAL_STEPS) + self._steps * (self._steps > TRIAL_STEPS)
        forms = self._steps * len(study.options.replacement_forms)
        self._progress = _Forecast(sum(forms + ceiling * (not no_ceiling(model)) for model in teachers))

    def fit(self, model: Model) -> list[Candidate]:
        """The ceiling, where there is one, then each form."""
        teacher = Teacher(model.task, model.learnables)  # which computes its logits of a list of images once
        candidates = [] if no_ceiling(model) else [self._fit_ceiling(model, teacher)]
        for name in self._study.options.replacement_forms:
            form = FORMS[name]
            task = form.task(self._study.clip, model.task, self._context.dtype)
            student = self._fit(model, teacher, task, form.learning_rate, self._steps)
            candidates.append(self._describe(model, teacher, student, Kind.FITTED, name, form.words))
        return candidates

    def _fit_ceiling(self, model: Model, teacher: Teacher) -> Candidate:
        def divergence(rate: float) -> float:
            try:
                trial = self._fit(model, teacher, model.task, rate, min(self._steps, TRIAL_STEPS))
                return mean_divergence(teacher, trial, self._held_back, self._context)
            except ClipbiasError:  # a loss that is not finite: the rate is too high
                return np.nan

        rate = select_rate(divergence)
        ceiling = self._fit(model, teacher, model.task, rate, self._steps)
        words = f"{model.name or model.label} itself, from another start"
        return self._describe(model, teacher, ceiling, Kind.CEILING, model.method, words)

    def _fit(self, model: Model, teacher: Teacher, task: Task, rate: float, steps: int) -> Teacher:
        recipe = fit_recipe(learning_rate=rate, steps=steps)
        seed = self._study.options.seed
        seed += seed == model.seed  # another start than the teacher's
        # What a fit depends on. A study with other models beside this one continues from its fits.
        facts = [model.digest, self._study.clip.fingerprint, self._fitted.stored_digest, task.options()]
        key = stable_hash([*facts, recipe.facts(), seed])
        folder = self._study.parts / "replacement" / f"{Path(task.method_name).stem}-{key}"
        logging = Logging(checkpoints=folder, progress=self._progress)
        learnables = fit_student(task, teacher, self._fitted, recipe, self._context, seed=seed, logging=logging)
        return Teacher(task, learnables)

    def _describe(
        self, model: Model, teacher: Teacher, student: Teacher, kind: Kind, form: str, words: str
    ) -> Candidate:
        kl = [mean_divergence(teacher, student, split, self._context) for split in (self._fitted, self._held_back)]
        say(f"{model.label}: {words}, fitted, KL {kl[0]:.3g} nats; on held-back images {kl[1]:.3g}")
        numbers = parameter_count(student.learnables)["total"]
        return Student(kind, form, words, numbers, fitted_divergence=kl[0], held_back_divergence=kl[1]), student


class _Forecast(Progress):
    """A bar for each fit, and after the first measured steps a line that says how long all fits take."""

    def __init__(self, steps: int) -> None:
        super().__init__(0, title="replacements")
        self._steps = steps
        self._seen = 0
        self._began = 0.0

    def advance(self, count: int = 1, values: Mapping[str, Any] | None = None) -> None:
        super().advance(count, values)
        self._seen += count
        if self._seen == _FIRST:
            self._began = time.monotonic()
        elif self._seen == _FIRST + _MEASURED:
            say(forecast(self._steps, (time.monotonic() - self._began) / _MEASURED))


def forecast(steps: int, seconds: float) -> str:
    """How long so many steps of so many seconds take."""
    total = steps * seconds
    words = counted(round(total / 60), "minute") if total >= 90 else counted(max(1, round(total)), "second")
    return f"Replacements take about {words} (--config.replacement_steps sets their steps; 0 leaves them out)."


def _means(study: Study, model: Model, measured: MeasuredBiases) -> list[Candidate]:
    """The mean of what a model's blocks add, in place of what forms of the same shapes learn."""
    towers = measured.towers
    candidates = []
    for form, name in MEANS.items():
        method = make_method(name, vision_tower="vision" in towers, text_tower="text" in towers)
        task = Task(study.clip, method, model.task, dtype=model.task.classifier.dtype)
        learnables = {f"{tower}_bias": getattr(bias, form) for tower, bias in towers.items()}
        numbers = parameter_count(learnables)["total"]
        candidates.append((Student(Kind.MEAN, form, FORMS[form].words, numbers), Teacher(task, learnables)))
    return candidates


def _controls(study: Study, model: Model) -> list[tuple[Student, Model]]:
    """Models of the study beside a tuned one; nothing was fitted to these."""
    controls = [(Kind.RETRAINED, model.method, other) for other in retrainings(study, model)]
    for form in study.options.replacement_forms:
        controls += [(Kind.LABELS, form, other) for other in on_labels(study, model, form)]
    return [
        (Student(kind, form, other.label, parameter_count(other.learnables)["total"]), other)
        for kind, form, other in controls
    ]


def _classifications(study: Study, model: Model, beside: Sequence[Candidate], fitted: Split) -> RowRequest:
    """For "logits" `[n, K, C]` and "features" `[n, K, d]`: frozen model, tuned model, `beside`, then its controls.

    What is kept of it is named by the images that forms were fitted on, which the study's fingerprint does not cover.
    """
    predictors = [Predictor.of(each.task, each.learnables, study.params) for _, each in beside]
    controls = [control for _, control in _controls(study, model)]

    def step(batch: Batch) -> dict[str, jax.Array]:
        frozen, tuned, *others = (predictor(study, each) for each in (study.worded, model, *controls))
        outputs = [
            each.logits_and_features(batch["images"], batch["mask"]) for each in (frozen, tuned, *predictors, *others)
        ]
        return {
            "logits": jnp.stack([logits for logits, _ in outputs], axis=1),
            "features": jnp.stack([features for _, features in outputs], axis=1),
        }

    return RowRequest(
        f"replacement-{model.key}-{fitted.stored_digest}", f"{model.label}: replacements", study.images, step
    )


def _by_method(study: Study, fitted: Mapping[str, ModelReplacements]) -> tuple[MethodReplacements, ...]:
    """What each method can be exchanged for, over the models that something was fitted to."""
    methods = []
    for models in same_but_for_seed([model for model in study.tuned if model.key in fitted]):
        first = models[0]
        name = (first.name or first.label) if len(models) > 1 else first.label
        gain, rows = compare([fitted[model.key].by_image for model in models])
        assert gain is not None, "the images of a study have labels"
        text = sentence(name, rows, fitted[first.key].no_ceiling)
        methods.append(MethodReplacements(name, tuple(model.key for model in models), gain, rows, text))
    return tuple(methods)
