"""Constants in the place of what a tuned run adds to image tokens, by kind and token by token."""

import numpy as np

from clipbias.clip import Clip
from clipbias.explain.added import Added
from tests.reference import levels


def some_constant(clip: Clip, seed: int, size: float = 0.3) -> Added:
    vision = clip.config.vision
    draw = np.random.default_rng(seed)
    shapes = {"start": (), "slots": (vision.layers,), "blocks": (vision.layers,)}
    return Added(**{part: size * draw.normal(size=(*shape, 2, vision.width)) for part, shape in shapes.items()})


def everywhere(constant: Added, count: int, tokens: int) -> levels.Added:
    """`[cls]` and patches of every image."""

    def spread(leaf: np.ndarray) -> np.ndarray:
        rows = np.concatenate([leaf[..., :1, :], np.repeat(leaf[..., 1:, :], tokens - 1, axis=-2)], axis=-2)
        return np.repeat(rows[..., None, :, :], count, axis=-3)

    return levels.Added(spread(constant.start), spread(constant.slots), spread(constant.blocks))
