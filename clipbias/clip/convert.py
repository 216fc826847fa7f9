"""Hugging Face's tensor names and layouts to this package's parameter tree, and back, as one table.

Every row of the table names the tensors that together make one leaf, and how each lies in it. Linear weights are stored
transposed, the three attention projections side by side, and all layers stacked.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from clipbias.clip.config import ClipConfig
from clipbias.clip.params import Params, abstract_params, empty_params
from clipbias.errors import ClipbiasError

Transform = Callable[[np.ndarray], np.ndarray]


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _transposed(x: np.ndarray) -> np.ndarray:
    return x.T


@dataclasses.dataclass(frozen=True)
class Row:
    """One leaf: its path, the tensors that fill it (side by side on the last axis), and the layout change both ways."""

    path: str
    names: tuple[str, ...]
    load: Transform = _same
    save: Transform = _same


def _linear(path: str, *names: str) -> list[Row]:
    return [
        Row(f"{path}/kernel", tuple(f"{n}.weight" for n in names), _transposed, _transposed),
        Row(f"{path}/bias", tuple(f"{n}.bias" for n in names)),
    ]


def _norm(path: str, name: str) -> list[Row]:
    return [Row(f"{path}/scale", (f"{name}.weight",)), Row(f"{path}/bias", (f"{name}.bias",))]


LAYER_TABLE = [
    *_norm("norm1", "layer_norm1"),
    *_linear("qkv", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    *_linear("out", "self_attn.out_proj"),
    *_norm("norm2", "layer_norm2"),
    *_linear("fc1", "mlp.fc1"),
    *_linear("fc2", "mlp.fc2"),
]

MOST_SHOWN = 40  # differences between weights and configuration in a message

# Buffers of older checkpoints that hold no weights.
IGNORED = frozenset(f"{tower}_model.embeddings.position_ids" for tower in ("vision", "text"))


def table(config: ClipConfig) -> list[Row]:
    """The rows outside the stacked layers."""
    patch = config.vision.patch_size

    def patches_in(x: np.ndarray) -> np.ndarray:  # [Dv, 3, p, p] to [p·p·3, Dv]
        return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])

    def patches_out(x: np.ndarray) -> np.ndarray:
        return x.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)

    return [
        Row(
            "vision/patch_embedding",
            ("vision_model.embeddings.patch_embedding.weight",),
            patches_in,
            patches_out,
        ),
        Row("vision/class_embedding", ("vision_model.embeddings.class_embedding",)),
        Row("vision/position_embedding", ("vision_model.embeddings.position_embedding.weight",)),
        *_norm("vision/pre_norm", "vision_model.pre_layrnorm"),
        *_norm("vision/post_norm", "vision_model.post_layernorm"),
        Row("vision/projection", ("visual_projection.weight",), _transposed, _transposed),
        Row("text/token_embedding", ("text_model.embeddings.token_embedding.weight",)),
        Row("text/position_embedding", ("text_model.embeddings.position_embedding.weight",)),
        *_norm("text/final_norm", "text_model.final_layer_norm"),
        Row("text/projection", ("text_projection.weight",), _transposed, _transposed),
        Row("logit_scale", ("logit_scale",)),
    ]


def _leaf(tree: Params, path: str) -> tuple[dict, str]:
    *parents, name = path.split("/")
    for parent in parents:
        tree = tree[parent]
    return tree, name


def _pieces(config: ClipConfig, tree: Params) -> Iterator[tuple[Row, str, np.ndarray]]:
    """Every tensor of the format with the view of the leaf that holds it: row, tensor name, view."""
    for row in table(config):
        parent, name = _leaf(tree, row.path)
        yield row, row.names[0], parent[name]
    for tower, geometry in (("vision", config.vision), ("text", config.text)):
        for row in LAYER_TABLE:
            parent, name = _leaf(tree[tower]["layers"], row.path)
            for l in range(geometry.layers):
                parts = np.split(parent[name][l], len(row.names), axis=-1)
                for suffix, view in zip(row.names, parts, strict=True):
                    yield row, f"{tower}_model.encoder.layers.{l}.{suffix}", view


def from_tensors(
    config: ClipConfig,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    *,
    where: str,
) -> Params:
    """Builds the parameter tree (float32 NumPy) from a checkpoint's tensors.

    Args:
      config: geometry.
      shapes: name and shape of every tensor in the checkpoint.
      read: returns one tensor.
      where: the checkpoint, for messages.

    Raises:
      ClipbiasError: lists the missing, unexpected and mis-shaped tensors.
    """
    most = max(config.vision.layers, config.text.layers)
    if most > len(shapes):  # every layer has tensors of its own
        raise ClipbiasError(f"{where} holds {len(shapes)} tensors, but its config.json asks for {most} layers.")
    # Views without memory: what a wrong configuration asks for may not exist.
    tree = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract_params(config))
    expected = {name: row.save(view).shape for row, name, view in _pieces(config, tree)}
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in shapes]
    problems += [
        f"unexpected: {name} {tuple(shapes[name])}" for name in shapes if name not in expected and name not in IGNORED
    ]
    problems += [
        f"wrong shape: {name} is {tuple(shapes[name])}, the configuration asks for {shape}"
        for name, shape in expected.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    if problems:
        shown = problems[:MOST_SHOWN]
        if len(problems) > MOST_SHOWN:
            shown.append(f"and {len(problems) - MOST_SHOWN} more")
        raise ClipbiasError(
            f"{where} does not hold the CLIP model that its config.json describes ({len(problems)} differences):\n  "
            + "\n  ".join(shown)
        )
    tree = empty_params(config)
    for row, name, view in _pieces(config, tree):
        view[...] = row.load(np.asarray(read(name), np.float32))
    return tree


def to_tensors(config: ClipConfig, params: Params) -> dict[str, np.ndarray]:
    """The tensors of a Hugging Face checkpoint; `from_tensors` of them gives `params` back bit for bit."""
    tree = jax.tree.map(np.asarray, params)
    return {name: np.asarray(row.save(view), order="C") for row, name, view in _pieces(config, tree)}
