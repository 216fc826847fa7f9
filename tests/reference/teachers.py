"""KgCoOp, ProGrad and PromptSRC: prompts that learn from a frozen CLIP too.

Letters: `f` [B, d] and `g` [C, d] un-normalised features of the tuned model, `s` its scale, `y` labels, `CE` the mean
cross-entropy. Every `…_losses` returns the terms of the loss as they enter its sum.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tests.reference import numpy_clip
from tests.reference.methods import Forward, Inputs, Learnables, Reference

Losses = dict[str, float]


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Logarithm of the softmax over the last axis."""
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def plain_text(clip: Reference, class_names: Sequence[str], template: str) -> np.ndarray:
    """Un-normalised text features [C, d] of a template under the frozen model."""
    texts = [template.format(name.replace("_", " ")) for name in class_names]
    return numpy_clip.encode_text(clip.state, clip.config, clip.tokenizer.tokenize(texts)).features


# KgCoOp (Yao et al. 2023)


def kgcoop_losses(
    clip: Reference, saved: Forward, class_names: Sequence[str], labels: np.ndarray, *, template: str, weight: float = 8
) -> Losses:
    """`CE + λ (1 − mean_c unit(g_c) · w_c)`, `w_c` the unit feature of the dataset's own template.

    The mean is over all classes, whatever is in the batch. `saved` is the forward pass of coop with four words.
    """
    teacher = numpy_clip.unit(plain_text(clip, class_names, template))
    cosines = (numpy_clip.unit(saved.text_features) * teacher).sum(-1)
    return {
        "cross_entropy": numpy_clip.cross_entropy(saved.logits, labels),
        "distillation": float(weight * (1 - cosines.mean())),
    }


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
    context = np.asarray(learnables["text_context"], np.float64)
    words = prograd_words(template)
    count = len(context)
    prefix = " ".join(["X"] * (count - len(words.split(" "))) + [words])
    tokens = clip.tokenizer.tokenize([f"{prefix} {name.replace('_', ' ')}." for name in class_names])
    embeddings = numpy_clip.token_embeddings(clip.state, tokens).copy()
    embeddings[:, 1 : 1 + count] = context
    places = np.tile(1 + np.arange(count), (len(tokens), 1))
    return Inputs(tokens, embeddings, places, {}, None, None, None, 0.0)


def prograd_losses(
    clip: Reference,
    saved: Forward,
    class_names: Sequence[str],
    labels: np.ndarray,
    *,
    template: str,
    temperature: float = 1.0,
) -> Losses:
    """`CE` and `L_kl = −τ² mean_b Σ_c softmax(z/τ) log softmax(logits/τ)`, `z` plain CLIP's logits; not to be added."""
    teacher = numpy_clip.softmax(_plain_logits(clip, saved, class_names, template) / temperature)
    student = log_softmax(saved.logits / temperature)
    return {
        "cross_entropy": numpy_clip.cross_entropy(saved.logits, labels),
        "kl": float(-(temperature**2) * (teacher * student).sum(-1).mean()),
    }


def _plain_logits(clip: Reference, saved: Forward, class_names: Sequence[str], template: str) -> np.ndarray:
    # Nothing of ProGrad's is in the image tower: its features are the plain ones.
    return numpy_clip.logits(clip.state, saved.vision.features, plain_text(clip, class_names, template))


def project(cross_entropy: Learnables, kl: Learnables, *, strength: float = 1.0) -> Learnables:
    """For each array by itself, `a` and `b̂` the unit vector of KL's: `a − λ (a · b̂) b̂` where `a · b̂ < 0`, else `a`."""
    projected = {}
    for name, a in cross_entropy.items():
        direction = kl[name] / np.sqrt((kl[name] ** 2).sum())
        along = (a * direction).sum()
        projected[name] = a - strength * along * direction if along < 0 else a
    return projected


# PromptSRC (Khattak et al. 2023)


def raw_ensemble(clip: Reference, class_names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """`unit(mean over templates of un-normalised text features)` [C, d]."""
    return numpy_clip.unit(np.mean([plain_text(clip, class_names, template) for template in templates], axis=0))


def promptsrc_losses(
    clip: Reference,
    saved: Forward,
    teacher: Mapping[str, np.ndarray],
    labels: np.ndarray,
    *,
    text_weight: float = 25,
    image_weight: float = 10,
) -> Losses:
    """The four terms, with `ḡ`, `f̄` the teacher's unit features, `p̄ = softmax(s f̄ ḡᵀ)`, `p = softmax(logits)`.

    `CE + 25 mean_{c,k} |unit(g) − ḡ| + 10 mean_{b,k} |unit(f) − f̄| + (1/(B·C)) Σ_{b,c} p̄ (log p̄ − log p)`.
    """
    plain = log_softmax(numpy_clip.logits(clip.state, teacher["image"], teacher["text"]))
    return {
        "cross_entropy": numpy_clip.cross_entropy(saved.logits, labels),
        "text": float(text_weight * np.abs(numpy_clip.unit(saved.text_features) - teacher["text"]).mean()),
        "image": float(image_weight * np.abs(numpy_clip.unit(saved.vision.features) - teacher["image"]).mean()),
        "kl": float((np.exp(plain) * (plain - log_softmax(saved.logits))).mean()),
    }


def promptsrc_teacher(
    clip: Reference, class_names: Sequence[str], images: np.ndarray, templates: Sequence[str]
) -> dict[str, np.ndarray]:
    """Unit features of plain CLIP: `text` [C, d] by `raw_ensemble`, `image` [B, d] of the very images of the batch."""
    image = numpy_clip.encode_image(clip.state, clip.config, images).features
    return {"text": raw_ensemble(clip, class_names, templates), "image": numpy_clip.unit(image)}


def gaussian_weights(epochs: int, mean: float, deviation: float) -> np.ndarray:
    """`w_e ∝ exp(−(e − μ)² / (2σ²))` for e = 1 … E, of sum 1."""
    values = np.exp(-((np.arange(1, epochs + 1) - mean) ** 2) / (2 * deviation**2))
    return values / values.sum()


def average(epochs: Sequence[Learnables], weighting: np.ndarray) -> dict[str, np.ndarray]:
    """`Σ_e w_e θ_e` of the learnables after each epoch's last step: what is saved and evaluated."""
    pairs = list(zip(weighting, epochs, strict=True))
    return {name: sum(w * np.asarray(theta[name], np.float64) for w, theta in pairs) for name in epochs[0]}
