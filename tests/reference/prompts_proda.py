"""ProDA (Lu et al. 2022): class features over several prompts as a distribution.

The learnable is `text_context` [P, T, Dt]. Names stand in front of the first P/4 contexts, in the middle of the next
P/4 and at the end of the others.
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import gradients, methods, numpy_clip, weights
from tests.reference.gradients import Gradients
from tests.reference.methods import Inputs, Learnables, Reference
from tests.reference.numpy_clip import Tower


def position(prompt: int, prompts: int) -> str:
    """Where the class name stands."""
    if prompts == 1 or prompt >= 2 * (prompts // 4):
        return "end"
    return "front" if prompt < prompts // 4 else "middle"


def texts(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, chosen: Sequence[int]
) -> list[tuple[Inputs, Tower]]:
    """The text tower's pass of each chosen prompt with every class name."""
    found = []
    for p in chosen:
        options = {"worded": False, "position": position(p, len(learnables["text_context"]))}
        inputs = methods.prepare(clip, "coop", class_names, {"text_context": learnables["text_context"][p]}, **options)
        tower = numpy_clip.encode_text(clip.state, clip.config, inputs.tokens, embeddings=inputs.embeddings)
        found.append((inputs, tower))
    return found


def nameless(clip: Reference, learnables: Learnables) -> tuple[Inputs, Tower]:
    """The pass of every prompt alone, "X … X."."""
    contexts = learnables["text_context"]
    prompts, count = contexts.shape[:2]
    tokens = np.repeat(clip.tokenizer.tokenize([" ".join(["X"] * count) + "."]), prompts, axis=0)
    embeddings = numpy_clip.token_embeddings(clip.state, tokens).copy()
    embeddings[:, 1 : 1 + count] = contexts
    places = np.tile(1 + np.arange(count), (prompts, 1))
    inputs = Inputs(tokens, embeddings, places, {}, None, None, None, 0.0)
    return inputs, numpy_clip.encode_text(clip.state, clip.config, tokens, embeddings=embeddings)


def pull(clip: Reference, inputs: Inputs, tower: Tower, text_gradient: np.ndarray) -> np.ndarray:
    """From the gradient of text features [n, d] to that of each text's context [n, T, Dt]."""
    x, *_ = gradients.tower_backward(clip, "text", tower, text_gradient, [], slice(0))
    return np.stack([x[i, places] for i, places in enumerate(inputs.places)])


def logits(clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray) -> np.ndarray:
    """[B, C], the means over all prompts."""
    learnables = weights.double(learnables)
    every = range(len(learnables["text_context"]))
    units = [numpy_clip.unit(tower.features) for _, tower in texts(clip, class_names, learnables, every)]
    image = numpy_clip.unit(numpy_clip.encode_image(clip.state, clip.config, images).features)
    return np.exp(clip.state["logit_scale"]) * image @ np.mean(units, axis=0).T


def loss_and_gradients(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    chosen: Sequence[int],
    *,
    weight: float = 0.1,
) -> tuple[dict[str, float], Gradients]:
    """Both terms and the gradient of the contexts in a step that takes the prompts `chosen`."""
    learnables = weights.double(learnables)
    passes, scale = texts(clip, class_names, learnables, chosen), np.exp(clip.state["logit_scale"])
    image = numpy_clip.unit(numpy_clip.encode_image(clip.state, clip.config, images).features)
    g = np.stack([numpy_clip.unit(tower.features) for _, tower in passes])
    mean, number = g.mean(0), len(passes)
    away = g - mean
    scores = np.zeros((len(image), len(mean)))
    for b, label in enumerate(labels):
        for c in range(len(mean)):
            variance = ((away[:, label] - away[:, c]) ** 2).sum(0) / (number + 1)
            scores[b, c] = scale * image[b] @ mean[c] + 0.5 * scale**2 * (image[b] ** 2 * variance).sum()
    bound = numpy_clip.cross_entropy(scores, labels)
    slopes = gradients.cross_entropy_backward(scores, labels)
    of_mean, of_away = scale * slopes.T @ image, np.zeros_like(away)
    for b, label in enumerate(labels):
        for c in range(len(mean)):
            one = slopes[b, c] * scale**2 * image[b] ** 2 * (away[:, label] - away[:, c]) / (number + 1)
            of_away[:, label] += one
            of_away[:, c] -= one
    of_g = of_away - of_away.mean(0) + of_mean / number

    inputs, tower = nameless(clip, learnables)
    h = numpy_clip.unit(tower.features)
    pairs = max(1, len(h) * (len(h) - 1))
    products = h @ h.T
    np.fill_diagonal(products, 0)
    of_h = 2 * weight * np.sign(products) @ h / pairs
    found = pull(clip, inputs, tower, gradients.unit_backward(tower.features, of_h))
    for q, p in enumerate(chosen):
        own, of_text = passes[q], gradients.unit_backward(passes[q][1].features, of_g[q])
        found[p] += pull(clip, *own, of_text).sum(0)
    return {"bound": bound, "orthogonality": float(weight * np.abs(products).sum() / pairs)}, {"text_context": found}
