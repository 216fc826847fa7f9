"""Bias tuning by token type: two learnable embeddings per layer instead of one.

Deep prompts add their values to every token that attends to them, weighted by the attention (He et al. 2022, arXiv
2110.04366): within a layer a bias of the output and nothing else (Petrov et al. 2024, arXiv 2310.19698). Its mean over
images differs between the pooled token (`[cls]` or EOS) and the other tokens. Related: Prefix-Tuning+ (arXiv
2506.13674) moves the prefix out of the attention; TCPA (arXiv 2505.02406) has prompts for `[cls]` and for patches.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from clipbias.clip import Clip
from clipbias.tuning.method import Learnables, Preset
from clipbias.tuning.methods.bias import BiasTuning


@dataclasses.dataclass(frozen=True)
class BiasByKind(BiasTuning):
    """`x ← block_l(x) + b_l`, with one `b_l` for the pooled token, `[cls]` or EOS, and one for all other tokens.

    Learnables are `vision_bias [L, 2, D]` and `text_bias [L, 2, D]`, zero at the start, row 0 for the pooled token.
    With two equal rows this is `BiasTuning`. A text tower that is not causal is pooled at its last position.

    Attributes:
      vision_by_kind, text_by_kind: whether a tower with biases has two per layer instead of one.
    """

    presets = {
        "bias_by_kind": Preset("Bias tuning by kind", order=601),
        "bias_by_kind_vision": Preset("Bias tuning by kind (vision)", {"text_by_kind": False}, order=602),
    }

    vision_by_kind: bool = True
    text_by_kind: bool = True

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        learnables = dict(super().init(rng, clip, class_names))
        # Row 0 is the pooled token, as `clip.block` adds it. A vision tower with a pooling head has patches only: `[L,
        # 1, D]`.
        if self.vision_tower and self.vision_by_kind:
            learnables["vision_bias"] = jnp.stack([learnables["vision_bias"]] * clip.config.vision.token_types, axis=1)
        if self.text_tower and self.text_by_kind:
            learnables["text_bias"] = jnp.stack([learnables["text_bias"]] * 2, axis=1)
        return learnables
