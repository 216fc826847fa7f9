"""Selects the settings of a training on held-out images: its learning rate, or what a method searches for by itself.

Four learning rates train side by side in one program for a third of the steps, and the lowest cross-entropy on the
held-out images wins (`data.held_out`). A method that searches on validation images and has none makes its search on the
training images that are held out. The training itself follows on all images, with the settings that were selected.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from clipbias import hosts
from clipbias.constants import ZERO_SHOT
from clipbias.data import Split, held_out
from clipbias.data.counts import wilson_interval
from clipbias.data.held_out import FEWEST_OF_CLASS, HeldOut
from clipbias.errors import ClipbiasError
from clipbias.io import read_json, write_text
from clipbias.sentences import counted
from clipbias.training.job import NotSideBySide, TrainJob, TrainResult, check_images
from clipbias.training.progress import Progress
from clipbias.training.score import score_validation
from clipbias.training.spec import Row, RunSpec
from clipbias.training.stages import train_job
from clipbias.tuning.feature_method import FeatureMethod, sampling_of
from clipbias.tuning.learnables import select_run, stack_runs
from clipbias.tuning.method import Learnables, Method
from clipbias.tuning.registry import make_method

# What was selected on held-out images, in the folder of a run.
SELECTION = "selection.json"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A training on fewer steps or images, and how it does on the held-out images.

    Attributes:
      learning_rate: `None` for a method that makes no step.
      accuracy: in percent.
      loss: mean cross-entropy in nats; `None` where it is not finite.
    """

    learning_rate: float | None
    accuracy: float
    loss: float | None

    @property
    def order(self) -> tuple[float, float]:
        """The lower is the better one: the cross-entropy, and of equals the learning rate."""
        return math.inf if self.loss is None else self.loss, self.learning_rate or 0.0


@dataclasses.dataclass(frozen=True)
class Selection:
    """What was selected on held-out images.

    Attributes:
      candidates: at least one, by rising learning rate.
      zero_shot: of the frozen model on the same images.
      images: the number of those that could be read.
      from_training: whether they are training images, which the tuned model learns from in the end.
      options: of the method, as its search selected them.
    """

    candidates: tuple[Candidate, ...]
    zero_shot: Candidate
    images: int
    from_training: bool
    options: Mapping[str, float]

    @property
    def best(self) -> Candidate:
        """The candidate that is taken."""
        return min(self.candidates, key=lambda candidate: candidate.order)

    @property
    def note(self) -> Row:
        """For the row of the run and the notes of its adapter, as JSON values."""
        return {
            "for": "run",
            "cells": 1,
            "images": self.images,
            "from": "training images" if self.from_training else "validation split",
            "tried": [dataclasses.asdict(candidate) for candidate in self.candidates],
            ZERO_SHOT: {"accuracy": self.zero_shot.accuracy, "loss": self.zero_shot.loss},
            "options": dict(self.options),
        }

    def __str__(self) -> str:
        """What is printed: the candidates with their scores, and what is taken."""
        words = [
            f"{candidate.learning_rate:g} ({'failed' if candidate.loss is None else f'{candidate.loss:.3g}'})"
            for candidate in self.candidates
            if candidate.learning_rate is not None
        ]
        lines = []
        if words:
            lines.append(
                f"learning rate {self.best.learning_rate:g}, of {', '.join(words)}: cross-entropy on {self.images} "
                f"held-out images after a third of the steps; zero-shot {self.zero_shot.loss:.3g}"
            )
        if self.options:
            settings = ", ".join(f"{name} {value:.3g}" for name, value in self.options.items())
            lines.append(f"{settings}, selected on {self.images} held-out training images")
        return "; ".join(lines)


def has_candidates(job: TrainJob) -> bool:
    """Whether there is a learning rate to select: steps are made, and the training images have labels."""
    return job.recipe is not None and bool(jax.tree.leaves(job.task.shapes)) and not job.task.method.unlabelled


def searches(job: TrainJob) -> bool:
    """Whether the method itself selects something on validation images."""
    sampling = sampling_of(job.task.method)
    return sampling is not None and sampling.validation


def selects(job: TrainJob, *, compares_rates: bool) -> bool:
    """Whether held-out images select something: a learning rate, or what the method searches for."""
    return searches(job) or (compares_rates and has_candidates(job))


def select(job: TrainJob, held: HeldOut, *, compares_rates: bool) -> Selection | None:
    """Compares learning rates on held-out images, or makes the method's search on them.

    Args:
      job: of one run, not trained yet.
      held: the images; some are held out.
      compares_rates: whether learning rates are compared; else the recipe's is taken.

    Returns:
      `None` where nothing is to be selected before the training: the rate is given, and the method either searches for
      nothing, or does so on a validation split while it trains.

    Raises:
      ClipbiasError: all candidates fail, or an image cannot be read.
    """
    rates = job.training.candidates() if compares_rates and has_candidates(job) else ()
    if held.choose is None or not (rates or (held.from_training and searches(job))):
        return None
    check_images(job, () if held.from_training else (held.choose,))
    trial = _trial(job, held, rates)
    learnables = _train(trial)
    scores = score_validation(trial, learnables, finite=False)
    candidates = tuple(map(_candidate, rates or (None,), scores))
    if all(candidate.loss is None for candidate in candidates):
        raise ClipbiasError(
            f"{job.task.method_name} fails at every learning rate from {rates[0]:g} to {rates[-1]:g}; give a lower one."
        )
    selection = Selection(
        candidates=candidates,
        zero_shot=zero_shot(trial),
        images=scores[0]["validation_images"],
        from_training=held.from_training,
        options={},
    )
    method = job.task.method
    if held.from_training and isinstance(method, FeatureMethod):
        best = select_run(learnables, candidates.index(selection.best))
        selection = dataclasses.replace(selection, options=method.searched_options(best))
    return selection


def apply(job: TrainJob, learning_rate: float | None, options: Mapping[str, float]) -> TrainJob:
    """The job with the settings that were selected."""
    task = job.task
    if options:
        task = task.with_method(dataclasses.replace(task.method, **options))
    recipe = job.recipe and job.recipe.with_learning_rate(learning_rate)
    runs = tuple(dataclasses.replace(run, learning_rate=learning_rate) for run in job.runs)
    return dataclasses.replace(job, task=task, recipe=recipe, runs=runs)


def select_settings(
    spec: RunSpec, job: TrainJob, workdir: Path, *, compares_rates: bool
) -> tuple[RunSpec, TrainJob, Row]:
    """Selects the settings of a run on held-out images, or takes them from the work folder, which keeps them.

    Args:
      spec: of the run.
      job: of the run, not trained yet.
      workdir: keeps the selection in `selection.json`.
      compares_rates: whether the learning rate is selected; else only what the method searches for.

    Returns:
      The spec and the job with the settings that were selected, and `choice` for the row; as they were, and an empty
      row, where nothing was selected.
    """
    held = held_out.hold_out_of(job.protocol, spec.seed, calibrates=True)
    if sentence := nothing_held_out(job, held, compares_rates=compares_rates):
        job.logging.say(sentence)
    if not selects(job, compares_rates=compares_rates):
        return spec, job, {}
    open_key = spec.key
    spec = dataclasses.replace(spec, validation=held_out.POLICY)
    protocol = held_out.by_the_rule(job.protocol, spec.seed)
    path = workdir / SELECTION
    stored = hosts.from_first(lambda: read_json(path, dict) if path.exists() else {})
    if stored.get("key") != open_key:
        logging = job.logging
        if logging.checkpoints is not None:
            logging = dataclasses.replace(logging, checkpoints=logging.checkpoints / "selection")
        selection = select(dataclasses.replace(job, logging=logging), held, compares_rates=compares_rates)
        if selection is None:  # the method searches on its validation split while it trains
            runs = tuple(dataclasses.replace(run, protocol=protocol) for run in job.runs)
            return spec, dataclasses.replace(job, runs=runs), {}
        stored = {"key": open_key, "learning_rate": selection.best.learning_rate, "choice": selection.note}
        job.logging.say(str(selection))
        if hosts.is_first():
            write_text(path, json.dumps(stored, indent=2, sort_keys=True) + "\n")
    choice = stored["choice"]
    recipe = spec.recipe and spec.recipe.with_learning_rate(stored["learning_rate"])
    spec = dataclasses.replace(spec, recipe=recipe, options={**spec.options, **choice["options"]})
    job = dataclasses.replace(job, runs=tuple(dataclasses.replace(run, protocol=protocol) for run in job.runs))
    return spec, apply(job, stored["learning_rate"], choice["options"]), {"choice": choice}


def zero_shot(job: TrainJob) -> Candidate:
    """The frozen model on the validation images of a job."""
    task = job.task.with_method(make_method(ZERO_SHOT))
    frozen = dataclasses.replace(job, task=task, recipe=None, runs=job.runs[:1])
    (score,) = score_validation(frozen, {})
    return _candidate(None, score)


def compare(job: TrainJob, learnables: Learnables, held: HeldOut) -> tuple[Candidate, Candidate, int]:
    """The tuned model of a job of one run, and the frozen one, on held-out images; and how many could be read."""
    on_held = with_validation(job, held.choose)
    (score,) = score_validation(on_held, learnables, finite=False)
    return _candidate(job.runs[0].learning_rate, score), zero_shot(on_held), score["validation_images"]


def _candidate(learning_rate: float | None, score: Row) -> Candidate:
    loss = score["validation_loss"]
    return Candidate(learning_rate, score["validation_accuracy"], loss if math.isfinite(loss) else None)


def with_validation(job: TrainJob, images: Split | None) -> TrainJob:
    """The job with other validation images."""
    runs = [
        dataclasses.replace(run, protocol=dataclasses.replace(run.protocol, validation=lambda: images))
        for run in job.runs
    ]
    return dataclasses.replace(job, runs=tuple(runs))


def _trial(job: TrainJob, held: HeldOut, rates: Sequence[float]) -> TrainJob:
    """The job of the candidates, side by side, or of the method's search."""
    (run,) = with_validation(job, held.choose).runs
    (images,) = job.context.training_images([held.train])
    recipe = job.recipe
    logging = dataclasses.replace(job.logging, metrics=None, ends_on_failure=False)
    if rates:
        recipe = job.training.shortened(job.examples)
        if logging.checkpoints is not None:
            logging = dataclasses.replace(logging, checkpoints=logging.checkpoints / "candidates")
        if logging.progress is not None:
            logging = dataclasses.replace(logging, progress=Progress(0, title=f"{len(rates)} learning rates"))
    runs = tuple(dataclasses.replace(run, images=images, learning_rate=rate) for rate in rates or (None,))
    return dataclasses.replace(job, recipe=recipe, runs=runs, logging=logging)


def _train(trial: TrainJob) -> Learnables:
    """Trains the candidates side by side; one after another where they do not fit the memory."""
    try:
        return train_job(trial).learnables
    except NotSideBySide:
        alone = [_alone(trial, number) for number in range(len(trial.runs))]
        return stack_runs([select_run(train_job(job).learnables, 0) for job in alone])


def _alone(trial: TrainJob, number: int) -> TrainJob:
    """The job of a single candidate."""
    logging = trial.logging
    if logging.checkpoints is not None:
        logging = dataclasses.replace(logging, checkpoints=logging.checkpoints / str(number))
    return dataclasses.replace(trial, runs=trial.runs[number : number + 1], logging=logging)


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


def cautions_of_fit(
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


def cautions_of_row(row: Row, method: Method, classes: int) -> tuple[str, ...]:
    """What there is to say about a run of `train`, which has test images."""
    tuned = Candidate(row["learning_rate"], row["accuracy"], None)
    frozen = Candidate(None, row.get("zero_shot_accuracy", -math.inf), None)
    sentences = above_chance(method, row["loss"], classes), no_better(tuned, frozen, row["images"], "test image")
    return tuple(filter(None, sentences))
