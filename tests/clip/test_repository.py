"""Which files are read, from the names of those that lie there."""

import pytest

from clipbias.clip.hub import parse
from clipbias.clip.repository import choose
from clipbias.errors import ClipbiasError

COMMON = ["README.md", "config.json", "merges.txt", "preprocessor_config.json", "tokenizer.json", "vocab.json"]


@pytest.mark.parametrize(
    ("names", "naming", "form", "files"),
    [
        (["flax_model.msgpack", "pytorch_model.bin"], "hugging_face", "flax", ["flax_model.msgpack"]),
        (
            ["flax_model.msgpack", "model.safetensors", "pytorch_model.bin", "tf_model.h5"],
            "hugging_face",
            "safetensors",
            ["model.safetensors"],
        ),
        (["pytorch_model.bin", "tf_model.h5"], "hugging_face", "torch", ["pytorch_model.bin"]),
        (
            ["model.safetensors", "open_clip_model.safetensors", "open_clip_config.json"],
            "hugging_face",
            "safetensors",
            ["model.safetensors"],
        ),
        (
            ["open_clip_pytorch_model.bin", "open_clip_model.safetensors", "open_clip_config.json"],
            "open_clip",
            "safetensors",
            ["open_clip_model.safetensors"],
        ),
        (
            ["open_clip_pytorch_model.bin", "open_clip_config.json"],
            "open_clip",
            "torch",
            ["open_clip_pytorch_model.bin"],
        ),
        (
            [
                "pytorch_model-00002-of-00002.bin",
                "pytorch_model.bin.index.json",
                "pytorch_model-00001-of-00002.bin",
                "other-00001-of-00001.bin",
            ],
            "hugging_face",
            "torch",
            [
                "pytorch_model.bin.index.json",
                "pytorch_model-00001-of-00002.bin",
                "pytorch_model-00002-of-00002.bin",
            ],
        ),
    ],
)
def test_one_format_is_chosen(names, naming, form, files):
    chosen = choose([*COMMON, *names])
    assert (chosen.naming, chosen.format, list(chosen.files)) == (naming, form, files)


def test_weights_without_their_configuration_do_not_count():
    names = ["model.safetensors", "open_clip_model.safetensors", "open_clip_config.json"]
    assert choose(names).naming == "open_clip"
    with pytest.raises(ClipbiasError, match=r"^x has model.safetensors but no config.json"):
        choose(["model.safetensors"], where="x")


def test_a_naming_can_be_asked_for():
    names = [*COMMON, "model.safetensors", "open_clip_model.safetensors", "open_clip_config.json"]
    assert choose(names, naming="open_clip").configuration == "open_clip_config.json"


@pytest.mark.parametrize("revision", ["refs/pr/17", "v1.0", "feature-x/y", "0" * 40])
def test_a_revision_belongs_to_the_name(revision):
    for prefix in ("", "hf-hub:"):
        assert str(parse(f"{prefix}owner/name@{revision}")) == f"owner/name@{revision}"


@pytest.mark.parametrize("revision", ["", "../../elsewhere", "a/../../b", "-x", "/x", "a//b", "a b", "a@b", "a\n"])
def test_what_names_no_revision_is_not_looked_up(revision):
    """It would be part of paths in the cache, and of the command that an error prints."""
    assert parse(f"owner/name@{revision}") is None


def test_nothing_to_read_is_said_with_what_is_there():
    with pytest.raises(ClipbiasError, match=r"no CLIP weights.*it holds .*tf_model.h5"):
        choose([*COMMON, "tf_model.h5"])
    with pytest.raises(ClipbiasError, match="it holds nothing"):
        choose([])
