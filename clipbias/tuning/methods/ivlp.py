"""IVLP: independent vision-language prompting (Khattak et al. 2023, arXiv 2210.03117)."""

import dataclasses
from collections.abc import Sequence

import jax

from clipbias.clip import Clip
from clipbias.constants import WORDS
from clipbias.tuning.method import Depth, Kind, Learnables, Method, Preset, PromptText, TokensOrNone
from clipbias.tuning.prompts import context_text, initial_context, random_prompts


@dataclasses.dataclass(frozen=True)
class IVLP(Method):
    """Deep prompts in both towers, learned independently.

    Text: row 0 starts from the first `T` tokens of the words and gets position embeddings; row `i`, at N(0, 0.02),
    replaces tokens `1 … T` at block `i`'s input. Vision: as `VPT`. From block `depth` on nothing is replaced.

    Attributes:
      text_tokens: `T`; 0 for no text prompts.
      vision_tokens: `V`; 0 for no vision prompts.
      depth: number of layers with prompts, at most each tower's; `None` for all layers (the paper).
      text_depth, vision_depth: the same for one tower; `None` for `depth`.
      words: initial context.
    """

    presets = {
        "ivlp": Preset("IVLP", order=300),
        # The presets of the public code; the paper has prompts in all layers.
        "ivlp_9": Preset("IVLP (9 layers)", {"depth": 9}, order=301),
        "ivlp_2_2": Preset("IVLP (2 + 2)", {"depth": 9, "text_tokens": 2, "vision_tokens": 2}, order=302),
        # As many parameters as bias tuning: one token per layer and tower.
        "ivlp_matched": Preset("IVLP (matched budget)", {"text_tokens": 1, "vision_tokens": 1}, order=303),
        # As many as bias tuning by kind: two tokens.
        "ivlp_matched_2": Preset("IVLP (matched, two tokens)", {"text_tokens": 2, "vision_tokens": 2}, order=304),
    }
    kind = Kind.PROMPTS

    text_tokens: TokensOrNone = 4
    vision_tokens: TokensOrNone = 4
    depth: Depth = None
    text_depth: Depth = None
    vision_depth: Depth = None
    words: str = WORDS

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        text = clip.config.text
        vision = clip.config.vision
        context, deep, visual = jax.random.split(rng, 3)
        # Row 0 of the text prompts is `text_context`: the embedding layer adds positions to it. Deeper rows get none.
        learnables = {}
        if self.text_tokens:
            depth = min(self.text_depth or self.depth or text.layers, text.layers)
            learnables["text_context"] = initial_context(context, clip, self.words, self.text_tokens)
            learnables["text_prompts"] = random_prompts(deep, depth - 1, self.text_tokens, text.width)
        if self.vision_tokens:
            depth = min(self.vision_depth or self.depth or vision.layers, vision.layers)
            learnables["vision_prompts"] = random_prompts(visual, depth, self.vision_tokens, vision.width)
        return learnables

    def text(self, template: str, clip: Clip) -> PromptText:
        return context_text(clip, self.words, self.text_tokens)
