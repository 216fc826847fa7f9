"""The geometry of a CLIP model from the shapes of its tensors, for files that come without a configuration."""

import math
from collections.abc import Mapping

from clipbias.clip.config import ClipConfig, TextConfig, VisionConfig
from clipbias.clip.convert import HUGGING_FACE, Naming
from clipbias.clip.open_clip import HEAD_WIDTH
from clipbias.clip.tensors import Tensor
from clipbias.errors import ClipbiasError

# Beyond this width open_clip and its users chose wider heads: 80, 88, 104 or 112.
WIDEST = 1024

# For each naming: patch embedding, vision positions, token embedding, text positions, MLP and the text projection, with
# the axis of the joint width.
HUGGING_FACE_NAMES = (
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.position_embedding.weight",
    "text_model.embeddings.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight",
    "mlp.fc1.weight",
    ("text_projection.weight", 0),
)
OPEN_CLIP_NAMES = (
    "visual.conv1.weight",
    "visual.positional_embedding",
    "token_embedding.weight",
    "positional_embedding",
    "mlp.c_fc.weight",
    ("text_projection", 1),
)


def config_from_shapes(tensors: Mapping[str, Tensor], naming: Naming, *, activation: str, where: str) -> ClipConfig:
    """The geometry of a model, as OpenAI's own code derives it from a state dict: heads are 64 wide.

    Args:
      tensors: the model's tensors by name.
      naming: whose names these are.
      activation: "quick_gelu" or "gelu", which no shape tells.
      where: the file, for messages.

    Raises:
      ClipbiasError: the tensors are not those of a CLIP model.
    """
    names = HUGGING_FACE_NAMES if naming is HUGGING_FACE else OPEN_CLIP_NAMES
    patch, positions, tokens, text_positions, hidden, (projection, axis) = names

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in tensors or len(tensors[name].shape) != dimensions:
            raise ClipbiasError(f"{where} is not a CLIP model: it has no {name} of {dimensions} dimensions.")
        return tensors[name].shape

    def tower(name: str, width: int) -> dict:
        before, after = naming.prefixes[name].split("{}")
        numbers = {key[len(before) :].partition(after)[0] for key in tensors if key.startswith(before)}
        return dict(
            width=width,
            layers=len(numbers),
            heads=max(width // HEAD_WIDTH, 1),
            mlp_width=shape(f"{naming.prefixes[name].format(0)}{hidden}", 2)[0],
            activation=activation,
        )

    width, _, side, _ = shape(patch, 4)
    if width > WIDEST:
        raise ClipbiasError(
            f"{where} has a vision tower of width {width:,}, whose number of heads no shape tells; put its config.json "
            "or open_clip_config.json beside it."
        )
    vocabulary, text_width = shape(tokens, 2)
    grid = math.isqrt(max(shape(positions, 2)[0] - 1, 0))
    try:
        return ClipConfig(
            vision=VisionConfig(**tower("vision", width), image_size=grid * side, patch_size=side),
            text=TextConfig(
                **tower("text", text_width),
                vocabulary_size=vocabulary,
                context_length=shape(text_positions, 2)[0],
                eos_token_id=vocabulary - 1,
            ),
            projection_width=shape(projection, 2)[axis],
        )
    except ClipbiasError as error:
        raise error if where in str(error) else ClipbiasError(f"{where} is not a CLIP model: {error}") from error
