"""TCP (Yao et al. 2024, arXiv 2311.18231, TCP: Textual-based Class-aware Prompt tuning)."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp

from clipbias.checks import Range
from clipbias.clip import Adaptation, Clip
from clipbias.clip.layers import activate
from clipbias.tuning.features import Features, average_texts, cross_entropy, unit_length
from clipbias.tuning.method import CONSTANTS, Kind, Learnables, Method, Preset, PromptText, Terms, Tokens
from clipbias.tuning.prompts import initial_linear, random_prompts
from clipbias.tuning.recipe import COMMON, Recipe, RecipeName


@dataclasses.dataclass(frozen=True)
class TCP(Method):
    """A context `[T, Dt]` that class-specific prompts replace inside the text tower.

    A small network turns plain CLIP's unit feature `g⁰_c` of a class into prompts `q_c = W₂ quickgelu(W₁ g⁰_c + b₁) +
    b₂`, `[T, Dt]`. They replace the context tokens at the input of one block. The loss is `cross-entropy + λ (1 - (1/C)
    Σ_c cos(g_c, g⁰_c))`.

    Attributes:
      tokens, weight: `T` and `λ`.
      block: the block, counted from 0; the last one in a text tower with fewer blocks.
      hidden: the network's width is `d` divided by it.
      template: of `g⁰`, with `{}`; `None` for the dataset's own.
      suffix: text after the class name; `None` for that of the dataset's own template.
      recipe: "common", or the "authors'": Adam at 0.002 with an epsilon of 1e-3, 50 epochs, batches of 32.
    """

    presets = {"tcp": Preset("TCP", order=135)}
    kind = Kind.PROMPTS
    # The epsilon of the authors' code, 10^5 times the usual one.
    authors = Recipe(learning_rate=0.002, epochs=50, batch_size=32, optimizer="adam", epsilon=1e-3)
    datasets = {
        "dtd": {"template": "a photo of a {}, a type of texture.", "suffix": ", a type of texture."},
        "fgvc_aircraft": {"template": "a photo of an aircraft {}."},
        "food101": {"template": "a photo of a {}, a type of food."},
        "stanford_cars": {"suffix": ", a type of car"},
    }

    tokens: Tokens = 4
    block: Annotated[int, Range(1, 1000)] = 8
    hidden: Annotated[int, Range(1, 10_000)] = 4
    weight: Annotated[float, Range(0)] = 8.0
    template: str | None = None
    suffix: str | None = None
    recipe: RecipeName = COMMON

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        width = clip.config.projection_width
        text_width = clip.config.text.width
        hidden_width = max(width // self.hidden, 1)
        context, hidden, output = jax.random.split(rng, 3)
        hidden_kernel, hidden_bias = initial_linear(hidden, width, hidden_width)
        output_kernel, output_bias = initial_linear(output, hidden_width, self.tokens * text_width)
        # Class features are zeros here: they come from the teacher's texts, which `read_classes` gets after `init`.
        return {
            "text_context": random_prompts(context, self.tokens, text_width),
            "text_hidden_kernel": hidden_kernel,
            "text_hidden_bias": hidden_bias,
            "text_output_kernel": output_kernel,
            "text_output_bias": output_bias,
            CONSTANTS: {"classes": jnp.zeros((len(class_names), width))},
        }

    def adapt(self, learnables: Learnables) -> Adaptation:
        context = learnables["text_context"]

        def dense(x: jax.Array, name: str) -> jax.Array:
            kernel = learnables[f"text_{name}_kernel"]
            return jnp.matmul(x, kernel, precision="highest") + learnables[f"text_{name}_bias"]

        # `g⁰` is a constant of the run: `read_classes` stores it, so that a step does not encode the teacher's texts.
        hidden = activate(dense(learnables[CONSTANTS]["classes"], "hidden"), "quick_gelu")
        prompts = dense(hidden, "output")
        return Adaptation(
            text_context=context, text_class_prompts=prompts.reshape(-1, *context.shape), text_class_block=self.block
        )

    def text(self, template: str, clip: Clip) -> PromptText:
        suffix = template.partition("{}")[2] if self.suffix is None else self.suffix
        # Placeholders: the context starts at random, so that its words only hold the places.
        return PromptText((" ".join(["X"] * self.tokens) + " {}" + suffix,), context_tokens=self.tokens)

    def teacher_text(self, template: str, clip: Clip) -> PromptText:
        return PromptText((template if self.template is None else self.template,))

    def read_classes(self, learnables: Learnables, text: jax.Array) -> Learnables:
        return {**learnables, CONSTANTS: learnables[CONSTANTS] | {"classes": unit_length(average_texts(text))}}

    def losses(self, learnables: Learnables, features: Features, logits: jax.Array, labels: jax.Array) -> Terms:
        text = unit_length(average_texts(features.text))
        distance = 1 - (text * learnables[CONSTANTS]["classes"]).sum(-1).mean()
        return {"cross_entropy": cross_entropy(logits, labels), "distillation": self.weight * distance}
