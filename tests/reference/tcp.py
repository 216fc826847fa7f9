"""TCP (Yao et al. 2024): a context, which each class replaces inside the text tower by prompts made of its plain text.

Letters as in `numpy_clip`.
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import numpy_clip, weights
from tests.reference.inner_parts import Losses, worded_tokens
from tests.reference.methods import Learnables, Reference


def tcp_prompts(learnables: Learnables, plain: np.ndarray) -> np.ndarray:
    """`W₂ quickgelu(W₁ g⁰_c + b₁) + b₂` as `[C, T, Dt]`."""
    hidden = plain @ learnables["text_hidden_kernel"] + learnables["text_hidden_bias"]
    active = numpy_clip.activate("quick_gelu", hidden)
    prompts = active @ learnables["text_output_kernel"] + learnables["text_output_bias"]
    return prompts.reshape(len(plain), *learnables["text_context"].shape)


def tcp_losses(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    template: str,
    suffix: str,
    block: int,
    weight: float = 8.0,
) -> tuple[Losses, np.ndarray]:
    """`CE(s · cos)` and `8 (1 − mean_c cos(g_c, g⁰_c))`, and the logits.

    The context stands over tokens 1 … T of "X … X {name}{suffix}" at the embeddings, where it gets positions; at the
    input of block `block` the class's own prompts take its place, without.
    """
    learnables = weights.double(learnables)
    context = learnables["text_context"]
    count = len(learnables["text_context"])
    ids = worded_tokens(clip, class_names, template)
    plain = numpy_clip.unit(numpy_clip.encode_text(clip.state, clip.config, ids).features)
    prompts = tcp_prompts(learnables, plain)
    tokens = worded_tokens(clip, class_names, " ".join(["X"] * count) + " {}" + suffix)
    embeddings = numpy_clip.token_embeddings(clip.state, tokens).copy()
    embeddings[:, 1 : 1 + count] = context

    saved = numpy_clip.encode_text(clip.state, clip.config, tokens, embeddings=embeddings, prompts={block: prompts})
    image = numpy_clip.unit(numpy_clip.encode_image(clip.state, clip.config, images).features)
    text = numpy_clip.unit(saved.features)
    scale = np.exp(clip.state["logit_scale"])
    scores = scale * image @ text.T
    losses = {
        "cross_entropy": numpy_clip.cross_entropy(scores, labels),
        "distillation": float(weight * (1 - (text * plain).sum(-1).mean())),
    }
    return losses, scores
