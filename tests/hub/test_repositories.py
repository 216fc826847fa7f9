"""The repositories that people load, with the file lists that they have on the hub.

Their weights are one small model in every format, each written by the format's own writer; so whatever is loaded is the
same model, and only what is downloaded differs.
"""

import json
import re

import pytest

import clipbias
from clipbias.clip.hub import PINS
from tests.documents import ROOT
from tests.hub.server import LARGE, Repository
from tests.reference.formats import FORMATS

NEVER = b"never read"
BOT = "5ef227a78de3f75873f373246dac80def63b0003"


def folder(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (FORMATS / name).iterdir()}


def small(name: str) -> dict[str, bytes]:
    """Everything of a format's folder that is no weights."""
    return {file: content for file, content in folder(name).items() if not file.endswith(LARGE)}


@pytest.fixture(scope="module")
def safetensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same model as Hugging Face's safetensors, as `Clip.save` writes it."""
    path = tmp_path_factory.mktemp("safetensors")
    clipbias.load(FORMATS / "torch").save(path)
    return {file.name: file.read_bytes() for file in path.iterdir()}


def unread(*names: str) -> dict[str, bytes]:
    return dict.fromkeys((".gitattributes", "README.md", *names), NEVER)


TIMM = {"config.json": json.dumps({"architecture": "vit_base_patch16_clip_224", "num_features": 768}).encode()}
OPEN_CLIP = "open_clip_pytorch_model.bin"

# What lies in each repository, and the weights that are read.
CASES = {
    "openai/clip-vit-base-patch16": (lambda _: unread("pytorch_model.bin") | folder("flax"), "flax_model.msgpack"),
    f"openai/clip-vit-base-patch16@{BOT}": (
        lambda saved: unread("pytorch_model.bin", "flax_model.msgpack") | saved,
        "model.safetensors",
    ),
    "openai/clip-vit-base-patch32": (
        lambda _: unread("pytorch_model.bin", "tf_model.h5") | folder("flax"),
        "flax_model.msgpack",
    ),
    "openai/clip-vit-large-patch14": (
        lambda saved: unread("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack") | saved,
        "model.safetensors",
    ),
    "openai/clip-vit-large-patch14-336": (lambda _: unread("tf_model.h5") | folder("torch"), "pytorch_model.bin"),
    "laion/CLIP-ViT-B-16-laion2B-s34B-b88K": (
        lambda _: unread(OPEN_CLIP) | small("torch") | folder("open_clip"),
        "open_clip_model.safetensors",
    ),
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": (
        lambda saved: (
            unread("pytorch_model.bin", "open_clip_model.safetensors", OPEN_CLIP) | small("open_clip") | saved
        ),
        "model.safetensors",
    ),
    "laion/CLIP-ViT-L-14-laion2B-s32B-b82K": (
        lambda saved: (
            unread("pytorch_model.bin", "open_clip_model.safetensors", OPEN_CLIP) | small("open_clip") | saved
        ),
        "model.safetensors",
    ),
    "hf-hub:timm/vit_base_patch16_clip_224.openai": (
        lambda _: unread(OPEN_CLIP, "model.safetensors", "pytorch_model.bin") | folder("open_clip") | TIMM,
        "open_clip_model.safetensors",
    ),
    "facebook/metaclip-b16-400m": (lambda _: unread() | folder("torch"), "pytorch_model.bin"),
    "someone/sharded": (lambda _: unread() | folder("torch_sharded"), "pytorch_model.bin.index.json"),
    "apple/DFN2B-CLIP-ViT-B-16": (lambda _: unread() | folder("open_clip_half"), OPEN_CLIP),
}


@pytest.mark.parametrize("source", CASES)
def test_a_repository_loads_and_nothing_else_of_it_is_fetched(hub, safetensors, source):
    content, weights = CASES[source]
    files = content(safetensors)
    repository, _, revision = source.removeprefix("hf-hub:").partition("@")
    pin = PINS.get(repository)
    if pin and not revision:
        assert pin.weights == weights
    hub.repositories[repository] = Repository(files, revision or (pin and pin.commit))
    clip = clipbias.load(source)
    assert clip.revision == hub.repositories[repository].references["main"]
    assert clip.source == f"{repository}@{clip.revision}"
    original = clipbias.load(FORMATS / "torch")
    assert (clip.fingerprint, clip.config) == (original.fingerprint, original.config)
    fetched = hub.downloaded()
    read = [name for name in fetched if name.endswith((*LARGE, ".index.json"))]
    assert read == ([weights] if "sharded" not in source else sorted(n for n in files if "pytorch_model" in n))
    assert NEVER not in {files[name] for name in fetched}
    hub.requests.clear()
    clipbias.load(f"{repository}@{clip.revision}")
    assert hub.requests == []


def test_the_page_on_models_names_each_tested_repository():
    page = (ROOT / "docs" / "models.md").read_text()
    tested = page.split("Tested repositories: ")[1].split("\n\n")[0]
    named = {source.removeprefix("hf-hub:") for source in CASES}
    assert set(re.findall(r"`([\w.-]+/[\w.-]+)`", tested)) == {
        name for name in named if "@" not in name and name != "someone/sharded"
    }
