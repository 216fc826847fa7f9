"""What each command makes of its settings, known by its identity, where the command would begin to make it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image

import clipbias
from clipbias import TunedModel, studies
from clipbias.training.predictions import predictions_identity
from clipbias.training.rates import Rates
from clipbias.training.spec import RunSpec
from experiments import common, distil, evaluate, explain, export, import_adapter, lab, predict, table1, train
from tests import helpers
from tests.relations.cases import Case
from tests.relations.table import LABELS, PICTURES, picture

CLASSES = ("big bird", "cat", "golden dog")


class Made(Exception):
    """What a command would make, where it would begin to."""

    def __init__(self, *values: Any) -> None:
        super().__init__()
        self.values = values


def made_by(work: Callable[[], object]) -> tuple[Any, ...]:
    try:
        work()
    except Made as made:
        return made.values
    raise AssertionError("the command made nothing")


def stop(*values: Any, **_: Any) -> Any:
    raise Made(*values)


@dataclasses.dataclass(frozen=True)
class Place:
    """Files that settings name, each in two versions."""

    folder: Path

    def __post_init__(self) -> None:
        for version in (0, 1):
            for split, start in (("train", 0), ("val", 9), ("test", 18)):
                for number in range(9):
                    place = self.folder / f"pictures-{version}" / split / CLASSES[number % 3]
                    place.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(picture(100 * version + start + number)).save(place / f"{number}.png")
            helpers.tiny_checkpoint(
                self.folder / f"model-{version}",
                seed=version,
                vision=(8, 2, 2),
                text=(12, 2, 3),
                projection=6,
                image_size=8,
                patch_size=4,
                context_length=32,
            )
            (self.folder / f"rates-{version}.json").write_text(
                json.dumps({"rates": [{"method": "bias", "learning_rate": 0.01 + version}]})
            )
            texts = {name: [f"the {name}", f"{version} {name}"] for name in CLASSES}
            (self.folder / f"texts-{version}.json").write_text(json.dumps(texts))
        clip = clipbias.load(self.model(0))
        for version, method in enumerate(("zero_shot", "taskres")):
            case = Case(method)
            task = clipbias.Task(clip, method, CLASSES)
            model = TunedModel(task, case.model.learnables, {"dataset": "folder", "seed": 1})
            model.calibrate(PICTURES, LABELS).save(self.adapter(version))

    def model(self, version: int) -> str:
        return str(self.folder / f"model-{version}")

    def adapter(self, version: int) -> str:
        return str(self.folder / f"adapter-{version}.safetensors")

    def path(self, name: str) -> str:
        return str(self.folder / name)


# What each command makes, from its settings.


def specs_of(settings: Any, folder: Path) -> list[Any]:
    """The specs of a sweep, and by what rates are chosen."""
    seen: list[Any] = []

    def note(specs: list[RunSpec], *_: Any, **options: Any) -> list[Any]:
        seen.append([spec.key for spec in specs])
        return []

    def select_learning_rates(rows: Any, scope: str) -> Rates:
        seen.append(scope)
        return Rates({})

    axes = table1.axes_of(settings)
    context, rates = table1.prepare(settings, axes)
    with (
        mock.patch.multiple(table1, sweep=note, select_learning_rates=select_learning_rates),
        mock.patch.object(Rates, "write"),
    ):
        table1.run(settings, context, rates, folder)
    return seen


def of_train(settings: Any, place: Place) -> Any:
    return train.open_run(settings)[1].key


def of_table1(settings: Any, place: Place) -> Any:
    return specs_of(settings, place.folder)


def of_lab(settings: Any, place: Place) -> Any:
    sweeps = {name: specs_of(stage, place.folder) for name, stage in lab.stages(settings).items()}
    return [sweeps, settings.causal_images]


def of_evaluate(settings: Any, place: Place) -> Any:
    pair = evaluate.find_adapter(settings.adapters)
    model, _, dataset = evaluate.open_model(settings, pair and pair[0])
    outside = None if settings.ood is None else common.load_dataset(settings, settings.ood).split("test")
    known = predictions_identity(model, dataset.split(settings.split).identity)
    return [known, outside, model.rule(settings.answers)]


def of_predict(settings: Any, place: Place) -> Any:
    """The lines of a table depend on the model, the rule of its sets and the pictures."""
    with mock.patch.object(predict, "open_table", stop):
        _, columns, facts = made_by(lambda: predict.main(settings, place.folder / "predict"))
    return [list(columns), facts, [str(path) for path in predict.find_images(settings.images)]]


def of_explain(settings: Any, place: Place) -> Any:
    with mock.patch.object(studies, "run_study", stop):
        (study, *_) = made_by(lambda: explain.main(settings, place.folder / "explain"))
    return study.identity


def of_distil(settings: Any, place: Place) -> Any:
    with mock.patch.object(distil, "finished_sentences", lambda output, key: stop(key)):
        return made_by(lambda: distil.main(settings, place.folder / "distil"))


def of_export(settings: Any, place: Place) -> Any:
    with mock.patch.object(export, "export", lambda model, folder, form=None: stop(model, form)):
        return made_by(lambda: export.main(settings))


def of_import_adapter(settings: Any, place: Place) -> Any:
    def importing(file: str, clip: Any, classes: Any, position: str, notes: Any) -> None:
        stop(
            Path(file).read_bytes(), clip, classes and tuple(getattr(classes, "class_names", classes)), position, notes
        )

    with mock.patch.object(import_adapter, "import_adapter", importing):
        return made_by(lambda: import_adapter.main(settings))


MAKERS = {
    "train": of_train,
    "table1": of_table1,
    "lab": of_lab,
    "evaluate": of_evaluate,
    "predict": of_predict,
    "explain": of_explain,
    "distil": of_distil,
    "export": of_export,
    "import_adapter": of_import_adapter,
}
# Commands that make no number: settings of theirs have no identity to change.
NO_NUMBERS = {
    "show": "it prints the results of other commands",
    "prepare_data": "it looks at files, and copies them",
    "app": "its page predicts what a user asks, by `TunedModel.predict`",
}


def base(command: str, place: Place) -> dict[str, Any]:
    """Settings with which a command makes something small."""
    adapters = {"adapters": place.adapter(1)}
    pictures = {"dataset": "folder", "data_dir": place.path("pictures-0")}
    grid = {"datasets": ("folder",), "data_dir": place.path("pictures-0"), "seeds": (1,), "methods": ("bias",)}
    of_command: dict[str, dict[str, Any]] = {
        "train": {"model": place.model(0), "shots": 2, "method_options": {}, **pictures},
        "table1": {"model": place.model(0), "shots": (2,), "rates_file": None, **grid},
        "lab": {"model": place.model(0), "shots": (2,), "more_seeds": (1,), "base_to_new": (), **grid},
        "evaluate": {**adapters, **pictures},
        "predict": {**adapters, "images": place.path("pictures-0"), "output": place.path("answers.csv")},
        "explain": {**adapters, **pictures, "sections": "similarity"},
        "distil": {**adapters, **pictures, "output": place.path("distilled")},
        "export": {**adapters, "output": place.path("exported")},
        "import_adapter": {
            "model": place.model(0),
            "file": place.path("rates-0.json"),
            "output": place.path("i.safetensors"),
        },
    }
    return of_command[command]
