"""Selects the settings of a training on held-out images: its learning rate, or what a method searches for by itself.

Four learning rates train side by side in one program for a third of the steps, and the lowest cross-entropy on the
held-out images wins (`data.held_out`). A method that searches on validation images and has none makes its search on the
training images that are held out. The training itself follows on all images, with the settings that were selected.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax

from clipbias.constants import ZERO_SHOT
from clipbias.data import Split
from clipbias.data.held_out import HeldOut
from clipbias.errors import ClipbiasError
from clipbias.training.job import NotSideBySide, TrainJob, check_images
from clipbias.training.progress import Progress
from clipbias.training.score import score_validation
from clipbias.training.spec import Row
from clipbias.training.stages import train_job
from clipbias.tuning.feature_method import FeatureMethod, sampling_of
from clipbias.tuning.learnables import select_run, stack_runs
from clipbias.tuning.method import Learnables
from clipbias.tuning.registry import make_method


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


def apply(job: TrainJob, selection: Selection) -> TrainJob:
    """The job with the settings that were selected."""
    task = job.task
    if selection.options:
        task = task.with_method(dataclasses.replace(task.method, **selection.options))
    recipe = job.recipe and job.recipe.with_learning_rate(selection.best.learning_rate)
    runs = tuple(dataclasses.replace(run, learning_rate=selection.best.learning_rate) for run in job.runs)
    return dataclasses.replace(job, task=task, recipe=recipe, runs=runs)


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
