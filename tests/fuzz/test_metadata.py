"""Every field of the metadata in files with a value of every JSON type: for all who read adapters, and for lists of
runs. One sentence, or taken.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import pytest
import yaml

import clipbias
from clipbias import schema
from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.explain.interpret import InterpretOptions, Learned, interpret
from clipbias.export.card import model_card
from clipbias.report.interpretation import write_interpretation
from clipbias.report.run_tables import render_runs
from clipbias.report.runs import read_workdir
from clipbias.tuning import Task
from clipbias.tuning.adapter import Adapter, load_adapter, save_adapter
from experiments.explain import models
from tests import helpers
from tests.fuzz.answers import answered
from tests.fuzz.test_weights import header_of, with_header

EVIL = "x\r\n---\nlicense: evil\n---\n# <script>alert(1)</script> | [a](javascript:b) `c` \x1b[31m \ud800"
# One of every kind that JSON has.
KINDS = (None, True, 5, -1, 1.5, float("nan"), "word", EVIL, ["a"], {"a": 1}, {EVIL: 1.0})
CHOICE = {"for": "method", "cells": 2, "tried": [{"learning_rate": 0.1, "accuracy": 50.0, "loss": 1.5}]}
NOTES = MappingProxyType(
    {
        **dict.fromkeys(("protocol", "config_hash", "image_hash", "status", "error", "model", "images_of"), "few_shot"),
        **{"dtype": "float32", "waiting_share": 0.1},
        **dict.fromkeys(("steps", "correct", "images", "skipped_images", "skipped_training_images"), 4),
        **dict.fromkeys(("parameters", "parameters_vision", "parameters_text", "parameters_shared"), 9),
        **dict.fromkeys(("learning_rate", "loss", "seconds", "training_seconds", "seconds_per_image"), 0.5),
        **{"method": "bias", "dataset": "demo/digits", "shots": 4, "seed": 1, "accuracy": 50.0},
        **{"accuracies": {"base": 1.0}, "calibration": {"ece": 1.0}, "calibrations": {"base": {"ece": 1.0}}},
        **{"recipe": {"batch_size": 3}, "mine": {"a": [1]}, "choice": CHOICE},
        **{"tested_images": {"base": 9}, "predictions": {"base": "bias-a-4shots-seed1-base"}},
        **{"validation_accuracy": 50.0, "validation_loss": 1.5, "validation_correct": 2, "validation_images": 4},
    }
)
HEADER = ("format", "method", "options", "class_names", "template", "base", "base_fingerprint", "notes", "descriptions")


def test_every_field_is_tried() -> None:
    assert {*schema.Facts.__annotations__} | {"mine"} == {*NOTES}
    assert {*schema.Header.__annotations__} == {*HEADER}


@pytest.fixture(scope="module")
def whole(clip: Callable[[], Clip], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a.safetensors"
    task = Task(clip(), "bias", ("cat", "dog"), descriptions={"cat": ["one."], "dog": ["two."]})
    save_adapter(path, task, jax.tree.map(lambda x: x + 1, task.init()), notes=NOTES)
    return path.read_bytes()


def changed(whole: bytes, name: str, value: Any, *, group: str = "") -> bytes:
    header, rest = header_of(whole)
    facts = helpers.adapter_header(header["__metadata__"])
    (facts[group] if group else facts)[name] = value
    return with_header({**header, "__metadata__": {"clipbias": json.dumps(facts)}}, rest)


def use(adapter: Adapter, clip: Clip, folder: Path) -> None:
    """What is shown of an adapter, and what it is used for, but for running it over images."""
    card = model_card(adapter, None, "adapter")
    assert_harmless(card)
    task = adapter.task(clip)
    assert_harmless(model_card(adapter, task, "checkpoint"))
    images = clipbias.data.load(adapter.notes.get("dataset") or "demo/digits").split("test")
    dataset = clipbias.data.Dataset("d", task.class_names, "a {}.", {"test": images.subset([])})
    assert models(clip, dataset, [(adapter, "a")], "float32")[1].learnables
    found = interpret(clip, [Learned("a", "a", adapter, task)], InterpretOptions(words=1, change=True))
    page = write_interpretation({**found, "norms": []}, folder).read_text()
    assert "<script>alert" not in page and "\x1b" not in page


def assert_harmless(card: str) -> None:
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert "license" not in yaml.safe_load(front)
    assert "\x1b" not in card and "\ud800" not in card and not {"---", "license: evil"} & {*body.splitlines()}
    words = re.sub(r"(?<!\\)`[^`]*`", "", body.partition("## Use")[0])  # in code nothing is a tag or a link
    assert not re.search(r"(?<!\\)[<\[`]", words), words


@pytest.mark.parametrize(("group", "name"), [("", name) for name in HEADER] + [("notes", name) for name in NOTES])
def test_fields_of_adapters(group: str, name: str, whole: bytes, clip: Callable[[], Clip], tmp_path: Path) -> None:
    path, taken = tmp_path / "a.safetensors", 0
    for value in KINDS:
        path.write_bytes(changed(whole, name, value, group=group))
        message = answered(lambda: load_adapter(path), tmp_path)
        if message is None:
            taken += 1
            message = answered(lambda: use(load_adapter(path), clip(), tmp_path), tmp_path)
        assert message is None or ("\n" not in message and len(message) < 900), message
    assert taken < len(KINDS), "a number that is not finite is no JSON"
    assert taken or name == "notes" or not group


@pytest.mark.parametrize("value", [5, True, ["a"], {"a": 1}])
def test_a_dataset_that_is_no_name_is_refused_where_the_file_is_read(value: Any, whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(changed(whole, "dataset", value, group="notes"))
    with pytest.raises(ClipbiasError, match=r"a\.safetensors is damaged: dataset is .*; it must be a text\."):
        load_adapter(tmp_path / "a.safetensors")
    with pytest.raises(ClipbiasError, match="the name of a dataset is"):
        clipbias.data.load(value)


BASE = {"model": "demo", "mesh": {}, "workdir": "w", "data_dir": "", "learning_rate": 0.1}
ROW = {"protocol": "few_shot", "method": "bias", "dataset": "a", "shots": 4, "seed": 1, "config_hash": "a"}
RECORDS = MappingProxyType(
    {
        "environment.json": {
            **{"command": ["x/train.py"], "python": "3", "platform": "p", "packages": {"jax": "1"}, "devices": ["cpu"]},
            **{"processes": 1, "git": {"commit": "abc", "changed": False}, "model": {"name": "demo"}},
        },
        "state.json": {"state": "failed", "started": "now", "seconds": 1.0, "error": "no"},
        "metrics.jsonl": {"step": 1, "steps": 2, "loss": 0.5, "accuracy": 0.5, "learning_rate": 0.1, "seconds": 1.0},
    }
)
BINARIES: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "train": {
            "config.json": {**BASE, "method": "bias", "dataset": "a", "shots": 4, "seed": 1},
            "result.json": {**NOTES},
        },
        "table1": {
            "config.json": {
                **BASE,
                **{"methods": ["bias"], "datasets": ["a"], "shots": [4], "seeds": [1], "learning_rates": [0.1]},
            },
            "results.jsonl": {
                **{**ROW, "status": "ok", "accuracy": 1.0, "loss": 1.0, "parameters": 1, "seconds": 1.0},
                **{"learning_rate": 0.1, "choice": CHOICE},
            },
        },
        "interpret": {
            "config.json": {**BASE, "words": 5, "adapters": "a"},
            "interpretation.json": {"adapters": [{"method": "bias", "dataset": "a", "shots": 4, "seed": 1}]},
        },
        "explain": {
            "config.json": {**BASE, "adapters": "a", "datasets": ["a/b"]},
            "a_b/results.json": {
                "models": [{"method": "bias", "accuracy": 1.0, "parameters": {"total": 1}}],
                **{"dataset": {"name": "a/b"}, "seconds": 1.0},
            },
        },
    }
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all parts of a record."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """`value` with `new` at `path`."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


def show(folder: Path) -> None:
    for cells, form in ((False, "text"), (True, "json")):
        runs = read_workdir(folder, cells=cells)
        render_runs(runs, runs[:1], [], form=form)


@pytest.mark.parametrize("binary", list(BINARIES))
def test_lists_of_runs(binary: str, tmp_path: Path) -> None:
    files = {**BINARIES[binary], **RECORDS}
    (tmp_path / "a_b").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert answered(lambda: show(tmp_path), tmp_path) is None
    for name, content in files.items() if binary == "train" else BINARIES[binary].items():
        for path in places(content):
            for value in KINDS:
                (tmp_path / name).write_text(json.dumps(put(content, path, value)))
                message = answered(lambda: show(tmp_path), tmp_path)
                assert message is None or ("\n" not in message and len(message) < 900), message
        (tmp_path / name).write_text(json.dumps(content))


def test_arrays_are_no_notes(clip: Callable[[], Clip]) -> None:
    task = Task(clip(), "bias", ("cat", "dog"))
    with pytest.raises(ClipbiasError, match="accuracies is"):
        save_adapter("nowhere", task, task.init(), notes={"accuracies": np.ones(2)})
