"""Training of a task from memory, without files: what `clipbias.fit` calls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipbias.data import Dataset, protocols
from clipbias.data.held_out import hold_out_of
from clipbias.training import caution
from clipbias.training import mesh as meshes
from clipbias.training.compute import Compute
from clipbias.training.job import Logging, Run, TrainJob
from clipbias.training.progress import Progress
from clipbias.training.selection import Selection, apply, select
from clipbias.training.stages import train_job
from clipbias.training.sweep_context import SweepContext
from clipbias.tuning import Recipe, Task
from clipbias.tuning.learnables import select_run
from clipbias.tuning.method import Learnables


@dataclasses.dataclass(frozen=True, eq=False)
class FitResult:
    """What `train_task` returns.

    Attributes:
      task: with the settings that were selected.
      learnables: of the run.
      recipe: it was trained by; `None` where no step was made.
      selection: what was selected on held-out images, if anything was.
      labels: of the training images.
      warnings: sentences.
    """

    task: Task
    learnables: Learnables
    recipe: Recipe | None
    selection: Selection | None
    labels: np.ndarray
    warnings: tuple[str, ...]


def train_task(
    task: Task,
    recipe: Recipe,
    dataset: Dataset,
    *,
    shots: int | None,
    seed: int,
    start_seed: int | None = None,
    mesh: Mesh,
    on_image_error: str,
    progress: bool,
    compares_rates: bool = False,
) -> FitResult:
    """Trains a task with the few-shot splits, steps and numbers of `clipbias train`. Nothing is saved.

    Args:
      task: a method bound to classes, which uses training images.
      recipe: how it is trained.
      dataset: with the task's classes; it trains on "train", and "val" serves methods that select on it.
      shots: images of each class; `None` takes all.
      seed: of the few-shot split.
      start_seed: of the initial learnables and the order of images; `None` for the few-shot split's.
      mesh: where to compute.
      on_image_error: "raise", or "skip" images that cannot be read.
      progress: whether to show it.
      compares_rates: whether the learning rate is selected on held-out images (`data.held_out`).

    Raises:
      ClipbiasError: the loss is not finite, or an image cannot be read.
    """
    context = SweepContext(
        task.clip,
        {dataset.name: dataset},
        Compute(),
        mesh,
        dtype=task.classifier.dtype,
        on_image_error=on_image_error,
    )
    protocol = protocols.few_shot(dataset, shots=shots, seed=seed) if shots is not None else protocols.full(dataset)
    held = hold_out_of(protocol, seed)
    if held.from_training or held.choose is None:
        protocol = dataclasses.replace(protocol, validation=lambda: None)
    unlabelled = task.method.unlabelled
    train = context.pseudo_labelled(protocol, shots) if unlabelled else protocol.source.split("train")
    (images,) = context.training_images([train])
    job = TrainJob(
        context=context,
        task=task.with_memory(class_shards=mesh.shape[meshes.DATA]),
        recipe=recipe if task.method.trains else None,
        runs=(Run(images, seed if start_seed is None else start_seed, protocol),),
        shots=shots,
        logging=Logging(progress=Progress(0, title=f"{task.method_name} on {dataset.name}") if progress else None),
    )
    selection = select(job, held, compares_rates=compares_rates)
    if selection is not None:
        job.logging.say(str(selection))
        job = apply(job, selection)
    result = train_job(job)
    return FitResult(
        task=job.task,
        learnables=jax.tree.map(jnp.asarray, select_run(result.learnables, 0)),
        recipe=job.recipe,
        selection=selection,
        labels=images.labels,
        warnings=caution.of_fit(job, result, held, selection, compares_rates=compares_rates),
    )
