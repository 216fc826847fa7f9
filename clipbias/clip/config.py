"""Geometry of a model, read from a checkpoint's own configuration. No size is written in code."""

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
        """The position of a text's first word: behind SOS, which a tower that is not causal has not."""
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


# Hugging Face's name of an activation, where it is another one than here.
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh"}
# The classes that `transformers` has for a family, by the `model_type` of its `config.json`.
MODELS = {"clip": "CLIPModel", "metaclip_2": "MetaClip2Model", "siglip": "SiglipModel"}


def from_hugging_face(config: Any) -> ClipConfig:
    """Reads the geometry from a configuration of `transformers`, of a family in `MODELS`.

    OpenAI's published configurations of CLIP carry a wrong end of a text (2), which the original code never reads: it
    takes the largest id. Those of MetaCLIP 2 carry the right one.
    """
    vision, text, family = config.vision_config, config.text_config, config.model_type
    if vision.num_channels != 3:
        raise ClipbiasError(f"config.json asks for {vision.num_channels} image channels; only RGB (3) is supported.")
    if not getattr(vision, "vision_use_head", True):
        raise ClipbiasError("config.json describes a vision tower without its pooling head; clipbias needs that.")

    def tower(part: Any, names: Mapping[str, str]) -> dict[str, Any]:
        found = {ours: getattr(part, theirs) for ours, theirs in names.items()}
        return found | {"activation": _ACTIVATIONS.get(str(found["activation"]), found["activation"])}

    siglip, of_text, end = family == "siglip", tower(text, _TEXT), text.eos_token_id
    if siglip:
        of_text |= dict(causal=False, pad_token_id=text.pad_token_id or 0)
    return ClipConfig(
        vision=VisionConfig(**tower(vision, _VISION), pooling="attention" if siglip else "cls"),
        text=TextConfig(**of_text, eos_token_id=end if family == "metaclip_2" else text.vocab_size - 1),
        projection_width=text.projection_size if siglip else config.projection_dim,
        family=family,
    )


def to_hugging_face(config: ClipConfig) -> dict[str, Any]:
    """The inverse of `from_hugging_face`: the content of a `config.json`."""
    joint, theirs_of = config.projection_width, {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    siglip = config.family == "siglip"
    common = {} if siglip else {"projection_dim": joint}

    def tower(part: TowerConfig, kind: str, names: Mapping[str, str], **more: Any) -> dict[str, Any]:
        sizes = {theirs: getattr(part, ours) for ours, theirs in names.items()}
        sizes["hidden_act"] = theirs_of.get(part.activation, part.activation)
        return {**sizes, **common, **more, "model_type": f"{config.family}_{kind}_model"}

    own = {"projection_size": joint, "pad_token_id": config.text.pad_token_id} if siglip else {}
    return dict(
        architectures=[MODELS[config.family]],
        model_type=config.family,
        **common,
        vision_config=tower(config.vision, "vision", _VISION, num_channels=3),
        text_config=tower(config.text, "text", _TEXT, **own, eos_token_id=config.text.eos_token_id),
    )
