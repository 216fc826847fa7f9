"""Scores of the runs of a group, on test images or on the validation images that a learning rate is chosen by."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipbias.data import Dataset, Split, protocols
from clipbias.training import mesh as meshes
from clipbias.training.memory import fit_evaluation
from clipbias.training.outcomes import EvalInputs, EvalStatic, make_evaluation
from clipbias.training.sweep_context import SweepContext
from clipbias.tuning import Task
from clipbias.tuning.method import Learnables
from clipbias.tuning.transfer import transfer


@dataclasses.dataclass(frozen=True)
class Tested:
    """The scores of `R` runs in one evaluation.

    Attributes:
      task: bound to the classes of the evaluation, which may differ from those of training.
      learnables: for these classes, leading axis `R`, on the host.
      scores: of each run, see `Evaluator.accuracy`.
      predicted: int32 `[R, n]`, the class of every image; -1 where it could not be read.
      log_probs: float16 `[R, n, 7]`, see `outcomes.BatchOutcome`.
    """

    task: Task
    learnables: Learnables
    scores: list[dict[str, Any]]
    predicted: np.ndarray
    log_probs: np.ndarray


def score_test(
    shared: SweepContext,
    trained: Task,
    learnables: Learnables,
    plan: protocols.EvalProtocol,
    evaluation: protocols.Evaluation,
    runs: int,
    shots: int,
) -> Tested:
    """Scores runs on the test images of one evaluation.

    Args:
      shared: the model, the mesh, and the evaluators.
      trained: the task of training.
      learnables: leading axis `R`, on the host.
      plan: the draw, whose validation images a temperature is fitted on.
      evaluation: test images and classes.
      runs: `R`.
      shots: training images per class.
    """
    count = meshes.padded(shared.mesh, runs)
    task, learnables = _fitted(shared, trained, learnables, evaluation.dataset, evaluation.source_labels, count)
    evaluator = shared.evaluator(evaluation.dataset.split("test"))
    static, inputs = _make_evaluation(shared, task, learnables, count)
    validation = shared.temperature_evaluator(plan, evaluation, shots)
    scores = evaluator.accuracy(static, inputs, validation=validation)
    facts = {"skipped_images": evaluator.skipped} if evaluator.skipped else {}
    assert evaluator.predicted is not None and evaluator.log_probs is not None, "an evaluation predicts"
    # Behind the runs are copies of the last one that fill up the mesh.
    each = [score | facts for score in scores[:runs]]
    return Tested(task, learnables, each, evaluator.predicted[:runs], evaluator.log_probs[:runs])


def merge_scores(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The scores of one run in its evaluations, as its row has them: by name where there are several."""
    if len(scores) == 1:
        return dict(next(iter(scores.values())))
    found: dict[str, Any] = {
        "tested_images": {name: score["images"] for name, score in scores.items()},
        "accuracies": {name: score["accuracy"] for name, score in scores.items()},
        "calibrations": {name: score["calibration"] for name, score in scores.items()},
    }
    skipped = sum(score.get("skipped_images", 0) for score in scores.values())
    return found | ({"skipped_images": skipped} if skipped else {})


def score_validation(
    shared: SweepContext, trained: Task, learnables: Learnables, source: Dataset, splits: Sequence[Split]
) -> list[dict[str, Any]]:
    """Scores runs on validation images of the classes of training. No test image is looked at.

    Args:
      shared, trained, learnables: as for `score_test`.
      source: the classes of training.
      splits: of each run, its validation images.

    Returns:
      Of each run `validation_accuracy` in percent, the counts behind it, and `validation_loss` in nats.
    """
    count = meshes.padded(shared.mesh, len(splits))
    task, learnables = _fitted(shared, trained, learnables, source, tuple(range(len(source.class_names))), count)
    static, inputs = _make_evaluation(shared, task, learnables, count)
    distinct = {split.digest: split for split in splits}
    scores = {digest: shared.evaluator(split).validate(static, inputs) for digest, split in distinct.items()}
    return [
        {f"validation_{name}": value for name, value in scores[split.digest][index].items()}
        for index, split in enumerate(splits)
    ]


def _fitted(
    shared: SweepContext,
    trained: Task,
    learnables: Learnables,
    dataset: Dataset,
    labels: Sequence[int] | None,
    count: int,
) -> tuple[Task, Learnables]:
    """The task of a dataset's classes that fits the memory, and the learnables for it, on the host."""
    task = fit_evaluation(shared.bind(trained.method, dataset), runs=count, mesh=shared.mesh)
    return task, transfer(trained, task, learnables, labels, axis=1)


def _make_evaluation(
    shared: SweepContext, task: Task, learnables: Learnables, count: int
) -> tuple[EvalStatic, EvalInputs]:
    padded = meshes.pad(learnables, count)
    return make_evaluation(task, shared.params, padded, runs=count, mesh=shared.mesh)
