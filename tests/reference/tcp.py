"""TCP (Yao et al. 2024): a context, which each class replaces inside the text tower by prompts made of its plain text.

Letters as in `numpy_clip`; the tower is run by `inner_parts`.
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import gradients, numpy_clip, weights
from tests.reference.gradients import Gradients
from tests.reference.inner_parts import Losses, backward, embedded, forward, readout_backward, worded_tokens
from tests.reference.methods import Learnables, Reference


def tcp_prompts(learnables: Learnables, plain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`W₂ quickgelu(W₁ g⁰_c + b₁) + b₂` as `[C, T, Dt]`, and what comes before the activation."""
    hidden = plain @ learnables["text_hidden_kernel"] + learnables["text_hidden_bias"]
    active = numpy_clip.activate("quick_gelu", hidden)
    prompts = active @ learnables["text_output_kernel"] + learnables["text_output_bias"]
    return prompts.reshape(len(plain), *learnables["text_context"].shape), hidden


def tcp_losses_and_gradients(
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
) -> tuple[Losses, Gradients, np.ndarray]:
    """`CE(s · cos)` and `8 (1 − mean_c cos(g_c, g⁰_c))`, the gradient of their sum, and the logits.

    The context stands over tokens 1 … T of "X … X {name}{suffix}" at the embeddings, where it gets positions; at the
    input of block `block` the class's own prompts take its place, without.
    """
    learnables = weights.double(learnables)
    context, count = learnables["text_context"], len(learnables["text_context"])
    ids = worded_tokens(clip, class_names, template)
    plain = numpy_clip.unit(numpy_clip.encode_text(clip.state, clip.config, ids).features)
    prompts, hidden = tcp_prompts(learnables, plain)
    tokens = worded_tokens(clip, class_names, " ".join(["X"] * count) + " {}" + suffix)
    embeddings = numpy_clip.token_embeddings(clip.state, tokens).copy()
    embeddings[:, 1 : 1 + count] = context

    def enter(layer: int, x: np.ndarray) -> np.ndarray:
        if layer != block:
            return x
        return np.concatenate([x[:, :1], prompts, x[:, 1 + count :]], axis=1)

    saved = forward(clip, "text", embedded(clip, "text", tokens, embeddings), tokens.argmax(-1), enter=enter)
    image = numpy_clip.unit(numpy_clip.encode_image(clip.state, clip.config, images).features)
    text, scale = numpy_clip.unit(saved.features), np.exp(clip.state["logit_scale"])
    scores = scale * image @ text.T
    losses = {
        "cross_entropy": numpy_clip.cross_entropy(scores, labels),
        "distillation": float(weight * (1 - (text * plain).sum(-1).mean())),
    }
    slopes = scale * gradients.cross_entropy_backward(scores, labels).T @ image - weight * plain / len(plain)
    slopes = gradients.unit_backward(saved.features, slopes)
    of_prompts = np.zeros_like(prompts)

    def leave(layer: int, x: np.ndarray) -> np.ndarray:
        if layer == block:
            of_prompts[:] = x[:, 1 : 1 + count]
            x[:, 1 : 1 + count] = 0.0
        return x

    x = backward(clip, "text", saved, readout_backward(clip, "text", saved, slopes), leave=leave)
    output = of_prompts.reshape(len(plain), -1)
    inner = gradients.activate_backward("quick_gelu", hidden, output @ learnables["text_output_kernel"].T)
    found = {
        "text_context": x[:, 1 : 1 + count].sum(0),
        "text_hidden_kernel": plain.T @ inner,
        "text_hidden_bias": inner.sum(0),
        "text_output_kernel": numpy_clip.activate("quick_gelu", hidden).T @ output,
        "text_output_bias": output.sum(0),
    }
    return losses, found, scores
