"""ProDA, UPL, TPT and visual prompting, from their rules.

The learnable of ProDA and UPL is `text_context` [P, T, Dt], of TPT [T, Dt].
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.reference import differences, methods, numpy_clip, optimizers, weights
from tests.reference.methods import Inputs, Learnables, Reference

# ProDA (Lu et al. 2022): class features over several prompts as a distribution


def proda_losses(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    numbers: Sequence[int],
) -> tuple[dict[str, float], np.ndarray]:
    """Both terms of a step that takes the prompts `numbers`, and the logits of their means [B, C].

    Names stand in front of the first P/4 contexts, in the middle of the next P/4 and at the end of the others. The
    second term is of every prompt alone, "X … X.".
    """
    contexts = weights.double(learnables)["text_context"]
    prompts, count = contexts.shape[:2]
    features = []
    for p in numbers:
        position = "front" if p < prompts // 4 else "middle" if p < 2 * (prompts // 4) else "end"
        options = {"worded": False, "position": position}
        inputs = methods.prepare(clip, "coop", class_names, {"text_context": contexts[p]}, **options)
        tower = numpy_clip.encode_text(clip.state, clip.config, inputs.tokens, embeddings=inputs.embeddings)
        features.append(numpy_clip.unit(tower.features))
    g = np.stack(features)
    scale = np.exp(clip.state["logit_scale"])
    image = numpy_clip.unit(numpy_clip.encode_image(clip.state, clip.config, images).features)
    mean, away = g.mean(0), g - g.mean(0)
    scores = np.zeros((len(image), len(mean)))
    for b, label in enumerate(labels):
        for c in range(len(mean)):
            variance = ((away[:, label] - away[:, c]) ** 2).sum(0) / (len(g) + 1)
            scores[b, c] = scale * image[b] @ mean[c] + 0.5 * scale**2 * (image[b] ** 2 * variance).sum()
    tokens = np.repeat(clip.tokenizer.tokenize([" ".join(["X"] * count) + "."]), prompts, axis=0)
    embeddings = numpy_clip.token_embeddings(clip.state, tokens).copy()
    embeddings[:, 1 : 1 + count] = contexts
    h = numpy_clip.unit(numpy_clip.encode_text(clip.state, clip.config, tokens, embeddings=embeddings).features)
    products = h @ h.T
    np.fill_diagonal(products, 0)
    terms = {
        "bound": numpy_clip.cross_entropy(scores, labels),
        "orthogonality": float(0.1 * np.abs(products).sum() / max(1, len(h) * (len(h) - 1))),
    }
    return terms, scale * image @ mean.T


# UPL (Huang et al. 2022): pseudo-labels of plain CLIP, and an ensemble of CoOp's runs on them


def pseudo_labels(
    clip: Reference, class_names: Sequence[str], images: np.ndarray, *, template: str, shots: int
) -> list[tuple[int, int]]:
    """(image, label): of each class the `shots` images of highest probability among those labelled so, surest first."""
    scores = methods.task_logits(clip, "zero_shot", class_names, {}, images, template=template)
    probabilities = numpy_clip.softmax(scores)
    picks = []
    for label in range(len(class_names)):
        places = [image for image, row in enumerate(probabilities) if row.argmax() == label]
        picks += [(image, label) for image in sorted(places, key=lambda image: -probabilities[image, label])[:shots]]
    return picks


def upl_losses(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, float], np.ndarray]:
    """The runs' mean cross-entropies, added up, and the mean of the runs' logits, not of their probabilities."""
    runs = [{"text_context": context} for context in weights.double(learnables)["text_context"]]
    scores = [methods.task_logits(clip, "coop", class_names, run, images, worded=False) for run in runs]
    return {"cross_entropy": sum(numpy_clip.cross_entropy(row, labels) for row in scores)}, np.mean(scores, axis=0)


# TPT (Shu et al. 2022): a context that is tuned on the views [1 + V, R, R, 3] of one test image, the image itself first


def most_confident(scores: np.ndarray, share: float) -> np.ndarray:
    """The views of smallest entropy, as many as `share` of them rounded down, one at least."""
    p = numpy_clip.softmax(scores)
    return np.argsort(-(p * np.log(p)).sum(-1), kind="stable")[: max(1, int(share * len(scores)))]


def tpt_entropy(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, views: np.ndarray, surest: np.ndarray
) -> float:
    """The entropy of the surest views' mean probabilities."""
    mean = numpy_clip.softmax(methods.task_logits(clip, "coop", class_names, learnables, views[surest])).mean(0)
    return float(-(mean * np.log(mean)).sum())


def tpt_logits(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    *,
    share: float,
    decay: float,
    steps: int = 1,
) -> np.ndarray:
    """[B, C] of images with their views: each after its own steps of AdamW at 5e-3, from the same start."""

    def logits(values: Learnables, views: np.ndarray) -> np.ndarray:
        return methods.task_logits(clip, "coop", class_names, values, views)

    rows = []
    for views in images:
        surest = most_confident(logits(weights.double(learnables), views), share)

        def gradient(values: Learnables, views: Any = views, surest: Any = surest) -> Learnables:
            entropy = lambda x: np.array([tpt_entropy(clip, class_names, x, views, surest)])  # noqa: E731
            return differences.in_full(entropy, values)[0]

        moved = optimizers.run(optimizers.AdamW(weight_decay=decay), gradient, learnables, [5e-3] * steps)
        rows.append(logits(moved, views[:1])[0])
    return np.stack(rows)


# Visual prompting (Bahng et al. 2022): strips of pixels on the normalised image, `vision_up` and `vision_down`
# [p, R, 3], `vision_left` and `vision_right` [R - 2p, p, 3]


def framed_logits(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray
) -> np.ndarray:
    """[B, C] of plain CLIP on the images with the strips added; names are lower-case, and no full stop ends a text."""
    strips = weights.double(learnables)
    width, side = strips["vision_up"].shape[:2]
    shown = np.array(images, np.float64)
    shown[:, :width] += strips["vision_up"]
    shown[:, side - width :] += strips["vision_down"]
    shown[:, width : side - width, :width] += strips["vision_left"]
    shown[:, width : side - width, side - width :] += strips["vision_right"]
    names = [name.lower().replace("_", " ").replace("-", " ") for name in class_names]
    tokens = clip.tokenizer.tokenize([f"This is a photo of a {name}" for name in names])
    embeddings = numpy_clip.token_embeddings(clip.state, tokens)
    inputs = Inputs(tokens, embeddings, np.zeros((len(tokens), 0), int), {}, None, None, None, 0.0)
    return methods.forward(clip, inputs, shown).logits


def linear_then_cosine_rates(rate: float, warm: int, steps: int) -> tuple[float, ...]:
    """`rate (t + 1) / W` for the first `W` steps, then a cosine over those that are left."""
    later = rate * 0.5 * (1 + np.cos(np.pi * np.arange(steps - warm) / (steps - warm)))
    return (*(rate * np.arange(1, warm + 1) / warm), *later)
