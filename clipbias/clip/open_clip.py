"""Reads open_clip's configurations: the geometry of a model, or an error that names another network."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipbias.clip.config import ClipConfig, TextConfig, TowerSizes, VisionConfig, other_network
from clipbias.clip.open_clip_timm import read_timm
from clipbias.clip.preprocess import Preprocessing
from clipbias.clip.preprocess_files import of_open_clip
from clipbias.clip.shapes import HEAD_WIDTH
from clipbias.errors import ClipbiasError
from clipbias.io import read_json, shorten


# The keys that a configuration of CLIP's own network may have, and their values; `...` stands for any value.
def _any(names: str) -> dict[str, object]:
    return dict.fromkeys(names.split(), ...)


_TOWER = _any("width layers mlp_ratio output_tokens norm_kwargs") | {"block_type": "default"}
VISION = _any(
    "image_size patch_size head_width patch_dropout pos_embed_type attn_pooler_queries attn_pooler_heads "
    "timm_model_pretrained timm_pool timm_proj timm_proj_bias timm_drop timm_drop_path"
) | {**_TOWER, "pool_type": "tok"}
TEXT = _any(
    "context_length vocab_size heads hf_tokenizer_name tokenizer_kwargs tokenizer_mode pad_id eos_id "
    "hf_model_pretrained hf_proj_type hf_pooler_type"
) | {**_TOWER, "pool_type": "argmax", "proj_type": "linear"}
MODEL = _any("embed_dim vision_cfg text_cfg quick_gelu custom_text init_logit_scale nonscalar_logit_scale")
EPSILON = 1e-5  # of open_clip's LayerNorms, where a file names none
METACLIP_2 = {"pool_type": "eos"}  # in place of the largest id


def read_config(path: Path) -> tuple[ClipConfig, Preprocessing, bool]:
    """Reads an `open_clip_config.json`.

    Returns:
      The geometry, the preprocessing, and whether the file says which activation the model has. Where it does not,
      the geometry has open_clip's default, GELU.

    Raises:
      ClipbiasError: it describes another network, or is no such file.
    """
    content = read_json(path, dict, what="an open_clip configuration")
    try:
        model = content["model_cfg"]
        config = _network(model, str(path))
        preprocessing = of_open_clip(content.get("preprocess_cfg") or {}, config.vision.image_size)
    except ClipbiasError as error:
        raise error if str(path) in str(error) else ClipbiasError(f"{path}: {error}") from error
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, ArithmeticError) as error:
        words = f"lacks {error}" if isinstance(error, KeyError) else shorten(str(error), 200)
        raise ClipbiasError(f"{path} is not an open_clip configuration ({words}); fetch it again.") from error
    return config, preprocessing, config.family != "clip" or "quick_gelu" in model


def _network(model: Mapping[str, Any], where: str) -> ClipConfig:
    if model["vision_cfg"].get("timm_model_name") is not None:
        return read_timm(model, where=where)
    ends_by_id = model["text_cfg"].get("pool_type") == "eos"
    _check_keys(where, "", model, MODEL)
    _check_keys(where, "vision_cfg.", model["vision_cfg"], VISION)
    _check_keys(where, "text_cfg.", model["text_cfg"], TEXT | METACLIP_2 if ends_by_id else TEXT)
    config = _geometry(model)
    if not ends_by_id:
        return config
    text = dataclasses.replace(config.text, eos_token_id=model["text_cfg"]["eos_id"])
    return dataclasses.replace(config, text=text, family="metaclip_2")


def model_json(config: ClipConfig, *, own_tokenizer: bool) -> dict[str, Any]:
    """The inverse of `read_config` for CLIP's own network: a `model_cfg`.

    Args:
      config: the geometry.
      own_tokenizer: whether texts are cut by the tokenizer's files beside it, not by CLIP's vocabulary.

    Raises:
      ClipbiasError: open_clip has no such network.
    """
    towers = (config.vision, config.text)
    if config.family != "clip" or len({tower.activation for tower in towers}) > 1:
        raise ClipbiasError("only CLIP's own network is written in open_clip's format; choose 'safetensors'.")
    if config.text.eos_token_id != config.text.vocabulary_size - 1:
        raise ClipbiasError("open_clip takes the largest id for the end of a text, and this model has another one.")

    def tower(settings: VisionConfig | TextConfig) -> dict[str, Any]:
        content: dict[str, Any] = {
            "width": settings.width,
            "layers": settings.layers,
            "mlp_ratio": settings.mlp_width / settings.width,
        }
        if settings.layer_norm_epsilon != EPSILON:
            content["norm_kwargs"] = {"eps": settings.layer_norm_epsilon}
        return content

    vision = config.vision
    text = config.text
    return {
        "embed_dim": config.projection_width,
        "quick_gelu": text.activation == "quick_gelu",
        "vision_cfg": tower(vision)
        | {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "head_width": vision.width // vision.heads,
        },
        "text_cfg": tower(text)
        | {"context_length": text.context_length, "vocab_size": text.vocabulary_size, "heads": text.heads}
        # open_clip looks for the files of a tokenizer in the folder itself, whatever this names.
        | ({"hf_tokenizer_name": "."} if own_tokenizer else {}),
    }


def _check_keys(where: str, prefix: str, settings: Mapping[str, object], allowed: Mapping[str, object]) -> None:
    for key, value in settings.items():
        # The layers of a ResNet are a list: the numbers of blocks of its stages.
        if (value and allowed.get(key) not in (..., value)) or (key == "layers" and isinstance(value, list)):
            raise other_network(where, f"{shorten(ascii(prefix + key)[1:-1])} = {shorten(ascii(value))}")


def _geometry(model: Mapping[str, Any]) -> ClipConfig:
    vision = model["vision_cfg"]
    text = model["text_cfg"]
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"

    def tower(settings: Mapping[str, Any], heads: int) -> TowerSizes:
        norm_options = dict(settings.get("norm_kwargs") or {})
        epsilon = norm_options.pop("eps", EPSILON)
        if norm_options:
            raise ValueError("norm_kwargs holds more than eps")
        return TowerSizes(
            width=settings["width"],
            layers=settings["layers"],
            heads=heads,
            mlp_width=int(settings["width"] * settings.get("mlp_ratio", 4)),
            activation=activation,
            layer_norm_epsilon=epsilon,
        )

    vocabulary = text.get("vocab_size", 49408)
    return ClipConfig(
        vision=VisionConfig(
            **tower(vision, vision["width"] // vision.get("head_width", HEAD_WIDTH)),
            image_size=_side(vision.get("image_size", 224)),
            patch_size=_side(vision["patch_size"]),
        ),
        text=TextConfig(
            **tower(text, text["heads"]),
            vocabulary_size=vocabulary,
            context_length=text.get("context_length", 77),
            eos_token_id=vocabulary - 1,  # open_clip looks for the largest id
        ),
        projection_width=model["embed_dim"],
    )


def _side(size: Any) -> Any:
    if not isinstance(size, list):
        return size
    if len(set(size)) != 1:
        raise ValueError("its images or patches are not square")
    return size[0]
