"""Geometries, and weights, images and tokens drawn so that every machine gets the same ones."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

State = dict[str, np.ndarray]


def geometry(
    *,
    vision: tuple[int, int, int],
    text: tuple[int, int, int],
    projection: int,
    image_size: int,
    patch_size: int,
    vocabulary: int,
    context_length: int,
    activation: str = "quick_gelu",
) -> dict:
    """A Hugging Face CLIP config; `vision` and `text` are (width, layers, heads), the MLP four times wider.

    The last two ids of the vocabulary are the start and the end of a text.
    """

    def tower(width: int, layers: int, heads: int) -> dict:
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "hidden_act": activation,
            "layer_norm_eps": 1e-5,
            "projection_dim": projection,
        }

    end = vocabulary - 1
    words = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    sizes = {"vocab_size": vocabulary, "max_position_embeddings": context_length}
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": projection,
        "logit_scale_init_value": 2.6592,
        "text_config": {"model_type": "clip_text_model", **tower(*text), **sizes, **words},
        "vision_config": {
            "model_type": "clip_vision_model",
            **tower(*vision),
            "image_size": image_size,
            "patch_size": patch_size,
            "num_channels": 3,
        },
    }


def read_config(folder: str | os.PathLike) -> dict:
    """A checkpoint's `config.json`."""
    return json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))


def deterministic_uniform(seed: int, stream: int, shape: Sequence[int]) -> np.ndarray:
    """Uniform float32 of mean 0 and variance 1 from the raw bits of Philox: the same on every machine."""
    bits = np.random.Philox(key=[seed, stream]).random_raw(math.prod(shape))
    unit = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    return ((unit - np.float32(0.5)) * np.float32(math.sqrt(12.0))).reshape(tuple(shape))


def random_state_dict(config: Mapping, seed: int) -> State:
    """Float32 weights with attention far from uniform, nothing zero and no LayerNorm the identity."""
    shapes = _shapes_and_scales(config)
    state = {}
    for stream, (name, (shape, mean, deviation)) in enumerate(shapes.items()):
        values = deterministic_uniform(seed, stream, shape)
        state[name] = np.asarray(np.float32(mean) + np.float32(deviation) * values)
    return state


def _shapes_and_scales(config: Mapping) -> dict[str, tuple[tuple[int, ...], float, float]]:
    """Name -> (shape, mean, standard deviation) of every weight."""
    text, vision, projection = config["text_config"], config["vision_config"], config["projection_dim"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    patch = vision["patch_size"]
    table = {
        "logit_scale": ((), 3.0, 0.0),
        "text_model.embeddings.token_embedding.weight": ((text["vocab_size"], text["hidden_size"]), 0, 0.5),
        "text_model.embeddings.position_embedding.weight": (
            (text["max_position_embeddings"], text["hidden_size"]),
            0,
            0.3,
        ),
        "vision_model.embeddings.class_embedding": ((vision["hidden_size"],), 0, 0.5),
        "vision_model.embeddings.patch_embedding.weight": (
            (vision["hidden_size"], 3, patch, patch),
            0,
            0.8 / math.sqrt(3 * patch * patch),
        ),
        "vision_model.embeddings.position_embedding.weight": ((patches + 1, vision["hidden_size"]), 0, 0.4),
        "text_projection.weight": ((projection, text["hidden_size"]), 0, 1 / math.sqrt(text["hidden_size"])),
        "visual_projection.weight": ((projection, vision["hidden_size"]), 0, 1 / math.sqrt(vision["hidden_size"])),
    }
    for name, width in (
        ("text_model.final_layer_norm", text["hidden_size"]),
        ("vision_model.pre_layrnorm", vision["hidden_size"]),
        ("vision_model.post_layernorm", vision["hidden_size"]),
    ):
        table |= _layer_norm_scales(name, width)
    for tower, sizes in (("text_model", text), ("vision_model", vision)):
        width, hidden = sizes["hidden_size"], sizes["intermediate_size"]
        for l in range(sizes["num_hidden_layers"]):
            layer = f"{tower}.encoder.layers.{l}"
            # Queries and keys of gain 1.3 make scores of about ±1.7: attention that prefers some tokens.
            for part, gain in (("q_proj", 1.3), ("k_proj", 1.3), ("v_proj", 0.8), ("out_proj", 0.8)):
                table[f"{layer}.self_attn.{part}.weight"] = ((width, width), 0, gain / math.sqrt(width))
                table[f"{layer}.self_attn.{part}.bias"] = ((width,), 0, 0.1)
            table[f"{layer}.mlp.fc1.weight"] = ((hidden, width), 0, 1 / math.sqrt(width))
            table[f"{layer}.mlp.fc1.bias"] = ((hidden,), 0, 0.1)
            table[f"{layer}.mlp.fc2.weight"] = ((width, hidden), 0, 0.8 / math.sqrt(hidden))
            table[f"{layer}.mlp.fc2.bias"] = ((width,), 0, 0.1)
            table |= _layer_norm_scales(f"{layer}.layer_norm1", width)
            table |= _layer_norm_scales(f"{layer}.layer_norm2", width)
    return table


def _layer_norm_scales(name: str, width: int) -> dict[str, tuple[tuple[int, ...], float, float]]:
    return {f"{name}.weight": ((width,), 1.0, 0.2), f"{name}.bias": ((width,), 0.0, 0.1)}


def double(state: Mapping[str, np.ndarray]) -> State:
    """The same weights in float64, in which everything here is computed."""
    return {name: np.asarray(value, np.float64) for name, value in state.items()}
