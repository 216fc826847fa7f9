"""CoOp (Zhou et al. 2022, arXiv 2109.01134): a learned context in the prompt text."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp

from clipbias.checks import Choices
from clipbias.clip import Clip
from clipbias.constants import WORDS
from clipbias.tuning.method import Kind, Learnables, Method, Preset, PromptText, Tokens
from clipbias.tuning.prompts import POSITIONS, context_text, initial_context


@dataclasses.dataclass(frozen=True)
class CoOp(Method):
    """Replaces the embeddings of the context words `[T, Dt]`, before position embeddings are added.

    Attributes:
      tokens: `T`. The context starts from `words` if they have as many tokens, else at N(0, 0.02) with placeholders.
      words: initial context.
      class_specific: one context per class, `[C, T, Dt]`.
      position: where the class name stands: "end", "middle" or "front".
    """

    presets = {"coop": Preset("CoOp", order=100), "coop_16": Preset("CoOp (16 words)", {"tokens": 16}, order=101)}
    kind = Kind.PROMPTS

    tokens: Tokens = 4
    words: str = WORDS
    class_specific: bool = False
    position: Annotated[str, Choices(POSITIONS)] = "end"

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        # Embeddings, without positions: the text tower adds these, wherever the class name stands.
        if not self.class_specific:
            return {"text_context": initial_context(rng, clip, self.words, self.tokens)}
        # A key per class, so that random contexts differ between classes. Words give all classes the same start.
        keys = jax.random.split(rng, len(class_names))
        return {"text_context": jnp.stack([initial_context(key, clip, self.words, self.tokens) for key in keys])}

    def text(self, template: str, clip: Clip) -> PromptText:
        return context_text(clip, self.words, self.tokens, self.position)
