"""Loading and saving the Hugging Face format, and what is refused."""

import errno
import json
import os
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import clipbias
from clipbias.clip.checkpoint import INDEX, WEIGHTS
from clipbias.errors import ClipbiasError
from tests import helpers
from tests.fuzz.answers import answered


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    helpers.tiny_checkpoint(folder)
    return folder


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may damage."""
    return Path(shutil.copytree(source, tmp_path / "model"))


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda dtype: np.dtype(dtype).name)
def test_what_is_saved_is_what_was_loaded_bit_for_bit(folder: Path, tmp_path: Path, dtype) -> None:
    rewrite(folder, lambda tensors: tensors.update({name: x.astype(dtype) for name, x in tensors.items()}))
    clip = clipbias.load(folder)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(clip.params))
    clip.save(tmp_path / "again")
    first, second = load_file(folder / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype == dtype
        assert tensor.shape == second[name].shape
        assert tensor.tobytes() == second[name].tobytes(), name
    again = clipbias.load(tmp_path / "again")
    assert again.fingerprint == clip.fingerprint
    assert again.config == clip.config
    np.testing.assert_array_equal(again.tokenize(["a photo of a cat."]), clip.tokenize(["a photo of a cat."]))


def test_shards(folder: Path) -> None:
    whole = clipbias.load(folder)
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    (folder / WEIGHTS).unlink()
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert clipbias.load(folder).fingerprint == whole.fingerprint
    (folder / "b.safetensors").unlink()
    with pytest.raises(ClipbiasError, match=r"lacks the shard b\.safetensors"):
        clipbias.load(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {names[0]: "../../etc/passwd"}}))
    with pytest.raises(ClipbiasError, match="not a file of that folder"):
        clipbias.load(folder)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer_config.json", "merges.txt"])
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    message = answered(lambda: clipbias.load(folder), folder)
    assert f"{folder / name} is a pipe, a socket or a device" in message


@pytest.mark.parametrize("name", ["vocab.json", "added_tokens.json"])
def test_a_file_that_may_not_be_read_is_not_to_be_fetched_again(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Played, since nothing is closed to the user that tests may run as."""
    (folder / name).touch()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, *rest: Path(path).name != name and access(path, *rest))
    with pytest.raises(ClipbiasError, match=rf"^cannot read .*{name}: Permission denied; check its permissions\.$"):
        clipbias.load(folder)


def test_what_the_disk_says_of_a_tokenizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "added_tokens.json"
    path.write_text("{}")
    original = open

    def broken(file, *arguments, **options):
        if str(file) == str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return original(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", broken)
    with pytest.raises(ClipbiasError, match=r"^cannot read .*added_tokens\.json: Input/output error; see to the file"):
        clipbias.load(folder)


def test_the_logit_scale_stays_exact_in_half_precision(source: Path) -> None:
    exact, half = clipbias.load(source), clipbias.load(source, dtype="bfloat16")
    assert half.params["logit_scale"].dtype == np.float32
    assert half.params["logit_scale"] == exact.params["logit_scale"]
    assert half.params["text"]["token_embedding"].dtype == ml_dtypes.bfloat16


def test_a_folder_is_known_by_its_whole_path(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    assert clipbias.load(source.name).name == str(source.resolve())
    assert clipbias.load("demo").name == "demo"
