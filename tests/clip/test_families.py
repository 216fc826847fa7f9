"""Which files are read, from the names of those that lie there, and names of models."""

from pathlib import Path

import pytest

from clipbias.clip.families import choose
from clipbias.clip.hub import parse

COMMON = ["README.md", "config.json", "merges.txt", "preprocessor_config.json", "tokenizer.json", "vocab.json"]
OPEN_CLIP = "open_clip_config.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    return tmp_path


@pytest.mark.parametrize(
    ("names", "file"),
    [
        (["pytorch_model.bin", "flax_model.msgpack"], "flax_model.msgpack"),
        (["flax_model.msgpack", "model.safetensors", "pytorch_model.bin", "tf_model.h5"], "model.safetensors"),
        (["pytorch_model.bin", "tf_model.h5"], "pytorch_model.bin"),
        (["open_clip_model.safetensors", OPEN_CLIP, "model.safetensors"], "model.safetensors"),
        (["open_clip_pytorch_model.bin", "open_clip_model.safetensors", OPEN_CLIP], "open_clip_model.safetensors"),
        (["open_clip_pytorch_model.bin", OPEN_CLIP], "open_clip_pytorch_model.bin"),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "pytorch_model.bin.index.json"),
    ],
)
def test_one_file_is_chosen(folder: Path, names: list[str], file: str) -> None:
    assert choose(folder, [*COMMON, *names]) == (file, OPEN_CLIP if "open_clip" in file else "config.json")


def test_weights_without_their_configuration_do_not_count(folder: Path) -> None:
    names = ["model.safetensors", "open_clip_model.safetensors", OPEN_CLIP]
    assert choose(folder, names) == ("open_clip_model.safetensors", OPEN_CLIP)
    (folder / "config.json").write_text('{"architecture": "vit_base_patch16_clip_224"}')  # timm's
    assert choose(folder, [*names, "config.json"]) == ("open_clip_model.safetensors", OPEN_CLIP)


@pytest.mark.parametrize("revision", ["refs/pr/17", "v1.0", "feature-x/y", "0" * 40])
def test_a_revision_belongs_to_the_name(revision: str) -> None:
    for prefix in ("", "hf-hub:"):
        assert str(parse(f"{prefix}owner/name@{revision}")) == f"owner/name@{revision}"


@pytest.mark.parametrize("revision", ["", "../../elsewhere", "a/../../b", "-x", "/x", "a//b", "a b", "a@b", "a\n"])
def test_what_names_no_revision_is_not_looked_up(revision: str) -> None:
    """It would be part of paths in the cache, and of the command that an error prints."""
    assert parse(f"owner/name@{revision}") is None


def test_openais_names_are_those_of_their_repositories() -> None:
    assert str(parse("ViT-B/16")) == "openai/clip-vit-base-patch16"
    assert str(parse("ViT-L/14@336px")) == "openai/clip-vit-large-patch14-336"
    assert str(parse("ViT-L/14@main")) == "ViT-L/14@main"  # a repository of that name
