"""MMA, MMRL and TCP: methods that put something beside the blocks of a tower, or between them.

Letters as in `numpy_clip`. Learnables are named with slashes, as `flatten` makes them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.reference import methods, numpy_clip, weights
from tests.reference.methods import Learnables, Reference
from tests.reference.numpy_clip import AtLayer, Tower

Losses = dict[str, float]
Shapes = dict[str, tuple[int, ...]]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Nested dictionaries as names with slashes, float64."""
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        inner = flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        flat |= {key: np.asarray(leaf, np.float64) for key, leaf in inner.items()}
    return flat


def forward(
    clip: Reference,
    tower: str,
    inputs: np.ndarray,
    *,
    enter: AtLayer = numpy_clip.unchanged,
    beside: AtLayer | None = None,
    later: int = 0,
) -> Tower:
    """A tower on images `[B, R, R, 3]` or token ids `[C, N]`, with what enters its blocks and what stands beside them.

    The feature of a text is read so many tokens `later` than its end was.
    """
    if tower == "vision":
        x, rows = numpy_clip.embed_image(clip.state, clip.config, inputs), np.zeros(len(inputs), int)
    else:
        x = numpy_clip.token_embeddings(clip.state, inputs)
        x = x + clip.state["text_model.embeddings.position_embedding.weight"]
        rows = inputs.argmax(-1) + later
    return numpy_clip.run_blocks(clip.state, clip.config, tower, x, rows, enter=enter, beside=beside)


def towers_of(clip: Reference, class_names: Sequence[str], template: str, images: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs of both towers."""
    return {"text": clip.tokenizer.tokenize(methods.texts_of(class_names, template)), "vision": images}


def shallower(config: Mapping[str, Any]) -> int:
    """Blocks of the shallower tower: the last of these have something inserted, in a deeper tower by their numbers."""
    return min(config[f"{tower}_config"]["num_hidden_layers"] for tower in ("vision", "text"))


# MMA (Yang et al. 2024): adapters beside the last blocks of both towers, which share a layer


def mma_shapes(config: Mapping, *, blocks: int = 8, width: int = 32) -> Shapes:
    """Kernels `[blocks, inputs, outputs]` and biases: `down` and `up` of each tower, `shared` of both."""
    layers = {"shared": (width, width)}
    for tower in ("vision", "text"):
        size = config[f"{tower}_config"]["hidden_size"]
        layers |= {f"{tower}/down": (size, width), f"{tower}/up": (width, size)}
    kernels: Shapes = {f"{name}/kernel": (blocks, *shape) for name, shape in layers.items()}
    return kernels | {f"{name}/bias": (blocks, outputs) for name, (_, outputs) in layers.items()}


def adapters(learnables: Learnables, tower: str, layers: int, factor: float) -> AtLayer:
    """`a (relu(relu(h Dn + b_D) S + b_S) U + b_U)` beside the last blocks of one tower."""
    start = layers - len(learnables["shared/bias"])

    def beside(layer: int, normed: np.ndarray) -> np.ndarray:
        if not start <= layer < layers:
            return np.zeros_like(normed)

        def linear(name: str, x: np.ndarray) -> np.ndarray:
            return x @ learnables[f"{name}/kernel"][layer - start] + learnables[f"{name}/bias"][layer - start]

        hidden = np.maximum(linear("shared", np.maximum(linear(f"{tower}/down", normed), 0)), 0)
        return factor * linear(f"{tower}/up", hidden)

    return beside


def mma_losses(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    factor: float = 0.001,
) -> tuple[Losses, np.ndarray]:
    """Mean cross-entropy of `s · cos`, and the logits. A step is given `1 / a` times its gradients."""
    learnables = weights.double(learnables)
    features = {}
    for tower, inputs in towers_of(clip, class_names, methods.WORDED, images).items():
        beside = adapters(learnables, tower, shallower(clip.config), factor)
        features[tower] = forward(clip, tower, inputs, beside=beside).features
    return methods.entropy_of(numpy_clip.logits(clip.state, features["vision"], features["text"]), labels)


# MMRL (Guo & Gu 2025): tokens of one space, mapped into the last blocks of both towers behind the first token


def mmrl_shapes(config: Mapping, *, tokens: int = 5, blocks: int = 7, space: int = 512) -> Shapes:
    """`R`, a map with bias into each of the last blocks of both towers, and the projection of what is read out."""
    shapes: Shapes = {"tokens": (tokens, space)}
    for tower in ("text", "vision"):
        width = config[f"{tower}_config"]["hidden_size"]
        shapes |= {f"{tower}_kernel": (blocks, space, width), f"{tower}_bias": (blocks, width)}
    return shapes | {"vision_readout": (config["vision_config"]["hidden_size"], config["projection_dim"])}


def inserted(learnables: Learnables, tower: str, layers: int) -> AtLayer:
    """`R W_l + b_l` behind the first token: inserted at the first of the last blocks, and replaced at the others."""
    space = learnables["tokens"]
    start = layers - len(learnables[f"{tower}_kernel"])

    def enter(layer: int, x: np.ndarray) -> np.ndarray:
        if not start <= layer < layers:
            return x
        tokens = space @ learnables[f"{tower}_kernel"][layer - start] + learnables[f"{tower}_bias"][layer - start]
        rest = x[:, 1:] if layer == start else x[:, 1 + len(space) :]
        return np.concatenate([x[:, :1], np.broadcast_to(tokens, (len(x), *tokens.shape)), rest], axis=1)

    return enter


def mmrl_losses(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    template: str,
    alpha: float = 0.7,
    weight: float = 0.5,
) -> tuple[Losses, np.ndarray]:
    """The four terms, and the logits `0.7 z + 0.3 z_r`, 100 times cosines each."""
    learnables = weights.double(learnables)
    count = len(learnables["tokens"])
    unit = numpy_clip.unit
    saved, plain = {}, {}
    for tower, inputs in towers_of(clip, class_names, template, images).items():
        enter = inserted(learnables, tower, shallower(clip.config))
        saved[tower] = forward(clip, tower, inputs, enter=enter, later=count)
        plain[tower] = unit(forward(clip, tower, inputs).features)
    learned = saved["vision"].last[:, 1 : 1 + count]
    epsilon = clip.config["vision_config"]["layer_norm_eps"]
    mean = numpy_clip.layer_norm(clip.state, numpy_clip.LAST_NORM["vision"], epsilon, learned).mean(1)
    f, g, r = (unit(x) for x in (saved["vision"].features, saved["text"].features, mean @ learnables["vision_readout"]))
    z, z_r = 100 * f @ g.T, 100 * r @ g.T
    losses = {
        "cross_entropy": alpha * numpy_clip.cross_entropy(z, labels),
        "tokens": (1 - alpha) * numpy_clip.cross_entropy(z_r, labels),
        "image": float(weight * (1 - (f * plain["vision"]).sum(-1).mean())),
        "text": float(weight * (1 - (g * plain["text"]).sum(-1).mean())),
    }
    return losses, alpha * z + (1 - alpha) * z_r


# TCP (Yao et al. 2024): a context, which each class replaces inside the text tower by prompts made of its plain text


def tcp_losses(
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
) -> tuple[Losses, np.ndarray]:
    """`CE(s · cos)` and `8 (1 − mean_c cos(g_c, g⁰_c))`, and the logits.

    The context stands over tokens 1 … T of "X … X {name}{suffix}" at the embeddings, where it gets positions. At the
    input of block `block` the class's own prompts `W₂ quickgelu(W₁ g⁰_c + b₁) + b₂` `[T, Dt]` take its place, without.
    """
    learnables = weights.double(learnables)
    context = learnables["text_context"]
    plain = numpy_clip.unit(methods.plain_text(clip, class_names, template))
    hidden = plain @ learnables["text_hidden_kernel"] + learnables["text_hidden_bias"]
    active = numpy_clip.activate("quick_gelu", hidden)
    prompts = active @ learnables["text_output_kernel"] + learnables["text_output_bias"]
    words = " ".join(["X"] * len(context)) + " {}" + suffix
    inputs = methods.fill(clip, methods.texts_of(class_names, words), context)
    inputs.text_prompts = {block: prompts.reshape(len(plain), *context.shape)}
    saved = methods.forward(clip, inputs, images)
    cosines = (numpy_clip.unit(saved.text_features) * plain).sum(-1)
    losses, logits = methods.entropy_of(saved.logits, labels)
    return losses | {"distillation": float(weight * (1 - cosines.mean()))}, logits
