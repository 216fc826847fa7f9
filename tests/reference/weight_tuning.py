"""CLIP-LoRA, BitFit, LayerNorm tuning and 2SFS: both towers' own weights are tuned.

Letters as in `numpy_clip`, `r` rank. Learnables are named as in a Hugging Face state dict: LoRA's `….q_proj.A` [r, D]
and `….q_proj.B` [D, r]; BitFit's and LayerNorm tuning's are whole weights that start at the pretrained values, so that
weight decay pulls them towards zero. Every method's prompt is "a photo of a {name}.", its loss the mean cross-entropy.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tests.reference import methods, numpy_clip, weights
from tests.reference.methods import Forward, Learnables, Reference
from tests.reference.numpy_clip import Branch
from tests.reference.weights import State


def layers(config: Mapping) -> Iterator[str]:
    """Names of the blocks of both towers."""
    for tower in ("vision", "text"):
        for l in range(config[f"{tower}_config"]["num_hidden_layers"]):
            yield f"{tower}_model.encoder.layers.{l}"


# CLIP-LoRA (Zanella & Ben Ayed 2024)


def lora_branch(
    learnables: Learnables, *, alpha: float = 1.0, masks: Mapping[str, np.ndarray] | None = None, rate: float = 0.25
) -> Branch:
    """`γ · drop(h) Aᵀ Bᵀ` with `γ = α / √r`, beside `h Wᵀ + b`; dropout (with `masks`) is on its input alone."""

    def branch(name: str, x: np.ndarray) -> np.ndarray | float:
        if f"{name}.A" not in learnables:
            return 0.0
        a, b = learnables[f"{name}.A"], learnables[f"{name}.B"]
        kept = x if masks is None else x * masks[name] / (1 - rate)
        return alpha / np.sqrt(len(a)) * kept @ a.T @ b.T

    return branch


def fold_lora(state: State, learnables: Learnables, *, alpha: float = 1.0) -> State:
    """Plain CLIP weights that compute what the tuned model does at evaluation: `W + γ B A`."""
    folded = dict(state)
    for name in (key.removesuffix(".A") for key in learnables if key.endswith(".A")):
        a, b = (np.asarray(learnables[f"{name}.{letter}"], np.float64) for letter in "AB")
        folded[f"{name}.weight"] = state[f"{name}.weight"] + alpha / np.sqrt(len(a)) * b @ a
    return folded


def lora(
    clip: Reference,
    class_names: Sequence[str],
    learnables: Learnables,
    images: np.ndarray,
    *,
    alpha: float = 1.0,
    masks: Mapping[str, np.ndarray] | None = None,
    rate: float = 0.25,
) -> Forward:
    """Both towers with their branches and the logits `100 · cos`: the number 100, not the model's scale.

    `masks`, `[B, N, D]` of 1 or 0 for each linear layer, are those of a training step; without them nothing is dropped.
    """
    inputs = methods.prepare(clip, "zero_shot", class_names, {})
    learnables = weights.double(learnables)
    branch = lora_branch(learnables, alpha=alpha, masks=masks, rate=rate)
    saved = methods.forward(clip, inputs, images, branch=branch)
    saved.logits = 100 * numpy_clip.unit(saved.vision.features) @ numpy_clip.unit(saved.text.features).T
    return saved


# BitFit (Ben Zaken et al. 2021) and LayerNorm tuning, as in "rethinking few-shot VLMs" (Farina et al. 2025)

OUTER_NORMS = ("vision_model.pre_layrnorm", "vision_model.post_layernorm", "text_model.final_layer_norm")


def bitfit_names(config: Mapping, *, qkv: bool = False) -> list[str]:
    """Biases of every block's output projection, MLP and LayerNorms, and of the three outer LayerNorms.

    Those of queries, keys and values stay frozen unless `qkv`.
    """
    parts = ["self_attn.out_proj", "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"]
    parts += [f"self_attn.{part}_proj" for part in "qkv" if qkv]
    inner = [f"{layer}.{part}.bias" for layer in layers(config) for part in parts]
    return inner + [f"{name}.bias" for name in OUTER_NORMS]


def layer_norm_names(config: Mapping, *, outer: bool = False) -> list[str]:
    """Weight and bias of the two LayerNorms of every block; with `outer` also of the three outside the blocks."""
    norms = [f"{layer}.layer_norm{i}" for layer in layers(config) for i in (1, 2)]
    norms += OUTER_NORMS if outer else ()
    return [f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")]


def with_weights(clip: Reference, learnables: Learnables) -> Reference:
    """A plain CLIP with these weights in place of its own."""
    unknown = set(learnables) - set(clip.state)
    if unknown:
        raise KeyError(f"not weights of the model: {sorted(unknown)}")
    return dataclasses.replace(clip, state={**clip.state, **weights.double(learnables)})


def weights_forward(clip: Reference, class_names: Sequence[str], learnables: Learnables, images: np.ndarray) -> Forward:
    """Plain CLIP with the tuned weights; logits with the model's own scale."""
    tuned = with_weights(clip, learnables)
    return methods.forward(tuned, methods.prepare(tuned, "zero_shot", class_names, {}), images)


# 2SFS (Farina et al. 2025): LayerNorm tuning, then a classifier of the tuned towers' features


def second_stage_start(clip: Reference, class_names: Sequence[str], tuned: Learnables) -> np.ndarray:
    """`W [C, d]`: unit features of the tuned text tower."""
    return numpy_clip.unit(methods.plain_text(with_weights(clip, tuned), class_names, methods.WORDED))


def second_stage_logits(clip: Reference, tuned: Learnables, classes: np.ndarray, images: np.ndarray) -> np.ndarray:
    """`s · unit(f) · unit(W)ᵀ`."""
    tuned_clip = with_weights(clip, tuned)
    image = methods.run_image(tuned_clip, images).features
    return numpy_clip.logits(tuned_clip.state, image, np.asarray(classes, np.float64))
