"""VPT (Jia et al. 2022, arXiv 2203.12119, Visual Prompt Tuning) in CLIP's vision tower, deep or shallow."""

import dataclasses
from collections.abc import Sequence

import jax

from clipbias.clip import Clip
from clipbias.tuning.method import Depth, Kind, Learnables, Method, Preset, Tokens
from clipbias.tuning.prompts import random_prompts


@dataclasses.dataclass(frozen=True)
class VPT(Method):
    """`V` prompt tokens per layer after the patches; the text side stays "a photo of a {}.".

    Attributes:
      tokens: `V`.
      depth: number of layers with prompts, at most the tower's; 1 for the shallow variant, `None` for all layers.
    """

    presets = {"vpt": Preset("VPT", order=200), "vpt_shallow": Preset("VPT (shallow)", {"depth": 1}, order=201)}
    kind = Kind.PROMPTS

    tokens: Tokens = 4
    depth: Depth = None

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        # Row `l` replaces the prompts at the input of layer `l`; layers behind the last row keep their outputs.
        vision = clip.config.vision
        depth = min(self.depth or vision.layers, vision.layers)
        return {"vision_prompts": random_prompts(rng, depth, self.tokens, vision.width)}
