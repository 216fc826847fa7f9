"""PLOT and PLOT++ (Chen et al. 2023): several prompts of a class and an image's features, joined by optimal transport.

PLOT's learnables are `text_context` [P, T, Dt]; PLOT++'s `text_context` [4, n, Dt] and `vision_prompts` [4, 1, V, Dv].
`F` [m, B, d] and `G` [P, C, d] are unit features. The plan of a pair is held fixed in gradients.
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import gradients, methods, numpy_clip, weights
from tests.reference.gradients import Gradients
from tests.reference.methods import Forward, Inputs, Learnables, Reference


def plans(similarity: np.ndarray, most: int = 100) -> tuple[np.ndarray, int]:
    """Sinkhorn's plans of all pairs `[B, C, m, P]`, and how many rounds they took together."""
    m, prompts = similarity.shape[2:]
    kernels = [np.exp(-(1 - pair) / 0.1) for pair in similarity.reshape(-1, m, prompts)]
    rows, columns = [np.ones(m) for _ in kernels], [np.ones(prompts) for _ in kernels]
    number, moved = 0, np.inf
    while number < most and not moved / (len(kernels) * m) < 1e-2:
        number += 1
        moved = 0.0
        for i, kernel in enumerate(kernels):
            before = rows[i]
            rows[i] = (1 / m) / (kernel @ columns[i])
            columns[i] = (1 / prompts) / (kernel.T @ rows[i])
            moved += np.abs(rows[i] - before).sum()
    found = [np.diag(r) @ kernel @ np.diag(c) for r, kernel, c in zip(rows, kernels, columns, strict=True)]
    return np.reshape(found, similarity.shape), number


def similarities(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """`S` of every pair [B, C, m, P], of un-normalised features [m, B, d] and [P, C, d]."""
    return np.einsum("mbd,pcd->bcmp", numpy_clip.unit(image), numpy_clip.unit(text))


def transport_logits(clip: Reference, image: np.ndarray, text: np.ndarray, plan: np.ndarray | None = None):
    """`s Σ Π S` [B, C]; a `plan` is taken in place of the features' own."""
    similarity = similarities(image, text)
    plan = plans(similarity)[0] if plan is None else plan
    return np.exp(clip.state["logit_scale"]) * (plan * similarity).sum((2, 3))


def transport_backward(
    clip: Reference, image: np.ndarray, text: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """From the gradient of the logits [B, C] to those of un-normalised features [m, B, d] and [P, C, d]."""
    plan, _ = plans(similarities(image, text))
    along = np.exp(clip.state["logit_scale"]) * scores[:, :, None, None] * plan
    to_image = np.einsum("bcmp,pcd->mbd", along, numpy_clip.unit(text))
    to_text = np.einsum("bcmp,mbd->pcd", along, numpy_clip.unit(image))
    return gradients.unit_backward(image, to_image), gradients.unit_backward(text, to_text)


def mean_logits(clip: Reference, image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """`s · cos` of one feature per image [B, d] and the mean of the raw text features."""
    return numpy_clip.logits(clip.state, image, text.mean(0))


def mean_backward(
    clip: Reference, image: np.ndarray, text: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Through it, to both."""
    scaled = np.exp(clip.state["logit_scale"]) * scores
    mean = text.mean(0)
    to_image = gradients.unit_backward(image, scaled @ numpy_clip.unit(mean))
    to_mean = gradients.unit_backward(mean, scaled.T @ numpy_clip.unit(image))
    return to_image, np.broadcast_to(to_mean / len(text), text.shape)


# PLOT


def patch_features(clip: Reference, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Un-normalised features of patches [M, B, d], each by the last LayerNorm and the projection, and of `[cls]`."""
    tower = numpy_clip.encode_image(clip.state, clip.config, images)
    epsilon = clip.config["vision_config"]["layer_norm_eps"]
    normed = numpy_clip.layer_norm(clip.state, "vision_model.post_layernorm", epsilon, tower.last)
    rows = normed @ clip.state["visual_projection.weight"].T
    return rows[:, 1:].swapaxes(0, 1), rows[:, 0]


def plot_forward(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray
) -> list[tuple[Inputs, Forward]]:
    """Each prompt's own pass, its text "X … X {name}."."""
    found = []
    for context in learnables["text_context"]:
        inputs = methods.prepare(clip, "coop", class_names, {"text_context": context}, worded=False)
        found.append((inputs, methods.forward(clip, inputs, images)))
    return found


def plot_logits(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray, *, pooled: bool = False
) -> np.ndarray:
    """[B, C]."""
    learnables = weights.double(learnables)
    patches, whole = patch_features(clip, images)
    text = np.stack([saved.text_features for _, saved in plot_forward(clip, class_names, learnables, images)])
    found = transport_logits(clip, patches, text)
    return found + mean_logits(clip, whole, text) if pooled else found


def plot_loss_and_gradients(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    pooled: bool = False,
) -> tuple[dict[str, float], Gradients]:
    """The mean cross-entropy and the gradient of the contexts."""
    learnables = weights.double(learnables)
    patches, whole = patch_features(clip, images)
    passes = plot_forward(clip, class_names, learnables, images)
    text = np.stack([saved.text_features for _, saved in passes])
    found = plot_logits(clip, class_names, learnables, images, pooled=pooled)
    scores = gradients.cross_entropy_backward(found, labels)
    to_text = transport_backward(clip, patches, text, scores)[1]
    if pooled:
        to_text = to_text + mean_backward(clip, whole, text, scores)[1]
    contexts = [
        gradients.pull_back_features(clip, inputs, saved, np.zeros_like(whole), to_text[p])[0]["text_context"].sum(0)
        for p, (inputs, saved) in enumerate(passes)
    ]
    return {"cross_entropy": numpy_clip.cross_entropy(found, labels)}, {"text_context": np.stack(contexts)}
