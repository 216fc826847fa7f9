"""Bias tuning (Ma et al. 2023, arXiv 2312.11570): one learnable embedding per layer, added to every token."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from clipbias.clip import Clip
from clipbias.tuning.method import Kind, Learnables, Method, Preset


@dataclasses.dataclass(frozen=True)
class BiasTuning(Method):
    """`x ← block_l(x) + b_l`, in both towers, for every token, before the final LayerNorm.

    If prompts act as a bias of the dataset, the bias alone should do as well: this is that bias, and nothing else.

    Attributes:
      vision_tower, text_tower: which towers get biases.
    """

    presets = {"bias": Preset("Bias tuning", order=600)}
    kind = Kind.WEIGHTS

    vision_tower: bool = True
    text_tower: bool = True

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        # Zeros: the first step starts from plain CLIP. One row per layer, since a tower scans over its layers. Named as
        # in `Adaptation`, where each row is added to every token behind its block.
        # `x + MLP(x) + b` is the network whose MLP's output bias is larger by `b`: export folds it into plain weights.
        learnables = {}
        if self.vision_tower:
            learnables["vision_bias"] = jnp.zeros((clip.config.vision.layers, clip.config.vision.width))
        if self.text_tower:
            learnables["text_bias"] = jnp.zeros((clip.config.text.layers, clip.config.text.width))
        return learnables
