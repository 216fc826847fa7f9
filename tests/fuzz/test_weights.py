"""Model folders and adapter files: headers, weights, configurations and tokenizers in every state."""

import json
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from hypothesis import example, given
from hypothesis import strategies as st

import clipbias
from clipbias.clip import Clip
from clipbias.clip.formats import FLOATING, open_torch, read_flax
from clipbias.tuning import Task
from clipbias.tuning.adapter import read_adapter, write_adapter
from clipbias.tuning.tuned import Tuned
from tests import helpers, torch_files
from tests.bad_files import DEEP
from tests.fuzz.answers import ANYTHING, EXTREME, answered, corrupted, mutated
from tests.torch_files import STORAGES

SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "projection_dim", "image_size"),
    *("patch_size", "num_channels", "vocab_size", "max_position_embeddings", "layer_norm_eps", "hidden_act"),
)


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the model in which one file at a time is damaged and put back."""
    copy = tmp_path_factory.mktemp("damaged") / "model"
    shutil.copytree(model, copy)
    return copy


def load_with(folder: Path, model: Path, name: str, content: bytes | str) -> str | None:
    """What `clipbias.load` answers with another content of one file."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        return answered(lambda: clipbias.load(folder).tokenize(["a photo of a cat."]))
    finally:
        shutil.copyfile(model / name, path)


def header_of(content: bytes) -> tuple[dict, bytes]:
    """A safetensors file's header and its data."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: object, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", (len(text) if length is None else length) & (2**64 - 1)) + text + data


# Headers of one tensor, as a hostile writer may make them.
TENSOR = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
HOSTILE = (
    b"",
    with_header(b"{}", b"", 2**63),
    with_header(b"{}", b"", -1),
    with_header(DEEP.encode(), b""),
    with_header(b'{"a\xff": 1}', b""),
    with_header({"a": TENSOR, "b": TENSOR}, b"\0" * 16),
    with_header({"a": {**TENSOR, "shape": [2**32, 2**32]}}, b"\0" * 16),
    with_header({"a": {**TENSOR, "data_offsets": [16, 0]}}, b"\0" * 16),
    with_header({"a": TENSOR, "a/b": {**TENSOR, "data_offsets": [16, 32]}}, b"\0" * 32),
    with_header({"a": TENSOR, "__metadata__": {"clipbias": DEEP}}, b"\0" * 16),
    with_header({"a": TENSOR, "__metadata__": {"clipbias": '{"format": ' + "9" * 5000 + "}"}}, b"\0" * 16),
)


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_headers(folder, model, content, tmp_path):
    assert load_with(folder, model, "model.safetensors", content)
    (tmp_path / "a.safetensors").write_bytes(content)
    assert answered(lambda: read_adapter(tmp_path / "a.safetensors"))


@given(st.data())
def test_damaged_weights(folder, model, data):
    whole = (model / "model.safetensors").read_bytes()
    load_with(folder, model, "model.safetensors", data.draw(corrupted(whole)))
    header, rest = header_of(whole)
    # One tensor of many, so that what is changed is small and printed whole.
    name = data.draw(st.sampled_from(sorted(header)))
    changed = {**header, name: data.draw(mutated(header[name]))}
    load_with(folder, model, "model.safetensors", with_header(changed, rest))


@pytest.fixture(scope="module")
def torch_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file of PyTorch's with the beginnings of a model."""
    path = tmp_path_factory.mktemp("torch") / "a.pt"
    state = {"visual.conv1.weight": np.zeros((8, 3, 2, 2), np.float32), "logit_scale": np.zeros((), np.float32)}
    torch_files.save(path, state | {f"{i}.weight": np.ones((2, 3), np.float16) for i in range(3)})
    return path


def load_torch(path: Path) -> str | None:
    """What reading every tensor, and then loading, answer."""

    def read() -> None:
        with open_torch(path) as tensors:
            for tensor in tensors.values():
                if tensor.dtype in FLOATING:
                    assert tensor.read().shape == tensor.shape

    answered(read)
    return answered(lambda: clipbias.load(path, activation="gelu"))


@given(st.data())
def test_damaged_torch_files(torch_file, tmp_path, data):
    (tmp_path / "a.pt").write_bytes(data.draw(corrupted(torch_file.read_bytes())))
    load_torch(tmp_path / "a.pt")
    with zipfile.ZipFile(torch_file) as archive:
        description = archive.read("archive/data.pkl")
        members = {name.rpartition("/")[2]: archive.read(name) for name in archive.namelist() if "/data/" in name}
    torch_files.write(tmp_path / "a.pt", data.draw(corrupted(description)), members)
    load_torch(tmp_path / "a.pt")


FLAX = msgpack_serialize({"a": {"b": np.ones(3, np.float32), "c": np.ones((2, 2), np.float16)}, "e": np.arange(4)})


@given(content=corrupted(FLAX))
@example(content=b"\x81\xa1a" * 100_000)
def test_damaged_flax_files(tmp_path, content):
    def read() -> None:
        for tensor in read_flax(tmp_path / "file").values():
            assert tensor.dtype not in FLOATING or tensor.read().shape == tensor.shape

    (tmp_path / "file").write_bytes(content)
    answered(read)


@given(
    st.lists(st.sampled_from(EXTREME) | st.integers(-3, 9), min_size=6, max_size=6), st.sampled_from(sorted(STORAGES))
)
def test_tensors_of_any_size(tmp_path, sizes, dtype):
    count, offset, rows, columns, *strides = (size if abs(size) < 10**60 else 2**200 for size in sizes)
    described = torch_files.tensor("0", dtype, count, offset, (rows, columns), strides)
    torch_files.write(tmp_path / "a.pt", torch_files.pickle_of({"a": described}), {"0": b"\0" * 48})
    assert load_torch(tmp_path / "a.pt")


@given(
    st.sampled_from(("vision_config", "text_config")),
    st.sampled_from(SIZES),
    st.sampled_from(EXTREME) | st.integers(-3, 70) | ANYTHING,
)
@example("vision_config", "patch_size", 0)
@example("vision_config", "hidden_size", 0)
@example("text_config", "vocab_size", 10**6)
@example("text_config", "hidden_size", 10**30)
def test_a_changed_size(folder, model, tower, name, value):
    config = json.loads((model / "config.json").read_text())
    config[tower][name] = value
    load_with(folder, model, "config.json", json.dumps(config))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "vocab.json", "tokenizer_config.json"])
def test_deep_nesting_and_endless_numbers(folder, model, name):
    for content in (DEEP, "9" * 5000, '{"image_mean": ' + "9" * 5000 + "}"):
        load_with(folder, model, name, content)


@given(st.data(), st.sampled_from(("preprocessor_config.json", "vocab.json", "merges.txt", "tokenizer_config.json")))
def test_damaged_small_files(folder, model, data, name):
    content = (model / name).read_bytes()
    load_with(folder, model, name, data.draw(corrupted(content)))
    if name.endswith("config.json"):
        load_with(folder, model, name, json.dumps(data.draw(mutated(json.loads(content)))))


@pytest.fixture(scope="module")
def adapter(clip: Callable[[], Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "a.safetensors"
    task = Task(clip(), "bias", ("cat", "dog"))
    write_adapter(path, Tuned(task, task.init(), {"dataset": "demo/digits", "seed": 1}))
    return path


def use(path: Path, clip: Clip) -> None:
    read = read_adapter(path)
    with warnings.catch_warnings():  # of a built-in method that is said to be another program's
        warnings.filterwarnings("ignore", ".* or a module that it imports was changed")
        task = read.bind(clip).task
    assert task.init(0).keys() == read.learnables.keys()


@given(st.data())
def test_damaged_adapters(adapter, clip, tmp_path, data):
    path = tmp_path / "a.safetensors"
    whole = adapter.read_bytes()
    path.write_bytes(data.draw(corrupted(whole)))
    answered(lambda: use(path, clip()))
    header, rest = header_of(whole)
    facts = data.draw(mutated(helpers.adapter_header(header["__metadata__"])))
    path.write_bytes(with_header({**header, "__metadata__": {"clipbias": json.dumps(facts)}}, rest))
    answered(lambda: use(path, clip()))
