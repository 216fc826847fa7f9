"""Relevancy of one (image, class) pair (Eq. 13 to 16; Chefer et al. 2021) by full matrices, and rivals.

The gradient of logits by the attention of all layers, which they are made of, is written by hand.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tests.reference import methods, numpy_clip
from tests.reference.methods import Forward, Inputs, Reference
from tests.reference.numpy_clip import Block, Tower, merge_heads
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


@dataclasses.dataclass
class Pair:
    """One pair's attention and the gradient of its scaled logit with respect to it, per layer [H, N, N]."""

    score: float
    end: int
    vision_attention: list[np.ndarray]
    vision_gradient: list[np.ndarray]
    text_attention: list[np.ndarray]
    text_gradient: list[np.ndarray]


def only(inputs: Inputs, target: int) -> Inputs:
    """The same inputs with one class alone."""
    residual = inputs.text_residual
    return Inputs(
        tokens=inputs.tokens[target : target + 1],
        embeddings=inputs.embeddings[target : target + 1],
        places=inputs.places[target : target + 1],
        text_prompts=inputs.text_prompts,
        text_bias=inputs.text_bias,
        vision_prompts=inputs.vision_prompts,
        vision_bias=inputs.vision_bias,
        text_residual=residual if np.ndim(residual) == 0 else residual[target : target + 1],
    )


def pair(clip: Reference, inputs: Inputs, image: np.ndarray, target: int) -> Pair:
    """`y = exp(logit_scale) · cos(f, g)` of `image` [R, R, 3] and class `target`, with both towers' ∂y/∂A."""
    alone = only(inputs, target)
    saved = methods.forward(clip, alone, image[None])
    slopes = attention_gradients(clip, alone, saved, np.ones((1, 1)))
    return Pair(
        score=float(saved.logits[0, 0]),
        end=int(saved.text.rows[0]),
        vision_attention=[block.attention[0] for block in saved.vision.blocks],
        vision_gradient=[layer[0] for layer in slopes["vision"][0]],
        text_attention=[block.attention[0] for block in saved.text.blocks],
        text_gradient=[layer[0] for layer in slopes["text"][0]],
    )


def relevancy_matrix(
    attention: Sequence[np.ndarray], gradient: Sequence[np.ndarray], start_layer: int = 0
) -> np.ndarray:
    """`R = I; R <- R + mean_h relu(G ⊙ A) R`, from `start_layer` to the last layer; [N, N]."""
    matrix = np.eye(attention[0].shape[-1])
    for l in range(start_layer, len(attention)):
        mean = np.maximum(gradient[l] * attention[l], 0).mean(0)
        matrix = matrix + mean @ matrix
    return matrix


def relevancy(
    clip: Reference, inputs: Inputs, image: np.ndarray, target: int, *, start_layer: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(vision [M + V], text [e]): row `[cls]` without its own column, and row EOS up to EOS."""
    maps = pair(clip, inputs, image, target)
    vision = relevancy_matrix(maps.vision_attention, maps.vision_gradient, start_layer)
    text = relevancy_matrix(maps.text_attention, maps.text_gradient, start_layer)
    return vision[0, 1:], text[maps.end, : maps.end]


def rollout(attention: Sequence[np.ndarray], start_layer: int = 0) -> np.ndarray:
    """Attention rollout (Abnar, Zuidema 2020): product of head means, half the identity; [N, N]."""
    matrix = np.eye(attention[0].shape[-1])
    for layer in attention[start_layer:]:
        mean = layer.mean(0) + np.eye(layer.shape[-1])
        matrix = (mean / mean.sum(-1, keepdims=True)) @ matrix
    return matrix


def legrad(gradient: Sequence[np.ndarray], queries: int | None = None) -> np.ndarray:
    """Single-gradient LeGrad (Bousselham et al. 2024): relu ∂y/∂A, mean over layers, heads and queries; [N].

    `queries` is how many of them have an influence on y: all by default, `e + 1` in a text that ends at row e.
    """
    queries = queries or gradient[0].shape[-1]
    return np.mean([np.maximum(layer, 0).mean(0).sum(0) / queries for layer in gradient], axis=0)


def raw_attention(attention: Sequence[np.ndarray], row: int) -> np.ndarray:
    """The last layer's attention of one row, mean over heads; [N]."""
    return attention[-1][:, row].mean(0)


def grad_eclip(clip: Reference, inputs: Inputs, image: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Grad-ECLIP (Zhao et al. 2024) of the last layer: (vision [M + V], text [e]).

    Channels weigh what y's gradient says at the pooled row's attention output, before its projection; tokens weigh the
    cosine of that row's query and their key, scaled to [0, 1]; the values are what is weighed.
    """
    alone = only(inputs, target)
    saved = methods.forward(clip, alone, image[None])
    slopes = attention_gradients(clip, alone, saved, np.ones((1, 1)))

    def one(name: str, tower: Tower, others: slice) -> np.ndarray:
        last = f"{name}_model.encoder.layers.{len(tower.blocks) - 1}.self_attn.out_proj"
        row = int(tower.rows[0])
        channels = slopes[name][1][0, row] @ clip.state[f"{last}.weight"]
        block = tower.blocks[-1]
        query, keys, values = (merge_heads(x)[0] for x in (block.query, block.key, block.value))
        cosine = keys[others] @ query[row] / np.linalg.norm(keys[others], axis=1) / np.linalg.norm(query[row])
        loosened = (cosine - cosine.min()) / (cosine.max() - cosine.min())
        return np.maximum((channels * values[others] * loosened[:, None]).sum(1), 0)

    end = int(saved.text.rows[0])
    return one("vision", saved.vision, slice(1, None)), one("text", saved.text, slice(0, end))
