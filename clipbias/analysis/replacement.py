"""Replacements of a tuned model: students fitted to it, compared with it, and a conclusion in words.

A share of the gain says how good a student is. Whether it makes the same predictions is measured on the *changed
predictions*: images whose predicted class tuning changed. The *ceiling* says how many of these any student can make: it
is the teacher's own method, fitted to the same outputs from another start, with the same images, steps and loss. A fit
is a lower bound on what a form can do.

Intervals are over images, with seeds crossed (`intervals`).
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.analysis.bias import METHOD_OF_FORM, EquivalentBias, measure_equivalent_biases
from clipbias.analysis.causal_section import at_fitted_temperature
from clipbias.analysis.model import Model
from clipbias.analysis.results import ByMetric, Missing, present, same_but_for_seed
from clipbias.analysis.sections import Section
from clipbias.analysis.study import Batch, Computation, Request, Study, for_each
from clipbias.analysis.verdict import MAIN_SHARE
from clipbias.data.held_out import divide_unlabelled
from clipbias.intervals import (
    Estimate,
    cross,
    estimate,
    excludes,
    in_points,
    resample,
    share,
    wilson_interval,
    with_interval,
)
from clipbias.sentences import counted
from clipbias.training.context import SweepContext, make_context
from clipbias.training.loop import RunOutputs
from clipbias.training.predictor import Predictor
from clipbias.training.progress import Progress, say
from clipbias.training.students import (
    FIRST_RATE,
    STUDENT_FORMS,
    UNIFORM_FORMS,
    Fit,
    divergences,
    fit_student,
    steps_of_fits,
)
from clipbias.training.teacher import why_no_student
from clipbias.tuning import Task
from clipbias.tuning.method import CONSTANTS, Learnables, parameter_count
from clipbias.tuning.registry import make_method, method_options
from clipbias.tuning.tuned import Tuned

# Form that sentences are about: two vectors per layer.
PLAIN = "kind"


class Origin(enum.StrEnum):
    FITTED = "fitted"  # a form, fitted to the teacher's outputs
    CEILING = "ceiling"  # the teacher's method, fitted likewise from another start
    MEAN = "mean"  # the mean of what the teacher's blocks add, without a fit
    LABELS = "on labels"  # the form's method, trained on labels
    RETRAINED = "retrained"  # the teacher's method, trained again on the same labelled images


class Word(enum.StrEnum):
    REPLACES = "replaces"
    GAIN = "has the gain of"
    MOST = "has most of the gain of"
    NOT_MATCHED = "not matched with so many images and steps"
    UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True)
class Student:
    """Model that may replace a teacher."""

    kind: Origin
    form: str  # name of the form, or of the method
    words: str  # description for sentences
    numbers: int  # stored parameters
    # Mean KL from the teacher in nats; `None` without a fit.
    fitted_divergence: float | None = None  # on fitted images: high if the form or the steps do not suffice
    held_back_divergence: float | None = None  # on held-back images: high beside a low first if images do not suffice
    steps: int | None = None  # of the fit; `None` without one
    plateau: bool | None = None  # whether the fit ended at a plateau (`until_plateau`), not at the last allowed step

    @classmethod
    def of(cls, fit: Fit, kind: Origin, form: str, words: str) -> "Student":
        numbers = parameter_count(fit.student.learnables)["total"]
        return cls(kind, form, words, numbers, fit.fitted_divergence, fit.held_back_divergence, fit.steps, fit.plateau)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of a student with its teacher, on images that it was not fitted on.

    R is the frozen model, P the teacher, F the student. Intervals are over images and seeds.
    """

    student: Student
    models: int  # teachers
    images: int
    moved_images: int  # changed predictions, `argmax z_R ≠ argmax z_P`, a mean over teachers
    divergence: Estimate  # mean KL `softmax z_P ‖ softmax z_F` in nats
    agreement: Estimate  # share of images with the teacher's prediction
    # The same share of some images; `None` without such an image:
    moved: Estimate | None  # of changed predictions
    fixed: Estimate | None  # of predictions that tuning made right
    broken: Estimate | None  # of predictions that tuning made wrong
    # Mean over images of the cosine between `f_F - f_R` and `f_P - f_R`, of unit-length image features, without changes
    # of texts and heads. `None` where one of the two changes no image feature.
    cosine: Estimate | None
    # `None` without labels:
    accuracy: float | None = None  # of the student
    difference: Estimate | None = None  # of accuracies, student less teacher, paired, as a share of images
    gain: ByMetric[Estimate] | None = None  # over the frozen model, with its share of the teacher's gain
    less_ceiling: Estimate | None = None  # `moved` less the ceiling's, paired; `None` without a ceiling
    word: Word | None = None  # `None` without a fit

    @property
    def margin(self) -> float | None:
        """Smallest loss of accuracy that the interval rules out, as a share; `None` without labels."""
        low = None if self.difference is None else self.difference.low
        return None if low is None else max(0.0, -low)

    @property
    def share(self) -> Estimate | None:
        """Share of the teacher's gain in log-likelihood; `None` where that is not surely above 0."""
        return None if self.gain is None else self.gain.log_likelihood.share


@dataclasses.dataclass(frozen=True)
class ImageComparisons:
    """Scores of `n` images. Columns `K` are frozen model, teacher, then the students."""

    students: tuple[Student, ...]  # `K - 2`
    decisions: np.ndarray  # predicted classes, uint16 `[n, K]`
    divergences: np.ndarray  # KL from the teacher in nats, float32 `[n, K]`
    cosines: np.ndarray  # see `Comparison`, float32 `[n, K]`; NaN where a feature does not change
    # `None` without labels:
    correct: np.ndarray | None = None  # uint8 `[n, K]`
    log_likelihood: np.ndarray | None = None  # of the true class in nats, float32 `[n, K]`


@dataclasses.dataclass(frozen=True)
class ModelReplacements:
    steps: int  # upper bound of each fit
    fitted_images: int  # without labels, as are held-back images
    held_back_images: int
    images: np.ndarray  # numbers of the study's images in the split, `[n]`
    by_image: ImageComparisons
    no_ceiling: str  # why the method was not fitted to itself; "" where it was


@dataclasses.dataclass(frozen=True)
class MethodReplacements:
    """Replacements of one method, over all its seeds."""

    name: str
    models: tuple[str, ...]  # keys
    gain: ByMetric[Estimate]  # of the teachers over the frozen model
    rows: tuple[Comparison, ...]
    sentence: str  # conclusion about two vectors per layer, or about the first form


@dataclasses.dataclass(frozen=True)
class ReplacementResults:
    models: dict[str, ModelReplacements | Missing]
    methods: tuple[MethodReplacements, ...]


# A student with a larger share has the gain; above `MAIN_SHARE` it has most of it.
WHOLE = 0.9
# Tolerance below the ceiling's share of changed predictions.
MARGIN = 0.05
# Two programs that compute the same unit-length feature in float32 differ by less.
ROUNDING = 1e-5
# Standard deviation, in images, added to counts of images in each resample. Without it, two models that differ on no
# image would have an interval of no width (Agresti and Min 2005 add as much to each cell of a table).
_HALF_IMAGE = 0.5


def cosines(features: np.ndarray) -> np.ndarray:
    """Computes cosines `[n, K]` between each model's and the teacher's change of unit-length features `[n, K, d]`.

    The frozen model comes first, the teacher second. NaN where a change is no larger than rounding.
    """
    features = np.asarray(features, np.float64)
    changes = features - features[:, :1]
    norms = np.linalg.norm(changes, axis=-1)
    moved = (norms > ROUNDING) & (norms[:, 1:2] > ROUNDING)
    products = (changes[:, 1:2] * changes).sum(-1)
    return np.where(moved, products / np.where(moved, norms[:, 1:2] * norms, 1.0), np.nan)


def by_image(
    students: Sequence[Student],
    logits: np.ndarray,
    features: np.ndarray | None = None,
    labels: np.ndarray | None = None,
) -> ImageComparisons:
    """Scores all models by logits `[n, K, C]`, unit-length image features `[n, K, d]` and labels `[n]`."""
    # All comparisons start from the same logits, so that agreement, accuracy and divergence are of one run of each
    # model.
    decisions = logits.argmax(-1)
    correct = log_likelihood = None
    if labels is not None:
        correct = (decisions == labels[:, None]).astype(np.uint8)
        log_likelihood = at_fitted_temperature(logits, labels)[0].astype(np.float32)
    of_features = np.full(decisions.shape, np.nan) if features is None else cosines(features)
    return ImageComparisons(
        students=tuple(students),
        decisions=decisions.astype(np.uint16),
        divergences=divergences(logits[:, 1:2], logits).astype(np.float32),
        cosines=of_features.astype(np.float32),
        correct=correct,
        log_likelihood=log_likelihood,
    )


def compare(models: Sequence[ImageComparisons]) -> tuple[ByMetric[Estimate] | None, tuple[Comparison, ...]]:
    """Compares students with their teacher, or with the teachers of one method that differ in their seeds alone.

    Returns the teachers' gain over the frozen model in points and in nats, `None` without labels, and a comparison for
    each origin and form, over the models that have it. Several students of one model are averaged.
    """
    # A study may lack some students for some seeds: each row is over the models that have it, and says how many.
    places = dict.fromkeys((student.kind, student.form) for model in models for student in model.students)
    rows = tuple(_compare([model for model in models if _at(model, place)], place) for place in places)
    # The gain is over all teachers, those without students included.
    whole = _Means.of(models)
    if "gain" not in whole.mean:
        return None, rows
    return ByMetric(accuracy=whole.number("gain", unit=100.0), log_likelihood=whole.number("nats")), rows


def conclude(share: Estimate | None, less_ceiling: Estimate | None) -> Word:
    """Concludes from a form's share of the gain in log-likelihood, and of changed predictions less the ceiling's."""
    # The whole gain alone is not enough to replace a method: other predictions can gain as much.
    if excludes(share, WHOLE) > 0:
        return Word.REPLACES if excludes(less_ceiling, -MARGIN) > 0 else Word.GAIN
    if excludes(share, MAIN_SHARE) > 0:
        return Word.MOST
    return Word.NOT_MATCHED if excludes(share, MAIN_SHARE) < 0 else Word.UNDECIDED


def plain_form(rows: Sequence[Comparison]) -> Comparison | None:
    """Returns the comparison of two vectors per layer, or else of the first fitted form."""
    fitted = {row.student.form: row for row in rows if row.student.kind is Origin.FITTED}
    return fitted.get(PLAIN, next(iter(fitted.values()), None))


def sentence(name: str, rows: Sequence[Comparison], no_ceiling: str = "") -> str:
    """Writes the conclusion about `plain_form(rows)` in the place of the method `name`, and its gap to the ceiling."""
    if (row := plain_form(rows)) is None:
        return ""
    words = row.student.words
    one = words.startswith("one ")
    have = "has" if one else "have"
    text = {
        Word.REPLACES: f"{words} can replace {name}",
        Word.GAIN: f"{words} {have} {'more than ' if excludes(row.share, 1 / WHOLE) > 0 else ''}the gain of {name}",
        Word.MOST: f"{words} {have} most of the gain of {name}",
        Word.NOT_MATCHED: f"{words} did not match the gain of {name} with so many images and steps",
        Word.UNDECIDED: f"whether {words} {have} the gain of {name} is undecided"
        if row.share
        else f"{name} has no sure gain that {words} could have",
    }[row.word or Word.UNDECIDED]
    text = f"{text[:1].upper()}{text[1:]}."
    if row.moved is None:
        return f"{text} No prediction changed."
    if row.less_ceiling is None:
        if any(each.student.kind is Origin.CEILING for each in rows):
            return f"{text} {uncertain_share(row)}"
        return f"{text} {no_ceiling or f'{name} was not fitted to itself, so there is no ceiling.'}"
    gap = fewer(row.less_ceiling)
    make = "it makes" if one else "they make"
    return f"{text} Of 100 predictions that {name} changed, {make} {gap} than {name} fitted in the same way."


def uncertain_share(row: Comparison) -> str:
    """Says that the share of changed predictions, among images and seeds, is not surely above 0."""
    changed = f"{row.moved_images:,} of {row.images:,} images, {counted(row.models, 'seed')}"
    return f"The share of changed predictions is too uncertain to compare them with the ceiling: {changed}."


def fewer(less: Estimate) -> str:
    """Writes a difference of shares with its interval: `17 (13 to 22) fewer` of 100, or `3 (-1 to 7) more`."""
    if round(100 * less.value) > 0:
        return f"{with_interval(in_points(less), '{:z.0f}'.format)} more"
    low, high = (None if end is None else -end for end in (less.high, less.low))
    return f"{with_interval(in_points(Estimate(-less.value, low, high)), '{:z.0f}'.format)} fewer"


@dataclasses.dataclass(frozen=True)
class _Means:
    """Means over images and models by name, and the same means in each resample, `[R]`."""

    mean: dict[str, float]
    draws: dict[str, np.ndarray]

    @classmethod
    def of(cls, models: Sequence[ImageComparisons], place: tuple[Origin, str] | None = None) -> "_Means":
        """Averages `_columns` over images, with seeds and images crossed; `ValueError` for different images."""
        # Per-image columns of all quantities are resampled together, so that every ratio below is of the same draws.
        columns = [_columns(model, place) for model in models]
        names = [*columns[0][0], *columns[0][1]]
        arrays = [np.stack([*counts.values(), *values.values()], axis=1) for counts, values in columns]
        if len({len(rows) for rows in arrays}) > 1:
            raise ValueError("models that differ in their seeds are compared on the same images")
        draws = [resample(rows) for rows in arrays]
        # The same for all models, as they have the same images; for counts alone, which come first, since averages of
        # nats vary anyway. Behind `resample`, so that its draws, and all intervals of the study, stay as they are.
        extra = np.random.default_rng(0).normal(0.0, _HALF_IMAGE / len(arrays[0]), draws[0].shape)
        extra[:, len(columns[0][0]) :] = 0.0
        if "gain" in names:  # as the causal test has it
            extra[:, names.index("gain")] = 0.0
        means = [rows.mean(0) for rows in arrays]
        crossed = cross(means, [of_model + extra for of_model in draws])
        return cls(
            dict(zip(names, np.mean(means, axis=0).tolist(), strict=True)), dict(zip(names, crossed.T, strict=True))
        )

    def number(self, name: str, *, of: str | None = None, unit: float = 1.0) -> Estimate:
        """Estimates a mean times `unit`, with its share of the mean `of`, where that is surely above 0."""
        mean, draws = unit * self.mean[name], unit * self.draws[name]
        if of is None or self.mean[of] <= 0:
            return estimate(mean, draws)
        return share(mean, draws, unit * self.mean[of], unit * self.draws[of])

    def ratio(self, name: str, of: str) -> Estimate | None:
        """Estimates a mean divided by the mean `of`; `None` where that is not surely above 0."""
        return self.number(name, of=of).share


def _columns(
    model: ImageComparisons, place: tuple[Origin, str] | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Per-image columns `[n]`, float64 by name: counts to sum, values to average; of the teacher without a place."""
    frozen, teacher = model.decisions[:, 0], model.decisions[:, 1]
    at = [] if place is None else _at(model, place)
    # Numerators and denominators of shares are both counts over images: which images changed differs by resample.
    groups = {"every": np.ones(len(frozen), bool), "moved": teacher != frozen}
    if model.correct is not None:
        was_right, is_right = model.correct[:, 0] > 0, model.correct[:, 1] > 0
        groups |= {"fixed": is_right & ~was_right, "broken": was_right & ~is_right}
    counts: dict[str, np.ndarray] = {name: 1.0 * rows for name, rows in groups.items()}
    values: dict[str, np.ndarray] = {}
    if place is not None:
        same = _same(model, place)
        counts |= {f"same {name}": rows * same for name, rows in groups.items()}
        if ceilings := [(each.kind, each.form) for each in model.students if each.kind is Origin.CEILING]:
            # Paired image by image: the difference of two shares has a narrower interval than each share has.
            counts["less ceiling"] = groups["moved"] * (same - _same(model, ceilings[0]))
    if model.correct is not None:
        correct = model.correct.astype(np.float64)
        counts["gain"] = correct[:, 1] - correct[:, 0]
        if place is not None:
            counts["accuracy"] = correct[:, at].mean(1)
            counts["student's gain"] = counts["accuracy"] - correct[:, 0]
            counts["difference"] = counts["accuracy"] - correct[:, 1]
    if model.log_likelihood is not None:
        nats = model.log_likelihood.astype(np.float64)
        values["nats"] = nats[:, 1] - nats[:, 0]
        if place is not None:
            values["student's nats"] = nats[:, at].mean(1) - nats[:, 0]
    if place is not None:
        cosine = model.cosines[:, at].astype(np.float64)
        values["divergence"] = model.divergences[:, at].astype(np.float64).mean(1)
        # A mean over images whose feature changed: NaN counts 0 in the numerator, and is not counted in the
        # denominator.
        values["cosine"], values["moved feature"] = np.nan_to_num(cosine).mean(1), np.isfinite(cosine).mean(1)
    return counts, values


def _compare(models: Sequence[ImageComparisons], place: tuple[Origin, str]) -> Comparison:
    means = _Means.of(models, place)
    images = len(models[0].decisions)
    of_place = [model.students[at - 2] for model in models for at in _at(model, place)]

    def proportion(name: str) -> Estimate | None:
        if not means.mean.get(name):
            return None
        # A single model's share is a binomial proportion: Wilson's interval stays in [0, 1] and holds for few images,
        # where a bootstrap of 0 or n successes has no width.
        same = means.mean[f"same {name}"] / means.mean[name]
        if len(models) == 1:
            low, high = (end / 100 for end in wilson_interval(100 * same, images * means.mean[name]))
            return Estimate(same, low, high)
        number = means.ratio(f"same {name}", name)
        if number is None or number.low is None or number.high is None:
            return Estimate(same)  # so few images that a resample may hold none
        return Estimate(same, max(0.0, number.low), min(1.0, number.high))

    agreement = proportion("every")
    assert agreement is not None, "there are images"
    student = dataclasses.replace(
        of_place[0],
        numbers=round(np.mean([each.numbers for each in of_place])),
        fitted_divergence=_mean([each.fitted_divergence for each in of_place]),
        held_back_divergence=_mean([each.held_back_divergence for each in of_place]),
        steps=None if of_place[0].steps is None else round(np.mean([each.steps or 0 for each in of_place])),
        plateau=None if of_place[0].plateau is None else all(each.plateau for each in of_place),
    )
    comparison = Comparison(
        student=student,
        models=len(models),
        images=images,
        moved_images=round(images * means.mean["moved"]),
        divergence=means.number("divergence"),
        agreement=agreement,
        moved=proportion("moved"),
        fixed=proportion("fixed"),
        broken=proportion("broken"),
        cosine=means.ratio("cosine", "moved feature") if means.mean["moved feature"] else None,
    )
    if "gain" in means.mean:
        comparison = dataclasses.replace(
            comparison,
            accuracy=means.mean["accuracy"],
            difference=means.number("difference"),
            gain=ByMetric(
                accuracy=means.number("student's gain", of="gain", unit=100.0),
                log_likelihood=means.number("student's nats", of="nats"),
            ),
        )
    if place[0] is not Origin.FITTED:
        return comparison
    less = means.ratio("less ceiling", "moved") if "less ceiling" in means.mean else None
    return dataclasses.replace(comparison, less_ceiling=less, word=conclude(comparison.share, less))


def _at(model: ImageComparisons, place: tuple[Origin, str]) -> list[int]:
    return [at for at, student in enumerate(model.students, start=2) if (student.kind, student.form) == place]


def _same(model: ImageComparisons, place: tuple[Origin, str]) -> np.ndarray:
    """Returns how often the students in a place predict the teacher's class, `[n]`."""
    return (model.decisions[:, _at(model, place)] == model.decisions[:, [1]]).mean(1)


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


FEWEST = 10  # unlabelled images
Candidate = tuple[Student, Tuned]


def compute_replacement(study: Study) -> Computation[ReplacementResults]:
    """Fits students to every tuned model, and compares them and its controls with it."""
    # Each form and, as the ceiling, the model's own method from another start are fitted to the model's outputs on the
    # same images, with the same steps and loss: only then is the gap to the ceiling that of the form. Controls are not
    # fitted: the mean of what the model's blocks add, the same method trained again on the same few-shot split, and the
    # form's method trained on the labels of that split.
    reasons = {model.key: why_not_fitted(study, model) for model in study.tuned}
    teachers = [model for model in study.tuned if not reasons[model.key]]
    models: dict[str, ModelReplacements | Missing] = {key: Missing(reason) for key, reason in reasons.items() if reason}
    if not teachers:
        return ReplacementResults(models, ())
    # Requests come before fits: means over training images belong to the study's passes, fits run in between.
    biases = yield from measure_equivalent_biases(study, teachers)
    forms = study.options.replacement_forms
    fits = Fits(study, sum(len(forms) + (not no_ceiling(model)) for model in teachers))
    beside: dict[str, list[Candidate]] = {}
    for model in teachers:
        beside[model.key] = [] if no_ceiling(model) else [fits.ceiling(model, model.task)]
        for name in forms:
            form = STUDENT_FORMS[name]
            task = Task(study.clip, form.method, model.task, dtype=fits.context.dtype)
            fit = fits.fit(model, task, rate=form.learning_rate)
            beside[model.key].append((Student.of(fit, Origin.FITTED, name, form.words), fit.student))
        if model.key in biases:
            beside[model.key] += _means(study, model, biases[model.key])
        for kind, method, other in controls(study, model):
            student = Student(kind, method, other.label, parameter_count(other.learnables)["total"])
            beside[model.key].append((student, other.tuned))
    fits.progress.close()
    return (yield from compare_students(study, fits, beside, models, write=sentence, name="replacement"))


def compare_students(
    study: Study,
    fits: "Fits",
    beside: Mapping[str, list[Candidate]],
    models: Mapping[str, ModelReplacements | Missing],
    *,
    write: Callable[[str, Sequence[Comparison], str], str],
    name: str,
) -> Computation[ReplacementResults]:
    """Compares teachers with students beside them, by model, then over seeds.

    `models` has the other tuned models; `write` makes a method's sentence as `sentence` does; `name` is a section's.
    """
    teachers = [model for model in study.tuned if model.key in beside]
    rows = yield from for_each(teachers, lambda model: _classifications(study, name, model, beside[model.key]))
    compared = dict(models)
    for model in teachers:
        of_model = rows[model.key]
        students = [student for student, _ in beside[model.key]]
        labels = study.split.labels[of_model["images"]]
        compared[model.key] = ModelReplacements(
            steps=study.options.replacement_steps,
            fitted_images=len(fits.fitted),
            held_back_images=len(fits.held_back),
            images=of_model["images"],
            by_image=by_image(students, of_model["logits"], of_model["features"], labels),
            no_ceiling=no_ceiling(model),
        )
    ordered = {model.key: compared[model.key] for model in study.tuned}
    methods = []
    for of_method in same_but_for_seed(teachers):
        fitted_to = present({model.key: ordered[model.key] for model in of_method})
        first = of_method[0]
        label = (first.name or first.label) if len(of_method) > 1 else first.label
        gain, comparisons = compare([each.by_image for each in fitted_to.values()])
        assert gain is not None, "the images of a study have labels"
        text = write(label, comparisons, fitted_to[first.key].no_ceiling)
        methods.append(MethodReplacements(label, tuple(fitted_to), gain, comparisons, text))
    return ReplacementResults(ordered, tuple(methods))


REPLACEMENT = Section(
    name="replacement", title="What can stand for it", result=ReplacementResults, compute=compute_replacement
)


def why_not_fitted(study: Study, model: Model) -> str:
    """Returns why nothing is fitted to a model, in a sentence, or ""."""
    if not study.options.replacement_steps:
        return "Nothing is fitted: --config.replacement_steps is 0."
    if study.unlabelled is None or len(study.unlabelled) < FEWEST:
        return "Replacements are fitted on training and validation images, and there are none, or too few."
    if model.crops:
        return "The method learns from crops of each image, which a form cannot."
    if any(_is_of_form(model, form) for form in (*UNIFORM_FORMS, *study.options.replacement_forms)):
        return "It has the form of a replacement already."
    # Of several starts on the same images only the first is a teacher; the others show how far two trainings differ.
    earlier = study.tuned[: study.tuned.index(model)]
    if any(kind is Origin.RETRAINED and other in earlier for kind, _, other in controls(study, model)):
        return "It is another start of a model that forms are fitted to, and is a control of that model."
    return ""


def no_ceiling(model: Model) -> str:
    """Returns why a model's method cannot be fitted to its outputs, in a sentence, or ""."""
    reason = why_no_student(model.task.method)
    name = model.name or model.label
    return f"{name} cannot be fitted to outputs, so there is no ceiling: {reason}." if reason else ""


def controls(study: Study, model: Model) -> list[tuple[Origin, str, Model]]:
    """Returns origin, form and model of a tuned model's controls, which were trained on the same few-shot split."""
    if model.few_shot_split is None:
        return []
    others = [each for each in study.tuned if each.few_shot_split == model.few_shot_split and each.key != model.key]
    found = [
        (Origin.RETRAINED, model.method, other)
        for other in others
        if (other.method, other.training) == (model.method, model.training) and other.seed != model.seed
    ]
    for form in study.options.replacement_forms:
        # Trainings that differ in more than their seed are no average: each has a row of its own.
        trainings = dict.fromkeys(each.training for each in study.tuned if _is_of_form(each, form))
        names = {training: f"{form} ({at})" if at > 1 else form for at, training in enumerate(trainings, start=1)}
        found += [(Origin.LABELS, names[other.training], other) for other in others if _is_of_form(other, form)]
    return found


def _is_of_form(model: Model, form: str) -> bool:
    method = make_method(STUDENT_FORMS[form].method)
    return model.options == method_options(method) and type(model.task.method) is type(method)


class Fits:
    """Fits of a study, with one progress bar for all."""

    def __init__(self, study: Study, count: int) -> None:
        """Divides the unlabelled images for `count` fits."""
        assert study.unlabelled is not None, "without images nothing is fitted"
        self.study = study
        self.fitted, self.held_back, _ = divide_unlabelled(study.unlabelled)
        self.context: SweepContext = make_context(
            study.clip,
            study.mesh,
            dtype=study.zero_shot.task.classifier.dtype,
            on_image_error=study.options.on_image_error or "raise",
            workers=study.options.workers,
        )
        total = steps_of_fits(count, study.options.replacement_steps)
        study.advance("", 0, 0)  # hides the study's bar
        say(f"replacements: about {counted(total, 'step')} at most (--config.replacement_steps; 0 leaves them out)")
        self.progress = Progress(total, title="replacements")

    def ceiling(self, model: Model, task: Task, constants: Learnables | None = None) -> Candidate:
        """Fits a task of the method itself, from another start."""
        # The rate of the method's own recipe is for labels.
        fit = self.fit(model, task, rate=FIRST_RATE, constants=constants)
        words = f"{model.name or model.label} itself, from another start"
        return Student.of(fit, Origin.CEILING, model.method, words), fit.student

    def fit(self, model: Model, task: Task, *, rate: float, constants: Learnables | None = None) -> Fit:
        """Fits a task, with `constants` among its learnables, to a model's outputs."""
        seed = self.study.options.seed
        seed += seed == model.seed  # another start than the teacher's
        initial = None
        if constants is not None:
            learnables = task.init(seed)
            initial = Tuned(task, {**learnables, CONSTANTS: {**learnables[CONSTANTS], **constants}})
        fit = fit_student(
            task,
            model.tuned,
            self.fitted,
            self.held_back,
            self.context,
            rate=rate,
            most_steps=self.study.options.replacement_steps,
            seed=seed,
            initial=initial,
            outputs=RunOutputs(checkpoints=self.study.parts / "replacement", progress=self.progress),
        )
        # Both images: a high first number blames the form or the steps, a low first and a high second the number of
        # images.
        say(
            f"{model.label}: {task.method_name}, fitted, KL {fit.fitted_divergence:.3g} nats; on held-back images "
            f"{fit.held_back_divergence:.3g}; rate {fit.learning_rate:g}, {counted(fit.steps, 'step')} to "
            f"{'a plateau' if fit.plateau else '--config.replacement_steps'}"
        )
        return fit


def _means(study: Study, model: Model, towers: Mapping[str, EquivalentBias]) -> list[Candidate]:
    """Makes students of a model's equivalent biases, in the forms that have their shapes."""
    candidates = []
    for form, name in METHOD_OF_FORM.items():
        task = model.task.with_method(make_method(name, vision_tower="vision" in towers, text_tower="text" in towers))
        learnables = {f"{tower}_bias": getattr(bias, form) for tower, bias in towers.items()}
        numbers = parameter_count(learnables)["total"]
        candidates.append((Student(Origin.MEAN, form, STUDENT_FORMS[form].words, numbers), Tuned(task, learnables)))
    return candidates


def _classifications(study: Study, section: str, model: Model, beside: Sequence[Candidate]) -> Request:
    """Requests "logits" `[n, K, C]` and "features" `[n, K, d]` of frozen model, tuned model, and students."""
    # Texts are encoded once, before the pass over the images; frozen and tuned model are shared with other sections.
    predictors = [study.predictor(study.reference(model)), study.predictor(model)]
    predictors += [Predictor.of(each, study.params, study.replicate(each.learnables)) for _, each in beside]

    def step(batch: Batch) -> dict[str, jax.Array]:
        # All of them on the same batch, so that agreement, accuracy and divergence are of the same images and runs.
        outputs = [each.logits_and_features(batch["images"], batch["mask"]) for each in predictors]
        logits, features = (jnp.stack(each, axis=1) for each in zip(*outputs, strict=True))
        return {"logits": logits, "features": features}

    return Request(f"{section}-{model.key}", f"{model.label}: {section}", study.images, step)
