"""Geometry of a model, read from the configuration beside its weights."""

import dataclasses
from typing import Any

from clipbias.checks import check_choice, check_int, check_number
from clipbias.errors import ClipbiasError

# Limit for sizes in files: far beyond every CLIP, and products of three sizes still fit 64 bits.
LARGEST_SIZE = 10**6


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """Settings of the transformer blocks of a tower.

    Attributes:
      width, layers, heads: token width `D`, transformer blocks `L`, attention heads `H`, each `width // heads` wide.
      activation: "quick_gelu" (OpenAI), "gelu" (most LAION re-trainings) or "gelu_tanh" (SigLIP).
      layer_norm_epsilon: added to the variance in every LayerNorm.
      norm_first: whether LayerNorms precede attention and MLP. BERT's follow the residuals, and a LayerNorm behind the
        embeddings replaces the final one.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    layer_norm_epsilon: float = 1e-5
    _: dataclasses.KW_ONLY
    norm_first: bool = True

    def __post_init__(self) -> None:
        # Checked here, since configurations of every format pass through this constructor.
        for field in dataclasses.fields(self):
            if field.type is int:
                lowest = 0 if field.name.endswith("token_id") or field.default == 0 else 1
                check_int(f"the model's {field.name}", getattr(self, field.name), lowest=lowest, highest=LARGEST_SIZE)
        # Heads split the width evenly; the reshape would fail far from the file.
        if self.width % self.heads:
            raise ClipbiasError(f"the width {self.width} cannot be divided among {self.heads} attention heads.")
        check_choice("the model's activation", self.activation, ("quick_gelu", "gelu", "gelu_tanh"))
        check_number("the model's layer_norm_epsilon", self.layer_norm_epsilon, lowest=0)


@dataclasses.dataclass(frozen=True)
class VisionConfig(TowerConfig):
    """The vision tower: square images of `image_size` pixels cut into square patches of `patch_size` pixels.

    Attributes:
      image_size, patch_size: in pixels. SigLIP's images may have a margin at the right and bottom that fills no patch.
      pooling: "cls" reads the feature at the `[cls]` token; "attention" from a learned query that attends to `[cls]`
        and patches (`vision.pool_image`).
      class_token: whether the tower has a `[cls]` token. SigLIP has none.
      projection: whether a projection follows. SigLIP has none.
      pool_heads: attention heads of the pooling head; 0 without a pooling head.
      rotary: whether queries and keys rotate by the row and column of their patch (`layers.rotate`).
    """

    _: dataclasses.KW_ONLY
    image_size: int
    patch_size: int
    pooling: str = "cls"
    class_token: bool = True
    pre_norm: bool = True
    patch_bias: bool = False
    projection: bool = True
    pool_heads: int = 0
    rotary: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("the model's pooling", self.pooling, ("cls", "attention"))
        if self.pooling == "attention" and (self.pool_heads < 1 or self.width % self.pool_heads):
            raise ClipbiasError(f"the width {self.width} cannot be divided among {self.pool_heads} pooling heads.")
        # Two channels make a pair that rotates, by rows in one half of a head and by columns in the other.
        if self.rotary and self.width // self.heads % 4:
            raise ClipbiasError(f"a head of width {self.width // self.heads} cannot rotate: 4 must divide the width.")
        # SigLIP's convolution drops a margin; other towers have a position for every patch of a full grid.
        if self.image_size % self.patch_size and self.class_token:
            raise ClipbiasError(f"the image size {self.image_size} is no multiple of the patch size {self.patch_size}.")

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """The number of patches `M`."""
        return self.grid**2

    @property
    def token_types(self) -> int:
        """The number of token types: pooled and other tokens; one type with a pooling head, which reads all."""
        return 2 if self.pooling == "cls" else 1

    @property
    def first_patch(self) -> int:
        """The position of the first patch."""
        return int(self.class_token)

    @property
    def tokens(self) -> int:
        """The number of tokens without prompts."""
        return self.first_patch + self.patches


@dataclasses.dataclass(frozen=True)
class TextConfig(TowerConfig):
    """The text tower.

    Attributes:
      causal: whether a token attends only to tokens before it and itself.
      pooling: the row of the text feature: "eos", the first end of text; "last", the last position; "first", BERT's
        `[CLS]`. With "last" (SigLIP) padding fills the context and is attended to; with "first" it is masked.
      start_token: whether texts begin with a start token, SOS or `[CLS]`.
      projection_hidden: hidden width of a projection of two layers with a GELU between them; 0 for one layer.
    """

    _: dataclasses.KW_ONLY
    vocabulary_size: int
    context_length: int
    eos_token_id: int
    causal: bool = True
    pooling: str = "eos"
    start_token: bool = True
    pad_token_id: int = 0
    projection_bias: bool = False
    projection_hidden: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("the model's pooling of texts", self.pooling, ("eos", "last", "first"))
        if self.causal != (self.pooling == "eos"):
            raise ClipbiasError(f"a text tower with pooling {self.pooling!r} cannot have causal={self.causal}.")

    @property
    def first_word(self) -> int:
        """The position of a text's first word: 1, behind the start token, or 0 without one."""
        return int(self.start_token)


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Both towers and the joint width `d` of their features; hashable, a static argument of `jit`."""

    vision: VisionConfig
    text: TextConfig
    projection_width: int
    family: str = "clip"  # the `model_type` of `config.json`; "pe" and "biomed_clip" exist in open_clip only

    def __post_init__(self) -> None:
        check_int("the model's projection_width", self.projection_width, lowest=1, highest=LARGEST_SIZE)
        # A cosine needs features of one width.
        if not self.vision.projection and self.vision.width != self.projection_width:
            raise ClipbiasError(
                f"images have features of width {self.vision.width} and texts of width {self.projection_width}; they "
                "must be equal where no projection follows the pooling head."
            )

    @property
    def logit_bias(self) -> bool:
        """Whether logits have a bias: SigLIP's do."""
        return self.family == "siglip"

    @property
    def common_blocks(self) -> int:
        """The number of blocks of the shallower tower."""
        return min(self.vision.layers, self.text.layers)


# Settings of a family's towers that differ from CLIP's and that its files leave out.
SIGLIP_VISION: dict[str, Any] = {
    "activation": "gelu_tanh",
    "layer_norm_epsilon": 1e-6,
    "pooling": "attention",
    "class_token": False,
    "pre_norm": False,
    "patch_bias": True,
    "projection": False,
}
SIGLIP_TEXT: dict[str, Any] = {
    "activation": "gelu_tanh",
    "layer_norm_epsilon": 1e-6,
    "causal": False,
    "pooling": "last",
    "start_token": False,
    "projection_bias": True,
}
BERT_TEXT: dict[str, Any] = {
    "activation": "gelu",
    "layer_norm_epsilon": 1e-12,
    "norm_first": False,
    "causal": False,
    "pooling": "first",
}

# Names of a tower's settings here and in `transformers`.
_TOWER = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "activation": "hidden_act",
    "layer_norm_epsilon": "layer_norm_eps",
}
_VISION = {**_TOWER, "image_size": "image_size", "patch_size": "patch_size"}
_TEXT = {**_TOWER, "vocabulary_size": "vocab_size", "context_length": "max_position_embeddings"}
# Hugging Face's name of SigLIP's activation; other activations have the same names.
_GELU_TANH = "gelu_pytorch_tanh"
# The classes that `transformers` has for a family, by the `model_type` of its `config.json`.
MODELS = {
    "clip": "CLIPModel",
    "metaclip_2": "MetaClip2Model",
    "siglip": "SiglipModel",
    "chinese_clip": "ChineseCLIPModel",
}


def other_network(where: str, sign: str) -> ClipbiasError:
    """Returns the error for a network that clipbias does not compute; `sign` quotes its file."""
    return ClipbiasError(
        f"{where} holds a network that clipbias does not compute ({sign}); CLIP with two transformers, MetaCLIP 2, "
        "SigLIP, Perception Encoder, Chinese-CLIP and BiomedCLIP load (docs/models.md)."
    )


def from_hugging_face(transformers_config: Any) -> ClipConfig:
    """Reads the geometry from a configuration of `transformers`, for a family in `MODELS`."""
    vision = transformers_config.vision_config
    text = transformers_config.text_config
    family = transformers_config.model_type
    if vision.num_channels != 3:
        raise ClipbiasError(f"config.json asks for {vision.num_channels} image channels; only RGB (3) is supported.")
    if not getattr(vision, "vision_use_head", True):
        raise ClipbiasError("config.json describes a vision tower without its pooling head; clipbias needs that.")

    sizes, text_sizes = (
        {ours: getattr(part, theirs) for ours, theirs in names.items()}
        for part, names in ((vision, _VISION), (text, _TEXT))
    )
    # Only SigLIP's activation has another name there.
    for each in (sizes, text_sizes):
        each["activation"] = "gelu_tanh" if each["activation"] == _GELU_TANH else each["activation"]
    # OpenAI's published configurations have a wrong end-of-text token (2), which OpenAI's code never reads: it takes
    # the largest id. MetaCLIP 2's token is right. For other families `checkpoint.load` takes the tokenizer's.
    text_sizes["eos_token_id"] = text.eos_token_id if family == "metaclip_2" else text.vocab_size - 1
    if family == "siglip":
        tower = VisionConfig(**SIGLIP_VISION | sizes, pool_heads=sizes["heads"])
        return ClipConfig(tower, TextConfig(**SIGLIP_TEXT | text_sizes), text.projection_size, family)
    if family == "chinese_clip":
        # A BERT with relative positions has the same tensors, and would load and compute wrong features.
        if getattr(text, "position_embedding_type", "absolute") != "absolute" or text.type_vocab_size != 2:
            raise ClipbiasError("config.json describes a BERT with other embeddings than Chinese-CLIP's.")
        text_sizes = BERT_TEXT | text_sizes
    return ClipConfig(VisionConfig(**sizes), TextConfig(**text_sizes), transformers_config.projection_dim, family)


def to_hugging_face(config: ClipConfig) -> dict[str, Any]:
    """Returns the content of a `config.json`: the inverse of `from_hugging_face`."""
    vision, text = (
        {theirs: getattr(tower, ours) for ours, theirs in names.items()}
        for tower, names in ((config.vision, _VISION), (config.text, _TEXT))
    )
    for each in (vision, text):
        each["hidden_act"] = _GELU_TANH if each["hidden_act"] == "gelu_tanh" else each["hidden_act"]
    vision |= {"model_type": f"{config.family}_vision_model", "num_channels": 3}
    text |= {"model_type": f"{config.family}_text_model", "eos_token_id": config.text.eos_token_id}
    content: dict[str, Any] = {
        "architectures": [MODELS[config.family]],
        "model_type": config.family,
        "vision_config": vision,
        "text_config": text,
    }
    if config.family == "chinese_clip":
        # BERT's defaults in transformers differ: dropout would be on, and `type_vocab_size` decides a tensor's shape.
        text |= {"pad_token_id": config.text.pad_token_id, "type_vocab_size": 2}
        text |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        content["projection_dim"] = config.projection_width
        vision["projection_dim"] = config.projection_width
    elif config.family == "siglip":
        text |= {"projection_size": config.projection_width, "pad_token_id": config.text.pad_token_id}
    else:
        # transformers' towers read it from their own parts, and a joint model from the top.
        for part in (content, vision, text):
            part["projection_dim"] = config.projection_width
    return content
