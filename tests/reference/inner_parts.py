"""What `mma`, `mmrl` and `tcp` share: a tower with something beside its blocks, or between them.

Letters as in `numpy_clip`. A tower is run block by block; `enter` sees the tokens at each block's input, `network`
makes something of the block's input after its first LayerNorm, which is added to its output. Learnables are nested
dictionaries, flattened here to names with slashes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tests.reference import numpy_clip
from tests.reference.methods import Reference
from tests.reference.numpy_clip import Block

Losses = dict[str, float]
FINAL = {
    "vision": ("vision_model", "post_layernorm", "visual_projection"),
    "text": ("text_model", "final_layer_norm", "text_projection"),
}
AtLayer = Callable[[int, np.ndarray], np.ndarray]


def same(layer: int, x: np.ndarray) -> np.ndarray:
    """Tokens as they are."""
    return x


@dataclasses.dataclass
class Passed:
    """What a tower computed."""

    features: np.ndarray  # [B, d]
    blocks: list[Block]
    last: np.ndarray  # [B, N, D] after the last block
    rows: np.ndarray  # [B] the row that is read out


def embedded(clip: Reference, tower: str, inputs: np.ndarray, embeddings: np.ndarray | None = None) -> np.ndarray:
    """Tokens at the first block's input: of images `[B, R, R, 3]`, or of token ids `[C, N]`."""
    if tower == "text":
        return numpy_clip.encode_text(clip.state, clip.config, inputs, embeddings=embeddings).embedded
    epsilon = clip.config["vision_config"]["layer_norm_eps"]
    x = numpy_clip.encode_image(clip.state, clip.config, inputs).embedded
    return numpy_clip.layer_norm(clip.state, "vision_model.pre_layrnorm", epsilon, x)


def forward(
    clip: Reference,
    tower: str,
    x: np.ndarray,
    rows: np.ndarray,
    *,
    enter: AtLayer = same,
    network: AtLayer | None = None,
) -> Passed:
    """All blocks; `rows [B]` are read after the last."""
    sizes = clip.config[f"{tower}_config"]
    name, final, projection = FINAL[tower]
    epsilon = sizes["layer_norm_eps"]
    blocks = []
    for l in range(sizes["num_hidden_layers"]):
        x = enter(l, x)
        layer = f"{name}.encoder.layers.{l}"
        length = x.shape[1]
        mask = np.where(np.tril(np.ones((length, length), bool)), 0.0, -np.inf) if tower == "text" else np.zeros(())
        blocks.append(numpy_clip.block(clip.state, layer, sizes, x, mask, 0.0))
        added = 0.0
        if network is not None:
            added = network(l, numpy_clip.layer_norm(clip.state, f"{layer}.layer_norm1", epsilon, x))
        x = blocks[-1].output + added
    read = numpy_clip.layer_norm(clip.state, f"{name}.{final}", epsilon, x[np.arange(len(x)), rows])
    return Passed(read @ clip.state[f"{projection}.weight"].T, blocks, x, rows)


def shallower(config: Mapping[str, Any]) -> int:
    """Blocks of the shallower tower: the last of these have something inserted, in a deeper tower by their numbers."""
    return min(config[f"{tower}_config"]["num_hidden_layers"] for tower in ("vision", "text"))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Nested dictionaries as names with slashes, float64."""
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        inner = flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        flat |= {key: np.asarray(leaf, np.float64) for key, leaf in inner.items()}
    return flat


def worded_tokens(clip: Reference, class_names: Sequence[str], template: str) -> np.ndarray:
    """Ids `[C, N]` of a template's texts."""
    return clip.tokenizer.tokenize([template.format(name.replace("_", " ")) for name in class_names])
