"""Selects the settings of a run on held-out images (`data.held_out`), before it trains on all images.

Four learning rates train side by side in one program for a third of the steps; the lowest cross-entropy on the held-out
images wins. A method that searches options on validation images, and has none, searches on held-out training images.
Afterwards the same images say whether the tuned model may be no better than the frozen one.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from clipbias import hosts
from clipbias.constants import ZERO_SHOT
from clipbias.data import Split
from clipbias.data.held_out import FEWEST_OF_CLASS, HeldOut
from clipbias.errors import ClipbiasError
from clipbias.intervals import wilson_interval
from clipbias.io import read_json, write_text
from clipbias.sentences import counted
from clipbias.training.loop import (
    NotSideBySide,
    RunOutputs,
    TrainJob,
    TrainResult,
    plan_stages,
    train_job,
    validation_images,
)
from clipbias.training.memory import fit_evaluation
from clipbias.training.progress import Progress
from clipbias.training.spec import Row, RunSpec
from clipbias.tuning import Task
from clipbias.tuning.method import FeatureMethod, Learnables, Method, sampling_of, select_run, stack_runs
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.registry import METHODS, make_method, option_types


def score_images(job: TrainJob, learnables: Learnables, splits: Sequence[Split], *, finite: bool = True) -> list[Row]:
    """Scores each run on its split: `validation_accuracy` in percent, its counts, and `validation_loss` in nats."""
    task = fit_evaluation(job.task, runs=job.run_axis.padded, mesh=job.context.mesh)
    static, inputs = job.evaluation(task, learnables)
    # An evaluation computes all runs at once, so runs on the same images share it, whatever their seeds.
    distinct = {split.digest: split for split in splits}
    scores = {
        digest: job.context.evaluator(split).validate(static, inputs, finite=finite)
        for digest, split in distinct.items()
    }
    return [
        {f"validation_{name}": value for name, value in scores[split.digest][run].items()}
        for run, split in enumerate(splits)
    ]


def with_given(method: Method, recipe: Recipe, given: Mapping[str, Any], options: Mapping[str, Any]) -> Recipe:
    """Returns the recipe with settings that the user gave; given epochs replace a number of steps.

    Raises `ClipbiasError` where one of the given `options` says how many steps, and other settings do so already.
    """
    # Options of a method that was given as an object are those that differ from its class's.
    changed = {field.name for field in dataclasses.fields(method) if getattr(method, field.name) != field.default}
    if "steps_per_shot" in {*options, *changed} and ("epochs" in given or method.takes_common_recipe):
        other = "epochs" if "epochs" in given else "the common recipe"
        raise ClipbiasError(f"{other} and steps_per_shot both say how long to train; give one of them.")
    return dataclasses.replace(recipe, **{**given, "steps": None} if "epochs" in given else given)


def as_options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the given settings that are options of a built-in method: its own recipe depends on its options."""
    known = option_types(method) if method in METHODS else {}
    return {name: value for name, value in given.items() if name in known}


# File of the selection in the folder of a run.
SELECTION = "selection.json"
FROM_TRAINING = "training images"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Training on fewer steps or images, with its scores on the held-out images."""

    learning_rate: float | None  # `None` for a method that makes no step
    accuracy: float  # in percent
    loss: float | None  # mean cross-entropy in nats; `None` where it is not finite

    @property
    def order(self) -> tuple[float, float]:
        # By cross-entropy: accuracies of a few images are often equal. Of equals the lower rate, which diverges later.
        return math.inf if self.loss is None else self.loss, self.learning_rate or 0.0


@dataclasses.dataclass(frozen=True)
class Selection:
    """Selected settings of a run: the best candidate's learning rate, and options that the method searched.

    `zero_shot` has the frozen model's scores on the same images. With `from_training` these are training images, from
    which the tuned model learns in the end.
    """

    candidates: tuple[Candidate, ...]
    zero_shot: Candidate
    images: int
    from_training: bool
    searched: Mapping[str, float]

    @property
    def best(self) -> Candidate:
        return min(self.candidates, key=lambda candidate: candidate.order)

    @property
    def note(self) -> Row:
        return {
            "for": "run",
            "cells": 1,
            "images": self.images,
            "from": FROM_TRAINING if self.from_training else "validation split",
            "tried": [dataclasses.asdict(candidate) for candidate in self.candidates],
            ZERO_SHOT: {"accuracy": self.zero_shot.accuracy, "loss": self.zero_shot.loss},
            "options": dict(self.searched),
        }

    @classmethod
    def of_note(cls, note: Row) -> "Selection":
        """Reads back a `note`; JSON keeps every bit of a number."""
        return cls(
            candidates=tuple(Candidate(**line) for line in note["tried"]),
            zero_shot=Candidate(learning_rate=None, **note[ZERO_SHOT]),
            images=note["images"],
            from_training=note["from"] == FROM_TRAINING,
            searched=note["options"],
        )

    def of_job(self, job: TrainJob) -> TrainJob:
        task = job.task
        if self.searched:
            task = task.with_method(dataclasses.replace(task.method, **self.searched))
        recipe = job.recipe and job.recipe.with_learning_rate(self.best.learning_rate)
        runs = tuple(dataclasses.replace(run, learning_rate=self.best.learning_rate) for run in job.runs)
        return dataclasses.replace(job, task=task, recipe=recipe, runs=runs)

    def of_spec(self, spec: RunSpec) -> RunSpec:
        recipe = spec.recipe and spec.recipe.with_learning_rate(self.best.learning_rate)
        return dataclasses.replace(spec, recipe=recipe, options={**spec.options, **self.searched})

    def __str__(self) -> str:
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
        if self.searched:
            settings = ", ".join(f"{name} {value:.3g}" for name, value in self.searched.items())
            lines.append(f"{settings}, selected on {self.images} held-out training images")
        return "; ".join(lines)


def has_candidates(task: Task, recipe: Recipe | None) -> bool:
    """Whether there is a learning rate to select: steps are made, on training images with labels."""
    method = task.method
    makes_steps = recipe is not None and method.trains and method.uses_images and bool(jax.tree.leaves(task.shapes))
    return makes_steps and not method.unlabelled


def searches_options(method: Method) -> bool:
    """Whether the method itself selects something on validation images."""
    sampling = sampling_of(method)
    return sampling is not None and sampling.validation


def used_options(method: Method, learnables: Learnables) -> dict[str, float] | None:
    """Returns the options that the method's search on validation images found; `None` for a method without one."""
    if searches_options(method) and isinstance(method, FeatureMethod):
        return dict(method.searched_options(learnables))
    return None


def replaced_options(method: Method, learnables: Learnables) -> list[str]:
    """Returns a sentence for each given option that the method's search on validation images replaced."""
    sentences = []
    for name, used in (used_options(method, learnables) or {}).items():
        given = getattr(method, name)
        if given not in (used, getattr(type(method)(), name)):
            sentences.append(
                f"{name} is {used:g}, the best on the validation images, and not {given:g} as given; without such "
                "images the given value counts."
            )
    return sentences


def needs_validation(task: Task, recipe: Recipe | None, *, compares_rates: bool) -> bool:
    """Whether validation images select something: a learning rate, or an option that the method searches for."""
    return searches_options(task.method) or (compares_rates and has_candidates(task, recipe))


def select_settings(job: TrainJob, held: HeldOut, *, compares_rates: bool) -> Selection | None:
    """Compares learning rates of a job of one run on held-out images, or runs the method's search on them."""
    # Nothing is selected before the training where the rate is given, and the method either searches nothing, or
    # searches on a validation split while it trains.
    rates = job.training.candidates() if compares_rates and has_candidates(job.task, job.recipe) else ()
    if held.choose is None or not (rates or (held.from_training and searches_options(job.task.method))):
        return None
    trial = _trial(job, held, rates)
    job.outputs.progress.close()  # the candidates have their own bar
    with contextlib.closing(trial.outputs.progress) as bar, ThreadPoolExecutor(1) as thread:
        # The job's program differs from the trial's in its number of runs; it compiles on cores that the trial leaves
        # idle. JAX keeps it for the job itself, which plans its stages again and meets any error of this thread there.
        thread.submit(plan_stages, dataclasses.replace(job, outputs=RunOutputs()))
        try:
            learnables = train_job(trial).learnables
        except NotSideBySide:
            alone = []
            for number, run in enumerate(trial.runs):
                result = train_job(dataclasses.replace(trial, runs=(run,), outputs=trial.outputs.below(str(number))))
                alone.append(select_run(result.learnables, 0))
            learnables = stack_runs(alone)
        bar.at_work("evaluating")
        # A rate that diverges is a lost candidate and no error.
        scores = score_images(trial, learnables, validation_images(trial), finite=False)
    candidates = tuple(map(as_candidate, rates or (None,), scores))
    if all(candidate.loss is None for candidate in candidates):
        raise ClipbiasError(
            f"{job.task.method_name} fails at every learning rate from {rates[0]:g} to {rates[-1]:g}; give a lower one."
        )
    selection = Selection(
        candidates=candidates,
        zero_shot=score_zero_shot(trial, held.choose),
        images=scores[0]["validation_images"],
        from_training=held.from_training,
        searched={},
    )
    method = job.task.method
    # The final search would see images that it trains on. So the options of this search are kept, as given ones.
    if held.from_training and isinstance(method, FeatureMethod):
        best = select_run(learnables, candidates.index(selection.best))
        selection = dataclasses.replace(selection, searched=method.searched_options(best))
    job.outputs.progress.say(str(selection))
    return selection


def kept_selection(workdir: Path, key: str, make: Callable[[], Selection | None]) -> Selection | None:
    """Reads the selection for a spec, by its key before the selection, from the work folder; or makes and writes it."""
    path = workdir / SELECTION
    # The first process reads for all: they must agree on whether candidates train.
    stored: Row = hosts.from_first(lambda: read_json(path, dict) if path.exists() else {})
    if stored.get("key") == key:
        return Selection.of_note(stored["choice"])
    selection = make()
    if selection is not None and hosts.is_first():
        # Before the training: a run that continues must not select another rate.
        content = {"key": key, "learning_rate": selection.best.learning_rate, "choice": selection.note}
        write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
    return selection


def frozen_job(job: TrainJob) -> TrainJob:
    return dataclasses.replace(job, task=job.task.with_method(make_method(ZERO_SHOT)), recipe=None, runs=job.runs[:1])


def score_zero_shot(job: TrainJob, split: Split) -> Candidate:
    (row,) = score_images(frozen_job(job), {}, [split])
    return as_candidate(None, row)


def as_candidate(learning_rate: float | None, score: Row) -> Candidate:
    loss = score["validation_loss"]
    return Candidate(learning_rate, score["validation_accuracy"], loss if math.isfinite(loss) else None)


def _trial(job: TrainJob, held: HeldOut, rates: Sequence[float]) -> TrainJob:
    # Candidates share seed and images, so that their rates alone make the difference. They leave no metrics: those of
    # the folder are the training's.
    (run,) = job.runs
    (images,) = job.context.training_images([held.train])
    protocol = dataclasses.replace(run.protocol, validation=lambda: held.choose)
    runs = tuple(
        dataclasses.replace(run, images=images, protocol=protocol, learning_rate=rate) for rate in rates or (None,)
    )
    recipe, bar = job.recipe, job.outputs.progress
    if rates:
        recipe = job.training.shortened(job.examples)
        bar = Progress(title=f"comparing {len(rates)} learning rates", shown=bar.shown)
    outputs = job.outputs.below("selection", metrics=None, ends_on_failure=False, progress=bar)
    return dataclasses.replace(job, runs=runs, recipe=recipe, outputs=outputs)


def nothing_held_out(job: TrainJob, held: HeldOut, *, compares_rates: bool) -> str:
    """Returns a sentence on why nothing is selected; empty where something is, or nothing has to be."""
    method = job.task.method
    if compares_rates and job.recipe is not None and method.unlabelled:
        return (
            f"{job.task.method_name} sees no labels, so no learning rates were compared: it trains at the recipe's "
            f"{job.recipe.learning_rate:g}."
        )
    if held.choose is not None:
        return ""
    defaults = []
    if compares_rates and has_candidates(job.task, job.recipe):
        defaults.append(f"the run trains at the recipe's learning rate, {job.training.learning_rate:g}")
    if searches_options(method):
        defaults.append(f"{job.task.method_name} keeps its settings without a search")
    if not defaults:
        return ""
    return (
        f"{held.reason}, so no images are held out: {' and '.join(defaults)}. Give validation images, or at "
        f"least {FEWEST_OF_CLASS} training images of each class."
    )


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
        f"{counted(images, what)} cannot tell whether tuning helped: they are too few ({fitted.accuracy:.1f} % right, "
        f"with zero-shot CLIP {frozen.accuracy:.1f} %). Evaluate the model on more images before you use it."
    )


def within_chance(higher: float, lower: float, images: int) -> bool:
    """Whether the 95 % interval of a difference of accuracies in percent holds zero (Newcombe 1998, method 10)."""
    # Both accuracies' Wilson intervals, whose distances to the estimates add as squares.
    below = higher - wilson_interval(higher, images)[0]
    return higher - lower <= math.hypot(below, wilson_interval(lower, images)[1] - lower)


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
