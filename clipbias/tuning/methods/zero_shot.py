"""Zero-shot CLIP (Radford et al. 2021, arXiv 2103.00020): no learnables, one template or an ensemble."""

import dataclasses
from collections.abc import Sequence

import jax

from clipbias.clip import Clip
from clipbias.constants import ZERO_SHOT
from clipbias.tuning.method import Kind, Learnables, Preset
from clipbias.tuning.prompts import FrozenTowers


@dataclasses.dataclass(frozen=True)
class ZeroShot(FrozenTowers):
    """Plain CLIP. An ensemble averages the normalised text features over templates and normalises the mean.

    Attributes:
      templates: a choice of `tuning.prompts` ("dataset" for the dataset's own), or templates with `{}`.
    """

    presets = {ZERO_SHOT: Preset("Zero-shot", order=0)}
    kind = Kind.TRAINING_FREE
    trains = False

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        return {}
