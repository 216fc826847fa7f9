"""CLIP itself on a Hugging Face state dict: towers, features, logits and loss.

Letters: `B` images (or texts), `C` classes, `N` tokens, `M` patches, `T`/`V` text/vision prompts, `L` layers,
`H` heads, `D` width, `d` joint width.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tests.reference.weights import State

LAST_NORM = {"vision": "vision_model.post_layernorm", "text": "text_model.final_layer_norm"}
PROJECTION = {"vision": "visual_projection.weight", "text": "text_projection.weight"}

AtLayer = Callable[[int, np.ndarray], np.ndarray]
# What is added to a linear layer's output, from the layer's name and its input.
Branch = Callable[[str, np.ndarray], np.ndarray | float]


def no_branch(name: str, x: np.ndarray) -> float:
    """Linear layers as they are."""
    return 0.0


def unchanged(layer: int, x: np.ndarray) -> np.ndarray:
    """Tokens as they are."""
    return x


def linear(state: State, name: str, x: np.ndarray) -> np.ndarray:
    """`x @ Wᵀ + b`, [..., Din] -> [..., Dout]."""
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(state: State, name: str, epsilon: float, x: np.ndarray) -> np.ndarray:
    """LayerNorm over the last axis, with the biased variance."""
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * state[f"{name}.weight"] + state[f"{name}.bias"]


def activate(kind: str, x: np.ndarray) -> np.ndarray:
    """QuickGELU `x σ(1.702 x)`, or GELU with the error function."""
    if kind == "quick_gelu":
        return x / (1 + np.exp(-1.702 * x))
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def split_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """[B, N, D] -> [B, H, N, D/H]."""
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, heads, width // heads).transpose(0, 2, 1, 3)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """[B, H, N, D/H] -> [B, N, D]."""
    batch, heads, tokens, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * width)


@dataclasses.dataclass
class Block:
    """What one block computed; everything that a gradient or a statistic needs."""

    tokens: np.ndarray  # [B, N, D] the block's input, prompts already put in
    query: np.ndarray  # [B, H, N, D/H]
    key: np.ndarray  # [B, H, N, D/H]
    value: np.ndarray  # [B, H, N, D/H]
    attention: np.ndarray  # [B, H, N, N] after softmax
    tapped: np.ndarray  # [B, H, N, N] attention plus the tap
    attended: np.ndarray  # [B, N, D] the attention's output, after its output projection
    middle: np.ndarray  # [B, N, D] after the attention's residual
    hidden: np.ndarray  # [B, N, 4D] before the activation
    output: np.ndarray  # [B, N, D]
    after: np.ndarray  # [B, N, D] the output, and what a method adds to it


def block(
    state: State,
    name: str,
    sizes: Mapping,
    x: np.ndarray,
    mask: np.ndarray,
    tap: np.ndarray | float,
    branch: Branch = no_branch,
) -> Block:
    """`x += MHA(LN1(x)); x += MLP(LN2(x))`; `tap` is added to attention probabilities, `branch` to linear layers."""
    heads, epsilon = sizes["num_attention_heads"], sizes["layer_norm_eps"]

    def apply(part: str, x: np.ndarray) -> np.ndarray:
        return linear(state, f"{name}.{part}", x) + branch(f"{name}.{part}", x)

    normed = layer_norm(state, f"{name}.layer_norm1", epsilon, x)
    query, key, value = (split_heads(apply(f"self_attn.{part}_proj", normed), heads) for part in ("q", "k", "v"))
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1]) + mask
    attention = softmax(scores)
    tapped = attention + tap
    attended = apply("self_attn.out_proj", merge_heads(tapped @ value))
    middle = x + attended
    hidden = apply("mlp.fc1", layer_norm(state, f"{name}.layer_norm2", epsilon, middle))
    output = middle + apply("mlp.fc2", activate(sizes["hidden_act"], hidden))
    return Block(x, query, key, value, attention, tapped, attended, middle, hidden, output, output)


@dataclasses.dataclass
class Tower:
    """A tower's features, its blocks, and what came out."""

    features: np.ndarray  # [B, d] un-normalised
    blocks: list[Block]
    last: np.ndarray  # [B, N, D] after the last block (and its bias)
    rows: np.ndarray  # [B] the row that the feature is read from


def spread(bias: np.ndarray, rows: np.ndarray, length: int) -> np.ndarray:
    """What a layer's bias adds to each token, [B, length, D].

    Args:
      bias: [D]: the same to all. [2, D]: the first vector to the token of each sequence that is read out, the second to
        all others. [N, D]: its own to each of the first N tokens, nothing to those behind them.
      rows: [B], the tokens that are read out.
    """
    added = np.zeros((len(rows), length, bias.shape[-1]))
    if bias.ndim == 1:
        added[:] = bias
    elif len(bias) == 2:
        added[:] = bias[1]
        for sequence, row in enumerate(rows):
            added[sequence, row] = bias[0]
    else:
        for token, vector in enumerate(bias[:length]):
            added[:, token] = vector
    return added


def causal_mask(length: int) -> np.ndarray:
    """Zero at the tokens that a query sees, else minus infinity."""
    return np.where(np.tril(np.ones((length, length), bool)), 0.0, -np.inf)


def run_blocks(
    state: State,
    config: Mapping,
    tower: str,
    x: np.ndarray,
    rows: np.ndarray,
    *,
    enter: AtLayer = unchanged,
    beside: AtLayer | None = None,
    bias: np.ndarray | None = None,
    taps: Sequence[np.ndarray] | None = None,
    branch: Branch = no_branch,
) -> Tower:
    """All blocks, and the feature of `rows` after the last.

    Args:
      enter: what stands at a block's input in place of the tokens.
      beside: what is added to a block's output, made of its input after its first LayerNorm.
      bias: `bias[l]` is added after block l (`spread`).
      taps: L arrays that broadcast to [B, H, N, N], added to the attention probabilities.
      branch: what is added to the linear layers of the blocks.
    """
    sizes = config[f"{tower}_config"]
    blocks = []
    for l in range(sizes["num_hidden_layers"]):
        x = enter(l, x)
        name = f"{tower}_model.encoder.layers.{l}"
        mask = causal_mask(x.shape[1]) if tower == "text" else np.zeros(())
        blocks.append(block(state, name, sizes, x, mask, 0.0 if taps is None else taps[l], branch))
        added: np.ndarray | float = 0.0
        if beside is not None:
            added = beside(l, layer_norm(state, f"{name}.layer_norm1", sizes["layer_norm_eps"], x))
        x = blocks[-1].output + added
        if bias is not None:
            x = x + spread(bias[l], rows, x.shape[1])
        blocks[-1].after = x
    return Tower(project(state, config, tower, x[np.arange(len(x)), rows]), blocks, x, rows)


def project(state: State, config: Mapping, tower: str, x: np.ndarray) -> np.ndarray:
    """Features of tokens after the last block."""
    normed = layer_norm(state, LAST_NORM[tower], config[f"{tower}_config"]["layer_norm_eps"], x)
    return normed @ state[PROJECTION[tower]].T


def patch_tokens(state: State, sizes: Mapping, images: np.ndarray) -> np.ndarray:
    """[B, R, R, 3] -> [B, M, D]: the convolution whose stride is its size, without bias, row by row."""
    patch = sizes["patch_size"]
    batch, height, width, _ = images.shape
    kernel = state["vision_model.embeddings.patch_embedding.weight"]
    tokens = []
    for row in range(height // patch):
        for column in range(width // patch):
            window = images[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens.append(window.transpose(0, 3, 1, 2).reshape(batch, -1) @ kernel.reshape(len(kernel), -1).T)
    return np.stack(tokens, axis=1)


def embed_image(state: State, config: Mapping, images: np.ndarray, prompts: np.ndarray | None = None) -> np.ndarray:
    """[B, N, D] tokens at the first block's input; `prompts` [V, D] are appended after the position embeddings."""
    sizes = config["vision_config"]
    patches = patch_tokens(state, sizes, np.asarray(images, np.float64))
    batch, _, width = patches.shape
    cls = np.broadcast_to(state["vision_model.embeddings.class_embedding"], (batch, 1, width))
    x = np.concatenate([cls, patches], 1) + state["vision_model.embeddings.position_embedding.weight"]
    if prompts is not None:
        x = np.concatenate([x, np.broadcast_to(prompts, (batch, *prompts.shape))], 1)
    return layer_norm(state, "vision_model.pre_layrnorm", sizes["layer_norm_eps"], x)


def encode_image(
    state: State, config: Mapping, images: np.ndarray, *, prompts: np.ndarray | None = None, **options: Any
) -> Tower:
    """Image features.

    Args:
      images: [B, R, R, 3], CLIP-normalised.
      prompts: [depth, V, D]: row 0 is appended after the position embeddings and before the pre-LayerNorm;
        row i replaces the last V tokens at block i's input.
      options: of `run_blocks`.
    """
    x = embed_image(state, config, images, None if prompts is None else prompts[0])

    def enter(layer: int, x: np.ndarray) -> np.ndarray:
        if prompts is None or not prompts.shape[1] or not 0 < layer < len(prompts):
            return x
        kept = x[:, : -prompts.shape[1]]
        return np.concatenate([kept, np.broadcast_to(prompts[layer], (len(x), *prompts[layer].shape))], 1)

    return run_blocks(state, config, "vision", x, np.zeros(len(x), int), enter=enter, **options)


def token_embeddings(state: State, tokens: np.ndarray) -> np.ndarray:
    """[C, N] ids -> [C, N, D]."""
    return state["text_model.embeddings.token_embedding.weight"][tokens]


def encode_text(
    state: State,
    config: Mapping,
    tokens: np.ndarray,
    *,
    embeddings: np.ndarray | None = None,
    prompts: Mapping[int, np.ndarray] | None = None,
    **options: Any,
) -> Tower:
    """Text features, always at full context length.

    Args:
      tokens: [C, N] ids; the feature is read where the id is largest, which is the first end of text.
      embeddings: [C, N, D] to use instead of the tokens' own, before position embeddings.
      prompts: {layer: [T, D], or [C, T, D]} replacing tokens 1..T at that block's input.
      options: of `run_blocks`.
    """
    if embeddings is None:
        embeddings = token_embeddings(state, tokens)
    x = embeddings + state["text_model.embeddings.position_embedding.weight"]

    def enter(layer: int, x: np.ndarray) -> np.ndarray:
        if not prompts or layer not in prompts:
            return x
        x = x.copy()
        x[:, 1 : 1 + prompts[layer].shape[-2]] = prompts[layer]
        return x

    return run_blocks(state, config, "text", x, tokens.argmax(-1), **{"enter": enter} | options)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def logits(state: State, image_features: np.ndarray, text_features: np.ndarray) -> np.ndarray:
    """`exp(logit_scale) · cos`, [B, d] and [C, d] -> [B, C]."""
    return np.exp(state["logit_scale"]) * unit(image_features) @ unit(text_features).T


def cross_entropy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy of [B, C] logits."""
    highest = scores.max(-1, keepdims=True)
    total = np.log(np.exp(scores - highest).sum(-1)) + highest[:, 0]
    return float((total - scores[np.arange(len(labels)), labels]).mean())
