"""Repositories with the file lists that they have on the hub: those that people load, and what is refused.

The weights are one small model in every format, each written by the format's own writer; so whatever is loaded is the
same model, and only what is downloaded differs.
"""

import json
import re
from typing import Any

import pytest

import clipbias
from clipbias.clip.formats import Tensor
from clipbias.clip.hub import PINS
from clipbias.clip.tables import table_of
from tests.documents import ROOT
from tests.hub.server import LARGE, Hub, Repository
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
    **dict.fromkeys(
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"),
        (
            lambda saved: (
                unread("pytorch_model.bin", "open_clip_model.safetensors", OPEN_CLIP) | small("open_clip") | saved
            ),
            "model.safetensors",
        ),
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


# Networks that clipbias lacks: each refused in one sentence before its weights are downloaded


VISION = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
LOADS = "CLIP with two transformers, MetaCLIP 2, SigLIP, Perception Encoder, Chinese-CLIP and BiomedCLIP load"


def hugging_face(**content: Any) -> dict[str, Any]:
    return {"config.json": content, "model.safetensors": None}


def open_clip(vision: dict[str, Any], text: dict[str, Any], **more: Any) -> dict[str, Any]:
    model = {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text, **more}
    return {"open_clip_config.json": {"model_cfg": model, "preprocess_cfg": {}}, "open_clip_model.safetensors": None}


# By the repository: its files, of which `None` are weights, and what its sentence quotes. One for each kind of sign.
REPOSITORIES: dict[str, tuple[dict[str, Any], str]] = {
    "google/siglip2-base-patch16-naflex": (hugging_face(model_type="siglip2"), "model_type 'siglip2'"),
    "timm/vit_pe_core_base_patch16_224.fb": (
        hugging_face(architecture="vit_pe_core_base_patch16_224"),
        "architecture 'vit_pe_core_base_patch16_224'",
    ),
    "BAAI/EVA-CLIP-8B": (
        hugging_face(model_type="clip", architectures=["EVACLIPModel"], auto_map={}),
        "code of its own, 'EVACLIPModel'",
    ),
    "laion/CLIP-convnext_base_w-laion2B-s13B-b82K": (
        open_clip({"timm_model_name": "convnext_base", "image_size": 256}, TEXT),
        "vision_cfg.timm_model_name = 'convnext_base'",
    ),
    "timm/ViT-SO400M-16-SigLIP-i18n-256": (
        open_clip(
            {"image_size": 256, "timm_model_name": "vit_so400m_patch16_siglip_256", "timm_pool": "map"},
            TEXT | {"no_causal_mask": True, "pool_type": "last", "proj_type": "none"},
        ),
        "text_cfg.proj_type = 'none'",
    ),
    "timm/resnet50_clip.openai": (
        open_clip(VISION | {"layers": [3, 4, 6, 3], "patch_size": None}, TEXT),
        "vision_cfg.layers = [3, 4, 6, 3]",
    ),
    "laion/CLIP-ViT-H-14-frozen-xlm-roberta-large-laion5B-s13B-b90k": (
        open_clip(VISION, {"hf_model_name": "xlm-roberta-large"}),
        "text_cfg.hf_model_name = 'xlm-roberta-large'",
    ),
    "laion/CoCa-ViT-B-32-laion2B-s13B-b90k": (
        open_clip(VISION, TEXT, multimodal_cfg={"width": 512}),
        "multimodal_cfg = {'width': 512}",
    ),
}


def refusal(name: str, contents: dict[str, Any], hub: Hub) -> str:
    """The message for a repository whose weights may not be fetched."""
    files = {file: b"never read" if value is None else json.dumps(value).encode() for file, value in contents.items()}
    hub.repositories[name] = Repository(files)
    with pytest.raises(clipbias.ClipbiasError) as caught:
        clipbias.load(name)
    assert not {file for file, value in contents.items() if value is None} & set(hub.downloaded())
    return str(caught.value)


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_repository_is_refused_before_its_weights_are_fetched(name, hub):
    contents, sign = REPOSITORIES[name]
    message = refusal(name, contents, hub)
    assert f" holds a network that clipbias does not compute ({sign}); {LOADS}" in message and "\n" not in message


def test_a_file_of_weights_is_refused_by_its_tensors():
    """Before anything is asked of the user, such as the activation."""
    names = ["visual.conv1.weight", "logit_scale", *(f"visual.layer{number}.0.conv1.weight" for number in (1, 2, 3))]
    tensors = {name: Tensor((1,), "float32", lambda: pytest.fail("read")) for name in names}
    sign = r"its tensor visual\.layer1\.0\.conv1\.weight and 2 more"
    with pytest.raises(clipbias.ClipbiasError, match=rf"^x\.pt holds a network .* \({sign}\); {LOADS}"):
        table_of(tensors, where="x.pt")
    del tensors[names[-1]]  # most are CLIP's: what does not fit is told beside what is missing
    table_of(tensors, where="x.pt")
