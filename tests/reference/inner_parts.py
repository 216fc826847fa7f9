"""MMA, MMRL and TCP: what is put beside a tower's blocks, or between them.

Letters as in `numpy_clip`. A tower is run block by block; `enter` sees the tokens at each block's input, `beside` makes
something of the block's input after its first LayerNorm, which is added to its output. Learnables are nested
dictionaries, flattened here to names with slashes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tests.reference import gradients, methods, numpy_clip, weights
from tests.reference.gradients import Gradients
from tests.reference.methods import Learnables, Reference
from tests.reference.numpy_clip import Block

Losses = dict[str, float]
FINAL = {
    "vision": ("vision_model", "post_layernorm", "visual_projection"),
    "text": ("text_model", "final_layer_norm", "text_projection"),
}
AtLayer = Callable[[int, np.ndarray], np.ndarray]


def same(layer: int, x: np.ndarray) -> np.ndarray:
    """Tokens as they are."""
    return x


@dataclasses.dataclass
class Passed:
    """What a tower computed."""

    features: np.ndarray  # [B, d]
    blocks: list[Block]
    last: np.ndarray  # [B, N, D] after the last block
    rows: np.ndarray  # [B] the row that is read out


def embedded(clip: Reference, tower: str, inputs: np.ndarray, embeddings: np.ndarray | None = None) -> np.ndarray:
    """Tokens at the first block's input: of images `[B, R, R, 3]`, or of token ids `[C, N]`."""
    if tower == "text":
        return numpy_clip.encode_text(clip.state, clip.config, inputs, embeddings=embeddings).embedded
    epsilon = clip.config["vision_config"]["layer_norm_eps"]
    x = numpy_clip.encode_image(clip.state, clip.config, inputs).embedded
    return numpy_clip.layer_norm(clip.state, "vision_model.pre_layrnorm", epsilon, x)


def forward(
    clip: Reference,
    tower: str,
    x: np.ndarray,
    rows: np.ndarray,
    *,
    enter: AtLayer = same,
    beside: AtLayer | None = None,
) -> Passed:
    """All blocks; `rows [B]` are read after the last."""
    sizes, (name, final, projection) = clip.config[f"{tower}_config"], FINAL[tower]
    epsilon, blocks = sizes["layer_norm_eps"], []
    for l in range(sizes["num_hidden_layers"]):
        x, layer = enter(l, x), f"{name}.encoder.layers.{l}"
        length = x.shape[1]
        mask = np.where(np.tril(np.ones((length, length), bool)), 0.0, -np.inf) if tower == "text" else np.zeros(())
        blocks.append(numpy_clip.block(clip.state, layer, sizes, x, mask, 0.0))
        added = 0.0
        if beside is not None:
            added = beside(l, numpy_clip.layer_norm(clip.state, f"{layer}.layer_norm1", epsilon, x))
        x = blocks[-1].output + added
    read = numpy_clip.layer_norm(clip.state, f"{name}.{final}", epsilon, x[np.arange(len(x)), rows])
    return Passed(read @ clip.state[f"{projection}.weight"].T, blocks, x, rows)


def readout_backward(clip: Reference, tower: str, saved: Passed, features: np.ndarray) -> np.ndarray:
    """From the gradient of the features to that of the tokens after the last block."""
    sizes, (name, final, projection) = clip.config[f"{tower}_config"], FINAL[tower]
    x, each = np.zeros_like(saved.last), np.arange(len(saved.last))
    pooled = features @ clip.state[f"{projection}.weight"]
    x[each, saved.rows] = gradients.layer_norm_backward(
        clip.state, f"{name}.{final}", sizes["layer_norm_eps"], saved.last[each, saved.rows], pooled
    )
    return x


def backward(
    clip: Reference,
    tower: str,
    saved: Passed,
    x: np.ndarray,
    *,
    leave: AtLayer = same,
    beside: Callable[[int, np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """From the gradient after the last block to that of the embedded tokens.

    `leave` is `enter`'s; `beside` is given the LayerNorm's output and the gradient of what it made of it, and returns
    the LayerNorm's.
    """
    sizes, name = clip.config[f"{tower}_config"], FINAL[tower][0]
    for l in reversed(range(sizes["num_hidden_layers"])):
        layer, block = f"{name}.encoder.layers.{l}", saved.blocks[l]
        through, _ = gradients.block_backward(clip.state, layer, sizes, block, x)
        if beside is not None:
            norm, epsilon = f"{layer}.layer_norm1", sizes["layer_norm_eps"]
            normed = beside(l, numpy_clip.layer_norm(clip.state, norm, epsilon, block.tokens), x)
            through = through + gradients.layer_norm_backward(clip.state, norm, epsilon, block.tokens, normed)
        x = leave(l, through)
    return x


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Nested dictionaries as names with slashes, float64."""
    found: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        inner = flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        found |= {key: np.asarray(leaf, np.float64) for key, leaf in inner.items()}
    return found


def worded_tokens(clip: Reference, class_names: Sequence[str], template: str) -> np.ndarray:
    """Ids `[C, N]` of a template's texts."""
    return clip.tokenizer.tokenize([template.format(name.replace("_", " ")) for name in class_names])


# MMA (Yang et al. 2024)


def mma_shapes(config: Mapping, *, blocks: int = 8, width: int = 32) -> dict[str, tuple[int, ...]]:
    """Kernels `[blocks, inputs, outputs]` and biases: `down` and `up` of each tower, `shared` of both."""
    found: dict[str, tuple[int, ...]] = {}
    for tower in ("vision", "text"):
        size = config[f"{tower}_config"]["hidden_size"]
        for part, (inputs, outputs) in {"down": (size, width), "up": (width, size)}.items():
            found[f"{tower}/{part}/kernel"], found[f"{tower}/{part}/bias"] = (
                (blocks, inputs, outputs),
                (blocks, outputs),
            )
    return found | {"shared/kernel": (blocks, width, width), "shared/bias": (blocks, width)}


class Adapters:
    """`a (relu(relu(h Dn + b_D) S + b_S) U + b_U)` beside the last blocks of one tower, and its derivative."""

    def __init__(self, learnables: Learnables, tower: str, layers: int, factor: float) -> None:
        names = {"down": f"{tower}/down", "shared": "shared", "up": f"{tower}/up"}
        self._names, self._values, self._factor = names, learnables, factor
        self._start = layers - len(learnables["shared/bias"])
        self.gradients: Gradients = {
            f"{name}/{leaf}": np.zeros_like(learnables[f"{name}/{leaf}"])
            for name in names.values()
            for leaf in ("kernel", "bias")
        }

    def _layer(self, part: str, number: int, x: np.ndarray) -> np.ndarray:
        name = self._names[part]
        return x @ self._values[f"{name}/kernel"][number] + self._values[f"{name}/bias"][number]

    def forward(self, layer: int, normed: np.ndarray) -> np.ndarray:
        """What is added to a block's output."""
        number = layer - self._start
        if number < 0:
            return np.zeros_like(normed)
        inner = np.maximum(self._layer("shared", number, np.maximum(self._layer("down", number, normed), 0)), 0)
        return self._factor * self._layer("up", number, inner)

    def backward(self, layer: int, normed: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """To the LayerNorm's output; the learnables' true gradients are kept in `gradients`."""
        number = layer - self._start
        if number < 0:
            return np.zeros_like(normed)
        first = self._layer("down", number, normed)
        second = self._layer("shared", number, np.maximum(first, 0))
        inputs = {"up": np.maximum(second, 0), "shared": np.maximum(first, 0), "down": normed}
        masks = {"up": second > 0, "shared": first > 0, "down": 1.0}
        gradient = self._factor * gradient
        for part, x in inputs.items():
            name = self._names[part]
            self.gradients[f"{name}/kernel"][number] += np.einsum("bni,bno->io", x, gradient)
            self.gradients[f"{name}/bias"][number] += gradient.sum((0, 1))
            gradient = gradient @ self._values[f"{name}/kernel"][number].T * masks[part]
        return gradient


def mma_loss_and_gradients(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    factor: float = 0.001,
) -> tuple[float, Gradients, np.ndarray]:
    """Mean cross-entropy of `s · cos`, its true gradients, and the logits. A step is given `1 / a` times these."""
    learnables = weights.double(learnables)
    tokens = worded_tokens(clip, class_names, methods.WORDED)
    inputs = {"vision": (images, np.zeros(len(images), int)), "text": (tokens, tokens.argmax(-1))}
    saved, adapters = {}, {}
    for tower, (one, rows) in inputs.items():
        adapters[tower] = Adapters(learnables, tower, clip.config[f"{tower}_config"]["num_hidden_layers"], factor)
        saved[tower] = forward(clip, tower, embedded(clip, tower, one), rows, beside=adapters[tower].forward)
    image, text = (saved[tower].features for tower in ("vision", "text"))
    scale = np.exp(clip.state["logit_scale"])
    scores = scale * numpy_clip.unit(image) @ numpy_clip.unit(text).T
    slopes = scale * gradients.cross_entropy_backward(scores, labels)
    sides = {
        "vision": gradients.unit_backward(image, slopes @ numpy_clip.unit(text)),
        "text": gradients.unit_backward(text, slopes.T @ numpy_clip.unit(image)),
    }
    found: Gradients = {}
    for tower, side in sides.items():
        start = readout_backward(clip, tower, saved[tower], side)
        backward(clip, tower, saved[tower], start, beside=adapters[tower].backward)
        for name, value in adapters[tower].gradients.items():
            found[name] = found.get(name, 0.0) + value
    return numpy_clip.cross_entropy(scores, labels), {name: found[name] for name in learnables}, scores


# TCP (Yao et al. 2024)


def tcp_prompts(learnables: Learnables, plain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`W₂ quickgelu(W₁ g⁰_c + b₁) + b₂` as `[C, T, Dt]`, and what comes before the activation."""
    hidden = plain @ learnables["text_hidden_kernel"] + learnables["text_hidden_bias"]
    active = numpy_clip.activate("quick_gelu", hidden)
    prompts = active @ learnables["text_output_kernel"] + learnables["text_output_bias"]
    return prompts.reshape(len(plain), *learnables["text_context"].shape), hidden


def tcp_losses_and_gradients(
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
) -> tuple[Losses, Gradients, np.ndarray]:
    """`CE(s · cos)` and `8 (1 − mean_c cos(g_c, g⁰_c))`, the gradient of their sum, and the logits.

    The context stands over tokens 1 … T of "X … X {name}{suffix}" at the embeddings, where it gets positions; at the
    input of block `block` the class's own prompts take its place, without.
    """
    learnables = weights.double(learnables)
    context, count = learnables["text_context"], len(learnables["text_context"])
    ids = worded_tokens(clip, class_names, template)
    plain = numpy_clip.unit(numpy_clip.encode_text(clip.state, clip.config, ids).features)
    prompts, hidden = tcp_prompts(learnables, plain)
    tokens = worded_tokens(clip, class_names, " ".join(["X"] * count) + " {}" + suffix)
    embeddings = numpy_clip.token_embeddings(clip.state, tokens).copy()
    embeddings[:, 1 : 1 + count] = context

    def enter(layer: int, x: np.ndarray) -> np.ndarray:
        if layer != block:
            return x
        return np.concatenate([x[:, :1], prompts, x[:, 1 + count :]], axis=1)

    saved = forward(clip, "text", embedded(clip, "text", tokens, embeddings), tokens.argmax(-1), enter=enter)
    image = numpy_clip.unit(numpy_clip.encode_image(clip.state, clip.config, images).features)
    text, scale = numpy_clip.unit(saved.features), np.exp(clip.state["logit_scale"])
    scores = scale * image @ text.T
    losses = {
        "cross_entropy": numpy_clip.cross_entropy(scores, labels),
        "distillation": float(weight * (1 - (text * plain).sum(-1).mean())),
    }
    slopes = scale * gradients.cross_entropy_backward(scores, labels).T @ image - weight * plain / len(plain)
    slopes = gradients.unit_backward(saved.features, slopes)
    of_prompts = np.zeros_like(prompts)

    def leave(layer: int, x: np.ndarray) -> np.ndarray:
        if layer == block:
            of_prompts[:] = x[:, 1 : 1 + count]
            x[:, 1 : 1 + count] = 0.0
        return x

    x = backward(clip, "text", saved, readout_backward(clip, "text", saved, slopes), leave=leave)
    output = of_prompts.reshape(len(plain), -1)
    inner = gradients.activate_backward("quick_gelu", hidden, output @ learnables["text_output_kernel"].T)
    found = {
        "text_context": x[:, 1 : 1 + count].sum(0),
        "text_hidden_kernel": plain.T @ inner,
        "text_hidden_bias": inner.sum(0),
        "text_output_kernel": numpy_clip.activate("quick_gelu", hidden).T @ output,
        "text_output_bias": output.sum(0),
    }
    return losses, found, scores


# MMRL (Guo & Gu 2025)


def mmrl_shapes(config: Mapping, *, tokens: int = 5, blocks: int = 7, space: int = 512) -> dict[str, tuple[int, ...]]:
    """`R`, a map with bias into each of the last blocks of both towers, and the projection of what is read out."""
    found: dict[str, tuple[int, ...]] = {"tokens": (tokens, space)}
    for tower in ("text", "vision"):
        width = config[f"{tower}_config"]["hidden_size"]
        found |= {f"{tower}_kernel": (blocks, space, width), f"{tower}_bias": (blocks, width)}
    return found | {"vision_readout": (config["vision_config"]["hidden_size"], config["projection_dim"])}


class Inserted:
    """`R W_l + b_l` behind the first token: inserted at the first of the last blocks, and replaced at the others."""

    def __init__(self, learnables: Learnables, tower: str, layers: int) -> None:
        self._space, self._tower = learnables["tokens"], tower
        self._kernels, self._biases = learnables[f"{tower}_kernel"], learnables[f"{tower}_bias"]
        self.count, self._start = len(self._space), layers - len(self._kernels)
        self.gradients: Gradients = {
            "tokens": np.zeros_like(self._space),
            f"{tower}_kernel": np.zeros_like(self._kernels),
            f"{tower}_bias": np.zeros_like(self._biases),
        }

    def enter(self, layer: int, x: np.ndarray) -> np.ndarray:
        """The tokens at a block's input."""
        number = layer - self._start
        if number < 0:
            return x
        own = self._space @ self._kernels[number] + self._biases[number]
        rest = x[:, 1:] if number == 0 else x[:, 1 + self.count :]
        return np.concatenate([x[:, :1], np.broadcast_to(own, (len(x), *own.shape)), rest], axis=1)

    def leave(self, layer: int, x: np.ndarray) -> np.ndarray:
        """From their gradient to that of the block before; those of the learnables are kept in `gradients`."""
        number, slots = layer - self._start, slice(1, 1 + self.count)
        if number < 0:
            return x
        own = x[:, slots].sum(0)
        self.gradients["tokens"] += own @ self._kernels[number].T
        self.gradients[f"{self._tower}_kernel"][number] = self._space.T @ own
        self.gradients[f"{self._tower}_bias"][number] = own.sum(0)
        if number == 0:
            return np.concatenate([x[:, :1], x[:, 1 + self.count :]], axis=1)
        x[:, slots] = 0.0
        return x


def mmrl_losses_and_gradients(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    template: str,
    alpha: float = 0.7,
    weight: float = 0.5,
) -> tuple[Losses, Gradients, np.ndarray, np.ndarray]:
    """The four terms, the gradient of their sum, and the logits `z` and `z_r`, 100 times cosines each."""
    learnables, config = weights.double(learnables), clip.config
    tokens = worded_tokens(clip, class_names, template)
    plain = {
        "text": numpy_clip.encode_text(clip.state, config, tokens).features,
        "vision": numpy_clip.encode_image(clip.state, config, images).features,
    }
    inserted = {tower: Inserted(learnables, tower, config[f"{tower}_config"]["num_hidden_layers"]) for tower in plain}
    count = inserted["text"].count
    rows = {"text": tokens.argmax(-1) + count, "vision": np.zeros(len(images), int)}
    saved = {
        tower: forward(clip, tower, embedded(clip, tower, inputs), rows[tower], enter=inserted[tower].enter)
        for tower, inputs in (("text", tokens), ("vision", images))
    }
    epsilon, norm = config["vision_config"]["layer_norm_eps"], "vision_model.post_layernorm"
    own = saved["vision"].last[:, 1 : 1 + count]
    mean = numpy_clip.layer_norm(clip.state, norm, epsilon, own).mean(1)
    read = mean @ learnables["vision_readout"]
    image, text = saved["vision"].features, saved["text"].features
    f, g, r = (numpy_clip.unit(x) for x in (image, text, read))
    z, z_r = 100 * f @ g.T, 100 * r @ g.T
    f_plain, g_plain = numpy_clip.unit(plain["vision"]), numpy_clip.unit(plain["text"])
    losses = {
        "cross_entropy": alpha * numpy_clip.cross_entropy(z, labels),
        "tokens": (1 - alpha) * numpy_clip.cross_entropy(z_r, labels),
        "image": float(weight * (1 - (f * f_plain).sum(-1).mean())),
        "text": float(weight * (1 - (g * g_plain).sum(-1).mean())),
    }
    slope = 100 * alpha * gradients.cross_entropy_backward(z, labels)
    slope_r = 100 * (1 - alpha) * gradients.cross_entropy_backward(z_r, labels)
    of_image = gradients.unit_backward(image, slope @ g - weight * f_plain / len(f))
    of_text = gradients.unit_backward(text, slope.T @ f + slope_r.T @ r - weight * g_plain / len(g))
    of_read = gradients.unit_backward(read, slope_r @ g)
    found: Gradients = {"vision_readout": mean.T @ of_read}
    of_mean = np.repeat((of_read @ learnables["vision_readout"].T)[:, None] / count, count, axis=1)
    last = {
        "vision": readout_backward(clip, "vision", saved["vision"], of_image),
        "text": readout_backward(clip, "text", saved["text"], of_text),
    }
    last["vision"][:, 1 : 1 + count] += gradients.layer_norm_backward(clip.state, norm, epsilon, own, of_mean)
    for tower, x in last.items():
        backward(clip, tower, saved[tower], x, leave=inserted[tower].leave)
        for name, value in inserted[tower].gradients.items():
            found[name] = found.get(name, 0.0) + value
    return losses, {name: found[name] for name in learnables}, z, z_r
