"""The configurations, and what a binary answers to a setting that is wrong: one sentence, and nothing is begun."""

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import experiments.evaluate
import experiments.explain
import experiments.predict
import experiments.table1
import experiments.train
from clipbias.cli import COMMANDS, folder, overview
from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.settings import as_json, from_config
from clipbias.tuning import Task
from clipbias.tuning.adapter import write_adapter
from clipbias.tuning.tuned import Tuned
from configs import demo
from configs.table1 import Table1Settings
from experiments import common
from experiments.command_line import note_given, settings_type
from tests.documents import ROOT
from tests.end_to_end.conftest import answer_here, sentence

OF_TABLE1 = ("demo", "zoo")


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs").glob("[!_]*.py")))
def test_every_configuration_and_preset_suits_its_binary(name):
    module = importlib.import_module(f"configs.{name}")
    binary = importlib.import_module(f"experiments.{'table1' if name in OF_TABLE1 else name}")
    for arguments in [(), *((preset,) for preset in getattr(module, "PRESETS", ()))]:
        config = module.get_config(*arguments)
        assert as_json(from_config(settings_type(binary.main), config)) == json.loads(config.to_json_best_effort())
    if hasattr(module, "PRESETS"):
        with pytest.raises(ClipbiasError, match="the preset is 'ful'; choose from"):
            module.get_config("ful")


def test_a_learning_rate_of_the_command_line_goes_before_a_file_of_them():
    """And what is stored says so; of two that are given none is dropped."""
    config = demo.get_config()
    note_given(config, ["shots", "learning_rate", "method_options.clap.epochs"])
    settings = from_config(Table1Settings, config)
    assert (settings.rates_file, settings.given) == (None, ("learning_rate", "method_options.clap.epochs"))
    assert table1.axes_of(settings).given == settings.given and as_json(settings)["rates_file"] is None
    config = demo.get_config()
    note_given(config, ["epochs"])
    assert config.rates_file == "demo_rates.json"
    for given, words in (("rates_file", "so are those of demo_rates.json"), ("learning_rates", "leave out either")):
        config = demo.get_config()
        config.learning_rates = (0.1, 0.2) if given == "learning_rates" else ()
        note_given(config, ["learning_rate", given])
        with pytest.raises(ClipbiasError, match=words):
            from_config(Table1Settings, config)


def test_every_binary_is_a_command_and_is_listed():
    runnable = {path.stem for path in (ROOT / "experiments").glob("*.py") if "__main__" in path.read_text()}
    assert runnable == {*COMMANDS} and folder() == ROOT
    assert re.search(r"^  train +Tunes one method on one dataset", overview(), re.MULTILINE)


@pytest.fixture(scope="module")
def place(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each of two classes, and an adapter."""
    root = tmp_path_factory.mktemp("place")
    for split in ("train", "val", "test"):
        for label, name in enumerate(("cat", "dog")):
            (root / "images" / split / name).mkdir(parents=True)
            for index in range(2):
                pixels = np.random.default_rng([label, index]).integers(0, 255, (18, 20, 3), np.uint8)
                Image.fromarray(pixels).save(root / "images" / split / name / f"{index}.png")
    task = Task(clip, "bias", ("cat", "dog"))
    write_adapter(root / "a.safetensors", Tuned(task, task.init(), {"dataset": "folder"}))
    return root


def small(binary: ModuleType, model: Path, place: Path) -> dict[str, Any]:
    """Settings with which a binary runs for a moment."""
    adapters = {"adapters": str(place / "a.safetensors")}
    settings_of: dict[ModuleType, dict[str, Any]] = {
        experiments.train: {"dataset": "folder", "shots": 1},
        experiments.table1: {"datasets": ("folder",), "methods": ("zero_shot", "bias"), "shots": (1,), "seeds": (1,)},
        experiments.evaluate: {"dataset": "folder"},
        experiments.predict: {"images": str(place / "images" / "test"), "classes": "cat,dog"},
        experiments.explain: {**adapters, "dataset": "folder", "sections": "similarity"},
    }
    known = common.own_config(binary.main)
    common_ones = {"epochs": 2, "batch_size": 4, "eval_batch_size": 4, "data_dir": str(place / "images")}
    return {name: x for name, x in ({"model": str(model)} | common_ones | settings_of[binary]).items() if name in known}


train = experiments.train
table1 = experiments.table1
evaluate = experiments.evaluate
explain = experiments.explain
predict = experiments.predict
# Python's own words for a zero byte in a path.
NULL_BYTE = "embedded null byte" if sys.version_info < (3, 13) else "stat: embedded null character in path"
WRONG: list[tuple[ModuleType, str, Any, str]] = [
    (train, "seed", -1, "seed is -1; it must be a whole number from 0"),
    (train, "topology", "v5e:4x4", "nothing can be run on v5e:4x4; add --config.dry_run"),
    (train, "dataset", "\0", r"there is no dataset '\x00'"),
    (train, "mesh", {"run": 0, "data": 0}, "mesh.run is 0; it must be a whole number from 1 to 2,147,483,647, or None"),
    (table1, "methods", (), "there are no methods"),
    (table1, "seeds", (1, 2, 1), "seeds has 1 twice; name each once"),
    (table1, "method_options", {"bias": 5}, "method_options.bias is 5; it must hold options by name"),
    (explain, "datasets", ("demo/digits",), "give --config.dataset or --config.datasets, not both"),
    (predict, "images", "\0", rf"cannot open '\x00': {NULL_BYTE}"),
    (evaluate, "split", "tset", "folder has no tset images; it has test, train, val"),
]


@pytest.mark.parametrize(("binary", "name", "value", "words"), WRONG)
def test_wrong_values(binary, name, value, words, model, place, tmp_path):
    value = ConfigDict(value) if isinstance(value, dict) else value
    assert words in sentence(*answer_here(binary, {**small(binary, model, place), name: value}, tmp_path / "w"))


@pytest.mark.parametrize(
    ("binary", "settings"),
    [
        pytest.param(
            table1, {"shots": (10**9,), "runs_per_program": 10**9, "methods": ("bias",)}, marks=pytest.mark.long
        ),
        (predict, {"batch_size": 10**9}),
        (explain, {"explore_images": 1000, "image_limit": 10**9}),
    ],
)
def test_large_values_are_taken_for_all_there_is(binary, settings, model, place, tmp_path):
    status, message = answer_here(binary, small(binary, model, place) | settings, tmp_path / "w")
    assert status == 0, message
