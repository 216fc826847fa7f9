"""The tuned model that `clipbias.fit` and `clipbias.load_adapter` return, with its verbs."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipbias.analysis.pictures import first_text
from clipbias.analysis.relevancy import Relevancy, relevancy
from clipbias.analysis.words import token_labels
from clipbias.checks import check_int, check_value, shown
from clipbias.clip import Clip, load
from clipbias.clip.encode import as_images, check_normalised, image_batches, preprocess
from clipbias.data import Dataset, Split
from clipbias.data.folder import HubDataset, is_hub_dataset
from clipbias.data.held_out import FEWEST_TO_CALIBRATE
from clipbias.data.pipeline import BATCH_SIZE
from clipbias.data.sources import open_images
from clipbias.data.user_images import Labels, Pictures, image_list, label_array, label_numbers
from clipbias.errors import ClipbiasError
from clipbias.export.folder import export
from clipbias.prediction import Accuracy, Prediction
from clipbias.report.overlay import Overlay, overlay_rows
from clipbias.sentences import counted
from clipbias.training import placement
from clipbias.training.context import make_context
from clipbias.training.device import keep_programs
from clipbias.training.predictor import Predictor, evaluate
from clipbias.training.run import calibrate
from clipbias.tuning import Task
from clipbias.tuning.adapter import write_adapter
from clipbias.tuning.conformal import AnswerOptions, AnswerRule
from clipbias.tuning.method import crops_of, mixes_crops
from clipbias.tuning.tuned import Tuned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Maps in a figure of `plot`; a figure of more is too long to be read.
MOST_MAPS = 32

# Names that models of scikit-learn and transformers have.
_ELSEWHERE = {
    "score": "model.evaluate(images, labels).accuracy, in percent",
    "predict_proba": "model.predict(pictures).probabilities",
    "classes_": "model.class_names",
    "fit": "clipbias.fit(clip, method, images, labels), which returns another model",
    "save_pretrained": "model.save(file), or model.export(folder) for other programs",
    "from_pretrained": "clipbias.load_adapter(path)",
    "push_to_hub": "clipbias.push_to_hub(repository, model)",
}

# Labelled images: a dataset, its name or path, a split of one, or pictures with labels beside them.
AnyImages: TypeAlias = Dataset | Split | Pictures | HubDataset | Mapping[str, HubDataset]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TunedModel(Tuned):
    """A frozen CLIP with the learnables of a method: it predicts, evaluates, explains and saves.

    model = clipbias.fit(clip, "bias", clothes, shots=16)
    print(model.evaluate(clothes))
    model.save("clothes.safetensors")
    """

    @classmethod
    def of(cls, model: Tuned) -> "TunedModel":
        """The same model as a `TunedModel`."""
        return cls(model.task, model.learnables, model.notes, model.calibration)

    @property
    def predictor(self) -> Predictor:
        """Predictor on JAX's first device, which encodes the texts once."""
        keep_programs()
        return self._of_leaves("predictor", lambda: Predictor.of(self))

    def __repr__(self) -> str:
        return f"TunedModel({self.task!r})"

    if not TYPE_CHECKING:  # with it a type checker would accept every name

        def __getattr__(self, name: str) -> NoReturn:
            """Raises `AttributeError`, which says what stands for a name of scikit-learn or transformers."""
            if name in _ELSEWHERE:
                raise AttributeError(f"a tuned model has no {name!r}; take {_ELSEWHERE[name]}.")
            self.__getattribute__(name)  # for Python's message

    def calibrate(
        self,
        images: AnyImages,
        labels: Labels | None = None,
        *,
        split: str = "val",
        mesh: Mesh | None = None,
        on_image_error: str = "raise",
    ) -> "TunedModel":
        """The same model with the scores of labelled images, for prediction sets and "none of these".

        The images must have neither trained the model nor selected a setting, and be drawn like those to predict.

        Args:
          images, labels, mesh, on_image_error: as for `evaluate`.
          split: the split of a dataset.

        Raises:
          ClipbiasError: there are fewer than ten images, or they do not fit the model.
        """
        source = labelled_images(images, labels, self.class_names)
        used = source.split(split) if isinstance(source, Dataset) else source
        if len(used) < FEWEST_TO_CALIBRATE:
            raise ClipbiasError(f"{counted(len(used), 'image')} cannot calibrate; give {FEWEST_TO_CALIBRATE} at least.")
        context = make_context(self.task.clip, mesh, dtype=self.task.classifier.dtype, on_image_error=on_image_error)
        return dataclasses.replace(self, calibration=calibrate(self, used, context))

    def predict(
        self,
        pictures: Pictures,
        *,
        batch_size: int = BATCH_SIZE,
        normalised: bool = False,
        on_image_error: str = "raise",
        coverage: float = AnswerOptions.coverage,
        rejection: str = AnswerOptions.rejection,
        accepted: float = AnswerOptions.accepted,
    ) -> Prediction:
        """Classifies pictures.

        Args:
          pictures: as for `clip.preprocess` (paths, PIL images, uint8 arrays), or its result.
          normalised: whether a floating-point array is normalised, even if it looks like levels.
          on_image_error: "raise", or "skip" pictures that cannot be read: `Prediction.errors` says why.
          coverage: coverage of the prediction sets of a calibrated model.
          rejection: score for rejection: "max_logit", "mcm" or "energy".
          accepted: share of calibration images that are not rejected.

        Returns:
          `Prediction` with `probabilities [B, C]`, `labels [B]` and `classes`; of a calibrated model also `sets` and
          `rejected [B]`.

        Raises:
          ClipbiasError: a picture cannot be read; the coverage needs more calibration images.
        """
        options = AnswerOptions(coverage, rejection, accepted)
        # An empty first part, so that no pictures give arrays `[0, C]`.
        none = np.zeros((0, len(self.class_names)), np.float32)
        probabilities, logits = [none], [none]
        errors: dict[int, str] = {}
        count = 0
        for ((_, batch),) in predict_batches(
            [self], pictures, options, batch_size=batch_size, normalised=normalised, on_image_error=on_image_error
        ):
            probabilities.append(batch.probabilities)
            logits.append(batch.logits)
            # Batches count their pictures from 0.
            errors |= {count + number: error for number, error in batch.errors.items()}
            count += len(batch)
        rule = self.rule(options)
        return Prediction(self.class_names, np.concatenate(probabilities), errors, np.concatenate(logits), rule)

    def rule(self, options: AnswerOptions) -> AnswerRule | None:
        """Thresholds of sets and rejection; `None` without calibration. Raises `ClipbiasError` with too few images."""
        return None if self.calibration is None else self.calibration.rule(options)

    def evaluate(
        self,
        images: AnyImages,
        labels: Labels | None = None,
        *,
        split: str = "test",
        batch_size: int = BATCH_SIZE,
        mesh: Mesh | None = None,
        on_image_error: str = "raise",
        coverage: float = AnswerOptions.coverage,
        rejection: str = AnswerOptions.rejection,
        accepted: float = AnswerOptions.accepted,
    ) -> Accuracy:
        """Compares predictions with labels, overall and by class.

        Args:
          images: as for `clipbias.fit`.
          labels: the class of each picture, by number or by name, `[n]`; a dataset has its own.
          split: the split of a dataset: "train", "val" or "test".
          mesh: devices of the computation. Default: all devices.
          on_image_error: "raise", or "skip" images that cannot be read, which then do not count.
          coverage, rejection, accepted: as for `predict`.

        Returns:
          `Accuracy`, in percent, with `per_class [C]` and `confusion [C, C]`; of a calibrated model with `answers`, the
          measures of its prediction sets and rejections.

        Raises:
          ClipbiasError: images, labels or classes do not fit.
        """
        check_int("batch_size", batch_size, lowest=1)
        labels = None if labels is None else label_array(labels)
        source = labelled_images(images, labels, self.class_names)
        tested = source.split(split) if isinstance(source, Dataset) else source
        score, predicted = evaluate(
            self,
            tested,
            mesh=placement.as_mesh(mesh),
            eval_batch_size=batch_size,
            on_image_error=on_image_error,
            rule=self.rule(AnswerOptions(coverage, rejection, accepted)),
        )
        answers = score.get("answers")
        by_number = labels is not None and labels.dtype.kind != "U"
        return Accuracy(self.class_names, tested.labels, predicted, score["calibration"], answers, by_number)

    def relevancy(self, pictures: Pictures, classes: Labels | None = None, *, normalised: bool = False) -> Relevancy:
        """Relevancy of each patch, prompt and text token for a class (Eq. 13 to 16; Chefer et al. 2021).

            model.relevancy(["cat.png"], ["cat"]).vision

        Args:
          pictures: as for `predict`.
          classes: class of each picture, by number or by name, `[B]`. Default: the most likely class.
          normalised: as for `predict`.

        Returns:
          `Relevancy` with `vision [B, M + V]`, patches row by row and then prompts, and `text [B, N]`.

        Raises:
          ClipbiasError: there are not as many classes as pictures, or the method has no maps.
        """
        images = self._preprocessed(as_images(pictures), normalised)
        if classes is None:
            classes = self.predict(images, normalised=True).labels
        numbers = label_numbers(classes, self.class_names)
        _check_count(len(images), len(numbers), "classes")
        return relevancy(self.task, self.clip.params, self.learnables, jnp.asarray(images), numbers.tolist())

    def plot(
        self,
        pictures: Pictures,
        targets: Labels | None = None,
        *,
        maps: Relevancy | np.ndarray | None = None,
        titles: Sequence[str] | None = None,
        normalised: bool = False,
    ) -> "Figure":
        """Draws each picture beside its relevancy map, with the prompts' share, and the words below.

            model.plot(["cat.png", "dog.png"]).savefig("maps.png")

        Args:
          pictures: as for `predict`, at most 32.
          targets: the class of each map, by number or by name, `[B]`. Default: the most likely class.
          maps: other maps of these pictures: a result of `clipbias.relevancy`, or an array `[B, M + V]` of patches, row
            by row, then prompts.
          titles: titles of the maps, `[B]`. Default: the classes' names.
          normalised: as for `predict`.

        Returns:
          A `matplotlib.figure.Figure`.

        Raises:
          ClipbiasError: there are more than 32 pictures, another number of maps, or the method has no maps.
        """
        taken = as_images(pictures)
        images = self._preprocessed(taken, normalised)
        if not 0 < len(images) <= MOST_MAPS:
            raise ClipbiasError(f"there are {len(images)} pictures; a figure has from 1 to {MOST_MAPS}.")
        if targets is None:
            targets = self.predict(taken, normalised=normalised).labels
        classes = label_numbers(targets, self.class_names)
        _check_count(len(images), len(classes), "targets")
        check_value("titles", titles, list[Any] | None)
        titles = [self.class_names[label] for label in classes] if titles is None else titles
        _check_count(len(images), len(titles), "titles")
        if maps is None:
            maps = self.relevancy(images, classes, normalised=True)
        _check_count(len(images), len(maps.vision if isinstance(maps, Relevancy) else maps), "maps")
        overlays = make_overlays(self.task, maps, classes, [str(title) for title in titles])
        return overlay_rows([*self.clip.preprocessing.levels(images)], overlays)

    def _preprocessed(self, pictures: np.ndarray | Split, normalised: bool) -> np.ndarray:
        """Normalised images `[B, R, R, 3]`."""
        # An array may be levels that somebody forgot to normalise: `check_normalised` refuses these unless `sure`.
        if isinstance(pictures, Split):
            return preprocess(self.clip.preprocessing, pictures)
        pixels = np.asarray(pictures[None] if pictures.ndim == 3 else pictures, np.float32)
        check_normalised(pixels, self.clip.config.vision.image_size, sure=normalised)
        return pixels

    def save(self, path: str | os.PathLike, *, notes: Mapping[str, object] | None = None) -> None:
        """Writes the adapter's file, `*.safetensors`, atomically. `notes` are JSON values beside the model's.

        Raises `ClipbiasError` if `clipbias.load_adapter` would refuse the file, or it cannot be written.
        """
        if notes is not None and not isinstance(notes, Mapping):
            raise ClipbiasError(f"the adapter's notes is {shown(notes)}; it must hold values by name.")
        write_adapter(path, dataclasses.replace(self, notes={**self.notes, **(notes or {})}))

    def export(self, folder: str | os.PathLike, *, form: str | None = None) -> str:
        """Writes a model for other programs, as `clipbias.export.export` does."""
        return export(self, folder, form=form)


def predict_batches(
    models: Sequence[TunedModel],
    pictures: Pictures,
    options: AnswerOptions,
    *,
    batch_size: int,
    normalised: bool = False,
    on_image_error: str = "raise",
) -> Iterator[list[tuple[np.ndarray, Prediction]]]:
    """Predictions of each model, batch by batch, while the next pictures are read: the loop of all predictions.

    Args:
      models: models of the same frozen CLIP. If the first takes crops of each picture, the others take crops or the
        picture alone.
      pictures, batch_size, normalised, on_image_error: as for `TunedModel.predict`.
      options: options of prediction sets and rejection.

    Yields:
      For each model its images, padded to the size of a batch, and its prediction, without the padding.
    """
    # Rules first: a coverage that needs more calibration images fails before a picture is read.
    rules = [model.rule(options) for model in models]
    method = models[0].task.method
    batches = image_batches(
        models[0].clip.preprocessing,
        pictures,
        batch_size,
        normalised=normalised,
        crops=crops_of(method),
        mixed=mixes_crops(method),
        on_error=on_image_error,
    )
    start = 0
    for images, mask in batches:
        count = min(len(mask), batches.count - start)
        # The reader is ahead: `batches.errors` may already have pictures of later batches.
        errors = {n: batches.errors[start + n] for n in range(count) if start + n in batches.errors}
        start += count
        results = []
        for model, rule in zip(models, rules, strict=True):
            taken = images[:, 0] if images.ndim == 5 and not crops_of(model.task.method) else images
            values = model.predictor.classify(taken, mask, normalised=batches.normalised)
            # NaN, not zeros: a picture that could not be read has no likely class.
            probabilities, logits = (np.where(mask[:, None], x, np.nan)[:count].astype(np.float32) for x in values)
            results.append((taken, Prediction(model.class_names, probabilities, errors, logits, rule)))
        yield results


def make_overlays(
    task: Task, maps: Relevancy | np.ndarray, targets: Sequence[int] | np.ndarray, titles: Sequence[str]
) -> list[Overlay]:
    """Overlays of maps with their titles `[B]`, and with the text of each class for a `Relevancy`."""
    rows = np.asarray(maps.vision if isinstance(maps, Relevancy) else maps, np.float32)
    texts = first_text(maps.text) if isinstance(maps, Relevancy) else None
    overlays = []
    for number, (title, label) in enumerate(zip(titles, targets, strict=True)):
        overlay = Overlay(title, rows[number], task.clip.config.vision.patches)
        if texts is not None:
            overlay = dataclasses.replace(overlay, words=tuple(token_labels(task, int(label))), text=texts[number])
        overlays.append(overlay)
    return overlays


def check_model(model: object) -> None:
    """Raises `ClipbiasError` for anything but a `TunedModel`."""
    if not isinstance(model, TunedModel):
        raise ClipbiasError(f"the model is {shown(model)}; give what clipbias.fit or clipbias.load_adapter returned.")


def as_clip(clip: Clip | str | os.PathLike) -> Clip:
    """A model, loaded by its name if needed. Raises `ClipbiasError` for anything else."""
    if isinstance(clip, Clip):
        return clip
    if isinstance(clip, str | os.PathLike):
        return load(clip)
    raise ClipbiasError(f"the model is {shown(clip)}; give what clipbias.load returned, or a name that it takes.")


def labelled_images(images: AnyImages, labels: Labels | None, class_names: tuple[str, ...]) -> Dataset | Split:
    """A dataset of these classes, or a split. Raises `ClipbiasError` for pictures without labels."""
    source = open_images(images) if labels is None or is_hub_dataset(images) else images
    if isinstance(source, Dataset | Split):
        if labels is not None:
            raise ClipbiasError("a dataset and its splits have labels of their own; leave `labels` out.")
        if source.class_names not in (None, class_names):
            name = source.name if isinstance(source, Dataset) else "the split"
            is_order = sorted(source.class_names or ()) == sorted(class_names)
            words = "the model's classes in another order" if is_order else "other classes than the model"
            raise ClipbiasError(f"{name} has {words}; take model.with_classes(dataset).")
        if isinstance(source, Split):
            # Called for its error: a split's labels are numbers that may exceed the model's classes.
            label_numbers(source.labels, class_names)
        return source
    if labels is None:
        raise ClipbiasError("there are images without labels; give a dataset, or labels of the images.")
    return image_list(cast("Pictures", source), labels, class_names)


def _check_count(images: int, count: int, name: str) -> None:
    if count != images:
        raise ClipbiasError(f"pictures: {images}, {name}: {count}; give one for each.")
