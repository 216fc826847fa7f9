"""Classifies images: the most likely classes with their probabilities, and with `relevancy` what they are based on.

In place of class names any texts will do, to which no template is added; a context that an adapter's method learned
stands before them.

    python -m experiments.predict --config.images=photos --config.classes=cat,dog,bird
    python -m experiments.predict --config.images=photos --config.adapters=workdir/digits --config.relevancy
    python -m experiments.predict --config.images=photos --config.texts="a dog on grass,two cats" --config.relevancy

An adapter has zero-shot CLIP beside it, with the same class names and the adapter's template. Writes
`predictions.json`, and with `relevancy` one picture per image into `relevancy/`. An image that cannot be read has a
line that says why.
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

import clipbias
from clipbias import TunedModel, hosts
from clipbias.constants import ZERO_SHOT
from clipbias.data.pipeline import Batch, test_batches
from clipbias.data.user_images import UserImages
from clipbias.errors import ClipbiasError
from clipbias.explain.picture_sections import first_text
from clipbias.explain.relevancy import relevancy
from clipbias.explain.tokens import token_labels
from clipbias.io import write_text
from clipbias.report.overlay import Overlay, save_overlay
from clipbias.settings import as_json
from clipbias.terminal import printable
from clipbias.training.metrics import MetricWriter
from clipbias.training.progress import progress
from clipbias.training.workdir import open_workdir
from clipbias.tuning import Task
from clipbias.tuning.classes import Classes
from clipbias.tuning.test_time_method import crops_of, mixes_crops
from configs.predict import PredictSettings
from experiments import common
from experiments.command_line import split
from experiments.inputs import find_adapter, find_images, listed

_CONFIG = "configs/predict.py"
# Relevancy takes so many images at a time: it needs much more memory than a prediction.
_MAPS_AT_ONCE = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Classified:
    """What a model makes of a batch of images.

    Attributes:
      model: the model.
      probabilities: `[B, C]`.
      maps: with `relevancy` the map of each image's most likely class, over patches and prompts `[B, M + V]` and over
        its text `[B, N]`.
    """

    model: TunedModel
    probabilities: np.ndarray
    maps: tuple[np.ndarray, np.ndarray] | None = None


def main(settings: PredictSettings, workdir: Path) -> None:
    files = find_images(settings.images)
    model = open_model(settings)
    frozen = zero_shot_model(model, settings) if settings.adapters and settings.zero_shot else None
    models = [model] if frozen is None else [model, frozen]
    images = UserImages(files)
    entries: list[dict[str, object]] = [{"image": str(path)} for path in files]
    began = time.monotonic()
    with open_workdir(workdir, as_json(settings)), progress(len(files), unit="image", title="predict") as bar:
        for start, batch in read(images, model.task, settings):
            hosts.check()
            results = [classify(classifier, batch, settings) for classifier in models]
            for row in np.flatnonzero(batch["mask"]).tolist():
                path = files[start + row]
                entries[start + row] = {"image": str(path), **predictions(results, row, settings)}
                if settings.relevancy:
                    place = workdir / "relevancy" / f"{start + row + 1:04d}_{path.stem}.png"
                    overlays = [overlay(result, row, of_two=len(results) > 1) for result in reversed(results)]
                    save_overlay(place, whole_images(batch)[row], overlays, title=printable(path.name))
            bar.advance(min(len(batch["mask"]), len(files) - start))
        if len(images.errors) == len(files):
            raise ClipbiasError(f"none of {len(files)} images could be read; the first: {images.errors[0]}.")
        for number, message in images.errors.items():
            entries[number]["error"] = message
        write_text(workdir / "predictions.json", json.dumps(entries, indent=1) + "\n")
        with MetricWriter(workdir) as metrics:
            metrics.write(1, {"images": len(files) - len(images.errors), "seconds": round(time.monotonic() - began, 4)})
    for entry in entries:
        common.tell(line(entry))
    if images.errors:
        common.tell(f"{len(images.errors)} of {len(files)} images could not be read.")


def open_model(settings: PredictSettings) -> TunedModel:
    """The adapter, or zero-shot, with class names or texts from the settings or the adapter."""
    names = listed(settings.classes, "class names")
    texts = listed(settings.texts, "texts")
    if texts and (names or settings.template or settings.descriptions):
        raise ClipbiasError(
            "texts stand in place of class names and have no template or descriptions; leave out --config.classes, "
            "--config.template and --config.descriptions."
        )
    names = texts or names
    free_text = texts is not None
    descriptions = common.load_descriptions(settings, "")
    if (adapter_file := find_adapter(settings.adapters)) is not None:
        adapter, _ = adapter_file
        task, learnables = adapter.bind(
            clipbias.load(settings.model or adapter.base),
            names,
            own_methods=split(settings.own_methods),
            descriptions=descriptions,
            free_text=free_text,
            dtype=settings.dtype,
        )
        return TunedModel(task, learnables)
    if names is None:
        raise ClipbiasError(
            "no class names; give --config.classes=cat,dog or a file, --config.texts, or --config.adapters."
        )
    task = Task(
        clipbias.load(settings.model or "demo"),
        ZERO_SHOT,
        names,
        template=settings.template,
        descriptions=descriptions,
        free_text=free_text,
        dtype=settings.dtype,
    )
    return TunedModel(task, {})


def zero_shot_model(model: TunedModel, settings: PredictSettings) -> TunedModel | None:
    """Zero-shot CLIP with the classes and template of a tuned model; `None` where these cannot be."""
    classes = Classes(model.class_names, model.task.template)
    try:
        task = Task(model.clip, ZERO_SHOT, classes, free_text=settings.texts is not None, dtype=settings.dtype)
    except ClipbiasError as error:  # such as a template that leaves too little room for a name
        common.tell(f"no zero-shot beside it: {error}")
        return None
    return TunedModel(task, {})


def read(images: UserImages, task: Task, settings: PredictSettings) -> Iterator[tuple[int, Batch]]:
    """Batches of images as the task takes them, each with the number of its first image."""
    crops = crops_of(task.method)
    rows = min(max(1, settings.batch_size // (1 + crops)), len(images))
    batches = test_batches(
        images,
        resizing=task.clip.preprocessing.resizing,
        batch_size=rows,
        on_error=settings.on_image_error,
        crops=crops,
        mixed=mixes_crops(task.method),
    )
    for number, batch in enumerate(batches):
        yield number * rows, batch


def whole_images(batch: Batch) -> np.ndarray:
    """Images `[B, R, R, 3]` without their crops."""
    images = batch["images"]
    return images[:, 0] if images.ndim == 5 else images


def classify(model: TunedModel, batch: Batch, settings: PredictSettings) -> Classified:
    """Probabilities, and with `relevancy` maps of the most likely classes."""
    task = model.task
    predictor = model.predictor
    images = batch["images"] if crops_of(task.method) else whole_images(batch)
    probabilities = predictor.probabilities(images, batch["mask"])
    if not settings.relevancy:
        return Classified(model, probabilities)
    maps = relevancy(
        task,
        predictor.inputs.params,
        model.learnables,
        task.clip.preprocessing.normalize(images),
        probabilities.argmax(-1).tolist(),
        start_layer=settings.start_layer,
        chunk=_MAPS_AT_ONCE if len(images) > _MAPS_AT_ONCE else None,
    )
    return Classified(model, probabilities, (np.asarray(maps.vision), first_text(maps.text)))


def predictions(results: Sequence[Classified], row: int, settings: PredictSettings) -> dict[str, object]:
    """The most likely classes of an image with their probabilities; those of zero-shot under its name."""
    by_model: list[dict[str, object]] = []
    for result in results:
        best = np.argsort(-result.probabilities[row], kind="stable")[: settings.top]
        names = [result.model.class_names[label] for label in best]
        probabilities = [float(result.probabilities[row, label]) for label in best]
        by_model.append({"classes" if settings.texts is None else "texts": names, "probabilities": probabilities})
    return by_model[0] if len(by_model) == 1 else {**by_model[0], ZERO_SHOT: by_model[1]}


def overlay(result: Classified, row: int, *, of_two: bool) -> Overlay:
    """How the relevancy of an image for its most likely class is drawn."""
    assert result.maps is not None
    vision, text = result.maps
    task = result.model.task
    best = int(result.probabilities[row].argmax())
    title = f"{printable(task.class_names[best])} {100 * result.probabilities[row, best]:.0f} %"
    if of_two:
        title = f"{'Zero-shot' if task.method_name == ZERO_SHOT else 'Tuned'}\n{title}"
    tokens = tuple(token_labels(task, best))
    return Overlay(title, vision[row], task.clip.config.vision.patches, tokens, text[row])


def line(entry: Mapping[str, object]) -> str:
    """An image's predictions as they are printed, or why it could not be read."""
    if "error" in entry:
        return str(entry["error"])
    text = f"{entry['image']}: " + ", ".join(_pairs(entry))
    frozen = entry.get(ZERO_SHOT)
    return text if not isinstance(frozen, Mapping) else f"{text}; zero-shot {_pairs(frozen)[0]}"


def _pairs(entry: Mapping[str, object]) -> list[str]:
    names = entry.get("classes", entry.get("texts"))
    probabilities = entry["probabilities"]
    assert isinstance(names, list) and isinstance(probabilities, list)
    return [f"{name} {100 * probability:.1f} %" for name, probability in zip(names, probabilities, strict=True)]


if __name__ == "__main__":
    common.run(main, _CONFIG)
