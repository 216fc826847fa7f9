"""Models in their owners' code, and three steps of training of what methods add to them.

Transformers, and open_clip with timm's vision towers, with random weights. Each has the modules named where a method
adds something by hooks.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import timm.models.eva
import timm.models.vision_transformer
import torch
import transformers
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transformer import LayerNorm, TextTransformer
from torch import nn

from tests.families import LABELS, RATE, STEPS, Geometry, weight

_QKV = tuple(f"self_attn.{part}_proj.weight" for part in "qkv")
_BERT_QKV = tuple(f"attention.self.{part}.weight" for part in ("query", "key", "value"))
_EPSILON = 1e-6  # of SigLIP's LayerNorms


class Rotation:
    """timm's table of sines and cosines, with rows for prompts that do not turn: sines of 0, cosines of 1."""

    def __init__(self, table: Any) -> None:
        self.table = table
        self.prompts = 0

    def __call__(self, *arguments: Any, **options: Any) -> torch.Tensor:
        table = self.table(*arguments, **options)
        half = torch.zeros(self.prompts, table.shape[1] // 2)
        return torch.cat([table, torch.cat([half, half + 1], 1).to(table)])


@dataclasses.dataclass(frozen=True)
class Owner:
    """An owner's model and the modules that hooks are put on.

    Attributes:
      model: with parameters by the names of its files.
      images, texts: features of pixels `[B, 3, R, R]` and of ids `[C, N]`.
      pooled: the position of each text, `[C]`, whose row is its feature.
      before_prompts: gets vision prompts appended to its input.
      vision_blocks, text_blocks: take tokens first.
      word_embedding: gives token embeddings, whose rows a context replaces.
      vision_kernels, text_kernels: names of the attention's weights in block `{}`, one or three, outputs first.
      first_word: the position of a text's first word.
      last: takes the tokens without prompts, behind the last block; `None` where those are not all read.
      rotation: of a tower that turns queries and keys.
    """

    model: nn.Module
    images: Callable[[torch.Tensor], torch.Tensor]
    texts: Callable[[torch.Tensor], torch.Tensor]
    pooled: Callable[[torch.Tensor], torch.Tensor]
    before_prompts: nn.Module
    vision_blocks: Any
    text_blocks: Any
    word_embedding: Any
    vision_kernels: tuple[str, ...]
    text_kernels: tuple[str, ...]
    first_word: int = 1
    last: nn.Module | None = None
    rotation: Rotation = dataclasses.field(default_factory=lambda: Rotation(None))


def _largest(ids: torch.Tensor) -> torch.Tensor:
    return ids.argmax(-1)


def _end(ids: torch.Tensor, *, eos: int) -> torch.Tensor:
    return (ids == eos).int().argmax(-1)


def _last(ids: torch.Tensor) -> torch.Tensor:
    return torch.full((len(ids),), ids.shape[1] - 1)


def _first(ids: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(ids), dtype=torch.long)


def _output(outputs: Any) -> torch.Tensor:
    return getattr(outputs, "pooler_output", outputs)


# transformers


def _vision(geometry: Geometry, **more: Any) -> dict[str, Any]:
    sizes = dict(hidden_size=geometry.width, intermediate_size=geometry.mlp_ratio * geometry.width)
    sizes |= dict(num_hidden_layers=geometry.layers, num_attention_heads=geometry.heads)
    return sizes | dict(image_size=geometry.image, patch_size=geometry.patch) | more


def _text(geometry: Geometry, tokenizer: Any, **more: Any) -> dict[str, Any]:
    sizes = dict(hidden_size=geometry.text_width, intermediate_size=geometry.mlp_ratio * geometry.text_width)
    sizes |= dict(num_hidden_layers=geometry.text_layers, num_attention_heads=geometry.text_heads)
    sizes |= dict(vocab_size=vocabulary_of(tokenizer), max_position_embeddings=geometry.length)
    return sizes | dict(pad_token_id=tokenizer.pad_token_id) | more


def vocabulary_of(tokenizer: Any) -> int:
    """The number of token ids."""
    return max(tokenizer.get_vocab().values()) + 1


def _of_transformers(model: Any, pooled: Callable[[torch.Tensor], torch.Tensor], first_word: int) -> Owner:
    """A model with the modules of transformers' CLIP; SigLIP has a pooling head and no first LayerNorm."""
    head = getattr(model.vision_model, "head", None)
    blocks = model.vision_model.encoder.layers
    return Owner(
        model,
        lambda pixels: _output(model.get_image_features(pixel_values=pixels)),
        lambda ids: _output(model.get_text_features(input_ids=ids)),
        pooled,
        model.vision_model.pre_layrnorm if head is None else blocks[0],
        blocks,
        model.text_model.encoder.layers,
        model.text_model.embeddings.token_embedding,
        tuple(f"vision_model.encoder.layers.{{}}.{part}" for part in _QKV),
        tuple(f"text_model.encoder.layers.{{}}.{part}" for part in _QKV),
        first_word,
        head,
    )


def _metaclip_2(geometry: Geometry, tokenizer: Any) -> Owner:
    activation = {"hidden_act": "quick_gelu" if geometry.quick_gelu else "gelu"}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    joint = {"projection_dim": geometry.joint}
    settings = transformers.MetaClip2Config(
        vision_config=_vision(geometry, **activation, **joint),
        text_config=_text(geometry, tokenizer, **activation, **ends, **joint),
        projection_dim=geometry.joint,
    )
    pooled = partial(_end, eos=tokenizer.eos_token_id)
    first_word = int(tokenizer.bos_token_id is not None)
    return _of_transformers(transformers.MetaClip2Model(settings), pooled, first_word)


def _siglip(geometry: Geometry, tokenizer: Any) -> Owner:
    text = _text(geometry, tokenizer, projection_size=geometry.width)
    settings = transformers.SiglipConfig(vision_config=_vision(geometry), text_config=text)
    return _of_transformers(transformers.SiglipModel(settings), _last, 0)


def _bert(geometry: Geometry, tokenizer: Any) -> dict[str, Any]:
    return _text(geometry, tokenizer, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def _chinese_clip(geometry: Geometry, tokenizer: Any) -> Owner:
    settings = transformers.ChineseCLIPConfig(
        text_config=_bert(geometry, tokenizer), vision_config=_vision(geometry), projection_dim=geometry.joint
    )
    model = transformers.ChineseCLIPModel(settings)

    def texts(ids: torch.Tensor) -> torch.Tensor:
        return _output(model.get_text_features(input_ids=ids, attention_mask=(ids != 0).long()))

    return Owner(
        model,
        lambda pixels: _output(model.get_image_features(pixel_values=pixels)),
        texts,
        _first,
        model.vision_model.pre_layrnorm,
        model.vision_model.encoder.layers,
        model.text_model.encoder.layer,
        model.text_model.embeddings.word_embeddings,
        tuple(f"vision_model.encoder.layers.{{}}.{part}" for part in _QKV),
        tuple(f"text_model.encoder.layer.{{}}.{part}" for part in _BERT_QKV),
    )


# open_clip and timm


class CustomText(nn.Module):
    """The parts of open_clip's `CustomTextCLIP`."""

    def __init__(self, trunk: nn.Module, head: nn.Module | None, text: nn.Module, *, bias: bool = False) -> None:
        super().__init__()
        self.visual = nn.Module()
        self.visual.trunk = trunk
        if head is not None:
            self.visual.head = nn.Sequential()
            self.visual.head.add_module("proj", head)
        self.text = text
        self.logit_scale = nn.Parameter(torch.ones([]))
        if bias:
            self.logit_bias = nn.Parameter(torch.ones([]))


def _trunk(geometry: Geometry) -> dict[str, Any]:
    return dict(
        img_size=geometry.image,
        patch_size=geometry.patch,
        embed_dim=geometry.width,
        depth=geometry.layers,
        num_heads=geometry.heads,
        mlp_ratio=geometry.mlp_ratio,
    )


def _text_transformer(geometry: Geometry, tokenizer: Any, **more: Any) -> TextTransformer:
    return TextTransformer(
        context_length=geometry.length,
        vocab_size=vocabulary_of(tokenizer),
        width=geometry.text_width,
        heads=geometry.text_heads,
        layers=geometry.text_layers,
        **more,
    )


def _of_timm(model: CustomText, pooled: Callable[[torch.Tensor], torch.Tensor], first_word: int) -> Owner:
    trunk: Any = model.visual.trunk
    text: Any = model.text
    return Owner(
        model,
        trunk,
        text,
        pooled,
        trunk.norm_pre,
        trunk.blocks,
        text.transformer.resblocks,
        text.token_embedding,
        ("visual.trunk.blocks.{}.attn.qkv.weight",),
        ("text.transformer.resblocks.{}.attn.in_proj_weight",),
        first_word,
        trunk.attn_pool,
    )


def _perception_encoder(geometry: Geometry, tokenizer: Any) -> Owner:
    grid = geometry.image // geometry.patch
    trunk = timm.models.eva.Eva(
        **_trunk(geometry),
        num_classes=geometry.joint,
        global_pool="map",
        attn_type="rope",
        use_pre_transformer_norm=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(grid, grid),
        rope_grid_offset=1.0,
        rope_grid_indexing="xy",
        attn_pool_num_heads=8,
        attn_pool_mlp_ratio=geometry.mlp_ratio,
        norm_layer=nn.LayerNorm,
    )
    text = _text_transformer(geometry, tokenizer, output_dim=geometry.joint)
    rotation = Rotation(trunk.rope.get_embed)
    trunk.rope.get_embed = rotation
    return dataclasses.replace(_of_timm(CustomText(trunk, None, text), _largest, 1), rotation=rotation)


def siglip_open_clip(geometry: Geometry, tokenizer: Any) -> Owner:
    """SigLIP, with approximate GELUs."""
    activation = partial(nn.GELU, approximate="tanh")
    trunk = timm.models.vision_transformer.VisionTransformer(
        **_trunk(geometry), num_classes=0, class_token=False, global_pool="map", act_layer=activation
    )
    text = _text_transformer(
        geometry,
        tokenizer,
        mlp_ratio=geometry.mlp_ratio,
        output_dim=geometry.width,
        no_causal_mask=True,
        pool_type="last",
        proj_bias=True,
        norm_layer=partial(LayerNorm, eps=_EPSILON),
        act_layer=activation,
    )
    return _of_timm(CustomText(trunk, None, text, bias=True), _last, 0)


class Biomed(nn.Module):
    """open_clip's `HFTextEncoder` of a BERT with an MLP head, read at `[CLS]`."""

    def __init__(self, bert: nn.Module, width: int, joint: int) -> None:
        super().__init__()
        self.transformer = bert
        hidden = (width + joint) // 2
        self.proj = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, joint, bias=False))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        output = self.transformer(input_ids=ids, attention_mask=(ids != 0).long())
        return self.proj(output.last_hidden_state[:, 0])


def _biomed_clip(geometry: Geometry, tokenizer: Any) -> Owner:
    trunk = timm.models.vision_transformer.VisionTransformer(**_trunk(geometry), num_classes=0)
    bert = transformers.BertModel(transformers.BertConfig(**_bert(geometry, tokenizer)), add_pooling_layer=False)
    text = Biomed(bert, geometry.text_width, geometry.joint)
    model = CustomText(trunk, nn.Linear(geometry.width, geometry.joint, bias=False), text)
    return Owner(
        model,
        lambda pixels: model.visual.head(trunk(pixels)),
        text,
        _first,
        trunk.norm_pre,
        trunk.blocks,
        bert.encoder.layer,
        bert.embeddings.word_embeddings,
        ("visual.trunk.blocks.{}.attn.qkv.weight",),
        tuple(f"text.transformer.encoder.layer.{{}}.{part}" for part in _BERT_QKV),
    )


def towers_of_metaclip_2(geometry: Geometry, tokenizer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """`vision_cfg` and `text_cfg` of open_clip."""
    vision = {"image_size": geometry.image, "layers": geometry.layers, "width": geometry.width, "mlp_ratio": 2.0}
    vision |= {"head_width": geometry.width // geometry.heads, "patch_size": geometry.patch}
    text: dict[str, Any] = {"context_length": geometry.length, "vocab_size": vocabulary_of(tokenizer)}
    text["width"] = geometry.text_width
    text |= {"heads": geometry.text_heads, "layers": geometry.text_layers, "mlp_ratio": 2.0}
    return vision, text | {"pool_type": "eos", "eos_id": tokenizer.eos_token_id}


def _metaclip_2_open_clip(geometry: Geometry, tokenizer: Any) -> Owner:
    vision, text = towers_of_metaclip_2(geometry, tokenizer)
    model = CLIP(geometry.joint, CLIPVisionCfg(**vision), CLIPTextCfg(**text), quick_gelu=geometry.quick_gelu)
    tower: Any = model.visual
    return Owner(
        model,
        model.encode_image,
        model.encode_text,
        partial(_end, eos=tokenizer.eos_token_id),
        tower.ln_pre,
        tower.transformer.resblocks,
        model.transformer.resblocks,
        model.token_embedding,
        ("visual.transformer.resblocks.{}.attn.in_proj_weight",),
        ("transformer.resblocks.{}.attn.in_proj_weight",),
    )


_BUILDERS: dict[str, Callable[[Geometry, Any], Owner]] = {
    "metaclip_2": _metaclip_2,
    "siglip": _siglip,
    "siglip_2": _siglip,
    "pe": _perception_encoder,
    "biomed_clip": _biomed_clip,
    "chinese_clip": _chinese_clip,
    "siglip_open_clip": siglip_open_clip,
    "siglip_2_open_clip": siglip_open_clip,
    "metaclip_2_open_clip": _metaclip_2_open_clip,
    "metaclip_2_mt5": _metaclip_2,
}


def build(family: str, geometry: Geometry, tokenizer: Any) -> Owner:
    """A model with its library's random weights."""
    return _BUILDERS[family](geometry, tokenizer)


def fill(owner: Owner) -> None:
    """Gives a model the weights of `tests.families.weight`, and switches dropout off."""
    owner.model.eval()
    with torch.no_grad():
        for name, parameter in owner.model.named_parameters():
            parameter.copy_(torch.from_numpy(weight(name, tuple(parameter.shape))))


# What methods add to a model, by hooks on its modules.

Tensors = Mapping[str, torch.Tensor]
Change = Callable[[torch.Tensor], torch.Tensor]
CONTEXT = 2


class Hooks:
    """Hooks on an owner's modules, to be removed."""

    def __init__(self) -> None:
        self.handles: list[Any] = []

    def change_first(self, module: nn.Module, change: Change) -> None:
        """Changes the first input."""

        def hook(module: nn.Module, inputs: tuple, options: dict) -> tuple:
            return (change(inputs[0]), *inputs[1:]), options

        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def change_output(self, module: nn.Module, change: Change) -> None:
        """Changes the output, or its first part."""

        def hook(module: nn.Module, inputs: tuple, output: Any) -> Any:
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        self.handles.append(module.register_forward_hook(hook))


def put(rows: torch.Tensor, places: slice) -> Change:
    """Replaces rows of tokens."""

    def change(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, places] = rows
        return x

    return change


def add(rows: torch.Tensor, pooled: torch.Tensor) -> Change:
    """Adds a bias to tokens: `[D]`, or by kind `[1, D]`, or `[2, D]` with the first at `pooled` of each sequence."""

    def change(x: torch.Tensor) -> torch.Tensor:
        if rows.ndim == 1 or len(rows) == 1:
            return x + rows
        is_pooled = torch.arange(x.shape[1]) == pooled.expand(len(x))[:, None]
        return x + torch.where(is_pooled[..., None], rows[0], rows[1])

    return change


@contextmanager
def adapted(owner: Owner, added: Tensors, pooled: torch.Tensor) -> Iterator[None]:
    """Puts biases behind blocks, and prompts into both towers. `pooled`: the positions of texts' features."""
    hooks = Hooks()
    if "vision_prompts" in added:
        first, *others = added["vision_prompts"]
        count = len(first)
        hooks.change_first(owner.before_prompts, lambda x: torch.cat([x, first.expand(len(x), -1, -1)], 1))
        for block, rows in zip(list(owner.vision_blocks)[1:], others, strict=False):
            hooks.change_first(block, put(rows, slice(-count, None)))
        if owner.last is not None:
            hooks.change_first(owner.last, lambda x: x[:, :-count])
            owner.rotation.prompts = count
    places = slice(owner.first_word, owner.first_word + CONTEXT)
    if "text_context" in added:
        hooks.change_output(owner.word_embedding, put(added["text_context"], places))
    for number, rows in enumerate(added.get("text_prompts", ()), 1):
        hooks.change_first(owner.text_blocks[number], put(rows, places))
    for number, rows in enumerate(added.get("vision_bias", ())):
        hooks.change_output(owner.vision_blocks[number], add(rows, torch.zeros(1)))
    for number, rows in enumerate(added.get("text_bias", ())):
        hooks.change_output(owner.text_blocks[number], add(rows, pooled))
    try:
        yield
    finally:
        for handle in hooks.handles:
            handle.remove()
        owner.rotation.prompts = 0


def low_rank(owner: Owner, added: Tensors) -> dict[str, torch.Tensor]:
    """The attention's kernels with changes of low rank."""
    weights = dict(owner.model.named_parameters())
    changed = {}
    for tower, names in (("vision", owner.vision_kernels), ("text", owner.text_kernels)):
        if f"lora.{tower}.down" not in added:
            continue
        for block, (down, up) in enumerate(zip(added[f"lora.{tower}.down"], added[f"lora.{tower}.up"], strict=True)):
            parts = [(left @ right).T for left, right in zip(down, up, strict=True)]
            changes = [torch.cat(parts)] if len(names) == 1 else parts
            for name, change in zip(names, changes, strict=True):
                changed[name.format(block)] = weights[name.format(block)] + change
    return changed


class Features(nn.Module):
    """Both features in one call, so that weights can be replaced for it."""

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self.model = owner.model
        self.owner = (owner,)

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.owner[0].images(pixels), self.owner[0].texts(ids)


def logits(owner: Owner, pixels: torch.Tensor, ids: torch.Tensor, added: Tensors) -> torch.Tensor:
    """`[B, C]` of a model with what a method adds: of CLIP-LoRA with 100 in place of the model's own scale."""
    changed = {f"model.{name}": value for name, value in low_rank(owner, added).items()}
    with adapted(owner, added, owner.pooled(ids)):
        images, texts = torch.func.functional_call(Features(owner), changed, (pixels, ids))
    texts = texts + 0.5 * added.get("text_residual", torch.zeros(()))  # of TaskRes, before features are normalised
    image, text = (x / x.norm(dim=-1, keepdim=True) for x in (images, texts))
    model: Any = owner.model
    scale = torch.tensor(100.0).double() if changed else model.logit_scale.exp()
    bias = getattr(model, "logit_bias", None)
    return scale * image @ text.T + (0 if bias is None else bias)


def trained(
    run: Callable[[Tensors], torch.Tensor], start: Mapping[str, np.ndarray]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What three steps of SGD make of learnables, and the last loss."""
    leaves = {key: torch.from_numpy(value).double().requires_grad_() for key, value in start.items()}
    optimizer = torch.optim.SGD(leaves.values(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    loss = torch.zeros(())
    for _ in range(STEPS):
        optimizer.zero_grad()
        # `up` holds γ = α / √r beside what is learned.
        scaled = {key: x / 2**0.5 if key.endswith(".up") else x for key, x in leaves.items()}
        loss = nn.functional.cross_entropy(run(scaled), torch.tensor(LABELS))
        loss.backward()
        optimizer.step()
    return leaves, loss
