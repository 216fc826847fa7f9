"""Every field of an adapter's metadata with a value of every JSON type: one sentence, or all who read it take it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import pytest
import yaml

import clipbias
from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.export.card import model_card
from clipbias.studies import bind_models
from clipbias.tuning import Task
from clipbias.tuning.adapter import Adapter, read_adapter, save_adapter
from tests import helpers
from tests.fuzz.answers import answered
from tests.fuzz.test_weights import header_of, with_header

EVIL = "x\r\n---\nlicense: evil\n---\n# <script>alert(1)</script> | [a](javascript:b) `c` \x1b[31m \ud800"
# One of every kind that JSON has.
KINDS = (None, True, 5, -1, 1.5, float("nan"), "word", EVIL, ["a"], {"a": 1}, {EVIL: 1.0})
NOTES = MappingProxyType(
    {"dataset": "demo/digits", "shots": 4, "seed": 1, "accuracy": 50.0, "protocol": "few_shot", "mine": {"a": [1]}}
)
HEADER = ("format", "method", "options", "class_names", "template", "base", "base_fingerprint", "notes", "descriptions")


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


def use(adapter: Adapter, clip: Clip) -> None:
    """What is shown of an adapter, and what it is used for, but for running it over images."""
    card = model_card(adapter, None, "adapter")
    assert_harmless(card)
    task = adapter.task(clip)
    assert_harmless(model_card(adapter, task, "checkpoint"))
    images = clipbias.data.load(adapter.notes.get("dataset") or "demo/digits").split("test")
    dataset = clipbias.data.Dataset("d", task.class_names, "a {}.", {"test": images.subset([])})
    assert bind_models([clipbias.TunedModel.of(adapter, clip)], dataset)[1].learnables


def assert_harmless(card: str) -> None:
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert "license" not in yaml.safe_load(front)
    assert "\x1b" not in card and "\ud800" not in card and not {"---", "license: evil"} & {*body.splitlines()}
    words = re.sub(r"(?<!\\)`[^`]*`", "", body.partition("## Use")[0])  # in code nothing is a tag or a link
    assert not re.search(r"(?<!\\)[<\[`]", words), words


@pytest.mark.parametrize(("group", "name"), [("", name) for name in HEADER] + [("notes", name) for name in NOTES])
def test_fields_of_adapters(group: str, name: str, whole: bytes, clip: Callable[[], Clip], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    taken = 0
    for value in KINDS:
        path.write_bytes(changed(whole, name, value, group=group))
        message = answered(lambda: read_adapter(path), tmp_path)
        if message is None:
            taken += 1
            message = answered(lambda: use(read_adapter(path), clip()), tmp_path)
        assert message is None or ("\n" not in message and len(message) < 900), message
    assert taken < len(KINDS), "a number that is not finite is no JSON"
    assert taken or name == "notes" or not group


@pytest.mark.parametrize("value", [5, True, ["a"], {"a": 1}])
def test_a_dataset_that_is_no_name_is_refused_where_the_file_is_read(value: Any, whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(changed(whole, "dataset", value, group="notes"))
    with pytest.raises(ClipbiasError, match=r"a\.safetensors is damaged: dataset is .*; it must be a text\."):
        read_adapter(tmp_path / "a.safetensors")
    with pytest.raises(ClipbiasError, match="the name of a dataset is"):
        clipbias.data.load(value)
