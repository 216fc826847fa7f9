"""Attention statistics of the figures, plainly: shares, distance, entropy, decomposition, similarity."""

import math

import numpy as np

from tests.reference.methods import Reference
from tests.reference.numpy_clip import Block, merge_heads

KINDS = ("sos", "prompt", "words", "category", "dot", "eos")


def text_shares(row: np.ndarray, end: int, prompts: int, words: int) -> dict[str, float]:
    """Fig. 4: how an EOS row [N] of attention divides among the token kinds; the six sum to 1."""
    kinds = {kind: 0.0 for kind in KINDS}
    for index in range(end + 1):
        if index == 0:
            kind = "sos"
        elif index <= prompts:
            kind = "prompt"
        elif index <= prompts + words:
            kind = "words"
        elif index <= end - 2:
            kind = "category"
        elif index == end - 1:
            kind = "dot"
        else:
            kind = "eos"
        kinds[kind] += float(row[index])
    return kinds


def variant(attention: np.ndarray, prompts: int, name: str) -> np.ndarray:
    """Fig. 5: "clip" and "with_prompt" keep all; "without_prompt" drops the prompts and renormalises."""
    if name != "without_prompt" or not prompts:
        return attention
    inputs = attention[..., :-prompts, :-prompts]
    return inputs / inputs.sum(-1, keepdims=True)


def attention_distance(attention: np.ndarray, grid: int, patch_size: int) -> np.ndarray:
    """[H, N, N] -> [H]: mean over patch queries of Σ A · distance in pixels over patch keys.

    `[cls]` is dropped and rows are not normalised again; prompts, if any, come after the patches and count 0.
    """
    totals = np.zeros(len(attention))
    for query in range(grid * grid):
        for key in range(grid * grid):
            rows = query // grid - key // grid
            columns = query % grid - key % grid
            totals += attention[:, 1 + query, 1 + key] * patch_size * math.hypot(rows, columns)
    return totals / (grid * grid)


def attention_entropy(attention: np.ndarray, patches: int) -> np.ndarray:
    """[H, N, N] -> [H, 1 + M]: −Σ a ln a of the `[cls]` and patch queries, with 0 ln 0 = 0."""
    rows = attention[:, : 1 + patches]
    terms = np.where(rows > 0, rows * np.log(np.where(rows > 0, rows, 1.0)), 0.0)
    return -terms.sum(-1)


def decomposition(clip: Reference, tower: str, layer: int, block: Block, prompts: slice) -> dict[str, np.ndarray]:
    """Eq. 12: the attention's output by source, for the queries of one layer.

    `attended = input + prompt + bias`, [B, N, D] each; `mass` [B, H, N] is the attention on the prompts, and
    `renormalised` [B, H, N, D/H] each head's output over the input tokens alone: its input part is (1 - mass)
    times that.
    """
    name = f"{tower}_model.encoder.layers.{layer}.self_attn.out_proj"
    kernel, bias = clip.state[f"{name}.weight"], clip.state[f"{name}.bias"]
    count = block.attention.shape[-1]
    on_prompts = np.zeros(count, bool)
    on_prompts[prompts] = True
    inside = block.attention[..., ~on_prompts] @ block.value[:, :, ~on_prompts]
    outside = block.attention[..., on_prompts] @ block.value[:, :, on_prompts]
    mass = block.attention[..., on_prompts].sum(-1)
    return {
        "input": merge_heads(inside) @ kernel.T,
        "prompt": merge_heads(outside) @ kernel.T,
        "bias": bias,
        "mass": mass,
        "renormalised": inside / (1 - mass)[..., None],
    }


def prompt_distance(tokens: np.ndarray, patches: int) -> np.ndarray:
    """Fig. 6: [B, N, D] block inputs -> [B, V, M] Euclidean distances of each prompt to each patch token."""
    prompts, places = tokens[:, 1 + patches :], tokens[:, 1 : 1 + patches]
    return np.sqrt(((prompts[:, :, None] - places[:, None]) ** 2).sum(-1))
