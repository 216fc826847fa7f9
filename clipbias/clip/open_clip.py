"""Geometry of a model from open_clip's configurations, or from the shapes of tensors without a configuration."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipbias.checks import shown
from clipbias.clip.config import (
    BERT_TEXT,
    SIGLIP_TEXT,
    SIGLIP_VISION,
    ClipConfig,
    TextConfig,
    TowerConfig,
    VisionConfig,
    other_network,
)
from clipbias.clip.formats import Tensor
from clipbias.clip.preprocess import Preprocessing, of_open_clip
from clipbias.clip.tables import NameTable
from clipbias.errors import ClipbiasError
from clipbias.io import read_json, reason, shorten

# Width, layers, heads and hidden width by the size in the name of timm's tower: files that name it leave them out.
TIMM_SIZES = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
TIMM_TOWER = re.compile(r"vit_(?:(pe)_core_)?([a-z0-9]+)_patch(\d+)(?:_(siglip))?_(\d+)")
# Perception Encoder's vision tower: CLIP's with rotary positions, and a pooling head before the projection.
PE_VISION: dict[str, Any] = {"activation": "gelu", "pooling": "attention", "pool_heads": 8, "rotary": True}
BIOMED_VISION: dict[str, Any] = {
    "activation": "gelu",
    "layer_norm_epsilon": 1e-6,
    "pre_norm": False,
    "patch_bias": True,
}
# BiomedCLIP's file names its text tower without any sizes.
BIOMED = re.compile(r"microsoft/BiomedNLP-(BiomedBERT|PubMedBERT)-base-uncased-abstract(-fulltext)?", re.IGNORECASE)
BERT_BASE = (768, 12, 12, 3072)
BERT_VOCABULARY, BERT_POSITIONS = 30522, 512


# Keys that parts of a `model_cfg` may have, and their values; `...` allows any value. open_clip has hundreds of
# settings; an unknown one may change the network, so it is an error.
def _any(keys: str) -> dict[str, object]:
    return dict.fromkeys(keys.split(), ...)


_TOWER_KEYS = _any("width layers mlp_ratio output_tokens norm_kwargs") | {"block_type": "default"}
VISION_KEYS = _any(
    "image_size patch_size head_width patch_dropout pos_embed_type attn_pooler_queries attn_pooler_heads "
    "timm_model_pretrained timm_pool timm_proj timm_proj_bias timm_drop timm_drop_path"
) | {**_TOWER_KEYS, "pool_type": "tok"}
TEXT_KEYS = _any(
    "context_length vocab_size heads hf_tokenizer_name tokenizer_kwargs tokenizer_mode pad_id eos_id "
    "hf_model_pretrained hf_proj_type hf_pooler_type"
) | {**_TOWER_KEYS, "pool_type": "argmax", "proj_type": "linear"}
MODEL_KEYS = _any("embed_dim vision_cfg text_cfg quick_gelu custom_text init_logit_scale nonscalar_logit_scale")
# Text towers beside timm's vision towers, by family: keys with a required value, and other keys.
_PLAIN_TEXT = _any("context_length vocab_size width heads layers hf_tokenizer_name tokenizer_kwargs")
TIMM_TEXT: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "siglip": (
        {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        _PLAIN_TEXT | _any("mlp_ratio norm_kwargs act_kwargs") | {"proj_type": "linear"},
    ),
    "pe": ({}, _PLAIN_TEXT),
    "biomed_clip": (
        {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"},
        _any("hf_model_name hf_tokenizer_name hf_model_pretrained context_length tokenizer_kwargs"),
    ),
}
EPSILON = 1e-5  # default of open_clip's LayerNorms


def _check_keys(where: str, prefix: str, settings: Mapping[str, object], allowed: Mapping[str, object]) -> None:
    for key, value in settings.items():
        # The layers of a ResNet are a list: the numbers of blocks of its stages.
        if (value and allowed.get(key) not in (..., value)) or (key == "layers" and isinstance(value, list)):
            raise other_network(where, f"{shorten(ascii(prefix + key)[1:-1])} = {shorten(ascii(value))}")


def read_config(path: Path) -> tuple[ClipConfig, Preprocessing, bool]:
    """Reads an `open_clip_config.json`: geometry, preprocessing, and whether it names the activation (else GELU)."""
    content = read_json(path, dict, what="an open_clip configuration")
    try:
        model = content["model_cfg"]
        has_timm = model["vision_cfg"].get("timm_model_name") is not None
        config = _timm_network(model, str(path)) if has_timm else _network(model, str(path))
        preprocessing = of_open_clip(content.get("preprocess_cfg") or {}, config.vision.image_size)
    except ClipbiasError as error:
        raise error if str(path) in str(error) else ClipbiasError(f"{path}: {error}") from error
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, ArithmeticError) as error:
        words = f"lacks {error}" if isinstance(error, KeyError) else reason(error)
        raise ClipbiasError(f"{path} is not an open_clip configuration ({words}); fetch it again.") from error
    return config, preprocessing, config.family != "clip" or "quick_gelu" in model


def _network(model: Mapping[str, Any], where: str) -> ClipConfig:
    vision = model["vision_cfg"]
    text = model["text_cfg"]
    # open_clip knows no families; this setting is MetaCLIP 2's alone.
    is_metaclip_2 = text.get("pool_type") == "eos"  # CLIP's end is the largest id
    _check_keys(where, "", model, MODEL_KEYS)
    _check_keys(where, "vision_cfg.", vision, VISION_KEYS)
    _check_keys(where, "text_cfg.", text, TEXT_KEYS | {"pool_type": "eos"} if is_metaclip_2 else TEXT_KEYS)

    def tower(settings: Mapping[str, Any], heads: int) -> dict[str, Any]:
        norm_options = dict(settings.get("norm_kwargs") or {})
        # Other options of a LayerNorm would change numbers, and the network has none of them.
        epsilon = norm_options.pop("eps", EPSILON)
        if norm_options:
            raise ValueError("norm_kwargs holds more than eps")
        return {
            "width": settings["width"],
            "layers": settings["layers"],
            "heads": heads,
            "mlp_width": int(settings["width"] * settings.get("mlp_ratio", 4)),
            "activation": "quick_gelu" if model.get("quick_gelu") else "gelu",
            "layer_norm_epsilon": epsilon,
        }

    def side(size: Any) -> Any:
        # Some files give height and width.
        if isinstance(size, list) and len(set(size)) != 1:
            raise ValueError("its images or patches are not square")
        return size[0] if isinstance(size, list) else size

    vocabulary = text.get("vocab_size", 49408)
    return ClipConfig(
        vision=VisionConfig(
            **tower(vision, vision["width"] // vision.get("head_width", HEAD_WIDTH)),
            image_size=side(vision.get("image_size", 224)),
            patch_size=side(vision["patch_size"]),
        ),
        text=TextConfig(
            **tower(text, text["heads"]),
            vocabulary_size=vocabulary,
            context_length=text.get("context_length", 77),
            eos_token_id=text["eos_id"] if is_metaclip_2 else vocabulary - 1,
        ),
        projection_width=model["embed_dim"],
        family="metaclip_2" if is_metaclip_2 else "clip",
    )


def _timm_network(model: Mapping[str, Any], where: str) -> ClipConfig:
    vision = model["vision_cfg"]
    text = model["text_cfg"]
    name = vision["timm_model_name"]
    match = TIMM_TOWER.fullmatch(name)
    if match is None or match[2] not in TIMM_SIZES:
        raise other_network(where, f"vision_cfg.timm_model_name = {shown(name)}")
    # timm's names carry patch size, family and resolution: vit_base_patch16_siglip_224.
    is_pe, size, patch_size, is_siglip, image_size = match.groups()
    family = "siglip" if is_siglip else "pe" if is_pe else "biomed_clip"
    if family == "biomed_clip" and not BIOMED.fullmatch(str(text.get("hf_model_name"))):
        raise other_network(where, f"{shown(name)} with text_cfg.hf_model_name = {shown(text.get('hf_model_name'))}")
    # open_clip would interpolate the position embeddings to another resolution; the weights here are read as they are.
    if (asked := vision.get("image_size", 224)) != int(image_size):
        raise ClipbiasError(f"{where} asks for images of {shown(asked)} pixels in a tower for {image_size}.")
    required, others = TIMM_TEXT[family]
    _check_keys(where, "text_cfg.", text, required | others)
    # timm's towers come with many text towers; each of these keys changes the network.
    for key, value in required.items():
        if text.get(key) != value:
            raise other_network(where, f"text_cfg.{key} = {shown(text.get(key))} where {family} has {shown(value)}")

    trunk: dict[str, Any] = dict(zip(("width", "layers", "heads", "mlp_width"), TIMM_SIZES[size], strict=True))
    trunk |= {"image_size": int(image_size), "patch_size": int(patch_size)}
    if family == "biomed_clip":
        tower = TextConfig(
            *BERT_BASE,
            **BERT_TEXT,
            vocabulary_size=BERT_VOCABULARY,
            context_length=BERT_POSITIONS,
            eos_token_id=BERT_VOCABULARY - 1,  # its tokenizer has the right one
            projection_hidden=(BERT_BASE[0] + model["embed_dim"]) // 2,
        )
        return ClipConfig(VisionConfig(**BIOMED_VISION, **trunk), tower, model["embed_dim"], family)
    # SigLIP pools with as many heads as its blocks have, Perception Encoder with eight.
    settings = {"pool_heads": trunk["heads"], **SIGLIP_VISION} if is_siglip else PE_VISION
    tower = TextConfig(
        width=text["width"],
        layers=text["layers"],
        heads=text["heads"],
        mlp_width=int(text["width"] * text.get("mlp_ratio", 4)),
        **(SIGLIP_TEXT if is_siglip else {"activation": "gelu"}),
        vocabulary_size=text["vocab_size"],
        context_length=text["context_length"],
        eos_token_id=text["vocab_size"] - 1,
    )
    return ClipConfig(VisionConfig(**settings, **trunk), tower, model["embed_dim"], family)


def model_json(config: ClipConfig, *, own_tokenizer: bool) -> dict[str, Any]:
    """Returns a `model_cfg`, the inverse of `read_config`. Raises `ClipbiasError` if open_clip has no such network."""
    vision = config.vision
    text = config.text
    plain_text = {"context_length": text.context_length, "vocab_size": text.vocabulary_size, "heads": text.heads}
    if config.family == "clip":
        if vision.activation != text.activation:
            raise ClipbiasError("open_clip has one activation for both towers; choose 'safetensors'.")
        if text.eos_token_id != text.vocabulary_size - 1:
            raise ClipbiasError("open_clip takes the largest id for the end of a text, and this model has another end.")

        def tower(settings: TowerConfig) -> dict[str, Any]:
            ratio = settings.mlp_width / settings.width
            content: dict[str, Any] = {"width": settings.width, "layers": settings.layers, "mlp_ratio": ratio}
            if settings.layer_norm_epsilon != EPSILON:
                content["norm_kwargs"] = {"eps": settings.layer_norm_epsilon}
            return content

        sides = {"image_size": vision.image_size, "patch_size": vision.patch_size}
        return {
            "embed_dim": config.projection_width,
            "quick_gelu": text.activation == "quick_gelu",
            "vision_cfg": {**tower(vision), **sides, "head_width": vision.width // vision.heads},
            # With any name here, open_clip looks for the files of a tokenizer in the folder.
            "text_cfg": {**tower(text), **plain_text, **({"hf_tokenizer_name": "."} if own_tokenizer else {})},
        }
    sizes = (vision.width, vision.layers, vision.heads, vision.mlp_width)
    # open_clip builds timm's tower by its name, so that only named sizes can be written.
    size = next((name for name, values in TIMM_SIZES.items() if values == sizes), None)
    if size is None:
        raise ClipbiasError(f"timm has no name for a vision tower of these sizes: {vision}; save an adapter instead.")
    is_pe = config.family == "pe"
    bert = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    bert_text = {"hf_model_name": bert, "hf_tokenizer_name": bert, "context_length": 256, **TIMM_TEXT["biomed_clip"][0]}
    return {
        "embed_dim": config.projection_width,
        "vision_cfg": {
            "image_size": vision.image_size,
            "timm_model_name": f"vit_{'pe_core_' if is_pe else ''}{size}_patch{vision.patch_size}_{vision.image_size}",
            "timm_model_pretrained": False,
            "timm_pool": "map" if is_pe else "",
            "timm_proj": None if is_pe else "linear",
        },
        "custom_text": True,
        "text_cfg": {**plain_text, "width": text.width, "layers": text.layers} if is_pe else bert_text,
    }


# Geometry from the shapes of tensors.

HEAD_WIDTH = 64  # default of all towers (Radford et al. 2021)
# Wider towers have heads of 80, 88, 104 or 112 channels, which are not in the shapes.
WIDEST = 1024


def config_from_shapes(tensors: Mapping[str, Tensor], table: NameTable, *, activation: str, where: str) -> ClipConfig:
    """Derives the geometry from shapes, as OpenAI's code does. Raises `ClipbiasError` for tensors of other models."""
    # Heads are 64 wide and the activation comes from the caller: neither is in the shapes.
    by_name = {table.plain(name): tensor for name, tensor in tensors.items()}
    family = table.families[0]
    if family == "pe" and "visual.class_embedding" not in by_name:
        raise other_network(where, "a Perception Encoder without visual.class_embedding")

    def shape(path: str) -> tuple[int, ...]:
        """Returns the shape of a leaf of the parameter tree, or of its first block."""
        # Looked up by the leaf, so that every format with a table has shapes.
        row = next(row for row in table.tensors if row.path == path)
        name = row.name.format(0)
        try:
            leaf = row.layout.load(np.broadcast_to(np.float32(0), by_name[name].shape))
        except (KeyError, ValueError) as error:
            raise ClipbiasError(f"{where} is not a CLIP model: it has no {name} of CLIP's.") from error
        return leaf.shape if leaf.ndim == 2 else (0, 0)  # a size of 0 is refused below

    def tower(name: str, width: int) -> dict[str, Any]:
        row = next(row for row in table.tensors if row.path == f"{name}/layers/norm1/scale")
        block = re.compile(re.escape(row.name).replace(r"\{\}", r"\d+"))
        return {
            "width": width,
            "layers": sum(block.fullmatch(key) is not None for key in by_name),
            "heads": max(width // HEAD_WIDTH, 1),
            "mlp_width": shape(f"{name}/layers/fc1/kernel")[1],
            "activation": activation,
        }

    # [p·p·3, Dv]: the patch size follows from the inputs, the grid from the position embeddings.
    inputs, width = shape("vision/patch_embedding")
    if width > WIDEST or family in ("siglip", "biomed_clip"):
        raise ClipbiasError(
            f"{where} holds {family} of width {width:,}, whose number of heads is not in the shapes; put its "
            "config.json or open_clip_config.json beside it."
        )
    patch = math.isqrt(inputs // 3)
    grid = math.isqrt(max(shape("vision/position_embedding")[0] - 1, 0))
    vocabulary, text_width = shape("text/token_embedding")
    length = shape("text/position_embedding")[0]
    projection_width = shape("text/projection")[1]
    try:
        sizes = tower("vision", width) | {"image_size": grid * patch, "patch_size": patch}
        text_sizes = tower("text", text_width) | {"vocabulary_size": vocabulary, "context_length": length}
        # OpenAI's code reads the row of the largest id; with another vocabulary the tokenizer decides (`load`).
        text_sizes["eos_token_id"] = vocabulary - 1
        if family == "chinese_clip":
            text_sizes |= BERT_TEXT
        if family == "pe":
            sizes |= PE_VISION
        return ClipConfig(VisionConfig(**sizes), TextConfig(**text_sizes), projection_width, family)
    except (ClipbiasError, ArithmeticError) as error:
        raise error if where in str(error) else ClipbiasError(f"{where} is not a CLIP model: {error}") from error
