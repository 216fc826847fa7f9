"""Zero-shot CLIP (Radford et al. 2021): no learnables, the dataset's own template or an ensemble of templates."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax

from clipbias.clip import Clip
from clipbias.tuning.frozen_towers import FrozenTowers
from clipbias.tuning.method import Learnables, Preset


@dataclasses.dataclass(frozen=True)
class ZeroShot(FrozenTowers):
    """CLIP as it is. An ensemble averages the normalised text features over templates and normalises again.

    Attributes:
      templates: a choice of `tuning.templates` ("dataset" for the dataset's own), or templates with `{}`.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "zero_shot": Preset("Zero-shot", order=0, colour="blue", marker="", line=(0, (4, 2)))
    }
    trains: ClassVar[bool] = False

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        return {}
