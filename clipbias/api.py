"""The functions that a user calls besides `load`, `Task` and `relevancy`.

Each takes a task, its learnables, and pictures or a dataset, in this order. They read files, draw images and show
progress, so they are not for `jax.jit`; the methods of `Task` are.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipbias.checks import check_int
from clipbias.clip.encode import is_normalised
from clipbias.data import Dataset, Split, load
from clipbias.data.user_images import labelled_split
from clipbias.errors import ClipbiasError
from clipbias.explain.picture_sections import first_text
from clipbias.explain.relevancy import relevancy
from clipbias.explain.streaming import Relevancy
from clipbias.explain.tokens import token_labels
from clipbias.export.upload import push_to_hub as push_to_hub
from clipbias.prediction import Accuracy, Prediction, probabilities
from clipbias.report.overlay import Overlay, overlay_rows
from clipbias.training import evaluate as evaluation
from clipbias.training import mesh as meshes
from clipbias.training.single import train_task
from clipbias.tuning import Recipe, Task
from clipbias.tuning.learnables import flatten
from clipbias.tuning.method import Learnables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Maps in a figure of `plot`; a figure of more is too long to be read.
MOST_MAPS = 32


def fit(
    task: Task,
    images: Any,
    labels: Any = None,
    *,
    shots: int = 0,
    seed: int = 1,
    learning_rate: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    recipe: Recipe | None = None,
    validation: Any = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Learnables:
    """Trains a task, with the draws, steps and numbers of `clipbias train`.

    Args:
      task: a method bound to classes.
      images: a dataset (`clipbias.data.load`) or its name, a split of one, or pictures as for `clip.preprocess`.
      labels: the class of each picture, by number or by name, `[n]`; a dataset has its own.
      shots: images drawn of each class; 0 takes all.
      seed: of the draw, of the learnables' start and of the order of images.
      learning_rate, epochs, batch_size: in place of the recipe's.
      recipe: how learnables are trained, by default `Recipe()`: as in the paper, but for 300 steps at least.
      validation: a split, or a pair of pictures and their labels, for methods that choose on validation images.
      mesh: where to compute; `None` takes all devices.
      progress: whether to show it.

    Returns:
      The learnables, as `task.init` makes them.

    Raises:
      ClipbiasError: images, labels or classes do not fit, or the loss is not finite.
    """
    check_int("shots", shots)
    check_int("seed", seed)
    if not task.method.uses_images:  # it learns of no image
        return task.init(seed)
    own: dict[str, Any] = {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size}
    recipe = dataclasses.replace(recipe or Recipe(), **{name: x for name, x in own.items() if x is not None})
    dataset = _training_dataset(task, images, labels, validation)
    return train_task(task, recipe, dataset, shots, seed, meshes.make_mesh() if mesh is None else mesh, progress)


def predict(task: Task, learnables: Learnables, pictures: Any, *, batch_size: int = 64) -> Prediction:
    """Classifies pictures.

    Args:
      task: a method bound to classes.
      learnables: from `fit` or an adapter; `{}` for a method that learns nothing (zero-shot).
      pictures: as for `clip.preprocess`: paths, PIL images, uint8 arrays, or what it returned.
      batch_size: images at a time.

    Returns:
      `Prediction` with `probabilities [B, C]`, `labels [B]` and `classes`.

    Raises:
      ClipbiasError: a picture cannot be read, or the learnables are those of another method.
    """
    _check_learnables(task, learnables)
    return Prediction(task.class_names, probabilities(task, learnables, pictures, batch_size))


def evaluate(
    task: Task,
    learnables: Learnables,
    images: Any,
    labels: Any = None,
    *,
    split: str = "test",
    batch_size: int = 100,
    mesh: Mesh | None = None,
) -> Accuracy:
    """Compares predictions with labels, in all and by class.

    Args:
      task: a method bound to classes.
      learnables: as for `predict`.
      images, labels: as for `fit`.
      split: of a dataset, the images to take: "train", "val" or "test".
      batch_size: images at a time.
      mesh: where to compute; `None` takes all devices.

    Returns:
      `Accuracy`, in percent, with `per_class [C]` and `confusion [C, C]`.

    Raises:
      ClipbiasError: images, labels, classes or learnables do not fit.
    """
    _check_learnables(task, learnables)
    given = _given(task, images, labels)
    chosen = given.split(split) if isinstance(given, Dataset) else given
    mesh = meshes.make_mesh() if mesh is None else mesh
    predicted: list[np.ndarray] = []
    options: dict[str, Any] = dict(eval_batch_size=batch_size, on_image_error="raise", save=predicted.append)
    score = evaluation.evaluate(task, learnables, chosen, mesh=mesh, **options)
    return Accuracy(task.class_names, chosen.labels, predicted[0], score["calibration"])


def plot(
    task: Task,
    learnables: Learnables,
    pictures: Any,
    targets: Sequence[int] | None = None,
    *,
    maps: Any = None,
    titles: Sequence[str] | None = None,
) -> "Figure":
    """Draws relevancy over pictures: each picture, beside it the map, with the prompts' share, and the words below.

        clipbias.plot(task, learnables, ["cat.png", "dog.png"]).savefig("maps.png")

    Args:
      task: a method bound to classes.
      learnables: as for `predict`.
      pictures: as for `predict`, at most 32.
      targets: the class of each map, `[B]`; `None` takes the most likely class.
      maps: other maps of these pictures: what `clipbias.relevancy` or `clipbias.explain` returned, or an array
        `[B, M + V]` of patches, row by row, then prompts.
      titles: `[B]`, above the maps, in place of the classes' names.

    Returns:
      A `matplotlib.figure.Figure`, which a notebook shows and `savefig` writes.

    Raises:
      ClipbiasError: there are not as many maps as pictures, more than 32, or the method has no maps.
    """
    _check_learnables(task, learnables)
    preprocessing = task.clip.preprocessing
    images = np.asarray(pictures, np.float32) if is_normalised(pictures) else task.clip.preprocess(pictures)
    images = images[None] if images.ndim == 3 else images
    if not 0 < len(images) <= MOST_MAPS:
        raise ClipbiasError(f"there are {len(images)} pictures; a figure has from 1 to {MOST_MAPS}.")
    if targets is None:
        targets = predict(task, learnables, pictures).labels.tolist()
    titles = [task.class_names[int(target)] for target in targets] if titles is None else titles
    vision = maps.vision if isinstance(maps, Relevancy) else maps
    for name, given in (("targets", targets), ("titles", titles), ("maps", images if maps is None else vision)):
        if len(given) != len(images):
            raise ClipbiasError(f"there are {len(images)} pictures and {len(given)} {name}; give one for each.")
    if maps is None:
        maps = relevancy(task, task.clip.device_params, learnables, jnp.asarray(images), targets)
    rows = np.asarray(maps.vision if isinstance(maps, Relevancy) else maps, np.float32)
    texts = first_text(maps.text) if isinstance(maps, Relevancy) else None
    patches, overlays = task.clip.config.vision.patches, list[Overlay]()
    for number, row in enumerate(rows):
        words = () if texts is None else (tuple(token_labels(task, int(targets[number]))), texts[number])
        overlays.append(Overlay(str(titles[number]), row, patches, *words))
    levels = 255 * (images * np.asarray(preprocessing.std) + np.asarray(preprocessing.mean))
    return overlay_rows(levels.round().clip(0, 255).astype(np.uint8), overlays)


def _check_learnables(task: Task, learnables: Any) -> None:
    """Raises `ClipbiasError` where learnables are missing, or something else stands in their place."""
    wanted = flatten(task.shapes).keys()
    if not isinstance(learnables, Mapping) or flatten(learnables).keys() != wanted:
        raise ClipbiasError(
            f"the second argument is not what {type(task.method).__name__} learns ({', '.join(wanted) or 'nothing: {}'}"
            "); give what clipbias.fit returned, task.init before training, or an adapter's learnables."
        )


def _given(task: Task, images: Any, labels: Any) -> Dataset | Split:
    """A dataset with the task's classes, or a split. Raises `ClipbiasError` for pictures without labels."""
    if labels is None and isinstance(images, str):
        images = load(images)
    if isinstance(images, Dataset):
        if tuple(images.class_names) != task.class_names:
            raise ClipbiasError(
                f"{images.name} has {len(images.class_names)} classes, not the task's {len(task.class_names)}, or "
                "not in their order; make the task of dataset.class_names."
            )
        if labels is not None:
            raise ClipbiasError(f"the dataset {images.name} has labels of its own; leave `labels` out.")
    if isinstance(images, Dataset | Split):
        return images
    if labels is None:
        raise ClipbiasError("there are images without labels; give a dataset, or labels of the images.")
    return labelled_split(images, labels, task.class_names)


def _training_dataset(task: Task, images: Any, labels: Any, validation: Any) -> Dataset:
    """What `fit` is given as a dataset with the task's classes and texts."""
    given = _given(task, images, labels)
    name, splits = ("own images", {"train": given}) if isinstance(given, Split) else (given.name, dict(given.splits))
    if validation is not None:
        pictures, own = (validation, None) if isinstance(validation, Split) else validation
        splits["val"] = pictures if own is None else labelled_split(pictures, own, task.class_names)
    splits.setdefault("test", next(iter(splits.values())).subset([]))
    return Dataset(name, task.class_names, task.template, splits)
