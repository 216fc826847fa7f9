"""PromptSRC (Khattak et al. 2023, arXiv 2307.06948): deep prompts that regulate themselves by plain CLIP."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.checks import Range
from clipbias.clip import Clip
from clipbias.tuning.features import Features, average_raw_texts, average_texts, cross_entropy, unit_length
from clipbias.tuning.method import Layers, Learnables, Preset, PromptText, Terms
from clipbias.tuning.methods.ivlp import IVLP
from clipbias.tuning.prompts import choose_templates
from clipbias.tuning.recipe import COMMON, MOST, Recipe, RecipeName

# The few-shot Gaussian on datasets that differ much from CLIP's training data.
_LATE = {"mean": 0.9, "deviation": 0.1}


@dataclasses.dataclass(frozen=True)
class PromptSRC(IVLP):
    """IVLP with features and predictions that stay near plain CLIP, and with prompts averaged over the epochs.

    The teacher is plain CLIP. Its class features `ḡ` are the mean over templates of features that are *not* normalised,
    then normalised. `f̄` are its features of the same augmented images and `p̄` its probabilities; `g`, `f` and `p` are
    those of the tuned model. The loss is the cross-entropy plus

        λ_t mean_{c,k} |g - ḡ| + λ_i mean_{b,k} |f - f̄| + (1/(B·C)) Σ_{b,c} p̄ (log p̄ - log p)

    The average of the learnables `θ_e` after each epoch is saved and evaluated,

        Σ_e w_e θ_e, w_e ∝ exp(-(e - μ)² / (2σ²)), e = 1 … E, Σ_e w_e = 1

    Attributes:
      depth: number of layers with prompts; more than a tower has are all of its layers.
      text_weight, image_weight: `λ_t`, `λ_i`.
      templates: the teacher's, a choice of `tuning.prompts` or templates with `{}`.
      mean, deviation: `μ/E` and `σ/E`. By default the authors' for few-shot learning: 30 and 30 of 50 epochs, and 45
        and 5 for StanfordCars, Flowers102, FGVCAircraft, DTD and EuroSAT.
      recipe: "common", or "authors" for `epochs` epochs at 0.0025 with 4 images a step.
    """

    presets = {
        "promptsrc": Preset("PromptSRC", order=320),
        # These two use one Gaussian for all datasets: 15 and 1 of 20 epochs, 6 and 10 of 20.
        "promptsrc_base_to_new": Preset(
            "PromptSRC (base-to-new)", {"mean": 0.75, "deviation": 0.05, "epochs": 20}, order=321, datasets={}
        ),
        "promptsrc_cross_dataset": Preset(
            "PromptSRC (cross-dataset)",
            {"mean": 0.3, "deviation": 0.5, "epochs": 20, "depth": 3},
            order=322,
            datasets={},
        ),
    }
    datasets = dict.fromkeys(("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat"), _LATE)

    depth: Layers = 9
    text_weight: Annotated[float, Range(0)] = 25.0
    image_weight: Annotated[float, Range(0)] = 10.0
    templates: str | tuple[str, ...] = "imagenet_60"
    mean: Annotated[float, Range(0, 1)] = 0.6
    deviation: Annotated[float, Range(1e-3, 1e3)] = 0.6
    recipe: RecipeName = COMMON
    epochs: Annotated[int, Range(1, MOST)] = 50

    def teacher_text(self, template: str, clip: Clip) -> PromptText:
        return PromptText(choose_templates(self.templates, template))

    def losses(self, learnables: Learnables, features: Features, logits: jax.Array, labels: jax.Array) -> Terms:
        # The student's texts are averaged as unit vectors, the teacher's as raw ones: the authors' order of operations.
        teacher = features.teacher
        assert teacher is not None
        text = unit_length(average_texts(features.text))
        image = unit_length(features.image)
        teacher_text = unit_length(average_raw_texts(teacher.text))
        teacher_image = unit_length(teacher.image)
        log_teacher = jax.nn.log_softmax(teacher.scale * (teacher_image @ teacher_text.T))
        # Three constraints of the paper: features of texts and of images, and predictions.
        return {
            "cross_entropy": cross_entropy(logits, labels),
            "text": self.text_weight * jnp.abs(text - teacher_text).mean(),
            "image": self.image_weight * jnp.abs(image - teacher_image).mean(-1),
            # KL(p̄ ‖ p) as a mean over images and classes, as the authors' `reduction="sum" / logits.numel()`.
            "kl": (jnp.exp(log_teacher) * (log_teacher - jax.nn.log_softmax(logits))).mean(-1),
        }

    def average(self, epochs: int) -> np.ndarray:
        # `μ` and `σ` as shares of the epochs: the authors' Gaussians keep their place if these are more or fewer. Minus
        # the largest exponent: a narrow Gaussian far from all epochs would be 0/0.
        exponents = -((np.arange(1, epochs + 1) / epochs - self.mean) ** 2) / (2 * self.deviation**2)
        weights = np.exp(exponents - exponents.max())
        return weights / weights.sum()

    def authors_recipe(self, common: Recipe, shots: int | None) -> Recipe:
        return Recipe(learning_rate=0.0025, epochs=self.epochs, batch_size=4)
