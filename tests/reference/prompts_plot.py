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


# PLOT++


def phrase_texts(clip: Reference, phrases: Sequence[str]) -> list[str]:
    """Phrases of at least as many tokens as the first one has words, short ones with "X" behind them."""
    count, found = len(phrases[0].split(" ")), []
    for phrase in phrases:
        while clip.tokenizer.tokenize([phrase])[0].argmax() - 1 < count:
            phrase = f"{phrase} X"
        found.append(phrase)
    return found


def start_context(clip: Reference, phrases: Sequence[str]) -> np.ndarray:
    """[P, n, Dt], the embeddings of the first tokens."""
    count = len(phrases[0].split(" "))
    tokens = clip.tokenizer.tokenize(phrase_texts(clip, phrases))
    return numpy_clip.token_embeddings(clip.state, tokens[:, 1 : 1 + count])


def plus_forward(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray, phrases: Sequence[str]
) -> list[tuple[Inputs, Forward]]:
    """Pass `p`: vision prompts `p` at the tower's input, and the texts of phrase `p` with context `p`."""
    found = []
    names = [name.replace("_", " ") for name in class_names]
    for p, phrase in enumerate(phrase_texts(clip, phrases)):
        context = learnables["text_context"][p]
        tokens = clip.tokenizer.tokenize([f"{phrase} {name}." for name in names])
        embeddings = numpy_clip.token_embeddings(clip.state, tokens).copy()
        embeddings[:, 1 : 1 + len(context)] = context
        places = np.tile(1 + np.arange(len(context)), (len(tokens), 1))
        inputs = Inputs(tokens, embeddings, places, {}, None, learnables["vision_prompts"][p], None, 0.0)
        found.append((inputs, methods.forward(clip, inputs, images)))
    return found


def plus_scores(
    clip: Reference, passes: Sequence[tuple[Inputs, Forward]], *, first: bool, plan: np.ndarray | None = None
) -> np.ndarray:
    """Logits [B, C] of the `first` training, or of the second, which are evaluated."""
    image = np.stack([saved.vision.features for _, saved in passes])
    text = np.stack([saved.text_features for _, saved in passes])
    found = transport_logits(clip, image, text, plan)
    return found + mean_logits(clip, image.mean(0), text) if first else found


def plus_loss_and_gradients(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    phrases: Sequence[str],
    first: bool = False,
) -> tuple[dict[str, float], Gradients]:
    """The mean cross-entropy and the gradient of both learnables."""
    learnables = weights.double(learnables)
    passes = plus_forward(clip, class_names, learnables, images, phrases)
    found = plus_scores(clip, passes, first=first)
    scores = gradients.cross_entropy_backward(found, labels)
    image = np.stack([saved.vision.features for _, saved in passes])
    text = np.stack([saved.text_features for _, saved in passes])
    to_image, to_text = transport_backward(clip, image, text, scores)
    if first:
        mean_image, mean_text = mean_backward(clip, image.mean(0), text, scores)
        to_image, to_text = to_image + mean_image / len(image), to_text + mean_text
    each = [
        gradients.pull_back_features(clip, inputs, saved, to_image[p], to_text[p])[0]
        for p, (inputs, saved) in enumerate(passes)
    ]
    return {"cross_entropy": numpy_clip.cross_entropy(found, labels)}, {
        "text_context": np.stack([one["text_context"].sum(0) for one in each]),
        "vision_prompts": np.stack([one["vision_prompts"] for one in each]),
    }
