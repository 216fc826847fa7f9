"""CoCoOp (Zhou et al. 2022, arXiv 2203.05557): a learned context that depends on the image."""

import dataclasses
from collections.abc import Sequence

import jax

from clipbias.clip import Adaptation, Clip
from clipbias.constants import WORDS
from clipbias.tuning.features import unit_length
from clipbias.tuning.method import Kind, Learnables, Method, Preset, PromptText, Tokens
from clipbias.tuning.prompts import context_text, initial_context, initial_linear
from clipbias.tuning.recipe import COMMON, Recipe, RecipeName


@dataclasses.dataclass(frozen=True)
class CoCoOp(Method):
    """Adds one vector per image to every token of a context `[T, Dt]`, computed from its unit-length feature `f`:

        π = W2 relu(W1 f + b1) + b2, of widths d, d/16 and Dt

    Attributes:
      tokens: `T`.
      words: initial context; with fewer words than tokens it starts at N(0, 0.02).
      recipe: "common", or "authors" for 10 epochs at 0.002 with one image a step.
    """

    presets = {"cocoop": Preset("CoCoOp", order=110)}
    kind = Kind.PROMPTS
    authors = Recipe(learning_rate=0.002, epochs=10, batch_size=1)

    tokens: Tokens = 4
    words: str = WORDS
    recipe: RecipeName = COMMON

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        width = clip.config.projection_width
        hidden_width = max(1, width // 16)
        context, hidden, output = jax.random.split(rng, 3)
        # Torch's start, also of `b2`: within ±0.18, where a token's embedding has entries near 0.01. So an untrained
        # CoCoOp is not zero-shot CLIP, as in the authors' code.
        hidden_kernel, hidden_bias = initial_linear(hidden, width, hidden_width)
        output_kernel, output_bias = initial_linear(output, hidden_width, clip.config.text.width)
        return {
            "text_context": initial_context(context, clip, self.words, self.tokens),
            "text_hidden_kernel": hidden_kernel,
            "text_hidden_bias": hidden_bias,
            "text_output_kernel": output_kernel,
            "text_output_bias": output_bias,
        }

    def adapt(self, learnables: Learnables) -> Adaptation:
        # The part that no image changes; `adapt_to` gives the context of an image.
        return Adaptation(text_context=learnables["text_context"])

    def adapt_to(self, learnables: Learnables, image: jax.Array) -> Adaptation:
        # The text tower runs once per image: no text feature can be kept for the next one.
        # float32 products: on GPUs the default (TF32) would give images contexts that depend on the device.
        with jax.default_matmul_precision("highest"):
            hidden = unit_length(image) @ learnables["text_hidden_kernel"] + learnables["text_hidden_bias"]
            shift = jax.nn.relu(hidden) @ learnables["text_output_kernel"] + learnables["text_output_bias"]
        # One vector for all `T` tokens: broadcast over the context.
        return Adaptation(text_context=learnables["text_context"] + shift)

    def text(self, template: str, clip: Clip) -> PromptText:
        return context_text(clip, self.words, self.tokens)
