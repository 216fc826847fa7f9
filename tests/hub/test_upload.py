"""Adapters and models travel through the hub and come back as they were."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors import safe_open

import clipbias
from clipbias import TunedModel
from clipbias.clip import Clip
from clipbias.clip import hub as clip_hub
from clipbias.errors import ClipbiasError
from clipbias.tuning.adapter import Adapter, read_adapter, write_adapter
from clipbias.tuning.tuned import Tuned
from configs import train
from tests.documents import ROOT, blocks
from tests.hub.server import Repository

# The hub's own client says so to itself.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def adapter(clip: Clip, tmp_path: Path) -> Adapter:
    task = clipbias.Task(clip, "bias", ("cat", "dog"), template="a photo of a {}.")
    learnables = jax.tree.map(lambda x: x + 0.5, task.init(seed=0))
    path = tmp_path / "bias.safetensors"
    write_adapter(path, Tuned(task, learnables, {"dataset": "pets", "accuracy": 75.0}))
    return read_adapter(path)


@pytest.fixture
def tuned(adapter: Adapter, clip: Clip) -> TunedModel:
    return TunedModel.of(adapter.bind(clip))


def same(first: Adapter, other: Adapter) -> None:
    jax.tree.map(np.testing.assert_array_equal, first.learnables, other.learnables)
    for field in dataclasses.fields(Adapter):
        if field.name != "learnables":
            assert getattr(first, field.name) == getattr(other, field.name), field.name


def test_an_adapter_comes_back(hub, tuned, adapter, clip):
    place = clipbias.push_to_hub("me/pets-bias", tuned, private=True)
    assert hub.created == {"me/pets-bias": True}
    commit = hub.repositories["me/pets-bias"].references["main"]
    assert place == f"me/pets-bias@{commit}"
    hub.requests.clear()
    for source in (place, "me/pets-bias", f"hf-hub:{place}"):
        same(read_adapter(source), adapter)
    assert hub.downloaded() == ["adapter.safetensors"]
    again = clipbias.load_adapter(place, clip)
    assert again.identity == tuned.identity
    same(Adapter.of(again), adapter)
    assert again.predict(np.zeros((16, 16, 3), np.uint8)).probabilities.shape == (1, 2)


def test_an_adapter_names_its_base_at_the_commit(hub, files, tmp_path):
    repository = hub.repositories["someone/small"] = Repository(files)
    first = clipbias.load("someone/small")
    task = clipbias.Task(first, "bias", ("cat", "dog"))
    write_adapter(tmp_path / "a.safetensors", Tuned(task, task.init(seed=0)))
    adapter = read_adapter(tmp_path / "a.safetensors")
    assert adapter.base == first.source == f"someone/small@{first.revision}"
    repository.add({"README.md": b"the weights went away"})
    adapter.bind(clipbias.load(adapter.base))
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:  # as every reader of format 2 does
        header = json.loads(file.metadata()["clipbias"])
    assert header["format"] == 2
    assert header.keys() == {
        *("format", "method", "options", "source", "class_names", "template", "descriptions", "free_text", "dtype"),
        *("base", "weights", "tokenizer", "config", "preprocessing", "notes", "sha256"),
    }


def test_what_is_refused(hub, tuned, files):
    hub.repositories["someone/small"] = Repository(files)
    hub.private.add("someone/else")
    with pytest.raises(ClipbiasError, match=r"does not let you write 'someone/else'; run `hf auth login`"):
        clipbias.push_to_hub("someone/else", tuned)
    with pytest.raises(ClipbiasError, match=r"holds no adapter\.safetensors"):
        read_adapter("someone/small")
    for wrong in ("someone/nothing", "runs/none.safetensors"):
        with pytest.raises(ClipbiasError, match=re.escape("no ")):
            read_adapter(wrong)
    assert not any("none.safetensors" in request for request in hub.requests)  # a file's name is not looked up


def test_offline(hub, tuned, adapter, monkeypatch):
    place = clipbias.push_to_hub("me/pets-bias", tuned)
    read_adapter(place)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    same(read_adapter(place), adapter)
    with pytest.raises(ClipbiasError, match=r"was not uploaded .* the same call tries again"):
        clipbias.push_to_hub("me/pets-bias", tuned)


def test_the_download_of_the_page_is_the_one_that_an_error_suggests():
    (shown,) = [block for block in blocks(ROOT / "docs" / "models.md", "bash") if block.startswith("hf download")]
    assert shlex.split(shown) == shlex.split(clip_hub.command(clip_hub.parse(train.get_config().model)))
