"""Geometry of a CLIP model, read from a checkpoint's own configuration. No size is written in code."""

import dataclasses
from collections.abc import Mapping
from typing import Any

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
      activation: "quick_gelu" (OpenAI) or "gelu" (most LAION re-trainings).
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
                check_int(f"the model's {field.name}", getattr(self, field.name), lowest=1, highest=LARGEST_SIZE)
        if self.width % self.heads:
            raise ClipbiasError(f"the width {self.width} cannot be divided among {self.heads} attention heads.")
        check_choice("the model's activation", self.activation, ("quick_gelu", "gelu"))
        check_number("the model's layer_norm_epsilon", self.layer_norm_epsilon, lowest=0)


@dataclasses.dataclass(frozen=True)
class VisionConfig(TowerConfig):
    """The vision tower: square images of `image_size` pixels cut into square patches of `patch_size` pixels."""

    image_size: int = dataclasses.field(kw_only=True)
    patch_size: int = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.patch_size:
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


@dataclasses.dataclass(frozen=True)
class TextConfig(TowerConfig):
    """The text tower; `eos_token_id` marks the token whose row is the text feature."""

    vocabulary_size: int = dataclasses.field(kw_only=True)
    context_length: int = dataclasses.field(kw_only=True)
    eos_token_id: int = dataclasses.field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Both towers and the joint width `d` of their features. Hashable, so it can be a static argument of `jit`."""

    vision: VisionConfig
    text: TextConfig
    projection_width: int

    def __post_init__(self) -> None:
        check_int("the model's projection_width", self.projection_width, lowest=1, highest=LARGEST_SIZE)

    @property
    def common_blocks(self) -> int:
        """The number of blocks of the shallower tower: those with the same number in both."""
        return min(self.vision.layers, self.text.layers)


# The names of these fields in a `config.json`.
_TOWER = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "activation": "hidden_act",
    "layer_norm_epsilon": "layer_norm_eps",
}
_VISION = _TOWER | {"image_size": "image_size", "patch_size": "patch_size"}
_TEXT = _TOWER | {"vocabulary_size": "vocab_size", "context_length": "max_position_embeddings"}


def from_hugging_face(config: Any) -> ClipConfig:
    """Reads the geometry from a `transformers.CLIPConfig`.

    The end of a text gets the largest id. OpenAI's published configurations carry a wrong one (2), which the original
    code never reads: it takes the largest id.
    """
    vision, text = config.vision_config, config.text_config
    if vision.num_channels != 3:
        raise ClipbiasError(f"config.json asks for {vision.num_channels} image channels; only RGB (3) is supported.")
    return ClipConfig(
        vision=VisionConfig(**{ours: getattr(vision, theirs) for ours, theirs in _VISION.items()}),
        text=TextConfig(
            **{ours: getattr(text, theirs) for ours, theirs in _TEXT.items()}, eos_token_id=text.vocab_size - 1
        ),
        projection_width=config.projection_dim,
    )


def to_hugging_face(config: ClipConfig) -> dict[str, Any]:
    """The inverse of `from_hugging_face`: the content of a `config.json`."""

    def tower(part: TowerConfig, names: Mapping[str, str], **more: Any) -> dict[str, Any]:
        sizes = {theirs: getattr(part, ours) for ours, theirs in names.items()}
        return {**sizes, "projection_dim": config.projection_width, **more}

    text = tower(config.text, _TEXT, model_type="clip_text_model", eos_token_id=config.text.eos_token_id)
    return dict(
        architectures=["CLIPModel"],
        model_type="clip",
        projection_dim=config.projection_width,
        vision_config=tower(config.vision, _VISION, model_type="clip_vision_model", num_channels=3),
        text_config=text,
    )
