"""Scores the runs of a job, and selects the settings of a training by scores of images that are held out.

`train` and `fit`: four learning rates train side by side in one program for a third of the steps, and the lowest
cross-entropy on the held-out images wins (`data.held_out`). A method that searches on validation images and has none
makes its search on the training images that are held out. The training itself follows on all images, with the settings
that were selected. A sweep: `choose` takes the learning rate of the best rows on validation images.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import pandas as pd

from clipbias import hosts
from clipbias.constants import ZERO_SHOT
from clipbias.data import Split, held_out
from clipbias.data.few_shot import wilson_interval
from clipbias.data.held_out import FEWEST_OF_CLASS, HeldOut
from clipbias.errors import ClipbiasError
from clipbias.io import read_json, write_text
from clipbias.sentences import counted
from clipbias.training.loop import (
    NotSideBySide,
    TrainJob,
    TrainResult,
    check_images,
    compiled_meanwhile,
    train_job,
    validation_images,
)
from clipbias.training.memory import fit_evaluation
from clipbias.training.progress import Progress
from clipbias.training.spec import Row, RunSpec
from clipbias.tuning.method import FeatureMethod, Learnables, Method, sampling_of, select_run, stack_runs
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.registry import METHODS, make_method, option_types


def score_validation(job: TrainJob, learnables: Learnables, *, finite: bool = True) -> list[Row]:
    """Scores the runs of a job on validation images of the classes of training. No test image is looked at.

    Returns of each run `validation_accuracy` in percent, the counts behind it, and `validation_loss` in nats.
    """
    splits = validation_images(job)
    task = fit_evaluation(job.task, runs=job.padded_runs, mesh=job.context.mesh)
    static, inputs = job.evaluation(task, learnables)
    distinct = {split.digest: split for split in splits}
    scores = {
        digest: job.context.evaluator(split).validate(static, inputs, finite=finite)
        for digest, split in distinct.items()
    }
    return [
        {f"validation_{name}": value for name, value in scores[split.digest][run].items()}
        for run, split in enumerate(splits)
    ]


# Settings that the user gave, over those of a method's authors.


def with_given(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
    """The recipe with settings that the user gave; given epochs replace its number of steps."""
    return dataclasses.replace(recipe, **{**given, "steps": None} if "epochs" in given else given)


def as_options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that a built-in method has as options; its authors' recipe follows these, as in its warm-up."""
    known = option_types(method) if method in METHODS else {}
    return {name: value for name, value in given.items() if name in known}


# Selection of a run's settings, before it is trained on all images.

# What was selected on held-out images, in the folder of a run.
SELECTION = "selection.json"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A training on fewer steps or images, and how it does on the held-out images."""

    learning_rate: float | None  # `None` for a method that makes no step
    accuracy: float  # in percent
    loss: float | None  # mean cross-entropy in nats; `None` where it is not finite

    @property
    def order(self) -> tuple[float, float]:
        return math.inf if self.loss is None else self.loss, self.learning_rate or 0.0


@dataclasses.dataclass(frozen=True)
class Selection:
    """What was selected on held-out images: of candidates by rising learning rate.

    `from_training` are training images, which the tuned model learns from in the end. `options` of the method are as
    its search selected them; `zero_shot` is the frozen model on the same images.
    """

    candidates: tuple[Candidate, ...]
    zero_shot: Candidate
    images: int
    from_training: bool
    options: Mapping[str, float]

    @property
    def best(self) -> Candidate:
        return min(self.candidates, key=lambda candidate: candidate.order)

    @property
    def note(self) -> Row:
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


def searches(method: Method) -> bool:
    """Whether the method itself selects something on validation images."""
    sampling = sampling_of(method)
    return sampling is not None and sampling.validation


def replaced_options(method: Method, learnables: Learnables) -> list[str]:
    """A sentence for each option in whose place the method found another value on validation images."""
    if not (searches(method) and isinstance(method, FeatureMethod)):
        return []
    sentences = []
    for name, used in method.searched_options(learnables).items():
        given = getattr(method, name)
        if given not in (used, getattr(type(method)(), name)):
            sentences.append(
                f"{name} is {used:g}, the best on the validation images, and not {given:g} as given; without such "
                "images the given value counts."
            )
    return sentences


def selects(job: TrainJob, *, compares_rates: bool) -> bool:
    """Whether held-out images select something: a learning rate, or what the method searches for."""
    return searches(job.task.method) or (compares_rates and has_candidates(job))


def select(job: TrainJob, held: HeldOut, *, compares_rates: bool) -> Selection | None:
    """Compares learning rates of a job of one run on held-out images, or makes the method's search on them.

    `None` where nothing is to be selected before the training: the rate is given, and the method either searches for
    nothing, or does so on a validation split while it trains.
    """
    rates = job.training.candidates() if compares_rates and has_candidates(job) else ()
    if held.choose is None or not (rates or (held.from_training and searches(job.task.method))):
        return None
    check_images(job, () if held.from_training else (held.choose,))
    trial = _trial(job, held, rates)
    job.logging.progress.close()  # the candidates have a bar
    with contextlib.closing(trial.logging.progress) as bar, compiled_meanwhile(job):
        try:
            learnables = train_job(trial).learnables  # all candidates side by side
        except NotSideBySide:  # one after another, since they do not fit the memory
            alone = []
            for number, run in enumerate(trial.runs):
                logging = trial.logging
                if logging.checkpoints is not None:
                    logging = dataclasses.replace(logging, checkpoints=logging.checkpoints / str(number))
                result = train_job(dataclasses.replace(trial, runs=(run,), logging=logging))
                alone.append(select_run(result.learnables, 0))
            learnables = stack_runs(alone)
        bar.at_work("evaluating")
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
    task = job.task
    if options:
        task = task.with_method(dataclasses.replace(task.method, **options))
    recipe = job.recipe and job.recipe.with_learning_rate(learning_rate)
    runs = tuple(dataclasses.replace(run, learning_rate=learning_rate) for run in job.runs)
    return dataclasses.replace(job, task=task, recipe=recipe, runs=runs)


def select_settings(
    spec: RunSpec, job: TrainJob, workdir: Path, *, compares_rates: bool
) -> tuple[RunSpec, TrainJob, Row]:
    """Selects the settings of a run on held-out images, or takes them from the work folder's `selection.json`.

    Returns the spec and the job with the settings that were selected, and `choice` for the row. Where nothing was they
    are as before, and the row is empty. Without `compares_rates` only what the method searches for is selected.
    """
    held = held_out.hold_out_of(job.protocol, spec.seed, calibrates=True)
    if sentence := nothing_held_out(job, held, compares_rates=compares_rates):
        job.logging.progress.say(sentence)
    if not selects(job, compares_rates=compares_rates):
        return spec, job, {}
    open_key = spec.key
    spec = dataclasses.replace(spec, validation=held_out.POLICY)
    protocol = held_out.by_the_rule(job.protocol, spec.seed)
    tuned = dataclasses.replace(job, runs=tuple(dataclasses.replace(run, protocol=protocol) for run in job.runs))
    path = workdir / SELECTION
    stored = hosts.from_first(lambda: read_json(path, dict) if path.exists() else {})
    if stored.get("key") != open_key:
        logging = job.logging
        if logging.checkpoints is not None:
            logging = dataclasses.replace(logging, checkpoints=logging.checkpoints / "selection")
        selection = select(dataclasses.replace(job, logging=logging), held, compares_rates=compares_rates)
        if selection is None:  # the method searches on its validation split while it trains
            return spec, tuned, {}
        stored = {"key": open_key, "learning_rate": selection.best.learning_rate, "choice": selection.note}
        job.logging.progress.say(str(selection))
        if hosts.is_first():
            write_text(path, json.dumps(stored, indent=2, sort_keys=True) + "\n")
    choice = stored["choice"]
    recipe = spec.recipe and spec.recipe.with_learning_rate(stored["learning_rate"])
    spec = dataclasses.replace(spec, recipe=recipe, options={**spec.options, **choice["options"]})
    return spec, apply(tuned, stored["learning_rate"], choice["options"]), {"choice": choice}


def frozen(job: TrainJob) -> TrainJob:
    """The job of the frozen model on the images of a job."""
    return dataclasses.replace(job, task=job.task.with_method(make_method(ZERO_SHOT)), recipe=None, runs=job.runs[:1])


def zero_shot(job: TrainJob) -> Candidate:
    (score,) = score_validation(frozen(job), {})
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
        bar = Progress(title=f"comparing {len(rates)} learning rates", shown=logging.progress.shown)
        logging = dataclasses.replace(logging, progress=bar)
    runs = tuple(dataclasses.replace(run, images=images, learning_rate=rate) for rate in rates or (None,))
    return dataclasses.replace(job, recipe=recipe, runs=runs, logging=logging)


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
    if searches(method):
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
    if loss is None or method.losses is not None or loss <= math.log(classes):
        return ""
    return (
        f"the training loss ended at {loss:.3g}, above ln {classes} = {math.log(classes):.3g}, which equal "
        "probabilities have: take more epochs or another learning rate."
    )


def no_better(tuned: Candidate, frozen: Candidate, images: int, what: str) -> str:
    """Says that a tuned model is no better than the frozen one, and whether by more than chance; empty where it is.

    The higher accuracy on the same images is the better one, and of equals the lower cross-entropy.
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
    """Says that so few images could not show a gain, whatever the tuned model answers; empty where they could."""
    if not within_chance(100.0, frozen.accuracy, images):
        return ""
    return (
        f"{counted(images, what)} cannot tell whether tuning helped: {tuned.accuracy:.1f} % after "
        f"{frozen.accuracy:.1f} % is within chance, as any accuracy would be. Evaluate the model on more images before "
        "you use it."
    )


def within_chance(higher: float, lower: float, images: int) -> bool:
    """Whether the 95 % interval of a difference of accuracies in percent holds zero (Newcombe 1998, method 10)."""
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
        compared = selection.best, selection.zero_shot, selection.images, "held-out training image"
        sentences.append(no_better(*compared) or too_few_to_tell(*compared))
    elif held.choose is not None and not held.from_training:
        compared = *compare(job, result.learnables, held), "validation image"
        sentences.append(no_better(*compared) or too_few_to_tell(*compared))
    return tuple(filter(None, sentences))


def cautions_of_row(row: Row, method: Method, classes: int) -> tuple[str, ...]:
    """What there is to say about a run of `train`, which has test images."""
    tuned = Candidate(row["learning_rate"], row["accuracy"], None)
    frozen = Candidate(None, row.get("zero_shot_accuracy", -math.inf), None)
    sentences = above_chance(method, row["loss"], classes), no_better(tuned, frozen, row["images"], "test image")
    return tuple(filter(None, sentences))


# Selection of a sweep's learning rates, and the file that later sweeps take them from.

FILE = "rates.json"
# A rate is chosen for each method over all datasets and shots, or for each method, dataset and shots by itself.
METHOD = "method"
CELL = "cell"
NONE = "none"
_CELL = ["method", "dataset", "shots"]
# All images, in a data frame's column of whole numbers.
_ALL = 0


@dataclasses.dataclass(frozen=True)
class Rates:
    """Learning rates by method.

    Entries have `method` and `learning_rate`, and where they are particular `dataset` and `shots` (`None` for all).
    """

    entries: tuple[Mapping[str, Any], ...] = ()

    def entry(self, method: str, dataset: str, shots: int | None) -> Mapping[str, Any]:
        """The most particular entry; empty where the method has none."""
        cell = {"method": method, "dataset": dataset, "shots": shots}
        for names in (_CELL, _CELL[:2], _CELL[:1]):
            for entry in self.entries:
                if {name: entry[name] for name in _CELL if name in entry} == {name: cell[name] for name in names}:
                    return entry
        return {}

    def of(self, method: str, dataset: str, shots: int | None) -> float | None:
        return self.entry(method, dataset, shots).get("learning_rate")

    @classmethod
    def read(cls, path: Path) -> "Rates":
        """Reads a file that `write` wrote. Raises `ClipbiasError` where there is none, or it holds something else."""
        if not path.is_file():
            raise ClipbiasError(f"there is no file of learning rates {path}; check --config.rates_file.")
        content = read_json(path, dict, what="a file of learning rates")
        entries = content.get("rates")
        valid = isinstance(entries, list) and all(
            isinstance(entry, dict)
            and isinstance(entry.get("method"), str)
            and isinstance(entry.get("learning_rate"), int | float)
            for entry in entries
        )
        if not valid:
            raise ClipbiasError(f"{path} holds no learning rates by method; each needs a method and a learning_rate.")
        return cls(tuple(entries))

    def write(self, path: Path, facts: Mapping[str, object]) -> None:
        write_text(path, json.dumps({"rates": list(self.entries), "chosen": dict(facts)}, indent=2) + "\n")


def choose(rows: Sequence[Row], scope: str) -> Rates:
    """The learning rate of the highest accuracy on validation images; of equals the lower loss, then the lower rate.

    Accuracy and loss are means over cells (dataset, shots) of means over seeds. A rate at which a run failed is not
    chosen. A cell in which every run failed is left out. The scope is `METHOD` or `CELL`.
    """
    if not rows:
        return Rates()
    names = ["status", "learning_rate", "validation_accuracy", "validation_loss"]
    lines = [{name: row.get(name) for name in (*_CELL, *names)} for row in rows]
    frame = pd.DataFrame([line | {"shots": line["shots"] or _ALL} for line in lines])
    frame = frame.groupby(_CELL, sort=False).filter(lambda cell: (cell.status == "ok").any())
    entries: list[dict[str, Any]] = []
    for where, group in frame.groupby(_CELL[:1] if scope == METHOD else _CELL, sort=False):
        cells = group.groupby([*_CELL, "learning_rate"])[names[2:]].mean()
        candidates = cells.groupby("learning_rate").mean().round(9)  # the order of additions makes no difference
        candidates[group.groupby("learning_rate").status.agg(lambda status: (status != "ok").any())] = None
        best = (
            candidates.dropna()
            .reset_index()
            .sort_values(["validation_accuracy", "validation_loss", "learning_rate"], ascending=[False, True, True])
        )
        if best.empty:
            continue
        entry = dict(zip(_CELL, where, strict=False)) | {"learning_rate": float(best.learning_rate.iloc[0])}
        entry |= {"for": scope, "cells": len(group.groupby(_CELL))}
        entry["tried"] = [
            {"learning_rate": float(rate), "accuracy": _number(accuracy), "loss": _number(loss)}
            for rate, accuracy, loss in candidates.itertuples()
        ]
        if "shots" in entry:
            entry["shots"] = None if entry["shots"] == _ALL else int(entry["shots"])
        entries.append(entry)
    return Rates(tuple(entries))


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
