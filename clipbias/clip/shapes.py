"""The geometry of a CLIP model from the shapes of its tensors, for files that come without a configuration."""

import math
import re
from collections.abc import Mapping

import numpy as np

from clipbias.clip.config import ClipConfig, TextConfig, TowerSizes, VisionConfig, bert_text, other_network
from clipbias.clip.open_clip_timm import pe_vision
from clipbias.clip.tables import NameTable
from clipbias.clip.tensors import Tensor
from clipbias.errors import ClipbiasError

HEAD_WIDTH = 64  # of a tower whose configuration names no other width (Radford et al. 2021)
# Beyond this width open_clip and its users chose wider heads: 80, 88, 104 or 112.
WIDEST = 1024


def config_from_shapes(tensors: Mapping[str, Tensor], table: NameTable, *, activation: str, where: str) -> ClipConfig:
    """The geometry of a model, as OpenAI's code derives it from a state dict: heads are 64 wide.

    Args:
      tensors: the model's tensors by name.
      table: whose names these are.
      activation: "quick_gelu" or "gelu", which no shape tells.
      where: the file, for messages.

    Raises:
      ClipbiasError: the tensors are not those of a CLIP model.
    """
    by_name = {table.plain(name): tensor for name, tensor in tensors.items()}
    family = table.families[0]
    if family == "pe" and "visual.class_embedding" not in by_name:
        raise other_network(where, "a Perception Encoder without visual.class_embedding")

    def shape(path: str) -> tuple[int, ...]:
        """The shape of a leaf of the parameter tree, of the first block where it is stacked."""
        row = next(row for row in table.rows if row.path == path)
        name = row.name.format(0)
        try:
            leaf = row.layout.load(np.broadcast_to(np.float32(0), by_name[name].shape))
        except (KeyError, ValueError) as error:
            raise ClipbiasError(f"{where} is not a CLIP model: it has no {name} of CLIP's.") from error
        return leaf.shape if leaf.ndim == 2 else (0, 0)  # a size of 0 is refused below

    def tower(name: str, width: int) -> TowerSizes:
        row = next(row for row in table.rows if row.path == f"{name}/layers/norm1/scale")
        block = re.compile(re.escape(row.name).replace(r"\{\}", r"\d+"))
        return TowerSizes(
            width=width,
            layers=sum(block.fullmatch(key) is not None for key in by_name),
            heads=max(width // HEAD_WIDTH, 1),
            mlp_width=shape(f"{name}/layers/fc1/kernel")[1],
            activation=activation,
        )

    inputs, width = shape("vision/patch_embedding")
    if width > WIDEST:
        raise ClipbiasError(
            f"{where} has a vision tower of width {width:,}, whose number of heads no shape tells; put its config.json "
            "or open_clip_config.json beside it."
        )
    patch = math.isqrt(inputs // 3)
    grid = math.isqrt(max(shape("vision/position_embedding")[0] - 1, 0))
    vocabulary, text_width = shape("text/token_embedding")
    length = shape("text/position_embedding")[0]
    projection_width = shape("text/projection")[1]
    try:
        sizes = tower("vision", width)
        text_sizes = tower("text", text_width)
        if family == "chinese_clip":
            bert: TowerSizes = {**text_sizes, "activation": "gelu", "layer_norm_epsilon": 1e-12}
            text = bert_text(bert, vocabulary_size=vocabulary, context_length=length, projection_hidden=0)
        else:
            text = TextConfig(
                **text_sizes, vocabulary_size=vocabulary, context_length=length, eos_token_id=vocabulary - 1
            )
        if family == "pe":
            vision = pe_vision(
                width, sizes["layers"], sizes["heads"], sizes["mlp_width"], image_size=grid * patch, patch_size=patch
            )
        else:
            vision = VisionConfig(**sizes, image_size=grid * patch, patch_size=patch)
        return ClipConfig(vision, text, projection_width, family)
    except (ClipbiasError, ArithmeticError) as error:
        raise error if where in str(error) else ClipbiasError(f"{where} is not a CLIP model: {error}") from error
