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

TOWERS = ("vision", "text")


def layers(config: Mapping, towers: Sequence[str] = TOWERS, blocks: Sequence[int] | None = None) -> Iterator[str]:
    """Names of the blocks, those of `blocks` (counted from 0) or all."""
    for tower in towers:
        count = config[f"{tower}_config"]["num_hidden_layers"]
        for l in range(count):
            if blocks is None or l in blocks:
                yield f"{tower}_model.encoder.layers.{l}"


# CLIP-LoRA (Zanella & Ben Ayed 2024)


def lora_shapes(
    config: Mapping,
    *,
    rank: int = 2,
    parts: Sequence[str] = ("q", "k", "v"),
    towers: Sequence[str] = TOWERS,
    blocks: Sequence[int] | None = None,
) -> dict[str, tuple[int, int]]:
    """`A` [r, D] and `B` [D, r] of each part (of q, k, v, o), separately, in every block."""
    shapes = {}
    for layer in layers(config, towers, blocks):
        width = config[f"{layer.split('_')[0]}_config"]["hidden_size"]
        for part in parts:
            name = f"{layer}.self_attn.{'out' if part == 'o' else part}_proj"
            shapes[f"{name}.A"], shapes[f"{name}.B"] = (rank, width), (width, rank)
    return shapes


def random_lora(shapes: Mapping[str, tuple[int, int]], *, size: float = 0.3, seed: int = 0) -> dict[str, np.ndarray]:
    """Learnables (float32) of these shapes, `B` not zero: at zero `A` has no gradient."""
    return {
        name: np.float32(size) * weights.deterministic_uniform(4000 + seed, stream, shape)
        for stream, (name, shape) in enumerate(shapes.items())
    }


def lora_masks(
    learnables: Learnables, config: Mapping, *, images: int, classes: int, rate: float = 0.25, seed: int = 0
) -> dict[str, np.ndarray]:
    """Which inputs of each branch are kept: 1 or 0, `[B, N, D]`, an own mask for each linear layer."""
    vision = config["vision_config"]
    tokens = {
        "vision": (images, 1 + (vision["image_size"] // vision["patch_size"]) ** 2),
        "text": (classes, config["text_config"]["max_position_embeddings"]),
    }
    masks = {}
    for stream, name in enumerate(key.removesuffix(".A") for key in learnables if key.endswith(".A")):
        shape = (*tokens[name.split("_")[0]], learnables[f"{name}.A"].shape[1])
        # Uniform in ±√3; below the rate's quantile an input is dropped.
        draws = weights.deterministic_uniform(5000 + seed, stream, shape)
        masks[name] = (draws >= (2 * rate - 1) * np.sqrt(3)).astype(np.float64)
    return masks


def _lora_scale(learnables: Learnables, alpha: float) -> float:
    """`γ = α / √r`."""
    ranks = {value.shape[0] for name, value in learnables.items() if name.endswith(".A")}
    (rank,) = ranks
    return alpha / np.sqrt(rank)


def _drop(x: np.ndarray, masks: Mapping[str, np.ndarray] | None, name: str, rate: float) -> np.ndarray:
    return x if masks is None else x * masks[name] / (1 - rate)


def lora_branch(
    learnables: Learnables,
    *,
    alpha: float = 1.0,
    masks: Mapping[str, np.ndarray] | None = None,
    rate: float = 0.25,
) -> Branch:
    """`γ · drop(h) Aᵀ Bᵀ`, added to `h Wᵀ + b`; dropout (with `masks`) is on the branch's input alone."""
    scale = _lora_scale(learnables, alpha)

    def branch(name: str, x: np.ndarray) -> np.ndarray | float:
        if f"{name}.A" not in learnables:
            return 0.0
        return scale * _drop(x, masks, name, rate) @ learnables[f"{name}.A"].T @ learnables[f"{name}.B"].T

    return branch


def fold_lora(state: State, learnables: Learnables, *, alpha: float = 1.0) -> State:
    """Plain CLIP weights that compute what the tuned model does at evaluation: `W + γ B A`."""
    folded = dict(state)
    scale = _lora_scale(learnables, alpha)
    for name in (key.removesuffix(".A") for key in learnables if key.endswith(".A")):
        change = scale * np.asarray(learnables[f"{name}.B"], np.float64) @ learnables[f"{name}.A"]
        folded[f"{name}.weight"] = state[f"{name}.weight"] + change
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

    `masks` (`lora_masks`) are those of a training step; without them nothing is dropped, as at evaluation.
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


def pretrained(state: State, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The learnables that tuning starts from."""
    return {name: state[name].copy() for name in names}


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
    tuned_clip = with_weights(clip, tuned)
    inputs = methods.prepare(tuned_clip, "zero_shot", class_names, {})
    return numpy_clip.unit(numpy_clip.encode_text(tuned_clip.state, tuned_clip.config, inputs.tokens).features)


def second_stage_logits(clip: Reference, tuned: Learnables, classes: np.ndarray, images: np.ndarray) -> np.ndarray:
    """`s · unit(f) · unit(W)ᵀ`."""
    tuned_clip = with_weights(clip, tuned)
    image = numpy_clip.encode_image(tuned_clip.state, tuned_clip.config, images).features
    return numpy_clip.logits(tuned_clip.state, image, np.asarray(classes, np.float64))
