"""What `mma`, `mmrl` and `tcp` share: a tower with something beside its blocks, or between them.

Learnables are nested dictionaries, flattened here to names with slashes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.reference import numpy_clip
from tests.reference.methods import Reference
from tests.reference.numpy_clip import AtLayer, Tower

Losses = dict[str, float]


def embedded(clip: Reference, tower: str, inputs: np.ndarray) -> np.ndarray:
    """Tokens at the first block's input: of images `[B, R, R, 3]`, or of token ids `[C, N]`."""
    if tower == "vision":
        return numpy_clip.embed_image(clip.state, clip.config, inputs)
    embeddings = numpy_clip.token_embeddings(clip.state, inputs)
    return embeddings + clip.state["text_model.embeddings.position_embedding.weight"]


def forward(
    clip: Reference,
    tower: str,
    x: np.ndarray,
    rows: np.ndarray,
    *,
    enter: AtLayer = numpy_clip.unchanged,
    network: AtLayer | None = None,
) -> Tower:
    """All blocks; `rows [B]` are read after the last."""
    return numpy_clip.run_blocks(clip.state, clip.config, tower, x, rows, enter=enter, beside=network)


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
