"""Tables of the tensor names and layouts of each family of checkpoints, and conversions to and from the parameter tree.

A new family needs a table in `TABLES` and a reader of its configuration (`checkpoint.describe`).
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from clipbias.clip.config import ClipConfig, other_network
from clipbias.clip.formats import FLOATING, Tensor
from clipbias.clip.params import Params, abstract_params, empty_params
from clipbias.errors import ClipbiasError
from clipbias.io import shorten

Array = np.ndarray
MAX_DIFFERENCES = 40  # between weights and configuration in a message


@dataclasses.dataclass(frozen=True)
class Layout:
    """Functions from a file's layout to the tree's, and back."""

    load: Callable[[Array], Array]
    save: Callable[[Array], Array]


def _to_squares(kernel: Array) -> Array:
    side = math.isqrt(kernel.shape[0] // 3)
    return kernel.reshape(side, side, 3, kernel.shape[-1])


SAME = Layout(lambda x: x, lambda x: x)
TRANSPOSED = Layout(lambda x: x.T, lambda x: x.T)  # PyTorch's linear weights are [out, in]
# The patch embedding is [p·p·3, Dv] in the tree, [Dv, 3, p, p] in PyTorch's convolution, [p, p, 3, Dv] in Flax's.
TORCH_CONVOLUTION = Layout(
    lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), lambda x: _to_squares(x).transpose(3, 2, 0, 1)
)
FLAX_CONVOLUTION = Layout(lambda x: x.reshape(-1, x.shape[-1]), _to_squares)


# A row maps a tensor's name to its leaf in the tree (`clip.params`). The tree stacks layers, so that a scan runs over
# them, and joins Hugging Face's three attention projections, which are one product.
@dataclasses.dataclass(frozen=True)
class TensorName:
    """A tensor's name in the file, with `{}` for the number of a transformer block, and its leaf in the tree."""

    name: str
    path: str
    layout: Layout = SAME
    # A leaf of `parts` side by side on its last axis (queries, keys, values) has `span` of them here, from `part` on.
    part: int = 0
    parts: int = 1
    span: int = 1


@dataclasses.dataclass(frozen=True)
class NameTable:
    """Tensor names of a family."""

    tensors: tuple[TensorName, ...]
    families: tuple[str, ...] = ("clip",)  # of `ClipConfig`
    ignored: frozenset[str] = frozenset()  # tensors that are no weights: buffers of older checkpoints
    # Biases that must be zero, since the network has none, each with a leaf of the same last axis.
    zeros: tuple[tuple[str, str], ...] = ()
    optional_prefix: str = ""  # some writers add it to names

    def unknown(self, names: Collection[str]) -> list[str]:
        """Returns the names that are not in the table."""
        known = {row.name for row in self.tensors} | self.ignored | {name for name, _ in self.zeros}
        # Rows have `{}` for a block's number; other numbers are a part of the name (`text.proj.0.weight`).
        forms = {name: {self.plain(name), re.sub(r"(?<=[./])\d+(?=[./])", "{}", self.plain(name))} for name in names}
        return [name for name, of_name in forms.items() if not of_name & known]

    def plain(self, name: str) -> str:
        """Returns a name without the optional prefix."""
        return name.removeprefix(self.optional_prefix)


def linear(path: str, *names: str) -> list[TensorName]:
    """Returns rows for the weight and bias of PyTorch's linear layer, or of several side by side."""
    layouts = {"weight": ("kernel", TRANSPOSED), "bias": ("bias", SAME)}
    return [
        TensorName(f"{name}.{suffix}", f"{path}/{leaf}", layout, part, len(names))
        for suffix, (leaf, layout) in layouts.items()
        for part, name in enumerate(names)
    ]


def norm(path: str, name: str) -> list[TensorName]:
    """Returns rows for the scale and bias of PyTorch's LayerNorm."""
    return [TensorName(f"{name}.weight", f"{path}/scale"), TensorName(f"{name}.bias", f"{path}/bias")]


def blocks(tower: str, prefix: str, tensors: Iterable[TensorName]) -> list[TensorName]:
    """Returns the tensors of a tower's transformer blocks, with `prefix` before their names."""
    return [dataclasses.replace(row, name=prefix + row.name, path=f"{tower}/layers/{row.path}") for row in tensors]


_HUGGING_FACE_BLOCK = [
    *norm("norm1", "layer_norm1"),
    *linear("qkv", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    *linear("out", "self_attn.out_proj"),
    *norm("norm2", "layer_norm2"),
    *linear("fc1", "mlp.fc1"),
    *linear("fc2", "mlp.fc2"),
]
HUGGING_FACE = NameTable(
    (
        TensorName("vision_model.embeddings.patch_embedding.weight", "vision/patch_embedding", TORCH_CONVOLUTION),
        TensorName("vision_model.embeddings.class_embedding", "vision/class_embedding"),
        TensorName("vision_model.embeddings.position_embedding.weight", "vision/position_embedding"),
        *norm("vision/pre_norm", "vision_model.pre_layrnorm"),
        *norm("vision/post_norm", "vision_model.post_layernorm"),
        TensorName("visual_projection.weight", "vision/projection", TRANSPOSED),
        TensorName("text_model.embeddings.token_embedding.weight", "text/token_embedding"),
        TensorName("text_model.embeddings.position_embedding.weight", "text/position_embedding"),
        *norm("text/final_norm", "text_model.final_layer_norm"),
        TensorName("text_projection.weight", "text/projection", TRANSPOSED),
        TensorName("logit_scale", "logit_scale"),
        *blocks("vision", "vision_model.encoder.layers.{}.", _HUGGING_FACE_BLOCK),
        *blocks("text", "text_model.encoder.layers.{}.", _HUGGING_FACE_BLOCK),
    ),
    families=("clip", "metaclip_2"),
    ignored=frozenset({"vision_model.embeddings.position_ids", "text_model.embeddings.position_ids"}),
)


def _in_flax(row: TensorName) -> TensorName:
    name, _, suffix = row.name.rpartition(".")
    if suffix == "weight":
        is_embedding = name.endswith(("token_embedding", "position_embedding"))
        suffix = "embedding" if is_embedding else "scale" if row.path.endswith("scale") else "kernel"
    # Flax's kernels are [in, out], as in the tree: only the patch embedding differs.
    layout = FLAX_CONVOLUTION if row.layout is TORCH_CONVOLUTION else SAME
    return dataclasses.replace(row, name=f"{name}.{suffix}".lstrip(".").replace(".", "/"), layout=layout)


FLAX = NameTable(tuple(map(_in_flax, HUGGING_FACE.tensors)))

_ONE_TOKEN = Layout(lambda x: x[0, 0], lambda x: x[None, None])


def pool(prefix: str, attention: str, fc1: str, fc2: str) -> list[TensorName]:
    """Returns the rows of a pooling head with PyTorch's `MultiheadAttention`."""
    return [
        TensorName(f"{prefix}.probe", "vision/pool/probe", _ONE_TOKEN),
        TensorName(f"{prefix}.{attention}.in_proj_weight", "vision/pool/qkv/kernel", TRANSPOSED),
        TensorName(f"{prefix}.{attention}.in_proj_bias", "vision/pool/qkv/bias"),
        *linear("vision/pool/out", f"{prefix}.{attention}.out_proj"),
        *norm("vision/pool/norm2", f"{prefix}.layernorm"),
        *linear("vision/pool/fc1", f"{prefix}.{fc1}"),
        *linear("vision/pool/fc2", f"{prefix}.{fc2}"),
    ]


# SigLIP, and SigLIP 2 with a fixed resolution.
# SigLIP's scale and bias are stored as arrays of one number.
_NUMBER = Layout(lambda x: x.reshape(()), lambda x: x.reshape(1))
_NOT_SIGLIPS = ("class_embedding", "pre_norm", "projection", "logit_scale")
SIGLIP = NameTable(
    (
        *(row for row in HUGGING_FACE.tensors if not any(part in row.path for part in _NOT_SIGLIPS)),
        TensorName("vision_model.embeddings.patch_embedding.bias", "vision/patch_bias"),
        *pool("vision_model.head", "attention", "mlp.fc1", "mlp.fc2"),
        TensorName("text_model.head.weight", "text/projection", TRANSPOSED),
        TensorName("text_model.head.bias", "text/projection_bias"),
        TensorName("logit_scale", "logit_scale", _NUMBER),
        TensorName("logit_bias", "logit_bias", _NUMBER),
    ),
    families=("siglip",),
    ignored=HUGGING_FACE.ignored,
)


def bert(prefix: str) -> list[TensorName]:
    """Returns the rows of a BERT without its pooler."""
    return [
        TensorName(f"{prefix}embeddings.word_embeddings.weight", "text/token_embedding"),
        TensorName(f"{prefix}embeddings.position_embeddings.weight", "text/position_embedding"),
        TensorName(f"{prefix}embeddings.token_type_embeddings.weight", "text/type_embedding"),
        *norm("text/embedding_norm", f"{prefix}embeddings.LayerNorm"),
        *blocks("text", f"{prefix}encoder.layer.{{}}.", _BERT_BLOCK),
    ]


def bert_ignored(prefix: str) -> frozenset[str]:
    """Returns the names of a BERT's tensors that no feature depends on."""
    return frozenset(prefix + name for name in ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"))


_BERT_BLOCK = [
    *linear("qkv", "attention.self.query", "attention.self.key", "attention.self.value"),
    *linear("out", "attention.output.dense"),
    *norm("norm1", "attention.output.LayerNorm"),
    *linear("fc1", "intermediate.dense"),
    *linear("fc2", "output.dense"),
    *norm("norm2", "output.LayerNorm"),
]
CHINESE_CLIP = NameTable(
    (
        *(row for row in HUGGING_FACE.tensors if not row.path.startswith("text/")),
        *bert("text_model."),
        TensorName("text_projection.weight", "text/projection", TRANSPOSED),
    ),
    families=("chinese_clip",),
    ignored=HUGGING_FACE.ignored | bert_ignored("text_model."),
)

OPENAI_BUFFERS = frozenset({"input_resolution", "context_length", "vocab_size"})
_OPEN_CLIP_BLOCK = [
    *norm("norm1", "ln_1"),
    TensorName("attn.in_proj_weight", "qkv/kernel", TRANSPOSED),
    TensorName("attn.in_proj_bias", "qkv/bias"),
    *linear("out", "attn.out_proj"),
    *norm("norm2", "ln_2"),
    *linear("fc1", "mlp.c_fc"),
    *linear("fc2", "mlp.c_proj"),
]
# OpenAI's files and open_clip's. With `custom_text`, open_clip prefixes the text tower's names with "text.".
OPEN_CLIP = NameTable(
    (
        TensorName("visual.conv1.weight", "vision/patch_embedding", TORCH_CONVOLUTION),
        TensorName("visual.class_embedding", "vision/class_embedding"),
        TensorName("visual.positional_embedding", "vision/position_embedding"),
        *norm("vision/pre_norm", "visual.ln_pre"),
        *norm("vision/post_norm", "visual.ln_post"),
        TensorName("visual.proj", "vision/projection"),
        TensorName("token_embedding.weight", "text/token_embedding"),
        TensorName("positional_embedding", "text/position_embedding"),
        *norm("text/final_norm", "ln_final"),
        TensorName("text_projection", "text/projection"),
        TensorName("logit_scale", "logit_scale"),
        *blocks("vision", "visual.transformer.resblocks.{}.", _OPEN_CLIP_BLOCK),
        *blocks("text", "transformer.resblocks.{}.", _OPEN_CLIP_BLOCK),
    ),
    families=("clip", "metaclip_2"),
    ignored=OPENAI_BUFFERS | {"attn_mask"},
    optional_prefix="text.",
)

# timm's vision towers in open_clip's files.
_TRUNK = "visual.trunk"
_ONE_IMAGE = Layout(lambda x: x[0], lambda x: x[None])
_TIMM_BLOCK = [
    *norm("norm1", "norm1"),
    *linear("qkv", "attn.qkv"),
    *linear("out", "attn.proj"),
    *norm("norm2", "norm2"),
    *linear("fc1", "mlp.fc1"),
    *linear("fc2", "mlp.fc2"),
]
_TRUNK_ROWS = [
    TensorName(f"{_TRUNK}.patch_embed.proj.weight", "vision/patch_embedding", TORCH_CONVOLUTION),
    TensorName(f"{_TRUNK}.pos_embed", "vision/position_embedding", _ONE_IMAGE),
    *blocks("vision", f"{_TRUNK}.blocks.{{}}.", _TIMM_BLOCK),
    *norm("vision/post_norm", f"{_TRUNK}.norm"),
]
_PATCH_BIAS = TensorName(f"{_TRUNK}.patch_embed.proj.bias", "vision/patch_bias")
_CLASS_TOKEN = TensorName(f"{_TRUNK}.cls_token", "vision/class_embedding", _ONE_TOKEN)
_POOL_ROWS = [
    TensorName(f"{_TRUNK}.attn_pool.latent", "vision/pool/probe", _ONE_TOKEN),
    TensorName(f"{_TRUNK}.attn_pool.q.weight", "vision/pool/qkv/kernel", TRANSPOSED, part=0, parts=3),
    TensorName(f"{_TRUNK}.attn_pool.q.bias", "vision/pool/qkv/bias", part=0, parts=3),
    TensorName(f"{_TRUNK}.attn_pool.kv.weight", "vision/pool/qkv/kernel", TRANSPOSED, part=1, parts=3, span=2),
    TensorName(f"{_TRUNK}.attn_pool.kv.bias", "vision/pool/qkv/bias", part=1, parts=3, span=2),
    *linear("vision/pool/out", f"{_TRUNK}.attn_pool.proj"),
    *norm("vision/pool/norm2", f"{_TRUNK}.attn_pool.norm"),
    *linear("vision/pool/fc1", f"{_TRUNK}.attn_pool.mlp.fc1"),
    *linear("vision/pool/fc2", f"{_TRUNK}.attn_pool.mlp.fc2"),
]
# open_clip's text tower as a separate module.
_TEXT_ROWS = [
    dataclasses.replace(row, name=f"text.{row.name}") for row in OPEN_CLIP.tensors if row.path.startswith("text/")
]
_LOGIT_SCALE = TensorName("logit_scale", "logit_scale")

OPEN_CLIP_SIGLIP = NameTable(
    (
        *_TRUNK_ROWS,
        _PATCH_BIAS,
        *_POOL_ROWS,
        *(row for row in _TEXT_ROWS if row.path != "text/projection"),
        TensorName("text.text_projection.weight", "text/projection", TRANSPOSED),
        TensorName("text.text_projection.bias", "text/projection_bias"),
        _LOGIT_SCALE,
        TensorName("logit_bias", "logit_bias"),
    ),
    families=("siglip",),
)
OPEN_CLIP_PE = NameTable(
    (
        *_TRUNK_ROWS,
        _CLASS_TOKEN,
        *norm("vision/pre_norm", f"{_TRUNK}.norm_pre"),
        *_POOL_ROWS,
        TensorName(f"{_TRUNK}.head.weight", "vision/projection", TRANSPOSED),
        *_TEXT_ROWS,
        _LOGIT_SCALE,
    ),
    families=("pe",),
    ignored=frozenset({"text.attn_mask"}),
    zeros=((f"{_TRUNK}.head.bias", "vision/projection"),),
)
# Meta's `.pt` files of Perception Encoder: OpenAI's names and a pooling head.
META_PE = NameTable(
    (*OPEN_CLIP.tensors, *pool("visual.attn_pool", "attn", "mlp.c_fc", "mlp.c_proj")),
    families=("pe",),
    ignored=OPEN_CLIP.ignored,
)
BIOMED_CLIP = NameTable(
    (
        *_TRUNK_ROWS,
        _PATCH_BIAS,
        _CLASS_TOKEN,
        TensorName("visual.head.proj.weight", "vision/projection", TRANSPOSED),
        *bert("text.transformer."),
        TensorName("text.proj.0.weight", "text/projection_hidden", TRANSPOSED),
        TensorName("text.proj.2.weight", "text/projection", TRANSPOSED),
        _LOGIT_SCALE,
    ),
    families=("biomed_clip",),
    ignored=bert_ignored("text.transformer."),
)
# Chinese-CLIP's `.pt` files.
CN_CLIP = NameTable(
    (
        *(row for row in OPEN_CLIP.tensors if row.path.startswith("vision/")),
        *bert("bert."),
        TensorName("text_projection", "text/projection"),
        _LOGIT_SCALE,
    ),
    families=("chinese_clip",),
    ignored=bert_ignored("bert."),
)

# A family's models are written with the first table that has it.
TABLES = (
    *(HUGGING_FACE, FLAX, SIGLIP, CHINESE_CLIP),
    *(OPEN_CLIP, OPEN_CLIP_PE, META_PE, OPEN_CLIP_SIGLIP, BIOMED_CLIP, CN_CLIP),
)


def table_of_family(family: str, table: NameTable | None = None) -> NameTable:
    """Returns the table with which a family's models are written, or `table` if it has that family, too."""
    if table is not None and family in table.families:
        return table
    return next(table for table in TABLES if family in table.families)


def table_of(tensors: Mapping[str, Tensor], *, where: str) -> NameTable:
    """Returns the table with the fewest unknown names. Raises `ClipbiasError` if most names are unknown to it."""
    table = min(TABLES, key=lambda table: len(table.unknown(tensors)))
    unknown = table.unknown(tensors)
    # A few unknown names are damage to a known model, which `from_tensors` lists with the missing ones.
    if 2 * len(unknown) > len(tensors):
        raise other_network(where, f"its tensor {_shown(unknown[0])} and {len(unknown) - 1} more")
    return table


def _pieces(config: ClipConfig, table: NameTable, tree: Params) -> Iterator[tuple[TensorName, str, np.ndarray]]:
    """Yields every tensor of a model: its row, its name in the file, and a view of its part of the leaf."""
    leaves = flatten_dict(tree, sep="/")
    for row in table.tensors:
        whole = leaves[row.path]
        layers = range(getattr(config, row.path.partition("/")[0]).layers) if "{}" in row.name else [None]
        for layer in layers:
            # A view, so that writing into it fills the tree.
            leaf = whole if layer is None else whole[layer]
            width = leaf.shape[-1] // row.parts if row.parts > 1 else 0
            part = leaf[..., row.part * width : (row.part + row.span) * width] if row.parts > 1 else leaf
            yield row, row.name.format(layer), part


def from_tensors(
    config: ClipConfig, tensors: Mapping[str, Tensor], table: NameTable | None = None, *, where: str
) -> Params:
    """Builds the parameter tree (float32 NumPy) from a checkpoint's tensors. Default table: the family's first.

    Raises `ClipbiasError` with all missing, unexpected and mis-shaped tensors, and for NaN or infinite numbers.
    """
    table = table_of_family(config.family, table)
    tensors = {table.plain(name): tensor for name, tensor in tensors.items()}
    # Checked first: a damaged configuration of a million layers would make the list below endless.
    if max(config.vision.layers, config.text.layers) > len(tensors):
        raise ClipbiasError(f"{where} holds {len(tensors)} tensors, fewer than its configuration asks for layers.")
    # Shapes are compared on views without memory: a wrong configuration may ask for more than there is.
    tree = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract_params(config))
    # Shapes in the file's layout, for messages that a user can compare with the file.
    expected = {name: row.layout.save(view).shape for row, name, view in _pieces(config, table, tree)}
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in tensors]
    zeros = [name for name, _ in table.zeros]
    problems += [f"not zero: {name}" for name in zeros if name in tensors and np.any(tensors[name].read())]
    for name, tensor in tensors.items():
        shape = expected.get(name)
        if shape is None:
            if name not in table.ignored and name not in zeros:
                problems.append(f"unexpected: {_shown(name)} {tensor.shape}")
        elif tensor.dtype not in FLOATING:
            problems.append(f"wrong type: {name} is {_shown(tensor.dtype)}, expected one of {', '.join(FLOATING)}")
        # Some trainers store the scale, a scalar, with the shape [1].
        elif tensor.shape != shape and (tensor.shape, shape) != ((1,), ()):
            problems.append(f"wrong shape: {name} is {tensor.shape}, the configuration asks for {shape}")
    if problems:
        shown = problems[:MAX_DIFFERENCES]
        if len(problems) > MAX_DIFFERENCES:
            shown.append(f"and {len(problems) - MAX_DIFFERENCES} more")
        raise ClipbiasError(
            f"{where} does not hold the model that its configuration describes ({len(problems)} differences):\n  "
            + "\n  ".join(shown)
        )
    # One tensor at a time, straight into the tree: besides the tree only one of them is in memory.
    tree = empty_params(config)
    damaged = []
    for row, name, view in _pieces(config, table, tree):
        values = np.asarray(tensors[name].read(), np.float32)
        if not np.isfinite(values).all():
            damaged.append(name)
        view[...] = row.layout.load(values.reshape(expected[name]))
    if damaged:
        more = f" and {len(damaged) - 1} other tensors" if len(damaged) > 1 else ""
        raise ClipbiasError(
            f"{where} holds NaN or infinite numbers in {damaged[0]}{more}; fetch it again, or take a checkpoint from "
            "before its training diverged."
        )
    return tree


def _shown(name: str) -> str:
    return shorten(name if name.isprintable() else ascii(name))


def to_tensors(config: ClipConfig, params: Params, table: NameTable | None = None) -> dict[str, np.ndarray]:
    """Returns a checkpoint's tensors by a family's names; `from_tensors` restores `params` from them bit for bit."""
    tree = jax.tree.map(np.asarray, params)
    table = table_of_family(config.family, table)
    tensors = {name: np.asarray(row.layout.save(view), order="C") for row, name, view in _pieces(config, table, tree)}
    leaves = flatten_dict(tree, sep="/")
    return tensors | {name: np.zeros(leaves[path].shape[-1:], leaves[path].dtype) for name, path in table.zeros}
