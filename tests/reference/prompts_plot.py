"""PLOT and PLOT++ (Chen et al. 2023): several prompts of a class and an image's features, joined by optimal transport.

PLOT's learnables are `text_context` [P, T, Dt]; PLOT++'s `text_context` [4, n, Dt] and `vision_prompts` [4, 1, V, Dv].
Gradients hold the plan of a pair fixed.
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import methods, numpy_clip, weights
from tests.reference.methods import Inputs, Learnables, Reference


def plans(similarity: np.ndarray, most: int = 100) -> tuple[np.ndarray, int]:
    """Sinkhorn's plans of all pairs `[B, C, m, P]`, and how many rounds they took together."""
    m, prompts = similarity.shape[2:]
    kernels = [np.exp(-(1 - pair) / 0.1) for pair in similarity.reshape(-1, m, prompts)]
    rows = [np.ones(m) for _ in kernels]
    columns = [np.ones(prompts) for _ in kernels]
    number = 0
    moved = np.inf
    while number < most and not moved / (len(kernels) * m) < 1e-2:
        number += 1
        moved = 0.0
        for i, kernel in enumerate(kernels):
            before = rows[i]
            rows[i] = (1 / m) / (kernel @ columns[i])
            columns[i] = (1 / prompts) / (kernel.T @ rows[i])
            moved += np.abs(rows[i] - before).sum()
    plans_of_pairs = [np.diag(r) @ kernel @ np.diag(c) for r, kernel, c in zip(rows, kernels, columns, strict=True)]
    return np.reshape(plans_of_pairs, similarity.shape), number


def similarities(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """`S` of every pair [B, C, m, P], of un-normalised features [m, B, d] and [P, C, d]."""
    return np.einsum("mbd,pcd->bcmp", numpy_clip.unit(image), numpy_clip.unit(text))


def transport_logits(clip: Reference, image: np.ndarray, text: np.ndarray, plan: np.ndarray | None = None):
    """`s Σ Π S` [B, C]; a `plan` is taken in place of the features' own."""
    similarity = similarities(image, text)
    plan = plans(similarity)[0] if plan is None else plan
    return np.exp(clip.state["logit_scale"]) * (plan * similarity).sum((2, 3))


def mean_logits(clip: Reference, image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """`s · cos` of one feature per image [B, d] and the mean of the raw text features."""
    return numpy_clip.logits(clip.state, image, text.mean(0))


# PLOT


def plot_features(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Un-normalised features of patches [M, B, d] and of `[cls]` [B, d], and of texts [P, C, d] "X … X {name}."."""
    rows = numpy_clip.project(clip.state, clip.config, "vision", methods.run_image(clip, images).last)
    texts = []
    for context in weights.double(learnables)["text_context"]:
        inputs = methods.prepare(clip, "coop", class_names, {"text_context": context}, worded=False)
        texts.append(methods.run_text(clip, inputs).features)
    return rows[:, 1:].swapaxes(0, 1), rows[:, 0], np.stack(texts)


def plot_logits(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    *,
    pooled: bool = False,
    point: Learnables | None = None,
) -> np.ndarray:
    """[B, C]; with the plan of the learnables `point` in place of their own."""
    patches, whole, text = plot_features(clip, class_names, learnables, images)
    plan = None
    if point is not None:
        plan = plans(similarities(patches, plot_features(clip, class_names, point, images)[2]))[0]
    transport = transport_logits(clip, patches, text, plan)
    return transport + mean_logits(clip, whole, text) if pooled else transport


# PLOT++


def phrase_texts(clip: Reference, phrases: Sequence[str]) -> list[str]:
    """Phrases of at least as many tokens as the first one has words, short ones with "X" behind them."""
    count = len(phrases[0].split(" "))
    texts = []
    for phrase in phrases:
        while clip.tokenizer.tokenize([phrase])[0].argmax() - 1 < count:
            phrase = f"{phrase} X"
        texts.append(phrase)
    return texts


def start_context(clip: Reference, phrases: Sequence[str]) -> np.ndarray:
    """[P, n, Dt], the embeddings of the first tokens."""
    return methods.fill(clip, phrase_texts(clip, phrases)).embeddings[:, 1 : 1 + len(phrases[0].split(" "))]


def plus_inputs(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, phrases: Sequence[str]
) -> list[Inputs]:
    """Of pass `p` the vision prompts `p` at the tower's input, and the texts of phrase `p` with context `p`."""
    learnables = weights.double(learnables)
    passes = zip(phrase_texts(clip, phrases), learnables["text_context"], learnables["vision_prompts"], strict=True)
    inputs = []
    for phrase, context, prompts in passes:
        inputs.append(methods.fill(clip, methods.texts_of(class_names, f"{phrase} {{}}."), context))
        inputs[-1].vision_prompts = prompts
    return inputs


def plus_features(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray, phrases: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Of images [P, B, d] and of texts [P, C, d] in each pass."""
    passes = [methods.forward(clip, each, images) for each in plus_inputs(clip, class_names, learnables, phrases)]
    return np.stack([x.vision.features for x in passes]), np.stack([x.text_features for x in passes])


def plus_logits(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    *,
    phrases: Sequence[str],
    first: bool = False,
    point: Learnables | None = None,
) -> np.ndarray:
    """Logits [B, C] of the `first` training, or of the second, which are evaluated; with the plan of `point`."""
    image, text = plus_features(clip, class_names, learnables, images, phrases)
    plan = None
    if point is not None:
        plan = plans(similarities(*plus_features(clip, class_names, point, images, phrases)))[0]
    transport = transport_logits(clip, image, text, plan)
    return transport + mean_logits(clip, image.mean(0), text) if first else transport
