"""Bias tuning by kind of token: two learnable embeddings per layer instead of one.

To every token that sees them, deep prompts add attention mass on the prompts times their values (He et al. 2022, arXiv
2110.04366), within a layer a bias of its output and nothing else (Petrov et al. 2024, arXiv 2310.19698). Averaged over
images that is nearly a constant, but not the same one for `[cls]` or EOS, which gathers the feature, as for all other
tokens. This learns the two constants directly, without a token more in the sequence. Near it: Prefix-Tuning+ (arXiv
2506.13674), which moves the prefix out of the attention, and TCPA (arXiv 2505.02406), with prompts for `[cls]` and
others for patches.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.tuning.method import Learnables
from clipbias.tuning.methods.bias import BiasTuning
from clipbias.tuning.preset import Preset


@dataclasses.dataclass(frozen=True)
class BiasByKind(BiasTuning):
    """`x ← block_l(x) + b_l`, with one `b_l` for the token that is read out, `[cls]` or EOS, and one for all others.

    Learnables are `vision_bias [L, 2, D]` and `text_bias [L, 2, D]`, zero at the start, row 0 for the token that is
    read out. With two equal rows it is `BiasTuning`. A vision tower with a pooling head has patches alone, `vision_bias
    [L, 1, D]`; a text tower that is not causal is read out at its last position.

    Attributes:
      vision_by_kind, text_by_kind: which of the towers that get biases get two per layer; the other gets one.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "bias_by_kind": Preset("Bias tuning by kind", order=601),
        "bias_by_kind_vision": Preset("Bias tuning by kind (vision)", {"text_by_kind": False}, order=602),
    }

    vision_by_kind: bool = True
    text_by_kind: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.vision_tower and self.vision_by_kind) and not (self.text_tower and self.text_by_kind):
            raise ClipbiasError("no tower's bias is by kind, which is the method 'bias'; choose that, or a tower.")

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        kinds = {"vision_bias": clip.config.vision.kinds if self.vision_by_kind else 0}
        kinds["text_bias"] = 2 if self.text_by_kind else 0
        one = super().init(rng, clip, class_names)
        return {name: jnp.stack([bias] * kinds[name], axis=1) if kinds[name] else bias for name, bias in one.items()}
