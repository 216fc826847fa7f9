"""KgCoOp (Yao et al. 2023, arXiv 2303.13283, Knowledge-guided Context Optimization): CoOp with a frozen teacher."""

import dataclasses
from typing import Annotated

import jax

from clipbias.checks import Range
from clipbias.clip import Clip
from clipbias.tuning.features import Features, average_texts, cross_entropy, unit_length
from clipbias.tuning.method import Learnables, Preset, PromptText, Terms
from clipbias.tuning.methods.coop import CoOp
from clipbias.tuning.recipe import COMMON, Recipe, RecipeName


@dataclasses.dataclass(frozen=True)
class KgCoOp(CoOp):
    """CoOp with class features `g_c` that stay near those of plain CLIP, `w_c`, both of unit length.

    The loss is `cross-entropy + λ (1 - (1/C) Σ_c g_c · w_c)`. `w_c` is the feature of the dataset's own template; the
    learned context stands in "a photo of a {}." on every dataset.

    Attributes:
      weight: `λ`.
      template: of the teacher, with `{}`; `None` for the dataset's own.
      recipe: "common", or "authors" for 100 epochs at 0.002 with 128 images a step.
    """

    presets = {"kgcoop": Preset("KgCoOp", order=120)}
    datasets = {"dtd": {"template": "a photo of a {}, a type of texture."}}
    authors = Recipe(learning_rate=0.002, epochs=100, batch_size=128)

    weight: Annotated[float, Range(0)] = 8.0
    template: str | None = None
    recipe: RecipeName = COMMON

    def teacher_text(self, template: str, clip: Clip) -> PromptText:
        return PromptText((template if self.template is None else self.template,))

    def losses(self, learnables: Learnables, features: Features, logits: jax.Array, labels: jax.Array) -> Terms:
        assert features.teacher is not None
        student = unit_length(average_texts(features.text))
        teacher = unit_length(average_texts(features.teacher.text))
        # Over all classes, not those of the batch: classes without an image would drift from the teacher.
        distance = 1 - (student * teacher).sum(-1).mean()
        return {"cross_entropy": cross_entropy(logits, labels), "distillation": self.weight * distance}
