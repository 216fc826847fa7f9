"""Scores of the runs of a job, on test images or on the validation images that a learning rate is selected by."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from clipbias.data import Dataset, protocols
from clipbias.data.confusion import class_summary
from clipbias.training import mesh as meshes
from clipbias.training.job import TrainJob, validation_images
from clipbias.training.memory import fit_evaluation
from clipbias.training.outcomes import EvalInputs, EvalStatic, make_evaluation
from clipbias.training.spec import Row
from clipbias.tuning import Task
from clipbias.tuning.method import Learnables
from clipbias.tuning.transfer import transfer


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """The scores of `R` runs in one evaluation.

    Attributes:
      task: bound to the classes of the evaluation, which may differ from those of training.
      learnables: for these classes, leading axis `R`, on the host.
      scores: of each run, see `Evaluator.accuracy`; with `class_summary` (`data.confusion`).
      predicted: int32 `[R, n]`, the class of every image; -1 where it could not be read.
      log_probs: float16 `[R, n, 7]`, see `outcomes.BatchOutcome`.
    """

    task: Task
    learnables: Learnables
    scores: list[Row]
    predicted: np.ndarray
    log_probs: np.ndarray


def score_test(job: TrainJob, learnables: Learnables, evaluation: protocols.Evaluation) -> EvalResult:
    """Scores the runs of a job on the test images of one evaluation.

    Args:
      job: whose validation images a temperature is fitted on.
      learnables: leading axis `R`, on the host.
      evaluation: test images and classes.
    """
    context = job.context
    runs = len(job.runs)
    task, learnables = _fitted(job, learnables, evaluation.dataset, evaluation.source_labels)
    test = evaluation.dataset.split("test")
    evaluator = context.evaluator(test)
    static, inputs = _evaluation(job, task, learnables)
    validation = context.temperature_evaluator(job.protocol, evaluation, job.shots)
    scores = evaluator.accuracy(static, inputs, validation=validation)
    skipped = {"skipped_images": evaluator.skipped} if evaluator.skipped else {}
    assert evaluator.predicted is not None and evaluator.log_probs is not None, "an evaluation predicts"
    # Runs are padded to a multiple of the mesh with copies of the last run.
    predicted = evaluator.predicted[:runs]
    return EvalResult(
        task=task,
        learnables=learnables,
        scores=[
            score | {"class_summary": class_summary(test.labels, of_run, task.class_names)} | skipped
            for score, of_run in zip(scores[:runs], predicted, strict=True)
        ],
        predicted=predicted,
        log_probs=evaluator.log_probs[:runs],
    )


def merge_scores(scores: Mapping[str, Row]) -> Row:
    """The scores of one run in its evaluations, as its row has them: by name where it has more than one."""
    if len(scores) == 1:
        return dict(next(iter(scores.values())))
    merged: Row = {
        "tested_images": {name: score["images"] for name, score in scores.items()},
        "accuracies": {name: score["accuracy"] for name, score in scores.items()},
        "calibrations": {name: score["calibration"] for name, score in scores.items()},
        "class_summaries": {name: score["class_summary"] for name, score in scores.items()},
    }
    skipped = sum(score.get("skipped_images", 0) for score in scores.values())
    return merged | ({"skipped_images": skipped} if skipped else {})


def score_validation(job: TrainJob, learnables: Learnables, *, finite: bool = True) -> list[Row]:
    """Scores the runs of a job on validation images of the classes of training. No test image is looked at.

    Args:
      job: with the validation images.
      learnables: leading axis `R`, on the host.
      finite: see `Evaluator.validate`.

    Returns:
      Of each run `validation_accuracy` in percent, the counts behind it, and `validation_loss` in nats.
    """
    splits = validation_images(job)
    task = fit_evaluation(job.task, runs=job.padded_runs, mesh=job.context.mesh)
    static, inputs = _evaluation(job, task, learnables)
    distinct = {split.digest: split for split in splits}
    scores = {
        digest: job.context.evaluator(split).validate(static, inputs, finite=finite)
        for digest, split in distinct.items()
    }
    return [
        {f"validation_{name}": value for name, value in scores[split.digest][run].items()}
        for run, split in enumerate(splits)
    ]


def _fitted(
    job: TrainJob, learnables: Learnables, dataset: Dataset, labels: Sequence[int] | None
) -> tuple[Task, Learnables]:
    """The task of a dataset's classes that fits the memory, and the learnables for it, on the host."""
    task = job.context.bind(job.task.method, dataset)
    task = fit_evaluation(task, runs=job.padded_runs, mesh=job.context.mesh)
    return task, transfer(job.task, task, learnables, labels, axis=1)


def _evaluation(job: TrainJob, task: Task, learnables: Learnables) -> tuple[EvalStatic, EvalInputs]:
    """The arguments of an evaluation of the runs, padded to a multiple of the mesh."""
    count = job.padded_runs
    context = job.context
    padded = meshes.pad(learnables, count)
    return make_evaluation(task, context.params, padded, runs=count, mesh=context.mesh)
