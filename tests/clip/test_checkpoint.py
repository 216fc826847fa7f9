"""Which files of a folder are read, one model in every format, the Hugging Face format, and what is refused."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from safetensors.numpy import load_file, save_file

import clipbias
from clipbias.clip import Clip, encode_image, encode_text
from clipbias.clip.checkpoint import WEIGHTS, choose
from clipbias.clip.hub import parse
from clipbias.errors import ClipbiasError
from tests import helpers
from tests.fuzz.answers import answered
from tests.reference import formats
from tests.reference.weights import read_config


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may damage."""
    return Path(shutil.copytree(model, tmp_path / "model"))


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda dtype: np.dtype(dtype).name)
def test_what_is_saved_is_what_was_loaded_bit_for_bit(folder, tmp_path, dtype):
    rewrite(folder, lambda tensors: tensors.update({name: x.astype(dtype) for name, x in tensors.items()}))
    clip = clipbias.load(folder)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(clip.params))
    clip.save(tmp_path / "again")
    first, second = load_file(folder / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert second[name].dtype == dtype and tensor.tobytes() == second[name].tobytes(), name


def test_shards(folder):
    whole = clipbias.load(folder)
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    (folder / WEIGHTS).unlink()
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert clipbias.load(folder).fingerprint == whole.fingerprint
    (folder / "b.safetensors").unlink()
    with pytest.raises(ClipbiasError, match=r"lacks the shard b\.safetensors"):
        clipbias.load(folder)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {names[0]: "../../etc/passwd"}}))
    with pytest.raises(ClipbiasError, match="not a file of that folder"):
        clipbias.load(folder)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "added_tokens.json"])
def test_a_pipe_is_not_waited_for(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    message = answered(lambda: clipbias.load(folder))
    assert f"{folder / name} is a pipe, a socket or a device" in message


def test_a_million_layers_are_not_looked_for_one_by_one(folder):
    content = json.loads((folder / "config.json").read_text())
    content["text_config"]["num_hidden_layers"] = 10**6
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ClipbiasError, match="fewer than its configuration asks for layers"):
        clipbias.load(folder)


def test_the_logit_scale_stays_exact_in_half_precision(model):
    exact, half = clipbias.load(model), clipbias.load(model, dtype="bfloat16")
    assert half.params["logit_scale"].dtype == np.float32
    assert half.params["logit_scale"] == exact.params["logit_scale"]
    assert half.params["text"]["token_embedding"].dtype == ml_dtypes.bfloat16


def test_a_folder_is_known_by_its_whole_path(model, monkeypatch):
    monkeypatch.chdir(model.parent)
    assert clipbias.load(model.name).name == str(model.resolve())
    assert clipbias.load("demo").name == "demo"


def test_weights_without_their_configuration_do_not_count(tmp_path):
    both = ["open_clip_model.safetensors", "open_clip_config.json"]
    assert choose(tmp_path, ["model.safetensors", *both]) == tuple(both)


@pytest.mark.parametrize("revision", ["refs/pr/17", "0" * 40])
def test_a_revision_belongs_to_the_name(revision):
    for prefix in ("", "hf-hub:"):
        assert str(parse(f"{prefix}owner/name@{revision}")) == f"owner/name@{revision}"


@pytest.mark.parametrize("revision", ["", "../../elsewhere", "a/../../b", "-x", "/x", "a//b", "a b", "a@b", "a\n"])
def test_what_names_no_revision_is_not_looked_up(revision):
    """It would be part of paths in the cache, and of the command that an error prints."""
    assert parse(f"owner/name@{revision}") is None


def test_openais_names_are_those_of_their_repositories():
    assert str(parse("ViT-B/16")) == "openai/clip-vit-base-patch16"
    assert str(parse("ViT-L/14@336px")) == "openai/clip-vit-large-patch14-336"
    assert str(parse("ViT-L/14@main")) == "ViT-L/14@main"  # a repository of that name


ROUNDING = 3e-6  # of float32 in towers of two layers, relative to the largest number

# By writer, what lies there: folders as they are on the hub, and single files.
WRITTEN = {
    "flax": "flax",
    "torch": "transformers",
    "torch_sharded": "transformers",
    "open_clip": "open_clip",
    "open_clip_half": "open_clip",
    "openai/ViT-tiny.pt": "openai",
    "training/epoch_3.pt": "open_clip",
}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Clip:
    """The same weights without a detour: as safetensors in Hugging Face's names."""
    folder = tmp_path_factory.mktemp("original")
    settings = formats.config(folder)
    helpers.write_checkpoint(folder, settings, formats.state(settings))
    return clipbias.load(folder)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_same_weights_are_the_same_model(name, original):
    # A training checkpoint says nothing of its activation.
    clip = clipbias.load(formats.FORMATS / name, activation="quick_gelu" if name.startswith("training") else None)
    assert (clip.fingerprint, clip.config) == (original.fingerprint, original.config)
    library = "transformers" if (formats.FORMATS / name / "config.json").exists() else "open_clip"
    resizing = dataclasses.replace(original.preprocessing.resizing, library=library)
    assert clip.preprocessing == dataclasses.replace(original.preprocessing, resizing=resizing)
    texts = ["a photo of a cat.", "757-200"]
    np.testing.assert_array_equal(clip.tokenize(texts), original.tokenize(texts))


def test_features_equal_the_writers_own(original):
    expected = safetensors.numpy.load_file(formats.FORMATS / "expected.safetensors")
    inputs = formats.inputs(read_config(formats.FORMATS / "torch"))  # as the writers had them
    encoders = {"image": (encode_image, inputs["images"]), "text": (encode_text, inputs["tokens"].astype(np.int32))}
    for name, (encode, given) in encoders.items():
        features = jax.jit(encode, static_argnums=1)(original.params, original.config, given)[0]
        for writer in set(WRITTEN.values()):
            theirs = expected[f"{writer}.{name}_features"]
            assert np.abs(features - theirs).max() / np.abs(theirs).max() < ROUNDING, writer
