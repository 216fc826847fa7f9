"""The gradient of logits by the attention of all layers, by hand, which relevancy is made of."""

from collections.abc import Mapping

import numpy as np

from tests.reference import numpy_clip
from tests.reference.methods import Forward, Inputs, Reference
from tests.reference.numpy_clip import Block, Tower
from tests.reference.weights import State


def unit_backward(x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Through `x / ‖x‖` over the last axis."""
    length = np.sqrt((x**2).sum(-1, keepdims=True))
    direction = x / length
    return (gradient - direction * (gradient * direction).sum(-1, keepdims=True)) / length


def layer_norm_backward(state: State, name: str, epsilon: float, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Through LayerNorm, to its input x."""
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    normed = centred / deviation
    scaled = gradient * state[f"{name}.weight"]
    along = (scaled * normed).mean(-1, keepdims=True)
    return (scaled - scaled.mean(-1, keepdims=True) - normed * along) / deviation


def activate_backward(kind: str, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Through QuickGELU: `σ(1.702 x) (1 + 1.702 x (1 - σ(1.702 x)))`."""
    if kind != "quick_gelu":
        raise NotImplementedError(f"no gradient of {kind} in the reference; use quick_gelu.")
    sigmoid = 1 / (1 + np.exp(-1.702 * x))
    return gradient * sigmoid * (1 + 1.702 * x * (1 - sigmoid))


def block_backward(
    state: State, name: str, sizes: Mapping, saved: Block, gradient: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From d/d(output) to d/d(input) [B, N, D], d/d(attention) [B, H, N, N], and d/d(what the attention adds)."""
    heads, epsilon = sizes["num_attention_heads"], sizes["layer_norm_eps"]

    def weight(part: str) -> np.ndarray:
        return state[f"{name}.{part}.weight"]

    hidden = activate_backward(sizes["hidden_act"], saved.hidden, gradient @ weight("mlp.fc2"))
    norm = f"{name}.layer_norm2"
    middle = gradient + layer_norm_backward(state, norm, epsilon, saved.middle, hidden @ weight("mlp.fc1"))
    mixed = numpy_clip.split_heads(middle @ weight("self_attn.out_proj"), heads)
    attention = mixed @ saved.value.swapaxes(-1, -2)
    inner = (attention * saved.attention).sum(-1, keepdims=True)
    scores = saved.attention * (attention - inner) / np.sqrt(saved.query.shape[-1])
    projections = {
        "q": scores @ saved.key,
        "k": scores.swapaxes(-1, -2) @ saved.query,
        "v": saved.tapped.swapaxes(-1, -2) @ mixed,
    }
    total = sum(numpy_clip.merge_heads(x) @ weight(f"self_attn.{part}_proj") for part, x in projections.items())
    entered = layer_norm_backward(state, f"{name}.layer_norm1", epsilon, saved.tokens, total)
    return middle + entered, attention, middle


def tower_backward(
    clip: Reference, tower: str, saved: Tower, features: np.ndarray, replaced: dict[int, slice]
) -> tuple[list[np.ndarray], np.ndarray]:
    """From the gradient of a tower's features [B, d] to that of each layer's attention, [B, H, N, N] each.

    And to that of what the last layer's attention adds, [B, N, D]. `replaced` are the tokens in whose place a block's
    input has prompts.
    """
    sizes = clip.config[f"{tower}_config"]
    each = np.arange(len(saved.last))
    x = np.zeros_like(saved.last)
    read = saved.last[each, saved.rows]
    pooled = features @ clip.state[numpy_clip.PROJECTION[tower]]
    epsilon = sizes["layer_norm_eps"]
    x[each, saved.rows] = layer_norm_backward(clip.state, numpy_clip.LAST_NORM[tower], epsilon, read, pooled)
    attention = []
    added = []
    for l in reversed(range(sizes["num_hidden_layers"])):
        layer = f"{tower}_model.encoder.layers.{l}"
        x, probabilities, middle = block_backward(clip.state, layer, sizes, saved.blocks[l], x)
        attention.insert(0, probabilities)
        added.append(middle)
        if l in replaced:  # what was replaced has no influence any more
            x[:, replaced[l]] = 0.0
    return attention, added[0]


def attention_gradients(
    clip: Reference, inputs: Inputs, saved: Forward, scores: np.ndarray
) -> dict[str, tuple[list[np.ndarray], np.ndarray]]:
    """`tower_backward` of both towers, from the gradient of the logits [B, C]."""
    scaled = np.exp(clip.state["logit_scale"]) * scores
    images, texts = numpy_clip.unit(saved.vision.features), numpy_clip.unit(saved.text_features)
    prompts = () if inputs.vision_prompts is None else inputs.vision_prompts
    last = {l: slice(saved.vision.last.shape[1] - len(row), None) for l, row in enumerate(prompts) if l and len(row)}
    first = {l: slice(1, 1 + len(row)) for l, row in inputs.text_prompts.items()}
    of_images = unit_backward(saved.vision.features, scaled @ texts)
    of_texts = unit_backward(saved.text_features, scaled.T @ images)
    return {
        "vision": tower_backward(clip, "vision", saved.vision, of_images, last),
        "text": tower_backward(clip, "text", saved.text, of_texts, first),
    }
