"""Each argument of the functions that make values, and each setting of the commands, changes what is made.

Changing it changes the identity of what is made, or it is named here as without effect, with the reason, and leaves the
identity. An argument or a setting that is new has an answer where its annotation tells another value and that changes
the identity; else these tests fail until it is given one.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

import clipbias
from clipbias import TunedModel, data, studies
from clipbias.analysis.study import StudyOptions
from clipbias.cli import COMMANDS
from clipbias.clip import Clip
from clipbias.data import folder as folders
from clipbias.data import sources
from clipbias.errors import ClipbiasError
from clipbias.identity import identity
from clipbias.settings import fields_of, from_config
from clipbias.training import placement
from clipbias.tuning import Recipe, Task
from clipbias.tuning.prompts import Classes
from experiments import common
from experiments.command_line import settings_type
from tests.end_to_end import conftest as binaries
from tests.relations import choose, made
from tests.relations.cases import Case, clip_of, methods, other_values
from tests.relations.made import CLASSES, MAKERS, Place
from tests.relations.table import COUNT, LABELS, PICTURES, close, one_device, picture

pytestmark = [
    pytest.mark.filterwarnings("ignore:the (tuned model|training loss)"),
    pytest.mark.filterwarnings("ignore:.*cannot tell whether tuning helped"),
    pytest.mark.filterwarnings("ignore:there are no validation images"),
    pytest.mark.filterwarnings("ignore:the adapter was trained on"),  # where another split is given
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@dataclasses.dataclass(frozen=True)
class Answer:
    """Another value of an argument or a setting.

    Attributes:
      value: the value, or what makes it of a `Place`; `...` takes one that the annotation allows.
      given: other arguments without which it means nothing.
      without_effect: why it changes nothing; "" for what changes the identity.
    """

    value: Any = ...
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    without_effect: str = ""

    def values(self, place: Place) -> tuple[dict[str, Any], Any]:
        def of(value: Any) -> Any:
            return value(place) if callable(value) else value

        return {name: of(value) for name, value in self.given.items()}, of(self.value)


def check(make: Callable[..., object], arguments: dict[str, Any], name: str, answer: Answer, place: Place) -> None:
    """Makes a value twice, with and without the change of one argument."""
    given, value = answer.values(place)
    before = identity(make(**arguments | given))
    after = identity(make(**arguments | given | {name: value}))
    if answer.without_effect:
        assert after == before, f"{name} is said to have no effect ({answer.without_effect}), and {value!r} has one"
    else:
        assert after != before, (
            f"{name}={value!r} changes nothing; say in this file why it may not, or give it an effect"
        )


# Functions.


def of_load(source: str, **options: Any) -> object:
    return clipbias.load(source, **options)


def of_task(clip: Any, method: Any, class_names: Any, **options: Any) -> object:
    return Task(clip, method, class_names, **options)


def of_fit(clip: Any, method: Any, images: Any, labels: Any, **options: Any) -> object:
    model = clipbias.fit(clip, method, images, labels, **{"mesh": one_device(), "progress": False, **options})
    calibration = model.calibration and model.calibration.arrays()
    return [model, model.notes.get("training"), calibration]


def of_dataset(dataset: data.Dataset) -> object:
    return [Classes.of(dataset), dataset.splits]


def of_load_data(name: str, **options: Any) -> object:
    return of_dataset(data.load(name, **options))


def of_from_arrays(pictures: Any, labels: Any, **options: Any) -> object:
    return of_dataset(data.from_arrays(pictures, labels, **options))


def of_explain(models: Any, dataset: Any, folder: Any, **options: Any) -> object:
    """The study's identity; where to begin with it is stopped."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(studies, "run_study", made.stop)
        (study, *_) = made.made_by(lambda: clipbias.explain(models, dataset, folder, **{"progress": False, **options}))
    return study.identity


SHORT = Recipe(learning_rate=0.05, epochs=2, batch_size=6)
TEXTS = {name: [f"the {name}", f"a {name} of a photo"] for name in CLASSES}
PLACES = "it is read or written there, whatever lies there counts"


def small_task(place: Place, method: str = "taskres") -> TunedModel:
    return TunedModel(Case(method).task, Case(method).model.learnables, {"seed": 1})


def other_files(place: Place) -> data.Dataset:
    return data.load("folder", data_dir=place.path("pictures-1"))


def dataset(place: Place) -> data.Dataset:
    return data.load("folder", data_dir=place.path("pictures-0"))


def clip_of_zero_shot(place: Place) -> Clip:
    return clip_of("clip")


def dataset_of_arrays(place: Place) -> data.Dataset:
    """With images that calibrate."""
    pictures = [picture(number) for number in range(3 * COUNT)]
    splits = [*(["train"] * 9), *(["test"] * 3), *(["val"] * (2 * COUNT))]
    return data.from_arrays(pictures, [*LABELS] * 3, CLASSES, splits=splits)


def named(place: Place, name: str) -> data.Dataset:
    return dataclasses.replace(dataset(place), name=name)


def table_of(place: Place, version: int = 0) -> str:
    path = Path(place.path(f"table-{version}.csv"))
    files = sorted(path.parent.glob(f"pictures-{version}/*/*/*.png"))
    lines = [f"{file.relative_to(path.parent)},{CLASSES.index(file.parent.name)}" for file in files]
    path.write_text("\n".join(["path,label", *lines, ""]))
    return str(path)


def other_tokenizer(place: Place) -> str:
    folder = Path(place.path("tokenizer"))
    if not folder.exists():
        folder.mkdir()
        for file in Path(place.model(0)).iterdir():
            if file.suffix in (".json", ".txt"):
                (folder / file.name).write_bytes(file.read_bytes())
        first, *lines = (folder / "merges.txt").read_text().splitlines()
        (folder / "merges.txt").write_text("\n".join([first, *lines[30:], ""]))
    return str(folder)


Arguments = Callable[[Place], dict[str, Any]]
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., object], Arguments, dict[str, Answer]]] = {
    "load": (
        clipbias.load,
        of_load,
        lambda place: {"source": place.model(0)},
        {
            "source": Answer(lambda place: place.model(1)),
            "dtype": Answer("float16"),
            "activation": Answer("gelu"),
            "tokenizer": Answer(lambda place: other_tokenizer(place)),
            "device": Answer("host", without_effect="where the same weights lie"),
        },
    ),
    "Task": (
        Task.__init__,
        of_task,
        lambda place: {"clip": clip_of("clip"), "method": "coop", "class_names": CLASSES},
        {
            "clip": Answer(lambda place: clipbias.load(place.model(1))),
            "method": Answer("ivlp"),
            "class_names": Answer(CLASSES[::-1]),
            "template": Answer("the {}."),
            "shots": Answer(8, {"method": "prograd", "class_names": lambda place: named(place, "eurosat")}),
            "descriptions": Answer(TEXTS),
            "free_text": Answer(True),
            "method_name": Answer(
                "b", {"method": lambda place: Case("coop").task.method}, "it names the file's method"
            ),
            "dtype": Answer("bfloat16"),
            "options": Answer(without_effect="each is tried by itself"),
        },
    ),
    "fit": (
        clipbias.fit,
        of_fit,
        lambda place: {
            "clip": clip_of("clip"),
            "method": "taskres",
            "images": PICTURES,
            "labels": LABELS,
            "class_names": CLASSES,
            "recipe": SHORT,
        },
        {
            "clip": Answer(lambda place: clipbias.load(place.model(1))),
            "method": Answer("coop"),
            "images": Answer(PICTURES[::-1]),
            "labels": Answer(LABELS[::-1]),
            "class_names": Answer(CLASSES[::-1]),
            "template": Answer("the {}."),
            "shots": Answer(2),
            "seed": Answer(2),
            "start_seed": Answer(2),
            "learning_rate": Answer(0.1),
            "epochs": Answer(3),
            "batch_size": Answer(4),
            "recipe": Answer(dataclasses.replace(SHORT, momentum=0.5)),
            "validation": Answer(lambda place: ([picture(100 + number) for number in range(6)], LABELS[:6])),
            "calibrate": Answer(
                True, {"images": dataset_of_arrays, "labels": None, "class_names": None, "calibrate": False}
            ),
            "mesh": Answer(lambda place: placement.make_mesh(run=1, data=1, devices=jax.devices()[1:2]), {}, "where"),
            "on_image_error": Answer("skip", without_effect="no image is broken here"),
            "progress": Answer(True, without_effect="it is shown, or not"),
            "options": Answer(without_effect="each is tried by itself"),
        },
    ),
    "data.load": (
        sources.load,
        of_load_data,
        lambda place: {"name": "folder", "data_dir": place.path("pictures-0")},
        {
            "name": Answer("demo/digits", {"data_dir": None, "name": "demo/fashion"}),
            "data_dir": Answer(lambda place: place.path("pictures-1")),
            "template": Answer("the {}."),
            "options": Answer(without_effect="each is tried by itself"),
        },
    ),
    "data.load of a table": (
        folders.load_table,
        lambda **options: of_dataset(folders.load_table(**options)),
        lambda place: {"data_dir": table_of(place), "class_names": CLASSES},
        {
            "data_dir": Answer(lambda place: table_of(place, 1)),
            "template": Answer("the {}."),
            "class_names": Answer(CLASSES[::-1]),
        },
    ),
    "data.from_arrays": (
        data.from_arrays,
        of_from_arrays,
        lambda place: {"pictures": PICTURES, "labels": LABELS, "class_names": CLASSES},
        {
            "pictures": Answer(PICTURES[::-1]),
            "labels": Answer(LABELS[::-1]),
            "class_names": Answer(CLASSES[::-1]),
            "splits": Answer(["train", "val", "test"] * 4),
            "template": Answer("the {}."),
            "name": Answer("other pictures", without_effect="it is shown"),
        },
    ),
    "explain": (
        studies.explain,
        of_explain,
        lambda place: {"models": small_task(place), "dataset": dataset(place), "folder": place.path("study")},
        {
            "models": Answer(lambda place: [small_task(place), small_task(place, "coop")]),
            "dataset": Answer(other_files),
            "folder": Answer(lambda place: place.path("other"), without_effect=PLACES),
            "split": Answer("val"),
            "sections": Answer(("similarity",), without_effect="sums of one section are known by its name"),
            "options": Answer(StudyOptions(seed=3)),
            "clip": Answer(lambda place: clipbias.load(place.model(1)), {"models": [], "clip": clip_of_zero_shot}),
            "dtype": Answer("bfloat16", {"models": [], "clip": clip_of_zero_shot}),
            "sources": Answer(["a file"], without_effect="it is shown"),
            "predictions": Answer((Path("nowhere"),), without_effect="predictions are known by their identity"),
            "config": Answer({"a": 1}, without_effect="it is kept for readers"),
            "mesh": Answer(lambda place: one_device(), without_effect="where"),
            "progress": Answer(True, without_effect="it is shown, or not"),
        },
    ),
}


@pytest.mark.ci
@pytest.mark.parametrize(("function", "argument"), [(name, arg) for name in FUNCTIONS for arg in FUNCTIONS[name][3]])
def test_an_argument_changes_what_is_made(function, argument, place):
    _, make, arguments, answers = FUNCTIONS[function]
    if answers[argument].value is not ...:
        check(make, arguments(place), argument, answers[argument], place)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_argument_has_an_answer(function):
    called, _, _, answers = FUNCTIONS[function]
    assert {*inspect.signature(called).parameters} - {"self"} == answers.keys()


@pytest.mark.parametrize("method", methods())
def test_every_option_changes_the_task(method):
    tasks = [Case(method).task, *(case.task for case in choose.options_of(method))]
    assert len({task.identity for task in tasks}) == len(tasks)


# Settings.

HOW = "how it is computed, to rounding"
WHERE = "where something is written"
SHOWN = "what is shown"
ZERO_SHOT = {"adapters": None, "model": lambda place: place.model(0)}
ADAPTER = {"adapters": lambda place: place.adapter(0)}
RATES = {"learning_rates": (0.1, 0.2)}
RATES_FILE = lambda place: place.path("rates-0.json")  # noqa: E731
OWN_METHODS = Answer("a.py", without_effect="where a user's own method may be taken from; its program counts")
TFDS = Answer(..., without_effect="of sources that are not tried here")
# By the setting's name, or by the command's and its own.
ANSWERS: dict[str, Answer] = {
    **{name: Answer(without_effect=HOW) for name in ("class_chunks", "workers", "cache_gb", "eval_batch_size")},
    **{name: Answer(2, without_effect=HOW) for name in ("mesh.run", "mesh.data")},
    **{name: Answer(lambda place: place.path("x.csv"), without_effect=WHERE) for name in ("workdir", "output")},
    "remat": Answer("tokens", without_effect=HOW),
    "checkpoint_seconds": Answer(without_effect=WHERE),
    "trackers": Answer((), without_effect=WHERE),
    "profile": Answer("steps", without_effect=WHERE),
    "dry_run": Answer(True, without_effect="it trains nothing"),
    "topology": Answer("v5e:4x4", {"dry_run": True}, "it trains nothing"),
    "split_source": TFDS,
    "split_dir": TFDS,
    "own_methods": OWN_METHODS,
    "adapters": Answer(lambda place: place.adapter(0)),
    "data_dir": Answer(lambda place: place.path("pictures-1")),
    "model": Answer(lambda place: place.model(1)),
    "template": Answer("the painting of a {}."),
    "descriptions": Answer(lambda place: place.path("texts-0.json")),
    "dtype": Answer("bfloat16"),
    "dataset": Answer("demo/digits"),
    "datasets": Answer(("demo/digits",)),
    "split": Answer("val"),
    "given": Answer(("learning_rate",), {"methods": ("clip_lora",), "method": "clip_lora", "learning_rate": 0.5}),
    "start_seed": Answer(7),
    "seeds": Answer((2,)),
    "methods": Answer(("ivlp",)),
    "method_options": Answer({"bias": {"text_tower": False}}),
    "rates_file": Answer(RATES_FILE),
    "runs_per_program": Answer(without_effect=HOW),
    "on_missing": Answer(without_effect="no dataset is missing here"),
    "part": Answer("1/1", without_effect="who computes which runs"),
    "calibrate": Answer(True, without_effect="prediction sets lie beside the numbers"),
    "train.method": Answer("ivlp"),
    "train.method_options": Answer({"text_tower": False}),
    "train.on_image_error": Answer("skip", without_effect="no image is broken here"),
    "table1.on_image_error": Answer("skip", without_effect="no image is broken here"),
    "lab.on_image_error": Answer("skip", without_effect="no image is broken here"),
    "table1.targets": Answer(("demo/digits",), {"protocol": "cross_dataset", "targets": ("demo/fashion",)}),
    "table1.compare": Answer(True, without_effect="rows that are there are compared"),
    "table1.learning_rates": Answer((0.1, 0.2), {"choose": "none"}),
    "table1.shots": Answer((1,)),
    "table1.protocol": Answer("imbalanced"),
    "table1.concentration": Answer(5.0, {"protocol": "imbalanced"}),
    "table1.choose": Answer("cell", RATES),
    "table1.hold_out_shot": Answer(True, RATES),
    "table1.score_on": Answer("validation", RATES),
    "table1.measures": Answer(("macro_f1",), without_effect=SHOWN),
    "lab.shots": Answer((1, 2)),
    "lab.seeds": Answer((2,), {"shots": (1, 2)}),
    "lab.more_seeds": Answer((1, 2)),
    "lab.base_to_new": Answer(("bias",)),
    "evaluate.dataset": Answer("demo/digits", ZERO_SHOT),
    "evaluate.model": Answer(lambda place: place.model(1), ZERO_SHOT),
    "evaluate.template": Answer("the {}.", ZERO_SHOT),
    "evaluate.descriptions": Answer(lambda place: place.path("texts-0.json"), ADAPTER),
    "evaluate.ood": Answer("demo/digits"),
    "evaluate.on_image_error": Answer("skip", without_effect="images that were skipped are known by their predictions"),
    "predict.images": Answer(lambda place: place.path("pictures-1")),
    "predict.classes": Answer("cat,fish", ADAPTER),
    "predict.texts": Answer("a cat,the fish", ADAPTER),
    "predict.model": Answer(lambda place: place.model(1), {**ZERO_SHOT, "classes": "cat,fish"}),
    "predict.template": Answer("the {}.", {**ZERO_SHOT, "classes": "cat,fish"}),
    "predict.descriptions": Answer(lambda place: place.path("texts-0.json"), ADAPTER),
    "predict.top": Answer(without_effect=SHOWN),
    "predict.relevancy": Answer(without_effect=SHOWN),
    "predict.batch_size": Answer(without_effect=HOW),
    "predict.on_image_error": Answer("raise", without_effect="no image is broken here"),
    "explain.model": Answer(lambda place: place.model(1), ZERO_SHOT),
    "explain.template": Answer("the {}.", ZERO_SHOT),
    "explain.descriptions": Answer(lambda place: place.path("texts-0.json"), ZERO_SHOT),
    "explain.sections": Answer("similarity,text_attention", without_effect="sums of one are known by its name"),
    "explain.predictions": Answer(lambda place: place.path(""), without_effect="they are known by their identity"),
    "explain.dataset": Answer("demo/digits", ZERO_SHOT),
    "explain.datasets": Answer(("folder",), {"dataset": None}, "which of several are explained"),
    "explain.batch_size": Answer(without_effect=HOW),
    "explain.replacement_forms": Answer(("vector",)),
    "distil.model": Answer(lambda place: place.model(0), ADAPTER, "an adapter takes its own model alone"),
    "distil.dataset": Answer(None, without_effect="the adapter's is the same one"),
    "distil.student": Answer(lambda place: place.model(1)),
    "distil.template": Answer(..., without_effect="an adapter takes its own alone"),
    "distil.descriptions": Answer(..., without_effect="an adapter has its own"),
    "distil.on_image_error": Answer("skip", without_effect="no image is broken here"),
    "distil.form": Answer("vector"),
    "export.form": Answer("program"),
    "export.model": Answer(..., without_effect="an adapter takes its own model alone"),
    "import_adapter.file": Answer(lambda place: place.path("rates-1.json")),
    "import_adapter.classes": Answer("a,b"),
    "import_adapter.dataset": Answer("folder", {"data_dir": lambda place: place.path("pictures-0")}),
    "import_adapter.data_dir": Answer(
        lambda place: place.path("pictures-1"),
        {"dataset": "folder", "data_dir": lambda place: place.path("pictures-0")},
        "the names of its classes are the same",
    ),
    "import_adapter.position": Answer("front"),
}


def settings_of(command: str) -> dict[str, Any]:
    """The settings of a command by their names."""
    return fields_of(settings_type(importlib.import_module(f"experiments.{command}").main))


def place_of(config: ConfigDict, name: str) -> ConfigDict:
    """Where a setting stands, such as "mesh.run"."""
    above = name.rpartition(".")[0]
    return config[above] if above else config


def makes(command: str, place: Place) -> Callable[..., object]:
    """Makes what a command makes of settings."""
    main = importlib.import_module(f"experiments.{command}").main

    def make(**settings: Any) -> object:
        config = common.own_config(main)
        with config.ignore_type():
            for name, value in settings.items():
                if name in settings_of(command):
                    place_of(config, name)[name.rpartition(".")[2]] = value
        return MAKERS[command](from_config(settings_type(main), config), place)

    return make


def test_every_command_is_tried_or_makes_no_number():
    assert {*MAKERS} | {*made.NO_NUMBERS} == {*COMMANDS} and not {*MAKERS} & {*made.NO_NUMBERS}
    known = {name for command in MAKERS for name in settings_of(command)}
    stale = [name for name in ANSWERS if name.rpartition(".")[2] not in known and name not in known]
    assert not stale, f"there is no setting {stale}"


@pytest.mark.ci
@pytest.mark.parametrize("command", MAKERS)
def test_a_setting_changes_what_a_command_makes(command, place):
    make, arguments, failed = makes(command, place), made.base(command, place), []
    for name, setting in settings_of(command).items():
        answer = ANSWERS.get(f"{command}.{name}", ANSWERS.get(name, Answer()))
        value = answer.value
        if value is ...:
            now = arguments.get(name, setting.default)
            value = next((other for other in other_values(setting.kind, now) if other != now), ...)
            if value is ... and not answer.without_effect:
                failed.append(f"{name}: no other value is known; give it an answer")
            if value is ... or (isinstance(value, str) and answer.without_effect):
                continue
        try:
            check(make, arguments, name, dataclasses.replace(answer, value=value), place)
        except (AssertionError, ClipbiasError) as error:
            failed.append(f"{name}: {' '.join(str(error).split())[:200]}")
    assert not failed, "\n".join(failed)


# Settings that change how something is computed change programs and the order of sums; the others change no bit.
TO_ROUNDING = ("remat", "class_chunks", "eval_batch_size", "mesh.run", "mesh.data")


@pytest.mark.ci
def test_a_setting_without_effect_changes_no_number_of_a_training(place, tmp_path):
    steps = {"learning_rate": 0.01, "epochs": 2, "batch_size": 6, "method": "bias", "mesh.data": 1}
    arguments = made.base("train", place) | steps
    main = importlib.import_module("experiments.train").main

    def trained(**changes: Any) -> tuple[dict[str, Any], Any]:
        config = common.own_config(main)
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        with config.ignore_type():
            for name, value in (arguments | changes).items():
                place_of(config, name)[name.rpartition(".")[2]] = value
        assert common.answer(main, config, str(folder)) == 0
        return binaries.results(folder), clipbias.load_adapter(folder)

    results, model = trained()
    names = [name for name in settings_of("train") if name in ANSWERS and ANSWERS[name].without_effect in (HOW, WHERE)]
    assert {*TO_ROUNDING} < {*names}
    for name in names:
        value = ANSWERS[name].values(place)[1]
        kind, default = settings_of("train")[name].kind, settings_of("train")[name].default
        other = trained(**{name: other_values(kind, default)[0] if value is ... else value})
        if name in TO_ROUNDING:
            jax.tree.map(lambda a, b: close(a, b, 1e-4), dict(other[1].learnables), dict(model.learnables))
        elif name != "workdir":
            assert other[0] == results, name
