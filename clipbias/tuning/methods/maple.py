"""MaPLe (Khattak et al. 2023, arXiv 2210.03117): vision prompts are linear maps of the text prompts."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from clipbias.clip import Adaptation, Clip
from clipbias.constants import WORDS
from clipbias.tuning.method import Kind, Layers, Learnables, Method, Preset, PromptText, Tokens
from clipbias.tuning.prompts import context_text, initial_context, initial_linear, random_prompts


@dataclasses.dataclass(frozen=True)
class MaPLe(Method):
    """Text prompts `p_i [T, Dt]` per layer, and vision prompts `p_i W_i + b_i [T, Dv]`, row 0's map too.

    Attributes:
      tokens: `T`, the same in both towers.
      depth: number of layers with prompts; more than the shallower tower has are all of its layers.
      words: initial context.
    """

    presets = {"maple": Preset("MaPLe", order=400)}
    kind = Kind.PROMPTS

    tokens: Tokens = 2
    depth: Layers = 9
    words: str = WORDS

    def init(self, rng: jax.Array, clip: Clip, class_names: Sequence[str]) -> Learnables:
        text = clip.config.text
        vision = clip.config.vision
        depth = min(self.depth, text.layers, vision.layers)
        context, deep, first, deeper = jax.random.split(rng, 4)
        kernel, bias = initial_linear(first, text.width, vision.width)
        # The maps of deeper layers start as copies of one map.
        deep_kernel, deep_bias = initial_linear(deeper, text.width, vision.width)
        return {
            "text_context": initial_context(context, clip, self.words, self.tokens),
            "text_prompts": random_prompts(deep, depth - 1, self.tokens, text.width),
            "projection_kernel": jnp.stack([kernel] + [deep_kernel] * (depth - 1)),
            "projection_bias": jnp.stack([bias] + [deep_bias] * (depth - 1)),
        }

    def adapt(self, learnables: Learnables) -> Adaptation:
        context = learnables["text_context"]
        prompts = learnables["text_prompts"]
        # Coupling, the paper's idea: gradients of the vision tower reach the text prompts through these maps. So the
        # products are float32. The map of row 0 also acts on the context, before positions are added.
        text = jnp.concatenate([context[None], prompts])
        vision = jnp.einsum("LTD,LDE->LTE", text, learnables["projection_kernel"], precision="highest")
        return Adaptation(
            text_context=context, text_prompts=prompts, vision_prompts=vision + learnables["projection_bias"][:, None]
        )

    def text(self, template: str, clip: Clip) -> PromptText:
        return context_text(clip, self.words, self.tokens)
