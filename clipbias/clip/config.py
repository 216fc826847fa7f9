"""Geometry of a model, read from a checkpoint's own configuration. No size is written in code."""

import dataclasses
from typing import Any, NotRequired, TypedDict

from clipbias.checks import check_choice, check_int, check_number
from clipbias.errors import ClipbiasError

# Far beyond every CLIP, and small enough that products of three sizes still fit 64 bits.
LARGEST_SIZE = 10**6


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """What the transformer blocks of both towers have in common.

    Attributes:
      width: token width `D`.
      layers: number of transformer blocks `L`.
      heads: number of attention heads `H`; a head is `width // heads` wide.
      mlp_width: hidden width of the MLP.
      activation: "quick_gelu" (OpenAI), "gelu" (most LAION re-trainings) or "gelu_tanh" (SigLIP).
      layer_norm_epsilon: added to the variance in every LayerNorm.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type is int:
                lowest = 0 if field.name.endswith("token_id") else 1
                check_int(f"the model's {field.name}", getattr(self, field.name), lowest=lowest, highest=LARGEST_SIZE)
        if self.width % self.heads:
            raise ClipbiasError(f"the width {self.width} cannot be divided among {self.heads} attention heads.")
        check_choice("the model's activation", self.activation, ("quick_gelu", "gelu", "gelu_tanh"))
        check_number("the model's layer_norm_epsilon", self.layer_norm_epsilon, lowest=0)


class TowerSizes(TypedDict):
    """The fields of `TowerConfig`, as a checkpoint's configuration or shapes give them for either tower."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str
    layer_norm_epsilon: NotRequired[float]


@dataclasses.dataclass(frozen=True)
class VisionConfig(TowerConfig):
    """The vision tower: square images of `image_size` pixels cut into square patches of `patch_size` pixels.

    Attributes:
      image_size, patch_size: in pixels. SigLIP's images may have a margin at the right and bottom that fills no patch.
      pooling: "cls" where the feature is read at the `[cls]` token; "attention" where there is none, and a learned
        query attends to the patches (`pooling.py`).
    """

    image_size: int = dataclasses.field(kw_only=True)
    patch_size: int = dataclasses.field(kw_only=True)
    pooling: str = dataclasses.field(default="cls", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("the model's pooling", self.pooling, ("cls", "attention"))
        if self.image_size % self.patch_size and self.pooling == "cls":
            raise ClipbiasError(
                f"the image size {self.image_size} is not a multiple of the patch size {self.patch_size}."
            )

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """The number of patches `M`."""
        return self.grid**2

    @property
    def kinds(self) -> int:
        """The kinds of tokens: patches, and before them `[cls]` where there is one."""
        return 2 if self.pooling == "cls" else 1

    @property
    def first_patch(self) -> int:
        """The position of the first patch: the number of tokens before it."""
        return self.kinds - 1

    @property
    def tokens(self) -> int:
        """The number of tokens without prompts."""
        return self.first_patch + self.patches


@dataclasses.dataclass(frozen=True)
class TextConfig(TowerConfig):
    """The text tower.

    Attributes:
      vocabulary_size, context_length: numbers of token ids and of positions.
      eos_token_id: marks the token whose row is the text feature, where the tower is causal.
      causal: whether a token attends to those before it alone. If not, it attends to all positions, padding included,
        and the feature is the last position's row.
      pad_token_id: fills the context.
    """

    vocabulary_size: int = dataclasses.field(kw_only=True)
    context_length: int = dataclasses.field(kw_only=True)
    eos_token_id: int = dataclasses.field(kw_only=True)
    causal: bool = dataclasses.field(default=True, kw_only=True)
    pad_token_id: int = dataclasses.field(default=0, kw_only=True)

    @property
    def first_word(self) -> int:
        """The position of a text's first word: 1, behind SOS; 0 in a tower that is not causal and has no SOS."""
        return int(self.causal)


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Both towers and the joint width `d` of their features. Hashable, so it can be a static argument of `jit`.

    Attributes:
      family: the `model_type` of its `config.json`.
    """

    vision: VisionConfig
    text: TextConfig
    projection_width: int
    family: str = "clip"

    def __post_init__(self) -> None:
        check_int("the model's projection_width", self.projection_width, lowest=1, highest=LARGEST_SIZE)
        if self.vision.pooling == "attention" and self.vision.width != self.projection_width:
            raise ClipbiasError(
                f"images have features of width {self.vision.width} and texts of width {self.projection_width}; they "
                "must be equal where no projection follows the pooling head."
            )

    @property
    def common_blocks(self) -> int:
        """The number of blocks of the shallower tower: those with the same number in both."""
        return min(self.vision.layers, self.text.layers)


# Hugging Face's name of SigLIP's activation; other activations have the same names.
_GELU_TANH = "gelu_pytorch_tanh"
# The classes that `transformers` has for a family, by the `model_type` of its `config.json`.
MODELS = {"clip": "CLIPModel", "metaclip_2": "MetaClip2Model", "siglip": "SiglipModel"}


def from_hugging_face(config: Any) -> ClipConfig:
    """Reads the geometry from a configuration of `transformers`, of a family in `MODELS`.

    OpenAI's published configurations of CLIP have a wrong end-of-text token (2). The original code never reads it: it
    takes the largest id. MetaCLIP 2's configurations have the right token.
    """
    vision = config.vision_config
    text = config.text_config
    family = config.model_type
    if vision.num_channels != 3:
        raise ClipbiasError(f"config.json asks for {vision.num_channels} image channels; only RGB (3) is supported.")
    if not getattr(vision, "vision_use_head", True):
        raise ClipbiasError("config.json describes a vision tower without its pooling head; clipbias needs that.")

    siglip = family == "siglip"
    return ClipConfig(
        vision=VisionConfig(
            **_tower_sizes(vision),
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            pooling="attention" if siglip else "cls",
        ),
        text=TextConfig(
            **_tower_sizes(text),
            vocabulary_size=text.vocab_size,
            context_length=text.max_position_embeddings,
            eos_token_id=text.eos_token_id if family == "metaclip_2" else text.vocab_size - 1,
            causal=not siglip,
            pad_token_id=(text.pad_token_id or 0) if siglip else 0,
        ),
        projection_width=text.projection_size if siglip else config.projection_dim,
        family=family,
    )


def _tower_sizes(part: Any) -> TowerSizes:
    return TowerSizes(
        width=part.hidden_size,
        layers=part.num_hidden_layers,
        heads=part.num_attention_heads,
        mlp_width=part.intermediate_size,
        activation="gelu_tanh" if part.hidden_act == _GELU_TANH else part.hidden_act,
        layer_norm_epsilon=part.layer_norm_eps,
    )


def to_hugging_face(config: ClipConfig) -> dict[str, Any]:
    """The inverse of `from_hugging_face`: the content of a `config.json`."""
    vision = _tower_json(config.vision) | {
        "model_type": f"{config.family}_vision_model",
        "num_channels": 3,
        "image_size": config.vision.image_size,
        "patch_size": config.vision.patch_size,
    }
    text = _tower_json(config.text) | {
        "model_type": f"{config.family}_text_model",
        "vocab_size": config.text.vocabulary_size,
        "max_position_embeddings": config.text.context_length,
        "eos_token_id": config.text.eos_token_id,
    }
    content: dict[str, Any] = {
        "architectures": [MODELS[config.family]],
        "model_type": config.family,
        "vision_config": vision,
        "text_config": text,
    }
    if config.family == "siglip":
        text |= {"projection_size": config.projection_width, "pad_token_id": config.text.pad_token_id}
    else:
        for part in (content, vision, text):
            part["projection_dim"] = config.projection_width
    return content


def _tower_json(tower: TowerConfig) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.mlp_width,
        "hidden_act": _GELU_TANH if tower.activation == "gelu_tanh" else tower.activation,
        "layer_norm_eps": tower.layer_norm_epsilon,
    }
