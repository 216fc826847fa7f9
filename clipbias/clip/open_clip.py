"""open_clip's checkpoints, with the tensor names of OpenAI's own: names, geometry, and what is another network."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from clipbias.clip.config import ClipConfig, TextConfig, VisionConfig
from clipbias.clip.convert import Naming, Row, linear, norm, patches, transposed
from clipbias.clip.preprocess import Preprocessing, preprocessing_of
from clipbias.clip.tensors import Tensor
from clipbias.errors import ClipbiasError
from clipbias.io import read_json, shorten

HEAD_WIDTH = 64  # of every tower for which nothing else is said (Radford et al. 2021)
OPENAI_BUFFERS = frozenset({"input_resolution", "context_length", "vocab_size"})


def _rows(config: ClipConfig) -> list[Row]:
    return [
        patches(config, "visual.conv1.weight"),
        Row("vision/class_embedding", ("visual.class_embedding",)),
        Row("vision/position_embedding", ("visual.positional_embedding",)),
        *norm("vision/pre_norm", "visual.ln_pre"),
        *norm("vision/post_norm", "visual.ln_post"),
        Row("vision/projection", ("visual.proj",)),
        Row("text/token_embedding", ("token_embedding.weight",)),
        Row("text/position_embedding", ("positional_embedding",)),
        *norm("text/final_norm", "ln_final"),
        Row("text/projection", ("text_projection",)),
        Row("logit_scale", ("logit_scale",)),
    ]


OPEN_CLIP = Naming(
    _rows,
    layer=(
        *norm("norm1", "ln_1"),
        Row("qkv/kernel", ("attn.in_proj_weight",), transposed, transposed),
        Row("qkv/bias", ("attn.in_proj_bias",)),
        *linear("out", "attn.out_proj"),
        *norm("norm2", "ln_2"),
        *linear("fc1", "mlp.c_fc"),
        *linear("fc2", "mlp.c_proj"),
    ),
    prefixes={"vision": "visual.transformer.resblocks.{}.", "text": "transformer.resblocks.{}."},
    ignored=OPENAI_BUFFERS | {"attn_mask"},
)

# Networks with tensors of these names compute something else than CLIP's transformers.
OTHERS = [
    (r"visual\.trunk\.", "a vision tower of timm (SigLIP, EVA, ConvNeXt, …)"),
    (r"visual\.(layer1|attnpool)\.", "a CLIP with a ResNet as its vision tower"),
    (r"text_decoder\.|visual\.attn_pool\.", "CoCa"),
    (r"logit_bias$|(vision|text)_model\.head\.", "SigLIP"),
    (r".*\.ls_[12]\.gamma", "a vision transformer with LayerScale"),
    (r"text\.(transformer\.(embeddings|encoder|layers)|proj)\b", "a text tower of Hugging Face (BERT, XLM-R, …)"),
    (r"text_projection\.|text\.cls_emb|cls_emb", "a custom text tower"),
]

# What may be said of a tower without changing its network; `...` stands for any value.
COMMON = {
    "width": ...,
    "layers": ...,
    "mlp_ratio": ...,
    "output_tokens": ...,
    "norm_kwargs": ...,
    "block_type": "default",
}
TOWERS: dict[str, dict[str, Any]] = {
    "vision_cfg": COMMON
    | {"image_size": ..., "patch_size": ..., "head_width": ..., "patch_dropout": ..., "pool_type": "tok"}
    | {"attn_pooler_queries": ..., "attn_pooler_heads": ..., "pos_embed_type": ..., "timm_model_pretrained": ...}
    | {"timm_pool": ..., "timm_proj": ..., "timm_proj_bias": ..., "timm_drop": ..., "timm_drop_path": ...},
    "text_cfg": COMMON
    | {"context_length": ..., "vocab_size": ..., "heads": ..., "pool_type": "argmax", "proj_type": "linear"}
    | {"hf_tokenizer_name": ..., "tokenizer_kwargs": ..., "tokenizer_mode": ..., "pad_id": ..., "eos_id": ...}
    | {"hf_model_pretrained": ..., "hf_proj_type": ..., "hf_pooler_type": ...},
}
MODEL = {"embed_dim": ..., "vision_cfg": ..., "text_cfg": ..., "quick_gelu": ..., "custom_text": ...} | {
    "init_logit_scale": ...,
    "nonscalar_logit_scale": ...,
}
NAMED = {
    "timm_model_name": "a vision tower of timm",
    "hf_model_name": "a text tower of Hugging Face",
    "multimodal_cfg": "CoCa",
    "init_logit_bias": "SigLIP",
}


def named_as_in_open_clip(tensors: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """The tensors under the names of `OPEN_CLIP`: a text tower of its own (`text.`) is one name shorter there.

    Raises:
      ClipbiasError: the names belong to another network, with what it is.
    """
    refuse_others(tensors, where=where)
    return {re.sub(r"^text\.(?!transformer\.(?!resblocks))", "", name): tensor for name, tensor in tensors.items()}


def refuse_others(names: Collection[str], *, where: str) -> None:
    """Raises `ClipbiasError` where tensors have the names of another network, with what it is."""
    for pattern, what in OTHERS:
        for name in names:
            if re.match(pattern, name) and not (name == "text_projection.weight" and "visual.proj" not in names):
                raise ClipbiasError(
                    f"{where} holds {what} (its tensor {shorten(ascii(name)[1:-1])}); clipbias loads CLIP's own two "
                    "transformers."
                )


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
        _check_keys(path, "", model, MODEL)
        for tower, allowed in TOWERS.items():
            _check_keys(path, f"{tower}.", model[tower], allowed)
        config = _geometry(model)
        wishes = content.get("preprocess_cfg") or {}
        if (wishes.get("interpolation") or "bicubic", wishes.get("resize_mode") or "shortest") != (
            "bicubic",
            "shortest",
        ):
            logging.warning(
                "%s asks for images resized by %s (%s); clipbias resizes the shorter side, bicubic, and crops.",
                *(path, wishes.get("resize_mode"), wishes.get("interpolation")),
            )
        preprocessing = preprocessing_of(config.vision.image_size, wishes.get("mean"), wishes.get("std"))
    except ClipbiasError as error:
        raise error if str(path) in str(error) else ClipbiasError(f"{path}: {error}") from error
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, ArithmeticError) as error:
        words = f"lacks {error}" if isinstance(error, KeyError) else shorten(str(error), 200)
        raise ClipbiasError(f"{path} is not an open_clip configuration ({words}); fetch it again.") from error
    return config, preprocessing, "quick_gelu" in model


def _check_keys(path: Path, prefix: str, found: Mapping[str, Any], allowed: Mapping[str, Any]) -> None:
    if isinstance(found.get("layers"), list):
        raise ClipbiasError(f"{path} describes a CLIP with a ResNet as its vision tower; clipbias loads transformers.")
    for key, value in found.items():
        if key in NAMED and value is not None:
            said = f" ({shorten(str(value))})" if isinstance(value, str) else ""
            raise ClipbiasError(f"{path} describes {NAMED[key]}{said}; clipbias loads CLIP's own two transformers.")
        if value and allowed.get(key) not in (..., value):
            raise ClipbiasError(
                f"{path} asks for {shorten(ascii(prefix + key)[1:-1])} = {shorten(ascii(value))}, which makes it "
                "another network than CLIP's own."
            )


def _geometry(model: Mapping[str, Any]) -> ClipConfig:
    vision, text = model["vision_cfg"], model["text_cfg"]
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"

    def tower(c: Mapping[str, Any], heads: int) -> dict[str, Any]:
        norm_options = dict(c.get("norm_kwargs") or {})
        epsilon = norm_options.pop("eps", 1e-5)
        if norm_options:
            raise ValueError("norm_kwargs holds more than eps")
        return dict(
            width=c["width"],
            layers=c["layers"],
            heads=heads,
            mlp_width=int(c["width"] * c.get("mlp_ratio", 4)),
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
