"""MMRL (Guo & Gu 2025, arXiv 2503.08497, Multi-Modal Representation Learning for Vision-Language Models)."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.checks import Range
from clipbias.clip import Adaptation, Clip
from clipbias.tuning import on_host
from clipbias.tuning.features import COSINE_SCALE, Features, average_texts, cross_entropy, unit_length
from clipbias.tuning.method import CONSTANTS, Kind, Learnables, Method, Options, Preset, PromptText, Terms, Tokens
from clipbias.tuning.prompts import initial_linear, random_prompts
from clipbias.tuning.recipe import AUTHORS, MOST, Recipe, RecipeName

_WEIGHTS = {
    "stanford_cars": 7.0,
    **dict.fromkeys(("fgvc_aircraft", "sun397", "dtd"), 6.0),
    "food101": 5.0,
    "oxford_flowers": 4.0,
    "ucf101": 3.0,
    "oxford_pets": 0.2,
    "eurosat": 0.01,
}
_BY_DATASET: dict[str, Options] = {name: {"weight": weight} for name, weight in _WEIGHTS.items()}
_BY_DATASET["eurosat"] = {"weight": _WEIGHTS["eurosat"], "space": 2048}


@dataclasses.dataclass(frozen=True)
class MMRL(Method):
    """Tokens `R [K, S]` in a shared space, which linear maps project into the last blocks of both towers.

    They are inserted at the input of the first of these blocks; the tokens of each later block's map replace them. `f`
    is the feature of `[cls]`; `r` is that of the mean inserted token of the image, projected by a matrix of its own.
    With `z = 100 cos(f, g)` and `z_r = 100 cos(r, g)` the loss is

        α CE(z) + (1 - α) CE(z_r) + λ (1 - mean cos(f, f⁰)) + λ (1 - mean cos(g, g⁰))

    with `f⁰` and `g⁰` of plain CLIP. The logits are `α z + (1 - α) z_r`, and `z` alone for classes that training did
    not see.

    Attributes:
      tokens, space, alpha, weight: `K`, `S`, `α` and `λ`.
      blocks: number of the last blocks of the shallower tower; the authors use 6 to 12 of 12. In a deeper tower they
        are the blocks with the same numbers, counted from its start.
      recipe: the "authors'": AdamW at 0.001 with a decay of 5e-4; or "common".
      epochs, batch_size: of the authors' recipe.
    """

    presets = {
        "mmrl": Preset("MMRL", order=410),
        "mmrl_base_to_new": Preset("MMRL (base-to-new)", {"epochs": 10, "batch_size": 4}, order=411),
        # One epoch on ImageNet, without a warm-up, in place of its five.
        "mmrl_cross_dataset": Preset("MMRL (cross-dataset)", {"epochs": 1}, order=412, datasets=_BY_DATASET),
    }
    kind = Kind.PROMPTS
    datasets = {**_BY_DATASET, "imagenet": {"epochs": 5, "batch_size": 32}}
    scale = COSINE_SCALE
    first_view = True

    tokens: Tokens = 5
    blocks: Annotated[int, Range(1, 1000)] = 7
    space: Annotated[int, Range(1, 100_000)] = 512
    alpha: Annotated[float, Range(0, 1)] = 0.7
    weight: Annotated[float, Range(0)] = 0.5
    recipe: RecipeName = AUTHORS
    epochs: Annotated[int, Range(1, MOST)] = 50
    batch_size: Annotated[int, Range(1, MOST)] = 32

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        vision = clip.config.vision
        text = clip.config.text
        count = min(self.blocks, vision.layers, text.layers)
        tokens, text_key, vision_key, readout = jax.random.split(rng, 4)
        # All maps of a tower start as copies of one, as in the authors' code.
        text_kernel, text_bias = initial_linear(text_key, self.space, text.width)
        vision_kernel, vision_bias = initial_linear(vision_key, self.space, vision.width)
        joint = clip.config.projection_width
        # The readout starts at random, as the authors', and not as a copy of the frozen projection of `[cls]`. `α` is a
        # constant of the run, since `transfer` gives each class its own.
        return {
            "tokens": random_prompts(tokens, self.tokens, self.space),
            "text_kernel": jnp.stack([text_kernel] * count),
            "text_bias": jnp.stack([text_bias] * count),
            "vision_kernel": jnp.stack([vision_kernel] * count),
            "vision_bias": jnp.stack([vision_bias] * count),
            "vision_readout": vision.width**-0.5 * jax.random.normal(readout, (vision.width, joint)),
            CONSTANTS: {"alpha": jnp.float32(self.alpha)},
        }

    def adapt(self, learnables: Learnables) -> Adaptation:
        def project_tokens(tower: str) -> jax.Array:
            kernel = learnables[f"{tower}_kernel"]
            bias = learnables[f"{tower}_bias"]
            return jnp.einsum("KS,LSD->LKD", learnables["tokens"], kernel, precision="highest") + bias[:, None]

        # Float32 products (`highest`): all blocks share `R`, so rounding here would enter every gradient.
        return Adaptation(
            text_tokens=project_tokens("text"),
            vision_tokens=project_tokens("vision"),
            vision_readout=learnables["vision_readout"],
        )

    def text(self, template: str, clip: Clip) -> PromptText:
        return PromptText((template,))

    # The same texts: the loss compares features of equal classes, tuned and frozen.
    teacher_text = text

    def _logits(self, features: Features) -> tuple[jax.Array, jax.Array]:
        """`z` and `z_r`, `[B, C]` each."""
        assert features.views is not None
        classes = unit_length(average_texts(features.text))
        # The views are `[cls]` and the mean of the inserted tokens.
        image = features.scale * unit_length(features.views[:, 0]) @ classes.T
        tokens = features.scale * unit_length(features.views[:, 1]) @ classes.T
        return image, tokens

    def logits(self, learnables: Learnables, features: Features) -> jax.Array:
        image, tokens = self._logits(features)
        alpha = learnables[CONSTANTS]["alpha"]
        return alpha * image + (1 - alpha) * tokens

    def losses(self, learnables: Learnables, features: Features, logits: jax.Array, labels: jax.Array) -> Terms:
        # α weighs the losses of both logits apart, not the loss of their mean: the option counts, not the constant that
        # `transfer` changes by class.
        teacher = features.teacher
        assert teacher is not None
        image, tokens = self._logits(features)
        text_products = unit_length(average_texts(features.text)) * unit_length(average_texts(teacher.text))
        image_cosines = (unit_length(features.image) * unit_length(teacher.image)).sum(-1)
        return {
            "cross_entropy": self.alpha * cross_entropy(image, labels),
            "tokens": (1 - self.alpha) * cross_entropy(tokens, labels),
            "image": self.weight * (1 - image_cosines),
            "text": self.weight * (1 - text_products.sum(-1).mean()),
        }

    def transfer(
        self, learnables: Learnables, labels: np.ndarray, source: np.ndarray, target: np.ndarray
    ) -> Learnables:
        # New classes get α = 1: the representation tokens learned nothing of them. One number where all are equal,
        # since a scalar stays valid for any number of classes.
        alpha = np.broadcast_to(learnables[CONSTANTS]["alpha"], source.shape[1])
        alpha = on_host.class_rows(alpha, labels, start=1)
        return {**learnables, CONSTANTS: {"alpha": alpha if (alpha != alpha[0]).any() else alpha[0]}}

    def authors_recipe(self, common: Recipe, shots: int | None) -> Recipe:
        return Recipe(
            learning_rate=0.001,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer="adamw",
            crop=0.5,
            warmup_epochs=min(1, self.epochs - 1),  # none in a training of one epoch
        )
