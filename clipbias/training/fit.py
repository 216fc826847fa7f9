"""Training a task in one call, by the trainer of the grids: what `Task.fit` does."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipbias.checks import check_int
from clipbias.data import Dataset, Split, load
from clipbias.data.given import labelled
from clipbias.errors import ClipbiasError
from clipbias.hosts import Stopped
from clipbias.training import mesh as meshes
from clipbias.training.cache import Cache
from clipbias.training.packs import Pack
from clipbias.training.settings import GridSettings
from clipbias.training.trainer import Trainer
from clipbias.tuning import Recipe, Task
from clipbias.tuning.learnables import one_run
from clipbias.tuning.method import Learnables, Method

# As configs/base.py has it, which Python does not read; a test holds the two together.
PAPER = Recipe(
    learning_rate=0.0025,
    epochs=10,
    warmup_epochs=1,
    warmup_learning_rate=1e-5,
    batch_size=32,
    momentum=0.9,
    weight_decay=5e-4,
)
_FOLDER_KEEPS_NOTHING = 1e9  # seconds between two checkpoints


def fit(
    task: Task,
    images: Any,
    labels: Any,
    *,
    shots: int,
    seed: int,
    validation: Any,
    recipe: Recipe | None,
    mesh: Mesh | None,
    progress: bool,
    **changes: Any,
) -> Learnables:
    """See `Task.fit`; `changes` are fields of the recipe, `None` for those that stay."""
    check_int("shots", shots)
    check_int("seed", seed)
    if not task.method.draws:  # it is ready as it is made
        return task.init(seed)
    recipe = dataclasses.replace(recipe or PAPER, **{name: x for name, x in changes.items() if x is not None})
    dataset = training_dataset(task, images, labels, validation)
    mesh = meshes.make_mesh() if mesh is None else mesh
    settings = GridSettings(
        method_options={},
        dtype=task.classifier.dtype,
        eval_batch_size=100,
        checkpoint_seconds=_FOLDER_KEEPS_NOTHING,
        on_image_error="raise",
        trackers=(),
    )
    pack = Pack(task.method_name, dataset.name, shots, (seed,))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(task.clip, recipe, settings, lambda name: dataset, Path(folder), mesh=mesh, single=progress)
        trainer.cache = _OwnTask(task, trainer.params, settings, dataset, mesh)
        try:
            found = trainer.learn(pack, trainer.cache.plans(pack))
        except Stopped as error:  # what a program that is called by hand expects of Ctrl-C
            if error.status == 130:
                raise KeyboardInterrupt from None
            raise
        return jax.tree.map(jnp.asarray, one_run(found.learnables, 0))


def training_dataset(task: Task, images: Any, labels: Any, validation: Any) -> Dataset:
    """What `Task.fit` was given as a dataset with the task's classes and texts.

    Raises:
      ClipbiasError: its classes are others than the task's, or labels or images are none.
    """
    splits: dict[str, Split] = {}
    name = "own images"
    if labels is None and isinstance(images, str):
        images = load(images)
    if isinstance(images, Dataset):
        check_classes(task, images)
        name, splits = images.name, dict(images.splits)
        if labels is not None:
            raise ClipbiasError(f"the dataset {name} has labels of its own; leave `labels` out.")
    elif isinstance(images, Split):
        splits["train"] = images
    elif labels is None:
        raise ClipbiasError("there are images without labels; give a dataset, or labels of the images.")
    else:
        splits["train"] = labelled(images, labels, task.class_names)
    if validation is not None:
        splits["val"] = validation if isinstance(validation, Split) else _labelled_pair(task, *validation)
    splits.setdefault("test", splits["train"].subset([]) if "train" in splits else next(iter(splits.values())))
    return Dataset(name, task.class_names, task.template, splits)


def _labelled_pair(task: Task, images: Any, labels: Any) -> Split:
    return labelled(images, labels, task.class_names)


def check_classes(task: Task, dataset: Dataset) -> None:
    """Raises `ClipbiasError` where a dataset's classes are not those of a task, in their order."""
    if tuple(dataset.class_names) != task.class_names:
        raise ClipbiasError(
            f"{dataset.name} has {len(dataset.class_names)} classes, not the task's {len(task.class_names)}, or "
            "not in their order; make the task of dataset.class_names."
        )


class _OwnTask(Cache):
    """What the trainer asks for, of one task that is there already. No result is kept, so nothing names its images."""

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
