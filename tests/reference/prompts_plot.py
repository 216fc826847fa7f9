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


def patch_features(clip: Reference, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Un-normalised features of patches [M, B, d], each by the last LayerNorm and the projection, and of `[cls]`."""
    tower = numpy_clip.encode_image(clip.state, clip.config, images)
    rows = numpy_clip.project(clip.state, clip.config, "vision", tower.last)
    return rows[:, 1:].swapaxes(0, 1), rows[:, 0]


def plot_text(clip: Reference, class_names: Sequence[str], learnables: Learnables) -> np.ndarray:
    """Text features [P, C, d] of each prompt, its text "X … X {name}."."""
    towers = []
    for context in weights.double(learnables)["text_context"]:
        inputs = methods.prepare(clip, "coop", class_names, {"text_context": context}, worded=False)
        towers.append(numpy_clip.encode_text(clip.state, clip.config, inputs.tokens, embeddings=inputs.embeddings))
    return np.stack([tower.features for tower in towers])


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
    patches, whole = patch_features(clip, images)
    text = plot_text(clip, class_names, learnables)
    plan = None if point is None else plans(similarities(patches, plot_text(clip, class_names, point)))[0]
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
    count = len(phrases[0].split(" "))
    tokens = clip.tokenizer.tokenize(phrase_texts(clip, phrases))
    return numpy_clip.token_embeddings(clip.state, tokens[:, 1 : 1 + count])


def plus_inputs(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, phrases: Sequence[str]
) -> list[Inputs]:
    """Of pass `p` the vision prompts `p` at the tower's input, and the texts of phrase `p` with context `p`."""
    learnables = weights.double(learnables)
    names = [name.replace("_", " ") for name in class_names]
    inputs = []
    for p, phrase in enumerate(phrase_texts(clip, phrases)):
        context = learnables["text_context"][p]
        tokens = clip.tokenizer.tokenize([f"{phrase} {name}." for name in names])
        embeddings = numpy_clip.token_embeddings(clip.state, tokens).copy()
        embeddings[:, 1 : 1 + len(context)] = context
        places = np.tile(1 + np.arange(len(context)), (len(tokens), 1))
        inputs.append(Inputs(tokens, embeddings, places, {}, None, learnables["vision_prompts"][p], None, 0.0))
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
