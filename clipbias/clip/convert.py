"""A checkpoint's tensor names and layouts to this package's parameter tree, and back, as one table for each naming.

Every row of a table names the tensors that together make one leaf, and how each lies in it. Linear weights are stored
transposed, Hugging Face's three attention projections side by side, and all layers stacked.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from clipbias.clip.config import ClipConfig
from clipbias.clip.params import Params, abstract_params, empty_params
from clipbias.clip.tensors import FLOATING, Tensor
from clipbias.errors import ClipbiasError
from clipbias.io import shorten

MOST_SHOWN = 40  # differences between weights and configuration in a message

Transform = Callable[[np.ndarray], np.ndarray]


def same(x: np.ndarray) -> np.ndarray:
    """The layout of a tensor that lies in the file as it does in the tree."""
    return x


def transposed(x: np.ndarray) -> np.ndarray:
    """The layout of PyTorch's linear weights, `[out, in]`."""
    return x.T


@dataclasses.dataclass(frozen=True)
class Row:
    """One leaf: its path, the tensors that fill it (side by side on the last axis), and the layout change both ways."""

    path: str
    names: tuple[str, ...]
    load: Transform = same
    save: Transform = same


@dataclasses.dataclass(frozen=True)
class Naming:
    """How one family of checkpoints names and lays out the tensors of a CLIP model.

    Attributes:
      rows: the rows outside the stacked layers, for a geometry.
      layer: the rows of one transformer block, with paths below `layers` and names below its prefix.
      prefixes: by tower, the beginning of a block's names, with `{}` for its number.
      ignored: names of what is no weight: buffers of older checkpoints.
    """

    rows: Callable[[ClipConfig], list[Row]]
    layer: tuple[Row, ...]
    prefixes: Mapping[str, str]
    ignored: frozenset[str] = frozenset()


def linear(path: str, *names: str) -> list[Row]:
    """The weight and bias of a linear layer, or of several side by side."""
    return [
        Row(f"{path}/kernel", tuple(f"{n}.weight" for n in names), transposed, transposed),
        Row(f"{path}/bias", tuple(f"{n}.bias" for n in names)),
    ]


def norm(path: str, name: str) -> list[Row]:
    """The scale and bias of a LayerNorm."""
    return [Row(f"{path}/scale", (f"{name}.weight",)), Row(f"{path}/bias", (f"{name}.bias",))]


def patches(config: ClipConfig, name: str) -> Row:
    """The patch embedding as PyTorch's convolution holds it, `[Dv, 3, p, p]`."""
    size = config.vision.patch_size
    return Row(
        "vision/patch_embedding",
        (name,),
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),  # [p·p·3, Dv]
        lambda x: x.reshape(size, size, 3, -1).transpose(3, 2, 0, 1),
    )


def _hugging_face_rows(config: ClipConfig) -> list[Row]:
    return [
        patches(config, "vision_model.embeddings.patch_embedding.weight"),
        Row("vision/class_embedding", ("vision_model.embeddings.class_embedding",)),
        Row("vision/position_embedding", ("vision_model.embeddings.position_embedding.weight",)),
        *norm("vision/pre_norm", "vision_model.pre_layrnorm"),
        *norm("vision/post_norm", "vision_model.post_layernorm"),
        Row("vision/projection", ("visual_projection.weight",), transposed, transposed),
        Row("text/token_embedding", ("text_model.embeddings.token_embedding.weight",)),
        Row("text/position_embedding", ("text_model.embeddings.position_embedding.weight",)),
        *norm("text/final_norm", "text_model.final_layer_norm"),
        Row("text/projection", ("text_projection.weight",), transposed, transposed),
        Row("logit_scale", ("logit_scale",)),
    ]


HUGGING_FACE = Naming(
    _hugging_face_rows,
    layer=(
        *norm("norm1", "layer_norm1"),
        *linear("qkv", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        *linear("out", "self_attn.out_proj"),
        *norm("norm2", "layer_norm2"),
        *linear("fc1", "mlp.fc1"),
        *linear("fc2", "mlp.fc2"),
    ),
    prefixes={tower: f"{tower}_model.encoder.layers.{{}}." for tower in ("vision", "text")},
    ignored=frozenset(f"{tower}_model.embeddings.position_ids" for tower in ("vision", "text")),
)


def _pieces(config: ClipConfig, naming: Naming, tree: Params) -> Iterator[tuple[Row, str, np.ndarray]]:
    """Every tensor of the format with the view of the leaf that holds it: row, tensor name, view."""
    leaves = flatten_dict(tree, sep="/")
    for row in naming.rows(config):
        yield row, row.names[0], leaves[row.path]
    for tower, geometry in (("vision", config.vision), ("text", config.text)):
        for row in naming.layer:
            stacked = leaves[f"{tower}/layers/{row.path}"]
            for l in range(geometry.layers):
                parts = np.split(stacked[l], len(row.names), axis=-1)
                for suffix, view in zip(row.names, parts, strict=True):
                    yield row, f"{naming.prefixes[tower].format(l)}{suffix}", view


def from_tensors(
    config: ClipConfig, tensors: Mapping[str, Tensor], naming: Naming = HUGGING_FACE, *, where: str
) -> Params:
    """Builds the parameter tree (float32 NumPy) from a checkpoint's tensors, which are read one at a time.

    Args:
      config: geometry.
      tensors: every tensor in the checkpoint by name.
      naming: whose names these are.
      where: the checkpoint, for messages.

    Raises:
      ClipbiasError: lists the missing, unexpected and mis-shaped tensors, and those of types that hold no weights.
    """
    most = max(config.vision.layers, config.text.layers)
    if most > len(tensors):  # every layer has tensors of its own
        raise ClipbiasError(
            f"{where} holds {len(tensors)} tensors, but the configuration beside it asks for {most} layers."
        )
    # Views without memory: what a wrong configuration asks for may not exist.
    tree = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract_params(config))
    expected = {name: row.save(view).shape for row, name, view in _pieces(config, naming, tree)}
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in tensors]
    problems += [
        f"unexpected: {_shown(name)} {tensor.shape}"
        for name, tensor in tensors.items()
        if name not in expected and name not in naming.ignored
    ]
    problems += [
        f"wrong shape: {name} is {tensors[name].shape}, the configuration asks for {shape}"
        for name, shape in expected.items()
        # Some trainers keep the scale, a single number, as a list of one.
        if name in tensors and tensors[name].shape != shape and (tensors[name].shape, shape) != ((1,), ())
    ]
    problems += [
        f"wrong type: {name} is {_shown(tensors[name].dtype)}, which is none of {', '.join(FLOATING)}"
        for name in expected
        if name in tensors and tensors[name].dtype not in FLOATING
    ]
    if problems:
        shown = problems[:MOST_SHOWN]
        if len(problems) > MOST_SHOWN:
            shown.append(f"and {len(problems) - MOST_SHOWN} more")
        raise ClipbiasError(
            f"{where} does not hold the CLIP model that its configuration describes ({len(problems)} differences):\n  "
            + "\n  ".join(shown)
        )
    tree = empty_params(config)
    for row, name, view in _pieces(config, naming, tree):
        view[...] = row.load(np.asarray(tensors[name].read(), np.float32).reshape(expected[name]))
    return tree


def _shown(name: str) -> str:
    return shorten(name if name.isprintable() else ascii(name))


def to_tensors(config: ClipConfig, params: Params, naming: Naming = HUGGING_FACE) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint in a naming; `from_tensors` of them gives `params` back bit for bit."""
    tree = jax.tree.map(np.asarray, params)
    return {name: np.asarray(row.save(view), order="C") for row, name, view in _pieces(config, naming, tree)}
