"""Training of a task from memory, without files: what `clipbias.fit` calls."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipbias.data import Dataset, protocols
from clipbias.training import mesh as meshes
from clipbias.training.compute import Compute
from clipbias.training.group import learn
from clipbias.training.loop import Logging, Run
from clipbias.training.progress import Progress
from clipbias.training.sweep_context import SweepContext
from clipbias.tuning import Recipe, Task
from clipbias.tuning.learnables import select_run
from clipbias.tuning.method import Learnables, Method


def train_task(
    task: Task, recipe: Recipe, dataset: Dataset, *, shots: int | None, seed: int, mesh: Mesh, progress: bool
) -> Learnables:
    """Trains a task with the draws, steps and numbers of `clipbias train`. Nothing is saved.

    Args:
      task: a method bound to classes.
      recipe: how it is trained.
      dataset: with the task's classes; it trains on "train", and "val" serves methods that choose on it.
      shots: images drawn of each class; `None` takes all.
      seed: of the draw, the initial learnables and the order of images.
      mesh: where to compute.
      progress: whether to show it.

    Raises:
      ClipbiasError: the loss is not finite, or an image cannot be read.
    """
    shared = SweepContext(task.clip, {dataset.name: dataset}, Compute(), mesh, dtype=task.classifier.dtype)
    draw = protocols.few_shot(dataset, shots=shots, seed=seed) if shots else protocols.full(dataset)
    unlabelled = task.method.unlabelled
    train = shared.pseudo_labelled(draw, shots or 0) if unlabelled else draw.source.split("train")

    def bind(method: Method, _: Dataset) -> Task:
        return task.with_method(method).with_memory(class_shards=mesh.shape[meshes.DATA])

    shown = Progress(0, title=f"{task.method_name} on {dataset.name}") if progress else None
    learned = learn(
        *(shared, bind, task.method, recipe, draw.source),
        [Run(shared.training_images([train])[0], seed)],
        [draw.validation],
        Logging(progress=shown),
    )
    return jax.tree.map(jnp.asarray, select_run(learned.learnables, 0))
