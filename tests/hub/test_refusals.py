"""Networks that clipbias lacks: each refused in one sentence before its weights are downloaded.

The files are those that lie on the hub, with the settings of their configurations that matter.
"""

import json
from typing import Any

import pytest

import clipbias
from clipbias.clip.formats import Tensor
from clipbias.clip.tables import table_of
from tests.hub.server import Hub, Repository

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


@pytest.mark.parametrize("file", ["mobileclip_s0.pt", "PE-Core-G14-448.pt", "clip_cn_rn50.pt"])
def test_files_of_other_networks_are_listed(file, hub):
    assert refusal("x/y", {file: None}, hub).endswith(f"; it holds {file}.")


def test_a_file_of_weights_is_refused_by_its_tensors():
    """Before anything is asked of the user, such as the activation."""
    names = ["visual.conv1.weight", "logit_scale", *(f"visual.layer{number}.0.conv1.weight" for number in (1, 2, 3))]
    tensors = {name: Tensor((1,), "float32", lambda: pytest.fail("read")) for name in names}
    sign = r"its tensor visual\.layer1\.0\.conv1\.weight and 2 more"
    with pytest.raises(clipbias.ClipbiasError, match=rf"^x\.pt holds a network .* \({sign}\); {LOADS}"):
        table_of(tensors, where="x.pt")
    del tensors[names[-1]]  # most are CLIP's: what does not fit is told beside what is missing
    table_of(tensors, where="x.pt")
