"""Configurations whose values are anything, through the function that every binary runs; recipes, grids, studies."""

import dataclasses
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

import configs.demo
import configs.evaluate
import configs.explain
import configs.interpret
import configs.predict
import configs.train
import experiments.evaluate
import experiments.explain
import experiments.interpret
import experiments.predict
import experiments.table1
import experiments.train
from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.explain.options import StudyOptions
from clipbias.training.settings import GridSettings
from clipbias.tuning import Task
from clipbias.tuning.adapter import save_adapter
from clipbias.tuning.recipe import Recipe
from experiments import common
from tests.fuzz.answers import ANYTHING, EXTREME, answered

SMALL = {"epochs": 1, "batch_size": 4, "eval_batch_size": 4, "checkpoint_seconds": 60.0}
VALUES = (
    ANYTHING | st.sampled_from(EXTREME) | st.just(()) | st.tuples(st.integers(-2, 3)) | st.tuples(st.text(max_size=5))
)


@pytest.fixture(scope="module")
def place(model: Path, clip: Callable[[], Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each of two classes, and an adapter."""
    root = tmp_path_factory.mktemp("place")
    for split in ("train", "val", "test"):
        for label, name in enumerate(("cat", "dog")):
            (root / "images" / split / name).mkdir(parents=True)
            for index in range(2):
                pixels = np.random.default_rng([label, index]).integers(0, 255, (18, 20, 3), np.uint8)
                Image.fromarray(pixels).save(root / "images" / split / name / f"{index}.png")
    task = Task(clip(), "bias", ("cat", "dog"))
    save_adapter(root / "a.safetensors", task, task.init(), notes={"dataset": "folder"})
    return root


def config_of(binary: str, model: Path, place: Path) -> ConfigDict:
    """A configuration with which the binary runs for a moment."""
    own = {"train": configs.train, "table1": configs.demo, "evaluate": configs.evaluate, "explain": configs.explain}
    config = {**own, "predict": configs.predict, "interpret": configs.interpret}[binary].get_config()
    config.unlock()
    small = {**SMALL, "model": str(model), "data_dir": str(place / "images"), "dataset": "folder", "shots": 1}
    if binary == "table1":
        small |= {"datasets": ("folder",), "methods": ("zero_shot", "bias"), "shots": (1,), "seeds": (1,)}
    if binary == "predict":
        small |= {"images": str(place / "images" / "test"), "classes": "cat,dog"}
    if binary == "interpret":
        small |= {"adapters": str(place / "a.safetensors")}
    if binary == "explain":
        small |= {"adapters": str(place / "a.safetensors"), "figures": "predictions,text_attention"}
    config.update({name: value for name, value in small.items() if name in config})
    if "mesh" in config and binary != "table1":
        config.mesh.data = 1  # one device: what is split over several takes longer to compile
    return config


def keys(config: ConfigDict, prefix: str = "") -> list[str]:
    """The names of all values, with dots, and of the groups that hold them."""
    found = []
    for name, value in config.items():
        found.append(f"{prefix}{name}")
        if isinstance(value, ConfigDict):
            found += keys(value, f"{prefix}{name}.")
    return found


def put(config: ConfigDict, name: str, value: Any) -> None:
    *groups, last = name.split(".")
    for group in groups:
        config = config[group]
    if value is ...:
        del config[last]
        return
    with config.ignore_type():
        config[last] = value


BINARIES = {
    "train": experiments.train,
    "table1": experiments.table1,
    "evaluate": experiments.evaluate,
    "explain": experiments.explain,
    "predict": experiments.predict,
    "interpret": experiments.interpret,
}


def run(binary: str, config: ConfigDict, workdir: Path) -> str | None:
    """What a binary answers; status 1 comes with one sentence."""

    def call() -> None:
        with mock.patch("builtins.print") as said:
            status = common.answer(BINARIES[binary].main, config, str(workdir))
        errors = [call.args[0] for call in said.call_args_list if str(call.args[0]).startswith("error: ")]
        assert status == len(errors) and status in (0, 1)
        if errors:
            raise ClipbiasError(errors[0])

    return answered(call, workdir.parent)


@pytest.mark.parametrize("binary", list(BINARIES))
def test_the_configurations_run_unchanged(binary: str, model: Path, place: Path, tmp_path: Path) -> None:
    assert run(binary, config_of(binary, model, place), tmp_path / "w") is None


@settings(max_examples=max(settings().max_examples // 2, 10))
@given(st.data())
@pytest.mark.parametrize("binary", list(BINARIES))
def test_any_value_anywhere(binary: str, model: Path, place: Path, tmp_path: Path, data: st.DataObject) -> None:
    config = config_of(binary, model, place)
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(keys(config)))
        try:
            put(config, name, data.draw(VALUES | st.just(...)))
        except (TypeError, ValueError, OverflowError):  # what the configuration library itself refuses to hold
            continue
    run(binary, config, tmp_path / "w")
    shutil.rmtree(tmp_path / "w", ignore_errors=True)


# Values of the right type that once did harm, or easily could.
HARMFUL = [
    ("train", "seed", -1),
    ("train", "seed", 2**64),
    ("train", "epochs", 10**9),
    ("train", "learning_rate", float("inf")),
    ("train", "learning_rate", 1e300),
    ("train", "momentum", float("nan")),
    ("train", "weight_decay", 1e300),
    ("train", "shots", -1),
    ("train", "batch_size", 2**31),
    ("train", "method", "\0.py"),
    ("train", "method", "os.path"),
    ("train", "method_options", ConfigDict({"template": "x"})),
    ("train", "method_options", ConfigDict({"tokens": [[1]]})),
    ("train", "dataset", "\0"),
    ("train", "data_dir", "x" * 5000),
    ("train", "data_dir", 5),
    ("train", "method", "~nobody/of/that/name.py"),
    ("train", "template", "{}{}"),
    ("train", "template", "{0}"),
    ("train", "dtype", "float16"),
    ("train", "mesh", ConfigDict({"run": 0, "data": 0})),
    ("train", "mesh", ConfigDict({"run": 1, "data": 1, "model": 1})),
    ("table1", "methods", ("bias", 5)),
    ("table1", "methods", ()),
    ("table1", "seeds", ()),
    ("table1", "shots", (0,)),
    ("table1", "shots", (10**9,)),
    ("table1", "datasets", ("folder", "..")),
    ("table1", "targets", ("folder",)),
    ("table1", "protocol", "few_shots"),
    ("table1", "method_options", ConfigDict({"bias": 5})),
    ("table1", "runs_per_program", 10**9),
    ("table1", "datasets", ("\x1f",)),
    ("table1", "datasets", ("\ud800$x_",)),
    ("explain", "rotations", ()),
    ("explain", "rotations", (45,)),
    ("explain", "layers", (10**9,)),
    ("explain", "prompt", "9" * 5000),
    ("explain", "prompt", "x"),
    ("explain", "examples", 0),
    ("explain", "start_layer", -(10**9)),
    ("explain", "datasets", ("..",)),
    ("explain", "image_limit", 10**9),
    ("predict", "batch_size", 10**9),
    ("predict", "start_layer", 10**9),
    ("predict", "classes", "\0"),
    ("predict", "images", "\0"),
    ("evaluate", "images", "tset"),
    ("evaluate", "adapter", "\0"),
]


@pytest.mark.parametrize(("binary", "name", "value"), HARMFUL)
def test_harmful_values(binary: str, name: str, value: Any, model: Path, place: Path, tmp_path: Path) -> None:
    config = config_of(binary, model, place)
    if name == "prompt" or name in ("rotations", "layers", "examples"):
        config.figures = "similarity"
    put(config, name, value)
    run(binary, config, tmp_path / "w")


def test_no_image_is_left_out_for_a_folder_that_cannot_be_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played, since nothing is closed to the user that tests may run as."""
    scan = os.scandir

    def closed(path: Any) -> Any:
        if str(path).rstrip("/").endswith("dog"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    assert len(experiments.predict.find_images(str(place / "images" / "test"))) == 4
    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(ClipbiasError, match=r"cannot read the folder .*dog.*: Permission denied"):
        experiments.predict.find_images(str(place / "images" / "test"))


@pytest.mark.parametrize("workdir", ["\0", "x" * 5000, "/dev/null", "/dev/null/x", "/proc/1/x", "\ud800"])
def test_folders_that_cannot_be(workdir: str, model: Path, place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert run("train", config_of("train", model, place), Path(workdir))
    assert "File exists" in run("train", config_of("train", model, place), tmp_path / "file")
    assert "Not a directory" in run("train", config_of("train", model, place), tmp_path / "file" / "x")


@given(st.sampled_from([field.name for field in dataclasses.fields(Recipe)]), VALUES)
@example("epochs", 10**9)
@example("learning_rate", float("nan"))
@example("epochs", True)
@example("batch_size", 1.5)
@example("learning_rate", 10**400)
def test_recipes(tmp_path: Path, name: str, value: Any) -> None:
    facts = dict(learning_rate=0.1, epochs=2, warmup_epochs=1, warmup_learning_rate=0.1, batch_size=4, momentum=0.9) | {
        "weight_decay": 0.1,
        name: value,
    }

    def make() -> None:
        assert np.isfinite(Recipe(**facts).learning_rates()).all()
        assert Recipe.from_config(facts).epochs == facts["epochs"]

    answered(make, tmp_path)


@given(st.sampled_from([field.name for field in dataclasses.fields(GridSettings)]), VALUES)
@example("targets", 1)
@example("method_options", {"bias": 1})
def test_settings_of_grids(tmp_path: Path, name: str, value: Any) -> None:
    facts = dict(method_options={}, dtype="float32", eval_batch_size=4, checkpoint_seconds=1.0, on_image_error="raise")
    answered(lambda: GridSettings(**{**facts, name: value}), tmp_path)


@given(st.sampled_from([field.name for field in dataclasses.fields(StudyOptions)]), VALUES)
def test_options_of_studies(tmp_path: Path, name: str, value: Any) -> None:
    answered(lambda: StudyOptions(**{name: value}).what_counts(), tmp_path)
