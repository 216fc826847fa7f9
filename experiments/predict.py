"""Classifies images: the most likely classes with their probabilities, and with `relevancy` what they are based on.

In place of class names any texts will do, to which no template is added; a context that an adapter's method learned
stands before them.

    python -m experiments.predict --config.images=photos --config.classes=cat,dog,bird
    python -m experiments.predict --config.images=photos --config.adapters=workdir/digits --config.relevancy
    python -m experiments.predict --config.images=photos --config.texts="a dog on grass,two cats" --config.relevancy

    python -m experiments.predict --config.images=photos --config.adapters=workdir/own --config.output=answers.csv

An adapter has zero-shot CLIP beside it, with the same class names and the adapter's template. A calibrated adapter says
which classes its prediction set has, and which images are none of them. Writes `predictions.json`, and with `relevancy`
one picture per image into `relevancy/`. An image that cannot be read has a line that says why. With `output` lines are
added to a table while images are classified, and the same command continues it.
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
from clipbias.io import is_remote, write_text
from clipbias.report.overlay import Overlay, save_overlay
from clipbias.report.prediction_table import BETWEEN, key, open_table
from clipbias.sentences import counted
from clipbias.settings import as_json
from clipbias.terminal import printable
from clipbias.training.evaluate import fingerprint
from clipbias.training.progress import MetricWriter, progress
from clipbias.training.workdir import open_workdir
from clipbias.tuning import Task
from clipbias.tuning.conformal import NOT_CALIBRATED, AnswerRule
from clipbias.tuning.method import crops_of, mixes_crops
from clipbias.tuning.prompts import Classes
from configs.predict import PredictSettings
from experiments import common
from experiments.command_line import split
from experiments.inputs import find_adapter, find_images, listed

_CONFIG = "configs/predict.py"
# What is said of an image: `predictions` and `answers`, or an `error`.
Entry = dict[str, Any]
# Relevancy takes so many images at a time: it needs much more memory than a prediction.
_MAPS_AT_ONCE = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Classified:
    """What a model makes of a batch of images.

    Attributes:
      model: the model.
      probabilities, logits: `[B, C]`.
      maps: with `relevancy` the map of each image's most likely class, over patches and prompts `[B, M + V]` and over
        its text `[B, N]`.
    """

    model: TunedModel
    probabilities: np.ndarray
    logits: np.ndarray
    maps: tuple[np.ndarray, np.ndarray] | None = None


def main(settings: PredictSettings, workdir: Path) -> None:
    files = find_images(settings.images)
    model = open_model(settings)
    rule = model.rule(settings.answers)
    frozen = zero_shot_model(model, settings) if settings.adapters and settings.zero_shot else None
    models = [model] if frozen is None else [model, frozen]
    if settings.adapters and rule is None:
        common.tell(f"no prediction sets: {NOT_CALIBRATED}")
    if rule is not None and rule.caution:
        common.tell(rule.caution)
    with open_workdir(workdir, as_json(settings)):
        began = time.monotonic()
        if settings.output is None:
            read = write_list(files, models, rule, settings, workdir)
        else:
            read = write_table(files, models, rule, settings, workdir)
        with MetricWriter(workdir) as metrics:
            metrics.write(1, {"images": read, "seconds": round(time.monotonic() - began, 4)})


def write_list(
    files: Sequence[Path],
    models: Sequence[TunedModel],
    rule: AnswerRule | None,
    settings: PredictSettings,
    workdir: Path,
) -> int:
    """Writes `predictions.json` and prints a line per picture; returns the number of those that were read."""
    entries: list[Entry] = []
    with progress(len(files), unit="image", title="predict") as bar:
        for of_batch in classified(list(enumerate(files)), models, rule, settings, workdir):
            entries += of_batch
            bar.advance(len(of_batch))
    broken = [entry for entry in entries if "error" in entry]
    if len(broken) == len(files):
        raise ClipbiasError(f"no image could be read, of {len(files):,}; the first: {broken[0]['error']}.")
    write_text(workdir / "predictions.json", json.dumps(entries, indent=1) + "\n")
    for entry in entries:
        common.tell(line(entry, rule))
    if broken:
        common.tell(f"{len(broken):,} of {counted(len(files), 'image')} could not be read.")
    return len(files) - len(broken)


def write_table(
    files: Sequence[Path],
    models: Sequence[TunedModel],
    rule: AnswerRule | None,
    settings: PredictSettings,
    workdir: Path,
) -> int:
    """Adds a line to the table for every picture that has none; returns the number of those that were read."""
    assert settings.output is not None
    # Of two folders that the command is run in, pictures of equal relative paths are not the same.
    files = [path if is_remote(path) else path.absolute() for path in files]
    model = models[0]
    facts = {
        "adapter, model or classes": fingerprint(model.task, model.learnables, model.task.method_name, None),
        "prediction sets": None if rule is None else dataclasses.asdict(rule),
    }
    columns = ["image", "class", "probability"]
    if rule is not None:
        columns += ["set", "rejected"]
    if len(models) > 1:
        columns += ["zero_shot_class", "zero_shot_probability"]
    broken = 0
    with open_table(settings.output, [*columns, "error"], facts) as table:
        left = [(number, path) for number, path in enumerate(files) if key(path) not in table.images]
        done = len(files) - len(left)
        if done:
            common.tell(f"{done:,} of {counted(len(files), 'image')} have a line in {table.path} already")
        with progress(len(files), done=done, unit="image", title="predict") as bar:
            for of_batch in classified(left, models, rule, settings, workdir) if left else ():
                table.append([table_row(entry) for entry in of_batch])
                broken += sum("error" in entry for entry in of_batch)
                bar.advance(len(of_batch))
        unread = f"; {broken:,} of them could not be read" if broken else ""
        common.tell(f"{counted(len(left), 'line')} written to {table.path}{unread}")
    return len(left) - broken


def classified(
    pictures: Sequence[tuple[int, Path]],
    models: Sequence[TunedModel],
    rule: AnswerRule | None,
    settings: PredictSettings,
    workdir: Path,
) -> Iterator[list[Entry]]:
    """What is said of each picture, batch by batch.

    Args:
      pictures: with their numbers, which name the maps of `relevancy`.
      models: the model, and zero-shot beside it if it is shown.
      rule: what the model's prediction sets are made by.
      settings: of the command.
      workdir: for the maps.
    """
    images = UserImages([path for _, path in pictures])
    for start, batch in read(images, models[0].task, settings):
        hosts.check()
        results = [classify(model, batch, settings) for model in models]
        of_batch: list[Entry] = []
        for row, (number, path) in enumerate(pictures[start : start + len(batch["mask"])]):
            if not batch["mask"][row]:
                of_batch.append({"image": str(path), "error": images.errors[start + row]})
                continue
            entry = {"image": str(path), **predictions(results, row, settings)}
            if rule is not None:
                entry |= answers(results[0], rule, row)
            of_batch.append(entry)
            if settings.relevancy:
                place = workdir / "relevancy" / f"{number + 1:04d}_{path.stem}.png"
                overlays = [overlay(result, row, of_two=len(results) > 1) for result in reversed(results)]
                save_overlay(place, whole_images(batch)[row], overlays, title=printable(path.name))
        yield of_batch


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
        clip = clipbias.load(settings.model or adapter.base)
        model = TunedModel.of(adapter, clip, own_methods=split(settings.own_methods), dtype=settings.dtype)
        if names is None and descriptions is None:
            return model
        classes = model.task if names is None else names
        return model.with_classes(classes, descriptions=descriptions, free_text=free_text)
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
    probabilities, logits = predictor.classify(images, batch["mask"])
    if not settings.relevancy:
        return Classified(model, probabilities, logits)
    maps = relevancy(
        task,
        predictor.inputs.params,
        model.learnables,
        task.clip.preprocessing.normalize(images),
        probabilities.argmax(-1).tolist(),
        start_layer=settings.start_layer,
        chunk=_MAPS_AT_ONCE if len(images) > _MAPS_AT_ONCE else None,
    )
    return Classified(model, probabilities, logits, (np.asarray(maps.vision), first_text(maps.text)))


def predictions(results: Sequence[Classified], row: int, settings: PredictSettings) -> dict[str, object]:
    """The most likely classes of an image with their probabilities; those of zero-shot under its name."""
    by_model: list[dict[str, object]] = []
    for result in results:
        best = np.argsort(-result.probabilities[row], kind="stable")[: settings.top]
        names = [result.model.class_names[label] for label in best]
        probabilities = [float(result.probabilities[row, label]) for label in best]
        by_model.append({"classes" if settings.texts is None else "texts": names, "probabilities": probabilities})
    return by_model[0] if len(by_model) == 1 else {**by_model[0], ZERO_SHOT: by_model[1]}


def answers(result: Classified, rule: AnswerRule, row: int) -> dict[str, object]:
    """The prediction set of an image, the most likely class first, and whether it is none of the classes."""
    logits = result.logits[row : row + 1]
    (members,) = rule.names(logits, result.model.class_names)
    return {"set": list(members), "rejected": bool(rule.rejected(logits)[0])}


def table_row(entry: Entry) -> dict[str, object]:
    """An image's predictions as a line of the table."""
    if "error" in entry:
        return {"image": key(entry["image"]), "error": entry["error"]}
    (name, *_), (probability, *_) = _named(entry)
    row: dict[str, object] = {"image": key(entry["image"]), "class": name, "probability": f"{probability:.6g}"}
    if "set" in entry:
        row |= {"set": BETWEEN.join(entry["set"]), "rejected": str(entry["rejected"]).lower()}
    if ZERO_SHOT in entry:
        (name, *_), (probability, *_) = _named(entry[ZERO_SHOT])
        row |= {"zero_shot_class": name, "zero_shot_probability": f"{probability:.6g}"}
    return row


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


def line(entry: Entry, rule: AnswerRule | None) -> str:
    """An image's predictions as they are printed, or why it could not be read."""
    if "error" in entry:
        return str(entry["error"])
    text = f"{entry['image']}: {', '.join(_pairs(entry))}"
    if rule is not None:
        text += f"; {rule.words(entry['set'], entry['rejected'])}"
    return f"{text}; zero-shot {_pairs(entry[ZERO_SHOT])[0]}" if ZERO_SHOT in entry else text


def _named(entry: Entry) -> tuple[list[str], list[float]]:
    """The most likely classes or texts, and their probabilities."""
    return entry["classes" if "classes" in entry else "texts"], entry["probabilities"]


def _pairs(entry: Entry) -> list[str]:
    return [f"{name} {100 * probability:.1f} %" for name, probability in zip(*_named(entry), strict=True)]


if __name__ == "__main__":
    common.run(main, _CONFIG)
