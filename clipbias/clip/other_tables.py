"""Names of tensors of further families: in open_clip's files, whose vision towers are timm's, and in their owners'."""

import dataclasses

from clipbias.clip.tables import (
    CHINESE_CLIP,
    FLAX,
    HUGGING_FACE,
    OPEN_CLIP,
    SIGLIP,
    TORCH_CONVOLUTION,
    TRANSPOSED,
    Layout,
    NameTable,
    TensorName,
    bert,
    bert_ignored,
    blocks,
    linear,
    norm,
)

_TRUNK = "visual.trunk"
_HEAD = "vision/pool"
_ONE_IMAGE = Layout(lambda x: x[0], lambda x: x[None])
_ONE_TOKEN = Layout(lambda x: x[0, 0], lambda x: x[None, None])
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
    TensorName(f"{_TRUNK}.attn_pool.latent", f"{_HEAD}/probe", _ONE_TOKEN),
    TensorName(f"{_TRUNK}.attn_pool.q.weight", f"{_HEAD}/qkv/kernel", TRANSPOSED, part=0, parts=3),
    TensorName(f"{_TRUNK}.attn_pool.q.bias", f"{_HEAD}/qkv/bias", part=0, parts=3),
    TensorName(f"{_TRUNK}.attn_pool.kv.weight", f"{_HEAD}/qkv/kernel", TRANSPOSED, part=1, parts=3, span=2),
    TensorName(f"{_TRUNK}.attn_pool.kv.bias", f"{_HEAD}/qkv/bias", part=1, parts=3, span=2),
    *linear(f"{_HEAD}/out", f"{_TRUNK}.attn_pool.proj"),
    *norm(f"{_HEAD}/norm2", f"{_TRUNK}.attn_pool.norm"),
    *linear(f"{_HEAD}/fc1", f"{_TRUNK}.attn_pool.mlp.fc1"),
    *linear(f"{_HEAD}/fc2", f"{_TRUNK}.attn_pool.mlp.fc2"),
]
# The text tower of open_clip, where it is a module of its own.
_TEXT_ROWS = [
    dataclasses.replace(row, name=f"text.{row.name}") for row in OPEN_CLIP.rows if row.path.startswith("text/")
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
# Meta's own `.pt` files of Perception Encoder: OpenAI's names and a pooling head.
META_PE = NameTable(
    (
        *OPEN_CLIP.rows,
        TensorName("visual.attn_pool.probe", f"{_HEAD}/probe", _ONE_TOKEN),
        TensorName("visual.attn_pool.attn.in_proj_weight", f"{_HEAD}/qkv/kernel", TRANSPOSED),
        TensorName("visual.attn_pool.attn.in_proj_bias", f"{_HEAD}/qkv/bias"),
        *linear(f"{_HEAD}/out", "visual.attn_pool.attn.out_proj"),
        *norm(f"{_HEAD}/norm2", "visual.attn_pool.layernorm"),
        *linear(f"{_HEAD}/fc1", "visual.attn_pool.mlp.c_fc"),
        *linear(f"{_HEAD}/fc2", "visual.attn_pool.mlp.c_proj"),
    ),
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
# Chinese-CLIP's own `.pt` files.
CN_CLIP = NameTable(
    (
        *(row for row in OPEN_CLIP.rows if row.path.startswith("vision/")),
        *bert("bert."),
        TensorName("text_projection", "text/projection"),
        _LOGIT_SCALE,
    ),
    families=("chinese_clip",),
    ignored=bert_ignored("bert."),
)

# The first one of a family is that in which its models are written.
TABLES = (
    HUGGING_FACE,
    FLAX,
    SIGLIP,
    CHINESE_CLIP,
    OPEN_CLIP,
    OPEN_CLIP_PE,
    META_PE,
    OPEN_CLIP_SIGLIP,
    BIOMED_CLIP,
    CN_CLIP,
)


def table_of_family(family: str) -> NameTable:
    """The names with which a family's models are written."""
    return next(table for table in TABLES if family in table.families)
