"""Classifies images: the most likely classes with their probabilities, and with `relevancy` what they are based on.

In place of class names any texts will do, to which no template is added; a context that an adapter's method learned
stands before them.

    python -m experiments.predict --config.images=photos --config.classes=cat,dog,bird
    python -m experiments.predict --config.images=photos --config.adapters=workdir/digits --config.relevancy
    python -m experiments.predict --config.images=photos --config.texts="a dog on grass,two cats" --config.relevancy

An adapter has zero-shot CLIP beside it, with the same class names and the adapter's template. Writes
`predictions.json`, and with `relevancy` one picture per image into `relevancy/`.
"""

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import clipbias
from clipbias import hosts
from clipbias.clip.params import Params
from clipbias.clip.precision import cast_weights
from clipbias.constants import ZERO_SHOT
from clipbias.data.files_on_disk import IMAGE_SUFFIXES, image_files, read_image
from clipbias.data.transforms import decode, test_image, test_views
from clipbias.errors import ClipbiasError, UnreadableImage
from clipbias.explain.picture_sections import first_text
from clipbias.explain.relevancy import relevancy
from clipbias.explain.tokens import token_labels
from clipbias.io import data_path, read_text, write_text
from clipbias.prediction import softmax
from clipbias.report.overlay import Overlay, save_overlay
from clipbias.settings import as_json
from clipbias.terminal import printable
from clipbias.training.metrics import MetricWriter
from clipbias.training.progress import progress
from clipbias.training.workdir import open_workdir
from clipbias.tuning import Learnables, Task
from clipbias.tuning.classifier import Text
from clipbias.tuning.task import Classes, check_class_names
from clipbias.tuning.test_time_method import crops_of, mixes_crops
from configs.predict import PredictSettings
from experiments import common
from experiments.command_line import split
from experiments.inputs import AdapterFile, find_adapter

_CONFIG = "configs/predict.py"


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """One way to classify images.

    Attributes:
      title: what pictures call it; nothing where it is alone.
      key: of its predictions within those of the image.
      task, learnables: bound to the class names or texts.
      classes: their features, or the text where they depend on the image.
    """

    title: str
    key: str
    task: Task
    learnables: Learnables
    classes: Text


def main(settings: PredictSettings, workdir: Path) -> None:
    files = find_images(settings.images)
    adapter = find_adapter(settings.adapters)
    task, learnables = open_task(settings, adapter)
    params = jax.device_put(cast_weights(task.clip.params, task.classifier.dtype))
    models = list(bound(task, learnables, params, settings, tuned=adapter is not None))
    found, key = list[dict[str, Any]](), "texts" if settings.texts else "classes"
    began = time.monotonic()
    with open_workdir(workdir, as_json(settings)), progress(len(files), unit="image", title="predict") as bar:
        for chunk, pictures in read(files, task, settings):
            hosts.check()
            # The last batch is padded, so that one compiled program serves all.
            missing = min(images_per_batch(task, settings), len(files)) - len(chunk)
            filled = np.pad(pictures, ((0, missing), *[(0, 0)] * (pictures.ndim - 1)))
            mask = np.arange(len(filled)) < len(chunk)
            answers = [classify(model, params, filled, mask, settings) for model in models]
            for i, path in enumerate(chunk):
                found.append({"image": str(path)})
                overlays = []
                for model, (shares, maps) in zip(models, answers, strict=True):
                    best = np.argsort(-shares[i], kind="stable")[: settings.top]
                    told = {
                        key: [task.class_names[c] for c in best],
                        "probabilities": [float(shares[i, c]) for c in best],
                    }
                    found[-1] |= {model.key: told} if model.key else told
                    if maps is not None:
                        overlays.append(overlay(model, int(best[0]), shares[i, best[0]], maps[0][i], maps[1][i]))
                if overlays:
                    name = f"{len(found):04d}_{path.stem}.png"
                    seen = pictures[i, 0] if crops_of(task.method) else pictures[i]
                    save_overlay(workdir / "relevancy" / name, seen, overlays[::-1], title=printable(path.name))
            bar.advance(len(chunk))
        write_text(workdir / "predictions.json", json.dumps(found, indent=1) + "\n")
        with MetricWriter(workdir) as metrics:
            metrics.write(1, {"images": len(found), "seconds": round(time.monotonic() - began, 4)})
    for entry in found:
        pairs = zip(entry[key], entry["probabilities"], strict=True)
        line = f"{entry['image']}: " + ", ".join(f"{name} {100 * p:.1f} %" for name, p in pairs)
        if (frozen := entry.get(ZERO_SHOT)) is not None:
            line += f"; zero-shot {frozen[key][0]} {100 * frozen['probabilities'][0]:.1f} %"
        common.tell(line)


def bound(
    task: Task, learnables: Learnables, params: Params, settings: PredictSettings, *, tuned: bool
) -> Iterator[Model]:
    """The model that was asked for, and zero-shot CLIP beside a tuned one."""

    def model(title: str, key: str, task: Task, learnables: Learnables) -> Model:
        classes = task.text if task.method.conditional else task.text_features(params, learnables)
        return Model(title, key, task, learnables, classes)

    both = tuned and settings.zero_shot
    yield model("Tuned" if both else "", "", task, learnables)
    if both:
        classes = Classes(task.class_names, task.template)
        try:
            frozen = Task(task.clip, ZERO_SHOT, classes, free_text=bool(settings.texts), dtype=settings.dtype)
        except ClipbiasError as error:  # such as a template that leaves too little room for a name
            common.tell(f"no zero-shot beside it: {error}")
            return
        yield model("Zero-shot", ZERO_SHOT, frozen, {})


def overlay(model: Model, best: int, share: float, vision: np.ndarray, text: np.ndarray) -> Overlay:
    """What one picture's relevancy looks like."""
    title = f"{printable(model.task.class_names[best])} {100 * share:.0f} %"
    return Overlay(
        title=f"{model.title}\n{title}" if model.title else title,
        vision=vision,
        patches=model.task.clip.config.vision.patches,
        tokens=tuple(token_labels(model.task, best)),
        text=text,
    )


def find_images(text: str | None) -> list[Path]:
    """Image files, and visible ones in folders, in the order given and by name."""
    found: list[Path] = []
    whole = data_path(text) if text is not None and "," in text else None  # a name may have a comma
    parts = split(text)
    if whole is not None and (whole.is_file() or whole.is_dir()):
        parts = [str(whole)]
    for part in parts:
        path = data_path(part)
        if path.is_dir():
            inside = [path / name for name in image_files(path)]
            if not inside:
                raise ClipbiasError(f"the folder {path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            hint = "; commas separate names, so give the folder of a name that has one" if whole is not None else ""
            raise ClipbiasError(f"there is no image or folder {path}{hint}.")
    if not found:
        raise ClipbiasError("no images to classify; give --config.images=FILE_OR_FOLDER.")
    return found


def open_task(settings: PredictSettings, found: AdapterFile | None) -> tuple[Task, Learnables]:
    """The task of the adapter, or zero-shot, with class names or texts from the configuration or the adapter."""
    names, texts = listed(settings.classes, "class names"), listed(settings.texts, "texts")
    if texts and (names or settings.template or settings.descriptions):
        raise ClipbiasError(
            "texts stand in place of class names and have no template or descriptions; leave out --config.classes, "
            "--config.template and --config.descriptions."
        )
    options: dict[str, Any] = {"dtype": settings.dtype, "descriptions": common.load_descriptions(settings, "")}
    options["free_text"] = texts is not None
    names = texts or names
    if found is not None:
        adapter, _ = found
        clip = clipbias.load(settings.model or adapter.base)
        if names is not None:
            check_class_names(names)
        return adapter.bind(clip, names, own_methods=split(settings.own_methods), **options)
    if names is None:
        raise ClipbiasError(
            "no class names; give --config.classes=cat,dog or a file, --config.texts, or --config.adapters."
        )
    if settings.template:
        options["template"] = settings.template
    return Task(clipbias.load(settings.model or "demo"), ZERO_SHOT, names, **options), {}


def listed(given: str | None, what: str) -> tuple[str, ...] | None:
    """Names or texts separated by commas, or from a file with one per line; `None` for `None`."""
    if given is None:
        return None
    if os.path.isfile(path := os.path.expanduser(given)):
        found = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    elif given.endswith(".txt"):
        raise ClipbiasError(f"there is no file of {what} {given}.")
    else:
        found = tuple(split(given))
    if not found:
        raise ClipbiasError(f"{given!r} holds no {what}; give one per line, or separate them by commas.")
    return found


def images_per_batch(task: Task, settings: PredictSettings) -> int:
    """The batch size, which counts the crops of each image, too."""
    return max(1, settings.batch_size // (1 + crops_of(task.method)))


def read(files: Sequence[Path], task: Task, settings: PredictSettings) -> Iterator[tuple[list[Path], np.ndarray]]:
    """Batches of paths and pictures `[B, R, R, 3]`; unreadable ones are refused or left out as configured.

    Pictures have levels from 0 to 255. For a method that learns of crops of each image, they are `[B, 1 + V, R, R, 3]`.
    """
    size, crops = task.clip.preprocessing.side, crops_of(task.method)
    mixed = mixes_crops(task.method)
    rows = images_per_batch(task, settings)
    for start in range(0, len(files), rows):
        chunk, pictures = [], []
        for path in files[start : start + rows]:
            try:
                image = decode(read_image(path), str(path))
                pictures.append(test_views(image, size, crops, mixed=mixed) if crops else test_image(image, size))
            except UnreadableImage as error:
                if settings.on_image_error != "skip":
                    raise
                common.tell(f"skipped: {error}")
                continue
            chunk.append(path)
        if chunk:
            yield chunk, np.stack(pictures)


def classify(
    model: Model, params: Params, pictures: np.ndarray, mask: np.ndarray, settings: PredictSettings
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Probabilities `[B, C]`, and with `relevancy` the maps `[B, M + V]` and `[B, N]` of each image's best class.

    `mask [B]` says which of the pictures are there; the others only fill the batch.
    """
    task, learnables = model.task, model.learnables
    if pictures.ndim == 5 and not crops_of(task.method):
        pictures = pictures[:, 0]  # the whole image, which a tuned method beside it learns of crops of
    images = task.clip.preprocessing.normalize(pictures)
    found = np.asarray(softmax(task.classifier, params, learnables, images, model.classes, mask))
    if not settings.relevancy:
        return found, None
    maps = relevancy(task, params, learnables, images, found.argmax(-1), start_layer=settings.start_layer)
    return found, (np.asarray(maps.vision), first_text(maps.text))


if __name__ == "__main__":
    common.run(main, _CONFIG)
