"""What a task does with pictures instead of arrays: train, classify, count what is right."""

from typing import TYPE_CHECKING, Any, cast

from jax.sharding import Mesh

from clipbias.tuning.method import Learnables
from clipbias.tuning.predict import Prediction, learned, predict
from clipbias.tuning.recipe import Recipe

if TYPE_CHECKING:
    from clipbias.training.accuracy import Accuracy
    from clipbias.tuning.task import Task


class Applied:
    """The part of `Task` that takes pictures. Training and counting are `clipbias.training`'s, imported when called."""

    @property
    def _task(self) -> "Task":
        return cast("Task", self)

    def predict(self, images: Any, learnables: Learnables | None = None, *, batch_size: int = 64) -> Prediction:
        """The classes that pictures are taken for, with their probabilities.

        Args:
          images: as for `clip.preprocess`: paths, PIL images, uint8 arrays, or what it returned.
          learnables: what `fit` returned, or an adapter's; a method that learns nothing (zero-shot) needs none.
          batch_size: images at a time.

        Returns:
          `Prediction` with `probabilities [B, C]`, `labels [B]` and `classes`.

        Raises:
          ClipbiasError: a picture cannot be read, or learnables are missing.
        """
        return predict(self._task, images, learnables, batch_size)

    def fit(
        self,
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
        """Trains the method, with the draws, steps and numbers of `clipbias train`, whatever it trains on.

        Args:
          images: a dataset (`clipbias.data.load`) or its name, a split of one, or pictures as for `clip.preprocess`.
          labels: the class of each picture, by number or by name, `[n]`; a dataset has its own.
          shots: images drawn of each class; 0 takes all.
          seed: of the draw, of the learnables' start and of the order of images.
          learning_rate, epochs, batch_size: in place of the recipe's.
          recipe: how learnables are trained, by default as in the paper (`configs/base.py`).
          validation: a split, or pictures and their labels, for methods that choose on validation images.
          mesh: where to compute; `None` takes all devices.
          progress: whether to show it.

        Returns:
          The learnables, as `init` makes them.

        Raises:
          ClipbiasError: images, labels or classes do not fit, or the loss is not finite.
        """
        from clipbias.training.fit import fit

        own: dict[str, Any] = dict(learning_rate=learning_rate, epochs=epochs, batch_size=batch_size)
        options: dict[str, Any] = dict(validation=validation, recipe=recipe, mesh=mesh, progress=progress)
        return fit(self._task, images, labels, shots=shots, seed=seed, **options, **own)

    def accuracy(
        self,
        images: Any,
        labels: Any = None,
        learnables: Learnables | None = None,
        *,
        split: str = "test",
        batch_size: int = 100,
        mesh: Mesh | None = None,
    ) -> "Accuracy":
        """How many pictures are taken for what they are, in all, by class, and which for which.

        Args:
          images, labels: as for `fit`.
          learnables: as for `predict`.
          split: of a dataset, the images to take: "train", "val" or "test".
          batch_size: images at a time.
          mesh: where to compute; `None` takes all devices.

        Returns:
          `Accuracy`, in percent, with `per_class [C]` and `confusion [C, C]`.

        Raises:
          ClipbiasError: images, labels or classes do not fit, or learnables are missing.
        """
        from clipbias.training.accuracy import accuracy

        options: dict[str, Any] = dict(split=split, batch_size=batch_size, mesh=mesh)
        return accuracy(self._task, images, labels, learned(self._task, learnables), **options)
