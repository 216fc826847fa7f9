"""A picture, and models that nobody trained."""

from collections.abc import Sequence

import jax
import numpy as np

import clipbias
from clipbias import TunedModel
from clipbias.clip import Clip

NAMES = ["cat", "a grey dog", "bird"]
PICTURE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def tuned(clip: Clip, method: str, class_names: Sequence[str], seed: int = 1) -> TunedModel:
    """A model whose method is some way off its start."""
    task = clipbias.Task(clip, method, class_names)
    leaves, tree = jax.tree.flatten(task.init(0))
    rng = np.random.default_rng(seed)
    moved = [np.asarray(leaf + 0.05 * rng.normal(size=leaf.shape), np.float32) for leaf in leaves]
    return TunedModel(task, jax.tree.unflatten(tree, moved))
