"""Methods with several contexts for all classes: PLOT, ProDA, UPL."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar

import jax

from clipbias.checks import Range
from clipbias.clip import Adaptation, Clip
from clipbias.tuning.context import context_text, random_prompts
from clipbias.tuning.method import Learnables, Method, Tokens
from clipbias.tuning.preset import Kind
from clipbias.tuning.prompt_text import PromptText

Sets = Annotated[int, Range(1, 100)]


@dataclasses.dataclass(frozen=True)
class ContextSets(Method):
    """`S` contexts `[S, T, Dt]` for all classes, from N(0, 0.02), each a text with every class name.

    Attributes:
      tokens: `T`.
      sets: `S`.
    """

    kind: ClassVar[Kind | None] = Kind.PROMPTS

    tokens: Tokens = 16
    sets: Sets = 4

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        return {"text_context": random_prompts(rng, self.sets, self.tokens, clip.config.text.width)}

    def adapt(self, learnables: Learnables) -> Adaptation:
        return Adaptation(text_context=learnables["text_context"])

    def text(self, template: str, clip: Clip) -> PromptText:
        prompt = context_text(clip, "", self.tokens)
        return dataclasses.replace(prompt, templates=prompt.templates * self.sets)
