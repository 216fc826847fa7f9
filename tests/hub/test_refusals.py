"""Networks that clipbias lacks: each refused in one sentence, by its name, before its weights are downloaded.

The files are those that lie on the hub, with the settings of their configurations that matter (open_clip's and timm's
own tables).
"""

import json
import re
from typing import Any

import pytest

import clipbias
from clipbias.clip.convert import table_of
from clipbias.clip.tensors import Tensor
from tests.hub.server import Hub, Repository

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
VIT = "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"


def open_clip(vision: dict[str, Any], text: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    model = {"embed_dim": 512, "vision_cfg": vision, "text_cfg": TEXT if text is None else text, **more}
    return {"open_clip_config.json": {"model_cfg": model, "preprocess_cfg": {}}, "open_clip_model.safetensors": None}


def timm(name: str, **more: Any) -> dict[str, Any]:
    return open_clip({"timm_model_name": name, "timm_model_pretrained": False, "timm_pool": "avg", **more})


# By the repository: its files, of which `None` are weights; what its sentence calls it, and the nearest model.
REPOSITORIES: dict[str, tuple[dict[str, Any], str, str]] = {
    "apple/MobileCLIP-S1-OpenCLIP": (
        timm("fastvit_mci1", image_size=256),
        "MobileCLIP ('fastvit_mci1')",
        "apple/DFN2B-CLIP-ViT-B-16",
    ),
    "apple/MobileCLIP-S0": ({"mobileclip_s0.pt": None}, "MobileCLIP ('mobileclip_s0.pt')", "apple/DFN2B-CLIP-ViT-B-16"),
    "timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k": (
        timm("eva02_base_patch16_clip_224", image_size=224)
        | {"config.json": {"architecture": "eva02_base_patch16_clip_224"}, "model.safetensors": None},
        "EVA-CLIP ('eva02_base_patch16_clip_224')",
        VIT,
    ),
    "QuanSun/EVA-CLIP": (
        {"EVA02_CLIP_B_psz16_s8B.pt": None, "EVA01_CLIP_g_14_psz14_s11B.pt": None},
        "EVA-CLIP ('EVA01_CLIP_g_14_psz14_s11B.pt')",
        VIT,
    ),
    "laion/CLIP-convnext_base_w-laion2B-s13B-b82K": (
        timm("convnext_base", timm_pool="", timm_proj="linear", image_size=256),
        "a CLIP with a ConvNeXt as its vision tower ('convnext_base')",
        VIT,
    ),
    "timm/resnet50_clip.openai": (
        open_clip({"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None}, quick_gelu=True)
        | {"config.json": {"architecture": "resnet50_clip"}, "model.safetensors": None},
        "a CLIP with a ResNet as its vision tower (layers [3, 4, 6, 3])",
        "openai/clip-vit-base-patch32",
    ),
    "google/siglip2-base-patch16-naflex": (
        {"config.json": {"model_type": "siglip2", "architectures": ["Siglip2Model"]}, "model.safetensors": None},
        "a SigLIP 2 NaFlex model ('siglip2')",
        "google/siglip2-base-patch16-224",
    ),
    "laion/CoCa-ViT-B-32-laion2B-s13B-b90k": (
        open_clip(
            {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32, "attentional_pool": True},
            TEXT | {"context_length": 76, "embed_cls": True},
            multimodal_cfg={"width": 512, "layers": 12},
            custom_text=True,
        ),
        "CoCa (multimodal_cfg)",
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    ),
    "facebook/PE-Core-G14-448": (
        {"PE-Core-G14-448.pt": None},
        "PE-Core-G14 ('PE-Core-G14-448.pt')",
        "facebook/PE-Core-L14-336",
    ),
    "timm/vit_pe_core_base_patch16_224.fb": (
        {"config.json": {"architecture": "vit_pe_core_base_patch16_224"}, "model.safetensors": None},
        "the vision tower of a PE-Core without its texts ('vit_pe_core_base_patch16_224')",
        "timm/PE-Core-B-16",
    ),
    "laion/CLIP-ViT-H-14-frozen-xlm-roberta-large-laion5B-s13B-b90k": (
        open_clip(
            {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
            {"hf_model_name": "xlm-roberta-large", "hf_tokenizer_name": "xlm-roberta-large"},
        ),
        "a CLIP with a multilingual text tower of Hugging Face ('xlm-roberta-large')",
        "facebook/metaclip-2-worldwide-s16",
    ),
    "timm/ViT-SO400M-16-SigLIP-i18n-256": (
        open_clip(
            {"image_size": 256, "timm_model_name": "vit_so400m_patch16_siglip_256", "timm_pool": "map"},
            TEXT | {"vocab_size": 250000, "no_causal_mask": True, "pool_type": "last", "proj_type": "none"},
            init_logit_bias=-10,
        ),
        "SigLIP without a projection of its texts (text_cfg.proj_type = 'none')",
        "google/siglip-base-patch16-224",
    ),
    "BAAI/EVA-CLIP-8B": (
        {
            "config.json": {"model_type": "clip", "architectures": ["EVACLIPModel"], "auto_map": {}},
            "pytorch_model.bin": None,
        },
        "EVA-CLIP ('EVACLIPModel')",
        VIT,
    ),
}


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_repository_is_refused_by_name_before_its_weights_are_fetched(name: str, hub: Hub) -> None:
    contents, network, nearest = REPOSITORIES[name]
    files = {file: b"never read" if value is None else json.dumps(value).encode() for file, value in contents.items()}
    hub.repositories[name] = Repository(files)
    with pytest.raises(clipbias.ClipbiasError) as caught:
        clipbias.load(name)
    message = str(caught.value)
    sentence = f"holds {network}, which clipbias does not compute; the nearest model that loads is {nearest!r}."
    assert message.endswith(sentence) and "\n" not in message
    assert not {file for file, value in contents.items() if value is None} & set(hub.downloaded())


@pytest.mark.parametrize(
    ("tensors", "network"),
    [
        (["visual.blocks.0.attn.q_proj.weight", "visual.rope.freqs_cos", "text.logit_scale"], "EVA-CLIP"),
        (["visual.trunk.blocks.0.attn.q_proj.weight", "visual.trunk.rope.periods"], "EVA-CLIP"),
        (["image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight", "text_encoder.projection_layer"], "MobileCLIP"),
        (["visual.trunk.stages.0.blocks.0.conv_dw.weight", "visual.trunk.stem.0.weight"], "ConvNeXt"),
        (["visual.layer1.0.conv1.weight", "visual.attnpool.q_proj.weight"], "ResNet"),
        (["visual.attn_pool.query", "visual.attn_pool.ln_q.weight", "text.cls_emb"], "CoCa"),
    ],
)
def test_a_file_of_weights_is_refused_by_its_tensors(tensors: list[str], network: str) -> None:
    """Before anything is asked of the user, such as the activation."""
    clips = ["visual.conv1.weight", "transformer.resblocks.0.ln_1.weight", "logit_scale"]
    named = {name: Tensor((1,), "float32", lambda: pytest.fail("read")) for name in clips + tensors}
    with pytest.raises(clipbias.ClipbiasError, match=rf"^x\.pt holds .*{re.escape(network)}.*its tensor .*nearest"):
        table_of(named, where="x.pt")
