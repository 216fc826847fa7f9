"""TaskRes (Yu et al. 2023, arXiv 2211.10277): a residual on the class features."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from clipbias.clip import Adaptation, Clip
from clipbias.tuning.method import Kind, Learnables, Method, Preset, PromptText


@dataclasses.dataclass(frozen=True)
class TaskRes(Method):
    """`t' = t + α · residual`, with `t [C, d]` the features of the dataset's own template before normalisation.

    Attributes:
      alpha: `α`; as the authors', 1.0 for Flowers102 and 0.5 for other datasets.
    """

    presets = {"taskres": Preset("TaskRes", order=500)}
    kind = Kind.HEAD
    datasets = {"oxford_flowers": {"alpha": 1.0}}

    alpha: float = 0.5

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        # Zeros: the first step starts from zero-shot CLIP.
        return {"text_residual": jnp.zeros((len(class_names), clip.config.projection_width))}

    def adapt(self, learnables: Learnables) -> Adaptation:
        # No text passes the tower in training: `t` is computed once, and the residual is added behind it.
        return Adaptation(text_residual=self.alpha * learnables["text_residual"])

    def text(self, template: str, clip: Clip) -> PromptText:
        return PromptText((template,))
