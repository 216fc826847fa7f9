"""Warnings about a tuned model that may be no better than the frozen one."""

import math

from clipbias.data.held_out import HeldOut
from clipbias.intervals import wilson_interval
from clipbias.sentences import counted
from clipbias.training.loop import TrainJob, TrainResult
from clipbias.training.select import Candidate, Selection, as_candidate, nothing_held_out, score_images, score_zero_shot
from clipbias.training.spec import Row
from clipbias.tuning.method import Method


def above_chance(method: Method, loss: float | None, classes: int) -> str:
    """Warns where the loss of the last step, in nats, is above that of equal probabilities; else returns ""."""
    # Losses that a method defines itself have another scale.
    if loss is None or method.losses is not None or loss <= math.log(classes):
        return ""
    return (
        f"the training loss ended at {loss:.3g}, above ln {classes} = {math.log(classes):.3g}, which equal "
        "probabilities have: take more epochs or another learning rate."
    )


def no_better(fitted: Candidate, frozen: Candidate, images: int, what: str) -> str:
    """Warns where a tuned model is no better than the frozen one on the same images; else returns ""."""
    # The higher accuracy is better; of equal ones the lower cross-entropy.
    lower = fitted.loss is not None and frozen.loss is not None and fitted.loss < frozen.loss
    if fitted.accuracy > frozen.accuracy or (fitted.accuracy == frozen.accuracy and lower):
        return ""
    unsure = " The difference is within chance." if within_chance(frozen.accuracy, fitted.accuracy, images) else ""
    return (
        f"the tuned model is no better than zero-shot on {counted(images, what)}: {fitted.accuracy:.1f} % after "
        f"{frozen.accuracy:.1f} %.{unsure} Take more training images, another method or learning rate, or zero-shot."
    )


def too_few_to_tell(fitted: Candidate, frozen: Candidate, images: int, what: str) -> str:
    """Warns where so few images show no gain even for a perfect model; else returns ""."""
    # A perfect model's gain is the largest that there can be.
    if not within_chance(100.0, frozen.accuracy, images):
        return ""
    return (
        f"{counted(images, what)} cannot tell whether tuning helped: {fitted.accuracy:.1f} % after "
        f"{frozen.accuracy:.1f} % is within chance, as any accuracy would be. Evaluate the model on more images before "
        "you use it."
    )


def within_chance(higher: float, lower: float, images: int) -> bool:
    """Whether the 95 % interval of a difference of accuracies in percent holds zero (Newcombe 1998, method 10)."""
    # Both accuracies' Wilson intervals, whose distances to the estimates add as squares.
    below = higher - wilson_interval(higher, images)[0]
    above = wilson_interval(lower, images)[1] - lower
    return higher - lower <= math.hypot(below, above)


def cautions_of_fit(
    job: TrainJob, result: TrainResult, held: HeldOut, selection: Selection | None, *, compares_rates: bool
) -> tuple[str, ...]:
    loss = result.losses[0] if result.losses else None
    sentences = [
        nothing_held_out(job, held, compares_rates=compares_rates),
        above_chance(job.task.method, loss, len(job.task.class_names)),
    ]
    if selection is not None and held.from_training:
        compared = selection.best, selection.zero_shot, selection.images, "held-out training image"
        sentences.append(no_better(*compared) or too_few_to_tell(*compared))
    elif held.choose is not None and not held.from_training:
        (row,) = score_images(job, result.learnables, [held.choose], finite=False)
        tuned, frozen = as_candidate(job.runs[0].learning_rate, row), score_zero_shot(job, held.choose)
        compared = tuned, frozen, row["validation_images"], "validation image"
        sentences.append(no_better(*compared) or too_few_to_tell(*compared))
    return tuple(filter(None, sentences))


def cautions_of_row(row: Row, method: Method, classes: int) -> tuple[str, ...]:
    tuned = Candidate(row["learning_rate"], row["accuracy"], None)
    frozen = Candidate(None, row.get("zero_shot_accuracy", -math.inf), None)
    sentences = above_chance(method, row["loss"], classes), no_better(tuned, frozen, row["images"], "test image")
    return tuple(filter(None, sentences))
