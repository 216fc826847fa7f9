"""Distillation of a tuned model into a plain CLIP: fits forms to its predictions, selects one, and certifies it.

Only the certificate reads labels. The form is selected on unlabelled images that no form was fitted on, and certified
once, on images that were used nowhere else.
"""

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipbias.analysis.replacement import Comparison, Origin, Student, by_image, compare
from clipbias.checks import Choices, Count, Positive, Range, check_fields
from clipbias.clip import Clip
from clipbias.constants import ZERO_SHOT
from clipbias.data import Dataset, Split
from clipbias.data.held_out import divide_unlabelled, unlabelled_images
from clipbias.data.images import Images, check_readable
from clipbias.data.sources import open_images
from clipbias.data.user_images import image_list, list_images
from clipbias.errors import ClipbiasError
from clipbias.export.card import NOTE
from clipbias.identity import identity
from clipbias.intervals import Estimate
from clipbias.settings import setting
from clipbias.training.context import SweepContext, make_context
from clipbias.training.loop import RunOutputs
from clipbias.training.progress import Progress
from clipbias.training.spec import DISTILLATION, data_notes, seen_in_training
from clipbias.training.students import FIT_BATCH, FIT_STEPS, STUDENT_FORMS, fit_student, steps_of_fits
from clipbias.training.teacher import split_logits
from clipbias.tuned_model import AnyImages, TunedModel, as_clip, check_model, labelled_images
from clipbias.tuning import Task
from clipbias.tuning.prompts import Classes
from clipbias.tuning.tuned import Tuned

# A smaller form is selected if its share of agreement on held-back images is below the best by no more than this.
AGREEMENT_TOLERANCE = 0.01
FEWEST_UNLABELLED = 5


@dataclasses.dataclass(frozen=True)
class DistilOptions:
    """Settings of the fits."""

    form: Annotated[str, Choices(tuple(STUDENT_FORMS))] | None = setting(
        None,
        '"vector", "kind", "layer_norm" or "lora" (docs/distil.md). Default: fits all that make a plain CLIP and '
        "selects the smallest whose agreement with the adapter is within one point of the best.",
    )
    steps: Positive = setting(FIT_STEPS, "Largest number of steps of Adam for each form; a plateau ends a fit before.")
    batch_size: Positive = setting(FIT_BATCH, "Unlabelled images per step, over all devices.")
    learning_rate: Annotated[float, Range(0, 3e38)] | None = setting(
        None, "Learning rate of Adam. Default: the best on held-back images."
    )
    seed: Count = setting(1, "Seed of the start and of the order of images.")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, eq=False)
class DistilImages:
    """Disjoint lists of images for a distillation."""

    fitted: Split  # to fit forms, without labels
    held_back: Split  # to select a form, without labels
    certified: Split  # for the certificate
    labelled: bool  # whether the labels of `certified` are classes of the model
    caution: str = ""  # that they may have trained the model
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the images, for the student


@dataclasses.dataclass(frozen=True, eq=False)
class Distilled:
    """A distilled model."""

    model: TunedModel  # of the form's method; its notes hold the certificate, which an export writes
    certificate: Comparison  # with the teacher, on images that were used nowhere else
    sentences: tuple[str, ...]  # the certificate in words: accuracy, divergence, agreement and numbers
    candidates: tuple[Comparison, ...]  # all fitted forms, on the held-back images


def divide_images(data: Dataset | Split, model: TunedModel | None = None) -> DistilImages:
    """Divides images for a distillation of a model. Raises `ClipbiasError` for too few.

    A dataset's training and validation images fit and select, its test images certify. A split is divided by its
    images' names: three fifths fit, a fifth selects, a fifth certifies.
    """
    test: Split | None = None
    caution = ""
    notes: Mapping[str, Any] = {}
    if isinstance(data, Dataset):
        if model is not None:
            caution = seen_in_training(model.notes, data, model.task.classes)
            notes = data_notes(data, model.task.classes, DISTILLATION)
        test = data.split("test")
        data = unlabelled_images(data, test) or test.subset([])
    fitted, held_back, certified = divide_unlabelled(data, certified=test is None)
    tested = certified if test is None else test
    if len(data) < FEWEST_UNLABELLED or not all(map(len, (fitted, held_back, tested))):
        outside, hint = "", ""
        if test is not None:
            outside = " that are not among the test images"
            hint = "; or give a split, such as dataset.split('train'), of which a part certifies without labels"
        raise ClipbiasError(
            f"there are {len(data)} unlabelled images{outside}; give at least {FEWEST_UNLABELLED} different ones, "
            f"better some hundred{hint}."
        )
    return DistilImages(fitted, held_back, tested, labelled=test is not None, caution=caution, notes=notes)


def distil_model(
    model: TunedModel, parts: DistilImages, options: DistilOptions, context: SweepContext, outputs: RunOutputs
) -> Distilled:
    """Fits the forms to a teacher, selects one and certifies it; `context` holds the student's frozen model.

    Raises `ClipbiasError` if the student's base is in half precision, a loss is not finite, or an image is unreadable.
    """
    # A folded student is stored in the base's type: half precision would round the fitted change away.
    if any(leaf.dtype != np.float32 for leaf in jax.tree.leaves(context.clip.params)):
        raise ClipbiasError(f"{context.clip.name} is loaded in half precision; load it in float32 to distil into it.")
    # Zero-shot reads the text that the model's training started from: with another, two changes would be compared.
    dtype = model.task.classifier.dtype
    frozen = Tuned(Task(model.clip, ZERO_SHOT, Classes(model.class_names), dtype=dtype))
    if model.task.texts != frozen.task.texts:
        frozen = Tuned(Task(model.clip, ZERO_SHOT, model.task.classes, dtype=dtype))
    # A form that does not fold stays an adapter, which nobody wants unless they ask for it.
    names = [name for name, form in STUDENT_FORMS.items() if form.folds] if options.form is None else [options.form]
    fitted = parts.fitted
    if context.reading.on_error == "raise":
        # An error in the certificate would come after all fits.
        images = [Images(split) for split in (fitted, parts.held_back, parts.certified)]
        check_readable(images, context.clip.preprocessing.resizing, context.reading.workers, context.checked)
    # No fit reads more images, but the mean divergence below would.
    if len(fitted) > (most := options.steps * options.batch_size):
        fitted = fitted.subset(np.sort(np.random.default_rng(options.seed).choice(len(fitted), most, replace=False)))
    outputs.progress.start(steps_of_fits(len(names), options.steps))
    students: dict[str, Tuned] = {}
    candidates: dict[str, Comparison] = {}
    for name in names:
        form = STUDENT_FORMS[name]
        fit = fit_student(
            Task(context.clip, form.method, model.task, dtype=context.dtype),
            model,
            fitted,
            parts.held_back,
            context,
            rate=form.learning_rate if options.learning_rate is None else options.learning_rate,
            searched=options.learning_rate is None,
            most_steps=options.steps,
            batch_size=options.batch_size,
            seed=options.seed,
            outputs=outputs,
        )
        facts = Student.of(fit, Origin.FITTED, name, form.words)
        students[name] = fit.student
        compared = _compare((frozen, model, fit.student), facts, parts.held_back, context, labelled=False)
        candidates[name] = compared
        outputs.progress.say(
            f"{name} ({form.words}): {facts.numbers:,} numbers, predicts the adapter's class on "
            f"{100 * compared.agreement.value:.1f} % of {compared.images:,} held-back images; KL "
            f"{compared.divergence.value:.3g} nats, {facts.fitted_divergence:.3g} on the {len(fitted):,} fitted ones"
        )
    # Selection reads held-back images, the certificate others: a form that was selected on them would look too good
    # there.
    selected = select(tuple(candidates.values()))
    student = students[selected]
    of_three = (frozen, model, student)
    certificate = _compare(of_three, candidates[selected].student, parts.certified, context, labelled=parts.labelled)
    teacher_numbers = sum(np.size(leaf) for leaf in jax.tree.leaves(model.learnables))
    sentences = certificate_sentences(certificate, model.task.method_name, teacher_numbers, parts.caution)
    # By these notes later evaluations know the images that trained the student, or its teacher.
    of_teacher = {name: model.notes[name] for name in ("dataset", "protocol", "data", "teacher") if name in model.notes}
    notes = {name: value for name, value in of_teacher.items() if name == "dataset"}
    notes |= {**parts.notes, "teacher": of_teacher, "start_seed": options.seed}
    notes[NOTE] = {
        **dataclasses.asdict(certificate),
        "margin": certificate.margin,
        "teacher": {"method": model.task.method_name, "numbers": teacher_numbers},
        "candidates": [dataclasses.asdict(each) for each in candidates.values()],
        "sentences": list(sentences),
    }
    if certificate.accuracy is not None:
        notes["accuracy"] = 100 * certificate.accuracy
    # The identity covers all that determines the student, so that a study tells two distillations apart.
    notes["training"] = identity([model, student.task, fitted, options])
    distilled = TunedModel(student.task, student.learnables, notes)
    return Distilled(distilled, certificate, sentences, tuple(candidates.values()))


def distil(
    model: TunedModel,
    images: AnyImages | None = None,
    *,
    form: str | None = None,
    clip: Clip | str | os.PathLike | None = None,
    steps: int = FIT_STEPS,
    batch_size: int = FIT_BATCH,
    learning_rate: float | None = None,
    seed: int = 1,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Distilled:
    """Distils a tuned model into a plain CLIP with the same predictions, and certifies it.

        distilled = clipbias.distil(clipbias.load_adapter("maple.safetensors"), dataset)
        distilled.model.export("checkpoint")
        print(*distilled.sentences, sep="\\n")

    Args:
      model: the teacher, of any method.
      images: a dataset of the model's classes, or its name, whose training and validation images are used without
        labels and whose test images certify; or pictures or a split without labels. Default: the model's dataset.
      form: "vector", "kind", "layer_norm" or "lora". Default: fits all that make a plain CLIP and selects the smallest
        whose agreement with the model on held-back images is within one point of the best.
      clip: the student's frozen model. Default: the teacher's.
      steps: largest number of steps of each fit, which ends before at a plateau (`training.students.until_plateau`).
      batch_size, learning_rate: of each fit. Default of the rate: the best on held-back images.
      seed: of the start and of the order of images.
      mesh: devices. Default: all.
      progress: whether to show a progress bar.

    Raises:
      ClipbiasError: the images do not fit or cannot be read, or a loss is not finite.
    """
    check_model(model)
    options = DistilOptions(form=form, steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    named = model.notes.get("dataset") if images is None else images
    if named is None:
        raise ClipbiasError("the model names no dataset; give one, or pictures.")
    data: Any = open_images(named)
    if isinstance(data, Dataset):
        labelled_images(data, None, model.class_names)  # raises for other classes
    elif not isinstance(data, Split):
        # Labels are needed for the type alone: no label is read before the certificate, which has none here.
        pictures, _ = list_images(data)
        data = image_list(pictures, [0] * len(pictures), model.class_names)
    parts = divide_images(data, model)
    context = make_context(model.clip if clip is None else as_clip(clip), mesh, dtype=model.task.classifier.dtype)
    with contextlib.closing(Progress(title="distil", shown=progress)) as bar:
        return distil_model(model, parts, options, context, RunOutputs(progress=bar))


def select(candidates: Sequence[Comparison]) -> str:
    """Selects the form of fewest numbers whose held-back agreement is within `AGREEMENT_TOLERANCE` of the best."""
    # By agreement, not accuracy: selection has no labels.
    best = max(each.agreement.value for each in candidates)
    enough = [each.student for each in candidates if each.agreement.value >= best - AGREEMENT_TOLERANCE]
    return min(enough, key=lambda student: student.numbers).form


def certificate_sentences(
    certificate: Comparison, teacher: str, teacher_numbers: int, caution: str = ""
) -> tuple[str, ...]:
    """Writes a sentence each for accuracy, divergence, agreement and numbers; `teacher` is a method."""
    lines = [f"{caution[:1].upper()}{caution[1:]}"] if caution else []
    unseen = "" if caution else " that were used nowhere else"
    difference, accuracy = certificate.difference, certificate.accuracy
    if difference is not None and accuracy is not None:
        lines.append(
            f"On {certificate.images:,} test images{unseen} the distilled model has "
            f"{100 * accuracy:.1f} % right and {teacher} {100 * (accuracy - difference.value):.1f} %: a paired "
            f"difference of {100 * difference.value:+.1f} points (95 % interval {_ends(difference, 100, '+.1f')}), "
            f"which rules out a loss of more than {100 * (certificate.margin or 0):.1f} points."
        )
    divergence, agreement, moved = certificate.divergence, certificate.agreement, certificate.moved
    lines.append(
        f"The mean KL divergence of its predictions from those of {teacher} is {divergence.value:.3g} nats "
        f"(95 % interval {_ends(divergence, 1, '.3g')})."
    )
    text = f"It predicts the same class as {teacher} on {100 * agreement.value:.1f} % ({_ends(agreement, 100, '.1f')}) "
    text += f"of {certificate.images:,} images"
    if moved is not None:
        text += f", and on {100 * moved.value:.1f} % ({_ends(moved, 100, '.1f')}) of the "
        text += f"{certificate.moved_images:,} whose predicted class tuning changed"
    lines.append(f"{text}.")
    student = certificate.student
    cost = "it runs as fast as plain CLIP" if STUDENT_FORMS[student.form].folds else "it stays an adapter"
    lines.append(
        f"It stores {student.numbers:,} numbers, {student.words}, where {teacher} stores {teacher_numbers:,}; {cost}."
    )
    return tuple(lines)


def _ends(number: Estimate, unit: float, digits: str) -> str:
    assert number.low is not None and number.high is not None, "it has an interval"
    return f"{unit * number.low:{digits}} to {unit * number.high:{digits}}"


def _compare(
    tuned_models: Sequence[Tuned], student: Student, split: Split, context: SweepContext, *, labelled: bool
) -> Comparison:
    """Compares the student with the teacher; `tuned_models` are frozen model, teacher and student."""
    # On images that all three could read: comparisons are paired.
    images = Images(split)
    results = [split_logits(model, images, context) for model in tuned_models]
    read = np.all([of_model for _, of_model in results], axis=0)
    logits = np.stack([of_model[read] for of_model, _ in results], axis=1)
    _, (comparison,) = compare([by_image([student], logits, labels=split.labels[read] if labelled else None)])
    return comparison
