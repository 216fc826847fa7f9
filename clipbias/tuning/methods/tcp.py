"""TCP (Yao et al. 2024, arXiv 2311.18231, TCP: Textual-based Class-aware Prompt tuning).

It is trained by the project's recipe, or with `recipe="authors"` by its authors'.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp

from clipbias.checks import Range
from clipbias.clip import Adaptation, Clip
from clipbias.clip.products import activate
from clipbias.tuning.context import initial_linear, random_prompts
from clipbias.tuning.features import Features, average_texts, unit_length
from clipbias.tuning.method import CONSTANTS, Learnables, Method, Tokens
from clipbias.tuning.methods.coop import coop_recipe
from clipbias.tuning.preset import Kind, Preset
from clipbias.tuning.prompt_text import PromptText
from clipbias.tuning.recipe import AUTHORS, COMMON, Recipe, RecipeName


@dataclasses.dataclass(frozen=True)
class TCP(Method):
    """A context `[T, Dt]` that, inside the text tower, gives way to prompts of each class.

    Of the unit feature `g⁰_c` that plain CLIP has of a class, a small network makes `q_c = W₂ quickgelu(W₁ g⁰_c + b₁) +
    b₂`, `[T, Dt]`, which replaces the context tokens at the input of one block. The loss is `cross-entropy + λ (1 -
    (1/C) Σ_c cos(g_c, g⁰_c))`. Other classes have a `g⁰` of their own and the same network.

    Attributes:
      tokens: `T`.
      block: the block, counted from 0; a shallower text tower's last.
      hidden: width of the network is `d` over this.
      weight: `λ`.
      template: of `g⁰`, with `{}`; the dataset's own where it is empty.
      suffix: what follows the class name in the text around the context; as in the dataset's own template where it is
        empty.
      recipe: "common", or the "authors'": Adam at 0.002 with an epsilon of 1e-3, 50 epochs, batches of 32.
    """

    presets: ClassVar[Mapping[str, Preset]] = {"tcp": Preset("TCP", order=135)}
    kind: ClassVar[Kind | None] = Kind.PROMPTS
    datasets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dtd": {"template": "a photo of a {}, a type of texture.", "suffix": ", a type of texture."},
        "fgvc_aircraft": {"template": "a photo of an aircraft {}."},
        "food101": {"template": "a photo of a {}, a type of food."},
        "stanford_cars": {"suffix": ", a type of car"},
    }

    tokens: Tokens = 4
    block: Annotated[int, Range(1, 1000)] = 8
    hidden: Annotated[int, Range(1, 10_000)] = 4
    weight: Annotated[float, Range(0)] = 8.0
    template: str = ""
    suffix: str = ""
    recipe: RecipeName = COMMON

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        joint, text = clip.config.projection_width, clip.config.text
        context, hidden, output = jax.random.split(rng, 3)
        inner = max(joint // self.hidden, 1)
        kernel, bias = initial_linear(hidden, joint, inner)
        output_kernel, output_bias = initial_linear(output, inner, self.tokens * text.width)
        return {
            "text_context": random_prompts(context, self.tokens, text.width),
            "text_hidden_kernel": kernel,
            "text_hidden_bias": bias,
            "text_output_kernel": output_kernel,
            "text_output_bias": output_bias,
            CONSTANTS: {"classes": jnp.zeros((len(class_names), joint))},
        }

    def adapt(self, learnables: Learnables) -> Adaptation:
        context = learnables["text_context"]

        def dense(x: jax.Array, name: str) -> jax.Array:
            kernel, bias = (learnables[f"text_{name}_{leaf}"] for leaf in ("kernel", "bias"))
            return jnp.matmul(x, kernel, precision="highest") + bias

        prompts = dense(activate(dense(learnables[CONSTANTS]["classes"], "hidden"), "quick_gelu"), "output")
        return Adaptation(
            text_context=context,
            text_class_prompts=prompts.reshape(-1, *context.shape),
            text_class_block=self.block,
        )

    def text(self, template: str, clip: Clip) -> PromptText:
        suffix = self.suffix or template.partition("{}")[2]
        return PromptText((" ".join(["X"] * self.tokens) + " {}" + suffix,), context_tokens=self.tokens)

    def teacher_text(self, template: str, clip: Clip) -> PromptText:
        return PromptText((self.template or template,))

    def read_classes(self, learnables: Learnables, text: jax.Array) -> Learnables:
        constants = learnables[CONSTANTS] | {"classes": unit_length(average_texts(text))}
        return {**learnables, CONSTANTS: constants}

    def losses(
        self, learnables: Learnables, features: Features, logits: jax.Array, labels: jax.Array
    ) -> Mapping[str, jax.Array]:
        text = unit_length(average_texts(features.text))
        distance = 1 - (text * learnables[CONSTANTS]["classes"]).sum(-1).mean()
        return {**super().losses(learnables, features, logits, labels), "distillation": self.weight * distance}

    def recipe_for(self, common: Recipe, shots: int) -> Recipe:
        if self.recipe != AUTHORS:
            return common
        own = coop_recipe(learning_rate=0.002, epochs=50, batch_size=32)
        return dataclasses.replace(own, optimizer="adam", epsilon=1e-3)
