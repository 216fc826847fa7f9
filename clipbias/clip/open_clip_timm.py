"""open_clip's configurations of models whose vision tower is timm's: Perception Encoder, SigLIP and BiomedCLIP.

Such a file names the tower and leaves out its sizes, which are written here as in timm.
"""

import re
from collections.abc import Mapping
from typing import Any

from clipbias.checks import shown
from clipbias.clip.config import (
    ClipConfig,
    TextConfig,
    TowerSizes,
    VisionConfig,
    bert_text,
    other_network,
    siglip_sizes,
    siglip_text,
    siglip_vision,
)
from clipbias.errors import ClipbiasError

# Width, layers, heads and hidden width by the size in a tower's name.
SIZES = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
TOWER = re.compile(r"vit_(?:(pe)_core_)?([a-z0-9]+)_patch(\d+)(?:_(siglip))?_(\d+)")
PE_POOL_HEADS = 8
# BiomedCLIP's text tower, which its file names and nothing else.
BIOMED = re.compile(r"microsoft/BiomedNLP-(BiomedBERT|PubMedBERT)-base-uncased-abstract(-fulltext)?", re.IGNORECASE)
BERT_BASE = (768, 12, 12, 3072)
BERT_VOCABULARY, BERT_POSITIONS = 30522, 512
_PLAIN_TEXT = ("context_length", "vocab_size", "width", "heads", "layers", "hf_tokenizer_name", "tokenizer_kwargs")
_SIGLIP_TEXT = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
_BERT_TEXT = {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"}


def read_timm(model: Mapping[str, Any], *, where: str) -> ClipConfig:
    """The geometry of a `model_cfg` with a `timm_model_name`.

    Raises:
      ClipbiasError: it describes another network.
      KeyError, TypeError, ValueError: it describes none.
    """
    vision = model["vision_cfg"]
    text = model["text_cfg"]
    name = vision["timm_model_name"]
    match = TOWER.fullmatch(name)
    if match is None or match[2] not in SIZES:
        raise other_network(where, f"vision_cfg.timm_model_name = {shown(name)}")
    is_pe, size, patch_size, is_siglip, image_size = match.groups()
    if not (is_pe or is_siglip) and not BIOMED.fullmatch(str(text.get("hf_model_name"))):
        raise other_network(where, f"{shown(name)} with text_cfg.hf_model_name = {shown(text.get('hf_model_name'))}")
    if vision.get("image_size", 224) != int(image_size):
        raise ClipbiasError(
            f"{where} asks for images of {shown(vision.get('image_size', 224))} pixels in a tower for {image_size}; "
            "clipbias reads a model at its own resolution."
        )
    images = {"image_size": int(image_size), "patch_size": int(patch_size)}
    width, layers, heads, mlp_width = SIZES[size]
    if is_siglip:
        if text.get("proj_type") == "none":
            raise other_network(where, "SigLIP with text_cfg.proj_type = 'none'")
        _check(text, _SIGLIP_TEXT, (*_PLAIN_TEXT, "mlp_ratio", "norm_kwargs", "act_kwargs", "proj_type"), where=where)
        trunk = siglip_vision(siglip_sizes(width, layers, heads=heads, mlp_width=mlp_width), **images)
        return ClipConfig(trunk, _siglip_text(text), model["embed_dim"], "siglip")
    if is_pe:
        _check(text, {}, _PLAIN_TEXT, where=where)
        trunk = pe_vision(width, layers, heads, mlp_width, **images)
        return ClipConfig(trunk, _pe_text(text), model["embed_dim"], "pe")
    known = ("hf_model_name", "hf_tokenizer_name", "hf_model_pretrained", "context_length", "tokenizer_kwargs")
    _check(text, _BERT_TEXT, known, where=where)
    trunk = VisionConfig(
        width,
        layers,
        heads,
        mlp_width,
        activation="gelu",
        layer_norm_epsilon=1e-6,
        image_size=int(image_size),
        patch_size=int(patch_size),
        pre_norm=False,
        patch_bias=True,
    )
    return ClipConfig(trunk, _biomed_text(model["embed_dim"]), model["embed_dim"], "biomed_clip")


def _check(text: Mapping[str, Any], required: Mapping[str, object], known: tuple[str, ...], *, where: str) -> None:
    """Refuses settings that make a text tower another one than its family's."""
    for name, value in required.items():
        if text.get(name) != value:
            raise ClipbiasError(
                f"{where} has text_cfg.{name} = {shown(text.get(name))} where this family has {shown(value)}."
            )
    for name, value in text.items():
        if name not in known and name not in required and value:
            raise other_network(where, f"text_cfg.{shown(name)[1:-1]} = {shown(value)}")


def _siglip_text(text: Mapping[str, Any]) -> TextConfig:
    mlp_width = int(text["width"] * text.get("mlp_ratio", 4))
    return siglip_text(
        siglip_sizes(text["width"], text["layers"], heads=text["heads"], mlp_width=mlp_width),
        vocabulary_size=text["vocab_size"],
        context_length=text["context_length"],
        eos_token_id=text["vocab_size"] - 1,
        pad_token_id=0,  # the tokenizer's, once it is read
    )


def _pe_text(text: Mapping[str, Any]) -> TextConfig:
    return TextConfig(
        width=text["width"],
        layers=text["layers"],
        heads=text["heads"],
        mlp_width=4 * text["width"],
        activation="gelu",
        vocabulary_size=text["vocab_size"],
        context_length=text["context_length"],
        eos_token_id=text["vocab_size"] - 1,
    )


def _biomed_text(projection_width: int) -> TextConfig:
    width, layers, heads, mlp_width = BERT_BASE
    sizes = TowerSizes(width=width, layers=layers, heads=heads, mlp_width=mlp_width, activation="gelu")
    return bert_text(
        {**sizes, "layer_norm_epsilon": 1e-12},
        vocabulary_size=BERT_VOCABULARY,
        context_length=BERT_POSITIONS,
        projection_hidden=(width + projection_width) // 2,
    )


def pe_vision(width: int, layers: int, heads: int, mlp_width: int, *, image_size: int, patch_size: int) -> VisionConfig:
    """Perception Encoder's vision tower: CLIP's with rotary positions, and a pooling head before the projection."""
    return VisionConfig(
        width,
        layers,
        heads,
        mlp_width,
        "gelu",
        image_size=image_size,
        patch_size=patch_size,
        pooling="attention",
        pool_heads=PE_POOL_HEADS,
        rotary=True,
    )


def open_clip_json(config: ClipConfig) -> dict[str, Any]:
    """The inverse of `read_timm`, of the families that transformers lacks: a `model_cfg`."""
    vision = config.vision
    sizes = (vision.width, vision.layers, vision.heads, vision.mlp_width)
    size = next((name for name, values in SIZES.items() if values == sizes), None)
    if size is None:
        raise ClipbiasError(f"timm has no name for a vision tower of these sizes: {vision}; save an adapter instead.")
    core = "pe_core_" if config.family == "pe" else ""
    content: dict[str, Any] = {
        "embed_dim": config.projection_width,
        "vision_cfg": {
            "image_size": vision.image_size,
            "timm_model_name": f"vit_{core}{size}_patch{vision.patch_size}_{vision.image_size}",
            "timm_model_pretrained": False,
            "timm_pool": "map" if core else "",
            "timm_proj": None if core else "linear",
        },
        "custom_text": True,
    }
    text = config.text
    if core:
        content["text_cfg"] = {
            "context_length": text.context_length,
            "vocab_size": text.vocabulary_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
        }
    else:
        name = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
        content["text_cfg"] = {"hf_model_name": name, "hf_tokenizer_name": name, "context_length": 256, **_BERT_TEXT}
    return content
