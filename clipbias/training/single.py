"""Training of a task from memory, without files: what `clipbias.fit` calls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.data import Dataset, Split, protocols
from clipbias.data.held_out import FEWEST_TO_CALIBRATE, hold_out_of, left_to_calibrate
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.calibrate import calibrate
from clipbias.training.job import Logging, Run, TrainJob
from clipbias.training.progress import Progress
from clipbias.training.selection import Selection, apply, cautions_of_fit, select, selects, with_validation
from clipbias.training.stages import train_job
from clipbias.training.sweep_context import SweepContext
from clipbias.tuning import Recipe, Task
from clipbias.tuning.conformal import Calibration
from clipbias.tuning.learnables import select_run
from clipbias.tuning.method import Learnables


@dataclasses.dataclass(frozen=True, eq=False)
class FitResult:
    """What `fit_task` returns.

    Attributes:
      task: with the settings that were selected.
      learnables: of the run.
      recipe: it was trained by; `None` where no step was made.
      selection: what was selected on held-out images, if anything was.
      labels: of the training images.
      warnings: sentences.
      calibration: scores of images that neither trained nor selected anything; `None` without any.
    """

    task: Task
    learnables: Learnables
    recipe: Recipe | None
    selection: Selection | None
    labels: np.ndarray
    warnings: tuple[str, ...]
    calibration: Calibration | None


def fit_task(
    task: Task,
    recipe: Recipe,
    dataset: Dataset,
    context: SweepContext,
    *,
    shots: int | None,
    seed: int,
    start_seed: int | None = None,
    progress: bool,
    compares_rates: bool = False,
    calibrates: bool | None = None,
) -> FitResult:
    """Trains a task with the few-shot splits, steps and numbers of `clipbias train`. Nothing is saved.

    Args:
      task: a method bound to classes, which uses training images.
      recipe: how it is trained.
      dataset: with the task's classes; it trains on "train", and "val" serves methods that select on it.
      context: the model and the devices.
      shots: images of each class; `None` takes all.
      seed: of the few-shot split.
      start_seed: of the initial learnables and the order of images; `None` for the few-shot split's.
      progress: whether to show it.
      compares_rates: whether the learning rate is selected on held-out images (`data.held_out`).
      calibrates: whether images are left to calibrate; `None` where there are enough.

    Raises:
      ClipbiasError: the loss is not finite, an image cannot be read, or none is left to calibrate.
    """
    protocol = protocols.few_shot(dataset, shots=shots, seed=seed) if shots is not None else protocols.full(dataset)
    unlabelled = task.method.unlabelled
    train = context.pseudo_labelled(protocol, shots) if unlabelled else protocol.source.split("train")
    (images,) = context.training_images([train])
    job = TrainJob(
        context=context,
        task=task.with_memory(class_shards=context.mesh.shape[meshes.DATA]),
        recipe=recipe if task.method.trains else None,
        runs=(Run(images, seed if start_seed is None else start_seed, protocol),),
        shots=shots,
        logging=Logging(progress=Progress(0, title=f"{task.method_name} on {dataset.name}") if progress else None),
    )
    selecting = selects(job, compares_rates=compares_rates)
    left = _calibration_images(protocol, seed, calibrates, selects=selecting)
    held = hold_out_of(protocol, seed, calibrates=selecting and left is not None)
    validation = None if held.from_training else held.choose
    if validation is None or held.calibrate is not None:
        job = with_validation(job, validation)
    selection = select(job, held, compares_rates=compares_rates)
    if selection is not None:
        job.logging.say(str(selection))
        job = apply(job, selection.best.learning_rate, selection.options)
    result = train_job(job)
    learnables = jax.tree.map(jnp.asarray, select_run(result.learnables, 0))
    return FitResult(
        task=job.task,
        learnables=learnables,
        recipe=job.recipe,
        selection=selection,
        labels=images.labels,
        warnings=cautions_of_fit(job, result, held, selection, compares_rates=compares_rates),
        calibration=None if left is None else calibrate(job.task, learnables, left, context),
    )


def calibrate_untrained(
    task: Task,
    learnables: Learnables,
    dataset: Dataset,
    context: SweepContext,
    *,
    seed: int,
    calibrates: bool | None = None,
) -> Calibration | None:
    """Calibrates a method that learns from no training image; arguments as of `fit_task`."""
    left = _calibration_images(protocols.full(dataset), seed, calibrates, selects=False, trains=False)
    return None if left is None else calibrate(task, learnables, left, context)


def _calibration_images(
    protocol: protocols.EvalProtocol, seed: int, calibrates: bool | None, *, selects: bool, trains: bool = True
) -> Split | None:
    """The images that calibrate, if any shall. Raises `ClipbiasError` where they must and there are none."""
    left = None if calibrates is False else left_to_calibrate(protocol, seed, selects=selects, trains=trains)
    if calibrates and left is None:
        raise ClipbiasError(
            f"fewer than {FEWEST_TO_CALIBRATE} images neither train nor select a setting, so that none calibrate; give "
            "validation images, or leave `calibrate` out."
        )
    return left
