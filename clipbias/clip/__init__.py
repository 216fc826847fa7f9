"""The frozen model: geometry, pure forward functions, weights in and out, tokenizer, image preprocessing."""

from clipbias.clip.adaptation import Adaptation
from clipbias.clip.checkpoint import Clip, load
from clipbias.clip.config import ClipConfig, TextConfig, VisionConfig
from clipbias.clip.module import ClipModule
from clipbias.clip.packed_text import PackedTokens, encode_packed_text, pack
from clipbias.clip.params import abstract_params, init_params
from clipbias.clip.preprocess import Preprocessing
from clipbias.clip.text import TextTokens, encode_text
from clipbias.clip.tower import LayerView
from clipbias.clip.vision import encode_image

__all__ = [
    "Adaptation",
    "Clip",
    "ClipConfig",
    "ClipModule",
    "LayerView",
    "PackedTokens",
    "Preprocessing",
    "TextConfig",
    "TextTokens",
    "VisionConfig",
    "abstract_params",
    "encode_image",
    "encode_packed_text",
    "encode_text",
    "init_params",
    "load",
    "pack",
]
