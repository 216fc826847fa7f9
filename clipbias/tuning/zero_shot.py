"""Zero-shot CLIP (Radford et al. 2021): no learnables, the dataset's own template or an ensemble of templates."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax

from clipbias.clip import Adaptation, Clip
from clipbias.tuning.method import Learnables, Method, Preset, PromptText
from clipbias.tuning.templates import choose_templates


@dataclasses.dataclass(frozen=True)
class ZeroShot(Method):
    """CLIP as it is. An ensemble averages the normalised text features over templates and normalises again.

    Attributes:
      templates: a choice of `tuning.templates` ("dataset" for the dataset's own), or templates with `{}`.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "zero_shot": Preset("Zero-shot", order=0, colour="blue", marker="", line=(0, (4, 2)))
    }
    trains: ClassVar[bool] = False

    templates: str | tuple[str, ...] = "dataset"

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        return {}

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation()

    def text(self, template: str, clip: Clip) -> PromptText:
        return PromptText(choose_templates(self.templates, template))
