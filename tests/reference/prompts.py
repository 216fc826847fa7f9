"""Prompt methods beyond `methods`, from their rules: CoCoOp, KgCoOp, ProGrad, PromptSRC, ProDA, UPL, TPT, pixels.

Letters as in `numpy_clip`; `f` and `g` un-normalised features of the tuned model, `s` its scale, `CE` the mean
cross-entropy. Every `…_losses` returns the terms of the loss as they enter its sum, and the logits [B, C].
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.reference import differences, methods, numpy_clip, optimizers, weights
from tests.reference.methods import WORDED, Inputs, Learnables, Reference

Losses = tuple[dict[str, float], np.ndarray]


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Logarithm of the softmax over the last axis."""
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


# CoCoOp (Zhou et al. 2022): a context [T, Dt] that a network of kernels [d, d/16] and [d/16, Dt] shifts for each image


def shifted(clip: Reference, class_names: Sequence[str], learnables: Learnables, feature: np.ndarray) -> Inputs:
    """The text tower's inputs for one image's feature [d]: every token of the context gets the same vector.

    That is `π = W2 relu(W1 unit(f) + b1) + b2`.
    """
    before = numpy_clip.unit(feature) @ learnables["text_hidden_kernel"] + learnables["text_hidden_bias"]
    shift = np.maximum(before, 0) @ learnables["text_output_kernel"] + learnables["text_output_bias"]
    return methods.prepare(clip, "coop", class_names, {"text_context": learnables["text_context"] + shift})


def cocoop_losses(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray, labels: np.ndarray
) -> Losses:
    """Image by image, all texts whole."""
    learnables = weights.double(learnables)
    features = methods.run_image(clip, images).features
    inputs = [shifted(clip, class_names, learnables, feature) for feature in features]
    rows = [methods.forward(clip, each, image[None]).logits for each, image in zip(inputs, images, strict=True)]
    return methods.entropy_of(np.concatenate(rows), labels)


# KgCoOp (Yao et al. 2023)


def kgcoop_losses(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    template: str,
    weight: float = 8,
) -> Losses:
    """`CE + λ (1 − mean_c unit(g_c) · w_c)`, `w_c` the unit feature of the dataset's own template.

    The mean is over all classes, whatever is in the batch.
    """
    saved = methods.forward(clip, methods.prepare(clip, "coop", class_names, learnables), images)
    teacher = numpy_clip.unit(methods.plain_text(clip, class_names, template))
    cosines = (numpy_clip.unit(saved.text_features) * teacher).sum(-1)
    losses, logits = methods.entropy_of(saved.logits, labels)
    return losses | {"distillation": float(weight * (1 - cosines.mean()))}, logits


# ProGrad (Zhu et al. 2022)


def prograd_words(template: str) -> str:
    """A template up to the class name: "a type of pet, a photo of a"."""
    return template.replace(" {}.", "")


def prograd_context(clip: Reference, template: str, *, count: int = 16) -> np.ndarray:
    """The initial context [T, Dt]: zeros, then the embeddings of as many tokens as the template has words.

    Words are what blanks divide: with a comma in the template, which is a token of its own, its last token is not among
    them.
    """
    words = prograd_words(template)
    number = len(words.split(" "))
    tokens = clip.tokenizer.tokenize([words])[0, 1 : 1 + number]
    context = np.zeros((count, clip.config["text_config"]["hidden_size"]))
    context[count - number :] = numpy_clip.token_embeddings(clip.state, tokens)
    return context


def prograd_inputs(clip: Reference, class_names: Sequence[str], learnables: Learnables, template: str) -> Inputs:
    """The text "X … X {words} {name}." with the context over its first tokens; what is left of the words stays."""
    context = weights.double(learnables)["text_context"]
    words = prograd_words(template)
    prefix = " ".join(["X"] * (len(context) - len(words.split(" "))) + [words])
    return methods.fill(clip, methods.texts_of(class_names, prefix + " {}."), context)


def prograd_losses(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    template: str,
    temperature: float = 1.0,
) -> Losses:
    """`CE` and `L_kl = −τ² mean_b Σ_c softmax(z/τ) log softmax(logits/τ)`, `z` plain CLIP's logits; not to be added."""
    saved = methods.forward(clip, prograd_inputs(clip, class_names, learnables, template), images)
    # Nothing of ProGrad's is in the image tower: its features are the plain ones.
    plain = numpy_clip.logits(clip.state, saved.vision.features, methods.plain_text(clip, class_names, template))
    products = numpy_clip.softmax(plain / temperature) * log_softmax(saved.logits / temperature)
    losses, logits = methods.entropy_of(saved.logits, labels)
    return losses | {"kl": float(-(temperature**2) * products.sum(-1).mean())}, logits


def project(cross_entropy: Learnables, kl: Learnables, *, strength: float = 1.0) -> Learnables:
    """For each array by itself, `a` and `b̂` the unit vector of KL's: `a − λ (a · b̂) b̂` where `a · b̂ < 0`, else `a`."""
    projected = {}
    for name, a in cross_entropy.items():
        direction = kl[name] / np.sqrt((kl[name] ** 2).sum())
        along = (a * direction).sum()
        projected[name] = a - strength * along * direction if along < 0 else a
    return projected


# PromptSRC (Khattak et al. 2023)


def promptsrc_teacher(
    clip: Reference, class_names: Sequence[str], images: np.ndarray, templates: Sequence[str]
) -> dict[str, np.ndarray]:
    """Unit features of plain CLIP: `text` [C, d], `image` [B, d] of the very images of the batch.

    The mean over templates is of un-normalised features.
    """
    text = np.mean([methods.plain_text(clip, class_names, template) for template in templates], axis=0)
    return {"text": numpy_clip.unit(text), "image": numpy_clip.unit(methods.run_image(clip, images).features)}


def promptsrc_losses(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    teacher: Mapping[str, np.ndarray],
    text_weight: float = 25,
    image_weight: float = 10,
) -> Losses:
    """The four terms, with `ḡ`, `f̄` the teacher's unit features, `p̄ = softmax(s f̄ ḡᵀ)`, `p = softmax(logits)`.

    `CE + 25 mean_{c,k} |unit(g) − ḡ| + 10 mean_{b,k} |unit(f) − f̄| + (1/(B·C)) Σ_{b,c} p̄ (log p̄ − log p)`.
    """
    saved = methods.forward(clip, methods.prepare(clip, "ivlp", class_names, learnables), images)
    plain = log_softmax(numpy_clip.logits(clip.state, teacher["image"], teacher["text"]))
    losses, logits = methods.entropy_of(saved.logits, labels)
    return losses | {
        "text": float(text_weight * np.abs(numpy_clip.unit(saved.text_features) - teacher["text"]).mean()),
        "image": float(image_weight * np.abs(numpy_clip.unit(saved.vision.features) - teacher["image"]).mean()),
        "kl": float((np.exp(plain) * (plain - log_softmax(saved.logits))).mean()),
    }, logits


def gaussian_weights(epochs: int, mean: float, deviation: float) -> np.ndarray:
    """`w_e ∝ exp(−(e − μ)² / (2σ²))` for e = 1 … E, of sum 1."""
    values = np.exp(-((np.arange(1, epochs + 1) - mean) ** 2) / (2 * deviation**2))
    return values / values.sum()


def average(epochs: Sequence[Learnables], weighting: np.ndarray) -> dict[str, np.ndarray]:
    """`Σ_e w_e θ_e` of the learnables after each epoch's last step: what is saved and evaluated."""
    pairs = list(zip(weighting, epochs, strict=True))
    return {name: sum(w * np.asarray(theta[name], np.float64) for w, theta in pairs) for name in epochs[0]}


# ProDA (Lu et al. 2022): class features over several contexts [P, T, Dt] as a distribution


def proda_losses(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    numbers: Sequence[int],
) -> Losses:
    """Both terms of a step that takes the prompts `numbers`, and the logits of their means.

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
        features.append(numpy_clip.unit(methods.run_text(clip, inputs).features))
    g = np.stack(features)
    scale = np.exp(clip.state["logit_scale"])
    image = numpy_clip.unit(methods.run_image(clip, images).features)
    mean, away = g.mean(0), g - g.mean(0)
    scores = np.zeros((len(image), len(mean)))
    for b, label in enumerate(labels):
        for c in range(len(mean)):
            variance = ((away[:, label] - away[:, c]) ** 2).sum(0) / (len(g) + 1)
            scores[b, c] = scale * image[b] @ mean[c] + 0.5 * scale**2 * (image[b] ** 2 * variance).sum()
    alone = methods.fill(clip, [" ".join(["X"] * count) + "."] * prompts)
    alone.embeddings[:, 1 : 1 + count] = contexts
    h = numpy_clip.unit(methods.run_text(clip, alone).features)
    products = h @ h.T
    np.fill_diagonal(products, 0)
    terms = {
        "bound": numpy_clip.cross_entropy(scores, labels),
        "orthogonality": float(0.1 * np.abs(products).sum() / max(1, len(h) * (len(h) - 1))),
    }
    return terms, scale * image @ mean.T


# UPL (Huang et al. 2022): pseudo-labels of plain CLIP, and an ensemble of CoOp's runs [S, T, Dt] on them


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
) -> Losses:
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
    rows = []
    for views in images:
        values = weights.double(learnables)
        surest = most_confident(methods.task_logits(clip, "coop", class_names, values, views), share)

        def entropy(values: Learnables, views: Any = views, surest: Any = surest) -> np.ndarray:
            return np.array([tpt_entropy(clip, class_names, values, views, surest)])

        optimizer = optimizers.AdamW(weight_decay=decay)
        for _ in range(steps):
            values = optimizer.step(values, differences.in_full(entropy, values)[0], 5e-3)
        rows.append(methods.task_logits(clip, "coop", class_names, values, views[:1])[0])
    return np.stack(rows)


# Visual prompting (Bahng et al. 2022): strips of pixels on the normalised image, `vision_up` and `vision_down`
# [p, R, 3], `vision_left` and `vision_right` [R - 2p, p, 3]


def framed_losses(
    clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray, labels: np.ndarray
) -> Losses:
    """Of plain CLIP on the images with the strips added; "-" is a space too, and no full stop ends a text."""
    strips = weights.double(learnables)
    width, side = strips["vision_up"].shape[:2]
    shown = np.array(images, np.float64)
    shown[:, :width] += strips["vision_up"]
    shown[:, side - width :] += strips["vision_down"]
    shown[:, width : side - width, :width] += strips["vision_left"]
    shown[:, width : side - width, side - width :] += strips["vision_right"]
    texts = methods.texts_of([name.replace("-", " ") for name in class_names], f"This is {WORDED[:-1]}")
    return methods.entropy_of(methods.forward(clip, methods.fill(clip, texts), shown).logits, labels)


def linear_then_cosine_rates(rate: float, warm: int, steps: int) -> tuple[float, ...]:
    """`rate (t + 1) / W` for the first `W` steps, then a cosine over those that are left."""
    return (*(rate * np.arange(1, warm + 1) / warm), *optimizers.cosine_rates(rate, steps - warm))
