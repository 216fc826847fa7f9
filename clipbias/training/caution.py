"""Sentences about a tuned model that may be worse than the frozen one, each with what to do."""

import math

from clipbias.data.counts import wilson_interval
from clipbias.data.held_out import FEWEST_OF_CLASS, HeldOut
from clipbias.sentences import counted
from clipbias.training.job import TrainJob, TrainResult
from clipbias.training.selection import Candidate, Selection, compare, has_candidates, searches
from clipbias.training.spec import Row
from clipbias.tuning.method import Method


def nothing_held_out(job: TrainJob, held: HeldOut, *, compares_rates: bool) -> str:
    """Why nothing was selected; empty where something was, or nothing had to be."""
    method = job.task.method
    if compares_rates and job.recipe is not None and method.unlabelled:
        return (
            f"{job.task.method_name} sees no labels, so that no learning rates were compared: that of the recipe was "
            f"taken, {job.recipe.learning_rate:g}."
        )
    if held.choose is not None:
        return ""
    defaults = []
    if compares_rates and has_candidates(job):
        defaults.append(f"the recipe's learning rate, {job.training.learning_rate:g}, was taken")
    if searches(job):
        defaults.append(f"{job.task.method_name} kept the settings that it has without a search")
    if not defaults:
        return ""
    return (
        f"{held.reason}, so that nothing could be held out: {' and '.join(defaults)}. Give validation images, or at "
        f"least {FEWEST_OF_CLASS} training images of each class."
    )


def above_chance(method: Method, loss: float | None, classes: int) -> str:
    """Says that the loss of the last step, `None` without one, is above that of equal probabilities.

    Of a method with a loss of its own it says nothing.
    """
    if loss is None or method.overrides("losses") or loss <= math.log(classes):
        return ""
    return (
        f"the training loss ended at {loss:.3g}, above ln {classes} = {math.log(classes):.3g}, which equal "
        "probabilities have: take more epochs or another learning rate."
    )


def no_better(tuned: Candidate, frozen: Candidate, images: int, what: str) -> str:
    """Says that a tuned model is no better than the frozen one, and whether by more than chance; empty where it is.

    Args:
      tuned, frozen: on the same images. The higher accuracy is the better one, and of equals the lower cross-entropy.
      images: their number.
      what: one of them is.
    """
    if tuned.accuracy > frozen.accuracy:
        return ""
    lower = tuned.loss is not None and frozen.loss is not None and tuned.loss < frozen.loss
    if tuned.accuracy == frozen.accuracy and lower:
        return ""
    unsure = " The difference is within chance." if within_chance(frozen.accuracy, tuned.accuracy, images) else ""
    advice = "Take more training images, another method or learning rate, or zero-shot."
    return (
        f"the tuned model is no better than zero-shot on {counted(images, what)}: {tuned.accuracy:.1f} % after "
        f"{frozen.accuracy:.1f} %.{unsure} {advice}"
    )


def too_few_to_tell(tuned: Candidate, frozen: Candidate, images: int, what: str) -> str:
    """Says that so few images could not show a gain, whatever the tuned model answers; empty where they could.

    Arguments as of `no_better`.
    """
    if not within_chance(100.0, frozen.accuracy, images):
        return ""
    return (
        f"{counted(images, what)} cannot tell whether tuning helped: {tuned.accuracy:.1f} % after "
        f"{frozen.accuracy:.1f} % is within chance, as any accuracy would be. Evaluate the model on more images before "
        "you use it."
    )


def within_chance(higher: float, lower: float, images: int) -> bool:
    """Whether the 95 % interval of a difference holds zero (Newcombe 1998, method 10).

    Args:
      higher, lower: accuracies in percent, each of as many images.
      images: their number.
    """
    below = higher - wilson_interval(higher, images)[0]
    above = wilson_interval(lower, images)[1] - lower
    return higher - lower <= math.hypot(below, above)


def of_fit(
    job: TrainJob, result: TrainResult, held: HeldOut, selection: Selection | None, *, compares_rates: bool
) -> tuple[str, ...]:
    """What there is to say about a model that was trained, without test images."""
    loss = result.losses[0] if result.losses else None
    sentences = [
        nothing_held_out(job, held, compares_rates=compares_rates),
        above_chance(job.task.method, loss, len(job.task.class_names)),
    ]
    if selection is not None and held.from_training:
        sentences.append(_of_held_out(selection.best, selection.zero_shot, selection.images, "held-out training image"))
    elif held.choose is not None and not held.from_training:
        tuned, frozen, images = compare(job, result.learnables, held)
        sentences.append(_of_held_out(tuned, frozen, images, "validation image"))
    return tuple(filter(None, sentences))


def _of_held_out(tuned: Candidate, frozen: Candidate, images: int, what: str) -> str:
    return no_better(tuned, frozen, images, what) or too_few_to_tell(tuned, frozen, images, what)


def of_row(row: Row, method: Method, classes: int) -> tuple[str, ...]:
    """What there is to say about a run of `train`, which has test images."""
    tuned = Candidate(row["learning_rate"], row["accuracy"], None)
    frozen = Candidate(None, row.get("zero_shot_accuracy", -math.inf), None)
    sentences = above_chance(method, row["loss"], classes), no_better(tuned, frozen, row["images"], "test image")
    return tuple(filter(None, sentences))
