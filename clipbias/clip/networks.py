"""Networks that clipbias does not compute: how their files give them away, and the nearest model that loads.

A model is refused by its configuration, or by the names of its files, before its weights are downloaded; a file of
weights alone by the names of its tensors.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

from clipbias.checks import shown
from clipbias.errors import ClipbiasError
from clipbias.io import shorten

_NOTHING = "(?!)"
_VIT = "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"


@dataclasses.dataclass(frozen=True)
class Network:
    """A family of networks.

    Attributes:
      name: the noun in the message.
      nearest: the nearest model that loads, by its name on the hub.
      configured: pattern of names in configurations: the `model_type` or `architecture` of a `config.json`, the
        `timm_model_name` or `hf_model_name` of an `open_clip_config.json`.
      files: pattern of names of its files on the hub.
      tensors: pattern of names of its tensors that no model that loads has.
    """

    name: str
    nearest: str
    configured: str = _NOTHING
    files: str = _NOTHING
    tensors: str = _NOTHING

    def refusal(self, where: str, detail: str) -> ClipbiasError:
        """The error for a model of this family; `detail` is the name that gave it away."""
        return ClipbiasError(
            f"{where} holds {self.name} ({detail}), which clipbias does not compute; the nearest model that loads is "
            f"{self.nearest!r}."
        )


RESNET = Network(
    "a CLIP with a ResNet as its vision tower",
    "openai/clip-vit-base-patch32",
    configured=r"resnet\d+.*",
    files=r"RN\d+.*\.pt",
    tensors=r"visual\.(layer1|attnpool)\.",
)
COCA = Network(
    "CoCa", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", tensors=r"text_decoder\.|visual\.attn_pool\.(query|ln_[qk])"
)
SIGLIP = Network("SigLIP", "google/siglip-base-patch16-224", tensors=r"logit_bias$|(vision|text)_model\.head\.")
# The first that fits counts.
NETWORKS = (
    Network(
        "MobileCLIP",
        "apple/DFN2B-CLIP-ViT-B-16",
        configured=r"fastvit_mci.*|vit_base_mci_.*|mobileclip.*",
        files=r"mobileclip.*\.pt",
        tensors=r"image_encoder\.model\.|visual\.trunk\.(stages\..*(token_mixer|reparam)|stem\.0\.(conv|reparam))",
    ),
    Network(
        "EVA-CLIP",
        _VIT,
        configured=r"eva(02|01)?_.*|evaclip.*|eva_clip.*",
        files=r"EVA.*CLIP.*\.(pt|bin)",
        tensors=r"visual\.(trunk\.)?(rope\.|blocks\.\d+\.(attn\.(q_proj|q_bias|inner_attn_ln|norm)|mlp\.(w1|fc1_g)))"
        r"|visual\.blocks\.",
    ),
    Network(
        "a CLIP with a ConvNeXt as its vision tower",
        _VIT,
        configured=r"convnext.*",
        tensors=r"visual\.trunk\.(stages|stem)\.",
    ),
    RESNET,
    Network("ViTamin", _VIT, configured=r"vitamin.*", tensors=r"visual\.trunk\.patch_embed\.backbone\."),
    COCA,
    Network("a SigLIP 2 NaFlex model", "google/siglip2-base-patch16-224", configured=r"siglip2(_.*)?|naflexvit.*"),
    Network(
        "PE-Core-G14",
        "facebook/PE-Core-L14-336",
        configured=r"vit_pe_core_gigantic_.*",
        files=r"PE-Core-G14.*\.pt",
    ),
    Network(
        "a PE-Lang or PE-Spatial, which have no texts,",
        "facebook/PE-Core-L14-336",
        configured=r"vit_pe_(lang|spatial)_.*",
        files=r"PE-(Lang|Spatial).*\.pt",
    ),
    Network("the vision tower of a PE-Core without its texts", "timm/PE-Core-B-16", configured=r"vit_pe_core_.*"),
    Network(
        "the vision tower of a SigLIP without its texts",
        "google/siglip-base-patch16-224",
        configured=r"vit_\w+_siglip_\w+|siglip_vision_model",
    ),
    Network("Chinese-CLIP with a ResNet", "OFA-Sys/chinese-clip-vit-base-patch16", files=r"clip_cn_rn50.*\.pt"),
    Network(
        "a CLIP with a multilingual text tower of Hugging Face",
        "facebook/metaclip-2-worldwide-s16",
        configured=r"(.*/)?(xlm-roberta|mt5|nllb|m2m).*|altclip",
    ),
    Network("a CLIP with a RoBERTa as its text tower", _VIT, configured=r"(.*/)?roberta.*"),
    Network("a vision tower of timm that clipbias lacks", _VIT, configured=r"(vit|swin|deit|beit)_.*"),
    SIGLIP,
    Network("a vision tower of timm", _VIT, tensors=r"visual\.trunk\."),
    Network("a vision transformer with LayerScale", _VIT, tensors=r".*\.ls_[12]\.gamma"),
    Network("a text tower of Hugging Face", _VIT, tensors=r"text\.(transformer\.(embeddings|encoder|layers)|proj)\b"),
    Network("a custom text tower", _VIT, tensors=r"text_projection\.(?!weight$)|(text\.)?cls_emb"),
)
_UNKNOWN = Network("another network", "openai/clip-vit-base-patch16")


def network_of(name: object) -> Network:
    """The network that a name in a configuration stands for."""
    for network in NETWORKS:
        if isinstance(name, str) and re.fullmatch(network.configured, name):
            return network
    return _UNKNOWN


def refuse_open_clip(model: Mapping[str, Any], *, where: str) -> None:
    """Raises `ClipbiasError` if the towers of an `open_clip_config.json` are those of a network that has a name."""
    if model.get("multimodal_cfg"):
        raise COCA.refusal(where, "multimodal_cfg")
    layers = model["vision_cfg"].get("layers")
    if isinstance(layers, list):
        raise RESNET.refusal(where, f"layers {shown(layers)}")
    name = model["text_cfg"].get("hf_model_name")
    if name is not None:
        raise network_of(name).refusal(where, shown(name))


def refuse_files(names: Collection[str], *, where: str) -> None:
    """Raises `ClipbiasError` if one of a repository's files is named as those of another network."""
    for network in NETWORKS:
        for name in sorted(names):
            if re.fullmatch(network.files, name, re.IGNORECASE):
                raise network.refusal(where, shown(name))


def refuse_tensors(names: Collection[str], *, where: str) -> None:
    """Raises `ClipbiasError` if one of these tensors, which no model that loads has, gives another network away."""
    for network in NETWORKS:
        for name in names:
            if re.match(network.tensors, name):
                printable = shorten(name if name.isprintable() else ascii(name))
                raise network.refusal(where, f"its tensor {printable}")
