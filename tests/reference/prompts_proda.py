"""ProDA (Lu et al. 2022): class features over several prompts as a distribution.

The learnable is `text_context` [P, T, Dt]. Names stand in front of the first P/4 contexts, in the middle of the next
P/4 and at the end of the others.
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import methods, numpy_clip, weights
from tests.reference.methods import Learnables, Reference
from tests.reference.numpy_clip import Tower


def position(prompt: int, prompts: int) -> str:
    """Where the class name stands."""
    if prompts == 1 or prompt >= 2 * (prompts // 4):
        return "end"
    return "front" if prompt < prompts // 4 else "middle"


def texts(clip: Reference, class_names: Sequence[str], learnables: Learnables, numbers: Sequence[int]) -> list[Tower]:
    """The text tower's pass of each chosen prompt with every class name."""
    towers = []
    for p in numbers:
        options = {"worded": False, "position": position(p, len(learnables["text_context"]))}
        inputs = methods.prepare(clip, "coop", class_names, {"text_context": learnables["text_context"][p]}, **options)
        towers.append(numpy_clip.encode_text(clip.state, clip.config, inputs.tokens, embeddings=inputs.embeddings))
    return towers


def nameless(clip: Reference, learnables: Learnables) -> Tower:
    """The pass of every prompt alone, "X … X."."""
    contexts = learnables["text_context"]
    prompts, count = contexts.shape[:2]
    tokens = np.repeat(clip.tokenizer.tokenize([" ".join(["X"] * count) + "."]), prompts, axis=0)
    embeddings = numpy_clip.token_embeddings(clip.state, tokens).copy()
    embeddings[:, 1 : 1 + count] = contexts
    return numpy_clip.encode_text(clip.state, clip.config, tokens, embeddings=embeddings)


def logits(clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray) -> np.ndarray:
    """[B, C], the means over all prompts."""
    learnables = weights.double(learnables)
    every = range(len(learnables["text_context"]))
    units = [numpy_clip.unit(tower.features) for tower in texts(clip, class_names, learnables, every)]
    image = numpy_clip.unit(numpy_clip.encode_image(clip.state, clip.config, images).features)
    return np.exp(clip.state["logit_scale"]) * image @ np.mean(units, axis=0).T


def losses(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    numbers: Sequence[int],
    *,
    weight: float = 0.1,
) -> tuple[dict[str, float], np.ndarray]:
    """Both terms of a step that takes the prompts `numbers`, and the logits of their means [B, C]."""
    learnables = weights.double(learnables)
    scale = np.exp(clip.state["logit_scale"])
    image = numpy_clip.unit(numpy_clip.encode_image(clip.state, clip.config, images).features)
    g = np.stack([numpy_clip.unit(tower.features) for tower in texts(clip, class_names, learnables, numbers)])
    mean = g.mean(0)
    away = g - g.mean(0)
    scores = np.zeros((len(image), len(mean)))
    for b, label in enumerate(labels):
        for c in range(len(mean)):
            variance = ((away[:, label] - away[:, c]) ** 2).sum(0) / (len(g) + 1)
            scores[b, c] = scale * image[b] @ mean[c] + 0.5 * scale**2 * (image[b] ** 2 * variance).sum()
    h = numpy_clip.unit(nameless(clip, learnables).features)
    products = h @ h.T
    np.fill_diagonal(products, 0)
    terms = {
        "bound": numpy_clip.cross_entropy(scores, labels),
        "orthogonality": float(weight * np.abs(products).sum() / max(1, len(h) * (len(h) - 1))),
    }
    return terms, scale * image @ mean.T
