"""CoCoOp (Zhou et al. 2022, arXiv 2203.05557): a context that each image shifts.

It is trained by the project's recipe, or with `recipe="authors"` by its authors'.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax

from clipbias.clip import Adaptation, Clip
from clipbias.constants import WORDS
from clipbias.tuning.context import context_text, initial_context, initial_linear
from clipbias.tuning.features import unit_length
from clipbias.tuning.method import Learnables, Method, Tokens
from clipbias.tuning.methods.coop import coop_recipe
from clipbias.tuning.preset import Kind, Preset
from clipbias.tuning.prompt_text import PromptText
from clipbias.tuning.recipe import AUTHORS, COMMON, Recipe, RecipeName


@dataclasses.dataclass(frozen=True)
class CoCoOp(Method):
    """Shifts every token of a context `[T, Dt]` by one vector for each image, of its unit-length feature `f`:

        π = W2 relu(W1 f + b1) + b2, of widths d, d/16 and Dt

    The text tower runs for each image. `π` is not zero at the start: a fresh CoCoOp is not zero-shot CLIP.

    Attributes:
      tokens: `T`.
      words: initial context; with fewer words than tokens it starts at N(0, 0.02).
      recipe: "common", or "authors" for 10 epochs at 0.002 with one image a step.
    """

    presets: ClassVar[Mapping[str, Preset]] = {"cocoop": Preset("CoCoOp", order=110)}
    kind: ClassVar[Kind | None] = Kind.PROMPTS

    tokens: Tokens = 4
    words: str = WORDS
    recipe: RecipeName = COMMON

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        width, text_width = clip.config.projection_width, clip.config.text.width
        context, hidden, output = jax.random.split(rng, 3)
        units = max(1, width // 16)
        kernel, bias = initial_linear(hidden, width, units)
        output_kernel, output_bias = initial_linear(output, units, text_width)
        return {
            "text_context": initial_context(context, clip, self.words, self.tokens),
            "text_hidden_kernel": kernel,
            "text_hidden_bias": bias,
            "text_output_kernel": output_kernel,
            "text_output_bias": output_bias,
        }

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation(text_context=learnables["text_context"])

    def adapt_to(self, learnables: Learnables, image: jax.Array) -> Adaptation:
        names = ("hidden_kernel", "hidden_bias", "output_kernel", "output_bias")
        kernel, bias, output_kernel, output_bias = (learnables[f"text_{name}"] for name in names)
        with jax.default_matmul_precision("highest"):
            shift = jax.nn.relu(unit_length(image) @ kernel + bias) @ output_kernel + output_bias
        return Adaptation(text_context=learnables["text_context"] + shift)

    def text(self, template: str, clip: Clip) -> PromptText:
        return context_text(clip, self.words, self.tokens)

    def recipe_for(self, common: Recipe, shots: int) -> Recipe:
        return coop_recipe(learning_rate=0.002, epochs=10, batch_size=1) if self.recipe == AUTHORS else common
