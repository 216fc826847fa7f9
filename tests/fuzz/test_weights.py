"""Model folders and adapter files: headers, weights, configurations and tokenizers in every state."""

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

import clipbias
from clipbias.clip import Clip
from clipbias.clip.formats import FLOATING, open_torch
from clipbias.tuning import Task
from clipbias.tuning.adapter import read_adapter, save_adapter
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
        return answered(lambda: clipbias.load(folder).tokenize(["a photo of a cat."]), folder)
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
DTYPES = ("F64", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F4", "I64", "U8", "BOOL", "C64", "f32", "", None, 5)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "a": st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(("F32", *DTYPES)),
                "shape": st.lists(st.sampled_from(EXTREME), max_size=3) | st.just([2, 2]) | ANYTHING,
                "data_offsets": st.lists(st.sampled_from((0, 4, 8, 16, -1, 2**63, 2**64)), max_size=3),
            }
        ),
        "a/b": st.just(TENSOR),
        "b": st.just({**TENSOR, "data_offsets": [16, 32]}),
        "__metadata__": ANYTHING,
    },
)
HOSTILE = (
    b"",
    b"\0" * 7,
    with_header(b"{}", b"", 2**63),
    with_header(b"{}", b"", -1),
    with_header(DEEP.encode(), b""),
    with_header(b'{"a\xff": 1}', b""),
    with_header({"a": TENSOR, "b": TENSOR}, b"\0" * 16),
    with_header({"a": {**TENSOR, "shape": [2**32, 2**32]}}, b"\0" * 16),
    with_header({"a": {**TENSOR, "data_offsets": [16, 0]}}, b"\0" * 16),
    with_header({"a": {**TENSOR, "shape": []}}, b"\0" * 16),
    with_header({"a": {**TENSOR, "shape": [0], "data_offsets": [0, 0]}}, b""),
    with_header({"": TENSOR}, b"\0" * 16),
    with_header({"a": TENSOR, "a/b": {**TENSOR, "data_offsets": [16, 32]}}, b"\0" * 32),
    with_header({"a": TENSOR, "__metadata__": {"clipbias": DEEP}}, b"\0" * 16),
    with_header({"a": TENSOR, "__metadata__": {"clipbias": '{"format": ' + "9" * 5000 + "}"}}, b"\0" * 16),
)


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_headers(folder: Path, model: Path, content: bytes, tmp_path: Path) -> None:
    assert load_with(folder, model, "model.safetensors", content)
    (tmp_path / "a.safetensors").write_bytes(content)
    assert answered(lambda: read_adapter(tmp_path / "a.safetensors"), tmp_path)


@given(st.data())
def test_damaged_weights(folder: Path, model: Path, data: st.DataObject) -> None:
    whole = (model / "model.safetensors").read_bytes()
    load_with(folder, model, "model.safetensors", data.draw(corrupted(whole)))
    header, rest = header_of(whole)
    # One tensor of many, so that what is changed is small and printed whole.
    name = data.draw(st.sampled_from(sorted(header)))
    changed = {**header, name: data.draw(mutated(header[name]))}
    load_with(folder, model, "model.safetensors", with_header(changed, rest))


@given(HEADERS, st.sampled_from((0, 16, 32)))
def test_made_up_headers(folder: Path, model: Path, tmp_path: Path, header: dict, size: int) -> None:
    content = with_header(header, b"\0" * size)
    assert load_with(folder, model, "model.safetensors", content)
    (tmp_path / "a.safetensors").write_bytes(content)
    assert answered(lambda: read_adapter(tmp_path / "a.safetensors"), tmp_path)


FORMATS = Path(__file__).parents[1] / "data_files" / "formats"


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

    answered(read, path.parent)
    return answered(lambda: clipbias.load(path, activation="gelu"), path.parent)


@given(st.data())
def test_damaged_torch_files(torch_file: Path, tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "a.pt").write_bytes(data.draw(corrupted(torch_file.read_bytes())))
    load_torch(tmp_path / "a.pt")
    with zipfile.ZipFile(torch_file) as archive:
        description = archive.read("archive/data.pkl")
        members = {name.rpartition("/")[2]: archive.read(name) for name in archive.namelist() if "/data/" in name}
    torch_files.write(tmp_path / "a.pt", data.draw(corrupted(description)), members)
    load_torch(tmp_path / "a.pt")


@given(
    st.lists(st.sampled_from(EXTREME) | st.integers(-3, 9), min_size=6, max_size=6), st.sampled_from(sorted(STORAGES))
)
def test_tensors_of_any_size(tmp_path: Path, sizes: list[int], dtype: str) -> None:
    count, offset, rows, columns, *strides = (size if abs(size) < 10**60 else 2**200 for size in sizes)
    described = torch_files.tensor("0", dtype, count, offset, (rows, columns), strides)
    torch_files.write(tmp_path / "a.pt", torch_files.pickle_of({"a": described}), {"0": b"\0" * 48})
    assert load_torch(tmp_path / "a.pt")


@given(st.data())
def test_a_changed_open_clip_configuration(tmp_path: Path, data: st.DataObject) -> None:
    source = FORMATS / "open_clip"
    for name in ("open_clip_model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        if not (tmp_path / name).exists():
            (tmp_path / name).symlink_to(source / name)
    content = json.loads((source / "open_clip_config.json").read_text())
    (tmp_path / "open_clip_config.json").write_text(json.dumps(data.draw(mutated(content))))
    answered(lambda: clipbias.load(tmp_path), tmp_path)


@given(st.data())
def test_an_index_of_shards(folder: Path, model: Path, data: st.DataObject) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": {"a": "part.safetensors", "b": "part.safetensors"}}
    path = folder / "model.safetensors.index.json"
    changed = data.draw(mutated(index))
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    try:
        path.write_text(json.dumps(changed))
        answered(lambda: clipbias.load(folder), folder)
    finally:
        path.unlink()
        (folder / "part.safetensors").rename(folder / "model.safetensors")


def config_of(model: Path) -> dict:
    return json.loads((model / "config.json").read_text())


@given(st.data())
def test_a_changed_configuration(folder: Path, model: Path, data: st.DataObject) -> None:
    load_with(folder, model, "config.json", json.dumps(data.draw(mutated(config_of(model)))))


@given(
    st.sampled_from(("vision_config", "text_config")),
    st.sampled_from(SIZES),
    st.sampled_from(EXTREME) | st.integers(-3, 70) | ANYTHING,
)
@example("vision_config", "patch_size", 0)
@example("vision_config", "hidden_size", 0)
@example("vision_config", "image_size", None)
@example("text_config", "num_hidden_layers", 10**6)
@example("text_config", "vocab_size", 10**6)
@example("text_config", "hidden_size", 10**30)
@example("vision_config", "num_hidden_layers", 22)
def test_a_changed_size(folder: Path, model: Path, tower: str, name: str, value: object) -> None:
    config = config_of(model)
    config[tower][name] = value
    load_with(folder, model, "config.json", json.dumps(config))


@given(st.data(), st.sampled_from(("config.json", "preprocessor_config.json", "special_tokens_map.json")))
def test_damaged_small_files(folder: Path, model: Path, data: st.DataObject, name: str) -> None:
    load_with(folder, model, name, data.draw(corrupted((model / name).read_bytes())))
    if name != "config.json":
        load_with(folder, model, name, json.dumps(data.draw(mutated(json.loads((model / name).read_text())))))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "vocab.json", "tokenizer_config.json"])
def test_deep_nesting_and_endless_numbers(folder: Path, model: Path, name: str) -> None:
    for content in (DEEP, '{"a": ' + DEEP + "}", "9" * 5000, '{"image_mean": ' + "9" * 5000 + "}"):
        load_with(folder, model, name, content)


@pytest.mark.parametrize("length", [[24], None, "24", {}, -1, 1e30])
def test_any_length_of_a_tokenizer(folder: Path, model: Path, length: object) -> None:
    settings = json.loads((model / "tokenizer_config.json").read_text())
    load_with(folder, model, "tokenizer_config.json", json.dumps({**settings, "model_max_length": length}))


@given(st.data(), st.sampled_from(("vocab.json", "merges.txt", "tokenizer_config.json")))
def test_damaged_tokenizers(folder: Path, model: Path, data: st.DataObject, name: str) -> None:
    content = (model / name).read_bytes()
    load_with(folder, model, name, data.draw(corrupted(content)))
    if name == "tokenizer_config.json":
        load_with(folder, model, name, json.dumps(data.draw(mutated(json.loads(content)))))
    elif name == "vocab.json":
        vocabulary = json.loads(content)
        piece = data.draw(st.sampled_from(sorted(vocabulary)))
        load_with(folder, model, name, json.dumps({**vocabulary, piece: data.draw(ANYTHING)}))


@given(st.data())
def test_a_tokenizer_in_one_file(folder: Path, model: Path, clip: Callable[[], Clip], data: st.DataObject) -> None:
    """As `transformers` writes it."""
    content = json.loads(clip().tokenizer.backend_tokenizer.to_str())
    small = {name: value for name, value in content.items() if name != "model"}
    changed = {**data.draw(mutated(small).filter(lambda value: isinstance(value, dict))), "model": content["model"]}
    path = folder / "tokenizer.json"
    try:
        path.write_text(json.dumps(changed))
        answered(lambda: clipbias.load(folder).tokenize(["a cat"]), folder)
    finally:
        path.unlink()


@pytest.fixture(scope="module")
def adapter(clip: Callable[[], Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "a.safetensors"
    task = Task(clip(), "bias", ("cat", "dog"))
    save_adapter(path, task, task.init(), notes={"dataset": "demo/digits", "seed": 1})
    return path


def use(path: Path, clip: Clip) -> None:
    read = read_adapter(path)
    task = read.task(clip)
    assert task.init(0).keys() == read.learnables.keys()


@given(st.data())
def test_damaged_adapters(adapter: Path, clip: Callable[[], Clip], tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.safetensors"
    whole = adapter.read_bytes()
    path.write_bytes(data.draw(corrupted(whole)))
    answered(lambda: use(path, clip()), tmp_path)
    header, rest = header_of(whole)
    facts = data.draw(mutated(helpers.adapter_header(header["__metadata__"])))
    path.write_bytes(with_header({**header, "__metadata__": {"clipbias": json.dumps(facts)}}, rest))
    answered(lambda: use(path, clip()), tmp_path)


@given(
    st.dictionaries(
        st.sampled_from(("vision_bias", "text_bias", "a", "a/b", "/", "")),
        st.sampled_from(("f4", "f8", "f2", "i4", "u1", "?")).flatmap(
            lambda kind: st.tuples(st.just(kind), st.lists(st.integers(0, 4), max_size=3))
        ),
        max_size=3,
    ),
    st.sampled_from((0.0, 1.0, float("nan"), float("inf"))),
)
def test_adapters_of_other_arrays(
    adapter: Path, clip: Callable[[], Clip], tmp_path: Path, shapes: dict, value: float
) -> None:
    metadata = {"clipbias": json.dumps(helpers.adapter_header(header_of(adapter.read_bytes())[0]["__metadata__"]))}
    with np.errstate(invalid="ignore"):
        arrays = {name: np.full(shape, value).astype(kind) for name, (kind, shape) in shapes.items()}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", metadata=metadata)
    assert answered(lambda: use(tmp_path / "a.safetensors", clip()), tmp_path)


@given(st.sampled_from(("", ".", "..", "/", "\0", "a/b", "a/b@", "a/b@\0", "~", "~nobody/x", "x" * 5000, "\ud800")))
def test_names_of_models(tmp_path: Path, name: str) -> None:
    assert answered(lambda: clipbias.load(name), tmp_path)


def test_the_whole_model_is_whole(folder: Path, model: Path) -> None:
    """What the other tests damage is put back."""
    assert load_with(folder, model, "config.json", (model / "config.json").read_text()) is None
    helpers.tiny_checkpoint(folder, seed=3)
    assert load_with(folder, model, "merges.txt", (model / "merges.txt").read_text()) is None
