"""TaskRes (Yu et al. 2023, arXiv 2211.10277): a residual on the class features."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from clipbias.clip import Adaptation, Clip
from clipbias.tuning.method import Learnables, Method
from clipbias.tuning.preset import Kind, Preset
from clipbias.tuning.prompt_text import PromptText


@dataclasses.dataclass(frozen=True)
class TaskRes(Method):
    """`t' = t + α · residual`, where `t [C, d]` are the un-normalised features of the dataset's own template.

    Attributes:
      alpha: `α`; 0.5, and 1.0 for Flowers102, as its authors have it.
    """

    presets: ClassVar[Mapping[str, Preset]] = {"taskres": Preset("TaskRes", order=500)}
    kind: ClassVar[Kind | None] = Kind.HEAD
    datasets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"oxford_flowers": {"alpha": 1.0}}

    alpha: float = 0.5

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        return {"text_residual": jnp.zeros((len(class_names), clip.config.projection_width))}

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation(text_residual=self.alpha * learnables["text_residual"])

    def text(self, template: str, clip: Clip) -> PromptText:
        return PromptText((template,))
