"""Training of one task that is there already, without a work folder: what `clipbias.fit` runs."""

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipbias.data import Dataset
from clipbias.interruption import Interrupted
from clipbias.training import mesh as meshes
from clipbias.training.cache import Cache
from clipbias.training.packs import Pack
from clipbias.training.settings import GridSettings
from clipbias.training.trainer import Trainer
from clipbias.tuning import Recipe, Task
from clipbias.tuning.learnables import one_run
from clipbias.tuning.method import Learnables, Method


def train_task(
    task: Task, recipe: Recipe, dataset: Dataset, shots: int, seed: int, mesh: Mesh, progress: bool
) -> Learnables:
    """Trains one run of a task by the trainer of the grids, in a folder that keeps nothing.

    Args:
      task: a method bound to classes.
      recipe: how it is trained.
      dataset: with the task's classes.
      shots: images drawn of each class; 0 takes all.
      seed: of the draw, of the learnables' start and of the order of images.
      mesh: where to compute.
      progress: whether to show it.
    """
    settings = GridSettings(
        method_options={},
        dtype=task.classifier.dtype,
        eval_batch_size=100,
        checkpoint_seconds=1e9,
        on_image_error="raise",
        trackers=(),
    )
    pack = Pack(task.method_name, dataset.name, shots, (seed,))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(task.clip, recipe, settings, lambda name: dataset, Path(folder), mesh=mesh, single=progress)
        trainer.cache = _OwnTask(task, trainer.params, settings, dataset, mesh)
        try:
            learned = trainer.learn(pack, trainer.cache.plans(pack))
        except Interrupted as error:  # in a program that is called by hand, Ctrl-C is Python's own
            if error.status == 130:
                raise KeyboardInterrupt from None
            raise
        return jax.tree.map(jnp.asarray, one_run(learned.learnables, 0))


class _OwnTask(Cache):
    """Gives the trainer a task that is there already. No result is kept, so nothing names its images."""

    def __init__(self, task: Task, params: Any, settings: GridSettings, dataset: Dataset, mesh: Mesh) -> None:
        super().__init__(task.clip, params, settings, lambda name: dataset, mesh)
        self._task, self._made = task, dict[tuple[Any, ...], Task]()

    def options(self, pack: Pack) -> dict[str, Any]:
        return self._task.options()

    def method(self, pack: Pack) -> Method:
        return self._task.method

    def image_hashes(self, pack: Pack) -> tuple[str, str]:
        return "", ""

    def task(self, pack: Pack, dataset: Dataset, method: Method | None = None, **memory: Any) -> Task:
        method = method or self._task.method
        key = (method, *memory.values())
        if key not in self._made:
            self._made[key] = self._task.again(method, groups=self._mesh.shape[meshes.DATA], **memory)
        return self._made[key]
