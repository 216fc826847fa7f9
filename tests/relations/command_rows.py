"""Rows of the table about ways to one accuracy: Python, commands, rows, tables, studies; and about frozen models."""

import contextlib
import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

import clipbias
from clipbias import TunedModel, data
from clipbias.analysis.results import StudyResults
from clipbias.clip import Clip
from clipbias.clip.checkpoint import SAVED_FORMATS
from clipbias.data import Dataset
from clipbias.data.user_images import image_list
from clipbias.errors import ClipbiasError
from clipbias.io import PART
from clipbias.training import loop
from clipbias.training.predictor import evaluate as evaluate_task
from clipbias.tuning.method import CONSTANTS, FeatureMethod, TestTimeMethod
from experiments import evaluate, predict, train
from tests import families, helpers
from tests.end_to_end import conftest as binaries
from tests.relations.cases import Case, clip_of
from tests.relations.model_rows import OF_ITS_CLASSES
from tests.relations.table import (
    BATCH,
    COUNT,
    LABELS,
    PICTURES,
    answer,
    close,
    evaluated,
    evaluation,
    logits,
    one_device,
    picture,
    relation,
)


def dataset_of(case: Case) -> Dataset:
    """The pictures for tests, and others for training."""
    others = [picture(number) for number in range(COUNT, 2 * COUNT)]
    splits = ["test"] * COUNT + ["train"] * COUNT
    labels = [*LABELS, *LABELS]
    return data.from_arrays(
        [*PICTURES, *others], labels, case.texts.classes, splits=splits, template=case.task.template
    )


def folder_of(case: Case, folder: Path) -> dict[str, Any]:
    """The pictures as a folder of classes, and the settings of a command that name it."""
    for split, start in (("test", 0), ("train", COUNT), ("val", 2 * COUNT)):
        for number in range(COUNT):
            place = folder / "pictures" / split / case.texts.classes[number % 3]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(start + number)).save(place / f"{number:02d}.png")
    return {"dataset": "folder", "data_dir": str(folder / "pictures")}


def order_of(case: Case) -> list[int]:
    """The pictures in the order of a folder, class by class."""
    return sorted(range(COUNT), key=lambda number: (LABELS[number], number))


def other_model(case: Case) -> TunedModel:
    """Another model of the very same task, with other answers."""
    kept = {name: value for name, value in case.model.learnables.items() if name == CONSTANTS}
    rest = {name: value for name, value in case.model.learnables.items() if name != CONSTANTS}
    random = np.random.default_rng(0)
    for scale in (1, 3, 10, 1, 3, 10, 30, 100):
        drawn = jax.tree.map(lambda x, scale=scale: scale * random.normal(size=np.shape(x)).astype(np.float32), rest)
        model = TunedModel(case.task, {**drawn, **kept}, notes={"seed": 2})
        if (evaluation(model).predicted != evaluated(case).predicted).any():
            break
    return model


def has_another(case: Case) -> bool:
    """Whether steps train something that decides its answers."""
    return case.kind.trains


def study(folder: Path, case: Case, *models: TunedModel, **options: Any) -> StudyResults:
    options = {"sections": ("predictions",), "progress": False, **options}
    return clipbias.explain(list(models), dataset_of(case), folder, **options).results


@relation(
    "A study says of two models of one task what `evaluate` says, and a study of each alone.",
    quick=1,
    ci=10,
    applies=has_another,
)
def _(case: Case, folder: Path) -> None:
    models = case.model, other_model(case)
    together = study(folder / "together", case, *models)
    for number, model in enumerate(models, start=1):
        alone = study(folder / str(number), case, model)
        expected = evaluation(model)
        for results, key in ((together, together.models[number].key), (alone, alone.models[1].key)):
            np.testing.assert_array_equal(results.predictions.models[key], expected.predicted)
            facts = next(model for model in results.models if model.key == key)
            assert abs(facts.accuracy - expected.accuracy) < 1e-9


@relation(
    "A study in the folder of another model's says what one in a new folder says.",
    over=(),
    quick=1,
    ci=10,
    applies=has_another,
)
def _(case: Case, folder: Path) -> None:
    for model in (case.model, other_model(case)):
        found = study(folder, case, model)
        np.testing.assert_array_equal(found.predictions.models[found.models[1].key], evaluation(model).predicted)


@relation(
    "The command `evaluate`, its table of predictions and a study that reads them say what Python says.",
    over=("forms",),
    quick=1,
    ci=10,
    refusals=(OF_ITS_CLASSES,),
)
def _(case: Case, folder: Path) -> None:
    place = folder_of(case, folder)
    case.model.save(folder / "saved.safetensors")
    expected = evaluation(case.model, [PICTURES[number] for number in order_of(case)], np.sort(LABELS))
    settings = {**place, "adapters": str(folder / "saved.safetensors"), "eval_batch_size": BATCH}
    binaries.succeed_here(evaluate, settings, folder / "out")
    result = json.loads((folder / "out" / "result.json").read_text())
    assert abs(result["accuracy"] - expected.accuracy) < 1e-9, f"{result['accuracy']}, not {expected.accuracy}"
    assert abs(result["calibration"]["ece"] - expected.calibration["ece"]) < 2e-3
    with open(folder / "out" / "predictions.csv", newline="", encoding="utf-8") as file:
        named = [row["answer"] for row in csv.DictReader(file)]
    assert named == [case.texts.classes[label] for label in expected.predicted]
    dataset = data.load("folder", data_dir=place["data_dir"])
    model = case.model.with_classes(dataset, **case.texts.again)
    known = clipbias.explain(
        model,
        dataset,
        folder / "study",
        sections=("predictions",),
        predictions=[folder / "out"],
        progress=False,
    ).results
    np.testing.assert_array_equal(known.predictions.models[known.models[1].key], expected.predicted)


@relation("The command `predict` writes what Python's `predict` says.", over=("forms",), quick=1, ci=10)
def _(case: Case, folder: Path) -> None:
    files = folder / "pictures"
    files.mkdir()
    for number, each in enumerate(PICTURES):
        Image.fromarray(each).save(files / f"{number:02d}.png")
    case.model.save(folder / "saved.safetensors")
    settings = {"adapters": str(folder / "saved.safetensors"), "images": str(files), "batch_size": BATCH, "top": 3}
    binaries.succeed_here(predict, {**settings, "output": str(folder / "answers.csv")}, folder / "table")
    binaries.succeed_here(predict, settings, folder / "out")
    shares = np.exp(answer(case) - answer(case).max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    with open(folder / "answers.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    for row, expected in zip(table, shares, strict=True):
        assert row["class"] == case.texts.classes[expected.argmax()]
        close(float(row["probability"]), expected.max(), 1e-4)
    entries = json.loads((folder / "out" / "predictions.json").read_text())
    for entry, expected in zip(entries, shares, strict=True):
        found = dict(zip(entry["classes"], entry["probabilities"], strict=True))
        close([found[name] for name in case.texts.classes], expected, 1e-4)


def training(case: Case, folder: Path, steps: int = 2) -> dict[str, Any]:
    """Settings of `train` for a short run."""
    options = {**case.options, **({"recipe": "common"} if "recipe" in case.task.options() else {})}
    rate = {"learning_rate": 0.01, "epochs": steps, "batch_size": 4, "checkpoint_seconds": 0.0}
    settings = {"model": str(clip_of("clip").name), "method": case.method, "method_options": options, "shots": 4}
    return {**folder_of(case, folder), **settings, **(rate if case.task.method.trains else {})}


@relation(
    "The row of `train`, its adapter evaluated by Python and by `evaluate`, and a `fit` of the same images agree.",
    over=(),
    quick=0,
    ci=6,
)
def _(case: Case, folder: Path) -> None:
    settings = training(case, folder)
    binaries.succeed_here(train, settings, folder / "run")
    row = json.loads((folder / "run" / "result.json").read_text())
    model = clipbias.load_adapter(folder / "run")
    dataset = data.load("folder", data_dir=settings["data_dir"])
    python = model.evaluate(dataset, mesh=one_device())
    assert abs(row["accuracy"] - python.accuracy) < 1e-9 and model.notes["accuracy"] == row["accuracy"]
    command = {"adapters": str(folder / "run"), "data_dir": settings["data_dir"]}
    said = binaries.succeed_here(evaluate, command, folder / "evaluated")
    assert "have changed since" not in "".join(said)
    result = json.loads((folder / "evaluated" / "result.json").read_text())
    assert abs(result["accuracy"] - row["accuracy"]) < 1e-9
    for name, value in row["calibration"].items():
        if "temperature" not in name or row.get("validation_images") == result.get("validation_images"):
            assert abs(result["calibration"][name] - value) < 2e-3, (
                f"{name}: {result['calibration'][name]}, not {value}"
            )
    options = settings["method_options"]
    rate = {name: settings[name] for name in ("learning_rate", "epochs", "batch_size") if name in settings}
    rate = {name: value for name, value in rate.items() if name not in options}
    fitted = clipbias.fit(
        model.clip,
        case.method,
        dataset,
        shots=4,
        seed=1,
        progress=False,
        mesh=one_device(),
        **rate,
        **options,
    )
    jax.tree.map(close, dict(fitted.learnables), dict(model.learnables))
    # By these `evaluate` knows the images that trained or selected, and those that may fit a temperature.
    for name in ("dataset", "protocol", "data", "validation") if case.kind.uses_images else ():
        assert fitted.notes[name] == model.notes[name], f"{name}: {fitted.notes[name]}, not {model.notes[name]}"


def trains_in_steps(case: Case) -> bool:
    return case.kind.trains and not isinstance(case.kind, FeatureMethod)


@relation(
    "A training that is stopped and continued ends as one that is not.",
    over=(),
    quick=0,
    ci=4,
    applies=trains_in_steps,
)
def _(case: Case, folder: Path) -> None:
    settings = training(case, folder, steps=3)
    binaries.succeed_here(train, settings, folder / "whole")
    with helpers.signal_at(loop, "train_step", 2):
        status, _ = binaries.answer_here(train, settings, folder / "stopped")
    assert status == 143 and not list((folder / "stopped").rglob(f"{PART}*"))
    assert json.loads((folder / "stopped" / "state.json").read_text())["state"] == "interrupted"
    binaries.succeed_here(train, settings, folder / "stopped")
    assert binaries.results(folder / "stopped") == binaries.results(folder / "whole") != {}


@relation("Of validation images those that are tested are left out.", over=(), few=2)
def _(case: Case, folder: Path) -> None:
    place = folder_of(case, folder)
    dataset = data.load("folder", data_dir=place["data_dir"])
    files = [[split.path(index) for index in range(len(split))] for split in map(dataset.split, ("test", "val"))]
    labels = [dataset.split(name).labels for name in ("test", "val")]
    both = image_list([*files[1], *files[0]], np.concatenate([labels[1], labels[0]]), case.texts.classes)
    tested = both.subset(np.arange(COUNT, 2 * COUNT))
    settings: dict[str, Any] = {"mesh": one_device(), "eval_batch_size": BATCH, "on_image_error": "raise"}
    found, expected = (
        evaluate_task(case.model, tested, validation=validation, **settings)[0]
        for validation in (both, both.subset(np.arange(COUNT)))
    )
    assert found == expected


# Frozen models.


for form in SAVED_FORMATS:

    @relation(
        f'A frozen model that is written as "{form}" and loaded is the same model, and takes its adapters.',
        over=("every family",),
        few=1,
        refusals=("only CLIP has the format",),
        applies=lambda case: not isinstance(case.kind, TestTimeMethod),  # which train anew for each family
    )
    def _(case: Case, folder: Path, form: str = form) -> None:
        with sizes_of(case):
            case.model.clip.save(folder / form, format=form)
            clip = clipbias.load(folder / form)
        parts, expected = clip.parts, case.model.clip.parts
        if form == "open_clip":  # whose programs round sizes otherwise than transformers does
            parts, expected = ({**each, "preprocessing": ""} for each in (parts, expected))
        assert parts == expected
        case.model.save(folder / "saved.safetensors")
        close(logits(clipbias.load_adapter(folder / "saved.safetensors", clip)), answer(case))


def sizes_of(case: Case) -> contextlib.AbstractContextManager[None]:
    """Sizes that open_clip's files only name are those of the small models."""
    return contextlib.nullcontext() if case.family == "clip" else families.sizes(families.GEOMETRIES[case.family][0])


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def another(part: str, folder: Path) -> Clip:
    """The frozen model with another part."""
    shutil.copytree(clip_of("clip").name, folder)
    if part == "pixels":
        edit(folder / "preprocessor_config.json", lambda content: content.update(image_mean=[0.1, 0.2, 0.3]))
    if part == "resizing":
        edit(folder / "preprocessor_config.json", lambda content: content.update(resample=0))
    if part == "configuration":
        edit(folder / "config.json", lambda content: content["vision_config"].update(layer_norm_eps=0.1))
    if part == "tokenizer":
        first, *lines = (folder / "merges.txt").read_text().splitlines()
        (folder / "merges.txt").write_text("\n".join([first, *lines[30:], ""]))
    return clipbias.load(folder, activation="gelu" if part == "activation" else None)


for part in ("activation", "pixels", "resizing", "configuration", "tokenizer"):

    @relation(
        f"A model that was tuned on a frozen one with another {part} is not taken for one of this.",
        over=(),
        few=1,
        applies=lambda case: case.method != "visual_prompting",
    )
    def _(case: Case, folder: Path, part: str = part) -> None:
        clip = another(part, folder / "clip")
        task = case.task_of()
        tuned = TunedModel(clipbias.Task(clip, case.method, case.texts.classes, **case.options), case.model.learnables)
        tuned.save(folder / "saved.safetensors")
        expected = logits(tuned)
        assert np.abs(expected - answer(case)).max() > 1e-4, "the part changes nothing"
        for base in (task.clip, None):
            try:
                found = logits(clipbias.load_adapter(folder / "saved.safetensors", base))
            except ClipbiasError:
                continue
            close(found, expected)
