"""Accuracy, scores by class and calibration of one set of learnables on a split."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from clipbias.data import Split
from clipbias.data.confusion import class_summary
from clipbias.data.protocols import validation_outside_test
from clipbias.data.workers import Workers
from clipbias.training import mesh as meshes
from clipbias.training.calibration import detection
from clipbias.training.evaluator import Evaluator, score
from clipbias.training.outcomes import make_evaluation
from clipbias.training.spec import Row
from clipbias.tuning import Task
from clipbias.tuning.conformal import AnswerRule, measure
from clipbias.tuning.method import Learnables


def evaluate(
    task: Task,
    learnables: Learnables,
    split: Split,
    *,
    mesh: Mesh,
    eval_batch_size: int,
    on_image_error: str,
    workers: int | None = None,
    validation: Split | None = None,
    outside: Split | None = None,
    rule: AnswerRule | None = None,
    save: Callable[[np.ndarray], None] = lambda predicted: None,
) -> Row:
    """Top-1 accuracy of one set of learnables, its calibration, and how well it tells other images apart.

    Args:
      task: a method bound to classes.
      learnables: as from `task.init`.
      split: images to evaluate on.
      mesh: where to compute.
      eval_batch_size: images per step over all devices.
      on_image_error: "raise" or "skip" images that cannot be read.
      workers: threads that decode; `None` takes one for each processor.
      validation: images to fit a temperature on, but those that are evaluated.
      outside: images of other classes, whose labels are not looked at.
      rule: what prediction sets and rejections are made by.
      save: given the class that is predicted for every image, int32 `[n]`; -1 where one could not be read.

    Returns:
      `{"accuracy", "correct", "images", "calibration", "class_summary"}` (`data.confusion`), with `validation_images`,
      their number, and `skipped_images` if any, with a rule `answers` (`conformal.measure`), and with images outside
      `ood` (`calibration.detection`), where `accepted` is the share in percent that the rule does not reject.
    """
    params = meshes.place_weights(mesh, task.clip.params, task.classifier.dtype)
    single = jax.tree.map(lambda leaf: np.asarray(leaf)[None], learnables)
    static, inputs = make_evaluation(task, params, single, runs=1, mesh=mesh)
    shared = Workers(workers)

    def on(images: Split) -> Evaluator:
        return Evaluator(images, mesh=mesh, batch_size=eval_batch_size, on_error=on_image_error, workers=shared)

    evaluator = on(split)
    others = validation_outside_test(split, validation)
    (inside,), fitted = evaluator.outcomes(
        static, inputs, validation=None if others is None else on(others), keeps_logits=rule is not None
    )
    assert evaluator.predicted is not None
    predicted = evaluator.predicted[0]
    save(predicted)
    scores = score(inside, fitted[0])
    scores["class_summary"] = class_summary(split.labels, predicted, task.class_names)
    if others is not None:
        scores["validation_images"] = len(others)
    if evaluator.skipped:
        scores["skipped_images"] = evaluator.skipped
    if rule is not None and evaluator.logits_read is not None:
        logits, labels = evaluator.logits_read
        scores["answers"] = measure(rule, logits[0], labels)
    if outside is not None:
        away = on(outside)
        (other,), _ = away.outcomes(static, inputs, keeps_logits=rule is not None)
        scores["ood"] = {"images": len(other.other_odds), **detection(inside, other)}
        if rule is not None and away.logits_read is not None:
            scores["ood"]["accepted"] = 100 * float((~rule.rejected(away.logits_read[0][0])).mean())
    return scores
