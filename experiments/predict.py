"""Classifies images: the most likely classes with their probabilities, and with `relevancy` the pixels behind them.

Any texts may replace class names; no template is added, but an adapter's learned context stands before them.

    python -m experiments.predict --config.images=photos --config.classes=cat,dog,bird
    python -m experiments.predict --config.images=photos --config.adapters=workdir/digits --config.relevancy
    python -m experiments.predict --config.images=photos --config.texts="a dog on grass,two cats" --config.relevancy

    python -m experiments.predict --config.images=photos --config.adapters=workdir/own --config.output=answers.csv

Zero-shot CLIP with the same class names and texts stands beside an adapter. A calibrated adapter gives prediction
sets, and rejects images of no class. Writes `predictions.json`, and with `relevancy` a picture per image into
`relevancy/`. An unreadable image has a line with the reason. With `output` lines are added to a table while images are
classified, and the same command continues it.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import clipbias
from clipbias import TunedModel, hosts
from clipbias.analysis.relevancy import relevancy
from clipbias.constants import ZERO_SHOT
from clipbias.data.files import file_sizes
from clipbias.errors import ClipbiasError
from clipbias.identity import identity
from clipbias.io import is_remote, sha256, write_text
from clipbias.prediction import Prediction
from clipbias.report import style
from clipbias.report.overlay import overlay_figure
from clipbias.sentences import counted
from clipbias.settings import as_json
from clipbias.terminal import printable
from clipbias.training.progress import MetricWriter, Progress
from clipbias.training.workdir import open_workdir
from clipbias.tuned_model import make_overlays, predict_batches
from clipbias.tuning import Task
from clipbias.tuning.conformal import NOT_CALIBRATED
from configs.predict import PredictSettings
from experiments import common
from experiments.inputs import find_adapter, find_images, listed, open_adapter
from experiments.prediction_table import BETWEEN, key, open_table

# Answers for an image, see `picture_entry`.
Entry = dict[str, Any]
# Images at a time for relevancy, which needs much more memory than a prediction.
_MAPS_AT_ONCE = 32


def main(settings: PredictSettings, workdir: Path) -> None:
    files = find_images(settings.images)
    model = open_model(settings)
    rule = model.rule(settings.answers)
    models = [model]
    if settings.adapters and settings.zero_shot:
        try:
            frozen = Task(model.clip, ZERO_SHOT, model.task.classes, dtype=model.task.classifier.dtype)
            models.append(TunedModel(frozen))
        except ClipbiasError as error:  # such as a template that leaves too little room for a name
            common.tell(f"no zero-shot beside it: {error}")
    if settings.adapters and rule is None:
        common.tell(f"no prediction sets: {NOT_CALIBRATED}")
    if rule is not None and rule.caution:
        common.tell(rule.caution)
    with open_workdir(workdir, as_json(settings)):
        began = time.monotonic()
        write = write_list if settings.output is None else write_table
        read = write(files, models, settings, workdir)
        with MetricWriter(workdir) as metrics:
            metrics.write(1, {"images": read, "seconds": round(time.monotonic() - began, 4)})


def write_list(files: Sequence[Path], models: Sequence[TunedModel], settings: PredictSettings, workdir: Path) -> int:
    """Writes `predictions.json` and prints a line per picture; returns the number of readable pictures."""
    entries = list(itertools.chain.from_iterable(classified(files, models, settings, workdir)))
    broken = [entry for entry in entries if "error" in entry]
    if len(broken) == len(files):
        raise ClipbiasError(f"no image could be read, of {len(files):,}; the first: {broken[0]['error']}.")
    write_text(workdir / "predictions.json", json.dumps(entries, indent=1) + "\n")
    rule = models[0].rule(settings.answers)
    for entry in entries:
        if "error" in entry:
            common.tell(str(entry["error"]))
            continue
        shares = [f"{name} {100 * probability:.1f} %" for name, probability in _named(entry)]
        words = f"{entry['image']}: {', '.join(shares)}"
        if rule is not None:
            words += f"; {rule.words(entry['set'], entry['rejected'])}"
        if ZERO_SHOT in entry:
            name, probability = _named(entry[ZERO_SHOT])[0]
            words += f"; zero-shot {name} {100 * probability:.1f} %"
        common.tell(words)
    if broken:
        common.tell(f"{len(broken):,} of {counted(len(files), 'image')} could not be read.")
    return len(files) - len(broken)


def write_table(files: Sequence[Path], models: Sequence[TunedModel], settings: PredictSettings, workdir: Path) -> int:
    """Adds a line to the table for every picture that has none; returns the number of readable ones."""
    assert settings.output is not None
    # Absolute, since equal relative paths from two working folders are different pictures.
    files = [path if is_remote(path) else path.absolute() for path in files]
    model = models[0]
    rule = model.rule(settings.answers)
    facts = {
        "adapter, model or classes": model.identity,
        "prediction sets": None if rule is None else dataclasses.asdict(rule),
    }
    remote = [str(path) for path in files if is_remote(path)]
    sizes = dict(zip(remote, file_sizes(remote), strict=True))

    def content(name: str) -> str:
        # Bytes, since two pictures may have one size; but a bucket's pictures would be downloaded twice.
        if name in sizes:
            return str(sizes[name])
        with contextlib.suppress(ClipbiasError):
            return sha256(name)
        return "-1"

    columns = ["image", "content", "class", "probability"]
    if rule is not None:
        columns += ["set", "rejected"]
    if len(models) > 1:
        columns += ["zero_shot_class", "zero_shot_probability"]
    broken = 0
    with open_table(settings.output, [*columns, "error"], facts) as table:
        left = [path for path in files if key(path) not in table.images]
        for name in map(str, files):
            if key(name) in table.images and table.images[key(name)] != content(name):
                raise ClipbiasError(
                    f"{name} has changed since its line was written to {table.path}; delete that line, or choose "
                    "another --config.output."
                )
        done = len(files) - len(left)
        if done:
            no_maps = ", and no maps are drawn of them" if settings.relevancy else ""
            common.tell(f"{done:,} of {counted(len(files), 'image')} have a line in {table.path} already{no_maps}")
        for entries in classified(left, models, settings, workdir, done=done):
            table.append([table_row(entry) | {"content": content(entry["image"])} for entry in entries])
            broken += sum("error" in entry for entry in entries)
        unread = f"; {broken:,} of them could not be read" if broken else ""
        common.tell(f"{counted(len(left), 'line')} written to {table.path}{unread}")
    return len(left) - broken


def classified(
    paths: Sequence[Path],
    models: Sequence[TunedModel],
    settings: PredictSettings,
    workdir: Path,
    *,
    done: int = 0,
) -> Iterator[list[Entry]]:
    """Classifies pictures batch by batch, after `done` others."""
    left = iter(paths)
    with contextlib.closing(Progress(done + len(paths), done=done, title="predict")) as bar:
        for results in predict_batches(
            models, paths, settings.answers, batch_size=settings.batch_size, on_image_error=settings.on_image_error
        ):
            predictions = [prediction for _, prediction in results]
            batch = list(itertools.islice(left, len(predictions[0])))
            # Maps first: a kill between a table's line and the map would leave the map out for ever.
            if settings.relevancy:
                draw_maps(batch, models, results, settings, workdir)
            yield [picture_entry(path, predictions, row, settings) for row, path in enumerate(batch)]
            bar.advance(len(batch))
            hosts.check()


def open_model(settings: PredictSettings) -> TunedModel:
    """Opens the adapter, or zero-shot CLIP, with class names or texts of the settings or the adapter."""
    names = listed(settings.classes, "class names")
    texts = listed(settings.texts, "texts")
    if texts and (names or settings.template or settings.descriptions):
        raise ClipbiasError(
            "texts replace class names and have no template or descriptions; leave out --config.classes, "
            "--config.template and --config.descriptions."
        )
    names = texts or names
    free_text = texts is not None
    descriptions = common.load_descriptions(settings, "")
    if (adapter_file := find_adapter(settings.adapters)) is not None:
        adapter, _ = adapter_file
        clip = clipbias.load(settings.model or adapter.base)
        model = open_adapter(adapter, clip, settings)
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
        dtype=settings.dtype or "float32",
    )
    return TunedModel(task)


def picture_entry(path: Path, predictions: Sequence[Prediction], row: int, settings: PredictSettings) -> Entry:
    """Returns an image's most likely classes with probabilities, zero-shot's under its name; or its error."""
    if row in predictions[0].errors:
        return {"image": str(path), "error": predictions[0].errors[row]}
    by_model: list[Entry] = []
    for prediction in predictions:
        best = np.argsort(-prediction.probabilities[row], kind="stable")[: settings.top]
        names = [prediction.class_names[label] for label in best]
        probabilities = [float(prediction.probabilities[row, label]) for label in best]
        by_model.append({"classes" if settings.texts is None else "texts": names, "probabilities": probabilities})
    answers: Entry = {"image": str(path), **by_model[0]}
    if len(by_model) > 1:
        answers[ZERO_SHOT] = by_model[1]
    if predictions[0].rule is not None:
        answers |= {"set": list(predictions[0].sets[row]), "rejected": bool(predictions[0].rejected[row])}
    return answers


def draw_maps(
    batch: Sequence[Path],
    models: Sequence[TunedModel],
    results: Sequence[tuple[np.ndarray, Prediction]],
    settings: PredictSettings,
    workdir: Path,
) -> None:
    """Draws the relevancy of each image for each model's most likely class, with zero-shot on the left."""
    columns = []
    for model, (images, prediction) in reversed(list(zip(models, results, strict=True))):
        # All rows, also those that fill the last batch: fewer rows would compile another program.
        labels = np.pad(np.maximum(prediction.labels, 0), (0, len(images) - len(batch)))
        maps = relevancy(
            model.task,
            model.predictor.inputs.params,
            model.learnables,
            model.clip.preprocessing.normalize(images),
            labels.tolist(),
            chunk=_MAPS_AT_ONCE,
        )
        kind = "" if len(models) == 1 else "Tuned\n" if model is models[0] else "Zero-shot\n"
        titles = [
            f"{kind}{printable(model.class_names[label])} {100 * probability:.0f} %"
            for label, probability in zip(labels, prediction.probabilities.max(-1), strict=False)
        ]
        columns.append(make_overlays(model.task, maps, labels[: len(batch)], titles))
    images, prediction = results[0]
    # Of views the first is the whole image; the others are crops.
    wholes = images[:, 0] if images.ndim == 5 else images
    for row, (path, *overlays) in enumerate(zip(batch, *columns, strict=True)):
        if row not in prediction.errors:
            # Pictures of one name in two folders have maps of their own, in whatever call they come.
            place = workdir / "relevancy" / f"{path.stem}_{identity(os.fspath(path))[:8]}.png"
            figure = overlay_figure(wholes[row], overlays, title=printable(path.name))
            style.save_png(figure, place, dpi=160)


def table_row(entry: Entry) -> dict[str, object]:
    """Returns the line of an image in the table."""
    row: dict[str, object] = {"image": key(entry["image"])}
    if "error" in entry:
        return row | {"error": entry["error"]}
    for prefix, of_model in (("", entry), ("zero_shot_", entry.get(ZERO_SHOT))):
        if of_model is not None:
            name, probability = _named(of_model)[0]
            row |= {f"{prefix}class": name, f"{prefix}probability": f"{probability:.6g}"}
    if "set" in entry:
        row |= {"set": BETWEEN.join(entry["set"]), "rejected": str(entry["rejected"]).lower()}
    return row


def _named(entry: Entry) -> list[tuple[str, float]]:
    """Returns pairs of class or text and probability, the most likely first."""
    return list(zip(entry["classes" if "classes" in entry else "texts"], entry["probabilities"], strict=True))


if __name__ == "__main__":
    common.run(main)
