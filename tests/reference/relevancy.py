"""Relevancy of one (image, class) pair (Eq. 13 to 16; Chefer et al. 2021) by full matrices, and rivals."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tests.reference import gradients, methods
from tests.reference.methods import Inputs, Reference
from tests.reference.numpy_clip import Tower, merge_heads


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
    slopes = gradients.attention_gradients(clip, alone, saved, np.ones((1, 1)))
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
    slopes = gradients.attention_gradients(clip, alone, saved, np.ones((1, 1)))

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
